"""Processes share the nodes they fit on, and processes that can never fit are refused."""

import pytest

from raymerge.errors import ResourceError
from raymerge.execution.capacity import Capacity, ClusterConfig, Node


def test_more_gpus_than_there_are_is_refused_at_once() -> None:
    with pytest.raises(ResourceError, match=r"cluster\.gpus is 4, but the cluster has 2 GPUs"):
        Capacity((Node(8, 2, 2**34),)).check(ClusterConfig(gpus=4))


@pytest.mark.parametrize(
    ("cpus", "gpus", "processes", "threads", "expected"),
    [
        ([16], [3], 3, 1, {"GPU": 1.0, "CPU": 1.0}),
        ([16], [1], 3, 1, {"GPU": 0.33, "CPU": 1.0}),
        ([16], [2], 3, 1, {"GPU": 0.5, "CPU": 1.0}),
        ([2], [4], 4, 1, {"GPU": 1.0, "CPU": 0.5}),
        ([2], [0], 3, 1, {"CPU": 0.66}),
        ([8], [0], 3, 1, {"CPU": 1.0}),
        ([8], [0], 3, 4, {"CPU": 2.0}),
        ([3, 1], [0, 0], 5, 1, {"CPU": 0.75}),
        ([16, 8], [0, 0], 2, 16, {"CPU": 8.0}),
        ([4, 4], [0, 0], 1, 16, {"CPU": 4.0}),
        ([4, 64], [8, 0], 8, 1, {"GPU": 1.0, "CPU": 0.5}),  # no CPU of a node serves another's GPU
        ([1, 8], [4, 1], 5, 1, {"GPU": 1.0, "CPU": 0.25}),
        ([8, 8], [1, 1], 3, 1, {"GPU": 0.5, "CPU": 1.0}),
    ],
)
def test_shares_fit_on_the_nodes(
    cpus: list[float], gpus: list[float], processes: int, threads: int, expected: dict[str, float]
) -> None:
    capacity = Capacity(tuple(Node(*sizes, memory_bytes=2**34) for sizes in zip(cpus, gpus, strict=True)))
    share = capacity.share(ClusterConfig(), processes, threads=threads)
    assert share == pytest.approx(expected)
    held = [int(amount / share["CPU"]) for amount in cpus]
    if "GPU" in share:
        held = [min(most, int(amount) * int(1 / share["GPU"])) for most, amount in zip(held, gpus, strict=True)]
    assert sum(held) >= processes


@pytest.mark.parametrize(("cpus", "gpus"), [([2], [0]), ([2, 0], [1, 8])])
def test_more_processes_than_nodes_can_hold_are_refused(cpus: list[float], gpus: list[float]) -> None:
    capacity = Capacity(tuple(Node(*sizes, memory_bytes=2**34) for sizes in zip(cpus, gpus, strict=True)))
    with pytest.raises(ResourceError, match=r"hold [29]00 processes at most, 1,000 were requested; lower cluster"):
        capacity.share(ClusterConfig(), 1000)


@pytest.mark.parametrize(("gpus", "asked", "expected"), [(0, None, 2), (1, None, 1), (0, 1, 1), (2, 2, 2)])
def test_the_base_has_two_processes_on_cpus_by_default(gpus: float, asked: int | None, expected: int) -> None:
    capacity = Capacity((Node(4, gpus, 2**34),))
    assert capacity.base_workers(ClusterConfig(base_workers=asked)) == expected
