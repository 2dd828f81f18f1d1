"""`raymerge submit`: checks before it contacts a cluster, what is sent, and how the end of a job is judged."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from pathlib import Path

import pytest
import ray
from ray.job_submission import JobDetails, JobStatus

import raymerge
from raymerge.cli import main
from raymerge.commands import cluster as cluster_commands
from raymerge.commands.cluster import runtime_env
from raymerge.errors import LostError, ResourceError
from raymerge.execution import submission
from raymerge.execution.deadline import Deadline
from raymerge.execution.submission import EXIT_LOST, EXIT_STOPPED, UNKNOWN_JOB, Job, connect, outcome_of, run_job

NOWHERE = "http://127.0.0.1:9"


def mistake(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["submit", *map(str, arguments)])
    assert ended.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--address", "http://head.invalid", "run", "--output", "/out"], "no Ray cluster at http://head.invalid"),
        (["--address", "10.0.0.1:6379", "run", "--output", "/out"], "must be that of the dashboard"),
        (["--address", "http://head:99999", "run", "--output", "/out"], "must be that of the dashboard"),
        (["--address", "http://[::1", "run", "--output", "/out"], "must be that of the dashboard"),
        (["run"], "--output 'out' is relative to a folder of this machine"),
        (
            ["run", "--output", "/out", "--input", "log.csv"],
            "--input 'log.csv' is relative to a folder",
        ),
        (["run", "--output", "/out", "--tracking-uri", "sqlite:///a.db"], "'sqlite:///a.db' is relative"),
        (["run", "--output", "/out", "--set", "tracking.uri=sqlite:///runs.db"], "'sqlite:///runs.db' is relative"),
        (["evaluate", "--data", "/d", "--model", "m", "--output", "/out"], "--model 'm' is relative"),
        (["train", "--data", "/d", "--start", "out/train/1", "--output", "/out"], "--start 'out/train/1' is relative"),
        (
            ["run", "--output", "/out", "--set", "prepare.catalogue=out/p"],
            "--set prepare.catalogue 'out/p' is relative",
        ),
        (["run", "--output", "/out", "--address", "auto"], "goes before the command"),
        (
            ["--address", "http://me:secret@head.invalid", "run", "--output", "/out"],
            "Ray cluster at http://head.invalid",
        ),
        (["--address", "ray://me:secret@head", "run", "--output", "/out"], "must be that of the dashboard"),
        (["run", "--output", "s3://me:secret@host/out"], "s3://host/out contains a user or password"),
        (
            ["run", "--output", "/out", "--input", "https://host/a.csv?sig=secret"],
            "https://host/a.csv contains the query",
        ),
        (["--metadata", "see=https://me:secret@host/", "run", "--output", "/out"], "see=https://host/ contains a user"),
        (["run", "--output", "/out", "--recipe", "nope"], "unknown recipe 'nope'"),
        (["run", "--output", "/out", "--recipe", "mine.yaml"], "would not be uploaded: give --working-dir"),
        (["run", "--output", "/out", "--set", "training.epoch=3"], "unknown configuration key training.epoch"),
        (["run", "--output", "/out", "--nope"], "No such option"),
        (["recommend"], "'recommend' is not one of"),
        (["--working-dir", "/nowhere", "run", "--output", "/out"], "--working-dir /nowhere is not a folder"),
        (["--requirements", "/none.txt", "run", "--output", "/out"], "no such file: /none.txt"),
        (["--metadata", "team", "run", "--output", "/out"], "--metadata takes key=value"),
    ],
)
def test_user_error_is_one_line_before_anything_is_sent(
    capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    line = mistake(capsys, *arguments)
    assert expected in line
    assert "secret" not in line


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (JobStatus.SUCCEEDED, 0, (0, False)),
        (JobStatus.FAILED, 2, (2, False)),  # a mistake of the user's
        (JobStatus.FAILED, 1, (1, True)),
        (JobStatus.FAILED, 75, (75, True)),  # workers that died again and again, a store that did not answer
        (JobStatus.FAILED, -9, (137, True)),  # killed, perhaps for want of memory
        (JobStatus.FAILED, None, (EXIT_LOST, True)),  # its node died, or its environment could not be made
        (JobStatus.STOPPED, None, (EXIT_STOPPED, False)),
    ],
)
def test_only_jobs_that_the_cluster_lost_are_retried(
    status: JobStatus, code: int | None, expected: tuple[int, bool]
) -> None:
    found = outcome_of(status, code, "what happened\nand a long log")
    assert (found.exit_code, found.lost) == expected
    assert "\n" not in found.reason


class Heads:
    """A cluster's client: the first head loses its job after a long log, the next one does not know it."""

    def __init__(self) -> None:
        self.lost, self.jobs = "", []

    def get_address(self) -> str:
        return "http://head:8265"

    def submit_job(self, *, submission_id: str, **_: object) -> None:
        self.jobs.append(submission_id)
        self.lost = ""

    def get_job_info(self, name: str) -> JobDetails:
        if name == self.lost:
            raise RuntimeError(f"Request failed with {UNKNOWN_JOB}: no such job")
        return JobDetails(type="SUBMISSION", entrypoint="", status=JobStatus.SUCCEEDED, driver_exit_code=0)

    async def tail_job_logs(self, name: str) -> AsyncIterator[str]:
        if len(self.jobs) == 1:
            self.lost = name
            yield "a long log of training\n" * 9
            raise ConnectionError("the head is gone")
        yield "the table\n"


def test_log_of_the_next_head_s_job_is_shown_from_its_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    heads, written = Heads(), []
    monkeypatch.setattr(submission, "connect", lambda address: heads)
    monkeypatch.setattr(submission, "OUTAGE_S", 0.0)
    code = run_job(
        Job("train"), address="", retries=1, deadline=Deadline(60), write=written.append, say=list, wait_s=0.01
    )
    assert code == 0 and len(heads.jobs) == 2
    assert written[-1] == "the table\n"


LOG_FROM_A_RUNNING_JOB = """
from ray.job_submission import JobDetails, JobStatus
from raymerge import cli
from raymerge.execution import submission

class Head:
    def get_address(self): return "http://head:8265"
    def submit_job(self, **job): pass
    def get_job_info(self, name): return JobDetails(type="SUBMISSION", entrypoint="", status=JobStatus.RUNNING)
    def stop_job(self, name): print("stopped")
    async def tail_job_logs(self, name): yield "a line\\n"

submission.connect = lambda address: Head()
cli.main(["submit", "run", "--output", "/out"])
"""


@pytest.mark.parametrize(("stdout", "why"), [("/dev/full", "No space left on device"), (None, "Broken pipe")])
def test_a_log_that_cannot_be_written_ends_in_one_line_and_leaves_the_job_running(stdout: str | None, why: str) -> None:
    reading, writing = (None, os.open(stdout, os.O_WRONLY)) if stdout else os.pipe()
    if reading is not None:
        os.close(reading)
    command = [sys.executable, "-c", LOG_FROM_A_RUNNING_JOB]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=100)
    os.close(writing)
    assert done.returncode == 2, done.stderr
    *_, last = done.stderr.splitlines()
    assert last.startswith(f"raymerge: the log cannot be written here ({why}); the job goes on: ray job logs --follow")
    assert "stopped" not in done.stderr and "Exception ignored" not in done.stderr


class Starting(BaseHTTPRequestHandler):
    """A proxy before a head that is down, and then a server that is not a head."""

    answers: list[int]

    def do_GET(self) -> None:
        self.send_error(self.answers.pop(0))

    def log_message(self, *_: object) -> None:
        pass


def test_a_cluster_that_does_not_answer_is_retried_and_a_server_that_is_no_cluster_is_not() -> None:
    said: list[str] = []
    options = {"deadline": Deadline(60), "write": said.append, "say": said.append, "wait_s": 0.01}
    with pytest.raises(LostError, match="no Ray cluster at http://127.0.0.1:9 .*; start one or give --address"):
        run_job(Job("train"), address=NOWHERE, retries=2, **options)
    assert ["retry 1 of 2 in" in said[0], "retry 2 of 2 in" in said[1]] == [True, True] and len(said) == 2
    handler = type("Handler", (Starting,), {"answers": [503, 404]})
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(ResourceError, match="no Ray cluster at .*404") as refused:
            run_job(Job("train"), address=f"http://me:hunter2@127.0.0.1:{server.server_port}", retries=2, **options)
        server.shutdown()
    assert not isinstance(refused.value, LostError)
    assert "503" in said[2] and len(said) == 3
    assert "hunter2" not in said[2] + str(refused.value)


class Silent(BaseHTTPRequestHandler):
    """A head that takes an upload and never answers."""

    over: threading.Event

    def do_GET(self) -> None:
        body = json.dumps({"version": "4", "ray_version": ray.__version__, "ray_commit": "", "session_name": ""})
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body.encode())

    def do_PUT(self) -> None:
        self.over.wait()

    def log_message(self, *_: object) -> None:
        pass


def test_an_upload_without_an_answer_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submission, "UPLOAD_TIMEOUT_S", 0.5)
    handler = type("Handler", (Silent,), {"over": threading.Event()})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        client = connect(f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(OSError, match="timed out"):
            client._do_request("PUT", "/api/packages/gcs/package.zip", data=b"x")
        handler.over.set()
        server.shutdown()


class Deaf(Heads):
    """A cluster whose job does not end when it is stopped."""

    def stop_job(self, name: str) -> None:
        pass

    def get_job_status(self, name: str) -> JobStatus:
        return JobStatus.RUNNING


def test_a_job_that_does_not_end_is_not_called_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    heads, said = Deaf(), []
    monkeypatch.setattr(submission, "connect", lambda address: heads)
    monkeypatch.setattr(submission, "STOP_TIMEOUT_S", 0.0)
    with pytest.raises(ResourceError, match="the job was not done within"):
        run_job(Job("train"), address="", retries=0, deadline=Deadline(0), write=list, say=said.append)
    assert "has not ended" in said[-1] and heads.jobs[0] in said[-1]


def test_only_the_package_is_uploaded_unless_a_folder_is_given(tmp_path: Path) -> None:
    package = str(Path(raymerge.__file__).parent)
    assert runtime_env(None, None) == {"py_modules": [package]}
    assert runtime_env(str(tmp_path), None) == {"working_dir": str(tmp_path), "py_modules": [package]}
    checkout = str(Path(package).parent)
    assert runtime_env(checkout, None) == {"working_dir": checkout}


def test_requirements_with_a_password_are_not_sent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pins.txt").write_text("--extra-index-url https://me:secret@packages/simple\ntorch==2.13.0\n")
    line = mistake(capsys, "--requirements", tmp_path / "pins.txt", "run", "--output", "/out")
    assert "--extra-index-url https://packages/simple contains a user or password" in line
    assert "secret" not in line


def test_requirements_that_are_no_text_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r.txt").write_text("torch==2.13.0", encoding="utf-16")
    line = mistake(capsys, "--requirements", str(tmp_path / "r.txt"), "run", "--output", "/out")
    assert f"--requirements {tmp_path / 'r.txt'} is not UTF-8 text" in line


def test_requirements_are_pinned_and_leave_ray_to_the_cluster(tmp_path: Path) -> None:
    (tmp_path / "pins.txt").write_text("# pins\ntorch==2.13.0\nray==2.60.0\nray-extra==1\nmlflow==3.17.2  # tracking\n")
    environment = runtime_env(None, str(tmp_path / "pins.txt"))
    assert environment["config"] == {"setup_timeout_seconds": 3600}
    assert environment["pip"]["packages"] == ["torch==2.13.0", "ray-extra==1", "mlflow==3.17.2"]


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Job, dict]]:
    """Jobs that would be submitted, and their options."""
    jobs: list[tuple[Job, dict]] = []

    def take(job: Job, **options: object) -> int:
        jobs.append((job, options))
        return 7

    monkeypatch.setattr(cluster_commands, "run_job", take)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return jobs


def submit(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["submit", *arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_command_is_sent_as_typed_and_the_exit_code_returned(
    sent: list[tuple[Job, dict]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    assert (
        submit("--metadata", "team=shop", "run", "--output", "s3://bucket/out", "--set", "tracking.model_name=a b") == 7
    )
    job, options = sent[0]
    assert job.entrypoint == (
        "python -m raymerge run --output s3://bucket/out --set 'tracking.model_name=a b' --tracking-uri http://tracking:5000"
    )
    assert job.metadata == {"raymerge.version": raymerge.__version__, "raymerge.recipe": "demo", "team": "shop"}
    assert options["address"] == "http://127.0.0.1:8265"
    assert "MLflow: http://tracking:5000" in capsys.readouterr().err


@pytest.mark.parametrize(
    "uri", ["sqlite:////home/me/runs.db", "http://127.0.0.1:5000", "http://localhost:5000", "https://[::1]:5000"]
)
def test_tracking_on_this_machine_only_does_not_override_the_cluster_s(
    sent: list[tuple[Job, dict]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], uri: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    submit("--address", "http://127.0.0.1:8265", "run", "--output", "s3://bucket/out")  # a forwarded port
    submit("run", "--output", "s3://bucket/out", "--tracking-uri", uri)
    assert sent[0][0].entrypoint == "python -m raymerge run --output s3://bucket/out"
    assert sent[1][0].entrypoint.endswith(f"--tracking-uri {uri}" if "[" not in uri else f"--tracking-uri '{uri}'")
    assert "MLflow: the server in MLFLOW_TRACKING_URI of the cluster" in capsys.readouterr().err


def test_secret_in_the_environment_is_not_sent(
    sent: list[tuple[Job, dict]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hunter2@tracking:5000")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "hunter3")
    submit("run", "--output", "s3://bucket/out")
    said = capsys.readouterr()
    assert "hunter" not in repr(sent[0][0]) + said.out + said.err


def test_deadline_of_the_configuration_is_the_deadline_of_the_job(sent: list[tuple[Job, dict]]) -> None:
    submit("run", "--output", "/out", "--set", "cluster.deadline_hours=2")
    assert 7200 < sent[0][1]["deadline"].seconds < 7400
