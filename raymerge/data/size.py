"""How much data there is, as far as is known before it is prepared."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
from pyarrow import compute as pc

from raymerge.data.interactions import LogConfig, open_log
from raymerge.errors import InputError

SAMPLE_ROWS = 2_000_000


@dataclass(frozen=True)
class DataSize:
    """Numbers of users, items of the catalogue, interactions and, for prepared data, users who validate."""

    users: int
    items: int
    interactions: int
    validation_users: int | None = None

    @classmethod
    def of(cls, counts: Mapping[str, int]) -> "DataSize":
        """The size by the counts of prepared data."""
        return cls(counts["users"], counts["items"], counts["interactions"], counts.get("validation_users"))


def measure(files: Sequence[str], config: LogConfig, *, sample_rows: int = SAMPLE_ROWS) -> DataSize:
    """The size of a log before rare items and users are dropped: exact up to `sample_rows`, then scaled by bytes.

    Beyond the sample, users are assumed to grow with the rows, but not items, most of which appear early.
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
