"""Items that a history has already: how much likelier, or less likely, they are to come again.

Nobody watches a film twice in most logs of films, while most songs that are played were played before. A product of
state and embedding can hardly say either: what was just seen is most like what comes next. So a model may hold one
direction more, r [d], with which an item that its encoder reads scores h·(w + r) + b instead of h·w + b; how much that
is depends on the state. (That repeats follow laws of their own: Anderson et al., WWW 2014; RepeatNet, arXiv 1812.02646,
has a second decoder for them.)

A module says so by an attribute `repeat_direction`, a whole parameter or a constant; its head alone does not give its
scores then. What it reads are the last items of a history, as many as it takes: items before these gain nothing.

Shapes: B rows, T columns, n places, V items, d dimensions. Index 0 is padding, 1..V the items, V + 1 the mask; columns
of the scores count from 0, column j for item j + 1. `had` int64[·, T] names columns, none twice in a row, −1 for none.
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

    What the module's own `input_rows` says, or the histories as they are.
    """
    own = getattr(module, "input_rows", None)
    return histories if own is None else own(histories)


def first_in_row(values: Tensor) -> Tensor:
    """Which entries have no equal to their left in the same row: int64[B, T] → bool[B, T]."""
    ordered, order = values.sort(dim=1, stable=True)
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    return torch.empty_like(first).scatter_(1, order, first)


def distinct_columns(inputs: Tensor, num_items: int) -> Tensor:
    """The column of each item where it first stands in its row, −1 elsewhere: int64[B, T] → int64[B, T].

    >>> distinct_columns(torch.tensor([[0, 3, 1, 3, 5]]), num_items=4)  # 5 is the mask
    tensor([[-1,  2,  0, -1, -1]])
    """
    kept = first_in_row(inputs) & (inputs >= 1) & (inputs <= num_items)
    return torch.where(kept, inputs - 1, -1)


def contains(had: Tensor, columns: Tensor) -> Tensor:
    """Whether each row of `had`, in ascending order, names each of its own columns: int64[B, m] → bool[B, m]."""
    places = torch.searchsorted(had, columns.contiguous()).clamp_(max=had.shape[1] - 1)
    return had.gather(1, places) == columns


def add_shift(scores: Tensor, had: Tensor, shift: Tensor, *, first: int = 0) -> None:
    """Add shift [B] to the scores [B, C] of what each row has had, in place; the scores begin at column `first`."""
    places = had - first
    inside = (places >= 0) & (places < scores.shape[1])
    scores.scatter_add_(1, places * inside, shift[:, None] * inside)


@dataclass(frozen=True)
class Repeats:
    """What each of n places has had: the columns had[windows[i], : until[i] + 1]."""

    had: Tensor  # int64[B, T]
    windows: Tensor  # int64[n]
    until: Tensor  # int64[n]
    direction: Tensor  # r [d]

    @classmethod
    def before(cls, inputs: Tensor, asked: Tensor, direction: Tensor, *, num_items: int, causal: bool) -> "Repeats":
        """Of the places `asked` bool[B, Q], row by row: the items of `inputs` int64[B, T] that can be seen from there.

        Of a causal encoder place t (Q = T) sees columns up to t, else each place sees all.
        """
        windows, places = asked.nonzero(as_tuple=True)
        until = places if causal else torch.full_like(places, inputs.shape[1] - 1)
        return cls(distinct_columns(inputs, num_items), windows, until, direction)

    def among(self, columns: Tensor) -> "Repeats":
        """The same, as places among some columns of the catalogue, int64[m] in order; others are had by nobody."""
        places = torch.searchsorted(columns, self.had).clamp_(max=len(columns) - 1)
        return replace(self, had=torch.where(columns[places] == self.had, places, -1))

    def of(self, places: slice) -> Tensor:
        """`had` of a run of places: int64[m, T]."""
        columns = torch.arange(self.had.shape[1], device=self.had.device)
        return self.had[self.windows[places]].masked_fill_(columns > self.until[places, None], -1)
