"""What the machine can do, for comparison with measured speeds, and what a separate process uses of it."""

import json
import os
import resource
import subprocess
import sys
import time
from typing import Any

import torch


def product_rate(size: int = 1024, seconds: float = 1.0) -> float:
    """GFLOP/s of float32 matrix products."""
    a, out = torch.randn(size, size), torch.empty(size, size)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        torch.mm(a, a, out=out)
        count += 1
    return 2 * size**3 * count / (time.perf_counter() - start) / 1e9


def peak_mib() -> float:
    """Peak resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def in_fresh_process(script: str, case: Any, **environment: str) -> dict[str, float]:
    """What a script prints as JSON for `--case`, run in a process with its own peak memory."""
    command = [sys.executable, script, "--case", json.dumps(case)]
    environment |= os.environ
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout)
