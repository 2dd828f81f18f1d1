"""The pipeline on several raylets without a common disk: the results of one node, bit for bit, whichever is killed."""

import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from subprocess import Popen

import pyarrow.parquet as pq
import pytest
from cluster.nodes import Nodes, start_nodes
from random_models import random_model

from raymerge.artifacts import Output
from raymerge.data import demo
from raymerge.errors import InputError
from raymerge.execution.deadline import Deadline
from raymerge.files import storage
from raymerge.recipes import configure
from raymerge.stages.context import Context
from raymerge.stages.prepare import prepare

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
    "cluster.base_workers": "1",
}


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder with a short path: those of sockets are limited to 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="rm-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("log") / "log.parquet"
    pq.write_table(demo.generate(seed=5, users=300, items=120), file)
    return file


def start(nodes: Nodes, output: str, command: str, *arguments: str) -> Popen[str]:
    """A command with the small configuration, whose MLflow runs are on the head's disk."""
    settings = [part for key, value in SMALL.items() for part in ("--set", f"{key}={value}")]
    tracking = f"sqlite:///{nodes.environment['TMPDIR']}/mlflow.db"
    return nodes.start(
        command, *arguments, "--recipe", "demo", "--output", output, "--tracking-uri", tracking, *settings
    )


def run(nodes: Nodes, bucket: str, data: Path) -> Popen[str]:
    """The pipeline, from and to an object store."""
    storage.write_bytes(f"{bucket}/log.parquet", data.read_bytes())
    return start(nodes, f"{bucket}/out", "run", "--input", f"{bucket}/log.parquet")


def finished(driver: Popen[str], bucket: str) -> tuple[dict, dict[str, str]]:
    """The report without times, and the digest of each diagonal's file."""
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


def results(output: str, stage: str) -> dict[str, dict[str, str]]:
    """Digests of all files of a stage's artifacts except those with times."""
    manifests = [json.loads(storage.read_bytes(url)) for url in storage.list_files(f"{output}/{stage}/*/manifest.json")]
    told = ("events.json", "history.json")
    return {
        manifest["digest"]: {name: digest for name, digest in manifest["files"].items() if name not in told}
        for manifest in manifests
    }


def given(bucket: str, data: Path, stage: str) -> list[str]:
    """Arguments of a stage's command: prepared data and, except for training, two random models."""
    overrides = tuple(f"{key}={value}" for key, value in SMALL.items())
    context = Context(configure("demo", overrides), Output(f"{bucket}/given"), lambda message: None, Deadline(60))
    prepared = prepare(context, [str(data)])
    arguments = ["--data", prepared.url]
    for seed in () if stage == "train" else (0, 1):
        arguments += ["--model", random_model(context, prepared, seed=seed).url]
    return arguments


def wait_for_checkpoint(driver: Popen[str], output: str) -> None:
    """So that there is something to resume."""
    end = time.monotonic() + 150
    while driver.poll() is None and time.monotonic() < end:
        with suppress(InputError):  # as long as there is none
            storage.list_files(f"{output}/checkpoints/*/checkpoint_*/state.json")
            return
        time.sleep(0.2)
    raise AssertionError("no checkpoint")


@pytest.mark.parametrize(
    ("stage", "process"),
    [("train", "ray::RayTrainWorker"), ("fisher", "ray::Worker.run"), ("evaluate", "ray::Worker.run")],
)
def test_killed_node_changes_no_bit(short: Path, bucket: str, data: Path, stage: str, process: str) -> None:
    arguments = given(bucket, data, stage)
    with start_nodes(short, 2) as nodes:
        for output in (f"{bucket}/hit", f"{bucket}/calm"):
            driver = start(nodes, output, stage, *arguments)
            if output.endswith("hit"):
                if stage == "train":
                    wait_for_checkpoint(driver, output)
                assert nodes.kill_busy(process)
            printed, progress = driver.communicate(timeout=300)
            assert driver.returncode == 0, printed + progress
    found = results(f"{bucket}/hit", stage)
    assert len(found) == 2
    assert found == results(f"{bucket}/calm", stage)
