"""A real MLflow server, one for the whole session, and trackers for it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mlflow_server import Server
from tracking.examples import CONFIGURATION, DATASET

from raymerge.tracking.runs import Tracker


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("mlflow"))
    yield running
    running.stop()


@pytest.fixture(autouse=True)
def own_surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test writes to the home folder or checkout, sends usage data, or sees the user's own tracking server."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def new_tracker(server: Server, request: pytest.FixtureRequest) -> Callable[..., Tracker]:
    """Makes trackers of one pipeline, as a restarted driver does; one experiment per test."""

    def make(**changes: object) -> Tracker:
        settings = {"name": "demo", "identity": request.node.name, "configuration": CONFIGURATION, "dataset": DATASET}
        return Tracker(server.uri, request.node.name, **(settings | changes))  # type: ignore[arg-type]

    return make
