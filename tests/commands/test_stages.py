"""Commands of single stages: what they take from each other, and what they refuse before anything starts."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from command_cases import diagonal_artifact, mistake, model_artifact
from mlflow import MlflowClient

from raymerge.artifacts import Key, Output, load_model, save_tensors
from raymerge.cli import cli
from raymerge.commands.inputs import open_models

pytestmark = pytest.mark.usefixtures("ray_is_never_started")


@pytest.fixture
def log(tmp_path: Path) -> Path:
    file = tmp_path / "log.csv"
    file.write_text("user,item,timestamp\n" + "".join(f"u{n % 9},i{n % 7},{n}\n" for n in range(400)))
    return file


SEVEN = [f"i{number}" for number in range(7)]


@pytest.fixture
def data(capsys: pytest.CaptureFixture[str], tmp_path: Path, log: Path) -> str:
    """URL of the log as prepared, with its seven items."""
    arguments = ["--set", "prepare.min_item_count=1", "--set", "prepare.min_user_count=1"]
    cli(["prepare", "--input", str(log), "--output", str(tmp_path / "out"), *arguments], standalone_mode=False)
    return str(json.loads(capsys.readouterr().out)["url"])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "is empty"),
        ("visitor,item,timestamp\n1,2,3\n", "has no column 'user', it has 'visitor', 'item', 'timestamp'"),
        ("user;item;timestamp\n1;2;3,4\n", "they look separated by ';': --set 'prepare.delimiter=\";\"'"),
        ("user|item|timestamp\n1|2|3,4\n", "they look separated by '|': --set 'prepare.delimiter=\"|\"'"),
        ("user,item,item,timestamp\n1,2,3,4\n", "has 2 columns 'item'"),
        ("user,item,timestamp\n", "the interaction log has no rows"),
        ("user,item,timestamp\n1,2,soon\n3,4,later\n", "rows are bad"),
        ("user,item,timestamp\n" + "u,i,1\n" * 3, "no user has 5 interactions with items that have 5"),
        ("user,item,timestamp\n" + "u,i,1\n" * 9, "one item is left, so there is nothing to rank"),
    ],
)
def test_file_that_is_no_log_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, content: str, expected: str
) -> None:
    (tmp_path / "log.csv").write_text(content)
    line = mistake(capsys, "prepare", "--input", tmp_path / "log.csv", "--output", tmp_path / "out")
    assert expected in line
    assert not (tmp_path / "out" / "prepare").exists()


def test_column_of_a_wrong_type_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pq.write_table(pa.table({"user": [[1]], "item": [2], "timestamp": [3]}), tmp_path / "log.parquet")
    line = mistake(capsys, "run", "--input", tmp_path / "log.parquet", "--output", tmp_path / "out")
    assert "user" in line
    assert "list" in line


def test_foreign_output_folder_is_left_alone(capsys: pytest.CaptureFixture[str], tmp_path: Path, log: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.doc").write_text("years of work")
    line = mistake(capsys, "run", "--input", log, "--output", tmp_path / "mine")
    assert "not a raymerge output" in line
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["thesis.doc"]


def test_unreachable_tracking_server_is_reported_before_the_log_is_opened(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    uri = "http://127.0.0.1:9"
    line = mistake(capsys, "run", "--input", "none.csv", "--output", tmp_path / "out", "--tracking-uri", uri)
    assert f"MLflow at {uri} cannot be used" in line
    assert not (tmp_path / "out").exists()


def test_prepare_leaves_its_counts_in_mlflow(capsys: pytest.CaptureFixture[str], tmp_path: Path, log: Path) -> None:
    arguments = ["--set", "prepare.min_item_count=1", "--set", "prepare.min_user_count=1"]
    cli(["prepare", "--input", str(log), "--output", str(tmp_path / "out"), *arguments], standalone_mode=False)
    assert json.loads(capsys.readouterr().out)["users"] == 9
    client = MlflowClient(f"sqlite:///{tmp_path}/out/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("raymerge").experiment_id])
    figures = {found.data.tags["raymerge.run"]: found.data.metrics for found in runs}
    assert figures["prepare"]["users"] == 9
    assert {found.info.status for found in runs} == {"FINISHED"}


def test_models_merge_without_data_if_no_setting_is_open(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    models = [model_artifact(tmp_path / "a"), model_artifact(tmp_path / "b")]
    diagonals = [diagonal_artifact(tmp_path, folder, value) for folder, value in zip(models, (1.0, 3.0), strict=True)]
    arguments = [
        part
        for pair in zip(models, diagonals, strict=True)
        for part in ("--model", str(pair[0]), "--diagonal", pair[1])
    ]
    output = ["--output", str(tmp_path / "out")]
    assert "merge chooses normalise on the validation split" in mistake(capsys, "merge", *arguments, *output)
    settled = ["--set", "merge.normalise=none"]
    cli(["merge", *arguments, *output, *settled], standalone_mode=False)
    merged = load_model(json.loads(capsys.readouterr().out)["url"])
    first, second = (load_model(str(folder)).item_embedding.weight for folder in models)
    torch.testing.assert_close(merged.item_embedding.weight, first / 4 + second * 3 / 4, rtol=0, atol=1e-5)


def test_diagonals_are_given_in_any_order(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    models = [model_artifact(tmp_path / "a"), model_artifact(tmp_path / "b")]
    diagonals = [diagonal_artifact(tmp_path, folder, value) for folder, value in zip(models, (1.0, 3.0), strict=True)]
    urls = []
    for order in (diagonals, diagonals[::-1]):
        arguments = [part for folder in models for part in ("--model", str(folder))]
        arguments += [part for url in order for part in ("--diagonal", url)]
        settled = ["--output", str(tmp_path / "out"), "--set", "merge.normalise=none"]
        cli(["merge", *arguments, *settled], standalone_mode=False)
        urls.append(json.loads(capsys.readouterr().out)["url"])
    assert urls[0] == urls[1]


def test_a_catalogue_that_does_not_exist_is_named_by_its_setting(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, log: Path
) -> None:
    setting = ["--set", f"prepare.catalogue={tmp_path / 'none'}"]
    line = mistake(capsys, "run", "--input", log, "--output", tmp_path / "out", *setting)
    assert (
        f"prepare.catalogue names no prepared data or items.parquet: there is no {tmp_path}/none/items.parquet" in line
    )


def test_a_start_is_named_just_if_the_step_needs_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    start, *models = (model_artifact(tmp_path / name) for name in "abc")
    arguments = [part for folder in models for part in ("--model", str(folder))]
    arguments += ["--output", str(tmp_path / "out"), "--set", "merge.method=average"]
    step = ["--set", "merge.step=0.5"]
    assert "merge.step is 0.5: name the model that they started from with --start" in mistake(
        capsys, "merge", *arguments, *step
    )
    assert "merge.step is 1, which takes no --start" in mistake(capsys, "merge", *arguments, "--start", start)
    cli(["merge", *arguments, *step, "--start", str(start)], standalone_mode=False)
    merged = load_model(json.loads(capsys.readouterr().out)["url"])
    origin, first, second = (load_model(str(folder)).item_embedding.weight for folder in (start, *models))
    torch.testing.assert_close(merged.item_embedding.weight, origin / 2 + first / 4 + second / 4)


def test_a_start_with_another_encoder_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path, data: str) -> None:
    start = model_artifact(tmp_path / "a", num_items=7, ids=SEVEN)
    line = mistake(capsys, "train", "--data", data, "--start", start, "--output", tmp_path / "out")
    assert "encoder.attention is causal, but" in line
    assert "has bidirectional: set it to that" in line


def test_samples_that_a_given_model_cannot_give_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, data: str
) -> None:
    small = model_artifact(tmp_path / "a", num_items=7, ids=SEVEN)  # of 8 dimensions, not the configuration's 64
    settings = ["--set", "fisher.estimator=rank", "--set", "fisher.samples=9"]
    line = mistake(capsys, "fisher", "--data", data, "--model", small, "--output", tmp_path / "out", *settings)
    assert "fisher.samples must be at most the 8 dimensions of the model, got 9" in line


def test_models_are_named_by_what_made_them_and_their_digest(tmp_path: Path) -> None:
    folder = model_artifact(tmp_path / "a")
    assert list(open_models([str(folder)])) == [f"bert4rec-{folder.name[:8]}"]


def test_a_merge_of_one_model_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    line = mistake(
        capsys, "merge", "--model", model_artifact(tmp_path / "a"), "--data", tmp_path, "--output", tmp_path / "out"
    )
    assert "a merge needs at least two models, got 1" in line


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ({"ids": ["film 0", "film 1", "another"]}, "different catalogues"),
        ({"heads": 4}, "differ in encoder.heads: 2 and 4"),
        ({"num_items": 4}, "different catalogues"),
    ],
)
def test_models_that_do_not_fit_together_are_not_merged(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, other: dict, expected: str
) -> None:
    models = [model_artifact(tmp_path / "a"), model_artifact(tmp_path / "b", **other)]
    arguments = [part for folder in models for part in ("--model", str(folder))]
    assert expected in mistake(capsys, "merge", *arguments, "--data", tmp_path, "--output", tmp_path / "out")


def test_diagonal_of_another_model_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    models = [model_artifact(tmp_path / "a"), model_artifact(tmp_path / "b")]
    output = Output(str(tmp_path / "fisher")).open()
    key = Key("fisher", {"model": "another"})
    with output.draft(key) as draft:
        save_tensors({"x": torch.ones(1)}, draft.folder / "diagonal.safetensors")
    diagonal = output.locate(key)
    arguments = [part for folder in models for part in ("--model", str(folder), "--diagonal", diagonal)]
    assert "none of the diagonals is of" in mistake(capsys, "merge", *arguments, "--output", tmp_path / "out")
