"""Messages from the workers of a training on their way to the driver."""

from dataclasses import dataclass

from raymerge.errors import UserError
from raymerge.events import Event, Progress


@dataclass(frozen=True)
class UserFailure:
    """An error found by a worker that the user can correct."""

    run: str
    error: UserError


class EventLog:
    """Collects workers' messages until the driver takes them, and keeps what restarted workers should know.

    Runs as an actor without a CPU.
    """

    def __init__(self) -> None:
        self._messages: list[Event | Progress | UserFailure] = []
        self._exhausted: set[str] = set()

    def add(self, messages: list[Event | Progress | UserFailure]) -> None:
        """Keep messages in the order of arrival."""
        self._messages += messages

    def take(self) -> list[Event | Progress | UserFailure]:
        """All messages since the last call."""
        messages, self._messages = self._messages, []
        return messages

    def note_exhausted(self, run: str) -> None:
        """Record that workers of this run ran out of memory."""
        self._exhausted.add(run)

    def was_exhausted(self, run: str) -> bool:
        """Whether workers of this run have run out of memory."""
        return run in self._exhausted
