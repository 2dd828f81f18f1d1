"""The input side: from gradients of the embedded input to the rows of the table that were read."""

from dataclasses import dataclass

from torch import Tensor

from raymerge.fisher.model import HeadNames
from raymerge.fisher.output import tied_row_squares
from raymerge.fisher.rows import InputRows
from raymerge.fisher.sums import Sink


@dataclass(frozen=True)
class InputSide:
    """Where gradients of the embedded input go, for G groups of S users.

    `read` names the embedding whose unchanged `rows` are the embedded input, None if it is something else. `mixing`
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
        """Name of the embedding that `rows` belong to."""
        return self.head.weight if self.head.tied else self.read

    @property
    def wanted(self) -> bool:
        """Whether there is a table whose squares are summed."""
        return self.table is not None and self.sums.wants(self.table)

    def squares_of_positions(self, gradients: Tensor, groups: slice, probes: slice) -> Tensor:
        """As `squares`, from gradients [G, T, P, d] at all T = S·L positions."""
        return self.squares(self.rows.part(groups).add_up(gradients), groups, probes)

    def squares(self, gradients: Tensor, groups: slice, probes: slice) -> Tensor:
        """Squares [G, K, d] of the distinct rows from their gradients [G, K, P, d] (overwritten).

        For a run of groups, summed over a run of probes.
        """
        mixing = None if self.mixing is None else self.mixing[groups, ..., probes]
        return tied_row_squares(gradients, mixing, self.hidden[groups])

    def add(self, squares: Tensor, groups: slice) -> None:
        """Add squares [G, K, d] of the distinct rows of a run of groups; the padding row stays 0."""
        rows = self.rows.part(groups).rows
        self.sums.add_rows(str(self.table), rows.flatten(), (squares * (rows != 0)[..., None]).flatten(0, 1))
