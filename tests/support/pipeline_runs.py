"""A small pipeline run as a command, and checks of its results."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
from mlflow import MlflowClient

from raymerge.data import demo

CHECKOUT = Path(__file__).parents[2]
SMALL = (
    "encoder.max_length=12",
    "encoder.dim=16",
    "encoder.feed_forward=32",
    "prepare.partitions=3",
    "prepare.validation_users=100",
    "training.epochs=2",
    "training.average_epochs=2",
    "fine_tuning.epochs=1",
    "after_merge.epochs=1",
    "merge.coefficients=search",
    "merge.normalise=model",
    "merge.budget=7",
    "evaluation.replicates=200",
    "cluster.base_workers=1",
)


def write_log(folder: Path) -> Path:
    """Write its log."""
    pq.write_table(demo.generate(seed=5, users=300, items=120), folder / "log.parquet")
    return folder / "log.parquet"


def command(log: Path, output: Path, *more: str) -> list[str]:
    """`raymerge run` of the small pipeline."""
    places = ["--recipe", "demo", "--input", str(log), "--output", str(output)]
    settings = [part for change in SMALL for part in ("--set", change)]
    return [sys.executable, "-m", "raymerge", "run", *places, *settings, *more]


def surroundings() -> dict[str, str]:
    """An environment in which a command starts its own Ray."""
    return {key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", "RAY_AUTH_TOKEN")}


def start(log: Path, output: Path, *more: str, home: Path | None = None) -> subprocess.Popen[str]:
    """Start the command as a process, optionally with its own home, which identifies its child processes."""
    pipe, environment = subprocess.PIPE, surroundings() | ({} if home is None else {"HOME": str(home)})
    return subprocess.Popen(
        command(log, output, *more), stdout=pipe, stderr=pipe, env=environment, text=True, cwd=CHECKOUT
    )


def check_mlflow(uri: str, report: dict) -> None:
    """MLflow has one finished parent, a child per stage and model, each step once, the report, a loadable champion."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("raymerge")
    runs = client.search_runs([experiment.experiment_id])
    parents = [found for found in runs if "mlflow.parentRunId" not in found.data.tags]
    assert [parent.info.status for parent in parents] == ["FINISHED"]
    assert parents[0].data.params["encoder.dim"] == "16"
    assert parents[0].inputs.dataset_inputs
    children = {found.data.tags["raymerge.run"]: found for found in runs if found not in parents}
    assert {"prepare", "train/base", "train/duorec", "fisher/duorec", "merge/fisher", "report"} <= set(children)
    curve = client.get_metric_history(children["train/base"].info.run_id, "validation.ndcg_at_10")
    assert [point.step for point in curve] == [1, 2]
    files = {file.path for file in client.list_artifacts(parents[0].info.run_id)}
    assert {"report.json", "configuration.yaml", "plots"} <= files
    champion = client.get_model_version_by_alias("raymerge-demo", "champion")
    assert champion.run_id == parents[0].info.run_id
    assert float(champion.tags["raymerge.validation_score"]) == report["validation"][report["final"]]


def report_in(output: Path) -> dict:
    """The report of an output folder's only run, without its times."""
    [file] = output.glob("report/*/report.json")
    return without_times(json.loads(file.read_text()))


def without_times(report: dict) -> dict:
    return {key: value for key, value in report.items() if key != "timings"}
