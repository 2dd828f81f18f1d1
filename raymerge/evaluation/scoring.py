"""Scores over a whole catalogue within a byte budget: histories → hidden states → blocks of scores.

Shapes: U users, B users of a chunk, L columns, d dimensions, V items, C columns of a block.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from raymerge.errors import ScoreError
from raymerge.evaluation.negatives import Ragged, user_item_pairs
from raymerge.models.recommender import Recommender
from raymerge.models.repeats import add_shift, contains, distinct_columns, input_rows, repeat_direction

MEMORY_BYTES = 256 << 20
USERS_AT_ONCE = 64, 256  # fewer waste the matrix product, more no longer fit the caches


def encode(module: Recommender, weight: Tensor, histories: Tensor, *, memory_bytes: int = MEMORY_BYTES) -> Tensor:
    """Hidden states [U, d] of histories int64[U, L], like the head's weight [V, d]; call it in `evaluation_mode`.

    Users are sorted by length and common left padding is cut off: short histories are cheap, and since positions count
    from the end the states are the same. The bytes per user are estimated for a transformer.
    """
    length, dim = histories.shape[1], weight.shape[1]
    real_lengths = length - (histories != 0).int().argmax(dim=1)
    order = real_lengths.argsort(stable=True)
    bytes_per_user = weight.element_size() * length * (32 * dim + 4 * length)
    users = max(1, min(USERS_AT_ONCE[1], memory_bytes // bytes_per_user))
    states = weight.new_empty(len(histories), dim)
    for first in range(0, len(order), users):
        rows = order[first : first + users]
        trimmed = histories[rows, length - int(real_lengths[rows[-1]]) :].to(weight.device)
        states[rows.to(weight.device)] = module.encode(module.embed(trimmed), trimmed)
    return states


@dataclass(frozen=True)
class States:
    """A module's states of U users: `hidden` [U, d] of `histories` int64[U, L], and the shift of scores of repeats.

    With its head, `weight` [V, d] and `bias` [V] or None, which an ensemble would build anew each time. The shift is
    computed on access, so take a chunk of users first.
    """

    module: Recommender
    weight: Tensor
    bias: Tensor | None
    histories: Tensor
    hidden: Tensor

    @classmethod
    def of(cls, module: Recommender, histories: Tensor, *, memory_bytes: int = MEMORY_BYTES) -> "States":
        """Encode histories; call it in `evaluation_mode`."""
        weight, bias, _ = module.head()
        return cls(module, weight, bias, histories, encode(module, weight, histories, memory_bytes=memory_bytes))

    @property
    def num_items(self) -> int:
        """V, the number of items."""
        return len(self.weight)

    def __len__(self) -> int:
        return len(self.hidden)

    def __getitem__(self, users: slice) -> "States":
        return replace(self, histories=self.histories[users], hidden=self.hidden[users])

    @cached_property
    def shift(self) -> Tensor | None:
        """What the scores of items in the history gain, in `working_dtype`: [U], or None."""
        direction, dtype = repeat_direction(self.module), working_dtype(self.hidden)
        return None if direction is None else self.hidden.to(dtype) @ direction.to(dtype)

    @cached_property
    def _had(self) -> Tensor:
        rows = input_rows(self.module, self.histories.to(self.hidden.device))
        return distinct_columns(rows, self.num_items).sort(dim=1).values

    def shift_block(self, scores: Tensor, first: int) -> None:
        """Add the shift to the scores [U, C] of a block that begins at column `first`."""
        if self.shift is not None:
            add_shift(scores, self._had, self.shift, first=first)

    def shift_columns(self, scores: Tensor, columns: Tensor) -> None:
        """Add the shift to the scores [U, n] of each user's own columns int64[U, n]."""
        if self.shift is not None:
            scores += contains(self._had, columns) * self.shift[:, None]


class CatalogueScores:
    """Scores of B users, block by block over the catalogue: yields (first column, scores [B, C]), repeatedly.

    If one block holds the catalogue, it is computed once and kept, including what the caller writes into it; otherwise
    every pass recomputes the blocks, and nothing larger than one of them is held.
    """

    def __init__(self, states: States, columns: int) -> None:
        self.users = len(states)
        self._states, self._columns = states, columns
        self._whole = [(0, self._block(0))] if columns >= states.num_items else None

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        if self._whole is not None:
            return iter(self._whole)
        return ((first, self._block(first)) for first in range(0, self._states.num_items, self._columns))

    def of(self, items: Tensor) -> Tensor:
        """Score of one item per user, taken from the blocks: int64[B] → [B]."""
        users = torch.arange(self.users, device=items.device)
        scores = self._states.hidden.new_empty(self.users, dtype=working_dtype(self._states.hidden))
        for first, block in self:
            rows, columns = inside_block(block, first, users, items)
            scores[rows] = block[rows, columns]
        return scores

    def _block(self, first: int) -> Tensor:
        states, columns = self._states, slice(first, first + self._columns)
        dtype = working_dtype(states.weight)
        bias = None if states.bias is None else states.bias[columns].to(dtype)
        scores = F.linear(states.hidden.to(dtype), states.weight[columns].to(dtype), bias)
        states.shift_block(scores, first)
        return finite(scores)


def inside_block(block: Tensor, first: int, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of the pairs (user, item) inside the block that begins at column `first`."""
    columns = items - 1 - first
    inside = (columns >= 0) & (columns < block.shape[1])
    return users[inside], columns[inside]


def masked(
    blocks: CatalogueScores, missing: Tensor | None, users: Tensor, items: Tensor
) -> Iterator[tuple[int, Tensor]]:
    """The blocks, with −inf for the pairs (user, item) and for the `missing` items bool[V], if any."""
    for first, scores in blocks:
        scores[inside_block(scores, first, users, items)] = -torch.inf
        if missing is not None:
            scores.masked_fill_(missing[first : first + scores.shape[1]], -torch.inf)
        yield first, scores


def excluded_pairs(ragged: Ragged | None, rows: slice, device: torch.device) -> tuple[Tensor, Tensor]:
    """Pairs (row of the chunk, item) to leave out of the ranking, none for None: two int64[pairs]."""
    if ragged is None:
        nothing = torch.empty(0, dtype=torch.int64, device=device)
        return nothing, nothing
    users, items = user_item_pairs(ragged, rows.start, rows.stop)
    return users.to(device), items.to(device)


def user_chunks(states: States, memory_bytes: int) -> Iterator[tuple[slice, CatalogueScores]]:
    """(users, scores) for chunks of users, with blocks whose scores and masks fit memory_bytes."""
    entry_bytes = 3 * working_dtype(states.weight).itemsize  # a score, its comparison masks and a running count
    fewest, most = USERS_AT_ONCE
    users = max(fewest, min(most, memory_bytes // (states.num_items * entry_bytes)))
    users = max(1, min(users, len(states)))
    columns = max(1, min(states.num_items, memory_bytes // (users * entry_bytes)))
    for first in range(0, len(states), users):
        rows = slice(first, min(first + users, len(states)))
        yield rows, CatalogueScores(states[rows], columns)


def working_dtype(tensor: Tensor) -> torch.dtype:
    """At least float32: half precision would tie items that the weights distinguish."""
    return torch.promote_types(tensor.dtype, torch.float32)


def finite(scores: Tensor) -> Tensor:
    """The scores unchanged, or ScoreError; the extrema show any NaN or infinity without a mask of their size."""
    extrema = torch.stack(torch.aminmax(scores))
    if not bool(extrema.isfinite().all()):
        raise ScoreError(
            f"the model's scores must be finite numbers, but their extrema are {extrema.tolist()}: its training has "
            "diverged; train it again with a lower learning rate"
        )
    return scores
