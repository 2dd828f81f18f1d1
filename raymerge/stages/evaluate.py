"""From models to the ranks of each user's test item."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow.parquet as pq

from raymerge.artifacts import Artifact, Key
from raymerge.data.prepare import ITEMS_FILE
from raymerge.evaluation.distributed import Ranks, rank_users
from raymerge.evaluation.metrics import per_user
from raymerge.evaluation.report_schema import Kind
from raymerge.evaluation.validation import SCORE
from raymerge.execution.pool import Pool
from raymerge.stages.context import EVENTS, Context, TrackedDraft
from raymerge.stages.inputs import model_digest, partitions_of, restricted_catalogue


@dataclass(frozen=True)
class Entry:
    """A row of the report: a model, its kind and its ranks."""

    name: str
    kind: Kind
    model: Artifact | None  # None for the ensemble of all members
    ranks: Artifact

    @property
    def score(self) -> float:
        """On validation, by which models are chosen."""
        assert self.model is not None, "an ensemble is never chosen"
        return float(self.model.counts[SCORE])


def evaluate_all(
    context: Context, pool: Pool, data: Artifact, models: Mapping[Kind, Mapping[str, Artifact]]
) -> list[Entry]:
    """The rows of a report, in the order given: all models, by kind and name, and the ensemble of the members."""
    kinds = {name: kind for kind, group in models.items() for name in group}
    flat = {name: model for group in models.values() for name, model in group.items()}
    ranks = evaluate(context, pool, data, flat)
    together = _ranks_of(context, pool, data, "ensemble", list(models["member"].values()))
    entries = [Entry(name, kinds[name], model, ranks[name]) for name, model in flat.items()]
    return [*entries, Entry("ensemble", "ensemble", None, together)]


def evaluate(context: Context, pool: Pool, data: Artifact, models: Mapping[str, Artifact]) -> dict[str, Artifact]:
    """Ranks of all users' test items under each model, by name; one Parquet file per partition."""
    return {name: _ranks_of(context, pool, data, name, [model]) for name, model in models.items()}


def _ranks_of(context: Context, pool: Pool, data: Artifact, name: str, models: Sequence[Artifact]) -> Artifact:
    """Ranks under a model, or under the mean of several models' logits."""
    run, settings = f"evaluate/{name}", context.config.evaluation
    inputs = {"data": data.digest, "models": [model_digest(model) for model in models]}
    configuration = {
        "rankings": list(settings.rankings),
        "filter_seen": settings.filter_seen,
        "seed": settings.seed,
        "split": "test",
        "ks": list(settings.ks),
        "threads": context.config.cluster.actor_threads,
    }
    if restricted_catalogue(data):
        configuration["among"] = "items on offer"
    partitions = partitions_of(data)

    def rank(draft: TrackedDraft) -> None:
        draft.progress(0, len(partitions))
        users, sums = dict[str, int](), dict[str, dict[str, float]]()
        urls = tuple(model.file("model") for model in models)
        for partition, ranks in rank_users(
            pool, urls, partitions=partitions, items=data.file(ITEMS_FILE), config=settings
        ):
            pq.write_table(ranks.table(), draft.folder / partition.rpartition("/")[2])
            users[partition], sums[partition] = len(ranks.keys), _sums(ranks, settings.ks)
            draft.progress(len(sums), len(partitions) + 1)
        for key in sums[partitions[0]]:
            draft.tell(key, sum(sums[partition][key] for partition in partitions) / max(1, sum(users.values())))
        draft.progress(1, 1)

    return context.find_or_make(run, Key("evaluate", inputs, configuration), rank)


def metrics_of(ranks: Artifact) -> dict[str, float]:
    """Mean of each metric over all users, by `ranking.metric`."""
    return {key: value for key, _, value in ranks.json(EVENTS)}


def _sums(ranks: Ranks, ks: Sequence[int]) -> dict[str, float]:
    """Sum over users of each metric of each ranking, by `ranking.metric`."""
    return {
        f"{ranking}.{metric}": float(values.double().sum())
        for ranking, positions in ranks.ranks.items()
        for metric, values in per_user(positions, ks).items()
    }
