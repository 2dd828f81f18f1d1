"""A log with a column of markets, prepared: each interaction keeps its market, whatever is dropped around it."""

import json
from pathlib import Path
from typing import Any

import oracles_data as naive
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pyarrow import parquet as pq

from raymerge.data.cleaning import Duplicates
from raymerge.data.prepare import PrepareConfig, prepare
from raymerge.data.sequences import read_partition
from raymerge.errors import InputError


def loose(**options: Any) -> PrepareConfig:
    """Everything is kept, unless the options say otherwise."""
    return PrepareConfig(**{"min_item_count": 1, "min_user_count": 1, "partitions": 2, "market": "shop", **options})


@settings(max_examples=40, deadline=None)
@example(rows=[(0, 0, 0, "z"), (0, 0, 0, "ü"), (0, 0, 0, "z")], duplicates="keep")
@given(
    rows=st.lists(st.tuples(*[st.integers(0, 5)] * 3, st.sampled_from("üzà")), min_size=1, max_size=40),
    duplicates=st.sampled_from(["keep", "exact", "first", "last"]),
)
def test_each_interaction_keeps_its_market(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, int, int, str]], duplicates: Duplicates
) -> None:
    folder = tmp_path_factory.mktemp("prepared")
    text = "user,item,timestamp,shop\n" + "".join(",".join(map(str, row)) + "\n" for row in rows)
    (folder / "log.csv").write_text(text, encoding="utf-8")
    counts = prepare([str(folder / "log.csv")], loose(duplicates=duplicates), folder / "out")
    numbered = [(*row, line) for line, row in enumerate(rows)]  # or repetitions could not be told apart
    in_order = sorted(numbered, key=lambda row: row[2])
    apart = [naive.without_duplicates([row for row in in_order if row[3] == shop], duplicates) for shop in "üzà"]
    kept = sorted((row for rows in apart for row in rows), key=in_order.index)
    expected = {user: [row[3] for row in kept if row[0] == user] for user in {row[0] for row in kept}}
    names = json.loads((folder / "out" / "markets.json").read_text(encoding="utf-8"))
    assert names == sorted({row[3] for row in rows}) and counts["markets"] == len(names)
    found = {}
    for path in (folder / "out" / "partitions").iterdir():
        part = read_partition(str(path))
        for user, start, end in zip(part.users.to_pylist(), part.offsets, part.offsets[1:], strict=False):
            found[user] = [names[number - 1] for number in part.markets[start:end].tolist()]
    assert found == expected


def test_markets_that_are_missing_or_too_many_are_refused(tmp_path: Path) -> None:
    rows = "".join(f"{number},1,1,{'' if number % 2 else 'a'}\n" for number in range(10))
    (tmp_path / "log.csv").write_text("user,item,timestamp,shop\n" + rows)
    with pytest.raises(InputError, match=r"5 of 10 rows are bad \(bad_markets 5\)"):
        prepare([str(tmp_path / "log.csv")], loose(), tmp_path / "out")
    rows = "".join(f"1,1,1,{number}\n" for number in range(1001))
    (tmp_path / "log.csv").write_text("user,item,timestamp,shop\n" + rows)
    with pytest.raises(InputError, match=r"more than 1,000 markets \(0, 1, 2, …\); prepare.market must name"):
        prepare([str(tmp_path / "log.csv")], loose(), tmp_path / "out")


def test_markets_without_interactions_left_are_dropped(tmp_path: Path) -> None:
    shops = pa.DictionaryArray.from_arrays([1, 1, 1, 0, 3, 3], ["rare", "de", "never", "uk"])
    rows = {"user": ["a", "a", "b", "b", "a", None], "item": [1, 2, 1, 3, 1, 1], "timestamp": range(6), "shop": shops}
    pq.write_table(pa.table(rows), tmp_path / "log.parquet")
    config = loose(min_item_count=2, min_user_count=1, core="once", max_bad_share=0.5)
    counts = prepare([str(tmp_path / "log.parquet")], config, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "markets.json").read_text()) == ["de", "uk"]
    found = [read_partition(str(path)).markets.tolist() for path in (tmp_path / "out" / "partitions").iterdir()]
    assert sorted(market for part in found for market in part) == [1, 1, 2] and counts["markets"] == 2
