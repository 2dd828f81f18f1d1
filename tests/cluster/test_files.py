"""The files of cluster/: they parse, are complete, agree with the pinned versions, and contain no secret."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import processes
import pytest
import yaml
from cluster.head import free_ports, status
from ray.autoscaler._private.util import prepare_config, validate_config

import raymerge

CHECKOUT = Path(__file__).parents[2]
CLUSTER = CHECKOUT / "cluster"
KUBERAY = CLUSTER / "kuberay"
CLOUDS = ("aws", "gcp")
PINS = dict(re.findall(r"^([\w-]+)==(\S+)", (CHECKOUT / "constraints.txt").read_text(), re.MULTILINE))
IMAGE = f"registry.example.com/raymerge:{raymerge.__version__}"


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def cluster_spec() -> dict[str, Any]:
    return documents(KUBERAY / "raycluster.yaml")[0]["spec"]


def job_spec() -> dict[str, Any]:
    return documents(KUBERAY / "rayjob.yaml")[0]["spec"]


def pods() -> dict[str, dict[str, Any]]:
    """All pod templates by name."""
    spec = cluster_spec()
    deployment = next(one for one in documents(KUBERAY / "mlflow.yaml") if one["kind"] == "Deployment")
    groups = {group["groupName"]: group["template"] for group in spec["workerGroupSpecs"]}
    submitter = {"submitter": job_spec()["submitterPodTemplate"]}
    return {"head": spec["headGroupSpec"]["template"], **groups, **submitter, "mlflow": deployment["spec"]["template"]}


@pytest.mark.parametrize("cloud", CLOUDS)
def test_cloud_file_passes_rays_own_validation(cloud: str) -> None:
    validate_config(prepare_config(documents(CLUSTER / f"{cloud}.yaml")[0]))


@pytest.mark.parametrize("cloud", CLOUDS)
def test_cloud_nodes_start_ray_with_a_token_and_the_pinned_versions(cloud: str) -> None:
    config = documents(CLUSTER / f"{cloud}.yaml")[0]
    starts = [config["head_start_ray_commands"][-1], config["worker_start_ray_commands"][-1]]
    assert all(" && RAY_AUTH_MODE=token ray start" in start for start in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert config["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"
    for image in ("head_image", "worker_image"):
        assert f":{PINS['ray']}-" in config["docker"][image]
    assert any("-c constraints.txt" in command for command in config["setup_commands"])
    assert {"cpu", "gpu"} <= set(config["available_node_types"])
    assert config["available_node_types"]["gpu"]["resources"]["GPU"] == 1


@pytest.mark.parametrize("cloud", CLOUDS)
def test_cloud_nodes_start_ray_with_the_environment_of_mlflow(cloud: str, tmp_path: Path) -> None:
    config = documents(CLUSTER / f"{cloud}.yaml")[0]
    (tmp_path / "mlflow.env").write_text("MLFLOW_TRACKING_URI=http://mlflow:5000\n")
    (tmp_path / "ray").write_text('#!/bin/sh\necho "$MLFLOW_TRACKING_URI $RAY_AUTH_MODE $1"\n')
    (tmp_path / "ray").chmod(0o755)
    [there] = [place for place, here in config["file_mounts"].items() if here == "~/.raymerge/mlflow.env"]
    for kind in ("head", "worker"):
        start = config[f"{kind}_start_ray_commands"][-1].replace(there, str(tmp_path / "mlflow.env"))
        environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "RAY_HEAD_IP": "head"}
        done = subprocess.run(["bash", "-c", start], env=environment, capture_output=True, text=True)
        assert done.stdout == "http://mlflow:5000 token start\n"


def test_kuberay_files_have_kinds_and_fields() -> None:
    kinds = [one["kind"] for file in sorted(KUBERAY.glob("*.yaml")) for one in documents(file)]
    assert sorted(kinds) == sorted(
        ["RayCluster", "RayJob", "NetworkPolicy", "NetworkPolicy", "PersistentVolumeClaim", "Service", "Deployment"]
    )
    spec = cluster_spec()
    assert documents(KUBERAY / "raycluster.yaml")[0]["apiVersion"] == "ray.io/v1"
    assert spec["rayVersion"] == PINS["ray"]
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["enableInTreeAutoscaling"]
    assert [group["groupName"] for group in spec["workerGroupSpecs"]] == ["cpu", "gpu"]
    for group in spec["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] < group["maxReplicas"]


def test_job_has_the_same_cluster_and_starts_a_script_that_exists() -> None:
    spec = job_spec()
    assert spec["rayClusterSpec"] == cluster_spec()
    script = spec["entrypoint"].split()[1].removeprefix("/home/ray/raymerge/")
    assert (CHECKOUT / script).is_file()
    assert script.startswith("jobs/")
    assert spec["backoffLimit"] == 1
    assert spec["shutdownAfterJobFinishes"]
    assert spec["ttlSecondsAfterFinished"] > 0


@pytest.mark.parametrize("name", ["head", "cpu", "gpu", "submitter", "mlflow"])
def test_pod_is_locked_down_and_limited(name: str) -> None:
    pod = pods()[name]["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["runAsUser"] == 1000
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in pod["containers"]:
        assert container["image"] == IMAGE + ("-gpu" if name == "gpu" else "")
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert {"cpu", "memory"} <= set(container["resources"]["requests"])
        assert {"cpu", "memory"} <= set(container["resources"]["limits"])
    assert ("nvidia.com/gpu" in str(pod)) == (name == "gpu")


def test_every_pod_is_under_a_policy_for_both_directions() -> None:
    policies = documents(KUBERAY / "network-policy.yaml")
    guarded = [policy["spec"]["podSelector"]["matchLabels"] for policy in policies]
    assert all(policy["spec"]["policyTypes"] == ["Ingress", "Egress"] for policy in policies)
    for name, pod in pods().items():
        assert pod["metadata"]["labels"] in guarded, name
    entries = [entry for policy in policies for entry in policy["spec"]["ingress"]]
    assert all(entry["from"] for entry in entries), "an entry without `from` would admit everybody"


def test_mlflow_asks_for_a_password_and_keeps_its_runs() -> None:
    claim, service, deployment = documents(KUBERAY / "mlflow.yaml")
    pod = deployment["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert container["command"][:4] == ["mlflow", "server", "--app-name", "basic-auth"]
    assert "--workers=1" in container["args"]
    assert all(container[f"{kind}Probe"]["timeoutSeconds"] >= 10 for kind in ("startup", "readiness", "liveness"))
    assert container["envFrom"] == [{"secretRef": {"name": "raymerge-mlflow"}}]
    assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert service["spec"]["type"] == "ClusterIP"
    environment = cluster_spec()["headGroupSpec"]["template"]["spec"]["containers"][0]["env"]
    uri = next(entry["value"] for entry in environment if entry["name"] == "MLFLOW_TRACKING_URI")
    assert uri == f"http://{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"


def test_image_is_of_the_pinned_ray_and_installs_the_pinned_versions() -> None:
    text = (CLUSTER / "Dockerfile").read_text()
    assert f"ARG RAY_VERSION={PINS['ray']}\n" in text
    assert "-c constraints.txt" in text
    assert f"raymerge:{raymerge.__version__} " in text
    assert text.rstrip().endswith("USER 1000")
    for name in re.findall(r"^COPY --chown=\S+ (.*) \S+$", text, re.MULTILINE):
        assert all((CHECKOUT / part).exists() for part in name.split())


def test_no_file_holds_a_secret() -> None:
    named = re.compile(
        r"(password|secret_?key|token|access_?key)\w*['\"]?\s*[:=]\s*['\"]?(?=[A-Za-z+/]*[0-9])[A-Za-z0-9+/]{8,}",
        re.IGNORECASE,
    )
    for file in (file for file in CLUSTER.rglob("*") if file.is_file()):
        assert not named.search(file.read_text()), file
    assert "kind: Secret" not in "".join(file.read_text() for file in KUBERAY.iterdir())


def test_local_script_is_valid_and_explains_its_use() -> None:
    script = CLUSTER / "local"
    assert script.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", str(script)], check=True)
    done = subprocess.run([str(script)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "cluster/local: give start or stop\n")
    assert "pkill" not in script.read_text()
    assert "ray stop" not in script.read_text(), "that would stop every Ray of the machine"


@pytest.mark.parametrize(("system", "expected"), [("Darwin", "it needs Linux; "), ("Linux", "curl is not installed")])
def test_local_script_says_what_this_machine_lacks(tmp_path: Path, system: str, expected: str) -> None:
    (tmp_path / "uname").write_text(f"#!/bin/sh\necho {system}\n")
    (tmp_path / "uname").chmod(0o755)
    (tmp_path / "bash").symlink_to("/bin/bash")
    environment = os.environ | {"PATH": str(tmp_path), "RAYMERGE_CLUSTER": str(tmp_path / "state")}
    done = subprocess.run([str(CLUSTER / "local"), "start"], env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith(f"cluster/local: {expected}")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.chaos
def test_local_cluster_requires_its_token_serves_pages_on_loopback_only_and_leaves_nothing(tmp_path: Path) -> None:
    dashboard, *others = free_ports(4)
    names = ("GCS_PORT", "AGENT_PORT", "MLFLOW_PORT")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "MLFLOW_"))}
    environment = kept | {"HOME": str(tmp_path), "DASHBOARD_PORT": str(dashboard), "PYTHON": sys.executable}
    environment |= {name: str(port) for name, port in zip(names, others, strict=True)}
    script, url = str(CLUSTER / "local"), f"http://127.0.0.1:{dashboard}"
    state = tmp_path / ".raymerge" / "cluster"
    try:
        done = subprocess.run([script, "start"], env=environment, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
        assert f"raymerge submit --address {url}" in done.stdout
        token = (state / "token").read_text()
        assert (state / "token").stat().st_mode & 0o077 == 0 and token not in done.stdout + done.stderr
        assert status(f"{url}/api/jobs/") == 401 and status(f"{url}/api/jobs/", token=token) == 200
        assert status(f"http://127.0.0.1:{others[2]}/health") == 200
        assert not open_to_others({dashboard, others[2]})
        again = subprocess.run([script, "start"], env=environment, capture_output=True, text=True, timeout=60)
        assert (again.returncode, again.stdout) == (2, "")
        assert "already running; stop it with" in again.stderr
    finally:
        subprocess.run([script, "stop"], env=environment, check=True, timeout=100)
    processes.wait_until_gone(str(tmp_path))


def test_local_script_stops_no_other_process_with_a_reused_id(tmp_path: Path) -> None:
    environment = os.environ | {"RAYMERGE_CLUSTER": str(tmp_path)}
    with subprocess.Popen(["sleep", "100"]) as other:
        began = Path(f"/proc/{other.pid}/stat").read_text().rpartition(")")[2].split()[19]
        for time_of_start, ended in (("1", False), (began, True)):  # as after a restart of the machine, and its own
            (tmp_path / "head.pid").write_text(f"{other.pid} {time_of_start}\n")
            done = subprocess.run([str(CLUSTER / "local"), "stop"], env=environment, check=True, capture_output=True)
            assert ("stopped Ray" in done.stdout.decode()) is (other.poll() is not None) is ended
        other.kill()


def open_to_others(ports: set[int]) -> list[str]:
    """Sockets of these ports that listen on an address other than 127.0.0.1, in the kernel's notation."""
    lines = [
        line.split() for file in ("tcp", "tcp6") for line in Path(f"/proc/net/{file}").read_text().splitlines()[1:]
    ]
    listening = [fields[1] for fields in lines if fields[3] == "0A"]
    ours = [place for place in listening if int(place.rpartition(":")[2], 16) in ports]
    return [place for place in ours if not place.startswith("0100007F:")]
