"""The index of histories by the item that followed them."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles_training import same_target_histories
from partitions import dealt, from_lists, random_histories

from raymerge.models.draws import hashed
from raymerge.splitmix import Stream
from raymerge.training.same_target import SameTargetIndex, index_same_targets, merge_indices


def build(histories: list[list[int]], parts: int = 1, candidates: int = 10**6) -> SameTargetIndex:
    return index_same_targets(dealt(histories, parts), length=4, candidates=candidates, seed=3)


def contents(index: SameTargetIndex) -> dict[int, list[list[int]]]:
    found: dict[int, list[list[int]]] = {}
    for target, row in zip(index.targets.tolist(), index.histories.tolist(), strict=True):
        found.setdefault(target, []).append([item for item in row if item])
    return found


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4))
def test_an_unbounded_index_holds_every_history_of_each_target(seed: int, parts: int) -> None:
    histories = random_histories(12, 9, longest=12, seed=seed)
    expected = same_target_histories(histories, length=4)
    found = contents(build(histories, parts))
    assert {t: sorted(rows) for t, rows in found.items()} == {t: sorted(rows) for t, rows in expected.items()}


def test_the_index_holds_the_second_to_last_item_of_users_who_do_not_validate() -> None:
    part = replace(from_lists([[1, 2, 3, 4], [5, 6, 7, 8]]), validates=torch.tensor([True, False]))
    index = index_same_targets([part], length=4, candidates=8, seed=3)
    assert contents(index) == {2: [[1]], 6: [[5]], 7: [[5, 6]]}


@pytest.mark.parametrize("candidates", [1, 3])
def test_a_bounded_index_is_the_same_for_any_division_into_parts(candidates: int) -> None:
    histories = random_histories(40, 9, longest=20, seed=0)
    whole = build(histories, 1, candidates)
    one_by_one = [index_same_targets([p], length=4, candidates=candidates, seed=3) for p in dealt(histories, 5)]
    for other in (build(histories, 3, candidates), merge_indices(one_by_one), merge_indices(one_by_one[::-1])):
        assert all(torch.equal(getattr(whole, f), getattr(other, f)) for f in ("targets", "priorities", "histories"))
    assert int(torch.bincount(whole.targets).max()) == candidates


def test_draws_are_uniform_over_the_target_without_the_row_itself() -> None:
    histories = [[1, 2, 9, 0, 0], [3, 4, 9, 0, 0], [5, 6, 9, 0, 0]]
    parts = dealt([[item or 8 for item in h] for h in histories], 1)
    index = index_same_targets(parts, length=4, candidates=8, seed=3)
    rows = 3000
    targets, seeds = torch.full((rows,), 9), torch.arange(rows)
    own = hashed(Stream.SAME_TARGET_PRIORITY, 3, parts[0].keys[:1], torch.tensor([2])).expand(rows)
    drawn = index.draw(targets, seeds, own, fallback=torch.ones(rows, 2, dtype=torch.int64))
    kinds = drawn[:, -1].bincount(minlength=7)
    assert drawn.shape == (rows, 2) and int(kinds[2]) == 0 and int(kinds[4] + kinds[6]) == rows
    assert int(kinds.sort().values[-2]) > 0.3 * rows


def test_an_only_history_draws_itself_and_an_unknown_target_the_fallback() -> None:
    index = build([[1, 2, 3, 4], [5, 6, 7, 8, 9]])
    fallback = torch.tensor([[0, 1], [4, 4]])
    own = torch.cat([index.priorities[index.targets == 2], torch.tensor([0])])
    drawn = index.draw(torch.tensor([2, 55]), torch.tensor([0, 1]), own, fallback=fallback)
    assert drawn.tolist() == [[0, 1], [4, 4]]


def test_an_empty_index_gives_the_fallback() -> None:
    fallback = torch.tensor([[3]])
    index = build([[1, 2, 3]])
    assert len(index) == 0
    assert index.draw(torch.tensor([2]), torch.tensor([0]), torch.tensor([0]), fallback=fallback).tolist() == [[3]]
