"""Histories at random, partitions in memory from histories, and several partitions as one."""

import random
from collections.abc import Sequence

import pyarrow as pa
import torch

from raymerge.data.ids import stable_keys
from raymerge.data.sequences import Sequences, bounds


def random_histories(users: int, items: int, *, longest: int, seed: int, shortest: int = 1) -> list[list[int]]:
    """Histories of all lengths from shortest to longest, with repeated items."""
    draw = random.Random(seed)
    return [[draw.randint(1, items) for _ in range(draw.randint(shortest, longest))] for _ in range(users)]


def from_lists(histories: Sequence[Sequence[int]], users: Sequence[int | str] | None = None) -> Sequences:
    """Sequences of these histories, of the given users or of users 1, 2, …"""
    ids = pa.array(range(1, len(histories) + 1) if users is None else users)
    ids = ids if len(ids) else pa.array([], pa.int64())
    return Sequences(
        items=torch.tensor([item for history in histories for item in history], dtype=torch.int32),
        offsets=bounds(torch.tensor([len(history) for history in histories], dtype=torch.int64)),
        keys=torch.from_numpy(stable_keys(ids.cast(pa.string()))),
        users=ids,
    )


def dealt(histories: Sequence[Sequence[int]], parts: int) -> list[Sequences]:
    """The histories of users 1, 2, … dealt out to `parts` partitions."""
    users = range(1, len(histories) + 1)
    return [from_lists(histories[part::parts], users[part::parts]) for part in range(parts)]


def concatenate(parts: Sequence[Sequences]) -> Sequences:
    """All users of several partitions, in the order given, without their markets."""
    validates = [part.validates for part in parts if part.validates is not None]
    return Sequences(
        items=torch.cat([part.items for part in parts]),
        offsets=bounds(torch.cat([part.lengths for part in parts])),
        keys=torch.cat([part.keys for part in parts]),
        users=pa.concat_arrays([part.users for part in parts]),
        validates=torch.cat(validates) if validates else None,
        tests=all(part.tests for part in parts),
    )
