"""What a cluster has and how much of it a stage takes: plain numbers, without Ray."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from raymerge.errors import ConfigError, LostError, ResourceError
from raymerge.settings_checks import check_ranges

PROCESSES = ("base_workers", "base_threads", "member_workers", "member_threads", "actor_threads")
TRAININGS_PER_CPU, TRAININGS_PER_GPU = 2, 3  # more would only wait for each other


@dataclass(frozen=True)
class ClusterConfig:
    """Where the work runs. `threads` change only the last digits of results; `workers` also the dropout masks."""

    __pydantic_config__ = {"extra": "forbid"}

    address: str | None = None  # cluster to join; null: RAY_ADDRESS, else Ray is started on this machine
    min_cpus: int | None = None  # a cluster that has fewer is asked to grow, and waited for; null: take what is there
    min_gpus: int | None = None  # likewise
    wait_minutes: float = 10.0  # for nodes to join, whether asked for or the first one with CPUs
    gpus: int | None = None  # GPUs to use at most; null: all of the cluster
    actors: int | None = None  # processes for Fisher and evaluation; null: one per GPU, else per CPU
    base_workers: int | None = None  # data-parallel processes of the base; null: two on CPUs, one on GPUs
    base_threads: int = 1  # CPU threads per process
    member_workers: int = 1  # data-parallel processes of each member
    member_threads: int = 1
    actor_threads: int = 1
    keep_going: bool = False  # if a model's loss is not finite, finish training the others first
    partition_hours: float = 4.0  # in Fisher or evaluation a partition that takes longer counts as hung and is retried
    deadline_hours: float = 48.0  # of the whole command

    def __post_init__(self) -> None:
        counts = dict.fromkeys(("actors", *PROCESSES), (1, 4096)) | dict.fromkeys(("min_cpus", "min_gpus"), (1, 10**5))
        check_ranges(self, "cluster", **counts, gpus=(0, math.inf))
        for name in ("wait_minutes", "partition_hours", "deadline_hours"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"cluster.{name} must be positive, got {getattr(self, name)}")

    def in_artifacts(self) -> dict[str, int | None]:
        """Workers and threads, which are part of artifacts' keys because results depend on them."""
        return {name: getattr(self, name) for name in PROCESSES}


@dataclass(frozen=True)
class Node:
    """A machine of a cluster; its memory is all that Ray may use there, with its object store."""

    cpus: float
    gpus: float
    memory_bytes: float
    has_driver: bool = True  # as the only node of a machine does


@dataclass(frozen=True)
class Capacity:
    """What a cluster has, and what may be used of it."""

    nodes: tuple[Node, ...]

    @property
    def cpus(self) -> float:
        """Of all nodes together."""
        return sum(node.cpus for node in self.nodes)

    @property
    def gpus(self) -> float:
        """Of all nodes together."""
        return sum(node.gpus for node in self.nodes)

    def shortage(self, config: ClusterConfig) -> str:
        """Which CPUs or GPUs are missing to begin, in words; empty if none are."""
        cpus, gpus = config.min_cpus or 1, config.min_gpus or 0
        if self.cpus < cpus:
            wanted = "at least 1 is needed" if config.min_cpus is None else f"cluster.min_cpus is {cpus}"
            return f"the cluster has {self.cpus:g} CPUs for tasks; {wanted}"
        if self.gpus < gpus:
            return f"the cluster has {self.gpus:g} GPUs; cluster.min_gpus is {gpus}"
        return ""

    def check(self, config: ClusterConfig) -> None:
        """Raise LostError for nodes that are missing, ResourceError for what could never be scheduled."""
        if shortage := self.shortage(config):
            raise LostError(f"{shortage}: are nodes starting, and can the cluster grow?")
        if config.gpus is not None and config.gpus > self.gpus:
            raise ResourceError(f"cluster.gpus is {config.gpus}, but the cluster has {self.gpus:g} GPUs")

    def usable_gpus(self, config: ClusterConfig) -> float:
        """GPUs that the configuration allows."""
        return self.gpus if config.gpus is None else min(self.gpus, float(config.gpus))

    def actors(self, config: ClusterConfig) -> int:
        """Processes for Fisher, merging and evaluation: as configured, or one per GPU, else per CPU."""
        return config.actors or max(1, int(self.usable_gpus(config) or self.cpus))

    def base_workers(self, config: ClusterConfig) -> int:
        """Processes of a training that has the cluster to itself.

        On CPUs two processes of one thread train 1.4 times as fast as one of two threads (`make bench`), which
        synchronise at each operation.
        """
        return config.base_workers or (1 if self.usable_gpus(config) else 2)

    def trainings(self, config: ClusterConfig, models: int) -> int:
        """How many of `models` models are trained in parallel."""
        gpus = self.usable_gpus(config)
        room = gpus * TRAININGS_PER_GPU if gpus else self.cpus * TRAININGS_PER_CPU
        return max(1, min(models, int(room)))

    def share(self, config: ClusterConfig, processes: int, *, threads: int = 1) -> dict[str, float]:
        """Resources of each of `processes` concurrent processes, such that the nodes can hold all of them.

        On GPUs: one GPU or an equal share of one, and a CPU. Else: a CPU per thread, or fewer if there are not enough.
        ResourceError if there is no such share.
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
    """The largest share, a whole number up to `most` or a multiple of 1/100, that the nodes hold often enough."""
    shares = [*map(float, range(most, 0, -1)), *(hundredths / 100 for hundredths in range(99, 0, -1))]
    fitting = next((share for share in shares if holds(share) >= processes), None)
    if fitting is None:
        raise ResourceError(
            f"the cluster's nodes hold {holds(shares[-1]):,} processes at most, {processes:,} were requested; "
            "lower cluster.actors, cluster.base_workers and cluster.member_workers, or add nodes"
        )
    return fitting


def _held(amount: float, share: float) -> int:
    """How many times a share fits into an amount."""
    return int(amount / share + 1e-9)
