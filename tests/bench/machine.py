"""What the machine can do, beside which speeds are stated."""

import time

import torch


def product_rate(size: int = 1024, seconds: float = 1.0) -> float:
    """GFLOP/s of float32 matrix products."""
    a, out = torch.randn(size, size), torch.empty(size, size)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        torch.mm(a, a, out=out)
        count += 1
    return 2 * size**3 * count / (time.perf_counter() - start) / 1e9
