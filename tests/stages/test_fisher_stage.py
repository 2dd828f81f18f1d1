"""Fisher diagonals on Ray equal those of one process bit for bit, whatever the processes and whichever die."""

import os
import random
import shutil
import signal
import threading
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from partitions import concatenate
from processes import named
from stages.contexts import MakeContext

import raymerge.fisher
from raymerge.artifacts import Artifact, Key, load_diagonal, load_model
from raymerge.data.sequences import Sequences, read_partition
from raymerge.data.split import examples
from raymerge.errors import InputError
from raymerge.events import Event, Progress
from raymerge.stages.context import Context, TrackedDraft
from raymerge.stages.fisher import fisher
from raymerge.stages.inputs import partitions_of

pytestmark = pytest.mark.usefixtures("capacity")


def estimate(context: Context, model: Artifact, partitions: list[Sequences]) -> dict[str, torch.Tensor]:
    """The diagonal over all users of some partitions, in this process."""
    found, settings = examples(concatenate(partitions), "validation", 10), context.config.fisher
    sampled = {"estimator": settings.estimator, "samples": settings.samples}
    return raymerge.fisher.estimate(load_model(model.url), found.histories, keys=found.keys, **sampled)


def assert_close(url: str, expected: dict[str, torch.Tensor]) -> None:
    for name, value in load_diagonal(url).items():
        torch.testing.assert_close(value, expected[name].float(), rtol=1e-4, atol=1e-5 * float(expected[name].max()))


def digests(diagonals: dict[str, Artifact]) -> list[str]:
    return [one.digest + one.manifest["files"]["diagonal.safetensors"] for one in diagonals.values()]


def test_sampled_diagonal_equals_that_of_one_process_and_emits_its_means_and_speed(
    make_context: MakeContext, data: Artifact, models: dict[str, Artifact], partitions: list[Sequences]
) -> None:
    messages: list[Event | Progress] = []
    context = make_context("out", "fisher.estimator=model", "fisher.samples=5", emit=messages.append)
    with context.pool() as pool:
        diagonal = fisher(context, pool, data, {"first": models["first"]})["first"]
    assert_close(diagonal.url, estimate(context, models["first"], partitions))
    assert diagonal.counts["users"] == 150
    means = {message.key: message.value for message in messages if isinstance(message, Event)}
    for name, value in load_diagonal(diagonal.url).items():
        assert means[f"mean.{name}"] == pytest.approx(float(value.double().mean()))
    notes = [message.note for message in messages if isinstance(message, Progress)]
    assert sum(note.endswith("users/s") for note in notes) == 3


def test_bits_are_the_same_for_any_number_of_actors_and_threads_and_whoever_is_killed(
    make_context: MakeContext, data: Artifact, models: dict[str, Artifact], partitions: list[Sequences]
) -> None:
    found = []
    for actors, threads, kills in ((1, 1, 0), (2, 2, 1), (5, 1, 2)):
        settings = (f"cluster.actors={actors}", f"cluster.actor_threads={threads}")
        context = make_context(f"actors-{actors}", *settings)
        killer = Killer(Path(context.output.url) / "fisher-shard", kills, shards=6)
        killer.start()
        with context.pool() as pool:
            diagonals = fisher(context, pool, data, models)
        killer.join()
        assert killer.killed == kills
        found.append(digests(diagonals))
    assert found[1:] == found[:1] * 2
    assert_close(diagonals["first"].url, estimate(context, models["first"], partitions))


class Killer(threading.Thread):
    """Kills a busy process, by its pid, at random moments: when certain numbers of shards are committed."""

    def __init__(self, folder: Path, kills: int, *, shards: int) -> None:
        super().__init__()
        self._folder, self._random = folder, random.Random(kills)
        self._moments = sorted(self._random.sample(range(shards - 1), kills))
        self.killed = 0

    def run(self) -> None:
        for moment in self._moments:
            while len(list(self._folder.glob("*/manifest.json"))) < moment:
                time.sleep(0.005)
            while not (busy := named("ray::Worker.run")):
                time.sleep(0.005)
            os.kill(self._random.choice(busy), signal.SIGKILL)
            self.killed += 1


def test_data_with_new_partitions_reuse_the_shards_of_the_old_ones(
    make_context: MakeContext, data: Artifact, models: dict[str, Artifact]
) -> None:
    context, first = make_context("out"), {"first": models["first"]}
    with context.pool() as pool:
        fisher(context, pool, data, first)
        made = {shard.parent.name: shard.stat().st_mtime_ns for shard in shards(context)}
        grown = added_to(context, data)
        diagonals = fisher(context, pool, grown, first)
    after = {shard.parent.name: shard.stat().st_mtime_ns for shard in shards(context)}
    assert len(made) == 3
    assert len(after) == 4
    assert made.items() <= after.items()
    expected = estimate(context, models["first"], [read_partition(url) for url in partitions_of(grown)])
    assert_close(diagonals["first"].url, expected)


def shards(context: Context) -> list[Path]:
    return list(Path(context.output.url).glob("fisher-shard/*/sums.safetensors"))


def added_to(context: Context, data: Artifact) -> Artifact:
    """The data with more users, in a new partition."""

    def add(draft: TrackedDraft) -> None:
        shutil.copytree(data.url, draft.folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("manifest.json"))
        table = pq.read_table(draft.folder / "partitions" / "part-00000.parquet").slice(0, 20)
        pq.write_table(table, draft.folder / "partitions" / "part-00003.parquet")
        draft.counts.update(data.counts)

    return context.make("prepare", Key("prepare", {"more": data.digest}), add)


def test_data_without_a_user_to_validate_is_refused(
    make_context: MakeContext, data: Artifact, models: dict[str, Artifact]
) -> None:
    context = make_context("out", "cluster.actors=1")

    def empty(draft: TrackedDraft) -> None:
        (draft.folder / "partitions").mkdir()
        table = pq.read_table(partitions_of(data)[0]).slice(0, 0)
        pq.write_table(table, draft.folder / "partitions" / "part-00000.parquet")

    nobody = context.make("prepare", Key("prepare", {}), empty)
    with context.pool() as pool, pytest.raises(InputError, match="no user has 3 items or more"):
        fisher(context, pool, nobody, models)
