"""Cleaning of one partition of users at a time: order, repeated interactions, and rare items and users.

Arrays: U users, n interactions; histories are stored one after the other, so that lengths sum to n.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from pyarrow import compute as pc

from raymerge.data.ids import own_ids

Duplicates = Literal["keep", "exact", "first", "last"]


@dataclass(frozen=True)
class Histories:
    """Users text[U] in the order of their ids, and their interactions, one user after the other.

    `lengths` int64[U], `items` int32[n], and `markets` int16[n], 0 where the log has none.
    """

    users: pa.StringArray
    lengths: np.ndarray
    items: np.ndarray
    markets: np.ndarray

    @property
    def owners(self) -> np.ndarray:
        """The user that each interaction belongs to: int64[n]."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    @property
    def offsets(self) -> np.ndarray:
        """Where each user's items start, and the end of the last: int64[U + 1]."""
        return np.concatenate([[0], np.cumsum(self.lengths)])

    def save(self, path: Path) -> None:
        """Write to a local file, replacing one that exists."""
        offsets = pa.array(self.offsets, pa.int32())
        columns = {"items": self.items, "markets": self.markets}
        lists = {name: pa.ListArray.from_arrays(offsets, pa.array(values)) for name, values in columns.items()}
        batch = pa.record_batch({"users": self.users, **lists})
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
            writer.write_batch(batch)

    @classmethod
    def load(cls, path: Path) -> "Histories":
        """Read what `save` wrote."""
        with pa.OSFile(str(path)) as source:
            batch = pa.ipc.open_file(source).get_batch(0)
        items, markets = batch["items"], batch["markets"]
        lengths = pc.list_value_length(items).to_numpy().astype(np.int64)
        return cls(batch["users"], lengths, items.flatten().to_numpy(), markets.flatten().to_numpy())


def sorted_histories(rows: pa.Table, *, whole_numbers: bool, duplicates: Duplicates) -> Histories:
    """Histories of a partition's rows, each in order of time, rows of equal time in the order of the log.

    Users are in numerical order if their ids are whole numbers, otherwise in the order of their UTF-8 bytes.
    """
    encoded = rows["user"].dictionary_encode().combine_chunks()  # the ids of all rows may exceed the 2 GiB of one array
    order = pc.sort_indices(own_ids(encoded.dictionary, whole_numbers=whole_numbers)).to_numpy()
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    columns = [rank[encoded.indices.to_numpy()]]
    columns += [rows[name].to_numpy() for name in ("item", "whole", "fraction", "market")]
    users, items, whole, fraction, markets = _select(columns, np.lexsort((columns[3], columns[2], columns[0])))
    kept = ~repeated(users, items, whole, fraction, markets, duplicates=duplicates)
    users, items, markets = _select([users, items, markets], kept)
    lengths = np.bincount(users, minlength=len(order))
    return Histories(encoded.dictionary.take(pa.array(order)), lengths, items, markets)


def _select(columns: list[np.ndarray], rows: np.ndarray) -> list[np.ndarray]:
    return [column[rows] for column in columns]


def repeated(
    users: np.ndarray,
    items: np.ndarray,
    whole: np.ndarray,
    fraction: np.ndarray,
    markets: np.ndarray,
    *,
    duplicates: Duplicates,
) -> np.ndarray:
    """Which interactions, given in order of time, are repetitions to drop: five [n] → bool[n].

    `exact`: those equal in user, item, time and market to an earlier one; `first` (`last`): all but the first (last) of
    a user with an item in a market; `keep`: none.
    """
    drop = np.zeros(len(users), bool)
    if duplicates == "keep" or not len(users):
        return drop
    keys = [users, items, markets] + ([whole, fraction] if duplicates == "exact" else [])
    order = np.lexsort(keys[::-1])
    same = np.logical_and.reduce([key[order][1:] == key[order][:-1] for key in keys])
    drop[order[:-1] if duplicates == "last" else order[1:]] = same
    return drop


def count_items(histories: Histories, num_items: int) -> np.ndarray:
    """Interactions with each item: int64[num_items]."""
    return np.bincount(histories.items, minlength=num_items)


def keep_frequent(histories: Histories, item_counts: np.ndarray, *, min_item: int, min_user: int) -> Histories:
    """Drop items with a count below `min_item`, and then users with fewer than `min_user` interactions left."""
    owners = histories.owners
    frequent = item_counts[histories.items] >= min_item
    lengths = np.bincount(owners[frequent], minlength=len(histories.lengths))
    stay = lengths >= min_user
    kept = frequent & stay[owners]
    users = histories.users.filter(pa.array(stay))
    return Histories(users, lengths[stay], histories.items[kept], histories.markets[kept])
