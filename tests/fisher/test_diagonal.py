"""Each estimator against the sum by its definition: one backward pass per user and item."""

from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
from fisher_cases import ITEMS, Recurrent, assert_close, encoder, histories, randomised
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles_fisher import batch_diagonal, diagonal, log_probabilities
from torch import Tensor, nn

from raymerge.errors import ConfigError, InputError, ScoreError, UnknownNameError
from raymerge.fisher import ESTIMATORS, FisherConfig, accumulate, estimate
from raymerge.fisher.draws import integers, streams, uniforms
from raymerge.fisher.engine import default_budget
from raymerge.models.encoder import EncoderConfig, SequenceEncoder

Precision = Literal["bf16", "float32"]
PRECISIONS: tuple[Precision, ...] = ("bf16", "float32")


def probabilities(module: nn.Module, users: Tensor, temperature: float = 1.0) -> Tensor:
    return log_probabilities(module, users, temperature).exp().detach()


def only(items: Tensor, weights: Tensor) -> Tensor:
    """[N, n] weights of items → [N, V]."""
    return torch.zeros(len(items), ITEMS, dtype=weights.dtype).scatter_add_(1, items, weights)


@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize(("activation", "blocks"), [("gelu", 1), ("relu", 2), ("silu", 3)])
def test_exact_equals_brute_force_for_every_kind_of_encoder(
    attention: str, norm: str, activation: str, blocks: int
) -> None:
    some = {"output_bias": blocks != 2, "repeat_direction": blocks != 3}
    module = encoder(attention=attention, norm=norm, activation=activation, blocks=blocks, **some)
    users = histories()
    assert_close(estimate(module, users), diagonal(module, users, probabilities(module, users)))


@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
@pytest.mark.parametrize("max_length", [5, 7])
def test_exact_equals_brute_force_with_a_distance_bias(attention: str, max_length: int) -> None:
    module = encoder(attention=attention, distance_bias=True, blocks=3, max_length=max_length)
    for users in (histories(), histories()[:1, -1:]):
        assert_close(estimate(module, users), diagonal(module, users, probabilities(module, users)))


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    items=st.integers(1, 8),
    heads=st.sampled_from([1, 2]),
    temperature=st.floats(0.3, 10),
    data=st.data(),
)
def test_exact_equals_brute_force_on_random_models(
    seed: int, items: int, heads: int, temperature: float, data: st.DataObject
) -> None:
    module = encoder(seed, items=items, heads=heads, dim=4)
    rows = [data.draw(st.lists(st.integers(1, items), min_size=1, max_size=5)) for _ in range(3)]
    users = torch.tensor([[0] * (5 - len(row)) + row for row in rows])
    expected = diagonal(module, users, probabilities(module, users, temperature), temperature=temperature)
    assert_close(estimate(module, users, temperature=temperature), expected)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("rows", "positions", "repeats"), [(True, False, False), (False, False, True), (True, True, True)]
)
def test_exact_equals_brute_force_for_a_recurrent_model(
    tied: bool, bias: bool, rows: bool, positions: bool, repeats: bool
) -> None:
    module = Recurrent(tied=tied, bias=bias, rows=rows, positions=positions, repeats=repeats).double()
    module = randomised(module, 3)
    users = histories()
    found = estimate(module, users, temperature=0.7)
    assert_close(found, diagonal(module, users, probabilities(module, users, 0.7), temperature=0.7))
    assert not found["unused.weight"].any() and not found["unused.bias"].any()


def test_generic_path_equals_the_fast_one() -> None:
    class Renamed(SequenceEncoder):
        """A subclass of the encoder takes the generic path."""

    fast = encoder(5, distance_bias=True)
    generic = Renamed(ITEMS, fast.config).double()
    generic.load_state_dict(fast.state_dict())
    for arguments in (
        {},
        {"estimator": "rank_unbiased", "samples": 2},
        {"estimator": "topk", "samples": 3, "batch_size": 2},
    ):
        assert_close(estimate(generic, histories(), **arguments), estimate(fast, histories(), **arguments))


@pytest.mark.parametrize("samples", [1, 4, 8, ITEMS])
def test_topk_weights_the_most_probable_items(samples: int) -> None:
    module, users = encoder(1), histories()
    top = probabilities(module, users).topk(samples)
    expected = diagonal(module, users, only(top.indices, top.values))
    assert_close(estimate(module, users, estimator="topk", samples=samples), expected)


def test_topk_of_the_whole_catalogue_is_exact() -> None:
    module, users = encoder(1), histories()
    assert_close(estimate(module, users, estimator="topk", samples=ITEMS), estimate(module, users))


def test_without_groups_topk_does_not_depend_on_the_alignment() -> None:
    module = encoder(1, repeat_direction=False).float()
    module.item_embedding.weight.data.zero_()
    module.output_bias.data = 1e-9 * torch.arange(ITEMS)  # so close that all probabilities are equal
    found = [estimate(module, histories(), estimator="topk", samples=1, align=way) for way in ("rank", "identity")]
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def uniform_picks(seed: int, keys: Tensor, count: int) -> Tensor:
    return integers(streams(seed, keys), torch.arange(ITEMS)).argsort(dim=1, descending=True)[:, :count]


@pytest.mark.parametrize("samples", [2, 8])
def test_random_weights_uniformly_drawn_items(samples: int) -> None:
    module, users = encoder(2), histories()
    picks = uniform_picks(7, torch.arange(len(users)), samples)
    p = probabilities(module, users).gather(1, picks)
    found = estimate(module, users, estimator="random", samples=samples, seed=7)
    assert_close(found, diagonal(module, users, only(picks, p * ITEMS / samples)))
    found = estimate(module, users, estimator="random_unweighted", samples=samples, seed=7)
    assert_close(found, diagonal(module, users, only(picks, torch.full_like(p, 1 / samples))))


def test_target_weights_the_observed_item() -> None:
    module, users, targets = encoder(2), histories(), torch.tensor([1, 9, 4, 4, 7])
    expected = diagonal(module, users, only(targets[:, None] - 1, torch.ones(5, 1, dtype=torch.float64)))
    assert_close(estimate(module, users, estimator="target", targets=targets), expected)


def test_model_draws_approach_exact() -> None:
    module, users = encoder(4), histories()
    exact = estimate(module, users)
    few, many = (estimate(module, users, estimator="model", samples=n, seed=1) for n in (10, 4000))
    for name, value in exact.items():
        if value.max() > 1e-25:
            assert (many[name] - value).norm() < 0.06 * value.norm(), name
    distance = [sum(float((d[n] - exact[n]).square().sum()) for n in exact) for d in (few, many)]
    assert distance[1] < distance[0] / 20


@pytest.mark.parametrize("module", [encoder(6), randomised(Recurrent(tied=True, bias=True).double(), 6)])
def test_rank_is_a_lower_bound_that_grows_to_exact(module: nn.Module) -> None:
    users = histories()
    exact = estimate(module, users)
    width = module.head()[0].shape[1]
    bounds = [estimate(module, users, estimator="rank", samples=r) for r in range(1, width + 1)]
    for smaller, larger in zip(bounds, [*bounds[1:], exact], strict=True):
        for name in exact:
            assert (smaller[name] <= larger[name] + 1e-12 * exact[name].max()).all(), name
    assert any((bounds[1][name] < 0.9 * exact[name]).any() for name in exact)


@pytest.mark.parametrize(
    ("estimator", "samples"),
    [("rank_unbiased", 1), ("rank_unbiased", 3), ("hutchinson", 1), ("hutchinson", 70), ("random", 3)],
)
def test_random_estimators_average_to_exact_and_are_never_negative(estimator: str, samples: int) -> None:
    module, users, repeats = encoder(6), histories()[1:3], 1500 if samples < 9 else 40
    exact = estimate(module, users)
    keys = torch.arange(repeats * len(users))
    found = estimate(module, users.repeat(repeats, 1), estimator=estimator, samples=samples, keys=keys, seed=3)
    spread = estimate(module, users, estimator=estimator, samples=samples, seed=3)
    assert all((value >= 0).all() for value in spread.values())
    for name, value in exact.items():
        if value.max() > 1e-25:
            assert (found[name] - value).norm() < 0.12 * value.norm(), name


def batchwise(module: nn.Module, users: Tensor, size: int, choose: object) -> dict[str, Tensor]:
    """Brute force over groups; `choose(p [S, V], first user)` gives items and weights [S, n]."""
    p = probabilities(module, users)
    rows = [list(range(first, min(first + size, len(users)))) for first in range(0, len(users), size)]
    return batch_diagonal(module, users, [(row, *choose(p[row], row[0])) for row in rows])  # type: ignore[operator]


def by_rank(ranks: Tensor, p: Tensor) -> Tensor:
    return p.argsort(dim=1, descending=True)[:, ranks]


@pytest.mark.parametrize("samples", [3, ITEMS])
@pytest.mark.parametrize("align", ["identity", "rank"])
def test_batchwise_topk_equals_the_naive_sum(samples: int, align: str) -> None:
    module, users = encoder(8, dim=3, heads=1), histories()

    def choose(p: Tensor, _: int) -> tuple[Tensor, Tensor]:
        same = p.sum(0).topk(samples).indices.expand(len(p), -1)
        items = same if align == "identity" else by_rank(torch.arange(samples), p)
        return items, p.gather(1, items)

    found = estimate(module, users, estimator="topk", samples=samples, batch_size=2, align=align)  # type: ignore[arg-type]
    assert_close(found, batchwise(module, users, 2, choose))


@pytest.mark.parametrize("align", ["identity", "rank"])
@pytest.mark.parametrize("weighted", [True, False])
def test_batchwise_random_equals_the_naive_sum(align: str, weighted: bool) -> None:
    module, users, samples = encoder(8), histories(), 4

    def choose(p: Tensor, first: int) -> tuple[Tensor, Tensor]:
        drawn = uniform_picks(5, torch.tensor([first]), samples)[0]
        items = drawn.expand(len(p), -1) if align == "identity" else by_rank(drawn, p)
        return items, p.gather(1, items) * ITEMS / samples if weighted else torch.full(items.shape, 1 / samples)

    name = "random" if weighted else "random_unweighted"
    found = estimate(module, users, estimator=name, samples=samples, seed=5, batch_size=3, align=align)  # type: ignore[arg-type]
    assert_close(found, batchwise(module, users, 3, choose))


def test_batchwise_draws_from_the_model_are_aligned_by_probability() -> None:
    module, users, samples = encoder(8), histories(), 4

    def choose(p: Tensor, first: int) -> tuple[Tensor, Tensor]:
        level = uniforms(streams(5, torch.arange(first, first + len(p))), samples)
        drawn = torch.searchsorted(p.cumsum(1), level, right=True)
        order = p.gather(1, drawn).argsort(dim=1, descending=True, stable=True)
        return drawn.gather(1, order), torch.full(drawn.shape, 1 / samples)

    found = estimate(module, users, estimator="model", samples=samples, seed=5, batch_size=2)
    assert_close(found, batchwise(module, users, 2, choose))


@pytest.mark.parametrize("tied", [True, False])
def test_batchwise_target_of_a_recurrent_model_equals_the_naive_sum(tied: bool) -> None:
    module = randomised(Recurrent(tied=tied, bias=True).double(), 3)
    users, targets = histories(), torch.tensor([1, 1, 4, 4, 7])
    found = estimate(module, users, estimator="target", targets=targets, batch_size=2)
    expected = batchwise(
        module, users, 2, lambda p, first: (targets[first : first + len(p), None] - 1, torch.ones(len(p), 1))
    )
    assert_close(found, expected)


@pytest.mark.parametrize("estimator", ["topk", "random", "model"])
def test_groups_of_one_user_give_the_estimator_itself(estimator: str) -> None:
    module, users = encoder(8), histories()
    alone = estimate(module, users, estimator=estimator, samples=4)
    assert_close(estimate(module, users, estimator=estimator, samples=4, batch_size=1), alone)


@pytest.mark.parametrize("estimator", ["exact", "model", "random", "hutchinson", "rank_unbiased", "topk"])
def test_chunks_order_and_shards_change_only_rounding(estimator: str) -> None:
    module, users = encoder(9), histories().repeat(4, 1)
    samples = None if estimator == "exact" else 3
    keys = torch.arange(100, 100 + len(users))
    whole = estimate(module, users, estimator=estimator, samples=samples, keys=keys)
    small = estimate(module, users, estimator=estimator, samples=samples, keys=keys, memory_bytes=3000)
    assert_close(small, whole, 1e-12)
    config = FisherConfig(estimator=estimator, samples=samples)
    order = torch.randperm(len(users), generator=torch.Generator().manual_seed(0))
    parts = [accumulate(module, users[part], config=config, keys=keys[part]) for part in order.split(7)]
    total = {name: sum(sums[name] for sums, _ in parts) / sum(count for _, count in parts) for name in whole}
    assert_close(total, whole, 1e-12)


@pytest.mark.parametrize("estimator", ["exact", "model", "random", "hutchinson", "rank_unbiased", "topk"])
def test_reading_the_catalogue_in_tiles_changes_only_rounding(estimator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, users, samples = encoder(9), histories(), None if estimator == "exact" else 3
    whole = estimate(module, users, estimator=estimator, samples=samples)
    batch = estimate(module, users, estimator="topk", samples=3, batch_size=2)
    monkeypatch.setattr("raymerge.fisher.scores.TILE", 4)
    monkeypatch.setattr("raymerge.fisher.factor.WORKING_SET", 1)
    monkeypatch.setattr("raymerge.fisher.squares.CACHE_BYTES", 1)
    assert_close(estimate(module, users, estimator=estimator, samples=samples), whole, 1e-12)
    assert_close(estimate(module, users, estimator="topk", samples=3, batch_size=2), batch, 1e-12)


@pytest.mark.parametrize("cache_bytes", [300, 700, 1500])
@pytest.mark.parametrize("most_probes", [2, 3, 4, 5])
def test_chunks_of_any_number_of_probes_change_only_rounding(
    cache_bytes: int, most_probes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, users, samples = encoder(9, blocks=3), histories().repeat(2, 1), {"estimator": "topk", "samples": 7}
    whole, batch = estimate(module, users), estimate(module, users, batch_size=2, **samples)
    monkeypatch.setattr("raymerge.fisher.squares.CACHE_BYTES", cache_bytes)
    monkeypatch.setattr("raymerge.fisher.transformer.MOST_PROBES", most_probes)
    assert_close(estimate(module, users), whole, 1e-12)
    assert_close(estimate(module, users, batch_size=2, **samples), batch, 1e-12)


def test_a_last_chunk_of_few_probes_takes_more_groups_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    module = SequenceEncoder(150, EncoderConfig(attention="causal", dim=100, feed_forward=400, max_length=20)).eval()
    users = torch.randint(1, 151, (8, 20))
    chunks = estimate(module, users, estimator="topk", samples=50)  # 32 probes, then 18
    monkeypatch.setattr("raymerge.fisher.transformer.MOST_PROBES", 50)
    assert_close(chunks, estimate(module, users, estimator="topk", samples=50), 1e-4)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_seed_matters_only_to_estimators_that_draw_at_random(name: str) -> None:
    module, users, entry = encoder(9), histories(), ESTIMATORS[name]
    samples = None if entry.samples is None else 1
    first, second = (
        estimate(module, users, estimator=name, samples=samples, targets=users[:, -1], seed=seed) for seed in (0, 1)
    )
    assert entry.random == any(not torch.equal(first[key], second[key]) for key in first)


def test_the_key_of_a_diagonal_holds_what_it_depends_on() -> None:
    assert FisherConfig(seed=1, align="identity").key == FisherConfig().key
    assert FisherConfig("model", 3, seed=1).key != FisherConfig("model", 3).key
    assert FisherConfig("topk", 3, batch_size=2, align="identity").key != FisherConfig("topk", 3, batch_size=2).key
    before = {"estimator": "exact", "samples": None, "temperature": 1.0, "batch_size": None, "align": "rank", "seed": 0}
    assert FisherConfig(**before).key == FisherConfig().key, "as manifests of earlier versions have it"
    assert FisherConfig(precision="bf16").key != FisherConfig(precision="float32").key


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_number_of_threads_changes_no_bit_and_is_restored(precision: Precision) -> None:
    module, users, threads = encoder(9).float(), histories().repeat(40, 1), torch.get_num_threads()
    found = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            found.append(estimate(module, users, estimator="rank_unbiased", samples=4, precision=precision))
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_padding_changes_nothing() -> None:
    module, users = encoder(9), histories()
    wider = torch.cat([torch.zeros(len(users), 3, dtype=torch.int64), users[:, 1:]], dim=1)
    assert_close(estimate(module, wider), estimate(module, users[:, 1:]), 1e-12)


def test_float32_agrees_with_float64_and_dtype_computes_in_another_precision() -> None:
    module, users = encoder(9), histories()
    exact = estimate(module, users)
    single = module.float()
    for name, value in estimate(single, users, precision="float32").items():
        assert value.dtype == torch.float32
        assert (value - exact[name]).abs().max() <= 1e-4 * exact[name].max() + 1e-12
    double = estimate(single, users, dtype=torch.float64)
    assert double["output_norm.weight"].dtype == torch.float64
    assert next(single.parameters()).dtype == torch.float32
    assert_close(double, exact, 1e-5)


@pytest.mark.parametrize("estimator", [{}, {"estimator": "hutchinson", "samples": 2}])
def test_a_model_in_half_precision_is_measured_in_float32(estimator: dict[str, Any]) -> None:
    half, users = encoder(9).bfloat16(), histories()
    found = estimate(half, users, **estimator)
    assert {value.dtype for value in found.values()} == {torch.float32}
    assert half.output_bias.dtype == torch.bfloat16
    assert_close(found, estimate(encoder(9).bfloat16().float(), users, **estimator), 0)
    assert_close(estimate(half.float(), users, dtype=torch.float16, **estimator), found, 0)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"norm": "post", "attention": "causal", "distance_bias": True},
        {"norm": "post", "distance_bias": True, "blocks": 3},
    ],
)
@pytest.mark.parametrize("estimator", [{}, {"estimator": "topk", "samples": 5, "batch_size": 2}])
def test_products_in_bf16_have_a_small_error(settings: dict[str, object], estimator: dict[str, Any]) -> None:
    module, users = encoder(9, dim=8, **settings), histories()
    exact = estimate(module, users, **estimator)
    assert_close(estimate(module, users, precision="bf16", **estimator), exact, 0)  # of float64 nothing is rounded
    found = {precision: estimate(module.float(), users, precision=precision, **estimator) for precision in PRECISIONS}
    for name, value in exact.items():
        assert (found["bf16"][name] - value).norm() <= 0.03 * value.norm(), name
    changed = {name for name in exact if not torch.equal(found["bf16"][name], found["float32"][name])}
    last = len(module.blocks) - 1
    assert "blocks.0.feed_forward.inner.weight" in changed and f"blocks.{last}.feed_forward.inner.weight" not in changed


def test_the_error_of_bf16_is_about_a_thousandth_at_the_usual_width() -> None:
    torch.manual_seed(0)
    module = SequenceEncoder(300, EncoderConfig(attention="causal", max_length=16)).eval()
    module.item_embedding.weight.data[1:].normal_(std=0.3)
    users = torch.randint(1, 301, (64, 16)) * (torch.arange(16) >= torch.randint(0, 16, (64, 1)))
    rounded, exact = (estimate(module, users, precision=precision) for precision in PRECISIONS)
    for name, value in exact.items():
        assert (rounded[name] - value).norm() <= 5e-3 * value.norm(), name


def test_few_probes_are_not_rounded() -> None:
    module, users = encoder(9).float(), histories()
    found = [estimate(module, users, estimator="hutchinson", samples=3, precision=one) for one in PRECISIONS]
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_a_nearly_certain_item_does_not_cancel_in_float32() -> None:
    module, users = encoder(9), histories()
    module.output_bias.data[2] = 18.0
    exact, single = estimate(module, users), estimate(module.float(), users, precision="float32")
    for name in ("output_bias", "item_embedding.weight", "blocks.0.feed_forward.inner.weight", "repeat_direction"):
        assert (single[name] - exact[name]).norm() < 1e-4 * exact[name].norm(), name


def test_one_certain_item_leaves_no_information_and_no_nan() -> None:
    module, users = encoder(9), histories()
    module.output_bias.data[2] = 1e4
    for arguments in ({}, {"estimator": "rank", "samples": 2}, {"estimator": "hutchinson", "samples": 2}):
        assert all((value == 0).all() for value in estimate(module, users, **arguments).values())


def test_modes_and_flags_are_restored() -> None:
    module = randomised(Recurrent(tied=True, bias=True).double(), 0)
    module.gru.train()
    module.bias.requires_grad_(False)
    estimate(module, histories())
    assert module.gru.training and not module.embedding.training and not module.bias.requires_grad


def test_frozen_parameters_of_any_module_are_left_out_on_request() -> None:
    module = randomised(Recurrent(tied=True, bias=True).double(), 0)
    module.bias.requires_grad_(False)
    whole = estimate(module, histories())
    partial = estimate(module, histories(), skip_frozen=True)
    assert whole["bias"].any() and "bias" not in partial
    assert_close(partial, {name: value for name, value in whole.items() if name != "bias"})


@pytest.mark.parametrize("estimator", [{}, {"estimator": "topk", "samples": 3}])
@pytest.mark.parametrize("frozen", ["item_embedding.weight", "blocks.0.attention.qkv.weight", "output_bias"])
def test_frozen_parameters_of_an_encoder_are_left_out_on_request(frozen: str, estimator: dict[str, Any]) -> None:
    module = encoder(9)
    whole = estimate(module, histories(), **estimator)
    module.get_parameter(frozen).requires_grad_(False)
    partial = estimate(module, histories(), skip_frozen=True, **estimator)
    assert_close(partial, {name: value for name, value in whole.items() if name != frozen})


def test_a_direction_that_is_part_of_a_parameter_is_refused() -> None:
    module = Recurrent(tied=True, bias=True).double()
    module.both = nn.Parameter(torch.zeros(8).double())
    module.repeat_direction = module.both[4:]
    with pytest.raises(ConfigError, match="part of 'both'"):
        estimate(module, histories())


def test_dropout_is_off() -> None:
    module = encoder(9)
    expected = estimate(module, histories())
    assert_close(estimate(module.train(), histories()), expected)
    assert module.training and module.blocks[0].dropout.training


def test_progress_counts_every_user_once() -> None:
    seen: list[int] = []
    estimate(encoder(), histories(), memory_bytes=1, progress=seen.append)
    assert sum(seen) == 5 and len(seen) == 5


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"estimator": "magic"}, UnknownNameError, "known: exact, model"),
        ({"estimator": "topk"}, ConfigError, "needs fisher.samples"),
        ({"estimator": "topk", "samples": 0}, ConfigError, "at least 1 or null, got 0"),
        ({"estimator": "topk", "samples": ITEMS + 1}, ConfigError, "at most the 9 items"),
        ({"estimator": "rank", "samples": 7}, ConfigError, "at most the 6 dimensions"),
        ({"samples": 3}, ConfigError, "takes no fisher.samples"),
        ({"estimator": "target"}, ConfigError, "needs targets"),
        ({"temperature": 0.0}, ConfigError, "positive"),
        ({"batch_size": 2}, ConfigError, "no batch-wise form"),
        ({"estimator": "model", "samples": 2, "batch_size": 2, "align": "identity"}, ConfigError, "no batch-wise form"),
        ({"estimator": "target", "targets": torch.tensor([1, 2, 3, 4, 10])}, InputError, "found 10"),
        ({"keys": torch.arange(4)}, InputError, "keys"),
    ],
)
def test_settings_that_cannot_work_are_refused(arguments: dict[str, object], error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        estimate(encoder(), histories(), **arguments)  # type: ignore[arg-type]


def test_invalid_histories_and_scores_are_refused() -> None:
    module = encoder()
    with pytest.raises(InputError, match="leave none empty"):
        estimate(module, torch.tensor([[0, 0, 1], [0, 0, 0]]))
    with pytest.raises(InputError, match="got shape"):
        estimate(module, torch.zeros(0, 3, dtype=torch.int64))
    for bad in (torch.nan, torch.inf, -torch.inf):
        module.output_bias.data[1] = bad
        with pytest.raises(ScoreError, match="not a finite number"):
            estimate(module, histories())


def test_a_head_that_is_computed_from_parameters_is_refused() -> None:
    module = randomised(Recurrent(tied=False, bias=True).double(), 0)
    weight, bias, _ = module.head()
    module.head = lambda: (weight * 2, bias, None)
    with pytest.raises(ConfigError, match="computed from parameters"):
        estimate(module, histories())


def test_a_head_that_is_tied_to_no_input_is_refused() -> None:
    module = randomised(Recurrent(tied=False, bias=True).double(), 0)
    weight, bias, _ = module.head()
    module.head = lambda: (weight, bias, "output.weight")
    with pytest.raises(ConfigError, match=r"tied to the input, but embed\(\) does not use it"):
        estimate(module, histories())


class Shifted(Recurrent):
    """Reads each item at the next row of the tied embedding."""

    def embed(self, histories: Tensor) -> Tensor:
        """int64[B, L] → [B, L, d]."""
        return super().embed((histories + 1) % (ITEMS + 1) * (histories > 0))


def test_rows_read_elsewhere_need_input_rows() -> None:
    module, users = randomised(Shifted(tied=True, bias=True, rows=False).double(), 0), histories()
    with pytest.raises(InputError, match=r"reads rows of 'embedding.weight' that are not at the histories' indices"):
        estimate(module, users)
    module.input_rows = lambda histories: (histories + 1) % (ITEMS + 1) * (histories > 0)
    assert_close(estimate(module, users), diagonal(module, users, probabilities(module, users)))


def test_default_budget_is_of_the_device_and_not_of_what_others_leave_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = SimpleNamespace(total_memory=16 << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
    assert default_budget(torch.device("cpu")) == 64 << 20
    assert default_budget(torch.device("cuda", 0)) == 1 << 30
