"""Ray is started with a token, and impossible plans are refused."""

import os
import pickle
from pathlib import Path

import pytest

from raymerge import errors
from raymerge.errors import ResourceError
from raymerge.runtime import Capacity, ClusterConfig


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


@pytest.mark.parametrize(("gpus", "asked", "expected"), [(0, None, 2), (1, None, 1), (0, 1, 1), (2, 2, 2)])
def test_the_base_has_two_processes_on_cpus_unless_it_is_told_otherwise(
    gpus: float, asked: int | None, expected: int
) -> None:
    capacity = Capacity(cpus=4, gpus=gpus, node_cpus=4)
    assert capacity.base_workers(ClusterConfig(base_workers=asked)) == expected


def test_all_errors_survive_pickling() -> None:
    for name, kind in vars(errors).items():
        if isinstance(kind, type) and issubclass(kind, errors.UserError):
            copy = pickle.loads(pickle.dumps(kind("what is wrong")))
            assert (type(copy), str(copy)) == (kind, "what is wrong"), name
