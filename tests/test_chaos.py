"""The whole pipeline through faults of its surroundings: each run ends with the report of one without faults."""

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow_server import Server
from pipeline_runs import CHECKOUT, check_mlflow, command, report_in, start, surroundings, write_log

from raymerge.commands.tracking import run_log

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(700)]
PATIENCE_S = 280


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_log(tmp_path_factory.mktemp("log"))


@pytest.fixture(scope="module")
def expected(log: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """The report of a run without faults."""
    output = tmp_path_factory.mktemp("run") / "out"
    driver = start(log, output)
    _, progress = driver.communicate(timeout=PATIENCE_S)
    assert driver.returncode == 0, progress
    return report_in(output)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "mlflow").mkdir()
    running = Server(tmp_path / "mlflow")
    yield running
    running.stop()


def wait_for(stage: str, output: Path, driver: subprocess.Popen[str]) -> None:
    """Wait until the stage has committed something."""
    while not list(output.glob(f"{stage}/*/manifest.json")):
        assert driver.poll() is None, driver.communicate()[1]
        time.sleep(0.05)


def start_and_lose_server(log: Path, output: Path, server: Server, *, after: str) -> subprocess.Popen[str]:
    """A driver whose server is killed as soon as a stage has committed something."""
    driver = start(log, output, "--tracking-uri", server.uri)
    wait_for(after, output, driver)
    server.stop()
    return driver


def test_mlflow_that_is_down_for_a_while_gets_all_figures_later(
    log: Path, expected: dict, server: Server, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    driver = start_and_lose_server(log, output, server, after="prepare")
    wait_for("fisher", output, driver)
    server.start()
    table, progress = driver.communicate(timeout=PATIENCE_S)
    assert driver.returncode == 0, progress
    assert "metrics are kept and sent later" in progress
    assert "raymerge-demo/1" in table
    assert report_in(output) == expected
    check_mlflow(server.uri, expected)


def test_results_of_a_run_whose_mlflow_was_gone_are_sent_when_it_is_back(
    log: Path, expected: dict, server: Server, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    driver = start_and_lose_server(log, output, server, after="train")
    table, progress = driver.communicate(timeout=PATIENCE_S)
    assert driver.returncode == 0, progress
    assert f"once the server is up: raymerge log {output} --tracking-uri {server.uri}" in table
    assert report_in(output) == expected
    server.start()
    run_log(str(output), tracking_uri=server.uri)
    check_mlflow(server.uri, expected)


DISK = """
mount -t tmpfs -o size=64m none "$PLACE" || exit 77
( until ls "$PLACE"/out/$FIRST >"$PLACE".seen 2>&1; do sleep 0.05; done
  head -c 64m /dev/zero >"$PLACE"/ballast ) 2>/dev/null &
watcher=$!
"$@" >"$PLACE".said 2>&1
code=$?
kill $watcher 2>/dev/null
test -e "$PLACE"/out/report && exit 78
rm "$PLACE"/ballast
"$@" >"$PLACE".again 2>&1 || exit 79
cp -r "$PLACE"/out/report "$PLACE".report
find "$PLACE"/out/.staging -type f >"$PLACE".left
exit $code
"""


@pytest.mark.parametrize(
    "first",
    [
        "prepare/*/manifest.json",
        "checkpoints/*/checkpoint_*/state.json",
        "fisher-shard/*/manifest.json",
        "merge/*/manifest.json",
    ],
)
def test_full_disk_is_one_line_and_once_there_is_room_the_same_command_resumes(
    log: Path, expected: dict, tmp_path: Path, first: str
) -> None:
    """On a disk of 64 MiB in its own mount namespace, which is filled up once the first such file exists."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a small disk: unshare -rm does not work")
    place = tmp_path / "disk"
    place.mkdir()
    run = command(log, place / "out", "--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db")
    environment = surroundings() | {"PLACE": str(place), "FIRST": first}
    done = subprocess.run(
        ["unshare", "-rm", "bash", "-c", DISK, "bash", *run], env=environment, cwd=CHECKOUT, timeout=2 * PATIENCE_S
    )
    said = Path(f"{place}.said").read_text()
    assert done.returncode == 2, (done.returncode, said)
    assert said.strip().splitlines()[-1].startswith("raymerge: ")
    assert "no space left" in said.lower()
    assert "Traceback" not in said
    assert Path(f"{place}.left").read_text() == ""
    assert "found, reused" in Path(f"{place}.again").read_text()
    Path(f"{place}.report").rename(tmp_path / "report")
    assert report_in(tmp_path) == expected
