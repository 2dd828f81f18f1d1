"""A real MLflow server, one for the whole run, and trackers and models for it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from mlflow_server import Server

from raymerge.artifacts import save_model
from raymerge.data.sequences import Items, write_items
from raymerge.models.encoder import EncoderConfig, SequenceEncoder
from raymerge.tracking.runs import Tracker


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("mlflow"))
    yield running
    running.stop()


@pytest.fixture(autouse=True)
def own_surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test writes into home or checkout, sends usage data, or sees the user's own tracking server."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


CONFIGURATION = {
    "recipe": "demo",
    "training": {"epochs": 3, "objectives": ["bert4rec", "duorec"]},
    "input": {"url": "s3://reader:hunter2@bucket/log.parquet?token=hunter2", "password": "hunter2"},
}
DATASET = {
    "name": "demo",
    "digest": "0123456789abcdef",
    "source": "https://reader:hunter2@example.org/log.csv?token=hunter2",
    "counts": {"users": 20, "items": 9, "interactions": 180},
}


@pytest.fixture
def new_tracker(server: Server, request: pytest.FixtureRequest) -> Callable[..., Tracker]:
    """Makes trackers of one pipeline, as a driver that is started again does; one experiment a test."""

    def make(**changes: object) -> Tracker:
        settings = {"name": "demo", "identity": request.node.name, "configuration": CONFIGURATION, "dataset": DATASET}
        return Tracker(server.uri, request.node.name, **(settings | changes))  # type: ignore[arg-type]

    return make


def save_random_model(folder: Path, item_ids: list[int] | list[str], *, seed: int = 0) -> Path:
    """A small model of random weights as the pipeline leaves it on disk."""
    torch.manual_seed(seed)
    folder.mkdir(parents=True)
    counts = torch.ones(len(item_ids), dtype=torch.int64)
    write_items(Items(pa.array(item_ids), counts), folder / "catalogue.parquet")
    config = EncoderConfig(max_length=5, dim=8, blocks=1, heads=1, feed_forward=8)
    save_model(SequenceEncoder(len(item_ids), config), folder, items_url=str(folder / "catalogue.parquet"))
    (folder / "catalogue.parquet").unlink()
    return folder
