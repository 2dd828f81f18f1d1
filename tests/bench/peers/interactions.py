"""The log that all contestants of the training benchmark learn from, in this package's form.

int64[n, 3]: user, item from 1 to V, and place in the user's history, sorted by user and place. The last two items of
each user are held out of every training.
"""

import numpy as np
import pyarrow as pa
import torch

from raymerge.data.sequences import Sequences, bounds


def read(path: str) -> tuple[Sequences, int]:
    """The whole histories in this file, and the number of items."""
    user, item, _ = np.load(path).T
    users, sizes = np.unique(user, return_counts=True)
    items = torch.from_numpy(item.astype(np.int32))
    offsets = bounds(torch.from_numpy(sizes))
    return Sequences(items, offsets, torch.from_numpy(users), pa.array(users)), int(item.max())
