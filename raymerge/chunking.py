"""How much memory a worker's chunks may take: an eighth of the usual for work that ran out of it before."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

SMALLER = 8
SIGNS = ("can't allocate memory", "CUDA error: out of memory", "ALLOC_FAILED")
"""What torch says where it has no class of its own: on a CPU, beside others on a GPU, and in CUDA's libraries."""
_divisor = 1


def budget(usual_bytes: int) -> int:
    """Bytes for the chunks of the work at hand, where `usual_bytes` are usual."""
    return max(1, usual_bytes // _divisor)


def pieces() -> int:
    """How many chunks the work at hand makes of what is usually one."""
    return _divisor


@contextmanager
def chunks(smaller: bool) -> Iterator[None]:
    """Budgets inside the block are the usual ones, or smaller. A process does one piece of work at a time."""
    global _divisor
    before, _divisor = _divisor, SMALLER if smaller else 1
    try:
        yield
    finally:
        _divisor = before


def is_exhausted(error: BaseException) -> bool:
    """Whether an error says that there was no memory left, on the machine or its GPU."""
    return isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) or any(sign in str(error) for sign in SIGNS)
