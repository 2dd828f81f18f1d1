import hashlib
import itertools
import tracemalloc
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import oracles_data as naive
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from partitions import concatenate
from pyarrow import parquet as pq

from raymerge.data.cleaning import Duplicates
from raymerge.data.prepare import Core, PrepareConfig, prepare
from raymerge.data.sequences import Items, read_items, read_partition, write_items
from raymerge.data.spill import Spill, partition_of
from raymerge.errors import ConfigError, InputError


def write_csv(path: Path, rows: Iterable[Sequence]) -> str:
    path.write_text("user,item,timestamp\n" + "".join(",".join(map(str, row)) + "\n" for row in rows))
    return str(path)


def loose(**options: Any) -> PrepareConfig:
    """Everything is kept, unless the options say otherwise."""
    return PrepareConfig(**{"min_item_count": 1, "min_user_count": 1, "partitions": 2, **options})


def prepared(folder: Path) -> tuple[dict, dict]:
    """Histories by user and (index, count) by item, as prepared."""
    parts = [read_partition(str(path)) for path in sorted((folder / "partitions").iterdir())]
    items = read_items(str(folder / "items.parquet"))
    whole = concatenate(parts)
    bounds = whole.offsets.tolist()
    histories = [whole.items[start:end].tolist() for start, end in itertools.pairwise(bounds)]
    catalogue = dict(zip(items.ids.to_pylist(), enumerate(items.counts.tolist(), start=1), strict=True))
    return dict(zip(whole.users.to_pylist(), histories, strict=True)), catalogue


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("options", [{"core": "once", "min_user_count": 3}, {"core": "iterated", "min_user_count": 5}])
def test_movielens_1m_has_the_published_counts(
    real_data: Callable[[str], str], tmp_path: Path, options: dict[str, Any]
) -> None:
    source = real_data("ml-1m/interactions.parquet")
    counts = prepare([source], PrepareConfig(user="user_id", item="item_id", **options), tmp_path)
    assert (counts["users"], counts["items"], counts["interactions"]) == (6040, 3416, 999_611)
    assert (counts["rows"], counts["rare"], counts["bad_ids"]) == (1_000_209, 598, 0)
    histories, catalogue = prepared(tmp_path)
    assert sum(map(len, histories.values())) == 999_611
    assert sum(count for _, count in catalogue.values()) == 999_611 - 2 * 6040
    first = pq.read_table(source, filters=[("user_id", "=", 1)])["item_id"].to_pylist()
    assert histories[1] == [catalogue[item][0] for item in first if item in catalogue]


def test_amazon_beauty_has_the_published_counts(real_data: Callable[[str], str], tmp_path: Path) -> None:
    source = real_data("beauty/Beauty.txt")
    counts = prepare([source], PrepareConfig(), tmp_path)
    assert (counts["users"], counts["items"], counts["interactions"]) == (22_363, 12_101, 198_502)
    histories, _ = prepared(tmp_path)
    with open(source, encoding="utf-8") as lines:
        assert histories == {int(user): list(map(int, items)) for user, *items in map(str.split, lines)}


ROWS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 5), st.integers(0, 4)), min_size=1, max_size=50)


@settings(max_examples=60, deadline=None)
@given(
    rows=ROWS,
    duplicates=st.sampled_from(["keep", "exact", "first", "last"]),
    kind=st.sampled_from(["once", "iterated"]),
    least=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    partitions=st.integers(1, 4),
)
def test_partitions_equal_the_naive_ones(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[int, int, int]],
    duplicates: Duplicates,
    kind: Core,
    least: tuple[int, int],
    partitions: int,
) -> None:
    expected = naive.prepare(rows, duplicates=duplicates, kind=kind, min_item=least[0], min_user=least[1])
    folder = tmp_path_factory.mktemp("prepared")
    config = PrepareConfig(
        duplicates=duplicates, core=kind, min_item_count=least[0], min_user_count=least[1], partitions=partitions
    )
    source = write_csv(folder / "log.csv", rows)
    if not expected[0]:
        with pytest.raises(InputError, match="lower prepare.min_item_count and prepare.min_user_count"):
            prepare([source], config, folder / "out")
        return
    counts = prepare([source], config, folder / "out")
    assert prepared(folder / "out") == expected
    assert counts["users"] == len(expected[0]) and counts["items"] == len(expected[1])
    assert counts["rows"] == len(rows) == counts["interactions"] + counts["duplicates"] + counts["rare"]


def test_exact_duplicates_need_times(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text("1 5 5 6 5 7\n")
    with pytest.raises(InputError, match=r"log\.txt has no times.*set prepare.duplicates to keep"):
        prepare([str(log)], PrepareConfig(duplicates="exact", format="sequences"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_given_catalogue_keeps_its_indices_and_other_items_are_dropped(tmp_path: Path) -> None:
    first = write_csv(tmp_path / "first.csv", [(1, item, time) for time, item in enumerate([30, 10, 20, 30, 10])])
    least = {"min_item_count": 1, "min_user_count": 1}
    prepare([first], PrepareConfig(**least), tmp_path / "first")
    second = write_csv(tmp_path / "second.csv", [(2, item, time) for time, item in enumerate([20, 99, 10, 20, 98])])
    config = PrepareConfig(min_item_count=5, min_user_count=1, catalogue=str(tmp_path / "first"))
    counts = prepare([second], config, tmp_path / "second")
    assert (counts["items"], counts["interactions"], counts["unknown_items"]) == (3, 3, 2)
    ours, theirs = (pq.read_table(tmp_path / name / "items.parquet") for name in ("second", "first"))
    assert ours.select(["index", "item"]).equals(theirs.select(["index", "item"]))
    assert ours["count"].to_pylist() == [0, 1, 0], "the last two interactions do not count"
    assert ours["offered"].to_pylist() == [True, True, False]
    assert (counts["offered"], "offered" in theirs.column_names) == (2, False)
    assert prepared(tmp_path / "second")[0] == {2: [2, 1, 2]}


def test_a_given_catalogue_need_not_be_sorted_but_has_each_item_once(tmp_path: Path) -> None:
    source = write_csv(tmp_path / "log.csv", [(1, item, time) for time, item in enumerate("amz")])
    for name, ids in (("some", ["z", "a", "m"]), ("twice", ["z", "a", "z"])):
        write_items(Items(pa.array(ids), torch.ones(3, dtype=torch.int64)), tmp_path / f"{name}.parquet")
    counts = prepare([source], loose(catalogue=str(tmp_path / "some.parquet")), tmp_path / "out")
    assert counts["unknown_items"] == 0
    assert prepared(tmp_path / "out")[0] == {1: [2, 3, 1]}
    with pytest.raises(InputError, match="lists 3 items, but only 2 different ones"):
        prepare([source], loose(catalogue=str(tmp_path / "twice.parquet")), tmp_path / "refused")


def test_a_log_without_items_of_the_catalogue_is_refused_with_an_example(tmp_path: Path) -> None:
    first = write_csv(tmp_path / "first.csv", [(1, item, item) for item in range(5)])
    prepare([first], PrepareConfig(min_item_count=1, min_user_count=1), tmp_path / "first")
    titles = write_csv(tmp_path / "titles.csv", [(1, f"title {item}", item) for item in range(5)])
    with pytest.raises(InputError, match=r"lists no item of the log, such as 'title \d': prepare.item must name"):
        prepare([titles], PrepareConfig(catalogue=str(tmp_path / "first")), tmp_path / "second")


def test_the_result_is_byte_identical_from_csv_text_numbers_and_several_files(tmp_path: Path) -> None:
    random = np.random.default_rng(7)
    rows = np.stack([random.integers(1, 90, 3000), random.integers(1, 40, 3000), random.integers(0, 99, 3000)], axis=1)
    sources = {
        "csv": [write_csv(tmp_path / "log.csv", rows.tolist())],
        "numbers": [str(tmp_path / "numbers.parquet")],
        "text": [str(tmp_path / "text.parquet")],
        "two": [write_csv(tmp_path / f"{k}.csv", part.tolist()) for k, part in enumerate(np.split(rows, [1100]))],
    }
    table = pa.table(dict(zip(("user", "item", "timestamp"), rows.T, strict=True)))
    pq.write_table(table, tmp_path / "numbers.parquet", row_group_size=500)
    pq.write_table(
        table.cast(pa.schema([(name, pa.string()) for name in table.column_names])), tmp_path / "text.parquet"
    )
    for name, files in sources.items():
        prepare(files, PrepareConfig(), tmp_path / "out" / name)
    results = [digests(tmp_path / "out" / name) for name in sources]
    assert len(results[0]) == 9 and all(result == results[0] for result in results)


def test_partitions_hold_the_schema_that_others_rely_on(tmp_path: Path) -> None:
    prepare([write_csv(tmp_path / "log.csv", [("b", "x", 1), ("a", "y", 1), ("a", "x", 2)])], loose(), tmp_path)
    parts = [pq.read_table(path) for path in sorted((tmp_path / "partitions").iterdir())]
    assert [path.name for path in sorted((tmp_path / "partitions").iterdir())] == [
        "part-00000.parquet",
        "part-00001.parquet",
    ]
    for number, part in enumerate(parts):
        assert part.schema.names == ["user", "key", "items"]
        assert part.schema.types[:2] == [pa.string(), pa.int64()]
        assert part.schema.field("items").type.value_type == pa.int32()
        keys = part["key"].to_numpy()
        assert keys.tolist() == [naive.stable_key(user) for user in part["user"].to_pylist()]
        assert (partition_of(keys, 2) == number).all()
        assert part["user"].to_pylist() == sorted(part["user"].to_pylist())
    items = pq.read_table(tmp_path / "items.parquet")
    assert items.schema.types == [pa.int32(), pa.string(), pa.int64()]
    assert {path.name for path in tmp_path.iterdir()} == {"log.csv", "partitions", "items.parquet"}


def test_whole_number_ids_are_ordered_by_value_and_text_ids_by_bytes(tmp_path: Path) -> None:
    rows = [(user, item, 1) for user in (10, 9, 100) for item in (3, 20, 100)]
    prepare([write_csv(tmp_path / "n.csv", rows)], loose(partitions=1), tmp_path / "n")
    prepare([write_csv(tmp_path / "t.csv", [*rows, ("x", "y", 1)])], loose(partitions=1), tmp_path / "t")
    assert [list(part) for part in prepared(tmp_path / "n")] == [[9, 10, 100], [3, 20, 100]]
    assert [list(part) for part in prepared(tmp_path / "t")] == [["10", "100", "9", "x"], ["100", "20", "3", "y"]]


def test_order_is_by_time_and_among_equal_times_by_position_in_the_log(tmp_path: Path) -> None:
    first = write_csv(tmp_path / "1.csv", [(1, 5, 9), (1, 4, 7), (1, 3, 7.5), (1, 6, 7)])
    second = write_csv(tmp_path / "2.csv", [(1, 2, 7), (1, 1, "1970-01-01T00:00:08")])
    prepare([first, second], loose(), tmp_path / "timed")
    assert prepared(tmp_path / "timed")[0] == {1: [4, 6, 2, 3, 1, 5]}
    prepare([second, first], loose(timestamp=None), tmp_path / "untimed")
    assert prepared(tmp_path / "untimed")[0] == {1: [2, 1, 5, 4, 3, 6]}


def test_bad_rows_are_counted_by_kind_and_refused_above_the_share(tmp_path: Path) -> None:
    rows = [(user, item, 1) for user in range(9) for item in range(10)]
    bad = [("", 1, 1), (1, " ", 1), (1, 1, "soon"), (1, 1, ""), (1, 1), ("user", "item", "timestamp")]
    source = write_csv(tmp_path / "log.csv", rows + bad)
    counts = prepare([source], loose(max_bad_share=0.07), tmp_path / "out")
    assert counts == {
        "files": 1, "rows": 96, "malformed_rows": 1, "bad_ids": 2, "bad_timestamps": 3, "bad_markets": 0,
        "unknown_items": 0, "duplicates": 0, "rare": 0,
        "users": 9, "items": 10, "interactions": 90, "partitions": 2, "validation_users": 9,
    }  # fmt: skip
    assert list(prepared(tmp_path / "out")[1]) == list(range(10))
    match = (
        r"6 of 96 rows are bad \(malformed_rows 1, bad_ids 2, bad_timestamps 3\), more than prepare.max_bad_share=0.01"
    )
    with pytest.raises(InputError, match=match):
        prepare([source], loose(), tmp_path / "refused")
    assert list((tmp_path / "refused").iterdir()) == []


def test_some_of_many_users_validate_and_counts_are_of_training_interactions(tmp_path: Path) -> None:
    rows = [(user, (user + step) % 50, step) for user in range(400) for step in range(6)]
    source = write_csv(tmp_path / "log.csv", rows)
    counts = prepare([source], loose(validation_users=100), tmp_path / "some")
    whole = concatenate([read_partition(str(path)) for path in sorted((tmp_path / "some" / "partitions").iterdir())])
    drawn = int(whole.validates.sum())
    assert counts["validation_users"] == drawn and 60 < drawn < 140
    histories, catalogue = prepared(tmp_path / "some")
    trained = [
        item
        for history, validates in zip(histories.values(), whole.validates.tolist(), strict=True)
        for item in history[: -2 if validates else -1]
    ]
    assert all(count == trained.count(index) for index, count in catalogue.values())
    again = prepare([source], loose(validation_users=100, partitions=5), tmp_path / "again")
    assert again["validation_users"] == drawn, "whoever is drawn is so in any number of partitions"
    for number in (None, 400):
        assert prepare([source], loose(validation_users=number), tmp_path / str(number))["validation_users"] == 400
    assert digests(tmp_path / "None") == digests(tmp_path / "400")


def test_nobody_drawn_to_validate_is_an_error(tmp_path: Path) -> None:
    source = write_csv(tmp_path / "log.csv", [(user, item, 1) for user in range(100, 140) for item in range(3)])
    with pytest.raises(InputError, match="of 40 users none was drawn to validate: raise prepare.validation_users"):
        prepare([source], loose(validation_users=1), tmp_path / "out")


def test_a_log_of_only_bad_rows_is_refused(tmp_path: Path) -> None:
    source = write_csv(tmp_path / "log.csv", [("", "", "")])
    with pytest.raises(InputError, match="all 1 rows are bad"):
        prepare([source], loose(max_bad_share=1.0), tmp_path / "out")


def test_unreadable_logs_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    good = write_csv(tmp_path / "good.csv", [(1, 1, 1)])
    other = tmp_path / "other.csv"
    other.write_text("who,item,timestamp\n1,1,1\n")
    empty = tmp_path / "empty.csv"
    empty.touch()
    for source, match in (
        (str(tmp_path / "none.csv"), "no such file"),
        (str(other), "no column"),
        (str(empty), "empty"),
    ):
        with pytest.raises(InputError, match=match):
            prepare([good, source], loose(), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="has no rows"):
        prepare([write_csv(tmp_path / "header.csv", [])], loose(), tmp_path / "out")


def test_a_folder_and_a_glob_stand_for_their_files(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    for k in range(3):
        write_csv(tmp_path / "log" / f"part-{k}.csv", [(k, item, item) for item in range(4)])
    assert prepare([str(tmp_path / "log")], loose(), tmp_path / "a")["files"] == 3
    assert prepare([str(tmp_path / "log" / "part-[01].csv")], loose(), tmp_path / "b")["users"] == 2


def test_progress_goes_through_all_stages_and_completes_each(tmp_path: Path) -> None:
    calls = []
    source = write_csv(tmp_path / "log.csv", [(user, item, 1) for user in range(5) for item in range(5)])
    prepare([source, source], loose(), tmp_path / "out", progress=lambda *call: calls.append(call))
    assert list(dict.fromkeys(what for what, _, _ in calls)) == ["read", "sort", "filter", "write"]
    last = {what: (done, total) for what, done, total in calls}
    assert all(done == total for done, total in last.values())


def test_more_partitions_than_users_leave_empty_ones(tmp_path: Path) -> None:
    source = write_csv(tmp_path / "log.csv", [(user, item, 1) for user in range(50) for item in range(3)])
    counts = prepare([source], loose(partitions=90), tmp_path / "out")
    assert (counts["users"], counts["partitions"]) == (50, 90)
    parts = [read_partition(str(path)) for path in sorted((tmp_path / "out" / "partitions").iterdir())]
    assert len(parts) == 90 and sum(map(len, parts)) == 50
    assert min(map(len, parts)) == 0


def test_there_may_be_more_partitions_than_open_files(tmp_path: Path) -> None:
    spill = Spill(tmp_path, 5000)
    users = pa.array([str(user) for user in range(3000)])
    for time in (1, 0):
        codes = np.arange(3000)
        columns = [codes.astype(np.int32), np.full(3000, time), np.zeros(3000), np.zeros(3000, np.int16)]
        spill.append(users, codes, columns)
    rows = pa.concat_tables([spill.take(partition) for partition in range(5000)])
    assert sorted(rows["item"].to_pylist()) == sorted([*range(3000)] * 2)
    assert rows.filter(pa.array(rows["item"].to_numpy() == 7))["whole"].to_pylist() == [1, 0]
    assert list(tmp_path.iterdir()) == []


def test_memory_is_bounded_by_a_partition_and_not_by_the_log(tmp_path: Path) -> None:
    peaks = [peak_of_preparing(users, partitions=users // 250, folder=tmp_path) for users in (4000, 16_000)]
    assert peaks[1] < 1.5 * peaks[0]


def peak_of_preparing(users: int, *, partitions: int, folder: Path) -> int:
    """Most bytes held by numpy and Arrow together while a log of 50 interactions per user is prepared."""
    table = pa.table({"user": np.repeat(np.arange(users), 50), "item": np.tile(np.arange(50), users)})
    pq.write_table(table, folder / f"{users}.parquet", row_group_size=20_000)
    del table
    before, arrow = pa.total_allocated_bytes(), []
    tracemalloc.start()
    prepare(
        [str(folder / f"{users}.parquet")],
        loose(timestamp=None, partitions=partitions),
        folder / str(users),
        progress=lambda *_: arrow.append(pa.total_allocated_bytes() - before),
    )
    peak = tracemalloc.get_traced_memory()[1] + max(arrow)
    tracemalloc.stop()
    return peak


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"min_item_count": 0}, "prepare.min_item_count must be at least 1, got 0"),
        ({"validation_users": 0}, "prepare.validation_users must be at least 1 or null, got 0"),
        ({"min_user_count": -3}, "prepare.min_user_count must be at least 1, got -3"),
        ({"partitions": 0}, "prepare.partitions must be between 1 and 65,536, got 0"),
        ({"max_bad_share": 1.5}, "prepare.max_bad_share must be between 0 and 1, got 1.5"),
        ({"core": "twice"}, "prepare.core must be one of iterated, once, got 'twice'"),
        ({"duplicates": "some"}, "prepare.duplicates must be one of keep, exact, first, last, got 'some'"),
        ({"format": "xls"}, "unknown format 'xls'"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        PrepareConfig(**options)
