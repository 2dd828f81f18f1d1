"""How a measured process takes turns with others: it waits for its turn, works, reports, and waits again.

Uses only the standard library, because it is imported in the peers' own environments.
"""

import json
import os
import sys
import time


class Turns:
    """Counts and times what is done in a turn.

    A turn begins with a line on standard input, its minimum length in seconds, and ends after the first unit of work
    that finishes later than that, with one JSON line: the counts and the seconds. The very first unit is a turn of its
    own, which shows that everything is set up. Anything else that is printed goes to standard error.
    """

    def __init__(self) -> None:
        self.report = os.dup(1)  # a number: trainers can copy it, but not a file
        os.dup2(2, 1)
        self.counted: dict[str, float] = {}
        self.began, self.length = time.perf_counter(), 0.0

    def done(self, **counts: float) -> None:
        """Count a unit of work; if the turn is over, wait for the next one, or end the process if there is none."""
        for name, count in counts.items():
            self.counted[name] = self.counted.get(name, 0) + count
        seconds = time.perf_counter() - self.began
        if seconds < self.length:
            return
        os.write(self.report, json.dumps({**self.counted, "seconds": seconds}).encode() + b"\n")
        line = sys.stdin.readline()
        if not line:
            os._exit(0)  # some packages' trainers catch SystemExit
        self.counted, self.length = {}, float(line)
        self.began = time.perf_counter()
