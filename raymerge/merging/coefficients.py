"""Choose how much each model counts, by a score on data that none of them should have been trained on.

The score of a point λ of the simplex is any function, such as the validation NDCG@10 of the merge by λ. It is piecewise
constant and expensive, so the search uses no gradients and few trials. It is deterministic.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations, pairwise, permutations
from math import comb, isfinite
from typing import Generic, TypeVar

from raymerge.errors import ConfigError, ScoreError

Point = tuple[float, ...]
S = TypeVar("S")
SMALLEST_MOVE = 1 / 64


@dataclass(frozen=True)
class SearchResult:
    """The best coefficients, their score, and every point tried, in order."""

    coefficients: Point
    score: float
    trials: tuple[tuple[Point, float], ...]


@dataclass(frozen=True)
class BestSetting(Generic[S]):
    """The best setting, and what the search found under it."""

    setting: S
    found: SearchResult


class _OutOfBudget(Exception):
    """Ends a search from within: its result is the trials made so far."""


class _Trials:
    """Scores of points: each computed once, no more than `budget` in all; remembers the best."""

    def __init__(self, score: Callable[[Point], float], budget: int, known: Mapping[Point, float]) -> None:
        self._score, self._budget = score, budget
        self._known = {_rounded(point): value for point, value in known.items()}
        self._computed = 0
        self.scores: dict[Point, float] = {}

    def __call__(self, point: Point) -> None:
        """Score a point if it is new; raises _OutOfBudget if that would exceed the budget."""
        point = _rounded(point)
        if point in self.scores:
            return
        if point not in self._known and self._computed == self._budget:
            raise _OutOfBudget
        value = self._known[point] if point in self._known else self._compute(point)
        if not isfinite(value):
            raise ScoreError(f"the score of coefficients {point} is {value}: it must be a finite number")
        self.scores[point] = value

    def _compute(self, point: Point) -> float:
        self._computed += 1
        return float(self._score(point))

    def best(self) -> Point:
        """The point of the highest score; of ties the one nearest to equal coefficients, then the one tried first."""
        return max(self.scores, key=lambda point: (self.scores[point], -_inequality(point)))


def search(
    score: Callable[[Point], float], members: int, *, budget: int, known: Mapping[Point, float] | None = None
) -> SearchResult:
    """Coefficients (each >= 0, sum 1) with the highest score that `budget` calls of `score` find.

    Equal coefficients come first, then each model with half of the mass or more, then a grid of the simplex as fine as
    half of the budget allows, including its corners (single models). From the best of these, mass moves between pairs
    of models, by steps that halve when no move helps. `known` scores, such as those of the single models, cost
    nothing. Ties go to the more equal coefficients. Raises ConfigError for fewer than 1 model or trial and ScoreError
    for a score that is not finite.
    """
    if members < 1 or budget < 1:
        raise ConfigError(f"a search needs at least 1 model and 1 trial, got {members} and {budget}")
    trials = _Trials(score, budget, known or {})
    divisions = _divisions(members, budget)
    try:
        for point in _starts(members, divisions):
            trials(point)
        _refine(trials, step=0.5 / max(2, divisions))
    except _OutOfBudget:
        pass
    best = trials.best()
    return SearchResult(best, trials.scores[best], tuple(trials.scores.items()))


def search_settings(
    score: Callable[[S, Point], float], settings: Sequence[S], members: int, *, budget: int
) -> BestSetting[S]:
    """Search the coefficients under each setting, with an equal share of the budget, and take the best of all.

    Ties go to the earlier setting. Single models are scored under the first setting only, since a merge of one model
    is that model under any. Raises ConfigError unless there is a trial for each setting.
    """
    if not 1 <= len(settings) <= budget:
        raise ConfigError(f"a search needs at least 1 trial per setting, got {budget} for {len(settings)} settings")
    searches: list[BestSetting[S]] = []
    known: dict[Point, float] = {}
    for setting in settings:
        found = search(partial(score, setting), members, budget=budget // len(settings), known=known)
        known |= {point: value for point, value in found.trials if max(point) == 1}
        searches.append(BestSetting(setting, found))
    return max(searches, key=lambda choice: choice.found.score)


def _rounded(point: Point) -> Point:
    """The point without the last bits, which depend on the steps that led to it."""
    return tuple(round(value, 9) + 0.0 for value in point)


def _inequality(point: Point) -> float:
    """Sum of squares, least for equal coefficients; rounded, so that mirrored points tie."""
    return round(sum(value * value for value in point), 9)


def _divisions(members: int, budget: int) -> int:
    """How many parts (at most 10) the grid divides the mass into, so that its points take at most half the budget."""
    fitting = (parts for parts in range(1, 11) if comb(parts + members - 1, members - 1) <= budget / 2)
    return max(fitting, default=0)


def _starts(members: int, divisions: int) -> Iterator[Point]:
    yield (1 / members,) * members
    for leading in range(members):
        yield tuple(0.5 / members + 0.5 * (model == leading) for model in range(members))
    yield from _grid(members, divisions)


def _grid(members: int, divisions: int) -> Iterator[Point]:
    """All points whose coefficients are multiples of 1 / divisions (stars and bars); none for 0 divisions."""
    for bars in combinations(range(divisions + members - 1), members - 1) if divisions else ():
        edges = (-1, *bars, divisions + members - 1)
        yield tuple((right - left - 1) / divisions for left, right in pairwise(edges))


def _refine(trials: _Trials, step: float) -> None:
    """Try all moves of `step` from the best point; if a better one is found, continue there, else halve the step."""
    while step >= SMALLEST_MOVE:
        start = trials.best()
        for giver, taker in permutations(range(len(start)), 2):
            moved = min(step, start[giver])
            if moved:
                trials(tuple(value + moved * ((i == taker) - (i == giver)) for i, value in enumerate(start)))
        if trials.best() == start:
            step /= 2
