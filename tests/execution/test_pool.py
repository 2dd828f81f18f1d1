"""Work is taken once, and processes that die or hang are replaced."""

import logging
import os
import resource
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
import torch
from processes import named
from ray.exceptions import OutOfMemoryError

from raymerge.errors import InputError, LostError, ResourceError
from raymerge.execution import chunking
from raymerge.execution.capacity import Capacity, ClusterConfig
from raymerge.execution.deadline import Deadline
from raymerge.execution.pool import Pool, _Work

HOUR = Deadline(3600)


def square(number: int) -> int:
    return number * number


def refuse(number: int) -> int:
    raise InputError(f"{number} is not a number to our taste")


def die_once(number: int, folder: str) -> int:
    """Kill this process the first time that a number occurs."""
    mark = Path(folder) / str(number)
    if number % 2 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def hang_once(number: int, folder: str, how: str) -> int:
    """Stop this process, or wait for ever, the first time that a number occurs."""
    mark = Path(folder) / str(number)
    if number == 3 and not mark.exists():
        mark.touch()
        if how == "stopped":
            os.kill(os.getpid(), signal.SIGSTOP)
        threading.Event().wait()
    return number * number


def work(seconds: float) -> int:
    """Multiply matrices without a pause, as a shard does; returns torch's number of threads."""
    end, matrix = time.monotonic() + seconds, torch.ones(500, 500)
    while time.monotonic() < end:
        matrix @ matrix
    return torch.get_num_threads()


def hang(number: int) -> int:
    threading.Event().wait()
    return number


def take_memory(usual_bytes: int, folder: str) -> int:
    """Take as much memory as chunks may, in a process limited to 400 MB more than it has."""
    own = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (own + 400 * 10**6, resource.RLIM_INFINITY))
    wanted = chunking.budget(usual_bytes)
    (Path(folder) / str(wanted)).touch()
    return torch.ones(wanted, dtype=torch.uint8).numel()


def meet(folder: str, others: int) -> int:
    """This process's id, once `others` processes have been here."""
    (Path(folder) / str(os.getpid())).touch()
    while len(list(Path(folder).iterdir())) < others:
        time.sleep(0.01)
    return os.getpid()


def linger(seconds: float) -> int:
    """This process's id, after this time."""
    time.sleep(seconds)
    return os.getpid()


def die(number: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return number


def collect(capacity: Capacity, function, pieces, deadline: Deadline = HOUR, **config) -> dict[str, int]:
    results: dict[str, int] = {}
    with Pool(capacity, ClusterConfig(**config), deadline) as pool:
        for key, value in pool.run(function, pieces, doing="squares"):
            assert key not in results, "a result was taken twice"
            results[key] = value
    return results


def test_pool_takes_each_result_once(capacity: Capacity) -> None:
    pieces = {f"{number:02d}": (number,) for number in range(20)}
    assert collect(capacity, square, pieces) == {key: value * value for key, (value,) in pieces.items()}


def test_leaving_the_results_ends_the_work_under_way(capacity: Capacity) -> None:
    with Pool(capacity, ClusterConfig(actors=1), HOUR) as pool:
        results = pool.run(linger, {"a": (0.0,), "b": (3600.0,)}, doing="waiting")
        key, pid = next(results)
        results.close()
        end = time.monotonic() + 20
        while pid in named("ray::Worker"):
            assert time.monotonic() < end, "it is still waiting"
            time.sleep(0.05)
        assert (key, dict(pool.run(square, {"c": (3,)}, doing="squares"))) == ("a", {"c": 9})


def test_dead_processes_are_replaced_and_their_work_is_retried(capacity: Capacity, tmp_path: Path) -> None:
    pieces = {f"{number:02d}": (number, str(tmp_path)) for number in range(6)}
    assert collect(capacity, die_once, pieces) == {key: value[0] ** 2 for key, value in pieces.items()}
    assert len(list(tmp_path.iterdir())) == 3


def test_work_that_always_kills_its_process_is_given_up(capacity: Capacity) -> None:
    with pytest.raises(LostError, match=r"a was abandoned after 4 attempts; its last process died \("):
        collect(capacity, die, {"a": (1,)}, actors=1)


def test_work_that_runs_out_of_memory_is_retried_in_smaller_chunks(capacity: Capacity, tmp_path: Path) -> None:
    assert collect(capacity, take_memory, {"a": (1 << 30, str(tmp_path))}, actors=1) == {"a": 1 << 27}
    assert sorted(int(mark.name) for mark in tmp_path.iterdir()) == [1 << 27, 1 << 30]


@pytest.mark.chaos
def test_work_that_runs_out_of_memory_even_in_smaller_chunks_is_given_up(capacity: Capacity, tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"squares: a ran out of memory even in chunks of 1/8 .*cluster.actors"):
        collect(capacity, take_memory, {"a": (1 << 34, str(tmp_path))}, actors=1)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_piece_whose_process_ray_kills_for_memory_gets_all_its_attempts_in_smaller_chunks() -> None:
    actor = SimpleNamespace(run=SimpleNamespace(remote=lambda *arguments: arguments))
    work = _Work(square, {"a": (1,)}, "squares", set())
    given = []
    with pytest.raises(ResourceError, match="squares: a ran out of memory even in chunks of 1/8"):
        while len(given) < 9:
            work.give(actor)
            [(arguments, call)] = work.under_way.items()
            given.append(arguments[-1])
            work.under_way.clear()
            work.in_smaller_chunks(call, OutOfMemoryError("killed"), own=False)
    assert given == [False, True, True, True]


@pytest.mark.parametrize("how", ["stopped", "waits"])
def test_process_that_hangs_is_replaced_and_its_work_is_retried(
    capacity: Capacity, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr("raymerge.execution.pool.PATIENCE_S", 0.5)
    pieces = {f"{number:02d}": (number, str(tmp_path), how) for number in range(6)}
    assert collect(capacity, hang_once, pieces) == {key: value[0] ** 2 for key, value in pieces.items()}
    assert (tmp_path / "3").exists()


def test_process_that_gives_no_sign_of_life_is_replaced_however_long_its_piece_may_take(
    capacity: Capacity, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("raymerge.execution.pool.BEAT_S", 0.2)
    monkeypatch.setattr("raymerge.execution.pool.SILENCE_S", 5.0)
    assert collect(capacity, hang_once, {"a": (3, str(tmp_path), "stopped")}, actors=1) == {"a": 9}
    assert "the process for a gave no sign of life for 5 s" in caplog.text


def test_processes_whose_results_wait_for_a_busy_driver_are_left_alone(
    capacity: Capacity, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("raymerge.execution.pool.PATIENCE_S", 0.5)
    results: dict[str, int] = {}
    with Pool(capacity, ClusterConfig(actors=2), HOUR) as pool:
        for key, value in pool.run(square, {str(number): (number,) for number in range(5)}, doing="squares"):
            results[key] = value
            time.sleep(0.8)
    assert results == {str(number): number**2 for number in range(5)}
    assert not caplog.text


def test_busy_process_gives_signs_of_life(
    capacity: Capacity, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("raymerge.execution.pool.BEAT_S", 0.1)
    monkeypatch.setattr("raymerge.execution.pool.SILENCE_S", 3.0)
    assert collect(capacity, work, {"a": (8.0,)}, actors=2, actor_threads=2) == {"a": 2}
    assert not caplog.text


def test_work_that_always_hangs_is_given_up(capacity: Capacity, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raymerge.execution.pool.MAX_ATTEMPTS", 2)
    with pytest.raises(
        ResourceError, match=r"abandoned after 2 attempts; .* no result in 1 s: raise cluster.partition_hours"
    ):
        collect(capacity, hang, {"a": (1,)}, actors=1, partition_hours=1 / 3600)


def test_processes_killed_while_idle_are_replaced_and_cost_a_piece_one_attempt(
    capacity: Capacity, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raymerge.execution.pool.MAX_ATTEMPTS", 2)
    pids: list[int] = []
    pieces = {name: (str(tmp_path), 3) for name in "abc"}
    with Pool(capacity, ClusterConfig(actors=3), HOUR) as pool:
        pids += [pid for _, pid in pool.run(meet, pieces, doing="pids")]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        pids += [pid for _, pid in pool.run(meet, {"a": pieces["a"]}, doing="pids")]
    assert len(set(pids)) == 4


def test_user_error_in_a_worker_reaches_the_driver_unchanged(capacity: Capacity) -> None:
    with pytest.raises(InputError, match="7 is not a number to our taste"):
        collect(capacity, refuse, {"a": (7,)}, actors=1)


class Holder:
    """Another job's actor."""


def test_a_wait_for_cpus_that_others_hold_is_explained_once(
    capacity: Capacity, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("raymerge.execution.pool.START_S", 1.0)
    holder = ray.remote(num_cpus=capacity.cpus)(Holder).remote()
    ray.get(holder.__ray_ready__.remote())

    class Release(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            ray.kill(holder)

    release = Release()
    logging.getLogger("raymerge.execution.pool").addHandler(release)
    try:
        assert collect(capacity, square, {"a": (3,)}, actors=1) == {"a": 9}
    finally:
        logging.getLogger("raymerge.execution.pool").removeHandler(release)
    assert len(caplog.messages) == 1
    assert "squares: no process could start for 0 minutes: each needs 1 CPU (0 free)" in caplog.messages[0]


def test_deadline_ends_the_work(capacity: Capacity) -> None:
    with pytest.raises(ResourceError, match="was not done within 0 hours"):
        collect(capacity, square, {"a": (1,)}, Deadline(0.0), actors=1)
