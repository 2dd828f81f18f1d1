"""Shards of Fisher sums: found if committed, else made; and their sum, block by block."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from torch import Tensor

from raymerge.artifacts import Artifact, Output
from raymerge.data.prepare import ITEMS_FILE
from raymerge.errors import InputError
from raymerge.execution.pool import Pool
from raymerge.files import storage
from raymerge.files.blocks import Block, Shapes, TensorFile, blocks
from raymerge.fisher.distributed import SUMS_FILE, Shard, ShardPlan, make_shards
from raymerge.fisher.reduction import tree_sum
from raymerge.fisher.weights import FisherConfig
from raymerge.stages.inputs import model_digest, restricted_catalogue


def plan_shard(
    stage: str,
    data: Artifact,
    model: Artifact,
    partition: str,
    config: FisherConfig,
    *,
    users: int | None = None,
    double: bool = False,
) -> ShardPlan:
    """A shard, found by the digests of its inputs: data with added partitions share the old ones."""
    files, catalogue = data.manifest["files"], restricted_catalogue(data)
    inputs = {"model": model_digest(model), "partition": files[partition.removeprefix(data.url + "/")]}
    if catalogue is not None:
        inputs["catalogue"] = files[ITEMS_FILE]
    return ShardPlan(stage, model.file("model"), partition, inputs, config, catalogue, users, double)


class ShardGroups:
    """Finds or makes the shards of several diagonals; `groups` maps each diagonal to its shards' plans, by key.

    Keys are unique across groups; shards are made in the order of their keys, and summed in the order given.
    """

    def __init__(self, output: Output, groups: Mapping[str, Mapping[str, ShardPlan]]) -> None:
        self._output, self._groups = output, groups
        self._shards: dict[str, Shard] = {}
        for key, plan in self._plans().items():
            found = output.find(plan.key)
            if found is not None:
                self._shards[key] = Shard(found.url, found.counts["users"], found.counts["seconds"])
        self.done = Counter({name: sum(key in self._shards for key in plans) for name, plans in groups.items()})
        """How many shards of each group exist."""

    def _plans(self) -> dict[str, ShardPlan]:
        return {key: plan for plans in self._groups.values() for key, plan in plans.items()}

    def make(
        self, pool: Pool, *, doing: str, on_shard: Callable[[str, Shard], None]
    ) -> Iterator[tuple[str, list[Shard]]]:
        """Make the missing shards, with `on_shard(group, shard)` for each; yields each group once it is complete."""
        owners = {key: name for name, plans in self._groups.items() for key in plans}
        missing = {key: plan for key, plan in self._plans().items() if key not in self._shards}
        yield from ((name, self._of(name)) for name in self._groups if self._is_complete(name))
        for key, shard in make_shards(pool, self._output.open().url, missing, doing=doing):
            name = owners[key]
            self._shards[key] = shard
            self.done[name] += 1
            on_shard(name, shard)
            if self._is_complete(name):
                yield name, self._of(name)

    def _is_complete(self, name: str) -> bool:
        return self.done[name] == len(self._groups[name])

    def _of(self, name: str) -> list[Shard]:
        return [self._shards[key] for key in self._groups[name]]


class ShardSum:
    """The sum of shards, in the order given, with only a few blocks in memory.

    `seconds_per_user` is that of the fastest shard, since other work on a machine only adds to it. Raises InputError if
    there are no users.
    """

    def __init__(self, shards: Sequence[Shard]) -> None:
        self.users = sum(shard.users for shard in shards)
        if not self.users:
            raise InputError("no user has 3 items or more: prepare a longer log")
        self._files = [TensorFile(storage.join(shard.url, SUMS_FILE)) for shard in shards]

        self.seconds_per_user = min(shard.seconds / shard.users for shard in shards if shard.users)

    @property
    def shapes(self) -> Shapes:
        """Shapes of the parameters, by name."""
        return self._files[0].shapes

    def means(self) -> Iterator[tuple[Block, Tensor]]:
        """The mean over users in float64, block by block."""
        for block in blocks(self.shapes):
            yield block, tree_sum(file.read(block) for file in self._files) / self.users


class Rate:
    """Users per second, over all processes, since it was created."""

    def __init__(self) -> None:
        self._began, self._users = time.monotonic(), 0

    def note(self, users: int) -> str:
        """The rate in words, after `users` more users."""
        self._users += users
        return f"{self._users / (time.monotonic() - self._began):,.0f} users/s"
