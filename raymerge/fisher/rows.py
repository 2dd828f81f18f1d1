"""Which rows of a tied embedding each group of users read, each row once.

A row that is both read (input) and scored (output) has one gradient, the sum of both parts, which are therefore added
before they are squared; so are the gradients of the positions of an item that occurs several times in a history.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from raymerge.fisher.sums import add_at_rows

PADDING = 0


@dataclass(frozen=True)
class InputRows:
    """Distinct rows of each group: `rows` int64[G, K] (0 where a group has fewer), and the slot of each position.

    `slots` int64[G, T] says which of the K slots a position belongs to (T positions of all users of a group), or is
    None if no group reads a row twice: then slot and position are the same (K = T).
    """

    rows: Tensor
    slots: Tensor | None

    @classmethod
    def of(cls, rows: Tensor) -> "InputRows":
        """From the row at each position, 0 at padding: int64[G, T]."""
        ordered, order = rows.sort(dim=1)
        new = torch.ones_like(ordered, dtype=torch.bool)
        new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
        if bool((new | (ordered == PADDING)).all()):
            return cls(rows, None)
        rank = new.cumsum(1) - 1
        distinct = rows.new_full((len(rows), int(rank.max()) + 1), PADDING).scatter_(1, rank, ordered)
        return cls(distinct, torch.empty_like(rows).scatter_(1, order, rank))

    def add_up(self, gradients: Tensor) -> Tensor:
        """Gradients of the positions [G, T, P, d] → of the distinct rows [G, K, P, d]."""
        if self.slots is None:
            return gradients
        groups, distinct = self.rows.shape
        flat = self.slots + distinct * torch.arange(groups, device=self.slots.device)[:, None]
        total = gradients.new_zeros((groups * distinct, *gradients.shape[2:]))
        add_at_rows(total, flat.flatten(), gradients.flatten(0, 1))
        return total.view(groups, distinct, *gradients.shape[2:])

    def part(self, groups: slice) -> "InputRows":
        """The rows of a run of groups."""
        return InputRows(self.rows[groups], None if self.slots is None else self.slots[groups])
