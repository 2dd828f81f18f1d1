"""What a run leaves behind: the plots that its artifacts allow, uploaded with report, configuration and model."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from random_models import save_random_model
from tracking.examples import example_report, scored

from raymerge.artifacts import Artifact, Key, Output, load_model, save_tensors
from raymerge.evaluation.report_schema import Report
from raymerge.tracking.results import log_results, plots_of
from raymerge.tracking.runs import Tracker

MEMBERS = ("bert4rec", "duorec")


@pytest.fixture
def output(tmp_path: Path) -> Output:
    return Output(str(tmp_path / "out")).open()


def make_artifact(output: Output, stage: str, name: str, write: Callable[[Path], object]) -> Artifact:
    key = Key(stage, {"name": name})
    with output.draft(key) as draft:
        write(draft.folder)
    found = output.find(key)
    assert found is not None
    return found


def trained(output: Output, name: str) -> Artifact:
    def write(folder: Path) -> None:
        save_random_model(folder / "model", [1, 2, 3])
        (folder / "history.json").write_text(json.dumps([{"epoch": 1, "loss": 3.0, "ndcg": 0.1}]))

    return make_artifact(output, "train", name, write)


def estimated(output: Output, name: str, value: float, model: Artifact) -> Artifact:
    diagonal = {key: torch.full_like(p, value) for key, p in load_model(model.url).named_parameters()}
    return make_artifact(output, "fisher", name, lambda folder: save_tensors(diagonal, folder / "diagonal.safetensors"))


def test_plots_depend_on_the_artifacts_there_are(output: Output) -> None:
    models = {name: trained(output, name) for name in MEMBERS}
    diagonals = {"bert4rec": 1.0, "duorec": 4.0}
    estimates = {name: estimated(output, name, value, models[name]) for name, value in diagonals.items()}
    drawn = plots_of(report_of(output, models, estimates), output.url)
    assert len(drawn) == 4
    [axes] = drawn["weights by layer"].axes
    assert {text.get_text() for text in axes.texts} == {"14%", "86%"}, "0.4 · 1 against 0.6 · 4, in every layer"
    content = report_of(output, models, {})
    assert list(plots_of(content, output.url)) == ["NDCG@10 with intervals", "training curves"]
    content["overlap"] = {
        "k": 10,
        "ranking": "full",
        "groups": [{"members": "all members", "users": 3, "hits": {content["final"]: 2}}] * 2,
    }
    content["interpolation"] = {"points": [0, 1], "lines": [{"first": "a", "second": "b", "scores": [0.1, 0.2]}]}
    assert list(plots_of(content, output.url))[2:] == ["users by the members that hit them", "lines between members"]


def report_of(output: Output, models: dict[str, Artifact], diagonals: dict[str, Artifact]) -> Report:
    """The example with the places of these artifacts."""
    made = {"models": models, "diagonals": diagonals}
    places = {
        kind: {name: one.url.removeprefix(output.url + "/") for name, one in found.items()}
        for kind, found in made.items()
    }
    return {**example_report(), "artifacts": places}


def test_results_are_found_in_the_pipeline_run_and_the_model_in_the_registry(
    new_tracker: Callable[..., Tracker], output: Output, tmp_path: Path
) -> None:
    model = trained(output, "merged")
    (tmp_path / "report.json").write_text(json.dumps(example_report()))
    with new_tracker() as tracker:
        registered = log_results(
            tracker,
            configuration={"recipe": "demo"},
            report_url=str(tmp_path / "report.json"),
            drawn=plots_of(report_of(output, {"duorec": model}, {}), output.url),
            model=model,
            score=scored(0.15),
            model_name="results",
        )
    client = MlflowClient(tracker.uri)
    top = {file.path for file in client.list_artifacts(tracker.run_id())}
    assert {"report.json", "configuration.yaml", "plots"} <= top
    pictures = [file.path for file in client.list_artifacts(tracker.run_id(), "plots")]
    assert sorted(pictures) == ["plots/ndcg@10-with-intervals.png", "plots/training-curves.png"]
    assert client.get_model_version_by_alias("results", "champion").version == registered.version
