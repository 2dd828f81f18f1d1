import itertools
from dataclasses import replace
from pathlib import Path

import oracles_data as naive
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from partitions import from_lists
from pyarrow import parquet as pq
from torch import Tensor

from raymerge.artifacts import Key, Output
from raymerge.data.sequences import (
    Items,
    Sequences,
    pad_left,
    read_items,
    read_partition,
    slices,
    write_items,
    write_partition,
)
from raymerge.data.split import (
    Examples,
    Split,
    drawn_to_validate,
    evaluated_users,
    examples,
    training_lengths,
    training_part,
)
from raymerge.errors import ArtifactError, ConfigError, InputError

HISTORIES = st.lists(st.lists(st.integers(1, 9), max_size=7), max_size=8)


def as_lists(sequences: Sequences) -> list[list[int]]:
    bounds = sequences.offsets.tolist()
    return [sequences.items[start:end].tolist() for start, end in itertools.pairwise(bounds)]


@settings(max_examples=60, deadline=None)
@given(histories=HISTORIES, split=st.sampled_from([("validation", 2), ("test", 1)]), max_length=st.integers(1, 8))
def test_examples_equal_the_naive_ones(histories: list[list[int]], split: tuple[Split, int], max_length: int) -> None:
    sequences = from_lists(histories)
    found = examples(sequences, split[0], max_length)
    expected = naive.examples(histories, split[1], max_length)
    bounds = found.seen.offsets.tolist()
    seen = [found.seen.items[start:end].tolist() for start, end in itertools.pairwise(bounds)]
    assert list(zip(found.histories.tolist(), found.targets.tolist(), seen, strict=True)) == expected
    users = [1 + place for place, history in enumerate(histories) if len(history) >= 3]
    assert found.keys.tolist() == [naive.stable_key(str(user)) for user in users]
    assert sequences.users.take(pa.array(evaluated_users(sequences, split[0]).numpy())).to_pylist() == users


@settings(max_examples=40, deadline=None)
@given(HISTORIES, st.data())
def test_where_some_users_validate_the_second_to_last_items_of_the_others_train(
    histories: list[list[int]], data: st.DataObject
) -> None:
    validates = data.draw(st.lists(st.booleans(), min_size=len(histories), max_size=len(histories)))
    sequences = replace(from_lists(histories), validates=torch.tensor(validates, dtype=torch.bool))
    for split, held_out, asked in (("validation", 2, validates), ("test", 1, None)):
        expected = [target for _, target, _ in naive.examples(histories, held_out, 5, asked)]
        assert examples(sequences, split, 5).targets.tolist() == expected
    everyone = [target for _, target, _ in naive.examples(histories, 2, 5)]
    assert examples(sequences, "validation", 5, everyone=True).targets.tolist() == everyone
    trained = [
        history[: -2 if mine else -1] if len(history) >= 3 else []
        for history, mine in zip(histories, validates, strict=True)
    ]
    assert training_lengths(sequences).tolist() == [len(history) for history in trained]
    part = training_part(sequences)
    assert as_lists(part) == [history for history in trained if history]
    assert part.validates.tolist() == [mine for mine, history in zip(validates, trained, strict=True) if history]


@settings(max_examples=40, deadline=None)
@given(HISTORIES, st.data())
def test_where_the_test_item_is_already_held_out_only_the_last_item_is_kept_from_training(
    histories: list[list[int]], data: st.DataObject
) -> None:
    validates = data.draw(st.lists(st.booleans(), min_size=len(histories), max_size=len(histories)))
    whole = replace(from_lists(histories), validates=torch.tensor(validates, dtype=torch.bool))
    part = replace(whole, tests=False)
    longer = replace(from_lists([[*history, 9] for history in histories]), validates=whole.validates)
    assert torch.equal(training_lengths(part), training_lengths(longer))
    assert as_lists(training_part(part)) == as_lists(training_part(longer))
    for everyone in (False, True):
        found, expected = (examples(one, "validation", 5, everyone=everyone) for one in (part, longer))
        assert torch.equal(found.targets, expected.targets) and torch.equal(found.histories, expected.histories)
        assert found.keys.tolist() == expected.keys.tolist()
    with pytest.raises(InputError, match="hold no test items"):
        examples(part, "test", 5)


def test_a_partition_without_test_items_reads_back_as_written(tmp_path: Path) -> None:
    for tests in (True, False):
        write_partition(replace(from_lists([[1, 2, 3]]), tests=tests), tmp_path / "part")
        assert read_partition(str(tmp_path / "part")).tests is tests


def test_about_the_given_share_of_users_validates_and_a_larger_share_includes_them() -> None:
    keys = from_lists([[]] * 4000).keys
    few, many = drawn_to_validate(keys, 0.1), drawn_to_validate(keys, 0.6)
    assert abs(int(few.sum()) - 400) < 80 and abs(int(many.sum()) - 2400) < 150
    assert (many | ~few).all() and torch.equal(drawn_to_validate(keys[5:], 0.1), few[5:])


@settings(max_examples=40, deadline=None)
@given(HISTORIES)
def test_the_training_part_is_all_but_the_last_two(histories: list[list[int]]) -> None:
    part = training_part(from_lists(histories))
    assert as_lists(part) == [history[:-2] for history in histories if len(history) >= 3]
    assert part.users.to_pylist() == [1 + place for place, history in enumerate(histories) if len(history) >= 3]
    assert len(part.keys) == len(part) == len(part.lengths)


def test_examples_have_the_documented_types_and_shapes() -> None:
    found = examples(from_lists([[1, 2, 3], [4, 5]]), "test", 5)
    assert isinstance(found, Examples) and len(found) == 1
    for tensor in (found.histories, found.targets, found.keys, found.seen.items, found.seen.offsets):
        assert tensor.dtype == torch.int64
    assert found.histories.shape == (1, 5)


def test_an_unknown_split_and_an_impossible_length_are_refused() -> None:
    with pytest.raises(ConfigError, match="split must be one of validation, test, got 'train'"):
        examples(from_lists([[1, 2, 3]]), "train", 5)
    with pytest.raises(ConfigError, match="max_length must be at least 1, got 0"):
        examples(from_lists([[1, 2, 3]]), "test", 0)


@settings(max_examples=40, deadline=None)
@given(histories=HISTORIES, width=st.integers(1, 9))
def test_padding_and_slices_equal_python_slices(histories: list[list[int]], width: int) -> None:
    sequences = from_lists(histories)
    starts, ends = sequences.offsets[:-1], sequences.offsets[1:]
    padded = pad_left(sequences.items, starts, ends, width)
    assert padded.shape == (len(histories), width) and padded.dtype == sequences.items.dtype
    assert padded.tolist() == [([0] * width + history)[-width:] for history in histories]
    items, offsets = slices(sequences.items, (starts + 1).minimum(ends), ends)
    assert items.tolist() == [item for history in histories for item in history[1:]]
    assert offsets.diff().tolist() == [max(len(history) - 1, 0) for history in histories]


def test_a_partition_reads_back_as_written(tmp_path: Path) -> None:
    table = pa.table({"user": ["a", "b"], "key": [-5, 2**62], "items": pa.array([[3, 1], []], pa.list_(pa.int32()))})
    pq.write_table(table, tmp_path / "part.parquet", row_group_size=1)
    sequences = read_partition(str(tmp_path / "part.parquet"))
    assert as_lists(sequences) == [[3, 1], []]
    assert (sequences.items.dtype, sequences.offsets.dtype, sequences.keys.dtype) == (
        torch.int32,
        torch.int64,
        torch.int64,
    )
    assert sequences.keys.tolist() == [-5, 2**62] and sequences.users.to_pylist() == ["a", "b"]


def test_validating_users_and_markets_read_back_as_written(tmp_path: Path) -> None:
    markets, validates = torch.tensor([1, 2, 1], dtype=torch.int16), torch.tensor([True, False])
    sequences = replace(from_lists([[1, 2], [3]]), markets=markets, validates=validates)
    write_partition(sequences, tmp_path / "part.parquet")
    found = read_partition(str(tmp_path / "part.parquet"))
    assert torch.equal(found.markets, markets) and torch.equal(found.validates, validates)


def test_no_altered_byte_of_an_artifact_s_partition_or_catalogue_goes_unnoticed(tmp_path: Path) -> None:
    output, key = Output(str(tmp_path / "out")), Key("prepare", {})
    with output.draft(key) as draft:
        (draft.folder / "partitions").mkdir()
        write_partition(from_lists([[1, 2], [3]]), draft.folder / "partitions" / "0.parquet")
        write_items(Items(pa.array(["a", "b", "c"]), torch.tensor([3, 0, 1])), draft.folder / "items.parquet")
    for name, read in (("partitions/0.parquet", read_partition), ("items.parquet", read_items)):
        file = Path(output.locate(key), name)
        content = file.read_bytes()
        read(str(file))
        for place in range(0, len(content), 7):
            file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
            with pytest.raises(ArtifactError, match=f"{name} was altered or truncated"):
                read(str(file))


def test_a_catalogue_next_to_the_manifest_of_another_program_is_read(tmp_path: Path) -> None:
    write_items(Items(pa.array(["a"]), torch.tensor([3])), tmp_path / "items.parquet")
    (tmp_path / "manifest.json").write_text('{"name": "something else"}')
    assert read_items(str(tmp_path / "items.parquet")).counts.tolist() == [3]


def test_a_file_put_into_an_artifact_is_refused(tmp_path: Path) -> None:
    output, key = Output(str(tmp_path / "out")), Key("prepare", {})
    with output.draft(key):
        pass
    write_items(Items(pa.array(["a"]), torch.tensor([3])), Path(output.locate(key), "items.parquet"))
    with pytest.raises(ArtifactError, match="items.parquet is not part of the artifact"):
        read_items(f"{output.locate(key)}/items.parquet")


def test_files_that_are_no_partition_or_catalogue_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    path.write_bytes(b"PAR1 and nothing more")
    with pytest.raises(ArtifactError, match="x.parquet is not as prepared"):
        read_partition(str(path))
    pq.write_table(pa.table({"user": [1]}), path)
    with pytest.raises(ArtifactError, match="x.parquet is not as prepared"):
        read_partition(str(path))
    pq.write_table(pa.table({"index": [2, 1], "item": [7, 8], "count": [1, 1]}), path)
    with pytest.raises(ArtifactError, match="does not number its items"):
        read_items(str(path))
    with pytest.raises(InputError, match="no such file"):
        read_items(str(tmp_path / "none.parquet"))


@pytest.mark.parametrize("offered", [None, torch.tensor([True, False])])
def test_a_catalogue_reads_back_as_written(tmp_path: Path, offered: Tensor | None) -> None:
    write_items(Items(pa.array(["a", "b"]), torch.tensor([3, 0]), offered), tmp_path / "items.parquet")
    found = read_items(str(tmp_path / "items.parquet"))
    assert (found.ids.to_pylist(), found.counts.tolist()) == (["a", "b"], [3, 0])
    assert found.offered is None if offered is None else torch.equal(found.offered, offered)


def test_the_catalogue_translates_own_ids_both_ways() -> None:
    for ids in ([3186, 1721, 12], ["3186", "1721", "12"]):
        items = Items(pa.array(ids), torch.tensor([5, 6, 7]))
        assert len(items) == 3
        assert items.indices(["12", " 3186 ", 1721]).tolist() == items.indices([12, 3186, "1721"]).tolist() == [3, 1, 2]
        assert items.own_ids(torch.tensor([3, 1])) == [ids[2], ids[0]]
        assert items.own_ids(items.indices([])) == []


def test_items_outside_the_catalogue_are_refused_by_name() -> None:
    items = Items(pa.array([3186, 1721]), torch.tensor([5, 6]))
    with pytest.raises(InputError, match="the catalogue of 2 items has no item '12', 'x'"):
        items.indices([1721, 12, "x"])
    with pytest.raises(InputError, match=r"item indices must be in 1\.\.2, got \[0\]"):
        items.own_ids(torch.tensor([0]))
