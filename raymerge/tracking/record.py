"""What a command worked on and where its runs' artifacts are, kept in the output so that it can all be sent later."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from raymerge.errors import ArtifactError, InputError
from raymerge.files import storage
from raymerge.redaction import redact, without_credentials

FOLDER = "runs"


@dataclass
class Record:
    """One command: everything `Tracker` is given about it, and the place of each run's artifact within the output.

    A repeated command continues its record, `<output>/runs/<identity>.json`.
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
        """Where it is stored."""
        return storage.join(self.output, FOLDER, f"{self.identity}.json")

    def open(self) -> "Record":
        """Load the places noted by an earlier command of this identity."""
        if storage.exists(self.url):
            self.places = read(self.output, self.url).places | self.places
        return self

    def note(self, run: str, url: str) -> None:
        """Note where the artifact of a run is; written at once, since the command may be killed.

        A command's first note is always written, which makes its record the newest.
        """
        place = url.removeprefix(self.output + "/")
        if self.places.get(run) != place or not self._is_newest:
            self.places[run], self._is_newest = place, True
            facts = ("name", "identity", "configuration", "dataset", "places")
            content = json.dumps({fact: getattr(self, fact) for fact in facts}, indent=1)
            storage.write_bytes(self.url, redact(content).encode())


def read(output: str, url: str) -> Record:
    """The record at a URL."""
    content = storage.read_bytes(url)
    try:
        return Record(output, **json.loads(content))
    except (ValueError, TypeError):
        raise ArtifactError(f"{url} is not the record of a command; delete it") from None


def newest_place(output: str, run: str) -> str | None:
    """Where a run's artifact is, according to the latest command that committed one; None if there is none."""
    for url in sorted(_urls(output), key=storage.modified, reverse=True):
        place = read(output, url).places.get(run)
        if place is not None and storage.exists(storage.join(output, place, storage.LAST_FILE)):
            return place
    return None


def read_all(output: str) -> list[Record]:
    """The records of all commands that worked in an output; InputError if there are none."""
    urls = _urls(output)
    if not urls:
        raise InputError(f"{without_credentials(output)} is not an output folder in which a raymerge command has run")
    return [read(output, url) for url in urls]


def _urls(output: str) -> list[str]:
    """URLs of all records, without the partial files that killed processes left."""
    folder = storage.join(output, FOLDER)
    return [storage.join(folder, name) for name in storage.list_folder(folder) if name.endswith(".json")]
