"""Straight lines between members in parameter space: which are drawn, and which models are on them.

Frankle et al., "Linear mode connectivity and the lottery ticket hypothesis", ICML 2020.
"""

from collections.abc import Sequence
from itertools import combinations, pairwise

POINTS = (0.0, 0.25, 0.5, 0.75, 1.0)
MEMBERS_IN_ALL_PAIRS = 4  # with more, each is joined only to the next, so that cost grows linearly


def pairs(members: Sequence[str]) -> list[tuple[str, str]]:
    """The ends of the lines: all pairs of a few members, otherwise each member with the next.

    >>> pairs(["a", "b", "c"])
    [('a', 'b'), ('a', 'c'), ('b', 'c')]
    >>> pairs("abcde")
    [('a', 'b'), ('b', 'c'), ('c', 'd'), ('d', 'e')]
    """
    return list(combinations(members, 2) if len(members) <= MEMBERS_IN_ALL_PAIRS else pairwise(members))


def coefficients(members: Sequence[str], first: str, second: str, t: float) -> tuple[float, ...]:
    """The coefficients of (1 − t) θ_first + t θ_second, one per member.

    >>> coefficients(["a", "b", "c"], "a", "c", 0.25)
    (0.75, 0.0, 0.25)
    """
    return tuple((1 - t) * (name == first) + t * (name == second) for name in members)


def models_on_lines(members: int) -> int:
    """How many different models are on the lines, including members; 0 for a single member."""
    lines = len(pairs([str(number) for number in range(members)]))
    return members + lines * (len(POINTS) - 2) if lines else 0
