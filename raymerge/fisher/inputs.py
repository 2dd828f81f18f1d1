"""The input side: from gradients of the embedded input to the rows of the table that was read."""

from dataclasses import dataclass

from torch import Tensor

from raymerge.fisher.model import HeadNames
from raymerge.fisher.output import add_tied_rows
from raymerge.fisher.rows import InputRows
from raymerge.fisher.sums import Sink


@dataclass(frozen=True)
class InputSide:
    """Where gradients of the embedded input go, for G groups of S users.

    `read` names the embedding whose `rows` the embedded input is as they are, None if it is something else. `mixing`
    [G, S, K, P] and `hidden` [G, S, d] (over the temperature) give the output part of the same rows if the head is
    tied.
    """

    sums: Sink
    head: HeadNames
    read: str | None
    rows: InputRows
    mixing: Tensor | None
    hidden: Tensor

    @property
    def table(self) -> str | None:
        """Name of the embedding of which `rows` are rows."""
        return self.head.weight if self.head.tied else self.read

    def add_positions(self, gradients: Tensor, groups: slice, probes: slice) -> None:
        """Gradients [G, T, P, d] at all T = S·L positions of a run of groups, for a run of probes."""
        self.add_rows(self.rows.part(groups).add_up(gradients), groups, probes)

    def add_rows(self, gradients: Tensor, groups: slice, probes: slice) -> None:
        """The same, of the K distinct rows: [G, K, P, d]."""
        if self.table is None or not self.sums.wants(self.table):
            return
        mixing = None if self.mixing is None else self.mixing[groups, ..., probes]
        add_tied_rows(self.sums, self.table, self.rows.part(groups), gradients, mixing, self.hidden[groups])
