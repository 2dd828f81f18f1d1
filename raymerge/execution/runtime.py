"""Ray: start or join it, and find out what it has."""

import io
import json
import logging
import os
import secrets
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util import placement_group, remove_placement_group

from raymerge.errors import LostError, ResourceError, first_line
from raymerge.execution.capacity import Capacity, ClusterConfig, Node
from raymerge.execution.deadline import Deadline
from raymerge.files.retries import disk_errors
from raymerge.redaction import redact

POLL_S = 0.25
WORKER_ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",  # busy waiting made steps 2 to 7 times slower where processes share CPUs
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a process without a GPU share sees no GPU
}
SLOW_START = "timed out during startup"  # as Ray says it, in an exception without a class
JOB_CONFIG_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set by Ray for the driver of a submitted job
log = logging.getLogger(__name__)


@contextmanager
def session(config: ClusterConfig) -> Iterator[Capacity]:
    """Join the configured cluster, or start Ray on this machine for the duration of the block.

    A Ray started here requires a random token, which is kept in this process's environment only. Standard output inside
    the block goes to this module's log at level DEBUG, since Ray prints to it: print results after the block.
    Raises LostError if Ray loses a process in the block that nobody replaces.
    """
    deadline = Deadline(config.deadline_hours * 3600)
    if ray.is_initialized():
        with _as_lost_error():
            yield cluster_capacity(config, deadline)
        return
    address = _address(config)
    arguments: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    logging.getLogger("ray").setLevel(logging.ERROR)
    if address:
        arguments |= {"address": address, "runtime_env": {"env_vars": _unset_by_job(WORKER_ENVIRONMENT)}}
    else:
        # "local": otherwise Ray may join another head that has run on this machine
        arguments |= {"address": "local", "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
        os.environ |= WORKER_ENVIRONMENT | os.environ  # inherited by the workers
        if os.environ.get("RAY_AUTH_MODE", "token") == "token":
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    handler = signal.getsignal(signal.SIGTERM)
    with _start_errors(address):
        ray.init(**arguments)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)  # Ray replaces it by a handler that exits silently
    try:
        with redirect_stdout(_LogStream()), _as_lost_error():
            yield cluster_capacity(config, deadline)
    finally:
        ray.shutdown()


def _address(config: ClusterConfig) -> str | None:
    """The cluster to join; None: Ray is started on this machine, which then has all that it will ever have."""
    return config.address or os.environ.get("RAY_ADDRESS")


@contextmanager
def _start_errors(address: str | None) -> Iterator[None]:
    """Turn whatever `ray.init` raises into one line: LostError if a node was too slow, else ResourceError."""
    try:
        with nullcontext() if address else disk_errors(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()):
            yield
    except ResourceError:
        raise
    except Exception as error:
        kind = LostError if SLOW_START in str(error) else ResourceError
        where = f"join the Ray cluster at {redact(address)}" if address else "start Ray on this machine"
        raise kind(f"cannot {where}: {first_line(error)}") from error


@contextmanager
def _as_lost_error() -> Iterator[None]:
    """Turn the loss of a process that nobody replaces into a LostError; a mistake in one of ours stays as it is."""
    try:
        yield
    except RayTaskError:
        raise
    except RayError as error:
        raise LostError(f"Ray lost a process ({first_line(error)}); run the same command again to resume") from error


def _unset_by_job(environment: dict[str, str]) -> dict[str, str]:
    """The variables that the job does not set itself: Ray refuses one set by both, even with the same value."""
    job = json.loads(os.environ.get(JOB_CONFIG_VARIABLE, "{}")).get("runtime_env") or {}
    return {name: value for name, value in environment.items() if name not in job.get("env_vars", {})}


class _LogStream(io.TextIOBase):
    """A text stream whose lines go to the log."""

    def write(self, text: str) -> int:
        for line in filter(None, text.splitlines()):
            log.debug("%s", line)
        return len(text)


def cluster_capacity(config: ClusterConfig, deadline: Deadline) -> Capacity:
    """What the cluster has, once that is enough to begin: at least one CPU, or as many CPUs and GPUs as configured.

    A cluster without a CPU has just started, or its only worker is being replaced. One with an autoscaler grows if
    asked to. LostError if the nodes do not join in time, ResourceError for what could never be scheduled.
    """
    capacity = Capacity(tuple(cluster_nodes()))
    if shortage := capacity.shortage(config):
        if not _address(config):
            raise ResourceError(f"{shortage}: lower it, or join a cluster that can grow with --address")
        log.warning("%s; waiting up to %g minutes for nodes", shortage, config.wait_minutes)
        with _asked_to_grow(config):
            end = time.monotonic() + config.wait_minutes * 60
            while capacity.shortage(config) and time.monotonic() < end:
                deadline.check("waiting for nodes")
                time.sleep(POLL_S)
                capacity = Capacity(tuple(cluster_nodes()))
    capacity.check(config)
    return capacity


@contextmanager
def _asked_to_grow(config: ClusterConfig) -> Iterator[None]:
    """Ask an autoscaler for the configured CPUs and GPUs inside the block, by a placement group that waits for them.

    It ends with the job, unlike Ray's own `request_resources`, which is one number for all jobs of a cluster. Nodes
    that have joined stay for the autoscaler's idle time.
    """
    gpus, cpus = config.min_gpus or 0, config.min_cpus or 0
    bundles = [{"GPU": 1.0, "CPU": 1.0}] * gpus + [{"CPU": 1.0}] * max(0, cpus - gpus)
    if not bundles:
        yield
        return
    group = placement_group(bundles)
    try:
        yield
    finally:
        remove_placement_group(group)


def cluster_nodes() -> list[Node]:
    """The live nodes of the current session, those with the most GPUs, then CPUs, first."""
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
