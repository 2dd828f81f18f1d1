"""When the work is given up."""

import time

from raymerge.errors import ResourceError


class Deadline:
    """A moment after which the work is given up, in seconds of a monotonic clock."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    @property
    def left_s(self) -> float:
        """Seconds that are left, 0 once it has passed."""
        return max(0.0, self._end - time.monotonic())

    def check(self, doing: str) -> None:
        """ResourceError once the time is over."""
        if time.monotonic() > self._end:
            raise ResourceError(
                f"{doing} was not done within {self.seconds / 3600:g} hours; run the same command again to resume, "
                "or raise cluster.deadline_hours"
            )
