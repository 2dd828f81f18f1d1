"""Negatives for sampled ranking: drawn per user, the same on any machine and in any batch.

Shapes: U users, C users of a chunk, V items, n negatives per user.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from raymerge.errors import InputError
from raymerge.evaluation.draws import open_uniform
from raymerge.models.repeats import first_in_row
from raymerge.splitmix import Stream

DRAWS_PER_NEGATIVE = 4
CHUNK_ENTRIES = 1 << 21


class Ragged(Protocol):
    """Items of each user: those of user i are items[offsets[i]:offsets[i + 1]]."""

    @property
    def items(self) -> Tensor:
        """Item indices, integer[total]."""

    @property
    def offsets(self) -> Tensor:
        """Where each user's items begin, and the end: int64[U + 1]."""


def user_item_pairs(ragged: Ragged, first: int, last: int) -> tuple[Tensor, Tensor]:
    """Pairs (user − first, item) of users first..last − 1: two int64[pairs]."""
    offsets = ragged.offsets[first : last + 1]
    users = torch.arange(last - first, device=offsets.device).repeat_interleave(offsets.diff())
    return users, ragged.items[int(offsets[0]) : int(offsets[-1])].to(torch.int64)


def check_items(what: str, items: Tensor, num_items: int) -> None:
    """Raise InputError unless all items are in 1..V."""
    if not items.numel():
        return
    low, high = int(items.min()), int(items.max())
    if low < 1 or high > num_items:
        raise InputError(f"{what} must be item indices in 1..{num_items}, found {low if low < 1 else high}")


def draw_negatives(
    keys: Tensor, seen: Ragged, targets: Tensor, num_items: int, n: int, seed: int, counts: Tensor | None = None
) -> Tensor:
    """Draw for each user n distinct items that are neither seen nor the target: int64[U, n].

    Items are drawn one after the other without replacement, uniformly, or with chances in proportion to `counts`
    (int64[V], item j at j − 1; an item of count 0 is never drawn). A user's negatives depend only on the seed, the key
    (int64[U]), the seen items and the target. If fewer than n items can be drawn the rest of the row is 0, and
    `sampled_ranks` ranks among those that exist. All tensors are on the CPU.

    A user's first 4·n numbers are used for rejection sampling, O(n log n) for any catalogue; users who are not done by
    then (having seen most of what is drawn) get the rest from a race of all items, O(V) per user. Both follow the law
    of successive draws, since the race continues from the items accepted so far. Memory is bounded: users are drawn
    for in chunks. Raises InputError for arguments that do not match.
    """
    _check(keys, seen, targets, num_items, n, counts)
    chances = torch.ones(num_items, dtype=torch.int64) if counts is None else counts.to(torch.int64)
    chunk = max(1, CHUNK_ENTRIES // max(1, DRAWS_PER_NEGATIVE * n))
    chunks = (
        _Chunk(keys[first : first + chunk], *_excluded(seen, targets, first, chunk), chances, seed)
        for first in range(0, len(keys), chunk)
    )
    rows = [_draw_chunk(one, n) for one in chunks]
    return torch.cat(rows) if rows else torch.zeros(0, n, dtype=torch.int64)


@dataclass(frozen=True)
class _Chunk:
    """Users' keys int64[C], the pairs (users, items) that must not be drawn, and the items' chances int64[V]."""

    keys: Tensor
    users: Tensor
    items: Tensor
    chances: Tensor
    seed: int


def _check(keys: Tensor, seen: Ragged, targets: Tensor, num_items: int, n: int, counts: Tensor | None) -> None:
    if not len(keys) == len(targets) == len(seen.offsets) - 1:
        raise InputError(
            f"keys, targets and seen must be of the same users, got {len(keys)}, {len(targets)} "
            f"and {len(seen.offsets) - 1}"
        )
    if n < 1:
        raise InputError(f"at least 1 negative must be drawn, got {n}")
    check_items("seen items", seen.items, num_items)
    check_items("targets", targets, num_items)
    if counts is not None and len(counts) != num_items:
        raise InputError(f"popularity counts must be given for all {num_items} items, got {len(counts)}")
    if counts is not None and (int(counts.min()) < 0 or not counts.any()):
        raise InputError(f"popularity counts must be at least 0 and not all 0, found {int(counts.min())}")


def _excluded(seen: Ragged, targets: Tensor, first: int, chunk: int) -> tuple[Tensor, Tensor]:
    """Pairs (row, item) that must not be drawn for the users of a chunk: seen items and targets."""
    targets = targets[first : first + chunk]
    users, items = user_item_pairs(seen, first, first + len(targets))
    return torch.cat([users, torch.arange(len(targets))]), torch.cat([items, targets])


def _draw_chunk(chunk: _Chunk, n: int) -> Tensor:
    """Negatives of one chunk: int64[C, n]."""
    drawn = _draw_with_replacement(chunk, DRAWS_PER_NEGATIVE * n)
    accepted = ~_among(drawn, chunk) & first_in_row(drawn)
    place = accepted.cumsum(1) - 1
    accepted &= place < n
    negatives = torch.zeros(len(chunk.keys), n, dtype=torch.int64)
    rows, columns = accepted.nonzero(as_tuple=True)
    negatives[rows, place[rows, columns]] = drawn[rows, columns]
    race_at_once = max(1, CHUNK_ENTRIES // len(chunk.chances))
    for unfinished in (negatives[:, -1] == 0).nonzero()[:, 0].split(race_at_once):
        negatives[unfinished] = _race(negatives, unfinished, chunk)
    return negatives


def _draw_with_replacement(chunk: _Chunk, draws: int) -> Tensor:
    """Items drawn in proportion to their chances, by inversion of the cumulative counts: int64[C, draws]."""
    cumulated = chunk.chances.cumsum(0)
    numbers = open_uniform(chunk.seed, Stream.RANKED_NEGATIVES, chunk.keys[:, None], torch.arange(draws))
    positions = (numbers * int(cumulated[-1])).to(torch.int64)
    return torch.searchsorted(cumulated, positions, right=True).clamp_(max=len(cumulated) - 1) + 1


def _among(drawn: Tensor, chunk: _Chunk) -> Tensor:
    """Which of the drawn items int64[C, draws] their users must not draw: bool[C, draws]."""
    stride = len(chunk.chances) + 1
    pairs = (chunk.users * stride + chunk.items).sort().values
    wanted = torch.arange(len(drawn))[:, None] * stride + drawn
    return pairs[torch.searchsorted(pairs, wanted).clamp_(max=len(pairs) - 1)] == wanted


def _race(negatives: Tensor, rows: Tensor, chunk: _Chunk) -> Tensor:
    """Fill the zeros of negatives[rows] with the items that arrive first at exponential times: int64[rows, n].

    An item's time has the rate of its chance, so the order of arrival is that of successive draws (Efraimidis and
    Spirakis, "Weighted random sampling with a reservoir", 2006). The numbers follow those used for rejection.
    """
    kept, num_items = negatives[rows], len(chunk.chances)
    counters = torch.arange(1, num_items + 1) + DRAWS_PER_NEGATIVE * kept.shape[1]
    numbers = open_uniform(chunk.seed, Stream.RANKED_NEGATIVES, chunk.keys[rows][:, None], counters)
    times = -numbers.log_() / chunk.chances  # chance 0: never
    row_of_user = torch.full((len(chunk.keys),), -1).index_put_((rows,), torch.arange(len(rows)))
    local = row_of_user[chunk.users]
    times[local[local >= 0], chunk.items[local >= 0] - 1] = torch.inf
    taken_rows, taken_columns = kept.nonzero(as_tuple=True)
    times[taken_rows, kept[taken_rows, taken_columns] - 1] = torch.inf
    arrival, winners = times.topk(min(kept.shape[1], num_items), dim=1, largest=False)
    arrived = torch.where(arrival.isinf(), 0, winners + 1)
    return _append(kept, arrived)


def _append(kept: Tensor, arrived: Tensor) -> Tensor:
    """Append the arrived items, in order, to the rows of kept: both int64 with zeros last."""
    place = (kept != 0).sum(1, keepdim=True) + torch.arange(arrived.shape[1])
    fits = place < kept.shape[1]
    rows, columns = fits.nonzero(as_tuple=True)
    kept[rows, place[rows, columns]] = arrived[rows, columns]
    return kept
