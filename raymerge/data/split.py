"""Leave-one-out: each user's last item tests, the one before validates, all before those train.

Where only some users validate (`Sequences.validates`), the others' second-to-last items train as well: models know what
is recent, and validation stays cheap for any size of log. On MovieLens-1M 512 users validate in gSASRec (Petrov and
Macdonald, RecSys 2023), 2,048 in their reproduction of BERT4Rec (RecSys 2022). In data whose test items are already
held out (`Sequences.tests` is False) the last item validates. Shapes: U users, n items, L columns.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from raymerge.data.sequences import Sequences, pad_left, slices
from raymerge.errors import ConfigError, InputError
from raymerge.splitmix import GAMMA, mix_, unit

Split = Literal["validation", "test"]
HELD_OUT = {"validation": 2, "test": 1}
"""The number of items at the end of a history that are unknown to the split; the first of them is the target."""
VALIDATION_DRAW = GAMMA  # separates this draw from others of the same keys
MIN_LENGTH = 3
"""Users with fewer items are not evaluated (2 without test items): nothing would be left to train on."""


@dataclass(frozen=True)
class Seen:
    """Items already in the histories before their targets, including repetitions.

    `items` int64[n]; user u's are `items[offsets[u]:offsets[u + 1]]`, `offsets` int64[U + 1].
    """

    items: Tensor
    offsets: Tensor


@dataclass(frozen=True)
class Examples:
    """Histories and the items to predict from them: one example per user.

    `histories` int64[U, L] padded on the left, `targets` int64[U], `keys` int64[U] of the users, and `seen`, the whole
    histories of any length.
    """

    histories: Tensor
    targets: Tensor
    keys: Tensor
    seen: Seen

    def __len__(self) -> int:
        return len(self.targets)


def examples(sequences: Sequences, split: Split, max_length: int, *, everyone: bool = False) -> Examples:
    """The last `max_length` items of each user's history before the split's target, and the target.

    Users with too few items are left out, and in validation those who do not validate, unless `everyone` is set; then
    a target may have been trained on. The others keep their order.
    """
    if split not in HELD_OUT:
        raise ConfigError(f"split must be one of {', '.join(HELD_OUT)}, got {split!r}")
    if max_length < 1:
        raise ConfigError(f"max_length must be at least 1, got {max_length}")
    users = evaluated_users(sequences, split, everyone=everyone)
    starts, ends = (sequences.offsets[users], sequences.offsets[users + 1] - _held_out(sequences, split))
    items, offsets = slices(sequences.items, starts, ends)
    return Examples(
        histories=pad_left(sequences.items, starts, ends, max_length).long(),
        targets=sequences.items[ends].long(),
        keys=sequences.keys[users],
        seen=Seen(items.long(), offsets),
    )


def evaluated_users(sequences: Sequences, split: Split, *, everyone: bool = False) -> Tensor:
    """Positions of the users in `examples`, in that order: int64[U']."""
    asked = _long_enough(sequences)
    if split == "validation" and sequences.validates is not None and not everyone:
        asked &= sequences.validates
    return asked.nonzero().squeeze(1)


def _held_out(sequences: Sequences, split: Split) -> int:
    """The number of items at the end of a history that are unknown to the split."""
    if sequences.tests:
        return HELD_OUT[split]
    if split == "test":
        raise InputError("these data hold no test items: they are part of other data, which hold the test items")
    return HELD_OUT[split] - HELD_OUT["test"]


def _long_enough(sequences: Sequences) -> Tensor:
    return sequences.lengths >= MIN_LENGTH - (0 if sequences.tests else HELD_OUT["test"])


def drawn_to_validate(keys: Tensor, share: float) -> Tensor:
    """Which users are drawn to validate, each with probability `share` by the hash of its key: int64[U] → bool[U]."""
    return unit(mix_(keys ^ VALIDATION_DRAW)).float() < share  # float64 would, rarely, draw other users


def training_lengths(sequences: Sequences) -> Tensor:
    """The number of items at the start of each history that train: int64[U]; 0 for users who are not evaluated."""
    held_out = torch.full_like(sequences.lengths, _held_out(sequences, "validation"))
    if sequences.validates is not None:
        held_out[~sequences.validates] -= 1
    return torch.where(_long_enough(sequences), sequences.lengths - held_out, 0)


def before_test(sequences: Sequences) -> Sequences:
    """Each user's history without the test item; users who are not evaluated are left out."""
    users = evaluated_users(sequences, "test")
    starts, ends = sequences.offsets[users], sequences.offsets[users + 1] - HELD_OUT["test"]
    return replace(sequences.select(users, starts, ends), tests=False)


def training_part(sequences: Sequences) -> Sequences:
    """Each user's history without the items held out; users who have nothing else are left out."""
    lengths = training_lengths(sequences)
    users = lengths.nonzero().squeeze(1)
    starts = sequences.offsets[users]
    return replace(sequences.select(users, starts, starts + lengths[users]), tests=False)
