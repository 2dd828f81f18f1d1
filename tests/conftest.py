"""One Ray for the whole test run, an object store on loopback, and the real data sets if available."""

import os
import signal
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import pytest
import ray
from object_store import KEY_ID, SECRET, Faults, fault_proxy, s3_server

from raymerge.commands import context as command_context
from raymerge.commands import stages as stage_commands
from raymerge.execution.capacity import Capacity, ClusterConfig
from raymerge.execution.runtime import session

CHECKOUT = Path(__file__).parent.parent


def pytest_configure() -> None:
    """Let tests interrupt the commands that they start: a script's background command, and so its own, ignores it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def faulty_link() -> Iterator[Faults]:
    """The proxy to the object store, set in the environment before Ray starts, whose processes inherit it."""
    with fault_proxy() as (url, faults), pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
            patch.delenv(name, raising=False)
        patch.setenv("AWS_ENDPOINT_URL_S3", url)
        patch.setenv("AWS_ACCESS_KEY_ID", KEY_ID)
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        yield faults


@pytest.fixture(scope="session")
def object_store(faulty_link: Faults) -> Iterator[Faults]:
    """A running object store; yields the faults of the proxy to it."""
    with s3_server() as port:
        faulty_link.upstream = port
        yield faulty_link


@pytest.fixture
def faults(object_store: Faults) -> Iterator[Faults]:
    """Faults of the proxy to the object store; none before and after the test."""
    object_store.clear()
    yield object_store
    object_store.clear()


@pytest.fixture
def bucket(faults: Faults) -> str:
    """URL of an empty bucket."""
    name = f"bucket-{uuid.uuid4().hex[:8]}"
    boto3.client("s3").create_bucket(Bucket=name)
    return f"s3://{name}"


@pytest.fixture(scope="session")
def capacity(tmp_path_factory: pytest.TempPathFactory, faulty_link: Faults) -> Iterator[Capacity]:
    """A local Ray, shared by all tests that need one, with a temporary home."""
    saved = dict(os.environ)
    os.environ["HOME"] = str(tmp_path_factory.mktemp("home"))
    paths = (CHECKOUT / "tests", CHECKOUT / "tests" / "support")  # workers import the functions of tests
    os.environ["PYTHONPATH"] = os.pathsep.join(map(str, paths))
    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.5"
    os.environ.pop("RAY_ADDRESS", None)
    with session(ClusterConfig()) as found:
        yield found
    os.environ.clear()
    os.environ.update(saved)
    assert not ray.is_initialized()


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], str]:
    """Finds a file of the real data sets; a test is skipped if it is missing."""
    folder = Path(os.environ.get("RAYMERGE_TEST_DATA", CHECKOUT.parent / "shared" / "data"))

    def find(name: str) -> str:
        if not (folder / name).exists():
            pytest.skip(f"no {folder / name}: set RAYMERGE_TEST_DATA to the folder of the real data sets")
        return str(folder / name)

    return find


@pytest.fixture
def ray_is_never_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands fail if they start Ray."""

    def started(*_: object) -> None:
        raise AssertionError("Ray was started before the error was found")

    for module in (stage_commands, command_context):
        monkeypatch.setattr(module, "session", started)
