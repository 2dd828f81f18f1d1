"""The study of the estimators: its comparisons against their formulas, its candidates against the registry."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raymerge.errors import ConfigError
from raymerge.fisher.study import (
    Agreement,
    Measured,
    Row,
    StudyConfig,
    backward_passes,
    candidates,
    enough,
    rows,
)
from raymerge.fisher.weights import ESTIMATORS, FisherConfig

LAYERS = {"blocks.0.attention.qkv.weight": (4, 3), "item_embedding.weight": (5, 2), "output_bias": (6,)}


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.1, 10))
def test_comparisons_follow_from_sums_that_add_up_over_parameters(seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    exact = torch.rand(30, generator=generator, dtype=torch.float64) + 0.01
    estimate = scale * exact * (1 + 0.5 * torch.rand(30, generator=generator, dtype=torch.float64))
    found = sum((Agreement.of(estimate[i : i + 10], exact[i : i + 10]) for i in (0, 10, 20)), Agreement())
    assert found.error == pytest.approx(float((estimate - exact).norm() / exact.norm()))
    assert found.cosine == pytest.approx(float(torch.nn.functional.cosine_similarity(estimate, exact, dim=0)))
    best = torch.linalg.lstsq(estimate[:, None], exact[:, None]).solution.item()
    assert found.scale == pytest.approx(best)
    expected = float((best * estimate - exact).norm() / exact.norm())
    assert found.scaled(best).error == pytest.approx(expected)
    assert found.scaled(best).error == pytest.approx(math.sqrt(1 - found.cosine**2))


def measured(config: FisherConfig, factor: float, seconds: float = 0.2) -> Measured:
    """A diagonal that is `factor` times the exact one in the attention, twice that elsewhere."""
    agreement = {}
    for name, shape in LAYERS.items():
        exact = torch.ones(shape)
        agreement[name] = Agreement.of(exact * (factor if "attention" in name else 2 * factor), exact)
    return Measured(config, users=10, seconds_per_user=seconds, agreement=agreement)


def test_row_has_mean_and_spread_over_seeds_overall_and_by_layer() -> None:
    configs = [FisherConfig("topk", 5), FisherConfig("model", 2, seed=0), FisherConfig("model", 2, seed=1)]
    single, random = rows([measured(config, 1 + place) for place, config in enumerate(configs)], dim=3)
    assert (single["seeds"], random["seeds"]) == (1, 2)
    assert single["overall"]["error"] == pytest.approx({"mean": math.sqrt(16 / 28), "spread": 0.0})
    assert random["layers"]["block 1 attention"]["error"] == pytest.approx({"mean": 1.5, "spread": math.sqrt(0.5)})
    best = (12 + 32) / (12 + 64)  # c = x·e / x·x of the whole, for factor 1
    assert single["overall"]["scale"]["mean"] == pytest.approx(best)
    assert single["layers"]["item embedding"]["scaled_error"]["mean"] == pytest.approx(abs(2 * best - 1))
    assert random["seconds_per_user"] == pytest.approx(0.2)
    assert (single["passes"], random["passes"]) == (3, 2)
    assert (single["unbiased"], random["unbiased"]) == (False, True)


def test_a_layer_without_influence_is_left_out() -> None:
    one = measured(FisherConfig("topk", 5), 1.0)
    nothing = {"mask_embedding.weight": Agreement.of(torch.zeros(3), torch.zeros(3))}
    [row] = rows([Measured(one.config, 10, 0.2, {**one.agreement, **nothing})], dim=3)
    assert list(row["layers"]) == ["block 1 attention", "item embedding", "output bias"]


def test_candidates_are_all_estimators_within_the_models_limits() -> None:
    like = FisherConfig(temperature=2.0, precision="bf16")
    found = list(candidates(StudyConfig(samples=(5, 1, 100), seeds=2), like, items=50, dim=16))
    assert {config.estimator for config in found} == set(ESTIMATORS)
    assert {(config.temperature, config.precision) for config in found} == {(2.0, "bf16")}
    assert len(set(found)) == len(found)
    numbers = {name: [c.samples for c in found if c.estimator == name and c.seed == 0] for name in ESTIMATORS}
    assert numbers["rank"] == [1, 5]
    assert numbers["random"] == [1, 5]
    assert numbers["model"] == [1, 5, 100]
    assert numbers["exact"] == [None]
    for config in found:
        config.check_model(items=50, dim=16)


def test_only_estimators_that_draw_have_several_seeds() -> None:
    found = candidates(StudyConfig(samples=(3,), seeds=2), FisherConfig(), items=50, dim=16)
    assert {config.estimator for config in found if config.seed == 1} == {
        name for name in ESTIMATORS if ESTIMATORS[name].random
    }


def test_batch_wise_forms_are_added_on_demand_and_do_not_estimate_the_diagonal() -> None:
    found = list(candidates(StudyConfig(samples=(3,), seeds=1, batch_size=4), FisherConfig(), items=50, dim=16))
    forms = {(config.estimator, config.align) for config in found if config.batch_size == 4}
    assert forms == {(name, align) for name in ESTIMATORS for align in ESTIMATORS[name].alignments}
    one = next(config for config in found if config.batch_size and config.estimator == "model")
    [row] = rows([measured(one, 1.0)], dim=16)
    assert (row["line"], row["unbiased"]) == ("model B=4 by rank", False)


def test_every_estimators_cost_is_a_number() -> None:
    for config in candidates(StudyConfig(samples=(3,), batch_size=4), FisherConfig(), items=50, dim=16):
        assert 1 <= backward_passes(config, dim=16) <= 16
    assert backward_passes(FisherConfig("model", 50), dim=16) == 16


def test_enough_is_the_cheapest_within_the_tolerance() -> None:
    def row(line: str, samples: int, error: float) -> Row:
        [made] = rows([measured(FisherConfig(line, samples), 1.0)], dim=64)
        made["overall"]["scaled_error"]["mean"] = error
        return made

    found = [row("topk", 5, 0.3), row("topk", 20, 0.05), row("topk", 10, 0.08), row("model", 10, 0.2)]
    answer = enough(found, 0.1)
    assert list(answer) == ["topk", "model"]
    assert answer["topk"] is found[2]
    assert answer["model"] is None


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"samples": ()}, "study.samples must be distinct numbers of at least 1, got \\[\\]"),
        ({"samples": (5, 5)}, "study.samples"),
        ({"samples": (0,)}, "study.samples"),
        ({"seeds": 0}, "study.seeds must be between 1 and 100, got 0"),
        ({"users": 0}, "study.users must be at least 1 or null, got 0"),
        ({"batch_size": 1}, "study.batch_size must be at least 2 or null, got 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(change: dict, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        StudyConfig(**change)
