"""How much memory a worker's chunks may take: an eighth of the usual for work that ran out of memory before."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

SMALLER = 8
SIGNS = ("can't allocate memory", "CUDA error: out of memory", "ALLOC_FAILED")
"""Messages of out-of-memory errors that have no class: on a CPU, on a shared GPU, and in CUDA's libraries."""
_divisor = 1


def budget(usual_bytes: int) -> int:
    """Bytes for the chunks of the current work, out of `usual_bytes`."""
    return max(1, usual_bytes // _divisor)


def divisor() -> int:
    """How many chunks the current work makes of what is usually one."""
    return _divisor


@contextmanager
def chunks(smaller: bool) -> Iterator[None]:
    """Make the budgets inside the block smaller, or the usual ones. A process does one piece of work at a time."""
    global _divisor
    before, _divisor = _divisor, SMALLER if smaller else 1
    try:
        yield
    finally:
        _divisor = before


def is_exhausted(error: BaseException) -> bool:
    """Whether an error says that the machine or its GPU ran out of memory."""
    return isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) or any(sign in str(error) for sign in SIGNS)
