"""`raymerge log` sends what commands left in an output to a server, from the output alone and each value once."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow_server import Server

from raymerge.cli import main
from raymerge.errors import ArtifactError
from raymerge.tracking.record import read_all


def command(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return int(ended.value.code or 0)


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of `raymerge prepare`, recorded in a database with a password in its URI."""
    folder = tmp_path_factory.mktemp("prepared")
    log = folder / "log.csv"
    log.write_text("user,item,timestamp\n" + "".join(f"u{n % 9},i{n % 7},{n}\n" for n in range(400)))
    options = ["--set", "tracking.experiment=log", "--tracking-uri", f"sqlite:///{folder}/runs.db?password=hunter2"]
    assert command("prepare", "--input", str(log), "--output", str(folder / "out"), *options) == 0
    return folder / "out"


@pytest.fixture
def copy(output: Path, tmp_path: Path) -> Path:
    """The same in another place, since an output can be moved."""
    return shutil.copytree(output, tmp_path / "moved")


def figures(uri: str) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Run → key → steps and values on the server."""
    client = MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("log").experiment_id])
    assert {run.info.status for run in runs} == {"FINISHED"}
    return {
        run.data.tags["raymerge.run"]: {
            key: [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, key)]
            for key in run.data.metrics
        }
        for run in runs
    }


def test_output_is_sent_to_another_server_as_the_command_would_have_and_nothing_twice(
    output: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "hunter2" not in next((output / "runs").glob("*.json")).read_text()
    for _ in range(2):
        assert command("log", str(output), "--tracking-uri", server.uri) == 0
        assert json.loads(capsys.readouterr().out.splitlines()[-2]) == {
            "name": "prepare default",
            "runs": 1,
            "missing": 0,
        }
    found = figures(server.uri)
    assert found == figures(f"sqlite:///{output.parent}/runs.db")
    assert found["prepare"]["interactions"] == [(0, 400.0)]


def test_ray_is_not_started(copy: Path, server: Server) -> None:
    code = "import atexit, ray, sys, raymerge.cli as c; atexit.register(lambda: print(ray.is_initialized())); c.main()"
    arguments = ["log", str(copy), "--tracking-uri", server.uri]
    run = [sys.executable, "-c", code, *arguments]
    printed = subprocess.run(run, check=True, capture_output=True, text=True).stdout
    assert printed.splitlines()[-1] == "False"


def test_what_was_not_committed_is_left_out(copy: Path, server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    [record] = read_all(str(copy))
    record.note("train/base", f"{copy}/train/0123456789abcdef")
    assert command("log", str(copy), "--tracking-uri", server.uri) == 0
    sent = json.loads(capsys.readouterr().out.splitlines()[-2])
    assert (sent["runs"], sent["missing"]) == (1, 1)
    client = MlflowClient(server.uri)
    runs = client.search_runs([client.get_experiment_by_name("log").experiment_id])
    ended = {run.data.tags["raymerge.run"]: run.info.status for run in runs}
    assert (ended["prepare"], ended["pipeline"]) == ("FINISHED", "FAILED")


def test_an_unreachable_server_is_reported_in_one_line(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("log", str(output), "--tracking-uri", "http://127.0.0.1:9") == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("raymerge: MLflow at http://127.0.0.1:9 cannot be used")


def test_a_partial_record_is_skipped(copy: Path) -> None:
    [file] = (copy / "runs").glob("*.json")
    (copy / "runs" / f"{file.name}.0123.part").write_text(file.read_text()[:-20])
    assert len(read_all(str(copy))) == 1


def test_a_truncated_record_is_refused_by_name(copy: Path) -> None:
    [file] = (copy / "runs").glob("*.json")
    file.write_text(file.read_text()[:-20])
    with pytest.raises(ArtifactError, match=f"{file} is not the record of a command"):
        read_all(str(copy))
