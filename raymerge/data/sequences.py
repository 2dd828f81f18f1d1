"""Partitions and catalogues in memory, as tensors.

Shapes: U users, n interactions, L columns, V items. Item indices are 1..V; 0 is padding, on the left.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import torch
from pyarrow import compute as pc
from pyarrow import parquet as pq
from torch import Tensor

from raymerge.artifacts import read_file
from raymerge.errors import ArtifactError, InputError, first_line
from raymerge.files.storage import absolute
from raymerge.redaction import without_credentials

NO_TEST = b"raymerge.no_test"  # key in the metadata of a partition that has no test items


@dataclass(frozen=True)
class Sequences:
    """Users' whole histories, oldest first, one after the other.

    `items` int32[n]; user u's are `items[offsets[u]:offsets[u + 1]]`, `offsets` int64[U + 1]; `keys` int64[U] are the
    stable hashes of the users' own ids `users` (Arrow array of int64 or string [U]). `markets` int16[n] are the
    numbers, from 1, of the interactions' markets in the log; None if it has no such column. `validates` bool[U] says
    whose second-to-last item is kept from training; None if everybody's is. `tests` says whether the last item is the
    test item; if that was removed before, the last item is the one that was second to last.
    """

    items: Tensor
    offsets: Tensor
    keys: Tensor
    users: pa.Array
    markets: Tensor | None = None
    validates: Tensor | None = None
    tests: bool = True

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def lengths(self) -> Tensor:
        """Interactions of each user: int64[U]."""
        return self.offsets.diff()

    def select(self, users: Tensor, starts: Tensor, ends: Tensor) -> "Sequences":
        """Some users, each with `items` from `starts` up to `ends`, exclusive: three int64[S] → S users."""
        items, offsets = slices(self.items, starts, ends)
        return replace(
            self,
            items=items,
            offsets=offsets,
            keys=self.keys[users],
            users=self.users.take(pa.array(users.numpy())),
            markets=None if self.markets is None else slices(self.markets, starts, ends)[0],
            validates=None if self.validates is None else self.validates[users],
        )


@dataclass(frozen=True)
class Items:
    """The catalogue: own ids `ids` (Arrow array of int64 or string [V], index 1 first) and `counts` int64[V].

    Counts are of interactions in the training part. `offered` bool[V] says which items are on offer in these data, None
    if all are: a market that shares its catalogue with others has only some of them.
    """

    ids: pa.Array
    counts: Tensor
    offered: Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def own_ids(self, indices: Tensor) -> list:
        """Own ids of item indices int64[k] in 1..V."""
        if len(indices) and not 1 <= int(indices.min()) <= int(indices.max()) <= len(self):
            raise InputError(f"item indices must be in 1..{len(self)}, got {indices.tolist()}")
        return self.ids.take(pa.array((indices - 1).numpy())).to_pylist()

    def indices(self, ids: Sequence[int | str]) -> Tensor:
        """Item indices int64[k] of own ids, given as they are or as text; InputError names unknown ones."""
        wanted = pa.array([str(one).strip() for one in ids], pa.string())
        found = pc.index_in(wanted, value_set=self.ids.cast(pa.string()))
        if found.null_count:
            unknown = wanted.filter(found.is_null()).to_pylist()
            raise InputError(
                f"the catalogue of {len(self)} items has no item {', '.join(map(repr, unknown[:5]))}; "
                f"items are named as in the log, such as {self.ids[0].as_py()!r}"
            )
        return torch.tensor(found.to_pylist(), dtype=torch.int64) + 1


def read_partition(url: str) -> Sequences:
    """Read a partition that `prepare` wrote; ArtifactError if it is not one, or was altered since."""
    data, folder, name = absolute(url).rsplit("/", 2)
    table = _read_table(data, f"{folder}/{name}", ["user", "key", "items"], optional=["markets", "validates"])
    lists = table["items"].combine_chunks()
    lengths = pc.list_value_length(lists)
    markets = table["markets"].combine_chunks().flatten() if "markets" in table.column_names else None
    validates = table["validates"].combine_chunks() if "validates" in table.column_names else None
    return Sequences(
        items=_tensor(lists.flatten(), pa.int32()),
        offsets=bounds(_tensor(lengths, pa.int64())),
        keys=_tensor(table["key"].combine_chunks(), pa.int64()),
        users=table["user"].combine_chunks(),
        markets=None if markets is None else _tensor(markets, pa.int16()),
        validates=None if validates is None else _tensor(validates, pa.bool_()),
        tests=NO_TEST not in (table.schema.metadata or {}),
    )


def write_partition(sequences: Sequences, path: Path) -> None:
    """Write a partition as `read_partition` reads it."""
    starts = pa.array(sequences.offsets.numpy(), pa.int32())
    columns = {
        "user": sequences.users,
        "key": sequences.keys.numpy(),
        "items": pa.ListArray.from_arrays(starts, sequences.items.numpy()),
    }
    if sequences.markets is not None:
        columns["markets"] = pa.ListArray.from_arrays(starts, sequences.markets.numpy())
    if sequences.validates is not None:
        columns["validates"] = sequences.validates.numpy()
    pq.write_table(pa.table(columns, metadata=None if sequences.tests else {NO_TEST: b""}), path)


def read_items(url: str) -> Items:
    """Read a catalogue, `items.parquet`; ArtifactError if it is not one, or one of prepared data that was altered."""
    data, name = absolute(url).rsplit("/", 1)
    table = _read_table(data, name, ["index", "item", "count"], optional=["offered"])
    indices = _tensor(table["index"].combine_chunks(), pa.int64())
    if not torch.equal(indices, torch.arange(1, len(indices) + 1)):
        raise ArtifactError(f"{without_credentials(url)} does not number its items 1, 2, …; prepare the log again")
    counts = _tensor(table["count"].combine_chunks(), pa.int64())
    offered = _tensor(table["offered"].combine_chunks(), pa.bool_()) if "offered" in table.column_names else None
    return Items(table["item"].combine_chunks(), counts, offered)


def write_items(items: Items, path: Path) -> None:
    """Write the catalogue as `read_items` reads it."""
    indices = pa.array(range(1, len(items) + 1), pa.int32())
    columns = {"index": indices, "item": items.ids, "count": items.counts.numpy()}
    if items.offered is not None:
        columns["offered"] = items.offered.numpy()
    pq.write_table(pa.table(columns), path)


def _read_table(folder: str, name: str, columns: list[str], *, optional: list[str]) -> pa.Table:
    content = read_file(folder, name)
    try:
        found = pq.ParquetFile(pa.BufferReader(content))
        columns = columns + [column for column in optional if column in found.schema_arrow.names]
        return found.read(columns=columns).select(columns)
    except (pa.ArrowException, OSError, KeyError) as error:
        what = f"is not as prepared ({first_line(error)}); prepare it again"
        raise ArtifactError(f"{without_credentials(folder)}/{name} {what}") from error


def _tensor(array: pa.Array, kind: pa.DataType) -> Tensor:
    return torch.from_numpy(array.cast(kind).to_numpy(zero_copy_only=False).copy())


def bounds(lengths: Tensor) -> Tensor:
    """Where parts of these lengths start, and where the last one ends: int64[U] → int64[U + 1]."""
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])


def slices(items: Tensor, starts: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
    """Parts of `items` from `starts` up to `ends`, exclusive, concatenated: (items[n], offsets int64[S + 1])."""
    lengths = ends - starts
    offsets = bounds(lengths)
    shift = torch.repeat_interleave(starts - offsets[:-1], lengths)
    return items[shift + torch.arange(len(shift))], offsets


def pad_left(items: Tensor, starts: Tensor, ends: Tensor, width: int) -> Tensor:
    """The last `width` items of the parts from `starts` up to `ends`, exclusive, as rows padded with 0 on the left.

    int[n], int64[S], int64[S] → [S, width] of the type of `items`. Does not synchronise with a GPU.

    >>> pad_left(torch.tensor([7, 8, 9]), torch.tensor([0, 1]), torch.tensor([1, 3]), 2).tolist()
    [[0, 7], [8, 9]]
    """
    places = ends[:, None] + torch.arange(-width, 0, device=items.device)
    if not len(items):
        return items.new_zeros(places.shape)
    real = places >= starts[:, None]
    return items[places * real] * real
