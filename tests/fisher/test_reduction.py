"""Sums of shards: one fixed tree, in any blocks."""

from collections.abc import Iterator
from weakref import WeakSet

import pytest
import torch
from torch import Tensor

from raymerge.fisher.reduction import tree_sum


def by_recursion(shards: list[Tensor]) -> Tensor:
    """The tree: the largest power of two on the left, the rest on the right."""
    if len(shards) == 1:
        return shards[0]
    half = 1 << (len(shards) - 1).bit_length() - 1
    return by_recursion(shards[:half]) + by_recursion(shards[half:])


@pytest.mark.parametrize("count", range(1, 20))
def test_the_sum_equals_that_of_the_binary_tree_bit_for_bit(count: int) -> None:
    shards = list(torch.randn(count, 5, 3, dtype=torch.float64) * 10.0 ** torch.arange(count)[:, None, None])
    total = tree_sum(iter(shards))
    assert torch.equal(total, by_recursion(shards))
    by_rows = [tree_sum(shard[rows : rows + 2] for shard in shards) for rows in range(0, 5, 2)]
    assert torch.equal(torch.cat(by_rows), total)


def test_no_more_shards_are_held_than_the_depth_of_the_tree() -> None:
    alive: WeakSet[Tensor] = WeakSet()
    most = 0

    def shards() -> Iterator[Tensor]:
        nonlocal most
        for _ in range(64):
            shard = torch.ones(1)
            alive.add(shard)
            most = max(most, len(alive))
            yield shard
            del shard

    assert float(tree_sum(shards())) == 64
    assert most <= 3, "the rest are sums"
    with pytest.raises(ValueError, match="no shard"):
        tree_sum([])
