"""The parts of the engine, each against its definition."""

import threading

import pytest
import torch
from torch import Tensor

from raymerge.fisher.draws import streams, uniforms
from raymerge.fisher.factor import ChosenItems, Probes, covariance, from_all, from_choice
from raymerge.fisher.rows import InputRows
from raymerge.fisher.scores import Head, Scores
from raymerge.fisher.threads import in_order


def scores(*, items: int, dim: int, users: int = 3, repeats: bool = False) -> Scores:
    """With repeats, user i's history has item 0 and, if there is one, item i + 1."""
    generator = torch.Generator().manual_seed(1)
    weight, bias, hidden, direction = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((items, dim), (items,), (users, 1, dim), (dim,))
    )
    if not repeats:
        return Scores(Head(weight, bias), hidden, torch.arange(users)[:, None])
    had = torch.tensor([[i + 1 if i + 1 < items else -1, 0, -1] for i in range(users)])
    return Scores(Head(weight, bias, repeat_direction=3 * direction), hidden, torch.arange(users)[:, None], had)


def by_definition(found: Scores, weights: Tensor) -> Tensor:
    """C = Σ_j w_j (W_j - μ)(W_j - μ)ᵀ, with W_j + r instead of W_j for items j in a user's history."""
    p = found.logits(slice(0, found.head.items)).softmax(1)
    own = found.head.weight.expand(len(p), -1, -1).clone()
    if found.had is not None:
        for user, columns in enumerate(found.had.tolist()):
            own[user, [column for column in columns if column >= 0]] += found.head.repeat_direction
    r = own - torch.einsum("bj,bjd->bd", p, own)[:, None]
    return torch.einsum("bj,bjc,bjd->bcd", weights, r, r)


def product(probes: Probes) -> Tensor:
    q = probes.cotangents[:, :, 0]
    return q.transpose(1, 2) @ q


@pytest.mark.parametrize("repeats", [False, True])
@pytest.mark.parametrize(("items", "dim"), [(2, 5), (40, 5), (1, 3)])
def test_squared_probes_add_up_to_the_covariance(items: int, dim: int, repeats: bool) -> None:
    found = scores(items=items, dim=dim, repeats=repeats)
    p = found.logits(slice(0, found.head.items)).softmax(1)
    expected = by_definition(found, p)
    torch.testing.assert_close(covariance(found), expected)
    torch.testing.assert_close(product(from_all(found, None)), expected)


def test_directions_without_variance_need_no_probe() -> None:
    found = scores(items=3, dim=8)
    assert from_all(found, None).cotangents.shape[1] == 2
    assert from_all(found, torch.tensor([[0, -1]]).expand(3, -1)).cotangents.shape[1] == 2
    assert from_all(scores(items=30, dim=8), None, rank=5).cotangents.shape[1] == 5


@pytest.mark.parametrize("repeats", [False, True])
@pytest.mark.parametrize("chosen", [3, 20])
def test_chosen_items_give_the_covariance_with_at_most_d_probes(chosen: int, repeats: bool) -> None:
    found = scores(items=20, dim=6, repeats=repeats)
    items = torch.stack([torch.randperm(20, generator=torch.Generator().manual_seed(i))[:chosen] for i in range(3)])
    weights = torch.rand(3, chosen, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    probes = from_choice(found, ChosenItems(items[:, None], weights), None)
    assert probes.cotangents.shape[1] == min(chosen, 6)
    expected = by_definition(found, torch.zeros(3, 20, dtype=torch.float64).scatter(1, items, weights))
    torch.testing.assert_close(product(probes), expected)


def test_a_component_shared_by_all_items_does_not_cancel_the_covariance_in_float32() -> None:
    weight = torch.randn(50, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 1e-2 + 10
    hidden = torch.tensor([[[30.0, -30.0, 20.0, -20.0]]], dtype=torch.float64)
    exact = Scores(Head(weight, None), hidden, torch.zeros(1, 1, dtype=torch.int64))
    single = Scores(Head(weight.float(), None), hidden.float(), exact.stream)
    expected = by_definition(exact, exact.probabilities(slice(None)))
    found = covariance(single).double()
    assert (found - expected).norm() < 1e-3 * expected.norm()


def test_a_nearly_certain_user_among_others_keeps_its_covariance_in_float32() -> None:
    exact = scores(items=300, dim=20)
    exact = Scores(exact.head, exact.hidden * torch.tensor([20.0, 0.3, 1.0])[:, None, None], exact.stream)
    head = Head(exact.head.weight.float(), exact.head.bias.float())
    p = exact.probabilities(slice(None))
    doubt = 1 - p.amax(1)
    assert doubt[0] < 1e-5
    assert doubt[1] > 0.5
    found = covariance(Scores(head, exact.hidden.float(), exact.stream)).double()
    for one, expected in zip(found, by_definition(exact, p), strict=True):
        assert (one - expected).norm() < 1e-4 * expected.norm()


def test_rows_read_twice_are_added_up() -> None:
    positions = torch.tensor([[0, 0, 4, 2, 4], [0, 3, 3, 3, 9]])
    rows = InputRows.of(positions)
    gradients = torch.randn(2, 5, 3, 2, generator=torch.Generator().manual_seed(0))
    found = rows.add_up(gradients)
    for group in range(2):
        for item in {2, 4, 3, 9} & set(positions[group].tolist()):
            expected = gradients[group, positions[group] == item].sum(0)
            where = (rows.rows[group] == item).nonzero().item()
            torch.testing.assert_close(found[group, where], expected)
    assert InputRows.of(torch.tensor([[0, 0, 1, 2]])).slots is None


def test_draws_are_uniform_and_belong_to_seed_and_key() -> None:
    numbers = uniforms(streams(0, torch.arange(200)), 500)
    assert numbers.min() >= 0 and numbers.max() < 1
    assert abs(numbers.mean().item() - 0.5) < 0.005 and abs(numbers.var().item() - 1 / 12) < 0.002
    assert abs(torch.corrcoef(numbers).fill_diagonal_(0)).max() < 0.25
    again = uniforms(streams(0, torch.tensor([7, 3])), 500)
    assert torch.equal(again, numbers[[7, 3]])
    assert not torch.equal(uniforms(streams(1, torch.tensor([7])), 500)[0], numbers[7])


def test_results_come_in_order_and_an_error_stops_the_work() -> None:
    assert list(in_order(lambda n: n * n, range(20))) == [n * n for n in range(20)]
    threads = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError):
        list(in_order(lambda n: 1 // n, [1, 0, 1]))
    assert torch.get_num_threads() == threads


def test_threads_are_reused_between_calls() -> None:
    first, second = (set(in_order(lambda _: threading.get_native_id(), range(20))) for _ in range(2))
    assert len(first | second) <= torch.get_num_threads()
