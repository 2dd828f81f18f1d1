"""Items that a history has already: how much likelier, or less likely, they are to come again.

Nobody watches a film twice in most logs of films, while most songs that are played were played before. A product of
state and embedding can hardly say either: what was just seen is most like what comes next. So a head may hold one
direction more, r [d], with which an item of the history scores h·(w + r) + b instead of h·w + b; how much that is
depends on the state. (That repeats follow laws of their own: Anderson et al., WWW 2014; RepeatNet, arXiv 1812.02646,
has a second decoder for them.)

Shapes: B rows, T columns, Q columns to be guessed, V items, d dimensions. Index 0 is padding, 1..V the items, V + 1 the
mask; columns of the scores count from 0, column j for item j + 1.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Repeats:
    """Pairs (row, column), no two alike and in order of their rows: items that rows of states have had before."""

    rows: Tensor  # int64[n]
    columns: Tensor  # int64[n]
    direction: Tensor  # r [d]

    def among(self, columns: Tensor) -> "Repeats":
        """Those among some columns of the catalogue, int64[m] in order, as places among these."""
        places = torch.searchsorted(columns, self.columns).clamp_(max=len(columns) - 1)
        found = columns[places] == self.columns
        return replace(self, rows=self.rows[found], columns=places[found])


def repeat_direction(module: object) -> Tensor | None:
    """r [d] of a module that has a method `repeats` and makes use of it; None of any other."""
    own = getattr(module, "repeats", None)
    return None if own is None else own()


def input_rows(module: object, histories: Tensor) -> Tensor:
    """What a module reads of histories: the index at each of its input positions, 0 at padding: int64[B, T].

    What the module's own `input_rows` says, or the histories as they are.
    """
    own = getattr(module, "input_rows", None)
    return histories if own is None else own(histories)


def distinct_columns(inputs: Tensor, num_items: int) -> Tensor:
    """The column of each item of a row, once, and −1 elsewhere: int64[B, T] → int64[B, T], in no order of time.

    >>> distinct_columns(torch.tensor([[0, 3, 1, 3, 5]]), num_items=4)  # 5 is the mask
    tensor([[-1,  0,  2, -1, -1]])
    """
    ordered = inputs.sort(dim=1).values
    other = (ordered < 1) | (ordered > num_items)
    other[:, 1:] |= ordered[:, 1:] == ordered[:, :-1]
    return (ordered - 1).masked_fill_(other, -1)


def repeats_before(inputs: Tensor, asked: Tensor, direction: Tensor, *, num_items: int, causal: bool) -> Repeats:
    """The items of `inputs` int64[B, T] that can be seen from each place that is `asked` bool[B, Q], row by row.

    Of a causal encoder place t (Q = T) sees columns up to t, else each place sees all. Memory: B·(Q + T)·T.
    """
    earlier = torch.ones(inputs.shape[1], inputs.shape[1], dtype=torch.bool, device=inputs.device).tril(-1)
    again = ((inputs[:, :, None] == inputs[:, None]) & earlier).any(2)
    items = inputs.masked_fill(again | (inputs > num_items), 0)[:, None].expand(-1, asked.shape[1], -1)
    items = (items * ~earlier.t() if causal else items)[asked]
    rows, places = items.nonzero(as_tuple=True)
    return Repeats(rows, items[rows, places] - 1, direction)
