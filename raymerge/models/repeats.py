"""Items already in the history: how much likelier, or less likely, they are to come again.

In most logs of films nobody watches a film twice, while most songs that are played were played before. A product of
state and embedding can hardly express either: what was just seen is most like what comes next. So a model may have one
more direction, r [d]: an item that its encoder reads scores h·(w + r) + b instead of h·w + b, by an amount that depends
on the state. (Repeats follow laws of their own: Anderson et al., WWW 2014; RepeatNet, arXiv 1812.02646, has a second
decoder for them.)

A module declares this by an attribute `repeat_direction`, a whole parameter or a constant; its head alone then does not
give its scores. It reads the last items of a history, up to its maximal length: earlier items gain nothing.

Shapes: B rows, T columns, n places, V items, d dimensions. Index 0 is padding, 1..V the items, V + 1 the mask; columns
of the scores count from 0, column j for item j + 1. `had` int64[·, T] has columns, none twice in a row, −1 for none.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


def repeat_direction(module: object) -> Tensor | None:
    """r [d], if the module has one."""
    found = getattr(module, "repeat_direction", None)
    return found if isinstance(found, Tensor) else None


def input_rows(module: object, histories: Tensor) -> Tensor:
    """What a module reads of histories: the index at each of its input positions, 0 at padding: int64[B, T].

    By the module's own `input_rows`, or the histories unchanged.
    """
    own = getattr(module, "input_rows", None)
    return histories if own is None else own(histories)


def first_in_row(values: Tensor) -> Tensor:
    """Which entries are the first of their value in the row: int64[B, T] → bool[B, T]."""
    ordered, order = values.sort(dim=1, stable=True)
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    return torch.empty_like(first).scatter_(1, order, first)


def distinct_columns(inputs: Tensor, num_items: int) -> Tensor:
    """The column of each item where it first occurs in its row, −1 elsewhere: int64[B, T] → int64[B, T].

    >>> distinct_columns(torch.tensor([[0, 3, 1, 3, 5]]), num_items=4)  # 5 is the mask
    tensor([[-1,  2,  0, -1, -1]])
    """
    kept = first_in_row(inputs) & (inputs >= 1) & (inputs <= num_items)
    return torch.where(kept, inputs - 1, -1)


def contains(had: Tensor, columns: Tensor) -> Tensor:
    """Whether each row of `had`, ascending, contains each of its own columns: int64[B, m] → bool[B, m]."""
    places = torch.searchsorted(had, columns.contiguous()).clamp_(max=had.shape[1] - 1)
    return had.gather(1, places) == columns


def add_shift(scores: Tensor, had: Tensor, shift: Tensor, *, first: int = 0) -> None:
    """Add shift [B] in place to the scores [B, C] of the columns in `had`; the scores begin at column `first`."""
    places = had - first
    inside = (places >= 0) & (places < scores.shape[1])
    scores.scatter_add_(1, places * inside, shift[:, None] * inside)


@dataclass(frozen=True)
class Repeats:
    """The columns seen from each of n places: had[windows[i], : until[i] + 1]."""

    had: Tensor  # int64[B, T]
    windows: Tensor  # int64[n]
    until: Tensor  # int64[n]
    direction: Tensor  # r [d]

    @classmethod
    def before(cls, inputs: Tensor, asked: Tensor, direction: Tensor, *, num_items: int, causal: bool) -> "Repeats":
        """For the places `asked` bool[B, Q], row by row: the items of `inputs` int64[B, T] visible from each.

        In a causal encoder place t (Q = T) sees columns up to t, otherwise each place sees all.
        """
        windows, places = asked.nonzero(as_tuple=True)
        until = places if causal else torch.full_like(places, inputs.shape[1] - 1)
        return cls(distinct_columns(inputs, num_items), windows, until, direction)

    def among(self, columns: Tensor) -> "Repeats":
        """The same, as positions among some columns of the catalogue int64[m], ascending; all others are dropped."""
        places = torch.searchsorted(columns, self.had).clamp_(max=len(columns) - 1)
        return replace(self, had=torch.where(columns[places] == self.had, places, -1))

    def of(self, places: slice) -> Tensor:
        """`had` of a run of places: int64[m, T]."""
        columns = torch.arange(self.had.shape[1], device=self.had.device)
        return self.had[self.windows[places]].masked_fill_(columns > self.until[places, None], -1)
