"""How commands print their results: tables, lines of JSON, and names with their values."""

import json
from collections.abc import Mapping

import click
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from raymerge.artifacts import Artifact
from raymerge.config import Config
from raymerge.evaluation import report_schema

ANY_WIDTH = 1000


def console() -> Console:
    """For results: as wide as the terminal, or, in a file or a job's log, as wide as its tables are."""
    found = Console()
    if not found.is_terminal:
        found.width = ANY_WIDTH
    return found


def print_rows(shown: Console, rows: Mapping[str, str]) -> None:
    """A line for each name and value."""
    shown.print()
    for name, value in rows.items():
        shown.print(f"{name + ':':<12} {value}", markup=False, highlight=False, soft_wrap=True)


def print_artifacts(artifacts: Mapping[str, Artifact]) -> None:
    """A line of JSON for each artifact: its name, URL and counts."""
    for name, artifact in artifacts.items():
        click.echo(json.dumps({"name": name, "url": artifact.url, **artifact.counts}, ensure_ascii=False))


def print_metrics(config: Config, metrics: Mapping[str, Mapping[str, float]]) -> None:
    """A table of test metrics by model and `ranking.metric`."""
    seen, shown = report_schema.seen_items(filtered=config.evaluation.filter_seen), console()
    shown.print(f"test, leave-one-out, {seen}", highlight=False)
    keys = [key.partition(".")[::2] for key in next(iter(metrics.values()))]
    rankings, columns = (list(dict.fromkeys(names)) for names in zip(*keys, strict=True))
    table = Table(Column("model", overflow="fold"), "ranking", *columns)
    for name, values in metrics.items():
        for ranking in rankings:
            table.add_row(Text(name), ranking, *(f"{values[f'{ranking}.{column}']:.4f}" for column in columns))
    shown.print(table)
