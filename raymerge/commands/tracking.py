"""What is logged to MLflow besides metrics, at the end of a run or, by `raymerge log`, at any time later."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from raymerge.artifacts import Artifact, open_artifact
from raymerge.commands.context import tracker_of
from raymerge.errors import TrackingError
from raymerge.evaluation import report_schema
from raymerge.evaluation.report_schema import REPORT_FILE
from raymerge.evaluation.validation import SCORE
from raymerge.events import Event
from raymerge.files import storage
from raymerge.redaction import redact
from raymerge.stages.context import EVENTS
from raymerge.tracking import study as studies
from raymerge.tracking.record import Record, read_all
from raymerge.tracking.registration import RegisteredVersion, Score
from raymerge.tracking.results import log_results, plots_of
from raymerge.tracking.runs import Tracker
from raymerge.tracking.store import resolve_uri, ui_command


def run_log(url: str, *, tracking_uri: str | None) -> None:
    """`raymerge log`: send what all commands have committed in an output folder."""
    output = storage.absolute(url)
    uri = resolve_uri(tracking_uri, os.environ.get("MLFLOW_TRACKING_URI"), output)
    records = read_all(output)
    for record in records:
        with tracker_of(record, uri) as tracker:
            sent = _send(record, tracker)
            if sent["runs"] < len(record.places):
                tracker.outcome = "FAILED"
        click.echo(json.dumps({"name": record.name, **sent, "missing": len(record.places) - sent["runs"]}))
    click.echo(f"MLflow: {ui_command(uri)}")


def _send(record: Record, tracker: Tracker) -> dict[str, Any]:
    """Send everything of one command; TrackingError as soon as the server fails."""
    artifacts = {run: artifact for run, place in record.places.items() if (artifact := _committed(record, place))}
    sent: dict[str, Any] = {"runs": len(artifacts)}
    for run, artifact in artifacts.items():
        for key, step, value in artifact.json(EVENTS):
            tracker(Event(run, key, step, value))
        tracker.finish(run)
        if not tracker.flush():
            raise TrackingError(
                f"MLflow at {redact(tracker.uri)} did not accept the metrics of {run} (see the log above); "
                "run the same command again"
            )
    for run, artifact in artifacts.items():
        if artifact.manifest["stage"] == "study":
            studies.log_study(tracker, run, artifact)
        if artifact.manifest["stage"] == "report":
            sent["registered"] = send_report(tracker, record.output, record.configuration, artifact).uri
    return sent


def _committed(record: Record, place: str) -> Artifact | None:
    """The artifact of a run, None if it was not finished or has been deleted."""
    url = storage.join(record.output, place)
    return open_artifact(url) if storage.exists(storage.join(url, storage.LAST_FILE)) else None


def default_name(recipe: str) -> str:
    """Default name of a registered model, without the characters that the registry refuses.

    >>> default_name("recipes/shop v2.1.yaml"), default_name("ml-1m")
    ('raymerge-shop v2-1', 'raymerge-ml-1m')
    """
    return "raymerge-" + re.sub(r"[/:.%\"']", "-", Path(recipe).stem)


def send_report(tracker: Tracker, output: str, configuration: Mapping[str, Any], report: Artifact) -> RegisteredVersion:
    """Upload the report of a run, its configuration and plots, and register its final model."""
    content = report_schema.read(report.file(REPORT_FILE))
    model = open_artifact(storage.join(output, content["artifacts"]["models"][content["final"]]))
    protocol = content["protocol"]
    seen = report_schema.seen_items(filtered=protocol["seen_filtered"])
    markets = f", markets {json.dumps(configuration['markets'])}" if configuration.get("markets") else ""
    metric = f"{protocol.get('validation')}, {seen}{markets}"
    return log_results(
        tracker,
        configuration=configuration,
        report_url=report.file(REPORT_FILE),
        drawn=plots_of(content, output),
        model=model,
        score=Score(model.counts[SCORE], metric, content["data"]["digest"]),
        model_name=configuration["tracking"]["model_name"] or default_name(configuration["recipe"]),
    )
