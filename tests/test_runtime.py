"""Ray is started with a token, work is taken once, dead processes are replaced, impossible plans are refused."""

import os
import pickle
import signal
from pathlib import Path

import pytest

from raymerge import errors
from raymerge.errors import InputError, ResourceError
from raymerge.runtime import Capacity, ClusterConfig, Deadline, Pool

HOUR = Deadline(3600)


def square(number: int) -> int:
    return number * number


def refuse(number: int) -> int:
    raise InputError(f"{number} is not a number to our taste")


def die_once(number: int, folder: str) -> int:
    """Kill the own process the first time that a number comes by."""
    mark = Path(folder) / str(number)
    if number % 2 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def die(number: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return number


def collect(capacity: Capacity, function, pieces, deadline: Deadline = HOUR, **config) -> dict[str, int]:
    results: dict[str, int] = {}

    def take(key: str, value: int) -> None:
        assert key not in results, "a result was taken twice"
        results[key] = value

    with Pool(capacity, ClusterConfig(**config), deadline) as pool:
        pool.run(function, pieces, doing="squares", on_result=take)
    return results


def test_pool_takes_each_result_once(capacity: Capacity) -> None:
    pieces = {f"{number:02d}": (number,) for number in range(20)}
    assert collect(capacity, square, pieces) == {key: value * value for key, (value,) in pieces.items()}


def test_dead_processes_are_replaced_and_their_work_done_again(capacity: Capacity, tmp_path: Path) -> None:
    pieces = {f"{number:02d}": (number, str(tmp_path)) for number in range(6)}
    assert collect(capacity, die_once, pieces) == {key: value[0] ** 2 for key, value in pieces.items()}
    assert len(list(tmp_path.iterdir())) == 3


def test_work_that_always_kills_its_process_is_given_up(capacity: Capacity) -> None:
    with pytest.raises(ResourceError, match="died 4 times"):
        collect(capacity, die, {"a": (1,)}, actors=1)


def test_mistake_found_by_a_worker_reaches_the_driver_as_it_is(capacity: Capacity) -> None:
    with pytest.raises(InputError, match="7 is not a number to our taste"):
        collect(capacity, refuse, {"a": (7,)}, actors=1)


def test_deadline_ends_the_work(capacity: Capacity) -> None:
    with pytest.raises(ResourceError, match="was not done within 0 hours"):
        collect(capacity, square, {"a": (1,)}, Deadline(0.0), actors=1)


def test_ray_of_this_machine_asks_for_a_token_and_writes_none(capacity: Capacity) -> None:
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
    assert not (Path(os.environ["HOME"]) / ".ray" / "auth_token").exists()


def test_more_gpus_than_there_are_is_refused_at_once() -> None:
    with pytest.raises(ResourceError, match=r"cluster\.gpus is 4, but the cluster has 2 GPUs"):
        Capacity(cpus=8, gpus=2, node_cpus=8).check(ClusterConfig(gpus=4))


@pytest.mark.parametrize(
    ("cpus", "gpus", "node_cpus", "processes", "expected"),
    [
        (16, 3, 16, 3, {"GPU": 1.0, "CPU": 1.0}),
        (16, 1, 16, 3, {"GPU": 0.33, "CPU": 1.0}),
        (2, 0, 2, 3, {"CPU": 0.66}),
        (8, 0, 8, 3, {"CPU": 2.0}),
        (2, 4, 2, 4, {"GPU": 1.0, "CPU": 0.5}),
        (32, 0, 8, 1, {"CPU": 8.0}),
        (16, 3, 16, 1, {"GPU": 1.0, "CPU": 1.0}),
    ],
)
def test_shares_fit_together(
    cpus: float, gpus: float, node_cpus: float, processes: int, expected: dict[str, float]
) -> None:
    assert Capacity(cpus=cpus, gpus=gpus, node_cpus=node_cpus).share(ClusterConfig(), processes) == pytest.approx(
        expected
    )


def test_all_errors_survive_pickling() -> None:
    for name, kind in vars(errors).items():
        if isinstance(kind, type) and issubclass(kind, errors.UserError):
            copy = pickle.loads(pickle.dumps(kind("what is wrong")))
            assert (type(copy), str(copy)) == (kind, "what is wrong"), name
