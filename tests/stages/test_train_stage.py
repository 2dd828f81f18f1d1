"""Trainings on Ray: each once, the same model whichever process dies, and one line if none can be had."""

import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from processes import named
from stages.contexts import MakeContext

from raymerge.artifacts import Artifact, Key, load_model, save_model
from raymerge.data.prepare import ITEMS_FILE
from raymerge.errors import LostError, ResourceError, ScoreError
from raymerge.execution.capacity import Capacity, ClusterConfig
from raymerge.execution.deadline import Deadline
from raymerge.execution.runtime import cluster_capacity
from raymerge.files import storage
from raymerge.models.objectives import ObjectiveConfig
from raymerge.stages.context import Context, TrackedDraft
from raymerge.stages.inputs import model_digest
from raymerge.stages.train import Training, seeded, train, train_base

pytestmark = pytest.mark.usefixtures("capacity")


def test_trainings_with_the_same_key_are_run_once(make_context: MakeContext, data: Artifact) -> None:
    done: list[str] = []
    context = make_context("out", "training.epochs=1", emit=lambda message: done.append(message.run))
    assert context.config.base is not None
    training = Training("train/a", context.config.base, context.config.training, data, None, 1, 1)
    trained = train(context, [training, replace(training, run="train/b")])
    assert trained["train/a"].url == trained["train/b"].url
    assert {"train/a", "train/b"} <= set(done)


def test_a_model_that_another_command_trains_in_the_same_output_is_refused(
    make_context: MakeContext, data: Artifact
) -> None:
    context = make_context("out", "training.epochs=1")
    assert context.config.base is not None
    training = Training("train/a", context.config.base, context.config.training, data, None, 1, 1)
    place = context.output.open().locate(training.key(context.config))
    with (
        storage.claimed(place.replace("/train/", "/checkpoints/")),
        pytest.raises(LostError, match="another command is"),
    ):
        train(context, [training])
    assert set(train(context, [training])) == {"train/a"}


def test_killed_training_worker_is_replaced_and_the_model_is_the_same(
    make_context: MakeContext, data: Artifact
) -> None:
    undisturbed = train_base(make_context("undisturbed"), data)
    context = make_context("disturbed")
    killer = threading.Thread(target=kill_a_training_worker, args=(context,))
    killer.start()
    disturbed = train_base(context, data)
    killer.join()
    assert undisturbed is not None
    assert disturbed is not None
    assert model_digest(disturbed) == model_digest(undisturbed)
    assert len(disturbed.json("history.json")) == 3


def kill_a_training_worker(context: Context) -> None:
    """Wait for a checkpoint."""
    checkpoints = Path(context.output.url) / "checkpoints"
    while not list(checkpoints.glob("*/*/state.json")):
        time.sleep(0.02)
    worker, *_ = named("ray::RayTrainWorker")
    os.kill(worker, signal.SIGKILL)


def test_nan_loss_ends_the_training_in_one_line(
    make_context: MakeContext, data: Artifact, models: dict[str, Artifact]
) -> None:
    context = make_context("out")

    def spoil(draft: TrackedDraft) -> None:
        module = load_model(models["first"].url)
        module.item_embedding.weight.data[5] = float("nan")
        save_model(module, draft.folder / "model", items_url=data.file(ITEMS_FILE))

    start = context.make("diverged", Key("train", {}), spoil)
    training = Training(
        "train/next", ObjectiveConfig("next_item"), context.config.training, data, start, workers=1, threads=1
    )
    with pytest.raises(ScoreError, match="lower training.learning_rate"):
        train(context, [training])


def test_more_gpus_than_the_cluster_has_are_refused(capacity: Capacity) -> None:
    with pytest.raises(ResourceError, match=r"cluster\.gpus is 8, but the cluster has 0 GPUs"):
        cluster_capacity(ClusterConfig(gpus=8), Deadline(60))


def test_no_two_trainings_of_two_runs_share_a_seed(make_context: MakeContext) -> None:
    configs = [make_context("out", f"seed={seed}").config for seed in (0, 1)]
    seeds = {seeded(config, config.training, member=member).seed for config in configs for member in range(5)}
    assert len(seeds) == 10
