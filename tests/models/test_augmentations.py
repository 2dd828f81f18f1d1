"""Crop, mask and reorder as CL4SRec defines them, on batches with all kinds of padding."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from raymerge.models.augmentations import AUGMENTATIONS, crop, mask, reorder, two_views

MASK = 1000
BATCHES = st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=9), min_size=1, max_size=6)
SHARES = st.sampled_from([0.0, 0.2, 0.5, 0.6, 0.9, 1.0])


def padded(histories: list[list[int]]) -> Tensor:
    return torch.tensor([[0] * (9 - len(h)) + h for h in histories])


def items(view: Tensor) -> list[list[int]]:
    """Rows without their padding, which must all be on the left."""
    rows = [[item for item in row if item] for row in view.tolist()]
    assert torch.equal(padded(rows), view)
    return rows


def seeds(histories: list[list[int]], seed: int) -> Tensor:
    return torch.arange(len(histories)) * 7919 + seed


@settings(max_examples=40, deadline=None)
@given(BATCHES, SHARES, st.integers(0, 10**6))
def test_crop_keeps_a_run_of_the_share(histories: list[list[int]], share: float, seed: int) -> None:
    for history, view in zip(
        histories, items(crop(padded(histories), seeds(histories, seed), share=share)), strict=True
    ):
        assert len(view) == max(1, math.floor(share * len(history)))
        assert any(history[start : start + len(view)] == view for start in range(len(history)))


@settings(max_examples=40, deadline=None)
@given(BATCHES, SHARES, st.integers(0, 10**6))
def test_mask_hides_the_share_in_place(histories: list[list[int]], share: float, seed: int) -> None:
    views = items(mask(padded(histories), seeds(histories, seed), share=share, mask_index=MASK))
    for history, view in zip(histories, views, strict=True):
        assert view.count(MASK) == math.floor(share * len(history))
        assert all(kept in (item, MASK) for item, kept in zip(history, view, strict=True))


@settings(max_examples=40, deadline=None)
@given(BATCHES, SHARES, st.integers(0, 10**6))
def test_reorder_shuffles_one_run_of_the_share(histories: list[list[int]], share: float, seed: int) -> None:
    views = items(reorder(padded(histories), seeds(histories, seed), share=share))
    for history, view in zip(histories, views, strict=True):
        assert sorted(view) == sorted(history)
        moved = [i for i in range(len(history)) if history[i] != view[i]]
        assert not moved or moved[-1] - moved[0] < math.floor(share * len(history))


@pytest.mark.parametrize(("share", "length", "expected"), [(0.59, 100, 59), (0.53, 100, 53), (0.6, 5, 3), (0.3, 9, 2)])
def test_a_share_is_rounded_down_from_its_decimal_value(share: float, length: int, expected: int) -> None:
    [view] = items(
        mask(padded([list(range(1, length + 1))]), torch.zeros(1, dtype=torch.int64), share=share, mask_index=MASK)
    )
    assert view.count(MASK) == expected


def test_every_position_is_equally_likely() -> None:
    histories = torch.arange(1, 5).expand(6000, 4)
    row_seeds = torch.arange(6000)
    starts = torch.bincount(crop(histories, row_seeds, share=0.5)[:, -1], minlength=5)[2:]
    hidden = (mask(histories, row_seeds, share=0.25, mask_index=MASK) == MASK).sum(0)
    assert ((starts - 2000).abs() < 200).all() and ((hidden - 1500).abs() < 180).all()
    for column in reorder(histories, row_seeds, share=1).T:
        assert ((torch.bincount(column, minlength=5)[1:] - 1500).abs() < 180).all()


@pytest.mark.parametrize("names", [("crop",), ("crop", "mask"), ("crop", "mask", "reorder")])
def test_two_views_use_different_augmentations_if_there_are_several(names: tuple[str, ...]) -> None:
    histories = torch.arange(1, 9).expand(300, 8)
    shares = [(name, 0.5) for name in names]
    kinds = []
    for view in two_views(histories, torch.arange(300), shares=shares, mask_index=MASK):
        cropped, masked = (view == 0).any(1), (view == MASK).any(1)
        kinds.append(torch.where(cropped, 0, torch.where(masked, 1, 2)))
    assert len(kinds[0].unique()) == len(names)
    assert bool((kinds[0] != kinds[1]).all()) == (len(names) > 1)


def test_views_do_not_depend_on_other_rows() -> None:
    histories, row_seeds = torch.arange(1, 9).expand(5, 8), torch.arange(5)
    for augmentation in AUGMENTATIONS:
        make = AUGMENTATIONS[augmentation]
        whole = make(histories, row_seeds, share=0.5, mask_index=MASK)
        assert torch.equal(make(histories[3:4], row_seeds[3:4], share=0.5, mask_index=MASK), whole[3:4])
