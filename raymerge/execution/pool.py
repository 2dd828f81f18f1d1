"""Pieces of work on Ray: each is done by whichever process is free, and its result is taken exactly once."""

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
import torch
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError

from raymerge.errors import LostError, ResourceError, UserError, first_line
from raymerge.execution import chunking
from raymerge.execution.capacity import Capacity, ClusterConfig
from raymerge.execution.deadline import Deadline
from raymerge.execution.runtime import POLL_S

MAX_ATTEMPTS = 4  # of one piece of work whose process died
BEAT_S, SILENCE_S = 10.0, 120.0
"""How often a busy process is asked for a sign of life, and after what silence it is considered dead."""
PATIENCE, PATIENCE_S = 20, 600.0
"""A process that takes both this many times as long as the slowest piece so far and this long is considered hung."""
START_S = 300.0
"""How long no process may run before the wait for one is explained."""
log = logging.getLogger(__name__)


class Worker:
    """Runs functions for the driver. A plain class, which `Pool` makes an actor."""

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)

    def started(self) -> None:
        """Returns once the process has started."""

    @ray.method(concurrency_group="beat")
    def beat(self) -> None:
        """Returns at once, in a thread of its own, whatever `run` is doing."""

    def run(self, function: Callable[..., Any], arguments: tuple[Any, ...], smaller: bool) -> tuple[Any, float]:
        """The function's result, in chunks of the usual size or smaller ones, and the seconds it took."""
        began = time.monotonic()
        with chunking.chunks(smaller):
            return function(*arguments), time.monotonic() - began


@dataclass
class _Call:
    """A piece of work under way."""

    key: str
    actor: Any
    began: float  # by the monotonic clock, when a running process was given the piece
    asked: float  # when its process was last asked for a sign of life
    beat: Any = None  # the pending sign of life
    ended: str | None = None  # why it was killed, if it was


class _Work:
    """The pieces of one `Pool.run`: waiting and under way, and the time of the slowest so far."""

    def __init__(
        self, function: Callable[..., Any], pieces: Mapping[str, tuple[Any, ...]], doing: str, smaller: set[str]
    ) -> None:
        self.doing = doing
        self.waiting = deque(sorted(pieces))
        self.under_way: dict[Any, _Call] = {}
        self._function, self._pieces = function, pieces
        self._attempts = dict.fromkeys(pieces, 0)
        self._smaller = smaller
        self._slowest_s = 0.0
        self._stood_since = time.monotonic()

    def give(self, actor: Any) -> None:
        """Let an actor compute the next piece."""
        key = self.waiting.popleft()
        self._attempts[key] += 1
        reference = actor.run.remote(self._function, self._pieces[key], key in self._smaller)
        now = time.monotonic()
        self.under_way[reference] = _Call(key, actor, began=now, asked=now)

    def took(self, seconds: float) -> None:
        """Record how long a piece took, as its process measured it: the driver may have been busy meanwhile."""
        self._slowest_s = max(self._slowest_s, seconds)

    def stands_still(self) -> bool:
        """Whether nothing has been under way for `START_S`; true once for each such time."""
        now = time.monotonic()
        if self.under_way:
            self._stood_since = now
        if now - self._stood_since < START_S:
            return False
        self._stood_since = math.inf
        return True

    def again(self, call: _Call, error: RayError) -> None:
        """Requeue a piece whose process died or was ended; LostError after too many attempts."""
        if self._attempts[call.key] >= MAX_ATTEMPTS:
            raise LostError(
                f"{self.doing}: {call.key} was abandoned after {MAX_ATTEMPTS} attempts; its last process "
                f"{call.ended or f'died ({first_line(error)})'}"
            ) from error
        self.waiting.appendleft(call.key)

    def in_smaller_chunks(self, call: _Call, error: RayError, *, own: bool) -> None:
        """Requeue a piece that ran out of memory, in smaller chunks.

        ResourceError if it had smaller chunks already and its `own` request failed, or if Ray has killed it too often.
        """
        if call.key in self._smaller and (own or self._attempts[call.key] >= MAX_ATTEMPTS):
            reason = first_line(getattr(error, "cause", error))
            raise ResourceError(
                f"{self.doing}: {call.key} ran out of memory even in chunks of 1/{chunking.SMALLER} of the usual size "
                f"({reason}); lower cluster.actors, or use larger machines"
            ) from error
        log.warning("%s: %s ran out of memory; it is retried in smaller chunks", self.doing, call.key)
        self._smaller.add(call.key)
        self.waiting.appendleft(call.key)

    def end_hanging(self, most_s: float) -> None:
        """Kill processes that are silent, or take far too long for their piece, or longer than `most_s`.

        One whose result has arrived is left alone, however long the driver was busy with others.
        """
        limit_s = min(most_s, max(PATIENCE_S, PATIENCE * self._slowest_s)) if self._slowest_s else most_s
        self._listen()
        now = time.monotonic()
        ready = (
            {*ray.wait([*self.under_way], num_returns=len(self.under_way), timeout=0, fetch_local=False)[0]}
            if self.under_way
            else ()
        )
        for reference, call in self.under_way.items():
            if call.ended or reference in ready:
                continue
            if call.beat is not None and now - call.asked > SILENCE_S:
                call.ended = f"gave no sign of life for {SILENCE_S:.0f} s: is its machine overloaded?"
            elif now - call.began > limit_s:
                call.ended = f"had no result in {limit_s:.0f} s: raise cluster.partition_hours if it needs longer"
            if call.ended:
                log.warning("%s: the process for %s %s; the piece is retried", self.doing, call.key, call.ended)
                ray.kill(call.actor)

    def _listen(self) -> None:
        """Collect the signs of life that have arrived, and ask for the next where it is time."""
        asked = {call.beat: call for call in self.under_way.values() if call.beat is not None}
        for beat in ray.wait([*asked], num_returns=len(asked), timeout=0)[0] if asked else ():
            with suppress(RayError):  # a process that is gone: its piece fails, too
                ray.get(beat)
            asked[beat].beat = None
        now = time.monotonic()
        for call in self.under_way.values():
            if call.beat is None and now - call.asked > BEAT_S:
                call.asked, call.beat = now, call.actor.beat.remote()


class Pool:
    """Actors that compute pieces of work, each taken once by its key.

    One piece is under way per actor: it gets the next one before its last result is processed, so that it is never idle
    for long and at most one result per actor waits. An actor that dies or hangs is replaced and its piece retried, up
    to `MAX_ATTEMPTS` times; one that ran out of memory is retried in smaller chunks (`raymerge.execution.chunking`). A
    UserError in a worker is raised here unchanged. Since pieces may be repeated, a function returns a value for its
    piece, or commits it under its key, and changes nothing else. Actors live as long as the block, so functions may
    cache.
    """

    def __init__(self, capacity: Capacity, config: ClusterConfig, deadline: Deadline) -> None:
        self.size = capacity.actors(config)
        self._each = capacity.share(config, self.size, threads=config.actor_threads)
        options = {
            "num_cpus": self._each["CPU"],
            "num_gpus": self._each.get("GPU", 0),
            "concurrency_groups": {"beat": 1},
        }
        self._kind: Any = ray.remote(**options)(Worker)  # type: ignore[call-overload] # its annotations lack the groups
        self._config = config
        self._deadline = deadline
        self._starting: dict[Any, Any] = {}
        self._idle: list[Any] = []
        self._smaller: set[str] = set()  # pieces that ran out of memory, in any `run`
        self._failed_starts = 0

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        self._end_idle()
        for actor in self._starting.values():
            ray.kill(actor)
        self._starting = {}

    def _end_idle(self) -> None:
        for actor in self._idle:
            ray.kill(actor)
        self._idle = []

    def run(
        self,
        function: Callable[..., Any],
        pieces: Mapping[str, tuple[Any, ...]],
        *,
        doing: str,
    ) -> Iterator[tuple[str, Any]]:
        """Compute `function(*arguments)` for each piece; yields its key and value, in order of completion.

        Sums of results must be taken in the order of the keys, to be reproducible. Nothing is computed before the first
        result is asked for, and pieces under way are ended when the iteration is left.
        """
        work = _Work(function, pieces, doing, self._smaller)
        try:
            while work.waiting or work.under_way:
                self._deadline.check(doing)
                self._hand_out(work)
                work.end_hanging(self._config.partition_hours * 3600)
                if work.stands_still():
                    self._explain_wait(doing)
                for reference in ray.wait([*self._starting, *work.under_way], timeout=POLL_S)[0]:
                    if reference in self._starting:
                        self._take_started(reference, doing)
                        continue
                    results = self._take(work, reference)
                    self._hand_out(work)
                    yield from results
        finally:
            for call in work.under_way.values():
                ray.kill(call.actor)

    def _explain_wait(self, doing: str) -> None:
        free = ray.available_resources()
        needs = " and ".join(f"{need:g} {kind} ({free.get(kind, 0):g} free)" for kind, need in self._each.items())
        what = f"no process could start for {START_S / 60:.0f} minutes: each needs {needs}"
        log.warning("%s: %s; do other jobs hold the rest?", doing, what)

    def _hand_out(self, work: _Work) -> None:
        """Give pieces to idle actors; start more as far as there is work and room."""
        while work.waiting and self._idle:
            work.give(self._idle.pop())
        room = self.size - len(work.under_way) - len(self._idle)
        while len(self._starting) < min(room, len(work.waiting)):
            actor = self._kind.remote(self._config.actor_threads)
            self._starting[actor.started.remote()] = actor

    def _take_started(self, reference: Any, doing: str) -> None:
        actor = self._starting.pop(reference)
        try:
            ray.get(reference)
        except RayError as error:
            self._failed_starts += 1
            if self._failed_starts >= MAX_ATTEMPTS:
                what = f"{MAX_ATTEMPTS} processes died while starting ({first_line(error)})"
                raise LostError(f"{doing}: {what}") from error
        else:
            self._failed_starts = 0
            self._idle.append(actor)

    def _take(self, work: _Work, reference: Any) -> list[tuple[str, Any]]:
        """Key and result of a finished piece; nothing if the piece has to be retried."""
        call = work.under_way.pop(reference)
        try:
            result, seconds = ray.get(reference)
        except RayTaskError as error:
            if chunking.is_exhausted(error.cause):
                ray.kill(call.actor)  # to free what it still holds
                work.in_smaller_chunks(call, error, own=True)
                return []
            self._idle.append(call.actor)
            raise _cause(error) from error
        except OutOfMemoryError as error:  # Ray killed it before the machine ran out
            work.in_smaller_chunks(call, error, own=False)
            return []
        except RayError as error:  # the actor or its node died, cannot be reached, or hung and was killed
            ray.kill(call.actor)
            if not call.ended:
                self._end_idle()  # they may be gone with its node, and attempts are limited
            work.again(call, error)
            return []
        work.took(seconds)
        if not call.ended:  # else it was killed just before its result arrived
            self._idle.append(call.actor)
        return [(call.key, result)]


def _cause(error: RayTaskError) -> Exception:
    """The UserError that ended a task, or else the task's failure itself."""
    cause = error.cause
    return cause if isinstance(cause, UserError) else error
