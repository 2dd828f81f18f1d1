"""From ranks to the report: every model's metrics with intervals, and which differences are more than chance."""

import platform
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import pyarrow.parquet as pq
import torch
from torch import Tensor

import raymerge
from raymerge.artifacts import Artifact, Key
from raymerge.config import Config
from raymerge.evaluation.config import EvaluationConfig
from raymerge.evaluation.metrics import per_user
from raymerge.evaluation.overlap import by_agreement
from raymerge.evaluation.report_schema import (
    REPORT_FILE,
    SCHEMA,
    Comparison,
    Group,
    Kind,
    Measured,
    Overlap,
    Protocol,
    Report,
    Row,
)
from raymerge.evaluation.significance import Bootstrap, holm
from raymerge.evaluation.validation import METRIC, SCORE
from raymerge.files import storage
from raymerge.stages.context import Context, TrackedDraft
from raymerge.stages.evaluate import Entry
from raymerge.stages.inputs import items_on_offer, partitions_of, restricted_catalogue
from raymerge.stages.interpolate import INTERPOLATION_FILE

CANDIDATES: tuple[Kind, ...] = ("merged", "fine-tuned")
"""Kinds of merged models: the best of them is served, and each is compared."""
REFERENCES: tuple[Kind, ...] = ("base", "average", "control", "ceiling", "ensemble")
"""Kinds that a merge is compared with, besides members."""
MEAN = "mean of the members"  # a row that is not a model: the expected metrics of a random member
HIT_AT = 10
PACKAGES = ("torch", "ray", "mlflow", "pyarrow")


def report(
    context: Context,
    data: Artifact,
    entries: Sequence[Entry],
    *,
    merge: Artifact,
    diagonals: Mapping[str, Artifact],
    interpolation: Artifact | None = None,
) -> Artifact:
    """Metrics and comparisons of all models, as `report.json`; made from the ranks, holding one partition at a time."""
    settings = context.config.evaluation
    inputs = {
        "ranks": {entry.name: entry.ranks.digest for entry in entries},
        "data": data.digest,
        "merge": merge.digest,
        "interpolation": interpolation.digest if interpolation else None,
    }
    recipe = kept_settings(context.config)
    names = [[entry.name, entry.kind] for entry in entries]
    configuration = {"recipe": recipe, "entries": names, "references": REFERENCES}

    def compare(draft: TrackedDraft) -> None:
        kinds = {entry.name: entry.kind for entry in entries}
        ranks = with_mean(kinds, {entry.name: [entry.ranks] for entry in entries})
        bootstrap = bootstrap_of(partitions_of(data), ranks, settings, progress=draft.progress)
        rows = [row(name, kinds.get(name, "mean"), bootstrap, settings) for name in ranks]
        content = _content(context, data, entries, rows, merge, diagonals, bootstrap)
        if MEAN in ranks:
            content["overlap"] = _overlap(partitions_of(data), entries, settings.rankings[0])
        if interpolation is not None:
            content["interpolation"] = interpolation.json(INTERPOLATION_FILE)
        draft.write_json(REPORT_FILE, content)
        for one in rows:
            for ranking, metrics in one["metrics"].items():
                for metric, value in metrics.items():
                    draft.tell(f"{one['name']}.{ranking}.{metric}", value["mean"])
        draft.progress(1, 1)

    return context.find_or_make("report", Key("report", inputs, configuration), compare)


def kept_settings(config: Config) -> dict[str, Any]:
    """What a report keeps of the configuration: everything that runs of one table have in common."""
    return {key: value for key, value in config.determining().items() if key not in ("seed", "study")}


def with_mean(kinds: Mapping[str, Kind], ranks: Mapping[str, Sequence[Artifact]]) -> dict[str, Sequence[Artifact]]:
    """The ranks of all rows, with those of the members' mean after the members if there are several."""
    members = [name for name in ranks if kinds[name] == "member"]
    rows = dict[str, Sequence[Artifact]]()
    for name, found in ranks.items():
        rows[name] = found
        if len(members) > 1 and name == members[-1]:
            rows[MEAN] = [artifact for member in members for artifact in ranks[member]]
    return rows


def bootstrap_of(
    partitions: Sequence[str],
    ranks: Mapping[str, Sequence[Artifact]],
    settings: EvaluationConfig,
    *,
    progress: Callable[[float, float], None] = lambda done, total: None,
) -> Bootstrap:
    """All metrics of all models over all users, partition by partition in their order.

    A row for several models or runs has several artifacts of ranks: a user's metric is its mean over them. `progress`
    is called before each partition with the number done and the total.
    """
    columns = [_column(name, ranking, m) for name in ranks for ranking in settings.rankings for m in _metrics(settings)]
    bootstrap = Bootstrap(columns, replicates=settings.replicates, seed=settings.seed)
    artifacts = {artifact.url: artifact for runs in ranks.values() for artifact in runs}  # in several rows, read once
    for done, partition in enumerate(partitions):
        progress(done, len(partitions))
        measured = {url: _gains(artifact, partition, settings) for url, artifact in artifacts.items()}
        values = {
            _column(name, ranking, metric): sum(
                (measured[one.url][ranking, metric] / len(runs) for one in runs), start=torch.zeros(())
            )
            for name, runs in ranks.items()
            for ranking in settings.rankings
            for metric in _metrics(settings)
        }
        keys = _columns(next(iter(artifacts.values())), partition, "key")[0]
        if len(keys):
            bootstrap.update(keys, values)
    return bootstrap


def _gains(ranks: Artifact, partition: str, settings: EvaluationConfig) -> dict[tuple[str, str], Tensor]:
    """Each user's metrics, by ranking and metric: float64[U] each."""
    found = zip(settings.rankings, _columns(ranks, partition, *settings.rankings), strict=True)
    return {
        (ranking, metric): gains for ranking, ranked in found for metric, gains in per_user(ranked, settings.ks).items()
    }


def _overlap(partitions: Sequence[str], entries: Sequence[Entry], ranking: str) -> Overlap:
    """Which users the members hit, together or alone, and how many of them each of the other models hits."""
    groups: dict[str, Group] = {}
    for partition in partitions:
        hits = {entry.name: _columns(entry.ranks, partition, ranking)[0] <= HIT_AT for entry in entries}
        members = {entry.name: hits[entry.name] for entry in entries if entry.kind == "member"}
        for name, inside in by_agreement(members).items():
            group = groups.setdefault(name, {"members": name, "users": 0, "hits": {}})
            group["users"] += int(inside.sum())
            for model in (name for name in hits if name not in members):
                group["hits"][model] = group["hits"].get(model, 0) + int((hits[model] & inside).sum())
    return {"k": HIT_AT, "ranking": ranking, "groups": list(groups.values())}


def _columns(ranks: Artifact, partition: str, *names: str) -> list[Tensor]:
    """Columns of the ranks of a partition of the data, int64[U] each."""
    with storage.open_file(ranks.file(partition.rpartition("/")[2])) as file:
        table = pq.read_table(file, columns=list(names))
    return [torch.from_numpy(table[name].to_numpy().copy()) for name in names]


def _metrics(settings: EvaluationConfig) -> list[str]:
    return list(per_user(torch.ones(0, dtype=torch.int64), settings.ks))


def _column(name: str, ranking: str, metric: str) -> str:
    return f"{name}|{ranking}|{metric}"


def _content(
    context: Context,
    data: Artifact,
    entries: Sequence[Entry],
    rows: list[Row],
    merge: Artifact,
    diagonals: Mapping[str, Artifact],
    bootstrap: Bootstrap,
) -> Report:
    config = context.config
    kinds = {entry.name: entry.kind for entry in entries}
    members = [name for name, kind in kinds.items() if kind == "member"]  # in the order in which they were merged
    scores = {entry.name: entry.score for entry in entries if entry.model}
    # the members of markets each validate on their own data, so their scores do not say which is best
    compared = [best_of(kinds, scores, "member")] if config.markets is None else members
    return {
        "schema": SCHEMA,
        "recipe": config.recipe,
        "protocol": _protocol(config, data, bootstrap.users),
        "rows": rows,
        "comparisons": comparisons(kinds, compared, bootstrap, config.evaluation),
        "merge": {
            "method": merge.counts["method"],
            "normalise": merge.counts["normalise"],
            "epsilon": merge.counts["epsilon"],
            "power": merge.counts["power"],
            "step": merge.counts["step"],
            "coefficients": dict(zip(members, merge.counts["coefficients"], strict=True)),
            "validation_score": merge.counts[SCORE],
        },
        "validation": scores,
        "final": best_of(kinds, scores, *CANDIDATES),
        "data": {
            "users": data.counts["users"],
            "items": data.counts["items"],
            "interactions": data.counts["interactions"],
            "digest": data.digest,
        },
        "timings": {entry.name: float(entry.model.counts["seconds"]) for entry in entries if entry.model},
        "versions": {"raymerge": raymerge.__version__, "python": platform.python_version()}
        | {package: version(package) for package in PACKAGES},
        "artifacts": {
            "models": {entry.name: _within(context, entry.model) for entry in entries if entry.model},
            "diagonals": {name: _within(context, diagonal) for name, diagonal in diagonals.items()},
        },
    }


def _protocol(config: Config, data: Artifact, users: int) -> Protocol:
    """How models were measured and chosen; counts the users that validated, unless markets did so separately."""
    protocol: Protocol = {
        "split": "test",
        "seen_filtered": config.evaluation.filter_seen,
        "max_length": config.encoder.max_length,
        "ranking": config.evaluation.rankings[0],
        "users": users,
    }
    if restricted_catalogue(data):
        protocol["offered"] = items_on_offer(data)
    validating = data.counts.get("validation_users", users)  # data from before this was counted: everyone
    if config.markets is None:
        whose = "each user" if validating == users else f"{validating:,} users"
        words = f"the second-to-last item of {whose}, full ranking, NDCG@10"
        return {**protocol, "validation": words, "validation_users": validating}
    whose = "each user" if validating == users else "users drawn to validate"
    part = f"the second-to-last item of {whose}, in each market that has it"
    return {**protocol, "validation": f"{part}, ranked among the items that the market has, NDCG@10"}


def _within(context: Context, artifact: Artifact) -> str:
    """Where an artifact is, relative to the output folder, so that the folder can be moved."""
    return artifact.url.removeprefix(context.output.url + "/")


def best_of(kinds: Mapping[str, Kind], scores: Mapping[str, float], *wanted: Kind) -> str:
    """Name of the model of the `wanted` kinds that is best on validation."""
    return max((name for name, kind in kinds.items() if kind in wanted), key=scores.__getitem__)


def row(name: str, kind: Kind, bootstrap: Bootstrap, settings: EvaluationConfig) -> Row:
    """A model's metrics with their intervals."""

    def measured(ranking: str, metric: str) -> Measured:
        found = bootstrap.interval(_column(name, ranking, metric), confidence=settings.confidence)
        return {"mean": found.mean, "low": found.low, "high": found.high}

    metrics = {
        ranking: {metric: measured(ranking, metric) for metric in _metrics(settings)} for ranking in settings.rankings
    }
    return {"name": name, "kind": kind, "metrics": metrics}


def comparisons(
    kinds: Mapping[str, Kind], members: Sequence[str], bootstrap: Bootstrap, settings: EvaluationConfig
) -> list[Comparison]:
    """Each merged model against these members and all `REFERENCES`, with Holm's correction over all comparisons."""
    ranking = settings.rankings[0]
    references = [*members, *(name for name, kind in kinds.items() if kind in REFERENCES)]
    compared = {
        (a, b): bootstrap.compare(
            _column(a, ranking, METRIC), _column(b, ranking, METRIC), confidence=settings.confidence
        )
        for a, kind in kinds.items()
        for b in references
        if kind in CANDIDATES
    }
    corrected = holm({f"{a}|{b}": result.p_value for (a, b), result in compared.items()})
    return [
        {
            "candidate": a,
            "reference": b,
            "metric": METRIC,
            "difference": result.difference,
            "relative": result.relative,
            "low": result.low,
            "high": result.high,
            "p": result.p_value,
            "p_holm": corrected[f"{a}|{b}"],
        }
        for (a, b), result in compared.items()
    ]
