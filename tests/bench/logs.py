"""The interaction log of the benchmark: MovieLens-1M if available, otherwise the demo's shop at the same size."""

import os
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from raymerge.data.demo import generate
from raymerge.data.prepare import PARTITIONS_FOLDER, PrepareConfig, prepare
from raymerge.data.sequences import read_partition

DATA = Path(os.environ.get("RAYMERGE_TEST_DATA", Path(__file__).parents[2].parent / "shared" / "data"))


def write_log(path: Path) -> str:
    """Write the log for `peers/interactions.py`, without items and users of fewer than 5 actions; returns its name."""
    with tempfile.TemporaryDirectory() as folder:
        source, columns = DATA / "ml-1m" / "interactions.parquet", {"user": "user_id", "item": "item_id"}
        name = "MovieLens-1M"
        if not source.is_file():
            source, columns = Path(folder) / "demo.parquet", {}
            name = f"simulated log (no {DATA / 'ml-1m'})"
            pq.write_table(generate(users=6040, items=3416), source)
        counts = prepare([str(source)], PrepareConfig(**columns, partitions=1), Path(folder) / "data")
        (partition,) = (Path(folder) / "data" / PARTITIONS_FOLDER).iterdir()
        histories = read_partition(str(partition))
    users = np.repeat(np.arange(len(histories)), histories.lengths)
    places = np.arange(len(users)) - np.repeat(histories.offsets[:-1], histories.lengths).numpy()
    np.save(path, np.stack([users, histories.items, places], axis=1).astype(np.int64))
    return f"{name}: {counts['users']:,} users, {counts['items']:,} items, {counts['interactions']:,} interactions"
