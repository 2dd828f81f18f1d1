"""A choice made on some users is judged on others: against a plain loop, and on trials of known value."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from raymerge.merging.held_out import DIVISIONS, FOLDS, FoldedScore, folded, held_out_gain, standard_error
from raymerge.models.draws import hashed
from raymerge.splitmix import Stream


def scores_of(gains: Tensor) -> list[FoldedScore]:
    """A score for each row of gains [T, U]."""
    keys = torch.arange(gains.shape[1]) * 7919
    return [folded(row, keys) for row in gains]


def naive_gain(trials: list[FoldedScore]) -> float:
    """The definition of `held_out_gain` in loops."""
    total = 0.0
    for division in range(DIVISIONS):
        order = sorted(range(FOLDS), key=lambda fold: int(hashed(Stream.FOLD, division, fold)))
        choosing, judging = order[: FOLDS // 2], order[FOLDS // 2 :]

        def mean(trial: FoldedScore, folds: list[int]) -> float:
            users = sum(int(trial.counts[fold]) for fold in folds)
            return sum(float(trial.sums[fold]) for fold in folds) / max(1, users)

        best = max(trials, key=lambda trial: mean(trial, choosing))
        total += mean(best, judging) - mean(trials[0], judging)
    return total / DIVISIONS


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 6), st.integers(1, 300), st.integers(0, 2**31))
def test_the_gain_equals_its_definition(trials: int, users: int, seed: int) -> None:
    gains = torch.rand(trials, users, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    scores = scores_of(gains)
    assert held_out_gain(scores) == pytest.approx(naive_gain(scores), abs=1e-12)


def test_folds_add_up_to_the_mean_for_any_partitions() -> None:
    gains, keys = torch.rand(1000), torch.arange(1000)
    parts = folded(gains[:300], keys[:300]) + folded(gains[300:], keys[300:])
    assert torch.equal(parts.counts, folded(gains, keys).counts)
    assert parts.mean == pytest.approx(float(gains.double().mean()))
    assert int(parts.counts.min()) > 10


def test_a_gain_for_everybody_holds_and_luck_does_not() -> None:
    drawn = torch.Generator().manual_seed(0)
    plain = torch.rand(1, 2000, generator=drawn)
    assert held_out_gain(scores_of(torch.cat([plain, plain + 0.01]))) == pytest.approx(0.01, abs=1e-6)
    lucky = plain - 0.001 + 0.1 * torch.randn(40, 2000, generator=drawn)  # a little worse, and noise
    trials = scores_of(torch.cat([plain, lucky]))
    assert max(trial.mean for trial in trials) > trials[0].mean
    assert held_out_gain(trials) < 0


def test_the_standard_error_is_the_spread_of_the_difference_over_samples_of_users() -> None:
    drawn, differences, errors = torch.Generator().manual_seed(0), [], []
    for _ in range(400):
        plain = torch.rand(500, generator=drawn)
        first, best = scores_of(torch.stack([plain, plain + 0.2 + 0.3 * torch.randn(500, generator=drawn)]))
        differences.append(best.mean - first.mean)
        errors.append(standard_error(best, first))
    spread = torch.tensor(differences).std().item()
    assert sum(errors) / len(errors) == pytest.approx(spread, rel=0.1)
    assert spread == pytest.approx(0.3 / 500**0.5, rel=0.1)


def test_a_difference_that_is_the_same_for_all_users_has_no_error() -> None:
    plain = torch.rand(1, 2000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    first, best = scores_of(torch.cat([plain, plain + 0.25]))
    assert standard_error(best, first) == pytest.approx(0, abs=1e-12)
