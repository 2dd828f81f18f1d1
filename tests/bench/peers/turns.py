"""How a process that is measured takes turns with others: it waits until told to go, works, reports, and waits again.

Standard library alone, because it is imported in the peers' own environments.
"""

import json
import os
import sys
import time


class Turns:
    """Counts what is done in a turn, and times it.

    A turn begins with a line on standard input, the least seconds that it shall last, and ends after the first unit of
    work that is done later than that, with one JSON line: what was counted, and the seconds. The first unit of all is
    a turn of its own, which says that all is set up. Whatever else is printed goes to standard error.
    """

    def __init__(self) -> None:
        self.report = os.dup(1)  # a number, which trainers can copy, where a file is not
        os.dup2(2, 1)
        self.counted: dict[str, float] = {}
        self.began, self.length = time.perf_counter(), 0.0

    def done(self, **counts: float) -> None:
        """A unit of work is done: waits for the next turn if this one is over; ends the process if there is none."""
        for name, count in counts.items():
            self.counted[name] = self.counted.get(name, 0) + count
        seconds = time.perf_counter() - self.began
        if seconds < self.length:
            return
        os.write(self.report, json.dumps({**self.counted, "seconds": seconds}).encode() + b"\n")
        line = sys.stdin.readline()
        if not line:
            os._exit(0)  # SystemExit is caught by the trainers of some
        self.counted, self.length = {}, float(line)
        self.began = time.perf_counter()
