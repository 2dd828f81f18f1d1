"""Random numbers that belong to a user, not to a moment: the same in any chunk, shard or machine.

A number is a hash of (seed, the user's key, a counter), so there is no generator state to keep in step.
"""

import torch
from torch import Tensor

from raymerge.splitmix import GAMMA, mix_, signed, unit


def streams(seed: int, keys: Tensor) -> Tensor:
    """One stream of numbers per key: int64[B] → int64[B]."""
    start = mix_(torch.full((), signed(seed), dtype=torch.int64, device=keys.device) + GAMMA)
    return mix_(keys ^ start)


def integers(stream: Tensor, counters: Tensor) -> Tensor:
    """64 random bits for each stream and counter: int64[B], int64[n] or [B, n] → int64[B, n]."""
    return mix_(stream[:, None] + (counters + 1) * GAMMA)


def uniforms(stream: Tensor, count: int) -> Tensor:
    """`count` numbers uniform on [0, 1) for each stream: int64[B] → float64[B, count]."""
    counters = torch.arange(count, device=stream.device)
    return unit(integers(stream, counters))
