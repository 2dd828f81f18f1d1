"""What every stage does alike: find its artifact in the output folder or make it, and tell what it does in events."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from raymerge.artifacts import Artifact, Draft, Output
from raymerge.capacity import Capacity
from raymerge.config import Config
from raymerge.deadline import Deadline
from raymerge.events import Emit, Event, Place, Progress
from raymerge.pool import Pool
from raymerge.runtime import cluster_capacity

EVENTS = "events.json"


@dataclass(frozen=True)
class Context:
    """What every stage needs: the configuration, where artifacts go, whom to tell, and when to give up."""

    config: Config
    output: Output
    emit: Emit
    deadline: Deadline

    @property
    def capacity(self) -> Capacity:
        """What the cluster of the present session has."""
        return cluster_capacity(self.config.cluster)

    def pool(self) -> Pool:
        """Actors for Fisher, merging and evaluation."""
        return Pool(self.capacity, self.config.cluster, self.deadline)

    def find(self, stage: str, run: str, *, inputs: Mapping[str, Any], configuration: Any) -> Artifact | None:
        """The artifact if it is committed; its events are told again, for a tracker that has not seen them."""
        self.emit(Place(run, self.output.locate(stage, inputs=inputs, configuration=configuration)))
        artifact = self.output.find(stage, inputs=inputs, configuration=configuration)
        if artifact is not None:
            for key, step, value in artifact.json(EVENTS):
                self.emit(Event(run, key, step, value))
            self.emit(Progress(run, 1, 1, "found, not made again"))
        return artifact

    def committed(self, stage: str, *, inputs: Mapping[str, Any], configuration: Any) -> Artifact:
        """The artifact that was made just now."""
        found = self.output.find(stage, inputs=inputs, configuration=configuration)
        assert found is not None, "it was committed just now"
        return found

    def make(
        self, stage: str, run: str, fill: Callable[["Making"], None], *, inputs: Mapping[str, Any], configuration: Any
    ) -> Artifact:
        """Commit the artifact that `fill` makes; what `tell` is given is emitted and kept with it."""
        began = time.monotonic()
        with self.output.stage(stage, inputs=inputs, configuration=configuration) as draft:
            making = Making(run, draft, self.emit, self.deadline)
            fill(making)
            draft.counts.setdefault("seconds", round(time.monotonic() - began, 1))
            draft.write_json(EVENTS, [[event.key, event.step, event.value] for event in making.events])
        return self.committed(stage, inputs=inputs, configuration=configuration)

    def find_or_make(
        self, stage: str, run: str, fill: Callable[["Making"], None], *, inputs: Mapping[str, Any], configuration: Any
    ) -> Artifact:
        """The artifact if it is committed, else made by `fill`."""
        key = {"inputs": inputs, "configuration": configuration}
        return self.find(stage, run, **key) or self.make(stage, run, fill, **key)


class Making:
    """An artifact in the making, and the events that it makes."""

    def __init__(self, run: str, draft: Draft, emit: Emit, deadline: Deadline) -> None:
        self.run, self.folder, self.counts, self.write_json = run, draft.folder, draft.counts, draft.write_json
        self._emit, self._deadline = emit, deadline
        self.events: list[Event] = []

    def tell(self, key: str, value: float, *, step: int = 0) -> None:
        """Emit one figure of this run."""
        self.events.append(Event(self.run, key, step, float(value)))
        self._emit(self.events[-1])

    def progress(self, done: float, total: float, note: str = "") -> None:
        """Say how far it is; ResourceError if the time is over before it is done."""
        self._emit(Progress(self.run, done, total, note))
        if done < total:
            self._deadline.check(self.run)
