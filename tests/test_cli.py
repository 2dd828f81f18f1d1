"""The command line: help, exit codes, and one clear line for each user error."""

import subprocess
import sys
from pathlib import Path

import pytest
from command_cases import mistake

from raymerge.cli import cli, main
from raymerge.errors import LostError

pytestmark = pytest.mark.usefixtures("ray_is_never_started")


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


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run", "--input", "none.csv"], "no such file"),
        (["run", "--recipe", "nope"], "unknown recipe 'nope'; known: demo"),
        (["run", "--recipe", "beauty"], "recipe beauty needs a log: give it with --input"),
        (
            ["run", "--set", "training.epoch=3"],
            "unknown configuration key training.epoch; did you mean epochs? known: epochs",
        ),
        (
            ["run", "--set", "trainin.epochs=3"],
            "'trainin' in --set trainin.epochs=3; did you mean training?",
        ),
        (["run", "--set", "members={control: {name: next_item}}"], "two models of the run would be named 'control'"),
        (["run", "--set", "rivals={duorec: {estimator: target}}"], "two models of the run would be named 'duorec'"),
        (
            [
                "run",
                "--set",
                "merge.method=average",
                "--set",
                "merge.coefficients=search",
                "--set",
                "members={weighted-average: {name: next_item}}",
            ],
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
        (["run", "--set", "training.epochs=many"], "training.epochs: input should be a whole number, got 'many'"),
        (["run", "--set", "training.epochs=1.5"], "training.epochs: input should be a whole number, got 1.5"),
        (["run", "--input", ""], "a path is empty: name a file, a folder or a URL"),
        (["run", "--recipe", "defualt"], "unknown recipe 'defualt'; did you mean default? known: demo"),
        (["plan", "--data", "x", "--input", "y"], "plan takes a log with --input or prepared --data, not both"),
        (["config", "--list", "--set", "seed=1"], "--list and --set cannot be combined"),
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
        (["run", "--set", "merge.epsilon=abc"], "merge.epsilon: input should be a number"),
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
    output = (
        ["--output", str(tmp_path / "out")]
        if arguments[0] not in ("recommend", "report", "log", "plan", "config")
        else []
    )
    assert expected in mistake(capsys, *arguments, *output)
    assert not (tmp_path / "out" / "train").exists()


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
