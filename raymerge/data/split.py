"""Leave-one-out: each user's last item tests, the one before validates, all before those train.

Shapes: U users, n items, L columns.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from raymerge.data.sequences import Sequences, pad_left, slices
from raymerge.errors import ConfigError

Split = Literal["validation", "test"]
HELD_OUT = {"validation": 2, "test": 1}
"""How many items from a history's end on are not known when the split is predicted; the first of them is the target."""
MIN_LENGTH = 3
"""A user with fewer items is not evaluated: nothing would be left to train on."""


@dataclass(frozen=True)
class Seen:
    """Items that users have had before their targets, repetitions included.

    `items` int64[n]; user u's are `items[offsets[u]:offsets[u + 1]]`, `offsets` int64[U + 1].
    """

    items: Tensor
    offsets: Tensor


@dataclass(frozen=True)
class Examples:
    """What is to be predicted from what: one example a user.

    `histories` int64[U, L] padded on the left, `targets` int64[U], `keys` int64[U] of the users, and `seen`, the whole
    histories however long.
    """

    histories: Tensor
    targets: Tensor
    keys: Tensor
    seen: Seen

    def __len__(self) -> int:
        return len(self.targets)


def examples(sequences: Sequences, split: Split, max_length: int) -> Examples:
    """Each user's history before the split's target, its last `max_length` items, and the target.

    Users with fewer than 3 items are left out; the others keep their order.
    """
    if split not in HELD_OUT:
        raise ConfigError(f"split must be one of {', '.join(HELD_OUT)}, got {split!r}")
    if max_length < 1:
        raise ConfigError(f"max_length must be at least 1, got {max_length}")
    users = evaluated_users(sequences)
    starts, ends = (sequences.offsets[users], sequences.offsets[users + 1] - HELD_OUT[split])
    items, offsets = slices(sequences.items, starts, ends)
    return Examples(
        histories=pad_left(sequences.items, starts, ends, max_length),
        targets=sequences.items[ends].long(),
        keys=sequences.keys[users],
        seen=Seen(items.long(), offsets),
    )


def evaluated_users(sequences: Sequences) -> Tensor:
    """Positions of the users of whom `examples` gives one each, in that order: int64[U']."""
    return (sequences.lengths >= MIN_LENGTH).nonzero().squeeze(1)


def training_part(sequences: Sequences) -> Sequences:
    """Each user's history without its last two items; users who have no other are left out."""
    users = evaluated_users(sequences)
    return sequences.select(users, sequences.offsets[users], sequences.offsets[users + 1] - HELD_OUT["validation"])
