"""The time limit of a command."""

import time

from raymerge.errors import ResourceError


class Deadline:
    """A moment, by the monotonic clock, after which work is given up."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    @property
    def left_s(self) -> float:
        """Seconds left; 0 once it has passed."""
        return max(0.0, self._end - time.monotonic())

    def check(self, doing: str) -> None:
        """Raise ResourceError once it has passed."""
        if time.monotonic() > self._end:
            raise ResourceError(
                f"{doing} was not done within {self.seconds / 3600:g} hours; run the same command again to resume, "
                "or raise cluster.deadline_hours"
            )
