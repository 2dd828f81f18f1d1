"""Ray: start or join it, know what it has, what workers say, and when to give up."""

import io
import json
import logging
import os
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raymerge.errors import ConfigError, ResourceError, first_line
from raymerge.events import Event, Mistake, Progress

POLL_S = 0.25
WORKER_ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",  # waiting in a loop made steps of processes that share CPUs 2 to 7 times slower
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a process that was given no GPU sees none
}
JOB_CONFIG_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # of the driver of a submitted job, by Ray itself
log = logging.getLogger(__name__)


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
        for name in ("base_workers", "base_threads", "member_workers", "member_threads", "actor_threads", "actors"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= 4096:
                raise ConfigError(f"cluster.{name} must be between 1 and 4096, got {value}")
        if self.gpus is not None and self.gpus < 0:
            raise ConfigError(f"cluster.gpus must not be negative, got {self.gpus}")
        for name in ("piece_hours", "deadline_hours"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"cluster.{name} must be positive, got {getattr(self, name)}")

    def in_artifacts(self) -> dict[str, int | None]:
        """Workers and threads, which artifacts are named by since their last digits depend on them."""
        names = ("base_workers", "base_threads", "member_workers", "member_threads", "actor_threads")
        return {name: getattr(self, name) for name in names}


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


@contextmanager
def session(config: ClusterConfig) -> Iterator[Capacity]:
    """Join the cluster named, or start Ray on this machine for the length of the block.

    A Ray started here wants a random token, which is kept in this process' environment only. What Ray prints goes to
    the log of this module instead of the terminal, at level DEBUG: print results after the block.
    """
    if ray.is_initialized():
        yield cluster_capacity(config)
        return
    address = config.address or os.environ.get("RAY_ADDRESS")
    arguments: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    logging.getLogger("ray").setLevel(logging.ERROR)
    if address:
        arguments |= {"address": address, "runtime_env": {"env_vars": _unset_by_job(WORKER_ENVIRONMENT)}}
    else:
        # "local": Ray would otherwise join whatever another head on this machine has left a note of
        arguments |= {"address": "local", "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
        os.environ |= WORKER_ENVIRONMENT | os.environ  # inherited by the workers
        if os.environ.get("RAY_AUTH_MODE", "token") == "token":
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**arguments)
    except (ConnectionError, RayError, ValueError, RuntimeError) as error:
        where = f"join the Ray cluster at {address}" if address else "start Ray on this machine"
        raise ResourceError(f"cannot {where}: {first_line(error)}") from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)  # Ray puts one of its own in its place, which ends without a word
    try:
        with redirect_stdout(_LogStream()):
            yield cluster_capacity(config)
    finally:
        ray.shutdown()


def _unset_by_job(environment: dict[str, str]) -> dict[str, str]:
    """The variables that the job was not submitted with: Ray refuses one that both set, even alike."""
    job = json.loads(os.environ.get(JOB_CONFIG_VARIABLE, "{}")).get("runtime_env") or {}
    return {name: value for name, value in environment.items() if name not in job.get("env_vars", {})}


class _LogStream(io.TextIOBase):
    """A text stream whose lines go to the log."""

    def write(self, text: str) -> int:
        for line in filter(None, text.splitlines()):
            log.debug("%s", line)
        return len(text)


def cluster_capacity(config: ClusterConfig) -> Capacity:
    """What the cluster has; ResourceError if it is less than the configuration asks for."""
    capacity = Capacity(tuple(cluster_nodes()))
    capacity.check(config)
    return capacity


def cluster_nodes() -> list[Node]:
    """The nodes of the present session that are alive, those with GPUs and many CPUs first."""
    here = ray.get_runtime_context().get_node_id()
    found = [(node["Resources"], node["NodeID"] == here) for node in ray.nodes() if node["Alive"]]
    nodes = [
        Node(
            cpus=resources.get("CPU", 0.0),
            gpus=resources.get("GPU", 0.0),
            memory_bytes=resources.get("memory", 0.0) + resources.get("object_store_memory", 0.0),
            has_driver=is_ours,
        )
        for resources, is_ours in found
    ]
    return sorted(nodes, key=lambda node: (-node.gpus, -node.cpus))


class EventLog:
    """Collects what workers say until the driver takes it, and what their successors should know.

    Launched as an actor without CPU.
    """

    def __init__(self) -> None:
        self._messages: list[Event | Progress | Mistake] = []
        self._exhausted: set[str] = set()

    def add(self, messages: list[Event | Progress | Mistake]) -> None:
        """Keep messages in the order of arrival."""
        self._messages += messages

    def take(self) -> list[Event | Progress | Mistake]:
        """All messages since the last call."""
        messages, self._messages = self._messages, []
        return messages

    def note_exhausted(self, run: str) -> None:
        """Workers of this run ran out of memory."""
        self._exhausted.add(run)

    def was_exhausted(self, run: str) -> bool:
        """Whether workers of this run ran out of memory before."""
        return run in self._exhausted


class Deadline:
    """A moment after which the work is given up, in seconds of a monotonic clock."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    @property
    def left_s(self) -> float:
        """Seconds that are left, 0 once it has passed."""
        return max(0.0, self._end - time.monotonic())

    def check(self, doing: str) -> None:
        """ResourceError once the time is over."""
        if time.monotonic() > self._end:
            raise ResourceError(
                f"{doing} was not done within {self.seconds / 3600:g} hours; run the same command again to go on, "
                "or raise cluster.deadline_hours"
            )


def launch_event_log() -> Any:
    """An `EventLog` as an actor that takes no CPU, on the driver's node: no other's end takes messages away."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    kind: Any = ray.remote(num_cpus=0)(EventLog)
    return kind.options(scheduling_strategy=here).remote()
