"""The Fisher diagonal on Ray: each user partition is a shard, summed by whichever process is free, committed once.

A shard's sum depends only on the model, the partition and the configuration; on GPUs also on the size of their memory.
Its process commits it under a key made of these, so a shard that is made twice, after a process died or hung, is the
same file. Shards are added in float64 in a fixed tree over the partitions (`raymerge.fisher.reduction`), so the
diagonal is the same bit for bit for any number of processes, any order of completion and any process that died on the
way.

Traffic per process: it reads each model once and each partition once per model, and writes one float64 diagonal per
shard to the output folder; the driver gets two numbers. Memory per process: the models it has loaded (at most 8), the
sums in float64, and the engine's budget; a model is too large for a process only if these do not fit. The driver holds
1 + log2(shards) blocks of `raymerge.files.blocks.BLOCK_BYTES`, whatever the size of the model.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from raymerge.artifacts import Key, Output
from raymerge.data.split import Examples
from raymerge.execution import chunking
from raymerge.execution.pool import Pool
from raymerge.execution.worker_cache import examples_of, model_at, offered_in
from raymerge.files.blocks import blocks, write_blocks
from raymerge.fisher.diagonal import accumulate
from raymerge.fisher.engine import default_budget
from raymerge.fisher.weights import FisherConfig
from raymerge.models.encoder import EncoderConfig, SequenceEncoder

SUMS_FILE = "sums.safetensors"


@dataclass(frozen=True)
class ShardPlan:
    """A shard to make: `model` and `partition` by URL, `inputs` by digest; `catalogue` if not all items are offered.

    For a study, `users` limits the users taken from the partition, and `double` computes in float64.
    """

    stage: str
    model: str
    partition: str
    inputs: Mapping[str, str]
    config: FisherConfig
    catalogue: str | None = None
    users: int | None = None
    double: bool = False

    @property
    def key(self) -> Key:
        """What the shard is found by: all that its sum depends on."""
        configuration = self.config.key
        configuration |= {"users": self.users} if self.users is not None else {}
        configuration |= {"dtype": "float64"} if self.double else {}
        return Key(self.stage, self.inputs, configuration)


@dataclass(frozen=True)
class Shard:
    """A committed shard: its URL, the number of users in its sum, and the core or GPU seconds that it took."""

    url: str
    users: int
    seconds: float


def make_shard(output: str, plan: ShardPlan) -> Shard:
    """Sum over one partition's users, at the position that predicts their second-to-last item (runs in a worker)."""
    module = model_at(plan.model)
    found = examples_of(plan.partition, "validation", module.config.max_length, everyone=True)
    _warm_up(next(module.parameters()).device)
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time  # CPUs may be shared with other jobs
    began = clock()
    sums, users = _sums(module, found, plan)
    seconds = clock() - began
    shapes = {name: tuple(value.shape) for name, value in sums.items()}
    with Output(output).draft(plan.key) as draft:
        content = (block.of(sums[block.name]) for block in blocks(shapes))
        write_blocks(draft.folder / SUMS_FILE, shapes, torch.float64, content)
        draft.counts.update({"users": users, "seconds": seconds})
    return Shard(Output(output).locate(plan.key), users, seconds)


def _sums(module: nn.Module, found: Examples, plan: ShardPlan) -> tuple[dict[str, Tensor], int]:
    some = slice(plan.users)
    if not len(found.histories[some]):
        zeros = {name: torch.zeros(p.shape, dtype=torch.float64) for name, p in module.named_parameters()}
        return zeros, 0
    sums, users = accumulate(
        module,
        found.histories[some],
        config=plan.config,
        targets=found.targets[some],
        keys=found.keys[some],
        offered=offered_in(plan.catalogue),
        dtype=torch.float64 if plan.double else None,
        memory_bytes=chunking.budget(default_budget(next(module.parameters()).device)),
    )
    return {name: value.cpu() for name, value in sums.items()}, users


@cache
def _warm_up(device: torch.device) -> None:
    """Load a process's kernels and threads with a small model before the first shard is timed."""
    module = SequenceEncoder(10, EncoderConfig(max_length=10)).to(device)
    accumulate(module, torch.ones(2, 10, dtype=torch.int64), config=FisherConfig())


def make_shards(pool: Pool, output: str, plans: Mapping[str, ShardPlan], *, doing: str) -> Iterator[tuple[str, Shard]]:
    """Make and commit the planned shards; yields each with its key, in order of completion."""
    return pool.run(make_shard, {key: (output, plan) for key, plan in plans.items()}, doing=doing)
