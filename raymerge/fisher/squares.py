"""Squared gradients of layers, for all probes of a group at once, added up while a cache holds them.

Shapes: B = G·S users, L positions, P probes, i inputs and o outputs of a layer; a gradient is summed over the T = S·L
positions of a group, then squared, then summed over groups and probes.
"""

import torch
from torch import Tensor

from raymerge.fisher.sums import Sink

PRODUCT_BYTES = 2 << 20
"""Bytes of per-probe weight gradients that exist at a time: they are squared and gone while a cache holds them."""

Key = tuple[str, int, int, int]


def with_one(x: Tensor) -> Tensor:
    """[..., i] → [..., i + 1]: an input that is always 1, whose weight is the bias."""
    return torch.cat([x, x.new_ones(*x.shape[:-1], 1)], dim=-1)


class Squares:
    """Collects squares in the working precision; `flush` hands them on."""

    def __init__(self, sums: Sink, group_size: int) -> None:
        self.sums = sums
        self.group_size = group_size
        self._partial: dict[Key, Tensor] = {}
        self._workspace: Tensor | None = None

    def linear(self, name: str, inputs: Tensor, cotangents: Tensor, *, first: int = 0) -> None:
        """Weight and bias of a linear layer (or their rows from `first` on), summed over positions as one product.

        `inputs` [B, L, i + 1] end with a 1 (see `with_one`), `cotangents` are [B, L, P, o].
        """
        a, g = self._by_group(inputs), self._by_group(cotangents)
        if a.shape[1] == 1:
            self._add(name, first, self._outer(a, g))
            return
        one = a.shape[2] * g.shape[3] * a.element_size()
        for part in g.tensor_split(min(g.shape[2], 1 + one * g.shape[2] // PRODUCT_BYTES), dim=2):
            shape = (a.shape[2], part.shape[2] * part.shape[3])
            total = self._total((name, first, part.shape[3], part.shape[2]), shape, a)
            product = self._product(shape, a)
            for a_group, g_group in zip(a.transpose(1, 2), part.flatten(2), strict=True):
                torch.mm(a_group, g_group, out=product)
                total.addcmul_(product, product)

    def rows(self, name: str, factors: Tensor, cotangents: Tensor, *, first: int = 0) -> None:
        """Rows of a weight without its bias: factors [B, 1, o] times cotangents [B, 1, P, i] of the whole row."""
        squares = self._outer(self._by_group(factors), self._by_group(cotangents))
        self.sums.add(name, squares, first=first)

    def vector(self, name: str, gradients: Tensor) -> None:
        """A vector [o] whose gradient at each position is [B, L, P, o]."""
        g = self._by_group(gradients)
        total = g.new_ones(len(g), 1, g.shape[1]) @ g.flatten(2)  # a product sums faster than sum does
        self.sums.add(name, total.square_().view(-1, g.shape[3]).sum(0))

    def flush(self) -> None:
        """Add what was collected to the sums."""
        for (name, first, outputs, _), total in self._partial.items():
            self._add(name, first, total.unflatten(1, (-1, outputs)).sum(1))
        self._partial.clear()

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

    def _total(self, key: Key, shape: tuple[int, int], like: Tensor) -> Tensor:
        """What is collected under a key."""
        if key not in self._partial:
            self._partial[key] = like.new_zeros(shape)
        return self._partial[key]

    def _product(self, shape: tuple[int, int], like: Tensor) -> Tensor:
        """Memory for a product, always the same."""
        count = shape[0] * shape[1]
        if self._workspace is None or len(self._workspace) < count:
            self._workspace = like.new_empty(count)
        return self._workspace[:count].view(shape)
