"""What a cluster has and how much of it a stage takes: numbers alone, without Ray."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from raymerge.errors import ConfigError, ResourceError
from raymerge.settings_checks import check_ranges

PROCESSES = ("base_workers", "base_threads", "member_workers", "member_threads", "actor_threads")
TRAININGS_PER_CPU, TRAININGS_PER_GPU = 2, 3  # more at once would only wait for each other


@dataclass(frozen=True)
class ClusterConfig:
    """Where the work runs: no matter for a result, but `threads` may change its last digits, `workers` the dropout."""

    __pydantic_config__ = {"extra": "forbid"}

    address: str | None = None  # a cluster to join; without it RAY_ADDRESS, else Ray is started on this machine
    gpus: int | None = None  # GPUs to use at most; without it all that the cluster has
    actors: int | None = None  # processes for Fisher and evaluation; without it one for each CPU or GPU
    base_workers: int | None = None  # data-parallel processes of the base; without it two on CPUs, one where GPUs are
    base_threads: int = 1  # CPU threads of each of them
    member_workers: int = 1  # data-parallel processes of each member
    member_threads: int = 1
    actor_threads: int = 1
    keep_going: bool = False  # if a model's loss is not finite, train the others to their end first
    piece_hours: float = 4.0  # a partition that takes longer in Fisher or evaluation is taken to hang, and done again
    deadline_hours: float = 48.0

    def __post_init__(self) -> None:
        check_ranges(self, "cluster", **dict.fromkeys(("actors", *PROCESSES), (1, 4096)), gpus=(0, math.inf))
        for name in ("piece_hours", "deadline_hours"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"cluster.{name} must be positive, got {getattr(self, name)}")

    def in_artifacts(self) -> dict[str, int | None]:
        """Workers and threads, which artifacts are named by since their last digits depend on them."""
        return {name: getattr(self, name) for name in PROCESSES}


@dataclass(frozen=True)
class Node:
    """A machine of a cluster; its memory is all that Ray may use there, objects included."""

    cpus: float
    gpus: float
    memory_bytes: float
    has_driver: bool = True  # as the node of a machine alone


@dataclass(frozen=True)
class Capacity:
    """What a cluster has, and what of it we may use."""

    nodes: tuple[Node, ...]

    @property
    def cpus(self) -> float:
        """Of all nodes together."""
        return sum(node.cpus for node in self.nodes)

    @property
    def gpus(self) -> float:
        """Of all nodes together."""
        return sum(node.gpus for node in self.nodes)

    def check(self, config: ClusterConfig) -> None:
        """Refuse at once what could never be scheduled and would wait for ever."""
        if config.gpus is not None and config.gpus > self.gpus:
            raise ResourceError(f"cluster.gpus is {config.gpus}, but the cluster has {self.gpus:g} GPUs")
        if self.cpus < 1:
            raise ResourceError(f"the cluster has {self.cpus:g} CPUs for tasks; at least 1 is needed")

    def usable_gpus(self, config: ClusterConfig) -> float:
        """GPUs that the configuration lets us use."""
        return self.gpus if config.gpus is None else min(self.gpus, float(config.gpus))

    def actors(self, config: ClusterConfig) -> int:
        """Processes for Fisher, merging and evaluation: as configured, or one for each GPU or CPU."""
        return config.actors or max(1, int(self.usable_gpus(config) or self.cpus))

    def base_workers(self, config: ClusterConfig) -> int:
        """Processes of a training that has the cluster for itself.

        On a CPU two of one thread train 1.4 times as fast as one of two (`make bench`), which waits at each operation.
        """
        return config.base_workers or (1 if self.usable_gpus(config) else 2)

    def trainings(self, config: ClusterConfig, models: int) -> int:
        """How many of so many models are trained at the same time."""
        gpus = self.usable_gpus(config)
        room = gpus * TRAININGS_PER_GPU if gpus else self.cpus * TRAININGS_PER_CPU
        return max(1, min(models, int(room)))

    def share(self, config: ClusterConfig, processes: int, *, threads: int = 1) -> dict[str, float]:
        """Resources of each of so many processes that run at once, such that the nodes can hold all of them.

        A GPU or an equal share of one and a CPU beside it, or else a CPU for each of its threads, fewer where there are
        not so many. ResourceError if there is no such share.
        """
        gpus = int(self.usable_gpus(config))
        if not gpus:
            cpu = _share(lambda share: sum(_held(node.cpus, share) for node in self.nodes), processes, most=threads)
            return {"CPU": cpu}
        gpu = _share(lambda share: gpus * _held(1, share), processes)
        room = [(node.cpus, int(node.gpus) * _held(1, gpu)) for node in self.nodes]
        cpu = _share(lambda share: sum(min(_held(cpus, share), most) for cpus, most in room), processes)
        return {"GPU": gpu, "CPU": cpu}


def _share(holds: Callable[[float], int], processes: int, *, most: int = 1) -> float:
    """The largest share, a whole number up to `most` or a multiple of 1/100, of which the nodes hold enough."""
    shares = [*map(float, range(most, 0, -1)), *(hundredths / 100 for hundredths in range(99, 0, -1))]
    fitting = next((share for share in shares if holds(share) >= processes), None)
    if fitting is None:
        raise ResourceError(
            f"the cluster's nodes hold {holds(shares[-1]):,} processes at most, {processes:,} were asked for; "
            "lower cluster.actors, cluster.base_workers and cluster.member_workers, or have more nodes"
        )
    return fitting


def _held(amount: float, share: float) -> int:
    """How many shares of an amount there are."""
    return int(amount / share + 1e-9)
