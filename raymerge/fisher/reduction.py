"""Adding up the sums of shards in one fixed order: the result is the same to the bit wherever they came from."""

from collections.abc import Iterable

from torch import Tensor

Sums = dict[str, Tensor]


def tree_sum(shards: Iterable[Sums]) -> Sums:
    """Sum over shards, by parameter name, in a binary tree over their order.

    Shards are read one by one; at most 1 + log2(number of shards) are held at once, as the digits of a binary counter.
    Hand them over in the order of their keys. Raises ValueError without a shard.
    """
    levels: list[tuple[int, Sums]] = []
    for shard in shards:
        level = 0
        while levels and levels[-1][0] == level:
            shard = _add(levels.pop()[1], shard)
            level += 1
        levels.append((level, shard))
    if not levels:
        raise ValueError("there is no shard to add up")
    total = levels.pop()[1]
    while levels:
        total = _add(levels.pop()[1], total)
    return total


def _add(left: Sums, right: Sums) -> Sums:
    return {name: left[name] + right[name] for name in left}
