"""All of raymerge with every URL in an object store; credentials are shown nowhere."""

import json
import logging
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray
import yaml
from object_store import KEY_ID, SECRET

from raymerge.cli import main
from raymerge.data import demo
from raymerge.execution.capacity import Capacity
from raymerge.files import storage
from raymerge.recipes import configure

SMALL = (
    "encoder.max_length=8",
    "encoder.dim=8",
    "encoder.heads=1",
    "encoder.feed_forward=8",
    "prepare.partitions=2",
    "base=null",
    "training.epochs=1",
    "merge.budget=3",
)


@pytest.fixture
def shop(bucket: str, tmp_path: Path) -> str:
    """A bucket with a log, and a recipe of two members."""
    pq.write_table(demo.generate(seed=5, users=120, items=100), tmp_path / "log.parquet")
    storage.write_bytes(f"{bucket}/log.parquet", (tmp_path / "log.parquet").read_bytes())
    recipe = configure("default", SMALL).plain()
    del recipe["members"]["duorec"]
    storage.write_bytes(f"{bucket}/two.yaml", yaml.safe_dump(recipe).encode())
    return bucket


def test_every_stage_reads_from_and_writes_to_an_object_store(
    capacity: Capacity,
    shop: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    caplog.set_level(logging.DEBUG, "raymerge")
    shared = ["--recipe", f"{shop}/two.yaml", "--output", f"{shop}/out"]
    shared += ["--tracking-uri", f"sqlite:///{tmp_path}/mlflow/mlflow.db"]
    (tmp_path / "mlflow").mkdir()
    said: list[str] = []

    def told(*arguments: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main([*arguments])
        out, err = capsys.readouterr()
        assert ended.value.code == 0, err
        said.extend((out, err))
        return out

    def made(*arguments: str) -> dict[str, str]:
        """URLs of what a command made, by name."""
        lines = (line for line in told(*arguments, *shared).splitlines() if line.startswith("{"))  # Ray warns there too
        return {found["name"]: found["url"] for found in map(json.loads, lines)}

    data = made("prepare", "--input", f"{shop}/log.parquet")["data"]
    models = made("train", "--data", data)
    options = [part for url in models.values() for part in ("--model", url)]
    diagonals = made("fisher", "--data", data, *options)
    options += [part for url in diagonals.values() for part in ("--diagonal", url)]
    merged = made("merge", "--data", data, *options)["merged"]
    assert "leave-one-out" in told("evaluate", "--data", data, "--model", merged, *shared)
    items = pq.read_table(storage.fetch_folder(data, tmp_path / "data") / "items.parquet")["item"]
    assert "score" in told("recommend", "--model", merged, "--history", str(items[0]))
    assert len(models) == len(diagonals) == 2
    assert all(url.startswith(f"{shop}/out/") for url in (data, *models.values(), *diagonals.values(), merged))
    assert storage.list_folder(f"{shop}/out/checkpoints") == []
    storage.fetch_folder(f"{shop}/out", tmp_path / "out")
    node = ray._private.worker.global_worker.node
    for folder in (tmp_path, Path(node.get_logs_dir_path())):
        assert files_with_secret(folder) == []
    everything = caplog.text + "".join(said)
    assert SECRET not in everything and KEY_ID not in everything


def files_with_secret(folder: Path) -> list[Path]:
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert files
    return [file for file in files if any(word.encode() in file.read_bytes() for word in (SECRET, KEY_ID))]
