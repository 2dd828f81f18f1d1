"""Naive versions of raymerge.evaluation, to be checked against the formulas by eye. Plain Python and numpy."""

import math

import numpy as np
from oracles_splitmix import GAMMA, MASK, finaliser, splitmix64


def rank(scores: list[float], target: int, seen: set[int]) -> int:
    """1 + the other, unseen items that score at least as high; scores[j] belongs to item j + 1."""
    others = (item for item in range(1, len(scores) + 1) if item != target and item not in seen)
    return 1 + sum(scores[item - 1] >= scores[target - 1] for item in others)


def top_k(scores: list[float], k: int, seen: set[int]) -> list[int]:
    """Unseen items by falling score, lower index first, 0 where there are no more."""
    allowed = [item for item in range(1, len(scores) + 1) if item not in seen]
    best = sorted(allowed, key=lambda item: (-scores[item - 1], item))[:k]
    return best + [0] * (k - len(best))


def uniform(seed: int, stream: int, *counters: int) -> float:
    """Middle of one of 2^52 cells of (0, 1), chosen by hashing the counters one after the other."""
    state = finaliser((seed ^ (GAMMA * stream)) & MASK)
    for counter in counters:
        state = splitmix64(state ^ (counter & MASK))
    return ((state >> 12) + 0.5) / 2**52


def draw_negatives(key: int, excluded: set[int], counts: list[int], n: int, seed: int) -> list[int]:
    """Draw items one by one in proportion to counts, skip those excluded or drawn; after 4n draws race the rest."""
    cumulated = list(np.cumsum(counts))
    drawn: list[int] = []
    for i in range(4 * n):
        position = int(uniform(seed, 1, key, i) * cumulated[-1])
        item = 1 + next(j for j, bound in enumerate(cumulated) if position < bound)
        if item not in excluded and item not in drawn and len(drawn) < n:
            drawn.append(item)
    left = [j for j, count in enumerate(counts, start=1) if count and j not in excluded and j not in drawn]
    left.sort(key=lambda item: -math.log(uniform(seed, 1, key, 4 * n + item)) / counts[item - 1])
    drawn += left[: n - len(drawn)]
    return drawn + [0] * (n - len(drawn))


def bootstrap_differences(a: np.ndarray, b: np.ndarray, replicates: int, seed: int) -> np.ndarray:
    """The classical bootstrap: draw as many users as there are, with replacement, and take the mean difference."""
    generator = np.random.default_rng(seed)
    difference = a - b
    return np.array([difference[generator.integers(len(a), size=len(a))].mean() for _ in range(replicates)])


def holm(p_values: list[float]) -> list[float]:
    """Adjusted p value of each hypothesis: the largest step-down product up to its place in the order."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    place = {hypothesis: i for i, hypothesis in enumerate(order)}
    m = len(p_values)
    return [
        min(1.0, max((m - i) * p_values[order[i]] for i in range(place[hypothesis] + 1))) for hypothesis in range(m)
    ]
