from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raymerge.errors import ConfigError, MergeError
from raymerge.merging.methods import MergeConfig, merge
from raymerge.merging.step import step_from

NUMBERS = st.lists(st.floats(-10, 10), min_size=4, max_size=4)
KNOWLEDGE = st.lists(st.floats(1e-3, 1e3), min_size=4, max_size=4)


def double(values: list[float]) -> dict[str, torch.Tensor]:
    return {"w": torch.tensor(values, dtype=torch.float64)}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(NUMBERS, KNOWLEDGE), min_size=1, max_size=4), NUMBERS)
def test_a_step_counts_the_start_as_one_more_member_with_the_mean_diagonal(
    drawn: list[tuple[list[float], list[float]]], start: list[float]
) -> None:
    models = [double(values) for values, _ in drawn]
    diagonals = [double(values) for _, values in drawn]
    count = len(drawn)
    mean = {"w": torch.stack([diagonal["w"] for diagonal in diagonals]).mean(0)}
    expected = merge([*models, double(start)], [*diagonals, mean], epsilon=0.0)
    found = step_from(double(start), merge(models, diagonals, epsilon=0.0), count / (count + 1))
    assert found["w"].tolist() == pytest.approx(expected["w"].tolist(), rel=1e-9, abs=1e-9)


def test_a_whole_step_is_the_merge_itself_and_nothing_given_is_changed() -> None:
    start = {"w": torch.tensor([1.0, 2.0], dtype=torch.float64), "buffer": torch.tensor([3])}
    merged = {"w": torch.tensor([0.1, -7.0], dtype=torch.float64), "buffer": torch.tensor([3])}
    whole, half = step_from(start, merged, 1.0), step_from(start, merged, 0.5)
    assert torch.equal(whole["w"], merged["w"])
    assert half["w"].tolist() == [0.55, -2.5]
    assert torch.equal(half["buffer"], merged["buffer"])
    assert start["w"].tolist() == [1.0, 2.0]


def test_a_start_of_another_shape_is_refused() -> None:
    with pytest.raises(MergeError, match=r"models 1 and 2 differ in the shape of 'w': \(2,\) and \(3,\)"):
        step_from({"w": torch.zeros(2)}, {"w": torch.zeros(3)}, 0.5)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (0.0, "step must be above 0 and at most 1, got 0.0"),
        (1.5, "step must be above 0 and at most 1, got 1.5"),
        ("far", "merge.step must be a number or search, got 'far'"),
    ],
)
def test_steps_out_of_range_are_refused(step: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MergeConfig(step=step)
