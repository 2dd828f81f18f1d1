"""The losses against their formulas, one row after the other."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles_training import cross_entropy_sum, info_nce_sum, sampled_cross_entropy_sum

from raymerge.models.draws import uniform
from raymerge.models.losses import catalogue_cross_entropy, info_nce, sampled_cross_entropy
from raymerge.models.repeats import Repeats
from raymerge.splitmix import Stream


def leaves_of(rows: int, items: int, draw: torch.Generator) -> list[torch.Tensor]:
    """States, weight, bias and the direction of repeats."""
    shapes = (rows, 3), (items, 3), (items,), (3,)
    return [torch.randn(*shape, dtype=torch.float64, generator=draw) for shape in shapes]


def repeats_of(had: torch.Tensor, direction: torch.Tensor) -> Repeats:
    """Repeats in which each row is the last place of its own window."""
    columns = torch.arange(had.shape[1]).expand_as(had).masked_fill(~had, -1)
    rows = torch.arange(len(had))
    return Repeats(columns, rows, torch.full_like(rows, had.shape[1] - 1), direction)


def had_by(rows: int, items: int, share: float, draw: torch.Generator) -> torch.Tensor:
    """Which items are in the history of each row: bool[rows, items]."""
    return torch.rand(rows, items, generator=draw) < share


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 9),
    st.integers(1, 12),
    st.integers(1, 5),
    st.booleans(),
    st.sampled_from([None, 0.0, 0.3, 1.0]),
    st.integers(0, 10**6),
)
def test_cross_entropy_and_its_gradients_equal_the_formula(
    rows: int, items: int, chunk: int, with_bias: bool, repeated: float | None, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    leaves = leaves_of(rows, items, draw)
    targets = torch.randint(0, items, (rows,), generator=draw)
    had = had_by(rows, items, repeated or 0, draw)
    results = []
    for fast in (True, False):
        states, weight, bias, direction = (leaf.clone().requires_grad_() for leaf in leaves)
        given_bias = bias if with_bias else None
        if fast:
            repeats = None if repeated is None else repeats_of(had, direction)
            total = catalogue_cross_entropy(
                states, targets, weight, given_bias, repeats=repeats, logit_bytes=chunk * items * 16
            )
        else:
            pairs = None if repeated is None else ([set(row.nonzero().flatten().tolist()) for row in had], direction)
            total = cross_entropy_sum(states, targets.tolist(), weight, given_bias, pairs)
        (total * 0.7 + 0 * (states.sum() + weight.sum() + bias.sum() + direction.sum())).backward()
        results.append([total.detach(), states.grad, weight.grad, bias.grad, direction.grad])
    for fast_value, naive in zip(*results, strict=True):
        torch.testing.assert_close(fast_value, naive, rtol=1e-10, atol=1e-12)


def test_cross_entropy_of_a_hopeless_target_is_exact() -> None:
    weight = torch.tensor([[1000.0], [0.0]])
    total = catalogue_cross_entropy(torch.ones(1, 1), torch.tensor([1]), weight, None)
    assert float(total) == 1000


def test_repeats_are_not_rounded_under_autocast() -> None:
    states, had = torch.full((1, 64), 3.1), torch.tensor([[True, False]])
    repeats = repeats_of(had, torch.full((64,), 1.234))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total = catalogue_cross_entropy(states, torch.tensor([1]), torch.zeros(2, 64), None, repeats=repeats)
    assert float(total) == pytest.approx(64 * 3.1 * 1.234, rel=1e-6)


def test_no_gradients_are_computed_if_none_are_needed() -> None:
    states, weight = torch.randn(4, 3), torch.randn(5, 3, requires_grad=True)
    with torch.no_grad():
        quiet = catalogue_cross_entropy(states, torch.zeros(4, dtype=torch.int64), weight, None)
    assert not quiet.requires_grad
    torch.testing.assert_close(quiet, catalogue_cross_entropy(states, torch.zeros(4, dtype=torch.int64), weight, None))


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 9),
    st.integers(2, 40),
    st.integers(1, 50),
    st.booleans(),
    st.sampled_from([None, 0.0, 0.3, 1.0]),
    st.integers(0, 10**6),
)
def test_sampled_cross_entropy_and_its_gradients_equal_the_formula(
    rows: int, items: int, draws: int, with_bias: bool, repeated: float | None, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    leaves = leaves_of(rows, items, draw)
    targets = torch.randint(0, items, (rows,), generator=draw)
    had = had_by(rows, items, repeated or 0, draw)
    drawn = (uniform(Stream.SOFTMAX_NEGATIVES, seed, torch.arange(draws)) * items).long().tolist()
    results = []
    for fast in (True, False):
        states, weight, bias, direction = (leaf.clone().requires_grad_() for leaf in leaves)
        head = weight, bias if with_bias else None
        if fast:
            repeats = None if repeated is None else repeats_of(had, direction)
            total = sampled_cross_entropy(states, targets, *head, repeats=repeats, draws=draws, seed=torch.tensor(seed))
        else:
            pairs = None if repeated is None else ([set(row.nonzero().flatten().tolist()) for row in had], direction)
            if draws >= items:
                total = cross_entropy_sum(states, targets.tolist(), *head, pairs)
            else:
                total = sampled_cross_entropy_sum(states, targets.tolist(), *head, pairs, drawn=drawn)
        (total * 0.7 + 0 * (states.sum() + weight.sum() + bias.sum() + direction.sum())).backward()
        results.append([total.detach(), states.grad, weight.grad, bias.grad, direction.grad])
    for fast_value, naive in zip(*results, strict=True):
        torch.testing.assert_close(fast_value, naive, rtol=1e-10, atol=1e-12)


def test_the_sampled_sum_over_the_catalogue_is_unbiased() -> None:
    torch.manual_seed(0)
    state, weight, target = torch.randn(1, 3), torch.randn(60, 3), torch.tensor([5])
    odds = torch.exp(weight @ state[0]).double()
    seeds = [torch.tensor(seed) for seed in range(2000)]
    losses = [sampled_cross_entropy(state, target, weight, None, draws=20, seed=seed) for seed in seeds]
    sums = torch.stack(losses).double().exp() * odds[target]
    error = float(sums.std()) / len(sums) ** 0.5
    assert abs(float(sums.mean() - odds.sum())) < 4 * error < 0.1 * float(odds.sum())


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 6),
    st.sampled_from(["cosine", "dot"]),
    st.sampled_from([0.2, 1.0]),
    st.booleans(),
    st.integers(0, 10**6),
)
def test_info_nce_and_its_gradients_equal_the_formula(
    rows: int, similarity: str, temperature: float, labelled: bool, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    leaves = [torch.randn(rows, 3, dtype=torch.float64, generator=draw) for _ in range(2)]
    targets = torch.randint(0, 3, (rows,), generator=draw) if labelled else None
    results = []
    for fast in (True, False):
        first, second = (leaf.clone().requires_grad_() for leaf in leaves)
        if fast:
            total, count = info_nce(first, second, similarity=similarity, temperature=temperature, targets=targets)
            assert int(count) == 2 * rows
        else:
            labels = None if targets is None else targets.tolist()
            total = info_nce_sum(first, second, similarity=similarity, temperature=temperature, targets=labels)
        total.backward()
        results.append([total.detach(), first.grad, second.grad])
    for fast_value, naive in zip(*results, strict=True):
        torch.testing.assert_close(fast_value, naive, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("targets", [None, torch.tensor([3])])
def test_info_nce_of_a_row_alone_is_zero(targets: torch.Tensor | None) -> None:
    total, _ = info_nce(torch.ones(1, 2), torch.ones(1, 2), similarity="dot", temperature=1.0, targets=targets)
    assert float(total) == 0
