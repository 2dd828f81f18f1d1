"""The hash behind all draws and keys: splitmix64 on int64 tensors, modulo 2^64.

A draw that is a hash of what it is for, and not the next number of a generator, is the same on one worker or on a
hundred. Each room's `draws.py` says what it hashes. Steele, Lea and Flood, "Fast splittable pseudorandom number
generators", OOPSLA 2014.
"""

from torch import Tensor


def signed(value: int) -> int:
    """The int64 that has the last 64 bits of an integer.

    >>> signed(2**64 - 1), signed(5)
    (-1, 5)
    """
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


GAMMA = signed(0x9E3779B97F4A7C15)
_MULTIPLIERS = signed(0xBF58476D1CE4E5B9), signed(0x94D049BB133111EB)


def shifted(z: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 words: torch's own copies the sign."""
    return (z >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def mix_(z: Tensor) -> Tensor:
    """The finaliser, in place: a bijection of 64-bit words whose output bits look independent."""
    z.bitwise_xor_(shifted(z, 30)).mul_(_MULTIPLIERS[0])
    z.bitwise_xor_(shifted(z, 27)).mul_(_MULTIPLIERS[1])
    return z.bitwise_xor_(shifted(z, 31))
