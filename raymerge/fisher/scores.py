"""The softmax over the catalogue for a batch of users, read tile by tile so that nothing is as large as users × items.

Shapes: G groups of S users (S is 1 but for batch-wise estimators), B = G·S users, d dimensions, V items. Items are
named by column here: 0..V-1, column j for item j + 1. A tile is a run of columns of fixed length, so that sums over
the catalogue do not depend on how users are chunked.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from raymerge.errors import ScoreError

TILE = 2048


@dataclass(frozen=True)
class Head:
    """Output side of a model: logits = (W h + bias) / temperature; `offered` bool[V] if it chooses among some only.

    The bias then leaves no probability to the others. With a direction `repeats` r [d] the weights of a user's own
    earlier items are W + r instead (see `raymerge.models.repeats`).
    """

    weight: Tensor
    bias: Tensor | None
    temperature: float = 1.0
    offered: Tensor | None = None
    repeats: Tensor | None = None

    @property
    def items(self) -> int:
        """V, the number of items."""
        return len(self.weight)

    @property
    def choices(self) -> int:
        """How many of the items are on offer."""
        return self.items if self.offered is None else int(self.offered.sum())


class Scores:
    """Probabilities p = softmax(logits) of G·S users over all items, never held at once."""

    def __init__(self, head: Head, hidden: Tensor, stream: Tensor, seen: Tensor | None = None) -> None:
        """`hidden` [G, S, d]; `stream` int64[G, S], one stream of random numbers a user (see draws).

        `seen` int64[B, K] are the distinct columns of each user's history, −1 for none, if the head has `repeats`.
        """
        self.head = head
        self.seen = seen
        self.hidden = hidden
        self.stream = stream
        self.groups, self.group_size, self.dim = hidden.shape
        self.flat = hidden.reshape(-1, self.dim)
        self._top, self._log_rest, self._log_total = self._normalise()

    def tiles(self) -> Iterator[slice]:
        """Runs of columns that cover the catalogue."""
        for start in range(0, self.head.items, TILE):
            yield slice(start, min(start + TILE, self.head.items))

    def _normalise(self) -> tuple[Tensor, Tensor, Tensor]:
        """Column of each user's most probable item, log of the sum over all others, log of the sum over all: [B]."""
        best = self.flat.new_full((len(self.flat),), -torch.inf)
        rest, where = best.clone(), torch.zeros_like(best, dtype=torch.int64)
        for columns in self.tiles():
            logits = self.logits(columns)
            if not bool(torch.isfinite(logits).all()):
                bad = logits[~torch.isfinite(logits)][0].item()
                raise ScoreError(f"a score is {bad}, not a finite number: train the model again with a lower rate")
            high, index = logits.max(dim=1)
            others = logits.scatter_(1, index[:, None], -torch.inf).logsumexp(dim=1)
            where = torch.where(high > best, index + columns.start, where)
            rest = torch.logaddexp(torch.logaddexp(rest, others), torch.minimum(best, high))
            best = torch.maximum(best, high)
        return where, rest, torch.logaddexp(best, rest)

    def logits(self, columns: slice | Tensor, users: slice = slice(None)) -> Tensor:
        """Of the same columns, a run or int64[n], for all users or a run of them: [B, n]."""
        bias = None if self.head.bias is None else self.head.bias[columns]
        logits = F.linear(self.flat[users], self.head.weight[columns], bias)
        if self.head.repeats is not None:
            logits += self.has(columns, users) * (self.flat[users] @ self.head.repeats)[:, None]
        return logits / self.head.temperature

    def has(self, columns: slice | Tensor, users: slice = slice(None)) -> Tensor:
        """Which columns, a run or int64[n] or each user's own int64[B, n], are of the user's history: bool[B, n]."""
        assert self.seen is not None
        seen = self.seen[users]
        if isinstance(columns, Tensor):
            return (columns.expand(len(seen), -1)[:, :, None] == seen[:, None]).any(2)
        start, width = columns.start, columns.stop - columns.start
        inside = torch.where((seen >= start) & (seen < columns.stop), seen - start, width)
        return seen.new_zeros(len(seen), width + 1, dtype=torch.bool).scatter_(1, inside, True)[:, :-1]

    def weights_of(self, items: Tensor) -> Tensor:
        """Output weights of each user's own columns: int64[B, n] → [B, n, d]."""
        weight = self.head.weight[items]
        return weight if self.head.repeats is None else weight + self.has(items)[..., None] * self.head.repeats

    def probabilities(self, columns: slice | Tensor, users: slice = slice(None)) -> Tensor:
        """p of the same columns, a run or int64[n], for all users or a run of them: [B, n]."""
        return (self.logits(columns, users) - self._log_total[users, None]).exp_()

    def probabilities_of(self, items: Tensor) -> Tensor:
        """p of each user's own columns: int64[B, n] → [B, n]."""
        logits = torch.bmm(self.weights_of(items), self.flat[:, :, None]).squeeze(2)
        if self.head.bias is not None:
            logits = logits + self.head.bias[items]
        return (logits / self.head.temperature - self._log_total[:, None]).exp_()

    @cached_property
    def seen_probabilities(self) -> Tensor:
        """p of the items that the user has had, 0 where `seen` has none: [B, K]."""
        assert self.seen is not None
        return self.probabilities_of(self.seen.clamp_min(0)).masked_fill_(self.seen < 0, 0)

    def variances(self, columns: slice) -> Tensor:
        """p (1 - p) of a run of columns: [B, columns]."""
        p = self.probabilities(columns)
        index = torch.arange(columns.start, columns.stop, device=p.device)
        return p * self._complement(p, index == self._top[:, None])

    def variances_of(self, items: Tensor) -> Tensor:
        """p (1 - p) of each user's own columns: int64[B, n] → [B, n]."""
        p = self.probabilities_of(items)
        return p * self._complement(p, items == self._top[:, None])

    def _complement(self, p: Tensor, top: Tensor) -> Tensor:
        """1 - p; for the most probable item, where that may cancel, the sum over the others."""
        return torch.where(top, (self._log_rest - self._log_total).exp()[:, None], 1 - p)

    @cached_property
    def repeated(self) -> tuple[Tensor, Tensor]:
        """The probability P of all items that the user has had and 1 − P, summed from its own items: [B] and [B]."""
        new = [self.probabilities(run).masked_fill_(self.has(run), 0).sum(1) for run in self.tiles()]
        return self.seen_probabilities.sum(1), torch.stack(new).sum(0)

    @cached_property
    def _others(self) -> tuple[Tensor, Tensor]:
        """Σ p_j W_j and Σ p_j over all items but the most probable: [B, d] and [B, 1]; p rescaled to add up to 1.

        W_j of a user's earlier items includes r, here and below.
        """
        mean, total = torch.zeros_like(self.flat), torch.zeros_like(self.flat[:, :1])
        for columns in self.tiles():
            index = torch.arange(columns.start, columns.stop, device=mean.device)
            p = self.probabilities(columns).masked_fill_(index == self._top[:, None], 0)
            mean.addmm_(p, self.head.weight[columns])
            total += p.sum(1, keepdim=True)
        if self.seen is not None and self.head.repeats is not None:
            p = self.seen_probabilities.masked_fill(self.seen == self._top[:, None], 0)
            mean += p.sum(1, keepdim=True) * self.head.repeats
        whole = total + self.probabilities_of(self._top[:, None])
        return mean / whole, total / whole

    @cached_property
    def mean(self) -> Tensor:
        """μ = Σ_j p_j W_j: [B, d]."""
        mean, total = self._others
        return mean + (1 - total) * self.weights_of(self._top[:, None])[:, 0]

    def centred(self, items: Tensor) -> Tensor:
        """r_j = W_j - μ of each user's own columns, int64[B, n] → [B, n, d], of the most probable item too.

        That is Σ_k≠j p_k (W_j - W_k), where the difference would cancel for a user who is nearly certain of j.
        """
        weight, (mean, total) = self.weights_of(items), self._others
        top = (items == self._top[:, None])[..., None]
        return torch.where(top, total[:, None] * weight - mean[:, None], weight - self.mean[:, None])

    def top(self, value: Callable[[slice], Tensor], count: int) -> Tensor:
        """Columns of the `count` largest values, largest first; `value` gives [n, columns] → int64[n, count]."""
        best: Tensor | None = None
        where: Tensor | None = None
        for columns in self.tiles():
            new = value(columns)
            index = torch.arange(columns.start, columns.stop, device=new.device).expand_as(new)
            if best is not None and where is not None:
                new, index = torch.cat([best, new], dim=1), torch.cat([where, index], dim=1)
            best, order = new.topk(min(count, new.shape[1]), dim=1)
            where = index.gather(1, order)
        assert where is not None
        return where
