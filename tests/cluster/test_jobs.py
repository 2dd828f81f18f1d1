"""Jobs on a real head with a token: access without it is refused, exit codes are right, stopped jobs resume."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import processes
import pyarrow.parquet as pq
import pytest
from cluster.head import CHECKOUT, Head, start_head, status

from raymerge.artifacts import Output
from raymerge.data import demo
from raymerge.execution.deadline import Deadline
from raymerge.recipes import configure
from raymerge.stages.context import Context
from raymerge.stages.prepare import prepare

SMALL = {
    "encoder.max_length": "12",
    "encoder.dim": "16",
    "encoder.feed_forward": "32",
    "prepare.partitions": "2",
    "base": "null",
    "members": "{one: {name: next_item}}",
    "training.patience": "0",
    "training.epochs": "12",
}


@contextmanager
def own_head(home: Path) -> Iterator[Head]:
    home.mkdir(exist_ok=True)
    short = tempfile.TemporaryDirectory(prefix="rm-", ignore_cleanup_errors=True)  # sockets: at most 107 bytes
    with short as folder, start_head(Path(folder), home) as found:
        yield found


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    with own_head(tmp_path_factory.mktemp("home")) as found:
        yield found


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("log") / "log.parquet"
    pq.write_table(demo.generate(seed=5, users=200, items=120), file)
    return file


def settings(values: dict[str, str]) -> list[str]:
    return [part for key, value in values.items() for part in ("--set", f"{key}={value}")]


def wait_for(condition: Callable[[], object], seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.2)


def test_nobody_gets_in_without_the_token(head: Head) -> None:
    entries = [
        "/api/version",
        "/api/jobs/",
        "/nodes?view=summary",
        "/api/v0/logs",
        "/api/v0/actors",
        "/api/cluster_status",
    ]
    agent = head.agent + "/api/job_agent/jobs/"
    wait_for(lambda: status(agent, method="POST") is not None, 60, "the agent of the node does not answer")
    for token in (None, "0" * 64):
        for entry in entries:
            assert status(head.dashboard + entry, token=token) in (401, 403), entry
        body = json.dumps({"entrypoint": "touch /tmp/in"}).encode()
        assert status(head.dashboard + "/api/jobs/", method="POST", token=token, body=body) in (401, 403)
        assert status(agent, method="POST", token=token, body=body) in (401, 403)
        package = head.dashboard + "/api/packages/gcs/_ray_pkg_0.zip"
        assert status(package, method="PUT", token=token, body=b"x") in (401, 403)
    assert status(head.dashboard + "/api/version", token=head.environment["RAY_AUTH_TOKEN"]) == 200


NO_TOKEN = {"RAY_AUTH_TOKEN": "", "RAY_AUTH_MODE": "disabled"}


@pytest.mark.parametrize(
    "change", [{"RAY_AUTH_TOKEN": "0" * 64}, pytest.param(NO_TOKEN, marks=pytest.mark.chaos, id="none")]
)
def test_submission_without_the_token_is_one_line(head: Head, change: dict[str, str]) -> None:
    submitted = head.run("-m", "raymerge", "submit", "--address", head.dashboard, "run", "--output", "/out", **change)
    assert submitted.returncode == 2
    line = submitted.stderr.strip().splitlines()[-1]
    assert line.startswith(f"raymerge: the Ray cluster at {head.dashboard} requires its token")
    assert head.environment["RAY_AUTH_TOKEN"] not in submitted.stderr


@pytest.mark.chaos
@pytest.mark.parametrize("door", ["gcs", "client"])
@pytest.mark.parametrize("change", [{"RAY_AUTH_TOKEN": "0" * 64}, NO_TOKEN], ids=["wrong", "none"])
def test_driver_without_the_token_does_not_get_in(head: Head, door: str, change: dict[str, str]) -> None:
    entering = f"import ray; ray.init({getattr(head, door)!r}); print('IN', ray.nodes())"
    driver = head.run("-c", entering, **change)
    assert driver.returncode != 0
    assert "IN" not in driver.stdout
    tries = (head.run("-c", entering).stdout for _ in range(3))  # Ray's client server may trip over a process that ends
    assert any("IN" in said for said in tries), "the door is shut to all"


CASES = """
import json, sys, time
from pathlib import Path
from raymerge.execution.deadline import Deadline
from raymerge.errors import ResourceError
from raymerge.execution.submission import Job, connect, run_job

address, mark = sys.argv[1:]
def run(entrypoint, retries=1, deadline=Deadline(600)):
    written, said = [], []
    try:
        code = run_job(Job(entrypoint), address=address, retries=retries, deadline=deadline,
                       write=written.append, say=said.append, wait_s=0.1)
    except ResourceError as error:
        code = str(error)
    return code, "".join(written), said

found = {
    "mistake": run("for n in 1 2 3; do echo line $n; sleep 0.7; done; exit 2"),
    "failure": run("echo twice; exit 3"),
    "killed once": run(f"test -e {mark} || {{ touch {mark}; kill -9 $$; }}; echo done"),
    "late": run("sleep 60", deadline=Deadline(3.0)),
}
found["states"] = [str(job.status) for job in connect(address).list_jobs()]
print("FOUND" + json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(head: Head, tmp_path_factory: pytest.TempPathFactory) -> dict:
    mark = tmp_path_factory.mktemp("mark") / "killed"
    done = head.run("-c", CASES, head.dashboard, str(mark))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.partition("FOUND")[2])


@pytest.mark.chaos
def test_log_is_followed_line_by_line_and_a_user_error_is_not_retried(found: dict) -> None:
    code, log, said = found["mistake"]
    assert code == 2
    assert [line for line in log.splitlines() if line.startswith("line")] == ["line 1", "line 2", "line 3"]
    assert not any("lost" in line for line in said)


@pytest.mark.chaos
def test_failure_is_retried_as_often_as_requested(found: dict) -> None:
    code, log, said = found["failure"]
    assert code == 3
    assert log.count("\ntwice\n") == 2
    assert [line for line in said if "the job was lost (exit code 3); retry 1 of 1 in" in line]


@pytest.mark.chaos
def test_killed_job_is_resubmitted_and_succeeds(found: dict) -> None:
    code, log, said = found["killed once"]
    assert code == 0
    assert log.endswith("done\n")
    assert any("the job was lost (exit code 137)" in line for line in said)


@pytest.mark.chaos
def test_job_past_its_deadline_is_stopped(found: dict) -> None:
    code, _, said = found["late"]
    assert "the job was not done within" in code
    assert any("is stopped" in line for line in said)
    assert "RUNNING" not in found["states"]


THROUGH_A_CUT = """
import json, socket, sys, threading
from raymerge.execution import submission
from raymerge.execution.deadline import Deadline

direct = sys.argv[1]
host, port = direct.removeprefix("http://").split(":")
server, ends, passable = socket.create_server(("127.0.0.1", 0)), [], threading.Event()

def copy(one, other):
    try:
        while data := one.recv(65536):
            other.sendall(data)
    except OSError:
        pass
    other.close()

def serve():
    while True:
        near, _ = server.accept()
        if not passable.is_set():
            near.close()
            continue
        far = socket.create_connection((host, int(port)))
        ends.extend([near, far])
        for pair in ((near, far), (far, near)):
            threading.Thread(target=copy, args=pair, daemon=True).start()

def cut():
    passable.clear()
    for end in ends:
        try:
            end.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

passable.set()
threading.Thread(target=serve, daemon=True).start()
submission.OUTAGE_S = 1.0
threading.Timer(6, cut).start()
threading.Timer(14, passable.set).start()
written, said = [], []
code = submission.run_job(
    submission.Job("sleep 20; echo through"), address=f"http://127.0.0.1:{server.getsockname()[1]}", retries=60,
    deadline=Deadline(120), write=written.append, say=said.append, wait_s=0.5)
jobs = [job.submission_id for job in submission.connect(direct).list_jobs() if job.entrypoint.startswith("sleep 20")]
print("FOUND" + json.dumps([code, "".join(written), said, jobs]))
"""


@pytest.mark.chaos
def test_job_that_continues_through_a_long_silence_is_found_again_and_not_doubled(head: Head) -> None:
    done = head.run("-c", THROUGH_A_CUT, head.dashboard)
    assert done.returncode == 0, done.stderr
    code, log, said, jobs = json.loads(done.stdout.partition("FOUND")[2])
    assert (code, len(jobs)) == (0, 1)
    assert any("the job was lost" in line for line in said), "the silence was longer than one connection stands"
    assert log.endswith("through\n")


def start(head: Head, data: str, output: Path) -> subprocess.Popen[str]:
    """`raymerge submit train` as a process that can be interrupted."""
    command = [sys.executable, "-m", "raymerge", "submit", "--address", head.dashboard, "--retries", "0", "train"]
    command += ["--data", data, "--output", str(output), *settings(SMALL)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=head.environment, cwd=CHECKOUT, stdout=pipe, stderr=pipe, text=True)


def checkpointed(output: Path) -> list[dict]:
    """Epochs in the latest checkpoint that Ray Train has registered, which it does every 2 s."""
    histories = []
    for file in output.glob("checkpoints/*/checkpoint_manager_snapshot.json"):
        with suppress(OSError, ValueError, TypeError):  # it may be half written, or just be deleted; or there is none
            latest = json.loads(file.read_text())["latest_checkpoint_result"]["checkpoint_dir_name"]
            histories.append(json.loads((file.parent / latest / "state.json").read_text())["history"])
    return max(histories, key=len, default=[])


@pytest.mark.chaos
@pytest.mark.parametrize("way", ["Ctrl-C", "ray job stop"])
def test_stopped_job_leaves_nothing_behind_and_the_next_one_resumes(
    head: Head, log: Path, tmp_path: Path, way: str
) -> None:
    output = tmp_path / "out"
    overrides = tuple(f"{key}={value}" for key, value in SMALL.items())
    data = prepare(Context(configure("demo", overrides), Output(str(output)), print, Deadline(60)), [str(log)])
    first = start(head, data.url, output)
    wait_for(lambda: len(checkpointed(output)) >= 3 or first.poll() is not None, 90, "no checkpoint")
    if way == "Ctrl-C":
        first.send_signal(signal.SIGINT)
    else:
        jobs = "from raymerge.execution.submission import connect; import sys; print(*[job.submission_id for job in "
        jobs += "connect(sys.argv[1]).list_jobs() if job.status == 'RUNNING'])"
        [job] = head.run("-c", jobs, head.dashboard).stdout.split()
        stopped = head.run("-m", "ray.scripts.scripts", "job", "stop", "--address", head.dashboard, job)
        assert stopped.returncode == 0, stopped.stderr
    text, said = first.communicate(timeout=40)
    assert first.returncode == 130, text + said
    assert ("is stopped; run the same command again to resume it" if way == "Ctrl-C" else "it was stopped") in said
    wait_for(lambda: not head.workers(), 20, "processes of the job are left")
    assert not list(output.glob("train/*"))
    assert not list((output / ".staging").iterdir())
    before = checkpointed(output)
    second = start(head, data.url, output)
    text, said = second.communicate(timeout=100)
    assert second.returncode == 0, text + said
    history = json.loads(next(output.glob("train/*/history.json")).read_text())
    assert history[:2] == before[:2], "what the first job had trained, to its very seconds, was not trained again"
    assert len(before) < len(history) == int(SMALL["training.epochs"])
    assert "MLflow: the server in MLFLOW_TRACKING_URI of the cluster, else sqlite:///" in said
    assert f"{head.dashboard}/#/jobs/raymerge-" in said
    lines = [line for line in text.splitlines() if "train/one" in line]
    assert 1 <= len(lines) <= 4, "a line at the start, one a minute, one at the end"
    assert "\r" not in text
    token = head.environment["RAY_AUTH_TOKEN"].encode()
    told = [path for folder in (head.logs, output) for path in folder.rglob("*") if path.is_file()]
    assert len(told) > 20 and not [path for path in told if token in path.read_bytes()]


@pytest.mark.chaos
@pytest.mark.timeout(500)
def test_killed_head_is_reported_in_one_line_and_the_job_resumes_on_the_next(log: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    overrides = tuple(f"{key}={value}" for key, value in SMALL.items())
    data = prepare(Context(configure("demo", overrides), Output(str(output)), print, Deadline(60)), [str(log)])
    with ExitStack() as stack:
        head = stack.enter_context(own_head(tmp_path / "first"))
        job = start(head, data.url, output)
        wait_for(lambda: len(checkpointed(output)) >= 3 or job.poll() is not None, 90, "no checkpoint")
        for pid in processes.of_home(head.environment["HOME"]):
            if pid != job.pid:
                os.kill(pid, signal.SIGKILL)
        _, said = job.communicate(timeout=120)
        assert job.returncode == 1
        assert said.splitlines()[-1].startswith("raymerge: the job failed: no answer from the cluster: ")
        assert "Traceback" not in said
        head.process.wait(10)
    assert not list(output.glob("train/*"))
    before = checkpointed(output)
    with own_head(tmp_path / "second") as head:
        again = start(head, data.url, output)
        text, said = again.communicate(timeout=200)
        assert again.returncode == 0, text + said
    history = json.loads(next(output.glob("train/*/history.json")).read_text())
    assert history[: len(before)] == before, "what was trained before, to its very seconds, was not trained again"
    assert len(before) < len(history) == int(SMALL["training.epochs"])


@pytest.mark.chaos
@pytest.mark.timeout(700)
def test_whole_pipeline_as_ray_job_submit_runs_it(head: Head, log: Path, tmp_path: Path) -> None:
    """The README's command, its exit code, and that of a user error."""
    ray = str(Path(sys.executable).with_name("ray"))
    short = {"training.epochs": "1", "fine_tuning.epochs": "1", "after_merge.epochs": "1", "merge.budget": "4"}
    short |= {key: value for key, value in SMALL.items() if key not in ("base", "members")}
    command = [ray, "job", "submit", "--address", head.dashboard, "--working-dir", "."]
    command += ["--runtime-env-json", json.dumps({"env_vars": {"OMP_WAIT_POLICY": "PASSIVE"}})]  # which we set as well
    command += ["--", "python"]
    command += ["jobs/pipeline.py", "--recipe", "demo", "--input", str(log), "--output", str(tmp_path / "out")]
    done = subprocess.run(
        [*command, *settings(short)], env=head.environment, cwd=CHECKOUT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert list((tmp_path / "out").glob("report/*/report.json"))
    assert "estimate: " in done.stdout
    assert "fine-tuned" in done.stdout
    wrong = subprocess.run(
        [*command, "--set", "training.epoch=1"],
        env=head.environment,
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert wrong.returncode == 1
    assert "unknown configuration key training.epoch" in wrong.stdout
    assert "exit code 2" in wrong.stdout
