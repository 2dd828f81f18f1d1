"""What an objective takes and returns: a batch of windows, and the terms of its loss.

Shapes: B windows, W columns. Windows are padded on the left.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """One rank's rows of a training step."""

    windows: Tensor  # int64[B, W], each with at least 2 items, oldest first, padded on the left
    seeds: Tensor  # int64[B], which determine all of a row's random draws
    same_target: Tensor | None = None  # int64[B, W'], for each row a history followed by the same item
    offered_columns: Tensor | None = None  # int64[n], ascending, of the items to choose among; all items if None


@dataclass(frozen=True)
class Term:
    """One summand of a loss: `weight` times the mean of `count` things that sum to `total`."""

    name: str
    weight: float
    total: Tensor  # scalar
    count: Tensor  # int64 scalar
