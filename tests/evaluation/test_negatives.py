from collections import Counter
from types import SimpleNamespace
from typing import Any

import oracles_evaluation as oracles
import pytest
import torch
from evaluation.cases import ragged
from hypothesis import given, settings
from hypothesis import strategies as st

from raymerge.errors import InputError
from raymerge.evaluation import negatives as room
from raymerge.evaluation.negatives import draw_negatives

Users = tuple[int, list[list[int]], list[int], list[int], list[int] | None]
"""Number of items; seen items, key and target of each user; counts of the items."""


@st.composite
def users(draw: st.DrawFn) -> Users:
    num_items = draw(st.integers(2, 30))
    item = st.integers(1, num_items)
    count = draw(st.integers(1, 5))
    rows = draw(st.lists(st.lists(item, min_size=1, max_size=25), min_size=count, max_size=count))
    keys = draw(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=count, max_size=count, unique=True))
    targets = draw(st.lists(item, min_size=count, max_size=count))
    counts = draw(st.none() | st.lists(st.integers(0, 50), min_size=num_items, max_size=num_items))
    return num_items, rows, keys, targets, counts if counts and any(counts) else None


@settings(max_examples=60, deadline=None)
@given(users(), st.integers(1, 12), st.integers(0, 2**40))
def test_negatives_equal_drawing_one_by_one(drawn: Users, n: int, seed: int) -> None:
    num_items, rows, keys, targets, counts = drawn
    weights = None if counts is None else torch.tensor(counts)
    found = draw_negatives(torch.tensor(keys), ragged(rows), torch.tensor(targets), num_items, n, seed, weights)
    for row, key, seen, target in zip(found.tolist(), keys, rows, targets, strict=True):
        assert row == oracles.draw_negatives(key, {*seen, target}, counts or [1] * num_items, n, seed)


@pytest.mark.parametrize("popular", [False, True])
def test_negatives_are_distinct_unseen_and_the_same_in_any_batch(
    popular: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(1, 301, (int(n),), generator=generator).tolist() for n in torch.arange(0, 600, 12)]
    keys, targets = torch.arange(50) * 7919, torch.randint(1, 301, (50,), generator=generator)
    counts = 3000 // torch.arange(1, 301) if popular else None
    whole = draw_negatives(keys, ragged(rows), targets, 300, 40, 0, counts)
    for i, seen in enumerate(rows):
        real = [item for item in whole[i].tolist() if item]
        assert len(set(real)) == len(real) == min(40, 300 - len({*seen, int(targets[i])}))
        assert not {*seen, int(targets[i])} & set(real)
        alone = draw_negatives(keys[i : i + 1], ragged(rows[i : i + 1]), targets[i : i + 1], 300, 40, 0, counts)
        assert alone.tolist() == whole[i : i + 1].tolist()
    monkeypatch.setattr(room, "CHUNK_ENTRIES", 1000)
    assert draw_negatives(keys, ragged(rows), targets, 300, 40, 0, counts).equal(whole)
    assert not draw_negatives(keys, ragged(rows), targets, 300, 40, 1, counts).equal(whole)


def test_rejection_and_race_follow_the_law_of_successive_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    counts, n, users_ = torch.tensor([6, 3, 2, 1, 4]), 2, 40_000
    keys, targets = torch.arange(users_), torch.full((users_,), 5)
    expected = {}
    weights = dict(enumerate([6, 3, 2, 1], start=1))
    for a, wa in weights.items():
        for b, wb in weights.items():
            if a != b:
                expected[a, b] = wa / 12 * wb / (12 - wa)
    seen = SimpleNamespace(items=torch.zeros(0, dtype=torch.int64), offsets=torch.zeros(users_ + 1, dtype=torch.int64))
    for draws in (1, 4):  # one draw a negative leaves much to the race
        monkeypatch.setattr(room, "DRAWS_PER_NEGATIVE", draws)
        found = Counter(map(tuple, draw_negatives(keys, seen, targets, 5, n, 0, counts).tolist()))
        for pair, probability in expected.items():
            assert found[pair] / users_ == pytest.approx(probability, abs=0.01), (draws, pair)


def test_items_without_interactions_are_never_popular_negatives() -> None:
    counts = torch.tensor([5, 0, 5, 0, 5])
    found = draw_negatives(torch.arange(20), ragged([[1]] * 20), torch.full((20,), 4), 5, 3, 0, counts)
    assert {tuple(sorted(row)) for row in found.tolist()} == {(0, 3, 5)}


def test_users_who_have_seen_everything_have_no_negatives() -> None:
    assert draw_negatives(torch.tensor([1]), ragged([[1, 2]]), torch.tensor([3]), 3, 2, 0).tolist() == [[0, 0]]
    assert draw_negatives(torch.zeros(0, dtype=torch.int64), ragged([]), torch.zeros(0), 3, 2, 0).shape == (0, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 0}, "at least 1 negative must be drawn, got 0"),
        ({"targets": torch.tensor([1])}, "of the same users, got 2, 1 and 2"),
        ({"targets": torch.tensor([1, 9])}, r"targets must be item indices in 1\.\.5, found 9"),
        ({"seen": ragged([[0], [1]])}, r"seen items must be item indices in 1\.\.5, found 0"),
        ({"counts": torch.ones(4)}, "all 5 items, got 4"),
        ({"counts": torch.tensor([1, -2, 1, 1, 1])}, "not all 0, found -2"),
        ({"counts": torch.zeros(5)}, "not all 0, found 0"),
    ],
)
def test_mismatched_arguments_are_refused(change: dict[str, Any], message: str) -> None:
    arguments = {
        "keys": torch.tensor([1, 2]),
        "seen": ragged([[1], [2]]),
        "targets": torch.tensor([3, 4]),
        "num_items": 5,
        "n": 2,
        "seed": 0,
    }
    with pytest.raises(InputError, match=message):
        draw_negatives(**{**arguments, **change})
