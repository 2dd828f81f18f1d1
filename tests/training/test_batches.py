"""Windows and batches: what they cover, and that splitting over ranks does not change them."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles_training import window_count
from partitions import dealt, from_lists, random_histories

from raymerge.data.sequences import Sequences
from raymerge.models.batch import Batch
from raymerge.training.batches import Windows, bucket_steps, epoch_batches, make_windows, plan_epoch

CPU = torch.device("cpu")


def windows_of(parts: list[Sequences], width: int = 6, stride: int = 5, last_only: bool = False) -> Windows:
    return make_windows(parts, width=width, stride=stride, last_only=last_only, device=CPU)


def batches_of(windows: Windows, *, steps: int, bucket: int = 16, seed: int = 0, epoch: int = 0) -> list[Batch]:
    return list(epoch_batches(windows, plan_epoch(windows, steps=steps, bucket=bucket, seed=seed, epoch=epoch)))


def rows_of(batch: Batch) -> list[tuple[int, ...]]:
    return [(int(s), *(i for i in row if i)) for s, row in zip(batch.seeds, batch.windows.tolist(), strict=True)]


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 9), st.integers(1, 9), st.integers(0, 10**6))
def test_windows_are_contiguous_runs_of_the_training_part(width: int, stride: int, seed: int) -> None:
    histories = random_histories(8, 1000, longest=40, seed=seed)
    windows = windows_of(dealt(histories, 3), width, stride)
    expected = sum(window_count(len(h) - 2, width=width, stride=stride) for h in histories)
    assert len(windows) == expected
    found = [list(row[1:]) for batch in batches_of(windows, steps=4, seed=seed) for row in rows_of(batch)]
    assert len(found) == expected
    for row in found:
        sources = [h[:-2] for h in histories if any(h[i : i + len(row)] == row for i in range(len(h) - 1 - len(row)))]
        assert any(len(row) == min(width, len(source)) for source in sources)


def test_windows_reach_the_second_to_last_item_of_users_who_do_not_validate() -> None:
    validates = torch.tensor([True, False])
    part = replace(from_lists([[1, 2, 3, 4, 5], [6, 7, 8, 9]]), validates=validates)
    rows = [row[1:] for batch in batches_of(windows_of([part], last_only=True), steps=2) for row in rows_of(batch)]
    assert sorted(rows) == [(1, 2, 3), (6, 7, 8)]


def test_over_the_epochs_every_item_is_seen_and_windows_end_everywhere() -> None:
    history = list(range(1, 31))
    windows = windows_of([from_lists([history])], width=6, stride=5)
    seen, ends = set(), set()
    for epoch in range(60):
        rows = [row[1:] for batch in batches_of(windows, steps=2, epoch=epoch) for row in rows_of(batch)]
        seen |= {item for row in rows for item in row}
        ends |= {row[-1] for row in rows}
    assert seen == set(range(1, 29)) and ends == set(range(6, 29))


def test_last_windows_only() -> None:
    histories = random_histories(20, 50, longest=30, shortest=4, seed=0)
    windows = windows_of(dealt(histories, 2), last_only=True)
    rows = [row[1:] for batch in batches_of(windows, steps=3) for row in rows_of(batch)]
    assert sorted(rows) == sorted(tuple(h[:-2][-6:]) for h in histories)


@pytest.mark.parametrize("split", [[[0, 1, 2, 3]], [[0, 1], [2, 3]], [[3, 0], [1], [2]], [[0, 1, 2, 3], []]])
def test_batches_do_not_depend_on_how_partitions_are_held(split: list[list[int]]) -> None:
    parts = dealt(random_histories(60, 50, longest=40, seed=1), 4)
    alone = batches_of(windows_of(parts), steps=7, epoch=3)
    ranks = [batches_of(windows_of([parts[p] for p in own]), steps=7, epoch=3) for own in split]
    for step, expected in enumerate(alone):
        together = [row for rank in ranks for row in rows_of(rank[step])]
        assert sorted(together) == sorted(rows_of(expected))


@pytest.mark.parametrize(("size", "partitions", "share"), [(65, 8, 0.88), (8, 8, 0.88), (65, 64, 0.84)])
def test_batches_are_even_with_little_padding(size: int, partitions: int, share: float) -> None:
    parts = dealt(random_histories(2000, 50, longest=30, shortest=4, seed=2), partitions)
    windows, bucket = windows_of(parts, width=20, stride=20), bucket_steps(partitions=partitions, batch_size=size)
    batches = batches_of(windows, steps=-(-len(windows) // size), bucket=bucket)
    sizes = torch.tensor([len(batch.seeds) for batch in batches])
    assert int(sizes.max() - sizes.min()) <= max(8, partitions // 3)
    columns = sum(batch.windows.numel() for batch in batches)
    useful = sum(int((batch.windows != 0).sum()) for batch in batches)
    assert useful < 0.78 * 20 * int(sizes.sum()) and useful > share * columns
    assert all(bool((batch.windows[:, -1] > 0).all()) for batch in batches)


def test_small_partitions_together_leave_no_step_empty() -> None:
    parts = dealt(random_histories(300, 50, longest=5, shortest=4, seed=4), 100)
    assert min(len(batch.seeds) for batch in batches_of(windows_of(parts), steps=10)) > 0


def test_epochs_and_seeds_differ_and_repeat() -> None:
    windows = windows_of(dealt(random_histories(40, 50, longest=40, seed=5), 2))
    first = [rows_of(batch) for batch in batches_of(windows, steps=5)]
    assert first == [rows_of(batch) for batch in batches_of(windows, steps=5)]
    assert first != [rows_of(batch) for batch in batches_of(windows, steps=5, epoch=1)]
    assert first != [rows_of(batch) for batch in batches_of(windows, steps=5, seed=1)]


def test_users_with_one_item_to_train_on_are_left_out() -> None:
    windows = windows_of([from_lists([[1], [1, 2], [1, 2, 3], [4, 5, 6, 7]])])
    assert [row[1:] for batch in batches_of(windows, steps=1) for row in rows_of(batch)] == [(4, 5)]
