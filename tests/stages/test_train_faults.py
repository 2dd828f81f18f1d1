"""Training through faults: a worker killed in mid-epoch, one out of memory, a NaN loss."""

import os
import re
import signal
from dataclasses import asdict, replace

import pytest
import torch
from hungry import HUNGRY, Hungry
from processes import named
from safetensors import safe_open
from stages.contexts import MakeContext

from raymerge.artifacts import Artifact, Key, load_model, save_model
from raymerge.data.prepare import ITEMS_FILE
from raymerge.data.sequences import Sequences
from raymerge.errors import ResourceError, ScoreError
from raymerge.events import Message, Progress
from raymerge.models.encoder import SequenceEncoder
from raymerge.models.objectives import OBJECTIVES, ObjectiveConfig, build_objective
from raymerge.stages.context import Context, TrackedDraft
from raymerge.stages.train import Training, train
from raymerge.training import loop
from raymerge.training.config import TrainingConfig

pytestmark = [pytest.mark.usefixtures("capacity"), pytest.mark.chaos]

NEXT_ITEM = ObjectiveConfig("next_item")


def test_worker_killed_in_mid_epoch_does_not_change_the_model(
    make_context: MakeContext, data: Artifact, partitions: list[Sequences]
) -> None:
    """Equal to the plain loop in this process, bit for bit."""
    settings = TrainingConfig(epochs=3, batch_size=2, stride=1, patience=0, seed=3)  # an epoch takes seconds
    killed: list[int] = []

    def kill(message: Message) -> None:
        if isinstance(message, Progress) and message.done > 1 and message.done % 1 and not killed:
            killed.extend(named("ray::RayTrainWorker"))
            for pid in killed:
                os.kill(pid, signal.SIGKILL)

    context = make_context("out", emit=kill)
    made = train(context, [Training("train/one", NEXT_ITEM, settings, data, None, 1, 1)])["train/one"]
    assert len(killed) == 1
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(settings.seed)
    encoder = SequenceEncoder(data.counts["items"], context.config.encoder)
    alone = loop.train(encoder, build_objective(NEXT_ITEM, encoder.config), partitions, settings)
    torch.set_num_threads(threads)
    assert [report["epoch"] for report in made.json("history.json")] == [1, 2, 3]
    assert [figures(report) for report in made.json("history.json")] == [figures(asdict(r)) for r in alone.history]
    found = dict(load_model(made.url).named_parameters())
    assert all(torch.equal(found[name], value) for name, value in alone.best.items())


def figures(report: dict) -> dict:
    return {key: value for key, value in report.items() if not key.endswith("seconds")}


@pytest.fixture
def hungry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register the objectives of `hungry` for a test."""
    for name, kind in HUNGRY.items():
        monkeypatch.setitem(OBJECTIVES._entries, name, kind)


@pytest.mark.usefixtures("hungry")
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_out_of_memory_continue_in_smaller_chunks(
    make_context: MakeContext, data: Artifact, workers: int
) -> None:
    settings = TrainingConfig(epochs=2, batch_size=64, precision="float32")
    notes: list[str] = []

    def note(message: Message) -> None:
        notes.append(message.note if isinstance(message, Progress) else "")

    context = make_context("out", "encoder.dropout=0", emit=note)
    trainings = [Training("train/usual", NEXT_ITEM, settings, data, None, workers, 1)]
    trainings += [Training("train/hungry", Hungry("hungry"), settings, data, None, workers, 1)]
    usual, hungry = (load_model(made.url).state_dict() for made in train(context, trainings).values())
    for name, expected in usual.items():
        torch.testing.assert_close(hungry[name], expected, rtol=1e-4, atol=1e-5, msg=name)
    assert any("in smaller chunks after running out of memory" in text for text in notes)


@pytest.mark.usefixtures("hungry")
def test_workers_out_of_memory_even_in_smaller_chunks_are_given_up(make_context: MakeContext, data: Artifact) -> None:
    training = Training("train/insatiable", Hungry("insatiable"), TrainingConfig(epochs=1), data, None, 1, 1)
    with pytest.raises(ResourceError, match=r"train/insatiable: .* in chunks of 1/8 .*lower training.batch_size"):
        train(make_context("out"), [training])


def test_nan_loss_stops_its_model_and_saves_the_batch_while_the_other_continues(
    make_context: MakeContext, data: Artifact, models: dict[str, Artifact]
) -> None:
    context = make_context("out", "cluster.keep_going=true")
    settings = TrainingConfig(epochs=2, batch_size=64)
    starts = {"good": models["first"], "bad": poisoned(context, data, models["second"])}
    trainings = [Training(f"train/{name}", NEXT_ITEM, settings, data, start, 1, 1) for name, start in starts.items()]
    with pytest.raises(ScoreError, match=r"train/bad: the loss of epoch 1, step 1 of \d+, is nan") as error:
        train(context, trainings)
    good, bad = (context.find(training.run, training.key(context.config)) for training in trainings)
    assert good is not None and good.counts["epochs"] == 2
    assert bad is None
    found = re.search(r"its batch is in ([^\s,]+), one file per rank", str(error.value))
    assert found is not None
    with safe_open(f"{found[1]}/rank-0.safetensors", "pt") as file:
        assert file.metadata()["step"] == "1"
        assert file.get_tensor("windows").shape[0] == len(file.get_tensor("seeds")) > 0
    mended = [trainings[0], replace(trainings[1], start=models["second"])]
    assert set(train(context, mended)) == {"train/good", "train/bad"}


def poisoned(context: Context, data: Artifact, model: Artifact) -> Artifact:
    """The model with one NaN parameter."""

    def spoil(draft: TrackedDraft) -> None:
        module = load_model(model.url)
        torch.nn.init.constant_(module.output_bias[:1], torch.nan)
        save_model(module, draft.folder / "model", items_url=data.file(ITEMS_FILE))

    return context.make("spoilt", Key("train", {"spoilt": model.digest}), spoil)
