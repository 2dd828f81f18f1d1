"""Sums of squared gradients by parameter name, in float64."""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn


class Sink(Protocol):
    """Where squares go; those of parameters that are left out are dropped."""

    def wants(self, name: str | None) -> bool:
        """Whether this parameter is summed."""

    def add(self, name: str, squares: Tensor, *, first: int = 0) -> None:
        """Add squares to the rows from `first` on."""

    def add_rows(self, name: str, rows: Tensor, squares: Tensor) -> None:
        """Add squares [n, ...] to rows int64[n], which may repeat."""


def add_at_rows(total: Tensor, rows: Tensor, values: Tensor) -> None:
    """Add values [n, ...] to the rows int64[n] of a total, which may repeat; in the order given, also on a GPU."""
    if total.is_cuda:  # index_add_ adds in arbitrary order there
        total.index_put_((rows,), values, accumulate=True)
    else:
        total.index_add_(0, rows, values)


class SquareSums:
    """A Sink with one float64 tensor per parameter, initially 0."""

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
        add_at_rows(total, rows, squares.to(total.dtype))

    def result(self) -> dict[str, Tensor]:
        """The sums; where rounding left a sum of squares below 0 it is 0."""
        return {name: total.clamp_min_(0) for name, total in self.tensors.items()}


class Journal:
    """A Sink for one batch: its squares are added to the sums later, in the order of the batches."""

    def __init__(self, sums: SquareSums) -> None:
        self._sums = sums
        self._parts: dict[tuple[str, int, int], Tensor] = {}
        self._rows: list[tuple[str, Tensor, Tensor]] = []

    def wants(self, name: str | None) -> bool:
        """Whether this parameter is summed."""
        return self._sums.wants(name)

    def add(self, name: str, squares: Tensor, *, first: int = 0) -> None:
        """Add squares to the rows from `first` on."""
        key = (name, first, len(squares))
        if key in self._parts:
            self._parts[key] += squares
        elif self.wants(name):
            self._parts[key] = squares.to(torch.float64, copy=True)

    def add_rows(self, name: str, rows: Tensor, squares: Tensor) -> None:
        """Add squares [n, ...] to rows int64[n], which may repeat."""
        self._rows.append((name, rows, squares))

    def hand_on(self) -> None:
        """Add everything to the sums."""
        for (name, first, _), squares in self._parts.items():
            self._sums.add(name, squares, first=first)
        for name, rows, squares in self._rows:
            self._sums.add_rows(name, rows, squares)
