"""The report for people: the table at the end of a run, and a page for the browser. Uses neither MLflow nor Ray."""

import base64
import re
from collections.abc import Iterator, Mapping

from jinja2 import Environment, StrictUndefined
from rich.console import Group
from rich.padding import Padding
from rich.table import Column, Table
from rich.text import Text

from raymerge.evaluation.report_schema import (
    NOT_SERVED,
    Comparison,
    Kind,
    Measured,
    Protocol,
    Report,
    Results,
    seen_items,
)
from raymerge.evaluation.validation import METRIC
from raymerge.tracking.page import TEMPLATE

SIGNIFICANCE = 0.05
COLUMNS = (METRIC, "ndcg@20", "hr@10")
ROLES: dict[Kind, str] = {
    "base": "the base that the members start from",
    "member": "the best member",
    "average": "the uniform average",
    "control": "the control",
    "ceiling": "one model trained on all data",
    "ensemble": "the ensemble of all members",
}
"""What the verdict calls a reference of each kind, in the order reported."""


def best_names(report: Results, metric: str, ranking: str | None = None) -> set[str]:
    """The best single-cost models by a metric: all that print the same number."""
    ranking = ranking or report["protocol"]["ranking"]
    printed = {
        row["name"]: round(row["metrics"][ranking][metric]["mean"], 4)
        for row in report["rows"]
        if row["kind"] not in NOT_SERVED
    }
    return {name for name, value in printed.items() if value == max(printed.values())}


def render(report: Results) -> Group:
    """The table at the end of a run, for a `rich` console: metrics, NDCG@10's interval, and the verdict."""
    table, protocol = Table(Column("model", overflow="fold")), report["protocol"]
    ranking, is_pooled = protocol["ranking"], protocol.get("runs", 1) > 1
    spread = ["± over runs"] if is_pooled else []
    for heading in (METRIC.upper(), *spread, "interval", *(metric.upper() for metric in COLUMNS[1:])):
        table.add_column(heading, justify="right", no_wrap=True)
    best = {metric: best_names(report, metric) for metric in COLUMNS}
    for row in report["rows"]:
        metrics = row["metrics"][ranking]
        first, *others = (_cell(metrics[metric], best=row["name"] in best[metric]) for metric in COLUMNS)
        interval = Text(f"{metrics[METRIC]['low']:.4f} to {metrics[METRIC]['high']:.4f}", style="dim")
        spread = [f"{row['spread'][ranking][METRIC]:.4f}"] if is_pooled else []
        table.add_row(
            Text(row["name"]), first, *spread, interval, *others, style="dim" if row["kind"] in NOT_SERVED else ""
        )
    has_ensemble = any(row["kind"] == "ensemble" for row in report["rows"])
    apart = ", not counting the ensemble, which costs as much as all its models" if has_ensemble else ""
    opening, *judgements = verdict(report)
    return Group(
        Text(describe(protocol)),
        table,
        Text(f"* best{apart}", style="dim"),
        Text(),
        Text(opening),
        *(Padding(Text(line), (0, 0, 0, 2), expand=False) for line in judgements),
    )


def _cell(measured: Measured, *, best: bool) -> Text:
    """The best has a sign as well as bold type, which not every terminal shows."""
    return Text(f"{measured['mean']:.4f}" + ("*" if best else " "), style="bold green" if best else "")


def describe(protocol: Protocol) -> str:
    """The protocol in one line."""
    seen = seen_items(filtered=protocol["seen_filtered"])
    runs = f", mean of {protocol['runs']} runs" if protocol.get("runs", 1) > 1 else ""
    validating = protocol.get("validation_users", protocol["users"])
    some = f", {validating:,} of whom validate" if validating < protocol["users"] else ""
    among = f" among {protocol['offered']:,} items on offer" if "offered" in protocol else ""
    return (
        f"{protocol['split'].capitalize()}, leave-one-out, {protocol['ranking']} ranking{among}, {seen}, "
        f"last {protocol['max_length']} items, {protocol['users']:,} users{some}{runs}"
    )


def verdict(report: Results) -> list[str]:
    """In plain words: which merged model was chosen, and whether it differs from references by more than chance."""
    ranking, final = report["protocol"]["ranking"], report["final"]
    [measured] = [row["metrics"][ranking][METRIC] for row in report["rows"] if row["name"] == final]
    references = list(_references(report, final))
    several = sum(kind == "member" for kind, _ in references) > 1
    roles: dict[Kind, str] = {**ROLES, "member": "member"} if several else ROLES
    judgements = [_judge(one, roles[kind]) for kind, one in references]
    closing = "p values are Holm-corrected" if judgements else "It was not compared with other models"
    if judgements and report["protocol"].get("runs", 1) > 1:
        closing += ", and reflect the choice of users, given these runs, not the choice of seeds"
    opening = f"Chosen on validation: {final}. Its {METRIC.upper()} on test is {measured['mean']:.4f}."
    return [opening, *judgements, f"{closing}."]


def _references(report: Results, candidate: str) -> Iterator[tuple[Kind, Comparison]]:
    """Comparisons of the candidate by the verdict's metric, in the order of `ROLES`."""
    kinds = {row["name"]: row["kind"] for row in report["rows"]}
    mine = [one for one in report["comparisons"] if (one["candidate"], one["metric"]) == (candidate, METRIC)]
    for kind in ROLES:
        yield from ((kind, one) for one in mine if kinds.get(one["reference"]) == kind)


def _judge(comparison: Comparison, role: str) -> str:
    sign = "better than" if comparison["difference"] > 0 else "worse than"
    opening = f"Significantly {sign}" if comparison["p_holm"] < SIGNIFICANCE else "Not significantly different from"
    name = "" if re.search(rf"\b{re.escape(comparison['reference'])}\b", role) else f" ({comparison['reference']})"
    relative = "" if comparison["relative"] is None else f", {comparison['relative']:+.1%}"
    return (
        f"{opening} {role}{name}: {comparison['difference']:+.4f}{relative} "
        f"({comparison['low']:+.4f} to {comparison['high']:+.4f}, p = {comparison['p_holm']:.3g})."
    )


def to_html(report: Report, plots: Mapping[str, bytes]) -> str:
    """The report as one page that needs no other file: tables of every ranking, and inlined plots (title → PNG).

    All text is escaped; it has no scripts and fetches nothing.
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
