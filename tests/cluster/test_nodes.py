"""The pipeline on several raylets, without a disk in common: the results of one node, to the bit, whoever is killed."""

import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import Popen

import pyarrow.parquet as pq
import pytest
from cluster.nodes import Nodes, start_nodes

from raymerge import storage
from raymerge.data import demo

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]

SMALL = {
    "encoder.max_length": "12",
    "encoder.dim": "16",
    "encoder.feed_forward": "32",
    "prepare.partitions": "4",
    "base": "null",
    "members": "{one: {name: next_item}, two: {name: next_item}}",
    "training.epochs": "4",
    "after_merge": "null",
    "merge.budget": "4",
    "evaluation.replicates": "200",
    "cluster.base_threads": "1",
}


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder with a short path: those of sockets have a limit of 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="rm-") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("log") / "log.parquet"
    pq.write_table(demo.generate(seed=5, users=300, items=120), file)
    return file


def start(nodes: Nodes, output: str, command: str, *arguments: str) -> Popen[str]:
    """A command with the small configuration, which keeps its runs on the disk of the head alone."""
    settings = [part for key, value in SMALL.items() for part in ("--set", f"{key}={value}")]
    tracking = f"sqlite:///{nodes.environment['TMPDIR']}/mlflow.db"
    return nodes.start(
        command, *arguments, "--recipe", "demo", "--output", output, "--tracking-uri", tracking, *settings
    )


def run(nodes: Nodes, bucket: str, data: Path) -> Popen[str]:
    """The pipeline, from an object store into it."""
    storage.write_bytes(f"{bucket}/log.parquet", data.read_bytes())
    return start(nodes, f"{bucket}/out", "run", "--input", f"{bucket}/log.parquet")


def finished(driver: Popen[str], bucket: str) -> tuple[dict, dict[str, str]]:
    """The report but for times, and the digest of each diagonal's file."""
    table, progress = driver.communicate(timeout=400)
    assert driver.returncode == 0, table + progress
    report = json.loads(only(bucket, "report/*/report.json"))
    diagonals = {
        name: json.loads(storage.read_bytes(f"{bucket}/out/{place}/manifest.json"))["files"]["diagonal.safetensors"]
        for name, place in report["artifacts"]["diagonals"].items()
    }
    assert len(diagonals) == 2
    return {key: value for key, value in report.items() if key != "timings"}, diagonals


def only(bucket: str, pattern: str) -> bytes:
    [url] = storage.list_files(f"{bucket}/out/{pattern}")
    return storage.read_bytes(url)


def test_three_nodes_without_a_common_disk_give_the_bits_of_one(short: Path, bucket: str, data: Path) -> None:
    found = []
    for count in (1, 3):
        folder = short / str(count)
        folder.mkdir()
        with start_nodes(folder, count) as nodes:
            found.append(finished(run(nodes, bucket, data), bucket))
            storage.remove_folder(f"{bucket}/out")
    assert found[0] == found[1]


def urls(driver: Popen[str]) -> list[str]:
    """What a command has printed of its artifacts."""
    printed, progress = driver.communicate(timeout=200)
    assert driver.returncode == 0, printed + progress
    return [json.loads(line)["url"] for line in printed.splitlines() if line.startswith('{"name"')]


def results(output: str, stage: str) -> dict[str, dict[str, str]]:
    """Digests of all files of a stage's artifacts but those that tell times."""
    manifests = [json.loads(storage.read_bytes(url)) for url in storage.list_files(f"{output}/{stage}/*/manifest.json")]
    told = ("events.json", "history.json")
    return {
        manifest["digest"]: {name: digest for name, digest in manifest["files"].items() if name not in told}
        for manifest in manifests
    }


def test_killed_node_changes_no_bit_of_training_fisher_and_evaluation(short: Path, bucket: str, data: Path) -> None:
    storage.write_bytes(f"{bucket}/log.parquet", data.read_bytes())
    calm, hit = f"{bucket}/calm", f"{bucket}/hit"
    with start_nodes(short, 2) as nodes:
        [prepared] = urls(start(nodes, calm, "prepare", "--input", f"{bucket}/log.parquet"))
        given = ["--data", prepared]
        models = urls(start(nodes, calm, "train", *given))
        driver = start(nodes, hit, "train", *given)
        while not storage.list_folder(f"{hit}/checkpoints"):
            assert driver.poll() is None, driver.communicate()
            time.sleep(0.1)
        assert nodes.kill_busy("ray::RayTrainWorker")
        assert len(urls(driver)) == 2
        assert results(hit, "train") == results(calm, "train")
        for stage in ("fisher", "evaluate"):
            nodes.add()
            command = [stage, *given, *(part for model in models for part in ("--model", model))]
            assert start(nodes, calm, *command).wait(200) == 0
            driver = start(nodes, hit, *command)
            assert nodes.kill_busy("ray::Worker.run")
            printed, progress = driver.communicate(timeout=200)
            assert driver.returncode == 0, printed + progress
            assert len(results(hit, stage)) == 2
            assert results(hit, stage) == results(calm, stage)
