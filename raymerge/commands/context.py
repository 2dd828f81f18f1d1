"""The context of commands: a checked configuration, a display, a run in MLflow with its record, and Ray."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from raymerge.artifacts import Artifact, Output, digest_of
from raymerge.commands.inputs import dataset_of
from raymerge.config import Config
from raymerge.events import Event, Message, Place, Progress
from raymerge.execution.deadline import Deadline
from raymerge.execution.pool import Pool
from raymerge.execution.runtime import session
from raymerge.progress import display
from raymerge.recipes import configure
from raymerge.stages.context import Context
from raymerge.tracking.record import Record
from raymerge.tracking.runs import Tracker, check_server
from raymerge.tracking.store import resolve_uri


class Announcer:
    """Passes messages of stages to the display and, if set, to the tracker and the record."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.display = display(console)
        self.tracker: Tracker | None = None
        self.record: Record | None = None

    def __call__(self, message: Message) -> None:
        """Show the message; track metrics, URLs of artifacts, and ends of runs."""
        self.display(message)
        if self.record and isinstance(message, Place):
            self.record.note(message.run, message.url)
        if self.tracker and isinstance(message, Event):
            self.tracker(message)
        if self.tracker and isinstance(message, Progress) and message.done >= message.total:
            self.tracker.finish(message.run)


@dataclass(frozen=True)
class CommandContext(Context):
    """A stage context whose emitter is an `Announcer`."""

    emit: Announcer


@contextmanager
def command_context(
    *, recipe: str, output: str, overrides: Sequence[str], address: str | None, tracking_uri: str | None
) -> Iterator[CommandContext]:
    """A context for stages, once the configuration is valid, the output usable and MLflow's server answering.

    If one of these fails, nothing has been changed, and no log read or downloaded.
    """
    changes = [*overrides]
    changes += [f"cluster.address={address}"] if address else []
    changes += [f"tracking.uri={tracking_uri}"] if tracking_uri else []
    config = configure(recipe, changes)
    target = Output(output)
    target.check()
    check_server(_tracking_uri(config, target))
    announcer = Announcer(Console(stderr=True))
    with announcer.display:
        yield CommandContext(config, target, announcer, Deadline(config.cluster.deadline_hours * 3600))


@contextmanager
def tracked(
    context: CommandContext, command: str, dataset: Mapping[str, Any], given: Iterable[Artifact] = ()
) -> Iterator[Tracker]:
    """A run in MLflow around stages; an unreachable server is an error before any of them starts.

    It continues the run of the same command on the same data and `given` artifacts.
    """
    config, announcer = context.config, context.emit
    uri = _tracking_uri(config, context.output)
    configuration = config.plain()
    given_digests = [artifact.digest for artifact in given]
    facts = [command, config.determining(), config.cluster.in_artifacts(), dataset["digest"], given_digests]
    record = Record(
        context.output.open().url,
        name=f"{command} {Path(config.recipe).stem}",
        identity=digest_of([*facts, context.output.url]),
        configuration=configuration,
        dataset=dataset,
    )
    with tracker_of(record.open(), uri) as tracker:
        announcer.tracker, announcer.record = tracker, record
        try:
            yield tracker
        finally:
            announcer.tracker = announcer.record = None


def _tracking_uri(config: Config, output: Output) -> str:
    return resolve_uri(config.tracking.uri, os.environ.get("MLFLOW_TRACKING_URI"), output.url)


def tracker_of(record: Record, uri: str) -> Tracker:
    """The tracker that sends the runs of a command to a server."""
    experiment = record.configuration["tracking"]["experiment"]
    return Tracker(
        uri,
        experiment,
        name=record.name,
        identity=record.identity,
        configuration=record.configuration,
        dataset=record.dataset,
    )


@contextmanager
def tracked_pool(context: CommandContext, command: str, data: Artifact, given: Iterable[Artifact]) -> Iterator[Pool]:
    """A run in MLflow, a Ray session and actors around a stage that starts from prepared data."""
    with tracked(context, command, dataset_of(data), given), session(context.config.cluster), context.pool() as pool:
        yield pool
