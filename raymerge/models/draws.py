"""Random numbers that are a pure function of (stream, counters), so that no batching or sharding can change them.

A generator gives the next number to whoever asks next; here row 7's third draw is the same number on a CPU or a GPU,
on one worker or on a hundred. The hash is the finaliser of splitmix64 (Steele, Lea and Flood, "Fast splittable
pseudorandom number generators", OOPSLA 2014), applied once for each counter, modulo 2^64 in int64 tensors.
"""

from enum import IntEnum

import torch
from torch import Tensor


class Stream(IntEnum):
    """What the numbers are for: two purposes never share a number."""

    ROW = 101
    WINDOW_SHIFT = 102
    ORDER = 103
    CLOZE_SHARE = 104
    CLOZE_COLUMNS = 105
    VIEW = 106
    VIEW_KIND = 107
    VIEW_START = 108
    VIEW_COLUMNS = 109
    SAME_TARGET = 110
    SAME_TARGET_PRIORITY = 111
    DROPOUT = 112


def _signed(value: int) -> int:
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


_GAMMA = _signed(0x9E3779B97F4A7C15)
_MULTIPLIERS = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)


def _xor_shift(z: Tensor, bits: int) -> Tensor:
    return z ^ ((z >> bits) & ((1 << (64 - bits)) - 1))  # the mask makes int64's arithmetic shift a logical one


def _mix(z: Tensor) -> Tensor:
    z = _xor_shift(z + _GAMMA, 30) * _MULTIPLIERS[0]
    return _xor_shift(_xor_shift(z, 27) * _MULTIPLIERS[1], 31)


def hashed(stream: Stream, *counters: Tensor | int) -> Tensor:
    """One 64-bit word for each combination of the broadcast int64 counters: int64."""
    state = torch.tensor(int(stream))
    for counter in counters:
        word = torch.tensor(counter) if isinstance(counter, int) else counter
        state = _mix(state.to(word.device) ^ word)
    return state


def uniform(stream: Stream, *counters: Tensor | int) -> Tensor:
    """Numbers in [0, 1), one for each combination of the broadcast int64 counters: float64.

    >>> uniform(Stream.VIEW, torch.tensor([[7], [8]]), torch.arange(3)).shape
    torch.Size([2, 3])
    """
    return ((hashed(stream, *counters) >> 11) & ((1 << 53) - 1)).to(torch.float64) * 2.0**-53
