"""What all stages have in common: find the artifact in the output folder or make it, and emit events."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from raymerge.artifacts import Artifact, Draft, Key, Output
from raymerge.config import Config
from raymerge.events import Emit, Event, Place, Progress
from raymerge.execution.capacity import Capacity
from raymerge.execution.deadline import Deadline
from raymerge.execution.pool import Pool
from raymerge.execution.runtime import cluster_capacity

EVENTS = "events.json"


@dataclass(frozen=True)
class Context:
    """What every stage needs: the configuration, the output, the receiver of messages, and the deadline."""

    config: Config
    output: Output
    emit: Emit
    deadline: Deadline
    suffix: str = ""  # of the names of runs, which tells rounds and rivals apart

    def run_name(self, stage: str, name: str) -> str:
        """The name of a model's run in a stage."""
        return f"{stage}/{name}{self.suffix}"

    @property
    def capacity(self) -> Capacity:
        """What the cluster of the current session has."""
        return cluster_capacity(self.config.cluster, self.deadline)

    def pool(self) -> Pool:
        """Actors for Fisher, merging and evaluation."""
        return Pool(self.capacity, self.config.cluster, self.deadline)

    def find(self, run: str, key: Key) -> Artifact | None:
        """The artifact if it is committed; its events are emitted again, for a tracker that has not seen them."""
        self.emit(Place(run, self.output.locate(key)))
        artifact = self.output.find(key)
        if artifact is not None:
            for name, step, value in artifact.json(EVENTS):
                self.emit(Event(run, name, step, value))
            self.emit(Progress(run, 1, 1, "found, reused"))
        return artifact

    def committed(self, key: Key) -> Artifact:
        """The artifact that has just been made."""
        found = self.output.find(key)
        assert found is not None, "it has just been committed"
        return found

    def make(self, run: str, key: Key, fill: Callable[["TrackedDraft"], None]) -> Artifact:
        """Commit the artifact that `fill` makes, with the events that it has emitted."""
        began = time.monotonic()
        with self.output.draft(key) as draft:
            tracked = TrackedDraft(run, draft, self.emit, self.deadline)
            fill(tracked)
            draft.counts.setdefault("seconds", round(time.monotonic() - began, 1))
            draft.write_json(EVENTS, [[event.key, event.step, event.value] for event in tracked.events])
        return self.committed(key)

    def find_or_make(self, run: str, key: Key, fill: Callable[["TrackedDraft"], None]) -> Artifact:
        """The committed artifact, or else the one that `fill` makes."""
        return self.find(run, key) or self.make(run, key, fill)


class TrackedDraft:
    """A draft of an artifact that emits the progress and metrics of its run, and keeps the metrics."""

    def __init__(self, run: str, draft: Draft, emit: Emit, deadline: Deadline) -> None:
        self.run, self.folder, self.counts, self.write_json = run, draft.folder, draft.counts, draft.write_json
        self._emit, self._deadline = emit, deadline
        self.events: list[Event] = []

    def tell(self, key: str, value: float, *, step: int = 0) -> None:
        """Emit one figure of this run and keep it."""
        self.events.append(Event(self.run, key, step, float(value)))
        self._emit(self.events[-1])

    def progress(self, done: float, total: float, note: str = "") -> None:
        """Emit progress; ResourceError if the deadline has passed and it is not done."""
        self._emit(Progress(self.run, done, total, note))
        if done < total:
            self._deadline.check(self.run)
