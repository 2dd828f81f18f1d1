"""The windows in each batch of an epoch, the same for any number of ranks.

A rank holds only its own partitions. Batch i of an epoch is the union over **all** partitions p of chunk(p, i): the
windows of p, in a new random order each epoch, split evenly over the epoch's batches. Every draw is a function of
(seed, epoch, user key, window), so two ranks train on exactly the batches, masks and views that one would.

Shapes: U users, n windows, W columns, S steps of an epoch, B rows of a batch. All tensors are on the given device.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from raymerge.data.sequences import Sequences, pad_left
from raymerge.data.split import training_lengths
from raymerge.models.batch import Batch
from raymerge.models.draws import hashed, uniform
from raymerge.splitmix import Stream
from raymerge.training.same_target import SameTargetIndex

BUCKET_STEPS = 16  # windows of at least this many steps are sorted by length together,
BUCKET_WINDOWS = 256  # and at least this many windows per partition
SHORTEST = 2  # one item and one to predict


@dataclass(frozen=True)
class Windows:
    """The windows of the training part (`raymerge.data.split`) of a rank's users.

    A user of n ≥ 2 training items has 1 + ⌈max(n − W, 0) / stride⌉ windows. They end at every `stride`-th item counted
    back from the last, all shifted by one random offset per user and epoch, and are then moved entirely inside the
    history, so that none is shorter than min(n, W).
    """

    items: Tensor  # int32[total], whole histories one after the other
    starts: Tensor  # int64[U], where each user's begins
    lengths: Tensor  # int64[U], of the training part
    keys: Tensor  # int64[U]
    partitions: Tensor  # int64[U], which of the rank's partitions a user belongs to
    phases: Tensor  # int64[P], the identity of each partition for seeding
    users: Tensor  # int64[n], owner of each window
    numbers: Tensor  # int64[n], 0 for a user's last window
    width: int
    stride: int

    def __len__(self) -> int:
        return len(self.users)

    def ends(self, seed: int, epoch: int) -> Tensor:
        """The number of the user's training items up to the end of each window: int64[n]."""
        drawn = uniform(Stream.WINDOW_SHIFT, seed, epoch, self.keys)
        shift = (drawn * self.stride).long() - self.stride // 2
        length = self.lengths[self.users]
        ends = length - self.numbers * self.stride - shift[self.users]
        return torch.minimum(torch.maximum(ends, length.clamp(max=self.width)), length)

    def row_seeds(self, seed: int, epoch: int) -> Tensor:
        """The seed of all random draws of each window: int64[n]."""
        return hashed(Stream.ROW, seed, epoch, self.keys[self.users], self.numbers)


def make_windows(
    partitions: Sequence[Sequences], *, width: int, stride: int, last_only: bool = False, device: torch.device
) -> Windows:
    """All windows of at most `width` items of these partitions, or only each user's last one."""
    sizes = torch.tensor([len(part.keys) for part in partitions], dtype=torch.int64)
    items = torch.cat([part.items for part in partitions] or [torch.zeros(0, dtype=torch.int32)])
    keys = torch.cat([part.keys for part in partitions] or [torch.zeros(0, dtype=torch.int64)])
    whole = torch.cat([part.offsets.diff() for part in partitions] or [torch.zeros(0, dtype=torch.int64)])
    lengths = torch.cat([training_lengths(part) for part in partitions] or [torch.zeros(0, dtype=torch.int64)])
    counts = 1 + ((lengths - width).clamp(min=0) + stride - 1) // stride
    counts = torch.ones_like(counts) if last_only else counts
    counts[lengths < SHORTEST] = 0
    users = torch.repeat_interleave(torch.arange(len(keys)), counts)
    first = counts.cumsum(0) - counts
    tensors = {
        "items": items,
        "starts": whole.cumsum(0) - whole,
        "lengths": lengths,
        "keys": keys,
        "partitions": torch.repeat_interleave(torch.arange(len(partitions)), sizes),
        "phases": torch.tensor([int(part.keys.sum()) for part in partitions], dtype=torch.int64),
        "users": users,
        "numbers": torch.arange(len(users)) - first[users],
    }
    stride = 1 if last_only else stride  # the last window does not move
    return Windows(**{name: tensor.to(device) for name, tensor in tensors.items()}, width=width, stride=stride)


@dataclass(frozen=True)
class EpochPlan:
    """A rank's windows in the order in which an epoch visits them; step i has those from bounds[i] to bounds[i + 1]."""

    order: Tensor  # int64[n]
    ends: Tensor  # int64[n], by window
    seeds: Tensor  # int64[n], by window
    bounds: list[int]  # S + 1
    widths: list[int]  # S, items of the longest window of each step


def bucket_steps(*, partitions: int, batch_size: int) -> int:
    """The number of steps whose windows are sorted by length together, so that little padding is computed.

    >>> bucket_steps(partitions=8, batch_size=128), bucket_steps(partitions=8, batch_size=8)
    (16, 256)
    """
    return max(BUCKET_STEPS, math.ceil(BUCKET_WINDOWS * partitions / batch_size))


def plan_epoch(windows: Windows, *, steps: int, bucket: int, seed: int, epoch: int) -> EpochPlan:
    """Shuffle each partition's windows, split each evenly over the steps, and sort them within buckets of steps."""
    ends, seeds = windows.ends(seed, epoch), windows.row_seeds(seed, epoch)
    length = ends.clamp(max=windows.width)
    partition = windows.partitions[windows.users]
    order = hashed(Stream.ORDER, seeds).argsort(stable=True)
    order = order[partition[order].argsort(stable=True)]
    step = _even_steps(partition[order], windows.phases, steps=steps, seed=seed, epoch=epoch)
    buckets = partition[order] * steps + step // bucket
    order = order[(buckets * (windows.width + 1) + length[order]).argsort(stable=True)]  # buckets stay in place
    visit = hashed(Stream.ORDER, seed, epoch, torch.arange(steps, device=order.device)).argsort().argsort()
    step = visit[step]
    order = order[step.argsort(stable=True)]
    sizes = torch.bincount(step, minlength=steps)
    widest = length.new_full((steps,), SHORTEST).scatter_reduce_(0, step.sort().values, length[order], "amax")
    return EpochPlan(order, ends, seeds, [0, *sizes.cumsum(0).tolist()], widest.tolist())


def _even_steps(partition: Tensor, phases: Tensor, *, steps: int, seed: int, epoch: int) -> Tensor:
    """The step of each of n windows that are grouped by partition: int64[n], each partition's spread evenly.

    Each partition starts at a random fraction of a step, so that small ones do not all fall into the same steps.
    """
    sizes = torch.bincount(partition, minlength=len(phases))
    place = torch.arange(len(partition), device=partition.device) - (sizes.cumsum(0) - sizes)[partition]
    phase = uniform(Stream.ORDER, seed, epoch, phases)[partition]
    return ((place + phase) * steps / sizes[partition]).long().clamp(max=steps - 1)


def epoch_batches(
    windows: Windows, plan: EpochPlan, same_target: SameTargetIndex | None = None, offered_columns: Tensor | None = None
) -> Iterator[Batch]:
    """This rank's rows of each step of an epoch, trimmed to the longest of them; `offered_columns` as in `Batch`."""
    for step, width in enumerate(plan.widths):
        rows = plan.order[plan.bounds[step] : plan.bounds[step + 1]]
        users, ends, seeds = windows.users[rows], plan.ends[rows], plan.seeds[rows]
        starts = windows.starts[users]
        batch = pad_left(windows.items, starts, starts + ends, width).long()
        others = None
        if same_target is not None:
            own = hashed(Stream.SAME_TARGET_PRIORITY, same_target.seed, windows.keys[users], ends - 1)
            others = same_target.draw(batch[:, -1], seeds, own, fallback=batch[:, :-1])
        yield Batch(batch, seeds, others, offered_columns)
