from typing import Any

import numpy as np
import oracles_evaluation as oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from raymerge.errors import ConfigError, InputError, ScoreError
from raymerge.evaluation.draws import poisson
from raymerge.evaluation.significance import Bootstrap, Difference, holm
from raymerge.splitmix import Stream


def metrics_of(users: int, gain: float = 0.02, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two models' metrics on the same users: mostly 0, like NDCG@10, and b a little worse than a."""
    rng = np.random.default_rng(seed)
    b = np.where(rng.random(users) < 0.3, rng.random(users), 0)
    a = np.clip(b + gain + rng.normal(0, 0.1, users), 0, 1)
    return torch.from_numpy(a), torch.from_numpy(b)


def compared(a: Tensor, b: Tensor, keys: Tensor | None = None, replicates: int = 1000, **options: Any) -> Difference:
    bootstrap = Bootstrap(["a", "b"], replicates=replicates, **options)
    bootstrap.update(torch.arange(len(a)) if keys is None else keys, {"a": a, "b": b})
    return bootstrap.compare("a", "b")


def test_means_and_replicates_are_those_of_explicit_weights() -> None:
    a, b = metrics_of(37)
    bootstrap = Bootstrap(["a", "b"], replicates=100, seed=5)
    bootstrap.update(torch.arange(37), {"a": a, "b": b})
    weights = poisson(5, Stream.BOOTSTRAP, torch.arange(37)[:, None], torch.arange(100))
    differences = [float((w * (a - b)).sum() / w.sum()) for w in weights.T]
    found = bootstrap.compare("a", "b", confidence=0.9)
    assert (bootstrap.interval("a").mean, bootstrap.users) == (pytest.approx(a.mean()), 37)
    assert found.difference == pytest.approx(float((a - b).mean()))
    assert found.relative == pytest.approx(float((a - b).mean() / b.mean()))
    assert [found.low, found.high] == pytest.approx(np.quantile(differences, [0.05, 0.95]).tolist(), abs=1e-12)
    opposite = min(sum(d <= 0 for d in differences), sum(d >= 0 for d in differences))
    assert found.p_value == pytest.approx(min(1, 2 * (1 + opposite) / 101))


def test_interval_and_p_value_agree_with_the_classical_bootstrap() -> None:
    a, b = metrics_of(800, gain=0.001)
    found = compared(a, b, replicates=4000)
    classical = oracles.bootstrap_differences(a.numpy(), b.numpy(), 4000, seed=1)
    width = np.quantile(classical, 0.975) - np.quantile(classical, 0.025)
    assert found.low == pytest.approx(np.quantile(classical, 0.025), abs=0.05 * width)
    assert found.high == pytest.approx(np.quantile(classical, 0.975), abs=0.05 * width)
    assert found.p_value == pytest.approx(2 * min((classical <= 0).mean(), (classical >= 0).mean()), abs=0.04)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    trials, covered, rejected = 300, 0, 0
    for trial in range(trials):
        rng = np.random.default_rng(trial)
        a, b = (torch.from_numpy(np.where(rng.random(300) < 0.3, rng.random(300), 0)) for _ in "ab")
        found = compared(a, b, replicates=300, seed=trial)
        covered += found.low <= 0 <= found.high
        rejected += found.p_value < 0.05
    assert 0.91 <= covered / trials <= 0.985
    assert 0.015 <= rejected / trials <= 0.09


def test_partitions_and_their_order_change_only_the_last_bits() -> None:
    a, b = metrics_of(500)
    keys = torch.arange(500) * 104729 - 7
    whole = Bootstrap(["a", "b"], replicates=200, seed=1)
    whole.update(keys, {"a": a, "b": b})
    total = Bootstrap(["a", "b"], replicates=200, seed=1)
    for rows in torch.randperm(500, generator=torch.Generator().manual_seed(0)).split(73):
        total.update(keys[rows], {"a": a[rows], "b": b[rows]})
    assert torch.allclose(total.sums, whole.sums, rtol=1e-13, atol=0)
    assert total.compare("a", "b").p_value == whole.compare("a", "b").p_value
    assert total.compare("a", "b").low == pytest.approx(whole.compare("a", "b").low, rel=1e-12)


def test_equal_models_are_not_different_and_a_clear_gain_is() -> None:
    a, b = metrics_of(400)
    same = compared(a, a)
    assert (same.difference, same.low, same.high, same.p_value) == (0, 0, 0, 1)
    better = compared(a, b, replicates=999)
    assert better.low > 0
    assert better.p_value == 0.002, "never below 2 / (replicates + 1)"
    worse = compared(b, a, replicates=999)
    assert (worse.low, worse.high) == pytest.approx((-better.high, -better.low))
    assert worse.p_value == better.p_value
    assert compared(a, torch.zeros(400)).relative is None


@pytest.mark.parametrize("count", [2, 5, 13, 50])
def test_equal_models_tie_in_any_columns(count: int) -> None:
    a, _ = metrics_of(3000)
    names = [str(i) for i in range(count)]
    bootstrap = Bootstrap(names, replicates=300)
    bootstrap.update(torch.arange(3000), dict.fromkeys(names, a))
    assert {bootstrap.compare("0", name).p_value for name in names} == {1.0}


def test_interval_of_a_mean_agrees_with_the_normal_approximation() -> None:
    a, b = metrics_of(3000)
    bootstrap = Bootstrap(["a", "b"], replicates=3000)
    bootstrap.update(torch.arange(3000), {"a": a, "b": b})
    interval = bootstrap.interval("a")
    half_width = 1.96 * float(a.std()) / 3000**0.5
    assert interval.mean == pytest.approx(float(a.mean()))
    assert interval.low == pytest.approx(interval.mean - half_width, abs=0.1 * half_width)
    assert interval.high == pytest.approx(interval.mean + half_width, abs=0.1 * half_width)


def test_very_few_users_give_finite_intervals() -> None:
    found = compared(torch.tensor([1.0]), torch.tensor([0.5]))
    assert (found.low, found.high) == (0.5, 0.5)


@pytest.mark.parametrize(("users", "p"), [(1, 1.0), (4, 0.125)])
def test_a_handful_of_users_proves_no_more_than_a_sign_test_of_them(users: int, p: float) -> None:
    assert compared(torch.full((users,), 0.3), torch.full((users,), 0.1)).p_value == p


def test_incomparable_values_are_refused() -> None:
    bootstrap = Bootstrap(["a"], replicates=100)
    with pytest.raises(InputError, match="no users"):
        bootstrap.interval("a")
    with pytest.raises(InputError, match="'a' needs one value per user, got 2 for 3"):
        bootstrap.update(torch.arange(3), {"a": torch.zeros(2)})
    with pytest.raises(ScoreError, match="must be finite"):
        bootstrap.update(torch.arange(2), {"a": torch.tensor([0.0, torch.nan])})
    with pytest.raises(ConfigError, match="at least 100 replicates .* got 5"):
        Bootstrap(["a"], replicates=5)


# Holm's procedure by hand: 4·.01, 3·.013 = .039 < .04, 2·.03, 1·.04 < .06.
HAND_COMPUTED = {"b": (0.013, 0.04), "a": (0.01, 0.04), "d": (0.04, 0.06), "c": (0.03, 0.06)}


def test_holm_equals_hand_computed_values_in_the_given_order() -> None:
    found = holm({name: p for name, (p, _) in HAND_COMPUTED.items()})
    assert list(found) == list(HAND_COMPUTED)
    assert found == pytest.approx({name: adjusted for name, (_, adjusted) in HAND_COMPUTED.items()})
    assert holm({}) == {}
    assert holm({"a": 0.7, "b": 0.9}) == {"a": 1, "b": 1}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_equals_its_naive_twin(p_values: list[float]) -> None:
    found = holm({str(i): p for i, p in enumerate(p_values)})
    assert list(found.values()) == pytest.approx(oracles.holm(p_values))


def test_holm_refuses_values_that_are_no_probability() -> None:
    with pytest.raises(InputError, match="got 1.5 for 'a'"):
        holm({"a": 1.5})
    with pytest.raises(InputError, match="got nan"):
        holm({"a": float("nan")})
