"""Sums of squared gradients by parameter name, in float64."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class SquareSums:
    """One float64 tensor a parameter, 0 at first; what belongs to a parameter that is left out is dropped."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.tensors = {
            name: torch.zeros(p.shape, dtype=torch.float64, device=p.device) for name, p in parameters.items()
        }

    def wants(self, name: str | None) -> bool:
        """Whether this parameter is summed."""
        return name in self.tensors

    def add(self, name: str, squares: Tensor, *, first: int = 0) -> None:
        """Add squares to the rows from `first` on."""
        if name in self.tensors:
            self.tensors[name][first : first + len(squares)] += squares

    def add_rows(self, name: str, rows: Tensor, squares: Tensor) -> None:
        """Add squares [n, ...] to rows int64[n], which may repeat."""
        if name not in self.tensors:
            return
        total = self.tensors[name]
        if total.is_cuda:  # index_add_ adds in any order there
            total.index_put_((rows,), squares.to(total.dtype), accumulate=True)
        else:
            total.index_add_(0, rows, squares.to(total.dtype))

    def result(self) -> dict[str, Tensor]:
        """The sums. A sum of squares that rounding left below 0 is 0."""
        return {name: total.clamp_min_(0) for name, total in self.tensors.items()}
