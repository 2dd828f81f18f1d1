"""One Ray for the whole test run, and the real data sets where there are any."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from raymerge.runtime import Capacity, ClusterConfig, session

CHECKOUT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def capacity(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Capacity]:
    """A Ray of this machine, shared by all tests that need one; what it leaves goes into a temporary home."""
    saved = dict(os.environ)
    os.environ["HOME"] = str(tmp_path_factory.mktemp("home"))
    os.environ["PYTHONPATH"] = str(CHECKOUT / "tests")  # workers import the functions of tests
    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.5"
    os.environ.pop("RAY_ADDRESS", None)
    with session(ClusterConfig()) as found:
        yield found
    os.environ.clear()
    os.environ.update(saved)
    assert not ray.is_initialized()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real data sets; tests that need one skip where it is not there."""
    folder = Path(os.environ.get("RAYMERGE_TEST_DATA", CHECKOUT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}: set RAYMERGE_TEST_DATA")
    return folder
