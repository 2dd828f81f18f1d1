"""Adding up the sums of shards in one fixed order: the result is the same bit for bit wherever they came from."""

from collections.abc import Iterable

from torch import Tensor


def tree_sum(shards: Iterable[Tensor]) -> Tensor:
    """Sum over shards in a binary tree over their order, entry by entry, so a block of rows may be summed on its own.

    Shards are read one by one; at most 1 + log2(shards) are held at once, like the digits of a binary counter.
    Pass them in the order of their keys. Raises ValueError if there is none.
    """
    levels: list[tuple[int, Tensor]] = []
    for shard in shards:
        level = 0
        while levels and levels[-1][0] == level:
            shard = levels.pop()[1] + shard
            level += 1
        levels.append((level, shard))
    if not levels:
        raise ValueError("there are no shards to add up")
    total = levels.pop()[1]
    while levels:
        total = levels.pop()[1] + total
    return total
