"""From models to Fisher diagonals, shard by shard."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict

import torch
from torch import Tensor

from raymerge.artifacts import Artifact
from raymerge.blocks import write_blocks
from raymerge.errors import InputError
from raymerge.events import Progress
from raymerge.fisher.distributed import Shard, ShardPlan, make_shards
from raymerge.pool import Pool
from raymerge.stages.context import Context, Making
from raymerge.stages.prepare import partitions_of
from raymerge.stages.shards import Rate, ShardSum, find_shards, shard_inputs
from raymerge.stages.train import model_digest


def fisher(context: Context, pool: Pool, data: Artifact, models: Mapping[str, Artifact]) -> dict[str, Artifact]:
    """Fisher diagonals of models on the validation histories, by name; shards that are committed are used again."""
    configuration = asdict(context.config.fisher)
    done: dict[str, Artifact] = {}
    for name, model in models.items():
        found = context.find(
            "fisher", f"fisher/{name}", inputs=_fisher_inputs(data, model), configuration=configuration
        )
        if found is not None:
            done[name] = found
    missing = {name: model for name, model in models.items() if name not in done}
    if missing:
        shards = _shards(context, pool, data, missing)
        for name, model in missing.items():
            done[name] = _commit_diagonal(context, data, name, model, shards[name])
    return {name: done[name] for name in models}


def _fisher_inputs(data: Artifact, model: Artifact) -> dict[str, str]:
    return {"data": data.digest, "model": model_digest(model)}


def _shards(context: Context, pool: Pool, data: Artifact, models: Mapping[str, Artifact]) -> dict[str, list[Shard]]:
    """Sums over each partition for each model, of all models at the same time; a model's in the order of partitions."""
    partitions = partitions_of(data)
    plans = {_key(name, url): _plan(context, data, models[name], url) for url in partitions for name in models}
    owners = {_key(name, url): name for url in partitions for name in models}
    shards = find_shards(context, plans)
    done = Counter({name: sum(_key(name, url) in shards for url in partitions) for name in models})
    for name in models:
        context.emit(Progress(f"fisher/{name}", done[name], len(partitions) + 1))
    rate = Rate()

    def take(key: str, shard: Shard) -> None:
        shards[key] = shard
        done[owners[key]] += 1
        context.emit(Progress(f"fisher/{owners[key]}", done[owners[key]], len(partitions) + 1, rate.note(shard.users)))

    missing = {key: plan for key, plan in plans.items() if key not in shards}
    make_shards(pool, context.output.open().url, missing, doing="the Fisher diagonals", on_shard=take)
    return {name: [shards[_key(name, url)] for url in partitions] for name in models}


def _key(model: str, partition: str) -> str:
    return f"{partition.rpartition('/')[2]} of {model}"


def _plan(context: Context, data: Artifact, model: Artifact, partition: str) -> ShardPlan:
    inputs = shard_inputs(data, model, partition)
    return ShardPlan("fisher-shard", model.file("model"), partition, inputs, context.config.fisher)


def _commit_diagonal(context: Context, data: Artifact, name: str, model: Artifact, shards: Sequence[Shard]) -> Artifact:
    inputs, run, configuration = _fisher_inputs(data, model), f"fisher/{name}", asdict(context.config.fisher)
    total = ShardSum(shards)
    if not total.users:
        raise InputError(f"{data.url} has no user with 3 items or more: prepare a longer log")
    with context.make("fisher", run, inputs=inputs, configuration=configuration) as making:
        write_blocks(making.folder / "diagonal.safetensors", total.shapes, torch.float32, _told(total, making))
        making.counts.update({"users": total.users, "estimator": context.config.fisher.estimator})
        making.progress(1, 1, f"{total.users:,} users")
    return context.committed("fisher", inputs, configuration)


def _told(total: ShardSum, making: Making) -> Iterator[Tensor]:
    """Blocks of the diagonal in float32; the mean of each parameter is told on the way."""
    sums = dict.fromkeys(sorted(total.shapes), 0.0)
    for block, mean in total.means():
        diagonal = mean.to(torch.float32)
        sums[block.name] += float(diagonal.double().sum())
        yield diagonal
    for name, value in sums.items():
        making.tell(f"mean.{name}", value / max(1, torch.Size(total.shapes[name]).numel()))
