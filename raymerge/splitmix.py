"""The hash behind all draws and keys: splitmix64 on int64 tensors, modulo 2^64.

A draw that is a hash of its purpose, rather than the next number of a generator, is the same on one worker or on a
hundred. Each package's `draws.py` says what it hashes. Steele, Lea and Flood, "Fast splittable pseudorandom number
generators", OOPSLA 2014.
"""

from enum import IntEnum

from torch import Tensor


class Stream(IntEnum):
    """What numbers are drawn for: with equal seeds and counters, two purposes have different numbers."""

    RANKED_NEGATIVES = 1
    BOOTSTRAP = 2
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
    SOFTMAX_NEGATIVES = 113
    FOLD = 114


def signed(value: int) -> int:
    """The int64 with the low 64 bits of an integer.

    >>> signed(2**64 - 1), signed(5)
    (-1, 5)
    """
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


GAMMA = signed(0x9E3779B97F4A7C15)
_MULTIPLIERS = signed(0xBF58476D1CE4E5B9), signed(0x94D049BB133111EB)


def shifted(z: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 words; torch's own shift copies the sign bit."""
    return (z >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def mix_(z: Tensor) -> Tensor:
    """The finaliser, in place: a bijection of 64-bit words whose output bits look independent."""
    z.bitwise_xor_(shifted(z, 30)).mul_(_MULTIPLIERS[0])
    z.bitwise_xor_(shifted(z, 27)).mul_(_MULTIPLIERS[1])
    return z.bitwise_xor_(shifted(z, 31))


def unit(words: Tensor) -> Tensor:
    """The upper 53 bits of int64 words as numbers in [0, 1): float64."""
    return shifted(words, 11).double() * 2.0**-53
