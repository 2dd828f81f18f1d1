"""A real Ray head with token authentication, as a process with its own home and ports."""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.util import get_node_ip_address

CHECKOUT = Path(__file__).parents[2]
START_TIMEOUT_S = 90
PATIENCE = {"RAY_raylet_start_wait_time_s": "120", "RAY_agent_register_timeout_ms": "120000"}
"""Ray's patience with its own processes, which start slowly on a busy machine."""
OF_RAY = tuple(
    f"ray::{name}"
    for name in ("IDLE", "Dashboard", "RuntimeEnv", "_AutoscalingCoordinator", "TrainState", "PlacementGroupCleaner")
)
"""Processes that Ray keeps for itself.

The last one outlives a stopped job, but holds no CPUs: in Ray 2.60 a thread of it notes that it is to exit after its
next task, and there is none.
"""


@dataclass(frozen=True)
class Head:
    """Where it listens, and the environment with its token."""

    dashboard: str
    gcs: str
    client: str
    agent: str
    logs: Path
    environment: dict[str, str]
    process: subprocess.Popen[bytes]

    def run(self, *command: str, timeout: float = 100, **changes: str) -> subprocess.CompletedProcess[str]:
        """Run a Python command to its end, with the token unless `changes` of the environment remove it."""
        self.check()
        environment = {key: value for key, value in (self.environment | changes).items() if value}
        return subprocess.run(
            [sys.executable, *command], env=environment, cwd=CHECKOUT, capture_output=True, text=True, timeout=timeout
        )

    def check(self) -> None:
        """Whether it is running: on a busy machine Ray's processes may give up while starting."""
        said = Path(self.environment["HOME"], "head.log").read_text()[-2000:]
        assert self.process.poll() is None, f"the head ended with {self.process.returncode}: {said}"

    def workers(self) -> list[str]:
        """Processes of jobs: those that Ray has named after their work, and drivers; Ray's own are left out."""
        listed = subprocess.run(["ps", "-ww", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
        processes = [line.split(maxsplit=1) for line in listed.splitlines()[1:]]
        of_jobs = [(pid, name) for pid, name in processes if name.startswith("ray::") and not name.startswith(OF_RAY)]
        drivers = [(pid, name) for pid, name in processes if "-m raymerge train" in name]
        return [f"{pid} {name}" for pid, name in of_jobs + drivers if self._is_ours(pid)]

    def node_processes(self) -> list[int]:
        """Raylets and their agents, also of nodes that an autoscaler has started, which outlive it."""
        listed = subprocess.run(["ps", "-ww", "-eo", "pid=,args="], capture_output=True, text=True, check=True).stdout
        processes = [line.split(maxsplit=1) for line in listed.splitlines()]
        return [int(pid) for pid, command in processes if "/ray/" in command and self._is_ours(pid)]

    def _is_ours(self, pid: str) -> bool:
        """Other heads may run on this machine."""
        try:
            return str(self.environment["HOME"]).encode() in Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            return False


@contextmanager
def start_head(folder: Path, home: Path, autoscaler: dict[str, Any] | None = None) -> Iterator[Head]:
    """Start it, wait until it answers, and end it and all that it started; `autoscaler` configures one."""
    ports = free_ports(4)
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    binaries = Path(sys.executable).parent
    environment = kept | token | {"HOME": str(home), "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}
    environment |= PATIENCE | {"PATH": f"{binaries}:{kept['PATH']}", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.3"}
    command = [str(binaries / "ray"), "start", "--head", "--block", "--disable-usage-stats"]
    command += ["--port", str(ports[0]), "--dashboard-host", "127.0.0.1", "--dashboard-port", str(ports[1])]
    command += ["--dashboard-agent-listen-port", str(ports[2]), "--num-cpus", "2", "--temp-dir", str(folder)]
    command += ["--ray-client-server-port", str(ports[3])]
    command += ["--include-dashboard", "true", "--object-store-memory", str(200 * 2**20)]
    own = dict[str, str]()
    if autoscaler is not None:
        file = home / "autoscaler.json"
        provider = {"type": "fake_multinode", "gcs_address": f"{get_node_ip_address()}:{ports[0]}"}
        file.write_text(json.dumps(autoscaler | {"provider": provider | {"disable_node_updaters": True}}))
        command += ["--autoscaling-config", str(file)]
        own = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}  # a driver would take itself for the head
    with open(home / "head.log", "wb") as log:
        process = subprocess.Popen(command, env=environment | own, stdout=log, stderr=log, start_new_session=True)
    at = "127.0.0.1"
    doors = (
        f"http://{at}:{ports[1]}",
        f"{at}:{ports[0]}",
        f"ray://{at}:{ports[3]}",
        f"http://{get_node_ip_address()}:{ports[2]}",
    )
    head = Head(*doors, folder / "session_latest" / "logs", environment, process)
    try:
        _wait_until_it_answers(head)
        yield head
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(8)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        for pid in head.node_processes():
            os.kill(pid, signal.SIGKILL)


def _wait_until_it_answers(head: Head) -> None:
    end = time.monotonic() + START_TIMEOUT_S
    while status(head.dashboard + "/api/version") is None:
        head.check()
        assert time.monotonic() < end, "the head did not answer"
        time.sleep(0.3)


def status(url: str, *, method: str = "GET", token: str | None = None, body: bytes | None = None) -> int | None:
    """HTTP status of a request, None if there is no answer."""
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    request = urllib.request.Request(url, data=body, method=method, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


def free_ports(count: int) -> list[int]:
    """Different unused ports of this machine."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
