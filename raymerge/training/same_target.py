"""Histories followed by the same item, for DuoRec's supervised views, over all partitions in bounded memory.

Of each item's occurrences as a target only the M of lowest hash priority are kept. A priority is a function of (seed,
user key, position), so the kept ones are a uniform sample, and indices of any parts merge into the index of the
whole. Memory: at most min(V · M, interactions) entries of 4 · length + 16 bytes, on every rank; while the indices of k
ranks are merged, up to 2k times that.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from raymerge.data.sequences import Sequences, pad_left
from raymerge.data.split import training_lengths
from raymerge.models.draws import hashed, uniform
from raymerge.splitmix import Stream


@dataclass(frozen=True)
class SameTargetIndex:
    """E histories sorted by (target, priority), at most M per target."""

    targets: Tensor  # int64[E]
    priorities: Tensor  # int64[E], also the identity of a (user, position)
    histories: Tensor  # int32[E, L], padded on the left
    candidates: int  # M
    seed: int

    def __len__(self) -> int:
        return len(self.targets)

    def draw(self, targets: Tensor, seeds: Tensor, own: Tensor, *, fallback: Tensor) -> Tensor:
        """For each row one of its target's histories, drawn uniformly; instead of the row's own the next one, if any.

        targets, seeds, own (the row's own priority) int64[B] → int64[B, W], as wide as the longest. A target that is
        not in the index gives the row of `fallback` int64[B, ≤ L].
        """
        if not len(targets) or not len(self):
            return fallback
        first, after = torch.searchsorted(self.targets, torch.stack([targets, targets + 1])).unbind()
        number = after - first
        entry = first + (uniform(Stream.SAME_TARGET, seeds) * number).long()
        is_own = self.priorities[entry.clamp(max=len(self) - 1)] == own
        entry = torch.where(is_own, first + (entry - first + 1) % number.clamp(min=1), entry)
        drawn = self.histories[entry.clamp(max=len(self) - 1)].long()
        full_fallback = torch.nn.functional.pad(fallback, (drawn.shape[1] - fallback.shape[1], 0))
        drawn = torch.where((number > 0)[:, None], drawn, full_fallback)
        return drawn[:, -int((drawn != 0).sum(1).max()) :]


def index_same_targets(partitions: Sequence[Sequences], *, length: int, candidates: int, seed: int) -> SameTargetIndex:
    """Index the training part of these partitions, one after the other.

    Histories keep their last `length` items. Working memory is a small multiple of the largest partition.
    """
    parts = [_index_partition(part, length=length, candidates=candidates, seed=seed) for part in partitions]
    return merge_indices(parts or [_empty(length, candidates, seed)])


def _empty(length: int, candidates: int, seed: int) -> SameTargetIndex:
    nothing = torch.zeros(0, dtype=torch.int64)
    return SameTargetIndex(nothing, nothing, torch.zeros(0, length, dtype=torch.int32), candidates, seed)


def _index_partition(part: Sequences, *, length: int, candidates: int, seed: int) -> SameTargetIndex:
    users = torch.repeat_interleave(torch.arange(len(part.keys)), part.offsets.diff())
    places = torch.arange(len(part.items)) - part.offsets[users]  # items before each one in its history
    inside = (places >= 1) & (places < training_lengths(part)[users])
    at = inside.nonzero()[:, 0]
    targets = part.items[at].long()
    priorities = hashed(Stream.SAME_TARGET_PRIORITY, seed, part.keys[users[at]], places[at])
    kept = _lowest(targets, priorities, candidates)
    at = at[kept]
    histories = pad_left(part.items, at - places[at], at, length)
    return SameTargetIndex(targets[kept], priorities[kept], histories, candidates, seed)


def _lowest(targets: Tensor, priorities: Tensor, candidates: int) -> Tensor:
    """Entries to keep, sorted by (target, priority), at most `candidates` per target: int64[E]."""
    order = priorities.argsort(stable=True)
    order = order[targets[order].argsort(stable=True)]
    sorted_targets = targets[order]
    rank = torch.arange(len(order), device=order.device) - torch.searchsorted(sorted_targets, sorted_targets)
    return order[rank < candidates]


def merge_indices(parts: Sequence[SameTargetIndex]) -> SameTargetIndex:
    """The index of the union of the parts (at least one), in any order."""
    targets = torch.cat([part.targets for part in parts])
    priorities = torch.cat([part.priorities for part in parts])
    kept = _lowest(targets, priorities, parts[0].candidates)
    histories = torch.cat([part.histories for part in parts])[kept]
    return SameTargetIndex(targets[kept], priorities[kept], histories, parts[0].candidates, parts[0].seed)
