"""What a study of the estimators shows: its table, its plots, and what goes to MLflow."""

import csv
import tempfile
from itertools import chain
from pathlib import Path
from typing import Final

from rich.box import SIMPLE
from rich.console import Group
from rich.table import Table
from rich.text import Text

from raymerge.artifacts import Artifact
from raymerge.errors import ArtifactError
from raymerge.files import storage
from raymerge.fisher.study import SCHEMA, Row, Spread, Study, enough
from raymerge.tracking import plots
from raymerge.tracking.runs import Tracker

TOLERANCES = (0.1, 0.05, 0.02)
METRICS: Final = ("error", "scaled_error", "cosine", "scale")
FACTS: Final = (
    "estimator", "samples", "batch_size", "align", "unbiased", "seeds", "users", "passes", "seconds_per_user"
)  # fmt: skip


def read(artifact: Artifact) -> Study:
    """The results of a study; ArtifactError if its schema is not known."""
    study: Study = artifact.json("study.json")
    if study["schema"] != SCHEMA:
        raise ArtifactError(f"study.json has schema {study['schema']!r}, this version of raymerge reads {SCHEMA}")
    return study


def render(study: Study) -> Group:
    """The table for a `rich` console and, below it, how many samples are enough."""
    title = f"against the exact diagonal of {study['users']:,} users, d {study['dim']}, {study['precision']}"
    table = Table(title=title, box=SIMPLE, pad_edge=False)
    table.add_column("estimator", no_wrap=True)
    for heading in ("n", "passes", "ms", "error", "scaled", "cosine"):
        table.add_column(heading, justify="right", no_wrap=True)
    for place, row in enumerate(study["rows"]):
        overall, last = row["overall"], study["rows"][place - 1]
        if place and row["line"] != last["line"]:
            table.add_section()
        table.add_row(
            row["line"] + ("" if row["unbiased"] else " *"),
            str(row["samples"] or ""),
            str(row["passes"]),
            f"{1000 * row['seconds_per_user']:.2f}",
            _shown(overall["error"], row),
            _shown(overall["scaled_error"], row),
            f"{overall['cosine']['mean']:.4f}",
        )
    notes = "* biased, or another quantity (B: batch-wise). ms: per user, on one core or GPU. "
    notes += "scaled: error after the best single scale. ±: between seeds."
    return Group(table, Text(notes, style="dim"), Text(), _enough(study))


def _shown(value: Spread, row: Row) -> str:
    spread = 100 * value["spread"]
    return f"{value['mean']:.1%}" + (f" ±{spread:.{0 if spread >= 10 else 1}f}" if row["seeds"] > 1 else "")


def _enough(study: Study) -> Table:
    """For each estimator, the fewest samples that reach each of the `TOLERANCES` after one scale, and their cost."""
    table = Table(box=None)
    table.add_column("enough samples for a scaled error of", no_wrap=True)
    for tolerance in TOLERANCES:
        table.add_column(f"{tolerance:.0%}", justify="right")
    found = [enough(study["rows"], tolerance) for tolerance in TOLERANCES]
    for line in found[0]:
        table.add_row(line, *(_cell(answer[line]) for answer in found))
    return table


def _cell(row: Row | None) -> str:
    if row is None:
        return "-"
    number = f"{row['samples']}, " if row["samples"] else ""
    return f"{number}{1000 * row['seconds_per_user']:.2f} ms"


def plots_of(study: Study) -> dict[str, plots.Figure]:
    """Plots of a study by title."""
    return {"error over cost": plots.error_over_cost(study), "error by layer": plots.error_over_cost_by_layer(study)}


def log_study(tracker: Tracker, run: str, artifact: Artifact) -> None:
    """Upload `study.json`, the table as CSV with a line per layer, and the plots to a run."""
    study = read(artifact)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "study.json").write_bytes(storage.read_bytes(artifact.file("study.json")))
        write_table(study, folder / "study.csv")
        tracker.log_artifacts(run, [folder / "study.json", folder / "study.csv"])
        tracker.log_artifacts(run, plots.save_pngs(plots_of(study), folder), "plots")


def write_table(study: Study, file: Path) -> None:
    """The study as CSV: for each row, one line for the whole diagonal ("all") and one per layer."""
    with file.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow([*FACTS, "layer", *(f"{metric}.{part}" for metric in METRICS for part in ("mean", "spread"))])
        for row in study["rows"]:
            for layer, metrics in {"all": row["overall"], **row["layers"]}.items():
                parts = [(metrics[metric]["mean"], metrics[metric]["spread"]) for metric in METRICS]
                writer.writerow([*(row[fact] for fact in FACTS), layer, *chain.from_iterable(parts)])
