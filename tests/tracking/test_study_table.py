"""A study shows every row in its table and every point in its plots, and all of it reaches MLflow."""

import csv
import io
from pathlib import Path

import pytest
from mlflow import MlflowClient
from rich.console import Console

from raymerge.artifacts import Artifact, Key, Output
from raymerge.commands import stages as commands
from raymerge.errors import ArtifactError
from raymerge.execution.deadline import Deadline
from raymerge.fisher.study import Agreement, Measured, Study, rows
from raymerge.fisher.weights import FisherConfig
from raymerge.recipes import configure
from raymerge.stages.context import Context
from raymerge.tracking import plots, study
from raymerge.tracking.runs import Tracker


def example() -> Study:
    """Errors of 20% and 5% of an unbiased estimator with two seeds, 40% of a biased one, and the exact one."""
    errors = [
        (FisherConfig("exact"), 1e-6),
        (FisherConfig("hutchinson", 2, seed=0), 0.2),
        (FisherConfig("hutchinson", 2, seed=1), 0.3),
        (FisherConfig("hutchinson", 30), 0.05),
        (FisherConfig("topk", 30), 0.4),
    ]
    measured = [
        Measured(
            config, 100, 0.001 * (config.samples or 64), dict.fromkeys(("output_bias", "norm.weight"), sums(error))
        )
        for config, error in errors
    ]
    return {
        "schema": 1,
        "users": 100,
        "items": 50,
        "dim": 64,
        "temperature": 1.0,
        "precision": "float32",
        "rows": rows(measured, dim=64),
    }


def sums(error: float) -> Agreement:
    """The sums of an estimate that is right except for an orthogonal part."""
    return Agreement(difference=error**2, estimate=1 + error**2, product=1.0, exact=1.0)


def test_table_has_each_row_and_says_how_many_samples_are_enough() -> None:
    console = Console(file=io.StringIO(), width=100)
    console.print(study.render(example()))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    lines = [" ".join(line.replace("│", " ").split()) for line in text.splitlines()]
    assert "hutchinson 2 2 2.00 25.0% ±7.1 24.2% ±6.5 0.9692" in lines
    assert "topk * 30 30 30.00 40.0% 37.1% 0.9285" in lines
    assert "exact 64.00 ms 64.00 ms 64.00 ms" in lines
    assert "hutchinson 30, 30.00 ms 30, 30.00 ms -" in lines
    assert "topk - - -" in lines


def test_plot_has_a_line_per_estimator_and_a_point_per_number_of_samples() -> None:
    for axes in plots.error_over_cost(example()).axes:
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
        labels = {bars.get_label(): bars.lines[0] for bars in axes.containers}
        assert list(labels) == ["hutchinson", "topk (biased)"]
        assert labels["hutchinson"].get_xdata().tolist() == pytest.approx([2, 30])
        assert labels["topk (biased)"].get_markerfacecolor() == "white"
        assert axes.lines[0].get_xdata() == pytest.approx([64, 64]), "the cost of the exact diagonal"
    raw, _, cosine = plots.error_over_cost(example()).axes
    assert raw.containers[0].lines[0].get_ydata().tolist() == pytest.approx([0.25, 0.05])
    assert cosine.containers[0].lines[0].get_ydata()[0] == pytest.approx(1 - 0.9692, abs=1e-4), "as in the table"


def test_each_layer_has_its_plot() -> None:
    axes = plots.error_over_cost_by_layer(example()).axes
    assert [one.get_title(loc="left") for one in axes] == ["norms", "output bias"]


def made(output: Output, **changes: object) -> Artifact:
    key = Key("study", {})
    with output.open().draft(key) as draft:
        draft.write_json("study.json", {**example(), **changes})
    artifact = output.find(key)
    assert isinstance(artifact, Artifact)
    return artifact


def test_a_study_of_another_schema_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"study\.json has schema 2, this version of raymerge reads 1"):
        study.read(made(Output(str(tmp_path / "out")), schema=2))


def new_tracker(uri: str) -> Tracker:
    dataset = {"name": "d", "digest": "0", "source": "s", "counts": {}}
    return Tracker(uri, "raymerge", name="study", identity="1", configuration={}, dataset=dataset)


def test_a_study_that_mlflow_refuses_is_shown_all_the_same(tmp_path: Path) -> None:
    context = Context(configure("demo"), Output(str(tmp_path / "out")), print, Deadline(60))
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    with new_tracker(uri) as tracker:
        (tmp_path / "mlartifacts").write_text("in the way")
        shown = commands._log_study(context, tracker, "base", made(context.output))
    assert shown.startswith(f"not yet: MLflow at {uri} cannot be used")
    assert shown.endswith(f"raymerge log {tmp_path}/out --tracking-uri {uri}")


def test_table_and_plots_reach_mlflow(tmp_path: Path) -> None:
    artifact = made(Output(str(tmp_path / "out")))
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    with new_tracker(uri) as tracker:
        study.log_study(tracker, "fisher-study/base", artifact)
        run_id = tracker.run_id("fisher-study/base")
    client = MlflowClient(uri)
    files = {file.path for folder in (None, "plots") for file in client.list_artifacts(run_id, folder)}
    assert {"study.json", "study.csv", "plots/error-over-cost.png", "plots/error-by-layer.png"} <= files
    written = Path(client.download_artifacts(run_id, "study.csv", str(tmp_path))).read_text()
    table = list(csv.DictReader(io.StringIO(written)))
    assert [row["layer"] for row in table[:3]] == ["all", "norms", "output bias"]
    assert float(table[3]["error.mean"]) == pytest.approx(0.25)
