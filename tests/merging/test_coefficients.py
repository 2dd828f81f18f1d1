from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raymerge.errors import ConfigError, ScoreError
from raymerge.merging.coefficients import search, search_settings

Point = tuple[float, ...]


def bowl(optimum: Point) -> Callable[[Point], float]:
    """A concave function of the coefficients with its maximum, 0, at `optimum`."""
    return lambda point: -sum((a - b) ** 2 for a, b in zip(point, optimum, strict=True))


@st.composite
def optima(draw: st.DrawFn) -> Point:
    parts = draw(st.lists(st.integers(0, 20), min_size=2, max_size=4).filter(any))
    return tuple(part / sum(parts) for part in parts)


@settings(max_examples=50, deadline=None)
@given(optima())
def test_the_maximum_of_a_concave_function_is_found(optimum: Point) -> None:
    found = search(bowl(optimum), len(optimum), budget=300)
    assert max(abs(a - b) for a, b in zip(found.coefficients, optimum, strict=True)) <= 1 / 32


@settings(max_examples=30, deadline=None)
@given(optima(), st.integers(1, 60))
def test_a_search_keeps_to_its_budget_scores_nothing_twice_and_is_deterministic(optimum: Point, budget: int) -> None:
    asked = []

    def score(point: Point) -> float:
        asked.append(point)
        return bowl(optimum)(point)

    found = search(score, len(optimum), budget=budget)
    assert len(asked) == len(set(asked)) == len(found.trials) <= budget
    assert all(min(point) >= 0 and sum(point) == pytest.approx(1) for point in asked)
    assert (found.coefficients, found.score) in found.trials
    assert found.score == max(value for _, value in found.trials)
    assert search(bowl(optimum), len(optimum), budget=budget) == found


def test_equal_coefficients_are_tried_first_and_win_ties() -> None:
    found = search(lambda point: 0.1, 3, budget=40)
    assert found.coefficients == found.trials[0][0] == pytest.approx((1 / 3,) * 3)


def test_among_tied_best_points_the_most_equal_one_wins() -> None:
    plateau = search(lambda point: float(point[0] >= 0.6), 2, budget=60)
    assert 0.6 <= plateau.coefficients[0] < 0.65, "the first of the plateau to be tried has 0.75"


def test_single_models_are_among_the_candidates_so_no_search_is_worse_than_the_best_one() -> None:
    for members in (2, 3, 5):
        points = {point for point, _ in search(lambda point: 0.0, members, budget=48).trials}
        assert {tuple(float(i == j) for i in range(members)) for j in range(members)} <= points


def test_a_single_model_needs_one_trial() -> None:
    assert search(lambda point: 0.3, 1, budget=48).trials == (((1.0,), 0.3),)


def test_known_scores_cost_nothing() -> None:
    asked = []
    known = {(1.0, 0.0): 5.0, (0.0, 1.0): 0.0}
    found = search(lambda point: asked.append(point) or 1.0, 2, budget=4, known=known)
    assert found.coefficients == (1.0, 0.0)
    assert len(asked) == 4
    assert not set(known) & set(asked)


def test_settings_share_the_budget_and_the_best_wins() -> None:
    calls = []

    def score(setting: str, point: Point) -> float:
        calls.append((setting, point))
        return bowl((0.5, 0.25, 0.25))(point) + {"none": 0.0, "model": 0.01, "tensor": 0.01}[setting]

    choice = search_settings(score, ["none", "model", "tensor"], 3, budget=60)
    assert choice.setting == "model", "of equal settings the earlier one"
    assert choice.found.coefficients == pytest.approx((0.5, 0.25, 0.25), abs=0.1)
    assert list(dict.fromkeys(setting for setting, _ in calls)) == ["none", "model", "tensor"]
    assert len(calls) <= 60
    single = [setting for setting, point in calls if max(point) == 1]
    assert single == ["none"] * 3, "a merge of one model is that model under any setting"


def test_scores_that_are_not_finite_and_empty_searches_are_refused() -> None:
    with pytest.raises(ScoreError, match="is nan"):
        search(lambda point: float("nan"), 2, budget=48)
    with pytest.raises(ConfigError, match="got 0 and 48"):
        search(lambda point: 0.0, 0, budget=48)
    with pytest.raises(ConfigError, match="got 1 for 2 settings"):
        search_settings(lambda setting, point: 0.0, [1, 2], 2, budget=1)
    with pytest.raises(ConfigError, match="got 5 for 0 settings"):
        search_settings(lambda setting, point: 0.0, [], 2, budget=5)
