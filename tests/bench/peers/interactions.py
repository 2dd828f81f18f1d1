"""The log that all trainings of the benchmark learn from, as this package holds it.

int64[n, 3]: user, item from 1 to V, and place in the user's history, sorted by user and place. The last two items of
each user are held out of every training.
"""

import numpy as np
import pyarrow as pa
import torch

from raymerge.data.sequences import Sequences, bounds


def read(path: str) -> tuple[Sequences, int]:
    """The histories in this file, whole, and the number of items."""
    user, item, _ = np.load(path).T
    users, sizes = np.unique(user, return_counts=True)
    items = torch.from_numpy(item.astype(np.int32))
    offsets = bounds(torch.from_numpy(sizes))
    return Sequences(items, offsets, torch.from_numpy(users), pa.array(users)), int(item.max())
