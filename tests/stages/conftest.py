"""A small prepared log and a context for stages, both without Ray."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from random_models import random_model
from stages.contexts import SMALL, MakeContext

from raymerge.artifacts import Artifact, Output
from raymerge.data import demo
from raymerge.data.sequences import Sequences, read_partition
from raymerge.events import Emit
from raymerge.execution.deadline import Deadline
from raymerge.recipes import configure
from raymerge.stages.context import Context
from raymerge.stages.inputs import partitions_of
from raymerge.stages.prepare import prepare


@pytest.fixture(scope="session")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("log") / "log.parquet"
    pq.write_table(demo.generate(seed=7, users=150, items=120), file)
    return file


@pytest.fixture
def make_context(tmp_path: Path) -> MakeContext:
    """Makes contexts whose output folder has the given name."""

    def make(folder: str = "out", *overrides: str, emit: Emit = print) -> Context:
        return Context(configure("demo", (*SMALL, *overrides)), Output(str(tmp_path / folder)), emit, Deadline(600))

    return make


@pytest.fixture
def data(make_context: MakeContext, log: Path) -> Artifact:
    return prepare(make_context("data"), [str(log)])


@pytest.fixture
def partitions(data: Artifact) -> list[Sequences]:
    return [read_partition(url) for url in partitions_of(data)]


@pytest.fixture
def models(make_context: MakeContext, data: Artifact) -> dict[str, Artifact]:
    """Two random models in artifacts of the train stage."""
    context = make_context("models")
    return {name: random_model(context, data, name=name, seed=seed) for seed, name in enumerate(("first", "second"))}
