"""The command line: help, configuration, and one clear line with exit code 2 for each user error."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch
import yaml
from mlflow import MlflowClient
from tracking.examples import example_report

from raymerge import recipes
from raymerge.artifacts import Key, Output, load_model, open_artifact, save_model, save_tensors
from raymerge.cli import cli, main
from raymerge.commands import context as command_context
from raymerge.commands import stages as commands
from raymerge.data.sequences import Items, write_items
from raymerge.errors import ConfigError, LostError
from raymerge.fisher.weights import ESTIMATORS
from raymerge.models.encoder import EncoderConfig, SequenceEncoder
from raymerge.models.objectives import OBJECTIVES, ObjectiveConfig
from raymerge.stages.inputs import model_digest
from raymerge.tracking.record import Record


def mistake(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a user error prints, with exit code 2 and without starting Ray."""
    before = ray.is_initialized()
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert ended.value.code == 2
    assert ray.is_initialized() == before
    text = capsys.readouterr().err.strip()
    return text.splitlines()[-1]


def test_temporary_failure_has_its_own_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lost(*_: object, **__: object) -> None:
        raise LostError("s3://shop/out did not answer")

    monkeypatch.setattr("raymerge.commands.config.print_config", lost)
    with pytest.raises(SystemExit) as ended:
        main(["config", "--list"])
    assert ended.value.code == 75
    assert capsys.readouterr().err == "raymerge: s3://shop/out did not answer\n"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    file = tmp_path / "log.csv"
    file.write_text("user,item,timestamp\n" + "".join(f"u{n % 9},i{n % 7},{n}\n" for n in range(400)))
    return file


@pytest.fixture(autouse=True)
def ray_is_never_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*_: object) -> None:
        raise AssertionError("Ray was started before the error was found")

    for module in (commands, command_context):
        monkeypatch.setattr(module, "session", started)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run", "--input", "none.csv"], "no such file"),
        (["run", "--recipe", "nope"], "unknown recipe 'nope'; known: demo"),
        (["run", "--recipe", "beauty"], "recipe beauty needs a log: give it with --input"),
        (["run", "--set", "training.epoch=3"], "unknown configuration key training.epoch; known there: epochs"),
        (["run", "--set", "trainin.epochs=3"], "unknown section 'trainin'"),
        (["run", "--set", "members={control: {name: next_item}}"], "two models of the run would be named 'control'"),
        (["run", "--set", "rivals={duorec: {estimator: target}}"], "two models of the run would be named 'duorec'"),
        (
            ["run", "--set", "merge.method=average", "--set", "members={weighted-average: {name: next_item}}"],
            "two models of the run would be named 'weighted-average'",
        ),
        (
            ["run", "--set", "rivals={round-1: {estimator: target}}"],
            "a rival cannot be named like a round, got 'round-1': rename it",
        ),
        (["run", "--set", "rivals={a b: {estimator: target}}"], "consist of letters, digits, - and _, got 'a b'"),
        (
            ["run", "--set", "merge.method=average", "--set", "rivals={t: {estimator: target}}"],
            "merge.method average takes none",
        ),
        (["run", "--set", "rounds=2", "--set", "base=null"], "rounds > 1 needs a base"),
        (
            ["train", "--recipe", "markets", "--set", "rounds=2", "--data", "none"],
            "train makes one round: --set rounds=1",
        ),
        (
            ["run", "--recipe", "markets", "--set", "markets.by=column", "--set", "markets.names=[a, b]"],
            "markets.by column needs prepare.market, the column that names each row's market",
        ),
        (["run", "--recipe", "markets", "--set", "markets.names=[de, no]"], "markets.names must be text, got false"),
        (
            ["run", "--recipe", "markets", "--set", "rounds=1", "--set", "rivals={market-2: {estimator: target}}"],
            "two models of the run would be named 'market-2'",
        ),
        (["run", "--set", "nonsense"], "--set takes key=value"),
        (["run", "--set", "training.epochs=-1"], "training.epochs must be between 1 and 1,000,000, got -1"),
        (["run", "--set", "training.epochs=many"], "training.epochs"),
        (["run", "--set", "training.epochs=true"], "training.epochs: should be a number, got true"),
        (["run", "--set", "cluster.actors=true"], "cluster.actors: should be a number, got true"),
        (["run", "--set", "evaluation.ks=[true,10,20]"], "evaluation.ks: should be a number, got true"),
        (["run", "--set", "encoder.dim=63"], "encoder.dim must be a multiple of encoder.heads"),
        (["run", "--set", "encoder.max_length=99999999"], "encoder.max_length must be between"),
        (["run", "--set", "base.name=nope"], "unknown objective 'nope'; known: bert4rec"),
        (["run", "--set", "base.name=bert4rec"], "needs encoder.attention bidirectional"),
        (["run", "--set", "fisher.estimator=nope"], "unknown estimator 'nope'; known: exact"),
        (["run", "--set", "fisher.estimator=topk"], "needs fisher.samples"),
        (["run", "--set", "merge.method=nope"], "nope"),
        (["run", "--set", "merge.coefficients=[1,2]"], "merge.coefficients must be one for each of 3 models, got 2"),
        (["run", "--set", "cluster.base_workers=0"], "cluster.base_workers must be between"),
        (
            ["run", "--set", "evaluation.ks=[5,20]"],
            "evaluation.ks needs 10 and 20, which every report has, got [5, 20]",
        ),
        (
            ["run", "--set", "merge.coefficients=search", "--set", "merge.power=search", "--set", "merge.budget=8"],
            "merge.budget must be at least 9, a trial for each setting, got 8",
        ),
        (
            ["run", "--set", "merge.coefficients=search", "--set", "merge.budget=20"],
            "merge.budget must be at least 21 to try each of 3 models, got 20",
        ),
        (
            ["run", "--set", "fisher.estimator=rank", "--set", "fisher.samples=100"],
            "fisher.samples must be at most the 64 dimensions of the model, got 100",
        ),
        (
            ["run", "--set", "rivals={t: {estimator: target}}", "--set", "members={t-fine-tuned: {name: next_item}}"],
            "two models of the run would be named 't-fine-tuned'",
        ),
        (
            ["run", "--set", "rivals={b: {estimator: target}}", "--set", "members.duorec-b={name: duorec}"],
            "two models of the run would be named 'duorec-b'",
        ),
        (
            ["run", "--set", "rounds=2", "--set", "members.duorec-round-1={name: duorec}"],
            "two models of the run would be named 'duorec-round-1'",
        ),
        (["run", "--set", "fine_tuning.epochs=-1"], "fine_tuning.epochs must be between 1 and 1,000,000, got -1"),
        (["run", "--set", "rivals={t: {estimator: model, samples: 0}}"], "rivals.t.samples must be"),
        (["run", "--set", "merge.epsilon=abc"], "merge.epsilon: input should be a valid number"),
        (["run", "--set", "evaluation.ks=10"], "evaluation.ks: input should be a list, such as [1, 2], got 10"),
        (["run", "--set", "training=3"], "training: input should be a section: set the keys below it, got 3"),
        (["run", "--set", "members={}"], "members: at least one is needed, got none"),
        (["run", "--set", "evaluation.confidence=0.01"], "evaluation.confidence must be at least .5 and below 1"),
        (["run", "--set", "members.cl4srec.settings={augmentations: 5}"], "augmentations must be a list of some of"),
        (
            ["run", "--set", "members.cl4srec.settings={projection: nope}"],
            "members.cl4srec: projection must be true or false, got",
        ),
        (
            ["run", "--set", "rivals={low: {estimator: rank, samples: 100}}"],
            "rivals.low.samples must be at most the 64 dimensions of the model, got 100",
        ),
        (["run", "--set", "tracking.model_name=shop.v2"], "tracking.model_name: string should match pattern"),
        (["run", "--input", "http://[x/y"], "cannot parse URL"),
        (["run", "--nope"], "(see raymerge run --help)"),
        (["recommend", "--model", "nowhere", "--history", "1"], "no model at"),
        (["report", "nowhere"], "no report at"),
        (["log", "nowhere"], "is not an output folder in which a raymerge command has run"),
        (["evaluate", "--data", "nowhere", "--model", "x"], "no raymerge artifact at"),
        (["fisher-study", "--data", "nowhere", "--model", "x"], "no raymerge artifact at"),
        (
            ["fisher-study", "--data", "x", "--model", "x", "--users", "0"],
            "study.users must be at least 1 or null, got 0",
        ),
        (["fisher-study", "--data", "x", "--model", "x", "--users", "many"], "'many' is not a valid integer"),
        (["fisher-study", "--data", "x", "--model", "x", "--set", "study.samples=[0]"], "study.samples must be"),
        (
            ["fisher-study", "--data", "x", "--model", "x", "--picture", "a.jpg"],
            "--picture must end with .png, .svg, .pdf",
        ),
        (["fisher-study", "--data", "x"], "Missing option '--model'"),
        (
            ["run", "--set", "trackin.uri=http://me:hunter2@host"],
            "unknown section 'trackin' in --set trackin.uri=http://host;",
        ),
        (
            ["run", "--recipe", "markets", "--set", "markets.count=99999999999999999999"],
            "markets.count must be between 2 and 64",
        ),
    ],
)
def test_user_error_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], expected: str
) -> None:
    output = ["--output", str(tmp_path / "out")] if arguments[0] not in ("recommend", "report", "log") else []
    assert expected in mistake(capsys, *arguments, *output)
    assert not (tmp_path / "out" / "train").exists()


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
    models = [model(tmp_path / "a"), model(tmp_path / "b")]
    diagonals = [diagonal(tmp_path, folder, value) for folder, value in zip(models, (1.0, 3.0), strict=True)]
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


def test_a_start_is_named_just_if_the_step_needs_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    start, *models = (model(tmp_path / name) for name in "abc")
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


def diagonal(folder: Path, of: Path, value: float) -> str:
    """A diagonal of a model with the same number everywhere."""
    key = Key("fisher", {"model": model_digest(open_artifact(str(of)))})
    output = Output(str(folder / "diagonals")).open()
    with output.stage(key) as draft:
        module = load_model(str(of))
        tensors = {name: torch.full_like(p, value) for name, p in module.named_parameters()}
        save_tensors(tensors, draft.folder / "diagonal.safetensors")
    return output.locate(key)


@pytest.fixture
def data(capsys: pytest.CaptureFixture[str], tmp_path: Path, log: Path) -> str:
    """URL of the log as prepared, with its seven items."""
    arguments = ["--set", "prepare.min_item_count=1", "--set", "prepare.min_user_count=1"]
    cli(["prepare", "--input", str(log), "--output", str(tmp_path / "out"), *arguments], standalone_mode=False)
    return str(json.loads(capsys.readouterr().out)["url"])


SEVEN = [f"i{number}" for number in range(7)]


def test_a_start_with_another_encoder_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path, data: str) -> None:
    start = model(tmp_path / "a", num_items=7, ids=SEVEN)
    line = mistake(capsys, "train", "--data", data, "--start", start, "--output", tmp_path / "out")
    assert "encoder.attention is causal, but" in line
    assert "has bidirectional: set it to that" in line


def test_samples_that_a_given_model_cannot_give_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, data: str
) -> None:
    small = model(tmp_path / "a", num_items=7, ids=SEVEN)  # of 8 dimensions, not the configuration's 64
    settings = ["--set", "fisher.estimator=rank", "--set", "fisher.samples=9"]
    line = mistake(capsys, "fisher", "--data", data, "--model", small, "--output", tmp_path / "out", *settings)
    assert "fisher.samples must be at most the 8 dimensions of the model, got 9" in line


def test_a_merge_of_one_model_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    line = mistake(capsys, "merge", "--model", model(tmp_path / "a"), "--data", tmp_path, "--output", tmp_path / "out")
    assert "a merge needs at least two models, got 1" in line


def model(folder: Path, *, num_items: int = 3, ids: list[str] | None = None, **settings: int) -> Path:
    """An untrained model in an artifact of the train stage."""
    items = folder.parent / f"{folder.name}-items.parquet"
    ids = ids or [f"film {number}" for number in range(num_items)]
    write_items(Items(pa.array(ids), torch.ones(len(ids), dtype=torch.int64)), items)
    output = Output(str(folder)).open()
    key = Key("train", {"name": folder.name}, settings)
    with output.stage(key) as draft:
        config = EncoderConfig(max_length=4, dim=8, feed_forward=8, **{"heads": 2, **settings})
        save_model(SequenceEncoder(num_items, config), draft.folder / "model", items_url=str(items))
    found = output.find(key)
    assert found is not None
    return Path(found.url)


def test_recommend_names_an_unknown_item(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    line = mistake(capsys, "recommend", "--model", model(tmp_path / "a"), "--history", "film 1,film 9", "--top", 2)
    assert "no item 'film 9'" in line


def test_recommend_gives_own_ids_and_leaves_out_the_history(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    cli(
        ["recommend", "--model", str(model(tmp_path / "a")), "--history", "film 1", "--top", "2"], standalone_mode=False
    )
    text = capsys.readouterr().out
    assert "film 0" in text
    assert "film 2" in text
    assert "film 1" not in text


def test_recommend_shows_ids_as_they_are(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    strange = model(tmp_path / "a", ids=["[new] shirt", "sku[/1]", "a[b]"])
    cli(["recommend", "--model", str(strange), "--history", "a[b]", "--top", "2"], standalone_mode=False)
    text = capsys.readouterr().out
    assert "[new] shirt" in text
    assert "sku[/1]" in text


def test_recommend_takes_ids_with_commas_as_csv_has_them(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    strange = model(tmp_path / "a", ids=["one, two", 'the "third"', "fourth"])
    history = '"one, two", "the ""third"""'
    cli(["recommend", "--model", str(strange), "--history", history, "--top", "1"], standalone_mode=False)
    assert "fourth" in capsys.readouterr().out


def test_recommend_takes_the_model_that_the_last_run_chose(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    output, chosen = tmp_path / "out", model(tmp_path / "out")
    for run, final in (("0123", f"train/{chosen.name}"), ("4567", "train/none")):
        (output / "report" / run).mkdir(parents=True)
        content = example_report()
        content["final"], content["artifacts"]["models"] = "fine-tuned", {"fisher": "train/none", "fine-tuned": final}
        (output / "report" / run / "report.json").write_text(json.dumps(content))
        (output / "report" / run / "manifest.json").touch()
    facts = {"configuration": {}, "dataset": {}}
    for run in ("0123", "4567", "0123"):  # the first run was repeated: it found its report
        for file in output.glob("runs/*.json"):
            os.utime(file, (file.stat().st_mtime - 10,) * 2)
        Record(str(output), "run demo", f"of-{run}", **facts).open().note("report", f"{output}/report/{run}")
    Record(str(output), "evaluate demo", "other", **facts).open().note("evaluate/x", f"{output}/evaluate/89")
    Record(str(output), "run demo", "under-way", **facts).open().note("report", f"{output}/report/not-there-yet")
    (output / "runs" / ".DS_Store").touch()
    cli(["recommend", "--model", str(output), "--history", "film 1", "--top", "2"], standalone_mode=False)
    assert "film 0" in capsys.readouterr().out
    (output / "report" / "0123" / "report.json").write_text("{")
    line = mistake(capsys, "recommend", "--model", output, "--history", "film 1")
    assert "is not a report: it was cut off" in line


def test_altered_model_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = model(tmp_path / "a")
    file = folder / "model" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    line = mistake(capsys, "recommend", "--model", folder, "--history", "film 1")
    assert "was altered or truncated" in line


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
    models = [model(tmp_path / "a"), model(tmp_path / "b", **other)]
    arguments = [part for folder in models for part in ("--model", str(folder))]
    assert expected in mistake(capsys, "merge", *arguments, "--data", tmp_path, "--output", tmp_path / "out")


def test_diagonal_of_another_model_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    models = [model(tmp_path / "a"), model(tmp_path / "b")]
    output = Output(str(tmp_path / "fisher")).open()
    key = Key("fisher", {"model": "another"})
    with output.stage(key) as draft:
        save_tensors({"x": torch.ones(1)}, draft.folder / "diagonal.safetensors")
    diagonal = output.locate(key)
    arguments = [part for folder in models for part in ("--model", str(folder), "--diagonal", diagonal)]
    assert "of a model other than" in mistake(capsys, "merge", *arguments, "--output", tmp_path / "out")


@pytest.mark.parametrize("name", list(recipes.RECIPES))
def test_printed_configuration_is_a_recipe_again(capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str) -> None:
    cli(["config", "--recipe", name], standalone_mode=False)
    file = tmp_path / "mine.yaml"
    file.write_text(capsys.readouterr().out)
    assert recipes.configure(str(file)) == recipes.configure(name)
    assert yaml.safe_load(file.read_text())["recipe"] == name


@pytest.mark.parametrize("value", ["2024-13-01", "0b_"])
def test_value_that_yaml_cannot_parse_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, value: str
) -> None:
    assert "quote text with special characters" in mistake(capsys, "config", "--set", f"prepare.user={value}")
    (tmp_path / "own.yaml").write_text(f"prepare: {{user: {value}}}")
    assert "own.yaml is not YAML" in mistake(capsys, "config", "--recipe", tmp_path / "own.yaml")


def test_the_suggested_delimiter_can_be_set_as_shown() -> None:
    assert recipes.configure("demo", ('prepare.delimiter="|"',)).prepare.delimiter == "|"
    assert recipes.configure("demo", ('prepare.delimiter="\\t"',)).prepare.delimiter == "\t"


def test_numbers_with_an_exponent_are_numbers_in_all_settings(tmp_path: Path) -> None:
    config = recipes.configure("demo", ("members.duorec.settings.weight=5e-3", "training.weight_decay=1.5e1"))
    assert config.members["duorec"].resolved().weight == 0.005
    file = tmp_path / "own.yaml"
    file.write_text(yaml.safe_dump(config.plain()).replace("0.005", "5e-3"))
    assert recipes.configure(str(file)) == config


def test_printed_configuration_explains_settings(capsys: pytest.CaptureFixture[str]) -> None:
    cli(["config", "--recipe", "demo"], standalone_mode=False)
    lines = capsys.readouterr().out.splitlines()
    assert "  norm: pre  # pre | post; before or after attention and feed-forward" in lines
    assert any(line.startswith("  patience: ") and line.endswith("; 0 never stops") for line in lines)
    assert "  epsilon: 1.0e-06  # ε, in units of a diagonal's mean: a number or search" in lines


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_settings_of_an_objective_are_printed_as_it_takes_them(capsys: pytest.CaptureFixture[str], name: str) -> None:
    cli(["config", "--objective", name], standalone_mode=False)
    printed = capsys.readouterr().out
    assert ObjectiveConfig(name, yaml.safe_load(printed)).resolved() == ObjectiveConfig(name).resolved()
    assert all("  # " in line for line in printed.splitlines())


def test_error_of_an_unknown_objective_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="unknown objective 'sasrec'; known: bert4rec"):
        cli(["config", "--objective", "sasrec"], standalone_mode=False)


@pytest.mark.parametrize("name", list(ESTIMATORS))
def test_an_estimator_is_printed_with_its_formula_and_source(capsys: pytest.CaptureFixture[str], name: str) -> None:
    cli(["config", "--estimator", name], standalone_mode=False)
    printed = capsys.readouterr().out
    assert f"formula: {ESTIMATORS[name].formula}\nsource: {ESTIMATORS[name].source}\n" in printed


@pytest.mark.parametrize("command", list(cli.commands))
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    cli([command, "--help"], standalone_mode=False)
    assert "Usage" in capsys.readouterr().out


def test_core_imports_neither_ray_nor_mlflow_nor_pyarrow() -> None:
    """The mathematics must run with torch alone."""
    rooms = "raymerge.models.objectives, raymerge.fisher, raymerge.fisher.diagonal, raymerge.merging.methods"
    code = f"import sys, {rooms}, raymerge.evaluation.ranking; print([m for m in "
    code += "('ray', 'mlflow', 'pyarrow', 'pydantic', 'fsspec', 'matplotlib') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_command_that_hangs_when_stopped_is_ended() -> None:
    hangs = """
import signal, time
from raymerge import cli
cli.GRACE_S = 0.5
signal.signal(signal.SIGTERM, cli._interrupt)
try:
    print("ready", flush=True)
    time.sleep(120)
finally:
    time.sleep(120)
"""
    with subprocess.Popen([sys.executable, "-c", hangs], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        process.terminate()
        assert process.wait(60) == 130
