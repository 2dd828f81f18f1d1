"""Shards of Fisher sums: which are there already, how fast the others come, and their sum, block by block."""

import time
from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from raymerge.artifacts import Artifact
from raymerge.blocks import Block, Shapes, TensorFile, blocks
from raymerge.fisher.distributed import SUMS_FILE, Shard, ShardPlan
from raymerge.fisher.reduction import tree_sum
from raymerge.stages.context import Context
from raymerge.stages.train import model_digest
from raymerge.storage import join


def shard_inputs(data: Artifact, model: Artifact, partition: str) -> dict[str, str]:
    """Digests of what a shard is made of: the same in a data set that has been added to."""
    name = partition.removeprefix(data.url + "/")
    return {"model": model_digest(model), "partition": data.manifest["files"][name]}


def find_shards(context: Context, plans: Mapping[str, ShardPlan]) -> dict[str, Shard]:
    """Those that were committed before."""
    found = {key: context.output.find(plan.stage, **plan.key) for key, plan in plans.items()}
    return {
        key: Shard(one.url, one.counts["users"], one.counts["seconds"]) for key, one in found.items() if one is not None
    }


class Rate:
    """Users a second, all processes together, since it was made."""

    def __init__(self) -> None:
        self._began, self._users = time.monotonic(), 0

    def note(self, users: int) -> str:
        """The rate in words, after so many users more."""
        self._users += users
        return f"{self._users / (time.monotonic() - self._began):,.0f} users/s"


class ShardSum:
    """The sum of shards, in the order given, of which no more than some blocks are ever in memory."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self.users = sum(shard.users for shard in shards)
        self._files = [TensorFile(join(shard.url, SUMS_FILE)) for shard in shards]

    @property
    def shapes(self) -> Shapes:
        """Of the parameters, by name."""
        return self._files[0].shapes

    def means(self) -> Iterator[tuple[Block, Tensor]]:
        """Block by block the mean over users, in float64."""
        for block in blocks(self.shapes):
            yield block, tree_sum(file.read(block) for file in self._files) / self.users
