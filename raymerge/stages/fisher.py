"""From models to Fisher diagonals, shard by shard."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import prod

import torch
from torch import Tensor

from raymerge.artifacts import DIAGONAL_FILE, Artifact, Key
from raymerge.config import Config
from raymerge.events import Progress
from raymerge.execution.pool import Pool
from raymerge.files.blocks import write_blocks
from raymerge.fisher.distributed import Shard, ShardPlan
from raymerge.stages.context import Context, TrackedDraft
from raymerge.stages.inputs import items_on_offer, model_digest, partitions_of
from raymerge.stages.shards import Rate, ShardGroups, ShardSum, plan_shard


def check_samples(config: Config, data: Sequence[Artifact], models: Iterable[Artifact] = ()) -> None:
    """Raise ConfigError if an estimator takes more samples than there are items, or dimensions in a model.

    `models` are those that are there already; without any they will be as configured.
    """
    items = min(items_on_offer(one) for one in data)
    dim = min((int(model.json("model", "config.json")["dim"]) for model in models), default=config.encoder.dim)
    for section, settings in config.estimators.items():
        settings.check_model(section, dim=dim, items=items)


def fisher(context: Context, pool: Pool, data: Artifact, models: Mapping[str, Artifact]) -> dict[str, Artifact]:
    """Fisher diagonals of models, by name, on all histories up to the second-to-last item.

    Committed shards are reused; the missing ones of all models are made in parallel, partition by partition.
    """
    done: dict[str, Artifact] = {}
    for name, model in models.items():
        found = context.find(context.run_name("fisher", name), _key(context, data, model))
        if found is not None:
            done[name] = found
    missing = {name: model for name, model in models.items() if name not in done}
    groups = ShardGroups(context.output, {name: _plans(context, data, name, model) for name, model in missing.items()})
    total, rate = len(partitions_of(data)) + 1, Rate()

    def tell(name: str, shard: Shard) -> None:
        context.emit(Progress(context.run_name("fisher", name), groups.done[name], total, rate.note(shard.users)))

    for name in missing:
        context.emit(Progress(context.run_name("fisher", name), groups.done[name], total))
    for name, shards in groups.make(pool, doing="the Fisher diagonals", on_shard=tell):
        done[name] = _commit_diagonal(context, data, name, models[name], ShardSum(shards))
    return {name: done[name] for name in models}


def _key(context: Context, data: Artifact, model: Artifact) -> Key:
    return Key("fisher", {"data": data.digest, "model": model_digest(model)}, context.config.fisher.key)


def _plans(context: Context, data: Artifact, name: str, model: Artifact) -> dict[str, ShardPlan]:
    return {
        f"{partition.rpartition('/')[2]} of {name}{context.suffix}": plan_shard(
            "fisher-shard", data, model, partition, context.config.fisher
        )
        for partition in partitions_of(data)
    }


def _commit_diagonal(context: Context, data: Artifact, name: str, model: Artifact, total: ShardSum) -> Artifact:

    def fill(draft: TrackedDraft) -> None:
        write_blocks(draft.folder / DIAGONAL_FILE, total.shapes, torch.float32, _told(total, draft))
        draft.counts.update({"users": total.users, "estimator": context.config.fisher.estimator})
        draft.progress(1, 1, f"{total.users:,} users")

    return context.make(context.run_name("fisher", name), _key(context, data, model), fill)


def _told(total: ShardSum, draft: TrackedDraft) -> Iterator[Tensor]:
    """Blocks of the diagonal in float32; emits the mean over each parameter at the end."""
    sums = dict.fromkeys(sorted(total.shapes), 0.0)
    for block, mean in total.means():
        diagonal = mean.to(torch.float32)
        sums[block.name] += float(diagonal.double().sum())
        yield diagonal
    for name, value in sums.items():
        draft.tell(f"mean.{name}", value / max(1, prod(total.shapes[name])))
