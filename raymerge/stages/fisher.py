"""From models to Fisher diagonals, shard by shard."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from raymerge.artifacts import Artifact, load_tensors, save_tensors
from raymerge.events import Progress
from raymerge.fisher.distributed import ShardSum, shard_sums
from raymerge.fisher.reduction import tree_sum
from raymerge.runtime import Pool
from raymerge.stages.context import Context
from raymerge.stages.prepare import partitions_of
from raymerge.stages.train import model_digest


def fisher(context: Context, pool: Pool, data: Artifact, models: Mapping[str, Artifact]) -> dict[str, Artifact]:
    """Fisher diagonals of models on the validation histories, by name; shards that are committed are used again."""
    configuration = {**asdict(context.config.fisher), "threads": context.config.cluster.actor_threads}
    done: dict[str, Artifact] = {}
    for name, model in models.items():
        found = context.find(
            "fisher", f"fisher/{name}", inputs=_fisher_inputs(data, model), configuration=configuration
        )
        if found is not None:
            done[name] = found
    missing = {name: model for name, model in models.items() if name not in done}
    if missing:
        shards = _make_shards(context, pool, data, missing, configuration)
        for name, model in missing.items():
            done[name] = _commit_diagonal(context, data, name, model, shards[name], configuration)
    return {name: done[name] for name in models}


def _fisher_inputs(data: Artifact, model: Artifact) -> dict[str, str]:
    return {"data": data.digest, "model": model_digest(model)}


def _shard_inputs(data: Artifact, model: Artifact, partition: str) -> dict[str, str]:
    name = partition.removeprefix(data.url + "/")
    return {"model": model_digest(model), "partition": data.manifest["files"][name]}


def _make_shards(
    context: Context, pool: Pool, data: Artifact, models: Mapping[str, Artifact], configuration: Mapping[str, Any]
) -> dict[str, list[Artifact]]:
    """Sums over each partition for each model, committed one by one; those of a model in the order of partitions."""
    partitions = partitions_of(data)
    shards: dict[tuple[str, str], Artifact] = {}
    pieces: dict[str, tuple[str, str]] = {}
    owners: dict[str, tuple[str, str]] = {}
    for name, model in models.items():
        for partition in partitions:
            inputs = _shard_inputs(data, model, partition)
            found = context.output.find("fisher-shard", inputs=inputs, configuration=configuration)
            if found is not None:
                shards[name, partition] = found
            else:
                key = f"{partition.rpartition('/')[2]} of {name}"
                pieces[key], owners[key] = (model.file("model"), partition), (name, partition)
        context.emit(Progress(f"fisher/{name}", 0, len(partitions)))

    def commit(key: str, result: ShardSum) -> None:
        name, partition = owners[key]
        inputs = _shard_inputs(data, models[name], partition)
        sums, users = result
        with context.output.stage("fisher-shard", inputs=inputs, configuration=configuration) as draft:
            save_tensors(sums, draft.folder / "sums.safetensors")
            draft.counts["users"] = users
        shards[name, partition] = context.committed("fisher-shard", inputs, configuration)
        done = sum(1 for owner, _ in shards if owner == name)
        context.emit(Progress(f"fisher/{name}", done, len(partitions) + 1))

    shard_sums(pool, pieces, context.config.fisher, on_shard=commit)
    return {name: [shards[name, partition] for partition in partitions] for name in models}


def _commit_diagonal(
    context: Context,
    data: Artifact,
    name: str,
    model: Artifact,
    shards: Sequence[Artifact],
    configuration: Mapping[str, Any],
) -> Artifact:
    inputs, run = _fisher_inputs(data, model), f"fisher/{name}"
    with context.make("fisher", run, inputs=inputs, configuration=configuration) as making:
        users = sum(shard.counts["users"] for shard in shards)
        sums = tree_sum(load_tensors(shard.file("sums.safetensors")) for shard in shards)
        diagonal = {key: (value / users).to(torch.float32) for key, value in sums.items()}
        save_tensors(diagonal, making.folder / "diagonal.safetensors")
        making.counts.update({"users": users, "estimator": context.config.fisher.estimator})
        for key, value in diagonal.items():
            making.tell(f"mean.{key}", float(value.double().mean()))
        making.progress(1, 1, f"{users:,} users")
    return context.committed("fisher", inputs, configuration)
