"""The softmax over the catalogue for a batch of users, read tile by tile so that nothing is as large as users × items.

Shapes: G groups of S users (S is 1 except for batch-wise estimators), B = G·S users, d dimensions, V items. Items are
named by column here: 0..V-1, column j for item j + 1. A tile is a run of columns of fixed length, so that sums over
the catalogue do not depend on how users are chunked.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from math import isfinite

import torch
from torch import Tensor
from torch.nn import functional as F

from raymerge.errors import ScoreError
from raymerge.models.repeats import add_shift, contains

TILE = 2048


@dataclass(frozen=True)
class Head:
    """Output side of a model: logits = (W h + bias) / temperature, with W + r for items already in the history.

    `repeat_direction` is r [d], 0 if None (see `raymerge.models.repeats`); `offered` bool[V] if the model chooses
    among some items only; the bias then gives the others no probability.
    """

    weight: Tensor
    bias: Tensor | None
    temperature: float = 1.0
    offered: Tensor | None = None
    repeat_direction: Tensor | None = None

    @property
    def items(self) -> int:
        """V, the number of items."""
        return len(self.weight)

    @property
    def choices(self) -> int:
        """How many of the items are on offer."""
        return self.items if self.offered is None else int(self.offered.sum())


class Scores:
    """Probabilities p = softmax(logits) of G·S users over all items, never held at once.

    For items already in a user's history the output weights include r in everything per user: μ, r_j, C.
    """

    def __init__(self, head: Head, hidden: Tensor, stream: Tensor, had: Tensor | None = None) -> None:
        """`hidden` [G, S, d]; `stream` int64[G, S], one stream of random numbers per user (see draws).

        `had` int64[B, K] are the distinct columns of each user's history, −1 for none, if the head uses them.
        """
        self.head = head
        self.had = None if had is None else had.sort(dim=1).values
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
        extrema: list[Tensor] = []
        for columns in self.tiles():
            logits = self.logits(columns)
            extrema += torch.aminmax(logits)
            high, index = logits.max(dim=1)
            others = logits.scatter_(1, index[:, None], -torch.inf).logsumexp(dim=1)
            where = torch.where(high > best, index + columns.start, where)
            rest = torch.logaddexp(torch.logaddexp(rest, others), torch.minimum(best, high))
            best = torch.maximum(best, high)
        found = torch.stack(extrema).tolist()  # read once, since each read waits for a GPU
        bad = next((value for value in found if not isfinite(value)), None)
        if bad is not None:
            raise ScoreError(f"a score is {bad}, not a finite number: train the model again with a lower learning rate")
        return where, rest, torch.logaddexp(best, rest)

    def logits(self, columns: slice | Tensor, users: slice = slice(None)) -> Tensor:
        """Logits of the same columns, a run or int64[n], for all users or a run of them: [B, n]."""
        bias = None if self.head.bias is None else self.head.bias[columns]
        logits = F.linear(self.flat[users], self.head.weight[columns], bias)
        if self.had is not None:
            had, shift = self.had[users], self._shift[users]
            if isinstance(columns, slice):
                add_shift(logits, had, shift, first=columns.start)
            else:
                logits += contains(had, columns.expand(len(had), -1)) * shift[:, None]
        return self._cooled(logits)

    def _cooled(self, logits: Tensor) -> Tensor:
        """Logits over the temperature, in place."""
        return logits if self.head.temperature == 1 else logits.div_(self.head.temperature)

    @cached_property
    def _shift(self) -> Tensor:
        """h·r: [B]."""
        assert self.head.repeat_direction is not None
        return self.flat @ self.head.repeat_direction

    def has_had(self, items: Tensor) -> Tensor:
        """Whether each of a user's own columns is in the history: int64[B, n] → bool[B, n]."""
        assert self.had is not None
        return contains(self.had, items)

    def run_had(self, run: slice) -> Tensor:
        """Which columns of a run are in each user's history: bool[B, run]."""
        assert self.had is not None
        width = run.stop - run.start
        places = torch.where((self.had >= run.start) & (self.had < run.stop), self.had - run.start, width)
        found = torch.zeros(len(places), width + 1, dtype=torch.bool, device=places.device)
        return found.scatter_(1, places, True)[:, :-1]

    def weights_of(self, items: Tensor) -> Tensor:
        """Output weights of each user's own columns: int64[B, n] → [B, n, d]."""
        weight = self.head.weight[items]
        if self.head.repeat_direction is None:
            return weight
        return weight.addcmul_(self.has_had(items)[..., None].to(weight.dtype), self.head.repeat_direction)

    def probabilities(self, columns: slice | Tensor, users: slice = slice(None)) -> Tensor:
        """p of the same columns, a run or int64[n], for all users or a run of them: [B, n]."""
        return self.logits(columns, users).sub_(self._log_total[users, None]).exp_()

    def probabilities_of(self, items: Tensor) -> Tensor:
        """p of each user's own columns: int64[B, n] → [B, n]."""
        logits = torch.bmm(self.head.weight[items], self.flat[:, :, None]).squeeze(2)
        if self.head.bias is not None:
            logits = logits + self.head.bias[items]
        if self.had is not None:
            logits += self.has_had(items) * self._shift[:, None]
        return self._cooled(logits).sub_(self._log_total[:, None]).exp_()

    def variances(self, columns: slice) -> Tensor:
        """p (1 - p) of a run of columns: [B, columns]."""
        p = self.probabilities(columns)
        return p.mul_(self._with_top(1 - p, columns, self._without_top))

    def variances_of(self, items: Tensor) -> Tensor:
        """p (1 - p) of each user's own columns: int64[B, n] → [B, n]."""
        p = self.probabilities_of(items)
        return p * torch.where(items == self._top[:, None], self._without_top, 1 - p)

    @cached_property
    def _without_top(self) -> Tensor:
        """1 - p of the most probable item, where the difference may cancel: the sum over the others, [B, 1]."""
        return (self._log_rest - self._log_total).exp()[:, None]

    def _with_top(self, values: Tensor, columns: slice, top: Tensor | float) -> Tensor:
        """`values` [B, columns] of a run with another value at the most probable item, [B, 1], in place."""
        width = columns.stop - columns.start
        place = self._top[:, None] - columns.start
        within, place = (place >= 0) & (place < width), place.clamp(0, width - 1)
        return values.scatter_(1, place, torch.where(within, top, values.gather(1, place)))

    @cached_property
    def had_probabilities(self) -> Tensor:
        """p of the items in each user's history, 0 where `had` has none: [B, K]."""
        assert self.had is not None
        return self.probabilities_of(self.had.clamp_min(0)).masked_fill_(self.had < 0, 0)

    @cached_property
    def _others(self) -> tuple[Tensor, Tensor, Tensor]:
        """Σ p_j W_j and Σ p_j over all items but the most probable, and Σ p_j over those of them not in the history.

        [B, d], [B, 1] and [B, 1]; p is rescaled to add up to 1.
        """
        mean, total = torch.zeros_like(self.flat), torch.zeros_like(self.flat[:, :1])
        new = torch.zeros_like(total)
        for columns in self.tiles():
            p = self._with_top(self.probabilities(columns), columns, 0.0)
            mean.addmm_(p, self.head.weight[columns])
            total += p.sum(1, keepdim=True)
            if self.had is not None:
                new += p.masked_fill_(self.run_had(columns), 0).sum(1, keepdim=True)
        if self.had is not None and self.head.repeat_direction is not None:
            p = self.had_probabilities.masked_fill(self.had == self._top[:, None], 0)
            mean += p.sum(1, keepdim=True) * self.head.repeat_direction
        whole = total + self.probabilities_of(self._top[:, None])
        return mean / whole, total / whole, new / whole

    @cached_property
    def repeated(self) -> tuple[Tensor, Tensor]:
        """The probability P of all items in the history, and 1 − P as the sum over all others: [B] and [B]."""
        top = self.probabilities_of(self._top[:, None]) * ~self.has_had(self._top[:, None])
        return self.had_probabilities.sum(1), (self._others[2] + top).squeeze(1)

    @cached_property
    def mean(self) -> Tensor:
        """μ = Σ_j p_j W_j: [B, d]."""
        mean, total, _ = self._others
        return mean + (1 - total) * self.weights_of(self._top[:, None])[:, 0]

    def centred(self, items: Tensor) -> Tensor:
        """r_j = W_j - μ of each user's own columns: int64[B, n] → [B, n, d].

        For the most probable item it is Σ_k≠j p_k (W_j - W_k): the difference would cancel if p_j is close to 1.
        """
        weight, (mean, total, _) = self.weights_of(items), self._others
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
