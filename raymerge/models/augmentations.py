"""Views of a history for contrastive learning: crop, mask and reorder (CL4SRec, arXiv 2010.14395).

Whole batches at once, on the histories' device, without a loop over users. Histories and views are int64[B, W] padded
on the left. A row's draws depend only on its seed (int64[B]), never on other rows of the batch.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from raymerge.models.draws import hashed, uniform
from raymerge.registry import Registry
from raymerge.splitmix import Stream


class Augmentation(Protocol):
    """Changes the given share of each history: int64[B, W] → int64[B, W]."""

    def __call__(self, histories: Tensor, seeds: Tensor, *, share: float, mask_index: int) -> Tensor:
        """A row's draws follow from its seed, int64[B]; `mask_index` stands for a hidden item."""


AUGMENTATIONS: Registry[Augmentation] = Registry("augmentation")


def lengths(histories: Tensor) -> Tensor:
    """Items in each history: int64[B, W] → int64[B]."""
    return (histories != 0).sum(1)


def column_draws(histories: Tensor, seeds: Tensor, stream: Stream) -> Tensor:
    """A number in [0, 1) for each column, the same for any padding on the left: float64[B, W]."""
    from_the_end = torch.arange(histories.shape[1] - 1, -1, -1, device=histories.device)
    return uniform(stream, seeds[:, None], from_the_end)


def _columns(histories: Tensor) -> Tensor:
    return torch.arange(histories.shape[1], device=histories.device)


def _share_of(histories: Tensor, share: float) -> Tensor:
    """⌊share · n⌋ of each history of n items: int64[B]; .59 of 100 are 59, although .59 · 100 is a little less."""
    return (lengths(histories).double() * share + 1e-9).long()


def _segment(histories: Tensor, seeds: Tensor, size: Tensor) -> Tensor:
    """First column of a run of `size` items, uniform over all possible places: int64[B]."""
    spare = lengths(histories) - size
    return histories.shape[1] - spare - size + (uniform(Stream.VIEW_START, seeds) * (spare + 1)).long()


@AUGMENTATIONS.register("crop")
def crop(histories: Tensor, seeds: Tensor, *, share: float, mask_index: int = 0) -> Tensor:
    """Keep a run of ⌊share · n⌋ successive items (at least one) of each history of n."""
    size = _share_of(histories, share).clamp(min=1)
    columns, width = _columns(histories), histories.shape[1]
    source = columns + (_segment(histories, seeds, size) + size - width)[:, None]
    kept = columns >= (width - size)[:, None]
    return torch.where(kept, histories.gather(1, source.clamp(min=0)), 0)


@AUGMENTATIONS.register("mask")
def mask(histories: Tensor, seeds: Tensor, *, share: float, mask_index: int) -> Tensor:
    """Replace ⌊share · n⌋ items of each history, drawn without replacement, by the mask."""
    keys = column_draws(histories, seeds, Stream.VIEW_COLUMNS).masked_fill(histories == 0, 2.0)
    chosen = keys.argsort(1).argsort(1) < _share_of(histories, share)[:, None]
    return histories.masked_fill(chosen, mask_index)


@AUGMENTATIONS.register("reorder")
def reorder(histories: Tensor, seeds: Tensor, *, share: float, mask_index: int = 0) -> Tensor:
    """Shuffle a run of ⌊share · n⌋ successive items of each history."""
    size = _share_of(histories, share)[:, None]
    first = _segment(histories, seeds, size[:, 0])[:, None]
    columns = _columns(histories)
    inside = (columns >= first) & (columns < first + size)
    keys = torch.where(inside, first + size * column_draws(histories, seeds, Stream.VIEW_COLUMNS), columns)
    return histories.gather(1, keys.argsort(dim=1, stable=True))


def two_views(
    histories: Tensor, seeds: Tensor, *, shares: Sequence[tuple[str, float]], mask_index: int
) -> tuple[Tensor, Tensor]:
    """Two views of each history, by two different augmentations if there are several.

    `shares` names each augmentation to draw from, with its share of the history.
    """
    numbers = torch.arange(len(shares), device=histories.device)
    order = uniform(Stream.VIEW_KIND, seeds[:, None], numbers).argsort(1)
    views = []
    for view in range(2):
        view_seeds = hashed(Stream.VIEW, seeds, view)
        made = [AUGMENTATIONS[name](histories, view_seeds, share=s, mask_index=mask_index) for name, s in shares]
        kind = order[:, view % len(shares)]
        views.append(torch.stack(made)[kind, torch.arange(len(kind), device=kind.device)])
    return views[0], views[1]
