"""Recommendations of a model, in the user's own item ids."""

from collections.abc import Sequence
from typing import Any

import torch

from raymerge.data.sequences import Items, bounds, pad_left
from raymerge.data.split import Seen
from raymerge.errors import InputError
from raymerge.evaluation.top_k import top_k as best_items
from raymerge.models.encoder import SequenceEncoder


def recommend(
    module: SequenceEncoder, items: Items, histories: Sequence[Sequence[int | str]], *, top_k: int, exclude_seen: bool
) -> list[dict[str, list[Any]]]:
    """The next items for each history of own ids (oldest first): `{"items": own ids, "scores": logits}`, best first.

    The model reads the last `max_length` items; `exclude_seen` leaves out all items of the history. Items that are not
    on offer are left out too, so there may be fewer than `top_k`. InputError names an empty history or an item that is
    not in the catalogue.
    """
    for position, history in enumerate(histories):
        if len(history) == 0:
            raise InputError(f"history {position} is empty; a recommendation needs at least one item")
    offsets = bounds(torch.tensor([len(history) for history in histories], dtype=torch.int64))
    known = items.indices([item for history in histories for item in history])
    rows = pad_left(known, offsets[:-1], offsets[1:], module.config.max_length)
    exclude = Seen(known, offsets) if exclude_seen else None
    best, scores = best_items(module, rows, min(top_k, len(items)), exclude=exclude, offered=items.offered)
    real = best != 0
    return [
        {"items": items.own_ids(row[kept]), "scores": score[kept].tolist()}
        for row, score, kept in zip(best, scores, real, strict=True)
    ]
