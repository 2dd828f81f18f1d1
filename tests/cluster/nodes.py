"""Several real raylets on this machine, started and killed by a separate process, which this module also runs as.

Each node has its own address, home, temporary folders, hash seed, time zone and clock, which is a day off the next
one's: what they share is in an object store.
"""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from cluster.head import CHECKOUT, PATIENCE

DAY_S = 86400
NOTICED_SOON = {"RAY_health_check_initial_delay_ms": "500", "RAY_health_check_period_ms": "500"}
"""Settings to notice a dead node within seconds: by default Ray takes about half a minute."""


@dataclass(frozen=True)
class Nodes:
    """A cluster of a head without CPUs, where drivers run, and of nodes that do the work."""

    address: str
    environment: dict[str, str]
    _process: subprocess.Popen[str]

    def add(self) -> None:
        """Add a node."""
        self._ask("add")

    def kill_busy(self, pattern: str) -> str:
        """Kill the raylet and all processes of a node with a worker of a matching name; returns that name."""
        return self._ask(f"kill {pattern}")["killed"]

    def alive(self) -> int:
        """Number of nodes that do the work."""
        return int(self._ask("count")["nodes"])

    def _ask(self, line: str) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return _answer(self._process.stdout)

    def start(self, *arguments: str, **changes: str) -> subprocess.Popen[str]:
        """A `raymerge` command that joins the cluster at its head."""
        pipe, environment = subprocess.PIPE, self.environment | {"RAY_ADDRESS": self.address} | changes
        command = [sys.executable, "-m", "raymerge", *arguments]
        return subprocess.Popen(command, env=environment, cwd=CHECKOUT, stdout=pipe, stderr=pipe, text=True)


def _answer(stream: IO[str]) -> dict[str, Any]:
    """The next line of JSON; Ray prints other lines in between."""
    for line in stream:
        if line.startswith("{"):
            return dict(json.loads(line))
    raise AssertionError("the process of the nodes has ended")


@contextmanager
def start_nodes(folder: Path, count: int) -> Iterator[Nodes]:
    """Start a head and `count` nodes of one CPU each; end them all with the block. `folder` needs a short path."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    environment = kept | token | PATIENCE | NOTICED_SOON | {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.3"}
    tests = CHECKOUT / "tests"
    paths = (CHECKOUT, tests, tests / "support", tests / "cluster" / "clock")
    environment |= {"PYTHONPATH": ":".join(map(str, paths)), "OMP_NUM_THREADS": "1", "RAY_TMPDIR": str(folder)}
    environment |= _own_places(folder / "driver")
    pipe = subprocess.PIPE
    with open(folder / "nodes.log", "w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "cluster.nodes", str(folder), str(count)],
            env=environment, stdin=pipe, stdout=pipe, stderr=log, text=True, start_new_session=True,
        )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None
    try:
        try:
            yield Nodes(_answer(process.stdout)["address"], environment, process)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{(folder / 'nodes.log').read_text()[-3000:]}") from error
    finally:
        process.stdin.close()  # it ends its nodes
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def _own_places(folder: Path) -> dict[str, str]:
    """A home and a temporary folder of the node's own."""
    for name in ("home", "tmp"):
        (folder / name).mkdir(parents=True)
    return {"HOME": str(folder / "home"), "TMPDIR": str(folder / "tmp")}


def serve(folder: Path, count: int) -> None:
    """Start the nodes, then execute the lines of stdin until it closes."""
    from ray.cluster_utils import Cluster

    (folder / "ray").mkdir()  # where Ray notes the address
    cluster, number = Cluster(), 0

    def add(cpus: int) -> None:
        nonlocal number
        os.environ |= _own_places(folder / f"n{number}") | {"PYTHONHASHSEED": str(number), "TZ": f"UTC-{number}"}
        os.environ["CLOCK_OFF_S"] = str(DAY_S * (number - 1))  # see clock/
        cluster.add_node(
            num_cpus=cpus,
            temp_dir=str(folder / f"r{number}"),
            node_ip_address=f"127.0.1.{number + 1}",  # 127.0.0.1 would be taken for the machine's own
            include_dashboard=False,
            object_store_memory=100 * 2**20,
            wait=number == 0,  # the others start at the same time
        )
        number += 1

    for cpus in (0, *[1] * count):
        add(cpus)
    cluster.wait_for_nodes(timeout=120)
    print(json.dumps({"address": cluster.address}), flush=True)
    for line in sys.stdin:
        verb, _, pattern = line.strip().partition(" ")
        said: dict[str, Any] = {}
        if verb == "add":
            add(1)
            cluster.wait_for_nodes(timeout=120)
        elif verb == "kill":
            said["killed"] = _kill_busy(cluster, pattern)
        print(json.dumps(said | {"nodes": len(cluster.worker_nodes)}), flush=True)
    cluster.shutdown()


def _kill_busy(cluster: Any, pattern: str) -> str:
    """Wait for a worker whose name matches, and kill its node as a machine dies: all at once."""
    end = time.monotonic() + 150
    while time.monotonic() < end:
        for node in cluster.worker_nodes:
            raylet = node.all_processes["raylet"][0].process.pid
            workers = _children(raylet)
            busy = [name for name in workers.values() if pattern in name]
            if busy:
                cluster.remove_node(node, allow_graceful=False)
                for pid in workers:
                    try:
                        os.kill(pid, signal.SIGKILL)
                    except ProcessLookupError:
                        continue
                return busy[0]
        time.sleep(0.01)
    return ""


def _children(parent: int) -> dict[int, str]:
    """Names of the processes that a raylet has started, by pid."""
    listed = subprocess.run(["ps", "--ppid", str(parent), "-o", "pid=,args="], capture_output=True, text=True).stdout
    found = [line.split(maxsplit=1) for line in listed.splitlines()]
    return {int(pid): name for pid, name in found}


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]))
