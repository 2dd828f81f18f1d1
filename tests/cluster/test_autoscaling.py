"""A cluster with Ray's autoscaler, whose nodes are real raylets of this machine."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster.head import Head, start_head
from ray.util import get_node_ip_address

AUTOSCALER = {
    "cluster_name": "small",
    "max_workers": 2,
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 2}, "node_config": {}, "max_workers": 0},
        "worker": {"resources": {"CPU": 1, "object_store_memory": 100 * 2**20}, "node_config": {}, "max_workers": 2},
    },
    "head_node_type": "ray.head.default",
    "idle_timeout_minutes": 5,
    "upscaling_speed": 1.0,
    "auth": {"ssh_user": "nobody"},
    "file_mounts": {},
    "cluster_synced_files": [],
    "file_mounts_sync_continuously": False,
    **{f"{kind}_commands": [] for kind in ("initialization", "setup", "head_setup", "worker_setup")},
    **{f"{kind}_start_ray_commands": [] for kind in ("head", "worker")},
}
SESSION = """
import sys
from raymerge.execution.capacity import ClusterConfig
from raymerge.execution.runtime import session

config = ClusterConfig(address=sys.argv[1], min_cpus=int(sys.argv[2]), wait_minutes=float(sys.argv[3]))
with session(config) as capacity:
    found = capacity.cpus
print(found)
"""


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    home = tmp_path_factory.mktemp("home")
    with (
        tempfile.TemporaryDirectory(prefix="rm-", ignore_cleanup_errors=True) as folder,
        start_head(Path(folder), home, AUTOSCALER) as started,
    ):
        yield started


@pytest.mark.timeout(400)
def test_a_cluster_grows_to_what_a_run_asks_for_and_no_further(head: Head) -> None:
    address = f"{get_node_ip_address()}:{head.gcs.rpartition(':')[2]}"  # by which the new nodes know it
    done = head.run("-c", SESSION, address, "4", "3", timeout=300)
    assert done.stdout.split()[-1:] == ["4.0"], done.stderr
    assert "the cluster has 2 CPUs for tasks; cluster.min_cpus is 4; waiting up to 3 minutes for nodes" in done.stderr
    more = head.run("-c", SESSION, address, "5", "0.05")
    assert "LostError: the cluster has 4 CPUs for tasks; cluster.min_cpus is 5: are nodes starting" in more.stderr
