"""What a command works on and where the artifacts of its runs lie, kept in the output so that all can be sent later."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from raymerge import storage
from raymerge.errors import ArtifactError, InputError
from raymerge.redaction import redact, without_credentials

FOLDER = "runs"


@dataclass
class Record:
    """One command: all that `Tracker` is told of it, and the place of each run's artifact within the output.

    A command that is given again continues its record, which is `<output>/runs/<identity>.json`.
    """

    output: str
    name: str
    identity: str
    configuration: Mapping[str, Any]
    dataset: Mapping[str, Any]
    places: dict[str, str] = field(default_factory=dict)
    _is_newest: bool = field(default=False, init=False)

    @property
    def url(self) -> str:
        """Where it is kept."""
        return storage.join(self.output, FOLDER, f"{self.identity}.json")

    def open(self) -> "Record":
        """Take the places that an earlier command of this identity has noted."""
        if storage.exists(self.url):
            self.places = read(self.output, self.url).places | self.places
        return self

    def note(self, run: str, url: str) -> None:
        """Keep where the artifact of a run lies; written at once, since the command may be killed.

        The first note of a command is always written: its record is the newest then.
        """
        place = url.removeprefix(self.output + "/")
        if self.places.get(run) != place or not self._is_newest:
            self.places[run], self._is_newest = place, True
            facts = ("name", "identity", "configuration", "dataset", "places")
            content = json.dumps({fact: getattr(self, fact) for fact in facts}, indent=1)
            storage.write_bytes(self.url, redact(content).encode())


def read(output: str, url: str) -> Record:
    """The record that lies at a URL."""
    content = storage.read_bytes(url)
    try:
        return Record(output, **json.loads(content))
    except (ValueError, TypeError):
        raise ArtifactError(f"{url} is not the record of a command; delete it") from None


def newest_place(output: str, run: str) -> str | None:
    """Where a run's artifact lies, of the command that was given last and has committed one; None if there is none."""
    for url in sorted(_urls(output), key=storage.modified, reverse=True):
        place = read(output, url).places.get(run)
        if place is not None and storage.exists(storage.join(output, place, storage.LAST_FILE)):
            return place
    return None


def read_all(output: str) -> list[Record]:
    """The records of all commands that worked in an output; InputError if there are none."""
    urls = _urls(output)
    if not urls:
        raise InputError(f"{without_credentials(output)} is no output of raymerge that a command has worked in")
    return [read(output, url) for url in urls]


def _urls(output: str) -> list[str]:
    """Of all records, but what a killed process had not put in its place."""
    folder = storage.join(output, FOLDER)
    return [storage.join(folder, name) for name in storage.list_folder(folder) if name.endswith(".json")]
