"""Random numbers that belong to a user, not to a moment: the same whatever the chunk, the shard or the machine.

A number is a hash of (seed, the user's key, a counter), so no generator has a state to keep in step.
"""

import torch
from torch import Tensor


def _signed(value: int) -> int:
    """The int64 with the same bits as this uint64."""
    return value - (1 << 64) if value >= 1 << 63 else value


_STEP = _signed(0x9E3779B97F4A7C15)
_FIRST, _SECOND = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser (Steele, Lea, Flood 2014): int64 → int64, every bit depends on every bit."""
    x = (x ^ _shifted(x, 30)) * _FIRST
    x = (x ^ _shifted(x, 27)) * _SECOND
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Logical right shift (that of int64 copies the sign)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def streams(seed: int, keys: Tensor) -> Tensor:
    """One stream of numbers a key: int64[B] → int64[B]."""
    start = _mix(torch.tensor(_signed(seed % (1 << 64)), device=keys.device) + _STEP)
    return _mix(keys ^ start)


def integers(stream: Tensor, counters: Tensor) -> Tensor:
    """64 random bits for each stream and counter: int64[B], int64[n] or [B, n] → int64[B, n]."""
    return _mix(stream[:, None] + (counters + 1) * _STEP)


def uniforms(stream: Tensor, count: int) -> Tensor:
    """`count` numbers uniform on [0, 1) for each stream: int64[B] → float64[B, count]."""
    counters = torch.arange(count, device=stream.device)
    return _shifted(integers(stream, counters), 11).double() * 2.0**-53
