"""What is done with results: recommending items, and showing reports."""

import csv
import json
from collections.abc import Sequence

import click
from rich.table import Table
from rich.text import Text

from raymerge.artifacts import load_model, model_folder
from raymerge.commands.inputs import chosen_model, find_report
from raymerge.commands.printing import console, print_rows
from raymerge.data.prepare import ITEMS_FILE
from raymerge.data.sequences import read_items
from raymerge.errors import InputError
from raymerge.evaluation import report_schema
from raymerge.files import storage
from raymerge.stages.pooled import pool_reports
from raymerge.tracking import report as reports
from raymerge.tracking.plots import to_png
from raymerge.tracking.results import plots_of


def run_recommend(model: str, history: str, *, top: int, exclude_seen: bool) -> None:
    """`raymerge recommend`."""
    from raymerge.recommendation import recommend

    model = chosen_model(model)
    module, items = load_model(model), read_items(storage.join(model_folder(model), ITEMS_FILE))
    wanted = _items_in(history)
    if not wanted:
        raise InputError(f"--history is empty; name at least one item, such as {items.ids[0]}")
    best = recommend(module, items, [wanted], top_k=top, exclude_seen=exclude_seen)[0]
    table = Table("item", "score")
    for item, score in zip(best["items"], best["scores"], strict=True):
        table.add_row(Text(str(item)), f"{score:.3f}")  # unchanged: an id may look like rich's markup
    console().print(table)


def _items_in(history: str) -> list[str]:
    """Own ids from a line of CSV."""
    [found] = csv.reader([" ".join(history.splitlines())], skipinitialspace=True)
    return [item.strip() for item in found if item.strip()]


def run_report(urls: Sequence[str], html: str | None, json_file: str | None) -> None:
    """`raymerge report`."""
    files = [find_report(url) for url in urls]
    if len(files) > 1:
        _report_runs(files, html, json_file)
        return
    [file] = files
    text = storage.read_bytes(file)
    content = report_schema.loads(text)
    if json_file is not None:
        storage.write_bytes(json_file, text)
    output = file.rsplit("/", 3)[0]  # <output>/report/<digest>/report.json
    if html is None:
        shown = console()
        shown.print(reports.render(content))
        artifacts = content["artifacts"]
        located = artifacts["models"] | {f"diagonal of {name}": at for name, at in artifacts["diagonals"].items()}
        print_rows(shown, {name: storage.join(output, at) for name, at in located.items()})
        return
    drawn = plots_of(content, output)
    page = reports.to_html(content, {title: to_png(one) for title, one in drawn.items()})
    storage.write_bytes(html, page.encode())
    click.echo(html)


def _report_runs(files: Sequence[str], html: str | None, json_file: str | None) -> None:
    if html is not None:
        raise InputError(f"--html shows one run, got {len(files)}: leave it out to print their table, or name one run")
    pooled = pool_reports(files)
    if json_file is not None:
        storage.write_bytes(json_file, json.dumps(pooled, indent=1).encode())
    console().print(reports.render(pooled))
