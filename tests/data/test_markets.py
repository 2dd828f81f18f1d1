"""What a market may learn from: its own and what is shared, and never what tests or validates the whole."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from partitions import from_lists

from raymerge.data.markets import MarketsConfig, owners, seen_by_base, seen_by_market
from raymerge.data.sequences import Sequences
from raymerge.data.split import training_part
from raymerge.errors import ConfigError

HISTORIES = st.lists(st.lists(st.integers(1, 40), max_size=12), min_size=1, max_size=8)


def by_key(sequences: Sequences) -> dict[int, list[int]]:
    return {
        int(key): sequences.items[begin:end].tolist()
        for key, begin, end in zip(sequences.keys, sequences.offsets, sequences.offsets[1:], strict=False)
    }


@settings(max_examples=40, deadline=None)
@given(HISTORIES, st.integers(2, 5), st.floats(0, 0.9), st.sampled_from(["items", "users"]))
def test_a_market_sees_only_its_own_and_the_shared_part_of_the_training_data(
    histories: list[list[int]], count: int, shared: float, by: str
) -> None:
    whole, config = from_lists(histories), MarketsConfig(count=count, shared=shared, by=by, seed=3)
    owner_of_item = dict(enumerate(owners(torch.arange(41), config).tolist()))
    owner_of_user = dict(zip(whole.keys.tolist(), owners(whole.keys, config).tolist(), strict=True))
    for market in range(1, count + 1):
        expected = {}
        for key, history in by_key(whole).items():
            known = history[:-1] if len(history) >= 3 else []
            if by == "users":
                kept = known if owner_of_user[key] == market else []
            else:
                kept = [item for item in known if owner_of_item[item] in (0, market)]
            if kept:
                expected[key] = kept
        part = seen_by_market(whole, market, config)
        assert by_key(part) == expected
        trained = by_key(training_part(part))
        for key, history in by_key(whole).items():
            known, kept = history[:-1], expected.get(key, [])
            validates = len(history) >= 3 and bool(kept) and (by == "users" or owner_of_item[known[-1]] in (0, market))
            learned = kept[: len(kept) - validates] if len(kept) >= 2 else []
            assert trained.get(key, []) == learned, "all but what validates the whole"


def test_a_market_knows_who_validates() -> None:
    whole = replace(from_lists([[1, 2, 3, 4], [5, 6, 7, 8]]), validates=torch.tensor([True, False]))
    config = MarketsConfig(count=2, shared=0.5, seed=3)
    parts = [seen_by_market(whole, market, config) for market in (1, 2)]
    assert not any(part.tests for part in parts), "what tests the whole is gone already"
    validating, other = whole.keys.tolist()
    for part in parts:
        mine = dict(zip(part.keys.tolist(), part.validates.tolist(), strict=True))
        assert mine[validating] == (by_key(part)[validating][-1] == 3)
        assert not mine[other]
    assert sum(part.validates.sum() for part in parts) >= 1
    assert {item for part in parts for item in part.items.tolist()} == {1, 2, 3, 5, 6, 7}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 3)), max_size=9), min_size=1, max_size=6))
def test_a_market_of_a_column_sees_its_own_interactions(histories: list[list[tuple[int, int]]]) -> None:
    plain = from_lists([[item for item, _ in history] for history in histories])
    markets = torch.tensor([market for history in histories for _, market in history], dtype=torch.int16)
    whole = replace(plain, markets=markets)
    config = MarketsConfig(by="column", names=("uk", "de", "fr"))  # in the log de, fr, uk are 1, 2, 3
    for number, code in ((1, 3), (2, 1), (3, 2)):
        expected = {}
        for key, history in zip(whole.keys.tolist(), histories, strict=True):
            kept = [item for item, market in history[:-1] if market == code]
            if len(history) >= 3 and kept:
                expected[key] = kept
        assert by_key(seen_by_market(whole, number, config)) == expected
    assert by_key(seen_by_base(whole, replace(config, base="first"))) == by_key(seen_by_market(whole, 1, config))


def test_the_base_sees_all_markets_old_half_their_shared_items_or_the_first_market() -> None:
    whole = from_lists([[1, 2, 3, 4, 5, 6, 7], [8, 9, 10]])
    [first, second] = by_key(whole)
    assert by_key(seen_by_base(whole, MarketsConfig(base="old"))) == {first: [1, 2, 3], second: [8]}
    config = MarketsConfig(base="shared", shared=0.5, seed=1)
    shared = set((owners(torch.arange(1, 11), config) == 0).nonzero().squeeze(1).add(1).tolist())
    assert {item for history in by_key(seen_by_base(whole, config)).values() for item in history} == shared & {
        1, 2, 3, 4, 5, 6, 8, 9,
    }  # fmt: skip
    config = MarketsConfig(base="first")
    assert by_key(seen_by_base(whole, config)) == by_key(seen_by_market(whole, 1, config))


def test_shares_of_markets_are_about_equal_and_follow_from_the_seed() -> None:
    items = torch.arange(1, 20_001)
    config = MarketsConfig(count=4, shared=0.2, seed=5)
    sizes = torch.bincount(owners(items, config), minlength=5) / len(items)
    assert sizes.tolist() == pytest.approx([0.2] * 5, abs=0.01)
    assert torch.equal(owners(items, config), owners(items, MarketsConfig(count=4, shared=0.2, seed=5)))
    assert not torch.equal(owners(items, config), owners(items, MarketsConfig(count=4, shared=0.2, seed=6)))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"count": 1}, "markets.count must be between 2 and 64, got 1"),
        ({"shared": 1.0}, "markets.shared must be at least 0 and below 1"),
        ({"by": "shops"}, "markets.by must be one of items, users, column, got 'shops'"),
        ({"by": "column"}, r"markets.names and markets.by column need each other, got by column and names \[\]"),
        ({"names": ("a", "b")}, r"need each other, got by items and names \['a', 'b'\]"),
        ({"by": "column", "names": ("a",)}, "the number of markets.names must be between 2 and 64, got 1"),
        ({"by": "column", "names": ("de", False)}, "markets.names must be text, got false; put it in quotes"),
        ({"by": "column", "names": ("a b", "a/b")}, "markets.names must differ in letters and digits"),
        ({"by": "column", "names": ("a", "b"), "base": "shared"}, "markets.base shared needs markets.by items"),
        ({"by": "users", "base": "shared"}, "markets.base shared needs markets.by items"),
    ],
)
def test_impossible_settings_are_refused(settings: dict, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        MarketsConfig(**settings)
