"""What a model would recommend: each user's best items. Never users × items at once.

Shapes: U users, B users of a chunk, L columns, V items.
"""

import torch
from torch import Tensor

from raymerge.errors import InputError
from raymerge.evaluation.negatives import Ragged
from raymerge.evaluation.scoring import (
    MEMORY_BYTES,
    CatalogueScores,
    States,
    excluded_pairs,
    masked,
    user_chunks,
    working_dtype,
)
from raymerge.models.recommender import Recommender, evaluation_mode


def top_k(
    module: Recommender,
    histories: Tensor,
    k: int,
    *,
    exclude: Ragged | None = None,
    offered: Tensor | None = None,
    memory_bytes: int = MEMORY_BYTES,
) -> tuple[Tensor, Tensor]:
    """The k best items of each user, best first, and their scores: int64[U, k], float[U, k].

    Equal scores are ordered by item index. Where fewer than k items are left that are `offered` (bool[V], all if None)
    and not in `exclude`, the rest of the row is item 0 with score −inf. Streams like `full_ranks`. Raises InputError
    unless 1 <= k <= V.
    """
    with evaluation_mode(module):
        num_items = len(module.head()[0])
        if not 1 <= k <= num_items:
            raise InputError(f"between 1 and {num_items} items can be recommended (the catalogue), got {k}")
        states = States.of(module, histories, memory_bytes=memory_bytes)
        items = torch.zeros(len(states), k, dtype=torch.int64)
        scores = torch.zeros(len(states), k, dtype=working_dtype(states.hidden))
        missing = None if offered is None else ~offered.to(states.hidden.device)
        for rows, blocks in user_chunks(states, memory_bytes):
            best = _top_of_chunk(blocks, k, missing, *excluded_pairs(exclude, rows, states.hidden.device))
            items[rows], scores[rows] = (part.cpu() for part in best)
    return items, scores


def _top_of_chunk(
    blocks: CatalogueScores, k: int, missing: Tensor | None, users: Tensor, items: Tensor
) -> tuple[Tensor, Tensor]:
    """Best k of each block, then of all: int64[B, k], scores [B, k]; a stable sort keeps the lower index first."""
    found = []
    for first, scores in masked(blocks, missing, users, items):
        columns, values = _select(scores, min(k, scores.shape[1]))
        found.append((columns + first + 1, values))
    best_items, best = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
    order = best.argsort(dim=1, descending=True, stable=True)[:, :k]
    best_items, best = best_items.gather(1, order), best.gather(1, order)
    return best_items.masked_fill_(best == -torch.inf, 0), best


def _select(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Columns of the k highest scores, the leftmost of equal ones, in column order: int64[B, k], [B, k].

    `topk` promises no order among equal scores, so rows whose k-th and next scores are equal are chosen again.
    """
    values, columns = scores.topk(min(k + 1, scores.shape[1]), dim=1)
    tied = (
        values[:, k - 1] == values[:, -1] if values.shape[1] > k else torch.zeros_like(values[:, 0], dtype=torch.bool)
    )
    columns = columns[:, :k]
    columns[tied] = _leftmost(scores[tied], values[tied, k - 1 : k], k)
    columns = columns.sort(dim=1).values
    return columns, scores.gather(1, columns)


def _leftmost(scores: Tensor, threshold: Tensor, k: int) -> Tensor:
    """Columns of the k highest scores if the k-th, the threshold [B, 1], occurs in further columns: int64[B, k]."""
    above, equal = scores > threshold, scores == threshold
    wanted = k - above.sum(dim=1, keepdim=True)
    chosen = above | (equal & (equal.cumsum(dim=1, dtype=torch.int32) <= wanted))
    return chosen.nonzero()[:, 1].view(-1, k)
