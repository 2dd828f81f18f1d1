"""SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) on Python's integers, as its reference code has it."""

MASK = 2**64 - 1
GAMMA = 0x9E3779B97F4A7C15


def splitmix64(state: int) -> int:
    """The next output from an unsigned 64-bit state."""
    return finaliser((state + GAMMA) & MASK)


def finaliser(z: int) -> int:
    """The mixing that follows the increment."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)
