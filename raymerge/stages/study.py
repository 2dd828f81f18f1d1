"""From a model to a study of the estimators: how many samples are enough."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

import torch

from raymerge.artifacts import DIAGONAL_FILE, Artifact, Key, Output
from raymerge.errors import InputError
from raymerge.events import Progress
from raymerge.execution.pool import Pool
from raymerge.files import storage
from raymerge.files.blocks import TensorFile, write_blocks
from raymerge.fisher.distributed import Shard, ShardPlan
from raymerge.fisher.study import SCHEMA, Agreement, Measured, Study, backward_passes, candidates, line_of, rows
from raymerge.fisher.weights import FisherConfig
from raymerge.stages.context import Context, TrackedDraft
from raymerge.stages.inputs import items_on_offer, model_digest, partitions_of
from raymerge.stages.shards import Rate, ShardGroups, ShardSum, plan_shard

RESULT = "study-result"


def run_of(model: str) -> str:
    """Name of the run that studies a model."""
    return f"fisher-study/{model}"


def fisher_study(context: Context, pool: Pool, data: Artifact, name: str, model: Artifact) -> Artifact:
    """Compare each registered estimator's diagonal with the exact one, on `fisher`'s histories: `study.json`.

    Each candidate is computed partition by partition; once all its shards exist, the result is committed and the shards
    are removed, so that the disk holds those of a few candidates at a time.
    """
    task = _Task(context, pool, data, run_of(name), model)
    like = context.config.fisher
    configuration = asdict(context.config.study) | {"temperature": like.temperature, "precision": like.precision}

    def compare(draft: TrackedDraft) -> None:
        content = _content(task, _measure(task, _exact(task)))
        draft.write_json("study.json", content)
        _tell(draft, content)
        draft.counts.update({"users": content["users"], "rows": len(content["rows"])})
        draft.progress(1, 1, f"{content['users']:,} users, {len(content['rows'])} rows")

    return context.find_or_make(task.run, Key("study", task.inputs, configuration), compare)


@dataclass(frozen=True)
class _Task:
    """One study: its users, and its pieces of work."""

    context: Context
    pool: Pool
    data: Artifact
    run: str
    model: Artifact

    @cached_property
    def inputs(self) -> dict[str, str]:
        return {"data": self.data.digest, "model": model_digest(self.model)}

    @cached_property
    def size(self) -> dict[str, int]:
        """V and d of the model."""
        config = self.model.json("model", "config.json")
        return {"items": items_on_offer(self.data), "dim": config["dim"]}

    @cached_property
    def bounds(self) -> dict[str, int | None]:
        """Number of users per partition; a bound is split evenly, since partitions are random parts of all users."""
        partitions, users = partitions_of(self.data), self.context.config.study.users
        if users is None:
            return dict.fromkeys(partitions)
        share, rest = divmod(users, len(partitions))
        return {url: share + (number < rest) for number, url in enumerate(partitions)}

    def plans(self, name: str, config: FisherConfig, *, double: bool = False) -> dict[str, ShardPlan]:
        """Shards of a candidate."""
        return {
            f"{name} on {url.rpartition('/')[2]}": plan_shard(
                "study-shard", self.data, self.model, url, config, users=users, double=double
            )
            for url, users in self.bounds.items()
        }

    def key(self, stage: str, config: FisherConfig) -> Key:
        """Key of a stage's result for a candidate."""
        return Key(stage, self.inputs, config.key | {"users": self.context.config.study.users})


def _exact(task: _Task) -> Artifact:
    """The exact diagonal in float64, to which all others are compared."""
    output, run = task.context.output, f"{task.run}/exact"
    config = FisherConfig(temperature=task.context.config.fisher.temperature)
    key = task.key("study-exact", config)
    found, plans = output.find(key), task.plans("exact", config, double=True)
    if found is not None:
        _clear(output, plans.values())
        return found
    groups, rate = ShardGroups(output, {run: plans}), Rate()
    total = len(task.bounds) + 1

    def tell(_: str, shard: Shard) -> None:
        task.context.emit(Progress(run, groups.done[run], total, rate.note(shard.users)))

    task.context.emit(Progress(run, groups.done[run], total))
    [(_, shards)] = groups.make(task.pool, doing="the exact diagonal", on_shard=tell)
    summed = ShardSum(shards)
    with output.draft(key) as draft:
        means = (mean for _, mean in summed.means())
        write_blocks(draft.folder / DIAGONAL_FILE, summed.shapes, torch.float64, means)
        draft.counts["users"] = summed.users
    _remove(shards)
    task.context.emit(Progress(run, 1, 1, f"{summed.users:,} users, float64"))
    return task.context.committed(key)


def _measure(task: _Task, exact: Artifact) -> list[Measured]:
    """All candidates, also those measured before; the most expensive first, so that the time left is soon right."""
    output, size = task.context.output, task.size
    configs = list(candidates(task.context.config.study, task.context.config.fisher, **size))
    found = {config: output.find(task.key(RESULT, config)) for config in configs}
    for config in configs:
        if found[config] is not None:
            _clear(output, task.plans(_title(config), config).values())
    costs = {config: backward_passes(config, dim=size["dim"]) + 1 for config in configs}
    missing = sorted((config for config in configs if found[config] is None), key=lambda one: -costs[one])
    names = {f"{number:04d} {_title(config)}": config for number, config in enumerate(missing)}
    groups = ShardGroups(output, {name: task.plans(name, config) for name, config in names.items()})
    total = sum(costs.values()) * len(task.bounds)

    def done() -> float:
        shards = sum(costs[config] * groups.done[name] for name, config in names.items())
        return shards + sum(costs[config] for config in configs if found[config] is not None) * len(task.bounds)

    def tell(name: str, shard: Shard) -> None:
        task.context.emit(Progress(task.run, done(), total + 1, _title(names[name])))

    task.context.emit(Progress(task.run, done(), total + 1))
    for name, shards in groups.make(task.pool, doing="the study", on_shard=tell):
        _commit_result(task, names[name], exact, ShardSum(shards))
        _remove(shards)
    return [_result(config, task.context.committed(task.key(RESULT, config))) for config in configs]


def _title(config: FisherConfig) -> str:
    return line_of(config) + (f" n={config.samples}" if config.samples else "")


def _commit_result(task: _Task, config: FisherConfig, exact: Artifact, total: ShardSum) -> None:
    """Compare the diagonal of a candidate with the exact one, block by block; only the comparison is kept."""
    reference = TensorFile(exact.file(DIAGONAL_FILE))
    agreement = dict.fromkeys(total.shapes, Agreement())
    for block, mean in total.means():
        agreement[block.name] += Agreement.of(mean, reference.read(block))
    with task.context.output.draft(task.key(RESULT, config)) as draft:
        draft.write_json("agreement.json", {name: asdict(found) for name, found in agreement.items()})
        draft.counts.update({"users": total.users, "seconds_per_user": total.seconds_per_user})


def _result(config: FisherConfig, artifact: Artifact) -> Measured:
    agreement = {name: Agreement(**sums) for name, sums in artifact.json("agreement.json").items()}
    return Measured(config, artifact.counts["users"], artifact.counts["seconds_per_user"], agreement)


def _remove(shards: Sequence[Shard]) -> None:
    for shard in shards:
        storage.remove_folder(shard.url)


def _clear(output: Output, plans: Iterable[ShardPlan]) -> None:
    """Remove shards that a killed command has left although their sum is committed."""
    for plan in plans:
        storage.remove_folder(output.locate(plan.key))


def _content(task: _Task, measured: Sequence[Measured]) -> Study:
    if not any(agreement.exact for agreement in measured[0].agreement.values()):
        raise InputError(
            "the exact diagonal is 0 in every entry, so nothing can be compared with it: is there more than one item?"
        )
    return {
        "schema": SCHEMA,
        "users": measured[0].users,
        "items": task.size["items"],
        "dim": task.size["dim"],
        "temperature": task.context.config.fisher.temperature,
        "precision": task.context.config.fisher.precision,
        "rows": rows(measured, dim=task.size["dim"]),
    }


def _tell(draft: TrackedDraft, content: Study) -> None:
    """Emit the metrics of each line, by number of samples."""
    for row in content["rows"]:
        line, step = row["line"], row["samples"] or 0
        for metric in ("error", "scaled_error", "cosine"):
            draft.tell(f"{line}.{metric}", row["overall"][metric]["mean"], step=step)
        draft.tell(f"{line}.ms_per_user", 1000 * row["seconds_per_user"], step=step)
