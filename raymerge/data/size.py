"""How much data there is, as far as it can be told before it is prepared."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
from pyarrow import compute as pc

from raymerge.data.interactions import LogConfig, open_log
from raymerge.errors import InputError

SAMPLE_ROWS = 2_000_000


@dataclass(frozen=True)
class DataSize:
    """Users, items of the catalogue, interactions and, of prepared data, the users who validate."""

    users: int
    items: int
    interactions: int
    validation_users: int | None = None

    @classmethod
    def of(cls, counts: Mapping[str, int]) -> "DataSize":
        """From the counts of prepared data."""
        return cls(counts["users"], counts["items"], counts["interactions"], counts.get("validation_users"))


def measure(files: Sequence[str], config: LogConfig, *, sample_rows: int = SAMPLE_ROWS) -> DataSize:
    """The size of a log before rare items and users go: exact up to `sample_rows`, beyond them by the bytes read.

    Users are then taken to grow with the rows, and items, most of which show early, to be those found.
    """
    rows, read, total = 0, 0, 0
    users, items = pa.array([], pa.string()), pa.array([], pa.string())
    for file in files:
        with open_log(file, config) as log:
            total += log.size
            for batch in log.batches if rows < sample_rows else ():
                rows += len(batch)
                users, items = _merged(users, batch["user"]), _merged(items, batch["item"])
                if rows >= sample_rows:
                    read += min(log.size, max(1, log.position()))
                    break
            else:
                read += log.size if rows < sample_rows else 0
    if not rows:
        raise InputError("the interaction log has no rows")
    scale = max(1.0, total / max(1, read)) if rows >= sample_rows else 1.0
    return DataSize(round(len(users) * scale), len(items), round(rows * scale))


def _merged(known: pa.Array, more: pa.Array) -> pa.Array:
    found = pc.unique(more.drop_null()).cast(pa.string())
    return pc.unique(pa.concat_arrays([known, found]))
