"""Rows of a log on local disk, split by user: a log too large for memory is read one partition at a time."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from raymerge.data.ids import stable_keys

SCHEMA = pa.schema(
    [
        ("user", pa.string()),
        ("item", pa.int32()),
        ("whole", pa.int64()),
        ("fraction", pa.float64()),
        ("market", pa.int16()),
    ]
)


def partition_of(keys: np.ndarray, partitions: int) -> np.ndarray:
    """Each user's partition, by the stable hash of the user's id: int64[n] → uint16[n] in 0..P−1.

    There are at most 65536; numpy sorts 16 bits several times faster than 64.
    """
    return (keys.view(np.uint64) % np.uint64(partitions)).astype(np.uint16)


class Spill:
    """Files of Arrow messages, one per partition, to which batches of rows are appended in the order of the log.

    No file stays open between batches, so there may be more partitions than open files.
    """

    def __init__(self, folder: Path, partitions: int) -> None:
        self.folder = folder
        self.partitions = partitions

    def append(self, users: pa.StringArray, codes: np.ndarray, columns: list[np.ndarray]) -> None:
        """Add n rows: distinct user ids text[k], each row's index into these int64[n], and the other columns."""
        partitions = partition_of(stable_keys(users), self.partitions)[codes]
        order = np.argsort(partitions, kind="stable")
        counts = np.bincount(partitions, minlength=self.partitions)
        present = np.flatnonzero(counts).tolist()
        starts = np.cumsum(counts) - counts
        arrays = [users.take(pa.array(codes[order])), *(pa.array(column[order]) for column in columns)]
        rows = pa.record_batch(arrays, schema=SCHEMA)
        for partition in present:
            with self._file(partition).open("ab") as file:
                file.write(rows.slice(starts[partition], counts[partition]).serialize())

    def take(self, partition: int) -> pa.Table:
        """All rows of a partition in the order of the log; deletes its file."""
        file = self._file(partition)
        if not file.exists():
            return SCHEMA.empty_table()
        table = pa.Table.from_batches(_messages(file), SCHEMA)
        file.unlink()
        return table

    def _file(self, partition: int) -> Path:
        return self.folder / f"rows-{partition:05d}.arrow"


def _messages(path: Path) -> Iterator[pa.RecordBatch]:
    with pa.OSFile(str(path)) as stream:
        size = stream.size()
        while stream.tell() < size:
            yield pa.ipc.read_record_batch(pa.ipc.read_message(stream), SCHEMA)
