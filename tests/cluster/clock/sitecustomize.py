"""Python reads this at its start: sets a process' clock off by CLOCK_OFF_S, as that of a node which nobody sets."""

import os
import time

OFF_NS = int(float(os.environ.get("CLOCK_OFF_S", "0")) * 1e9)
if OFF_NS:
    true_ns = time.time_ns
    time.time_ns = lambda: true_ns() + OFF_NS
    time.time = lambda: (true_ns() + OFF_NS) / 1e9  # noqa: TID251
