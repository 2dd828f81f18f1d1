"""Squared gradients of layers, for all probes of a group at once, added up while they are in cache.

Shapes: B = G·S users, L positions, P probes, i inputs and o outputs of a layer; a gradient is summed over the T = S·L
positions of a group, then squared, then summed over groups and probes.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from raymerge.fisher.scratch import Scratch
from raymerge.fisher.sums import Sink

CACHE_BYTES = 9 << 18
"""Bytes of the largest tensors held at a time: per-probe weight gradients, and cotangents of a wide layer."""

Key = tuple[str, int, int, int]


def with_one(x: Tensor) -> Tensor:
    """[..., i] → [..., i + 1]: an input that is always 1, whose weight is the bias."""
    return torch.cat([x, x.new_ones(*x.shape[:-1], 1)], dim=-1)


class Squares:
    """Collects squares in the working precision, whatever that of the products; `flush` adds them to the sums."""

    def __init__(self, sums: Sink, group_size: int, working: Tensor) -> None:
        self.sums = sums
        self.group_size = group_size
        self.dtype = working.dtype
        self.scratch = Scratch(working.device)
        self._partial: dict[Key, Tensor] = {}
        self._vectors: dict[str, Tensor] = {}

    def empty(self, name: str, *shape: int) -> Tensor:
        """Scratch memory in the working precision."""
        return self.scratch.empty(name, *shape, dtype=self.dtype)

    def linear(self, name: str, inputs: Tensor, cotangents: Tensor, *, first: int = 0) -> None:
        """Weight and bias of a linear layer (or their rows from `first` on), summed over positions as one product.

        `inputs` [B, L, i + 1] end with a 1 (see `with_one`), `cotangents` are [B, L, P, o].
        """
        a, g = self._by_group(inputs), self._by_group(cotangents)
        if a.shape[1] == 1:
            self._add(name, first, self._outer(a.to(self.dtype), g.to(self.dtype)))
            return
        probes, width = g.shape[2:]
        for some in runs(probes, a.shape[2] * width * self.dtype.itemsize):
            key = (name, first, some.stop - some.start, width)
            self._collect(key, a.transpose(1, 2), g[:, :, some].flatten(2))

    def _collect(self, key: Key, a: Tensor, g: Tensor) -> None:
        """Squares of the products of [G, i + 1, T] and [G, T, P·o]."""
        for part in runs(g.shape[0], a.shape[1] * g.shape[2] * self.dtype.itemsize):
            product = self.scratch.empty("product", part.stop - part.start, a.shape[1], g.shape[2], dtype=a.dtype)
            torch.bmm(a[part], g[part], out=product)
            product = self.scratch.cast("product", product, self.dtype)
            self._total(key, product)[: product.shape[0]].addcmul_(product, product)

    def rows(self, name: str, factors: Tensor, cotangents: Tensor, *, first: int = 0) -> None:
        """Rows of a weight without its bias: factors [B, 1, o] times cotangents [B, 1, P, i] of the whole row."""
        squares = self._outer(self._by_group(factors), self._by_group(cotangents))
        self.sums.add(name, squares, first=first)

    def vector(self, name: str, gradients: Tensor) -> None:
        """A vector [o] whose gradient at each position is [B, L, P, o]."""
        gradients = self._by_group(gradients)
        ones = gradients.new_ones(1, 1, gradients.shape[1]).expand(len(gradients), -1, -1)
        sums = torch.bmm(ones, gradients.flatten(2))  # a product reads memory faster than a sum does
        totals = sums.view(len(gradients), *gradients.shape[2:]).square_()  # [G, P, o]
        if name in self._vectors:
            self._vectors[name] += totals.sum((0, 1))
        else:
            self._vectors[name] = totals.sum((0, 1))

    def flush(self) -> None:
        """Add what was collected to the sums."""
        for (name, first, _, width), total in self._partial.items():
            self._add(name, first, total.sum(0).unflatten(1, (-1, width)).sum(1))
        for name, vector in self._vectors.items():
            self.sums.add(name, vector)
        self._partial.clear()
        self._vectors.clear()

    def _outer(self, a: Tensor, g: Tensor) -> Tensor:
        """Σ (Σ_t a_t g_tp)² over groups and probes: [G, T, i], [G, T, P, o] → [i, o]; one product if T is 1."""
        if a.shape[1] == 1:
            return a[:, 0].square().t() @ g[:, 0].square().sum(1)
        products = (a.transpose(1, 2) @ g.flatten(2)).square_()
        return products.sum(0).unflatten(1, g.shape[2:]).sum(1)

    def _add(self, name: str, first: int, squares: Tensor) -> None:
        """Squares [i + 1, o] of a weight and bias to the sums."""
        self.sums.add(name + ".weight", squares[:-1].t(), first=first)
        self.sums.add(name + ".bias", squares[-1], first=first)

    def _by_group(self, x: Tensor) -> Tensor:
        """[B, L, ...] → [G, T, ...]."""
        return x.reshape(-1, self.group_size * x.shape[1], *x.shape[2:])

    def _total(self, key: Key, like: Tensor) -> Tensor:
        """The running total of a key: [groups, i + 1, P·o], for the most groups squared at a time so far.

        A key is a layer, its first row, the number of probes squared at a time, and o.
        """
        total = self._partial.get(key, like[:0])
        if len(total) < len(like):
            total = self._partial[key] = torch.cat([total, torch.zeros_like(like[len(total) :])])
        return total


def runs(count: int, bytes_of_one: int) -> Iterator[slice]:
    """0..count in runs that fit CACHE_BYTES, the longest first."""
    step = max(1, CACHE_BYTES // bytes_of_one)
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))
