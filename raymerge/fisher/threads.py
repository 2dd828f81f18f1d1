"""Batches of users in parallel on the cores of one machine, with their results in order.

One thread per core, each with single-threaded kernels: splitting every small kernel among the cores instead makes the
cores wait for each other at each one, and on a machine that runs other jobs too they mostly wait.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import lru_cache
from typing import TypeVar

import torch

KEPT_BYTES = 31 << 20
"""glibc keeps freed blocks up to the largest it has seen freed (at most 32 MiB) instead of mapping them again.

Mapping again costs a page fault every 4 KiB, for which the threads of a process wait for each other.
"""

Piece = TypeVar("Piece")
Result = TypeVar("Result")


def in_order(work: Callable[[Piece], Result], pieces: Iterable[Piece]) -> Iterator[Result]:
    """Results of `work` on each piece, in the order of the pieces, on as many threads as torch has now.

    At most one result per thread waits to be taken. Meanwhile torch's kernels have one thread, in the whole process;
    the setting is restored at the end.
    """
    threads = torch.get_num_threads()
    waiting: deque[Future[Result]] = deque()
    try:
        torch.set_num_threads(1)
        torch.empty(KEPT_BYTES, dtype=torch.uint8)
        for piece in pieces:
            waiting.append(_pool(threads).submit(work, piece))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        wait([future for future in waiting if not future.cancel()])
        torch.set_num_threads(threads)


@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    """The threads, which are kept: what a thread frees stays in its glibc arena, and new threads may get new arenas.

    In a Ray worker, whose own threads come and go too, each shard would then leave about 10 MiB behind.
    """
    return ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
