"""Scores over a whole catalogue within a byte budget: histories → hidden states → blocks of scores.

Shapes: U users, B users of a chunk, L columns, d dimensions, V items, C columns of a block.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raymerge.errors import ScoreError
from raymerge.models.repeats import distinct_columns, input_rows, repeat_direction

MEMORY_BYTES = 256 << 20
USERS_AT_ONCE = 64, 256  # fewer waste the matrix product, more no longer fit the caches


class Recommender(Protocol):
    """What is ranked: any torch module with these three parts (`raymerge.models.encoder.SequenceEncoder` is one).

    It may also have `repeats`, and then `input_rows` (see `raymerge.models.repeats`).
    """

    def embed(self, histories: Tensor) -> Tensor:
        """int64[B, L] → embedded input x."""

    def encode(self, x: Tensor, histories: Tensor) -> Tensor:
        """Embedded input → hidden state at the prediction position [B, d]."""

    def head(self) -> tuple[Tensor, Tensor | None, str | None]:
        """Output weights [V, d], bias [V] or None, name of the embedding they are tied to or None."""

    def modules(self) -> Iterator[nn.Module]:
        """Itself and every module inside."""


@contextmanager
def evaluation_mode(module: Recommender) -> Iterator[None]:
    """Eval mode and no gradients inside; afterwards each submodule is in the mode in which it was."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        for part, _ in modes:
            part.training = False
        with torch.no_grad():
            yield
    finally:
        for part, training in modes:
            part.training = training


def encode(module: Recommender, histories: Tensor, *, memory_bytes: int = MEMORY_BYTES) -> Tensor:
    """Hidden states [U, d] of histories int64[U, L], on the module's device; call it in `evaluation_mode`.

    Users of like length go together and common left padding is cut off: short histories are cheap, and since
    positions count from the end the states are the same. The bytes that a user takes are estimated for a transformer.
    """
    weight = module.head()[0]
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
    """What a module makes of U users: `hidden` [U, d] and, if it scores items of the history otherwise, which and how.

    `seen` int64[U, L'] names these by column, −1 for none, and `shift` [U] is what each of them gains.
    """

    hidden: Tensor
    seen: Tensor | None = None
    shift: Tensor | None = None

    @classmethod
    def of(cls, module: Recommender, histories: Tensor, *, memory_bytes: int = MEMORY_BYTES) -> "States":
        """Encode histories int64[U, L]; call it in `evaluation_mode`."""
        hidden, direction = encode(module, histories, memory_bytes=memory_bytes), repeat_direction(module)
        if direction is None:
            return cls(hidden)
        seen = distinct_columns(input_rows(module, histories), len(module.head()[0]))
        dtype = working_dtype(hidden)
        return cls(hidden, seen, hidden.to(dtype) @ direction.to(dtype))

    def __len__(self) -> int:
        return len(self.hidden)

    def __getitem__(self, users: slice) -> "States":
        return States(self.hidden[users], *(None if x is None else x[users] for x in (self.seen, self.shift)))

    def add_shift(self, scores: Tensor, first: int) -> None:
        """To scores [U, C] of a block that begins at column `first`, in place."""
        if self.seen is None or self.shift is None:
            return
        seen = self.seen.to(scores.device) - first
        users, places = ((seen >= 0) & (seen < scores.shape[1])).nonzero(as_tuple=True)
        scores.view(-1).index_add_(0, users * scores.shape[1] + seen[users, places], self.shift[users])

    def shift_of(self, columns: Tensor) -> Tensor | float:
        """What each user's own columns int64[U, n] gain: [U, n]."""
        if self.seen is None or self.shift is None:
            return 0.0
        seen, users = self.seen.to(columns.device), torch.arange(len(columns), device=columns.device)[:, None]
        span = 1 + max(int(columns.max()), int(seen.max())) if len(columns) else 1
        had = torch.isin(columns + users * span, (seen + users * span)[seen >= 0])
        return had * self.shift[:, None]


class CatalogueScores:
    """Scores of B users, block by block over the catalogue: yields (first column, scores [B, C]), more than once.

    If one block holds the catalogue, it is computed once and kept, with what the caller writes into it; otherwise
    every pass computes the blocks anew, and nothing larger than one of them is held.
    """

    def __init__(self, states: States, weight: Tensor, bias: Tensor | None, columns: int) -> None:
        self.users = len(states)
        self._states, self._weight, self._bias, self._columns = states, weight, bias, columns
        self._whole = [(0, self._block(0))] if columns >= len(weight) else None

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        if self._whole is not None:
            return iter(self._whole)
        return ((first, self._block(first)) for first in range(0, len(self._weight), self._columns))

    def of(self, items: Tensor) -> Tensor:
        """Score of one item a user, taken from the blocks: int64[B] → [B]."""
        users = torch.arange(self.users, device=items.device)
        scores = self._states.hidden.new_empty(self.users, dtype=working_dtype(self._states.hidden))
        for first, block in self:
            rows, columns = inside_block(block, first, users, items)
            scores[rows] = block[rows, columns]
        return scores

    def _block(self, first: int) -> Tensor:
        columns = slice(first, first + self._columns)
        dtype = working_dtype(self._weight)
        bias = None if self._bias is None else self._bias[columns].to(dtype)
        scores = F.linear(self._states.hidden.to(dtype), self._weight[columns].to(dtype), bias)
        self._states.add_shift(scores, first)
        return finite(scores)


def inside_block(block: Tensor, first: int, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
    """Those pairs (user, item) that lie in the block that begins at column `first`, as its rows and columns."""
    columns = items - 1 - first
    inside = (columns >= 0) & (columns < block.shape[1])
    return users[inside], columns[inside]


def user_chunks(module: Recommender, states: States, memory_bytes: int) -> Iterator[tuple[slice, CatalogueScores]]:
    """(users, scores) of chunks of users, with the block size that keeps scores and masks in memory_bytes."""
    weight, bias, _ = module.head()
    entry_bytes = 3 * working_dtype(weight).itemsize  # a score, its comparison masks and a running count
    fewest, most = USERS_AT_ONCE
    users = max(fewest, min(most, memory_bytes // (len(weight) * entry_bytes)))
    users = max(1, min(users, len(states)))
    columns = max(1, min(len(weight), memory_bytes // (users * entry_bytes)))
    for first in range(0, len(states), users):
        rows = slice(first, min(first + users, len(states)))
        yield rows, CatalogueScores(states[rows], weight, bias, columns)


def working_dtype(tensor: Tensor) -> torch.dtype:
    """At least float32: half precision would tie items that the weights tell apart."""
    return torch.promote_types(tensor.dtype, torch.float32)


def finite(scores: Tensor) -> Tensor:
    """The scores unchanged, or ScoreError; the extrema show any NaN or infinity without a mask of their size."""
    extrema = torch.stack(torch.aminmax(scores))
    if not bool(extrema.isfinite().all()):
        raise ScoreError(
            f"the model's scores must be finite numbers, found {extrema.tolist()} as their extrema: its training has "
            "diverged; train it again with a lower learning rate"
        )
    return scores
