"""The report of a run: `report.json`, the table at its end, a page for the browser. Knows neither MLflow nor Ray."""

import base64
import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from jinja2 import Environment, StrictUndefined
from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config
from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from typing_extensions import NotRequired, TypedDict

from raymerge.errors import ArtifactError
from raymerge.tracking.page import TEMPLATE

SCHEMA = 1  # raised when a key changes its meaning or a required key is added
SIGNIFICANCE = 0.05
COLUMNS = ("ndcg@10", "ndcg@20", "hr@10")
Kind = Literal["base", "member", "control", "average", "round", "merged", "fine-tuned", "ceiling", "ensemble"]
ROLES = {
    "base": "the base that members start from",
    "member": "the best member",
    "average": "the uniform average",
    "control": "the control",
    "ceiling": "one model trained on all data",
    "ensemble": "the ensemble of all members",
}
"""What a reference of each kind is called in the verdict, in the order told."""


class Measured(TypedDict):
    """A metric: mean over users and its bootstrap interval."""

    mean: float
    low: float
    high: float


class Row(TypedDict):
    """One model: ranking (`full`, `uni100`, `pop100`) → metric (`ndcg@10`) → value.

    Of several runs `metrics` has means over them and `spread` standard deviations.
    """

    name: str
    kind: Kind
    metrics: dict[str, dict[str, Measured]]
    spread: NotRequired[dict[str, dict[str, float]]]


class Comparison(TypedDict):
    """Candidate minus reference, paired by user: `p_holm` is the p value after Holm's correction over all of them."""

    candidate: str
    reference: str
    metric: str
    difference: float
    relative: float | None
    low: float
    high: float
    p: float
    p_holm: float


class Protocol(TypedDict):
    """How the models were measured; `ranking` is the one that the printed table shows."""

    split: Literal["validation", "test"]
    seen_filtered: bool
    max_length: int
    ranking: str
    users: int
    validation: NotRequired[Any]
    validation_users: NotRequired[int]  # how many of them; the others' last item but one trains
    runs: NotRequired[int]  # of other seeds, over which the metrics are means


class Merge(TypedDict):
    """What the merge chose, on validation."""

    method: str
    coefficients: dict[str, float]
    normalise: Literal["none", "model", "tensor"]
    epsilon: float
    power: float
    validation_score: float | None


class Data(TypedDict):
    """The log after cleaning."""

    users: int
    items: int
    interactions: int
    digest: str


@with_config(ConfigDict(extra="allow"))
class Results(TypedDict):
    """All that the printed table shows, of one run or of several; `final` names the model to serve."""

    schema: int
    protocol: Protocol
    rows: list[Row]
    comparisons: list[Comparison]
    data: Data
    final: str


@with_config(ConfigDict(extra="allow"))
class Report(Results):
    """The results of a run and where they come from.

    `artifacts` are places by name, told from the output folder on, and `timings` are seconds by model.
    """

    merge: Merge
    artifacts: dict[Literal["models", "diagonals"], dict[str, str]]
    timings: dict[str, float]
    versions: dict[str, str]


def results(content: Mapping[str, Any]) -> Results:
    """What was measured, as the table takes it; raises ValidationError for anything else."""
    return TypeAdapter(Results).validate_python(dict(content))


def loads(text: str | bytes) -> Report:
    """Read `report.json`; ArtifactError names the first key that is wrong, or a schema that is not known."""
    try:
        version = json.loads(text)["schema"]
        if version != SCHEMA:
            raise ArtifactError(f"report.json has schema {version!r}, this version of raymerge reads {SCHEMA}")
        return TypeAdapter(Report).validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ArtifactError(f"report.json is not as it should be: {where}: {first['msg']}") from None
    except (json.JSONDecodeError, KeyError, TypeError):
        raise ArtifactError("report.json is not a report: it was cut off or written by another program") from None


def best_names(report: Results, metric: str, ranking: str | None = None, *, digits: int = 4) -> set[str]:
    """The best single-cost models by a metric: all that print as the same figure; an ensemble does not compete."""
    ranking = ranking or report["protocol"]["ranking"]
    printed = {
        row["name"]: round(row["metrics"][ranking][metric]["mean"], digits)
        for row in report["rows"]
        if row["kind"] != "ensemble"
    }
    return {name for name, value in printed.items() if value == max(printed.values())}


def render(report: Results) -> Group:
    """The table at the end of a run, for a `rich` console: metrics, NDCG@10's interval, and the verdict."""
    table, runs = Table("model"), report["protocol"].get("runs", 1)
    spread = ["± over runs"] if runs > 1 else []
    for heading in (COLUMNS[0].upper(), *spread, "interval", *(metric.upper() for metric in COLUMNS[1:])):
        table.add_column(heading, justify="right", no_wrap=True)
    best = {metric: best_names(report, metric) for metric in COLUMNS}
    for row in report["rows"]:
        metrics = row["metrics"][report["protocol"]["ranking"]]
        first, *others = (_cell(metrics[metric], best=row["name"] in best[metric]) for metric in COLUMNS)
        interval = Text(f"{metrics[COLUMNS[0]]['low']:.4f} to {metrics[COLUMNS[0]]['high']:.4f}", style="dim")
        spread = [f"{row['spread'][report['protocol']['ranking']][COLUMNS[0]]:.4f}"] if runs > 1 else []
        table.add_row(
            Text(row["name"]), first, *spread, interval, *others, style="dim" if row["kind"] == "ensemble" else ""
        )
    apart = ", the ensemble apart: it costs as much as all its models" if _has_ensemble(report) else ""
    opening, *judgements = verdict(report)
    return Group(
        Text(describe(report["protocol"])),
        table,
        Text(f"* best{apart}", style="dim"),
        Text(),
        Text(opening),
        *(Padding(Text(line), (0, 0, 0, 2)) for line in judgements),
    )


def _cell(measured: Measured, *, best: bool) -> Text:
    """Marked by a sign as well as by weight: not every terminal shows bold."""
    return Text(f"{measured['mean']:.4f}" + ("*" if best else " "), style="bold green" if best else "")


def _has_ensemble(report: Results) -> bool:
    return any(row["kind"] == "ensemble" for row in report["rows"])


def describe(protocol: Protocol) -> str:
    """The protocol in one line."""
    seen = "filtered" if protocol["seen_filtered"] else "not filtered"
    runs = f", mean of {protocol['runs']} runs" if protocol.get("runs", 1) > 1 else ""
    validating = protocol.get("validation_users", protocol["users"])
    some = f", {validating:,} of whom validate" if validating < protocol["users"] else ""
    return (
        f"{protocol['split'].capitalize()}, leave-one-out, {protocol['ranking']} ranking, seen items {seen}, "
        f"last {protocol['max_length']} items, {protocol['users']:,} users{some}{runs}"
    )


def verdict(report: Results) -> list[str]:
    """In plain words: which merged model validates best, and whether it differs from references by more than chance."""
    metric, ranking, final = COLUMNS[0], report["protocol"]["ranking"], report["final"]
    [measured] = [row["metrics"][ranking][metric] for row in report["rows"] if row["name"] == final]
    references = list(_references(report, final))
    several = sum(kind == "member" for kind, _ in references) > 1
    roles = ROLES | ({"member": "member"} if several else {})
    judgements = [_judge(one, roles[kind]) for kind, one in references]
    closing = "p values are corrected after Holm" if judgements else "It was not compared with other models"
    if judgements and report["protocol"].get("runs", 1) > 1:
        closing += ", and are about which users are asked, given these runs, not about which seeds"
    opening = f"{final} validates best of the merged models: {metric.upper()} {measured['mean']:.4f} on test."
    return [opening, *judgements, f"{closing}."]


def _references(report: Results, candidate: str) -> Iterator[tuple[str, Comparison]]:
    """Comparisons of the candidate by the verdict's metric, in the order of `ROLES`."""
    kinds = {row["name"]: row["kind"] for row in report["rows"]}
    mine = [one for one in report["comparisons"] if (one["candidate"], one["metric"]) == (candidate, COLUMNS[0])]
    for kind in ROLES:
        yield from ((kind, one) for one in mine if kinds.get(one["reference"]) == kind)


def _judge(comparison: Comparison, role: str) -> str:
    sign = "better than" if comparison["difference"] > 0 else "worse than"
    opening = f"Significantly {sign}" if comparison["p_holm"] < SIGNIFICANCE else "Not significantly different from"
    name = "" if comparison["reference"] in role else f" ({comparison['reference']})"
    relative = "" if comparison["relative"] is None else f", {comparison['relative']:+.1%}"
    return (
        f"{opening} {role}{name}: {comparison['difference']:+.4f}{relative} "
        f"({comparison['low']:+.4f} to {comparison['high']:+.4f}, p = {comparison['p_holm']:.3g})."
    )


def to_html(report: Report, plots: Mapping[str, bytes]) -> str:
    """The report as one page that needs no other file: tables of every ranking, and plots (title → PNG) inlined.

    All text is escaped; there is no script and nothing is fetched.
    """
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True).from_string(TEMPLATE)
    measured = report["rows"][0]["metrics"] if report["rows"] else {}
    rankings = {ranking: list(metrics) for ranking, metrics in measured.items()}
    return page.render(
        report=report,
        title=describe(report["protocol"]),
        verdict=verdict(report),
        rankings=rankings,
        best={
            (ranking, metric): best_names(report, metric, ranking)
            for ranking in rankings
            for metric in rankings[ranking]
        },
        plots={title: base64.b64encode(png).decode() for title, png in plots.items()},
    )
