"""Several runs of one recipe that differ in their seed, as one report: only the table is computed again."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from pydantic import TypeAdapter

from raymerge.artifacts import Artifact, open_artifact
from raymerge.config import leaves
from raymerge.errors import InputError
from raymerge.evaluation import report_schema
from raymerge.evaluation.config import EvaluationConfig
from raymerge.evaluation.report_schema import Kind, Report, Results
from raymerge.files import storage
from raymerge.stages.inputs import partitions_of
from raymerge.stages.report import (
    CANDIDATES,
    MEAN,
    best_of,
    bootstrap_of,
    comparisons,
    row,
    with_mean,
)

BEST = "best member"  # of each run, by its own validation: runs need not agree on it


@dataclass(frozen=True)
class Run:
    """A run's report and what it was made from."""

    output: str
    artifact: Artifact
    content: Report

    @classmethod
    def of(cls, place: str) -> "Run":
        """From the place of a `report.json`: <output>/report/<digest>/report.json."""
        folder = place.rpartition("/")[0]
        artifact = open_artifact(folder, "report")
        if "recipe" not in artifact.manifest["configuration"]:
            raise InputError(f"{place} was made by another version: run its command again")
        return cls(folder.rsplit("/", 2)[0], artifact, report_schema.read(place))

    @property
    def measured(self) -> dict[str, Any]:
        """Everything that must be the same in runs that are pooled."""
        configuration = self.artifact.manifest["configuration"]
        recipe = {".".join(path): value for path, value in leaves(configuration["recipe"])}
        protocol = {**self.content["protocol"], "validation": None}  # words, which settings and data determine
        return {**recipe, "entries": configuration["entries"], **protocol, "data": self.data}

    @property
    def data(self) -> str:
        """Digest of the prepared data."""
        return str(self.artifact.manifest["inputs"]["data"])

    @property
    def best(self) -> str:
        """The best member on validation."""
        return best_of(self.kinds, self.content["validation"], "member")

    @property
    def kinds(self) -> dict[str, Kind]:
        """The kind of each model, by name."""
        return dict(self.artifact.manifest["configuration"]["entries"])

    def ranks(self, name: str) -> Artifact:
        """A model's ranks."""
        digest = self.artifact.manifest["inputs"]["ranks"][name]
        return open_artifact(storage.join(self.output, "evaluate", digest), "evaluate")

    def mean(self, name: str, ranking: str, metric: str) -> float:
        """The mean of a row's metric over users."""
        members = [one for one, kind in self.kinds.items() if kind == "member"]
        wanted = members if name == MEAN else [self.best] if name == BEST else [name]
        found = [one["metrics"] for one in self.content["rows"] if one["name"] in wanted]
        return fmean(metrics[ranking][metric]["mean"] for metrics in found)


def pool_reports(places: Sequence[str]) -> Results:
    """Means over runs of all metrics, their spread, and comparisons paired by user, from each run's `report.json`.

    A user's metric is its mean over runs. Intervals and p values reflect the choice of users, as in each report;
    `spread`, the standard deviation over runs, that of seeds. Holds one partition of ranks at a time. Raises InputError
    for runs that were measured differently, and for a run that is named twice.
    """
    runs = [Run.of(place) for place in places]
    _check(runs)
    first = runs[0]
    recipe = first.artifact.manifest["configuration"]["recipe"]
    settings = TypeAdapter(EvaluationConfig).validate_python(recipe["evaluation"])
    kinds = first.kinds
    ranks = with_mean(kinds, {name: [run.ranks(name) for run in runs] for name in kinds})
    compared = [name for name, kind in kinds.items() if kind == "member"]
    if recipe["markets"] is None:
        kinds, compared = {**kinds, BEST: "member"}, [BEST]
        ranks[BEST] = [run.ranks(run.best) for run in runs]
    data = open_artifact(storage.join(first.output, "prepare", first.data), "prepare")
    bootstrap = bootstrap_of(partitions_of(data), ranks, settings)
    rows = [row(name, kinds.get(name, "mean"), bootstrap, settings) for name in ranks]
    for one in rows:
        one["spread"] = {ranking: _spread(runs, one["name"], ranking, list(m)) for ranking, m in one["metrics"].items()}
    return {
        "schema": first.content["schema"],
        "recipe": first.content["recipe"],
        "protocol": {**first.content["protocol"], "runs": len(runs)},
        "rows": rows,
        "comparisons": comparisons(kinds, compared, bootstrap, settings),
        "data": first.content["data"],
        "final": best_of(first.kinds, _mean_validation(runs), *CANDIDATES),
    }


def _mean_validation(runs: Sequence[Run]) -> dict[str, float]:
    """The mean over runs by model."""
    scores = [run.content["validation"] for run in runs]
    return {name: fmean(score[name] for score in scores) for name in scores[0]}


def _spread(runs: Sequence[Run], name: str, ranking: str, metrics: Sequence[str]) -> dict[str, float]:
    return {metric: stdev(run.mean(name, ranking, metric) for run in runs) for metric in metrics}


def _check(runs: Sequence[Run]) -> None:
    first, *others = runs
    for other in others:
        ours, theirs = first.measured, other.measured
        for key in {**ours, **theirs}:
            if ours.get(key) != theirs.get(key):
                raise InputError(
                    f"{first.output} and {other.output} differ in {key}: {ours.get(key)} and {theirs.get(key)}; "
                    "runs of one table may differ only in their seed"
                )
    ranks = [tuple(run.artifact.manifest["inputs"]["ranks"].values()) for run in runs]
    for number, run in enumerate(runs):
        if ranks[number] in ranks[:number]:
            raise InputError(f"{run.output} has the same models as another of the runs: name each run once")
