"""Ray is started with a token, and errors reach its driver."""

import errno
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import ray
from ray.exceptions import RayTaskError

from raymerge import errors
from raymerge.errors import LostError, ResourceError
from raymerge.execution import runtime
from raymerge.execution.capacity import Capacity, ClusterConfig, Node
from raymerge.execution.deadline import Deadline
from raymerge.execution.runtime import cluster_capacity, session


def test_local_ray_requires_a_token_and_writes_none(capacity: Capacity) -> None:
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
    assert not (Path(os.environ["HOME"]) / ".ray" / "auth_token").exists()


def test_driver_is_on_the_node_of_this_machine(capacity: Capacity) -> None:
    assert [node.has_driver for node in capacity.nodes] == [True]


class Note:
    """An actor that nobody replaces, as that of events."""

    def end(self) -> None:
        os._exit(1)

    def fail(self) -> None:
        raise KeyError("ours")


def test_a_lost_process_is_worth_a_retry_and_a_mistake_in_one_keeps_its_traceback(capacity: Capacity) -> None:
    note = ray.remote(num_cpus=0)(Note).remote()
    with pytest.raises(RayTaskError, match="ours"), session(ClusterConfig()):
        ray.get(note.fail.remote())
    with pytest.raises(LostError, match=r"^Ray lost a process \(.*\); run the same"), session(ClusterConfig()):
        ray.get(note.end.remote())


def test_all_errors_survive_pickling() -> None:
    for name, kind in vars(errors).items():
        if isinstance(kind, type) and issubclass(kind, errors.UserError):
            copy = pickle.loads(pickle.dumps(kind("what is wrong")))
            assert (type(copy), str(copy)) == (kind, "what is wrong"), name


def test_a_folder_that_ray_cannot_use_is_one_line(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 25)  # the paths of sockets have 107 bytes at most
    command = [sys.executable, "-m", "raymerge", "plan", "--recipe", "ml-1m"]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = kept | {"RAY_TMPDIR": str(folder), "HOME": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("raymerge: cannot start Ray on this machine: ")
    assert "AF_UNIX path length" in done.stderr and len(done.stderr.splitlines()) == 1


SLOW = "The current node timed out during startup. This could happen because some of the raylet failed to startup."


@pytest.mark.parametrize(
    ("error", "kind", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), ResourceError, "no space left for /full "),
        (Exception(SLOW), LostError, "cannot start Ray on this machine: The current node timed out"),
        (RuntimeError("no answer from http://me:secret@head/"), ResourceError, "no answer from http://head/"),
    ],
)
def test_ray_that_does_not_start_is_one_line_and_a_slow_start_is_worth_a_retry(
    monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[ResourceError], expected: str
) -> None:
    def init(**_: object) -> None:
        raise error

    monkeypatch.setattr("ray.init", init)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setenv("RAY_TMPDIR", "/full")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ResourceError, match=expected) as raised, session(ClusterConfig()):
        pass
    assert type(raised.value) is kind


JOINED = ClusterConfig(address="127.0.0.1:1")
HEAD, WORKER = Node(0, 0, 2**33, has_driver=True), Node(4, 0, 2**33, has_driver=False)


def test_a_cluster_whose_first_worker_is_still_starting_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seen = iter([[HEAD], [HEAD], [HEAD, WORKER]])
    monkeypatch.setattr(runtime, "cluster_nodes", lambda: next(seen))
    assert cluster_capacity(JOINED, Deadline(60)).cpus == 4
    said = "the cluster has 0 CPUs for tasks; at least 1 is needed; waiting up to 10 minutes for nodes"
    assert caplog.messages == [said]


def test_a_cluster_that_stays_without_a_cpu_is_worth_a_retry_unless_the_deadline_has_passed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runtime, "cluster_nodes", lambda: [HEAD])
    with pytest.raises(ResourceError, match="waiting for nodes was not done within 0 hours"):
        cluster_capacity(JOINED, Deadline(0))
    with pytest.raises(LostError, match="the cluster has 0 CPUs for tasks"):
        cluster_capacity(replace(JOINED, wait_minutes=0.01), Deadline(60))


def test_more_cpus_than_this_machine_has_are_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "cluster_nodes", lambda: [WORKER])
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ResourceError, match="has 4 CPUs for tasks; cluster.min_cpus is 5: lower it, or join") as raised:
        cluster_capacity(ClusterConfig(min_cpus=5), Deadline(60))
    assert type(raised.value) is ResourceError
