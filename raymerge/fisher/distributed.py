"""The Fisher diagonal on Ray: each user partition is a shard, summed by whichever process is free, taken once.

A shard's sum depends on the model, the partition and the configuration only. Shards are added in float64 in a fixed
tree over their keys (`raymerge.fisher.reduction`), so the diagonal is the same to the bit for any number of
processes, any order of completion and any process that died on the way. Traffic: one diagonal in float64 a shard.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from raymerge.evaluation.distributed import worker_examples, worker_model
from raymerge.fisher.diagonal import accumulate
from raymerge.fisher.weights import FisherConfig
from raymerge.runtime import Pool

ShardSum = tuple[dict[str, Tensor], int]
"""Sum over a shard's users in float64, by parameter name, and how many users they are."""


def shard_sum(model: str, partition: str, config: FisherConfig) -> ShardSum:
    """Sum over the users of one partition, at the position that predicts their validation item (runs in a worker)."""
    module = worker_model(model)
    found = worker_examples(partition, "validation", module.config.max_length)
    if not len(found):
        return {
            name: torch.zeros_like(p, dtype=torch.float64, device="cpu") for name, p in module.named_parameters()
        }, 0
    sums, users = accumulate(module, found.histories, config=config, targets=found.targets, keys=found.keys)
    return {name: value.cpu() for name, value in sums.items()}, users


def shard_sums(
    pool: Pool,
    shards: Mapping[str, tuple[str, str]],
    config: FisherConfig,
    *,
    on_shard: Callable[[str, ShardSum], None],
) -> None:
    """Sum the shards given as key → (URL of the model, URL of the partition); `on_shard` in order of completion."""
    pieces = {key: (*shard, config) for key, shard in shards.items()}
    pool.run(shard_sum, pieces, doing="the Fisher diagonals", on_result=on_shard)
