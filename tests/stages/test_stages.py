"""Stages on Ray give the results of one process, whatever the number of processes and whichever die."""

import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from partitions import concatenate
from processes import named
from stages.contexts import MakeContext

from raymerge.artifacts import Artifact, Key, load_diagonal, load_model, save_model
from raymerge.data.prepare import ITEMS_FILE
from raymerge.data.sequences import Items, Sequences, read_items, read_partition
from raymerge.data.split import examples
from raymerge.errors import InputError, LostError, ResourceError, ScoreError
from raymerge.evaluation.metrics import per_user
from raymerge.evaluation.ranking import rank_targets
from raymerge.execution.capacity import Capacity, ClusterConfig
from raymerge.execution.deadline import Deadline
from raymerge.execution.runtime import cluster_capacity
from raymerge.files import storage
from raymerge.merging.methods import merge
from raymerge.models.objectives import ObjectiveConfig
from raymerge.stages.context import Context, TrackedDraft
from raymerge.stages.evaluate import evaluate, metrics_of
from raymerge.stages.fisher import fisher
from raymerge.stages.inputs import model_digest, partitions_of
from raymerge.stages.markets import divide
from raymerge.stages.merge import merge as merge_stage
from raymerge.stages.merge import merged_items
from raymerge.stages.prepare import prepare
from raymerge.stages.train import Training, seeded, train, train_base

pytestmark = pytest.mark.usefixtures("capacity")


def test_metrics_equal_those_of_one_process(
    make_context: MakeContext, data: Artifact, models: dict[str, Artifact], partitions: list[Sequences]
) -> None:
    context = make_context("out")
    with context.pool() as pool:
        ranks = evaluate(context, pool, data, models)
    settings = context.config.evaluation
    found = metrics_of(ranks["second"])
    asked = examples(concatenate(partitions), "test", 10)
    counts = read_items(data.file(ITEMS_FILE)).counts
    expected = rank_targets(load_model(models["second"].url), asked, config=settings, counts=counts)
    for ranking in settings.rankings:
        for metric, values in per_user(expected[ranking], settings.ks).items():
            assert found[f"{ranking}.{metric}"] == pytest.approx(float(values.mean()))


def test_data_of_a_part_of_a_catalogue_are_tested_among_its_items(
    make_context: MakeContext, log: Path, data: Artifact, models: dict[str, Artifact], tmp_path: Path
) -> None:
    rows = pq.read_table(log)
    pq.write_table(rows.filter(pc.match_substring_regex(rows["item"], "[0-4]$")), tmp_path / "half.parquet")
    context = make_context("out", f"prepare.catalogue={data.url}")
    half = prepare(context, [str(tmp_path / "half.parquet")])
    items = read_items(half.file(ITEMS_FILE))
    assert items.offered is not None
    assert 0 < items.offered.sum() < len(items)
    with context.pool() as pool:
        found = metrics_of(evaluate(context, pool, half, models)["second"])
    parts = concatenate([read_partition(url) for url in partitions_of(half)])
    settings, module = context.config.evaluation, load_model(models["second"].url)
    for offered, same in ((items.offered, True), (None, False)):
        ranks = rank_targets(module, examples(parts, "test", 10), config=settings, counts=items.counts, offered=offered)
        ndcg = float(per_user(ranks["full"], settings.ks)["ndcg@10"].mean())
        assert (found["full.ndcg@10"] == pytest.approx(ndcg)) == same


def test_stage_of_the_driver_is_given_up_after_the_deadline(make_context: MakeContext, log: Path) -> None:
    late = replace(make_context("out"), deadline=Deadline(0.0))
    with pytest.raises(ResourceError, match="prepare was not done within 0 hours; run the same command again"):
        prepare(late, [str(log)])
    assert prepare(make_context("out"), [str(log)]).counts["users"] > 100


def test_markets_of_a_column_are_named_and_divided_by_it(make_context: MakeContext, log: Path, tmp_path: Path) -> None:
    rows = pq.read_table(log)
    shops = pa.array(["New York" if user % 3 else "Rome" for user in rows["user"].to_pylist()])
    pq.write_table(rows.append_column("shop", shops), tmp_path / "shops.parquet")
    changes = ["prepare.market=shop", "after_merge=null", "members={next_item: {name: next_item}}"]
    context = make_context("out", *changes, 'markets={by: column, names: ["Rome", "New York"]}')
    assert list(context.config.all_members) == ["next_item-Rome", "next_item-New-York"]
    whole = prepare(context, [str(tmp_path / "shops.parquet")])
    parts_of_data = divide(context, whole)
    for name, rest in (("next_item-Rome", [0]), ("next_item-New-York", [1, 2])):
        histories = [read_partition(url) for url in partitions_of(parts_of_data.members[name])]
        users = [user for part in histories for user in part.users.to_pylist()]
        assert users and {user % 3 for user in users} == set(rest), "users were given to shops by their ids"
    other = make_context("out", *changes, 'markets={by: column, names: ["Rome", "Paris"]}')
    with pytest.raises(InputError, match="the log has the markets New York, Rome, but markets.names lists Rome, Paris"):
        divide(other, whole)
    with pytest.raises(
        InputError, match="is the data of one market, which cannot be divided again: --set markets=null"
    ):
        divide(context, parts_of_data.members["next_item-Rome"])


@pytest.mark.parametrize(
    ("new", "expected"),
    [
        ({7}, r"no user of market-new has 2 training items besides the held-out ones \(5 interactions\): leave"),
        ({8, 9}, "market-old has no validation item for any of its 5 users: leave the market out"),
    ],
)
def test_a_market_with_too_little_to_train_or_validate_on_is_named(
    make_context: MakeContext, tmp_path: Path, new: set[int], expected: str
) -> None:
    rows = [(user, item, "new" if item in new else "old") for user in range(5) for item in range(10)]
    text = "user,item,timestamp,shop\n" + "".join(f"{user},{item},{item},{shop}\n" for user, item, shop in rows)
    (tmp_path / "log.csv").write_text(text)
    changes = ["prepare.market=shop", "after_merge=null", "markets={by: column, names: [old, new]}"]
    context = make_context("out", *changes)
    with pytest.raises(InputError, match=expected):
        divide(context, prepare(context, [str(tmp_path / "log.csv")]))


def test_merge_stage_gives_the_closed_form_of_its_choice(
    make_context: MakeContext, data: Artifact, models: dict[str, Artifact]
) -> None:
    context = make_context("out", "merge.budget=8", "merge.normalise=model")
    with context.pool() as pool:
        diagonals = fisher(context, pool, data, models)
        merged = merge_stage(context, pool, [data], models, diagonals, context.config.merge)
    expected = merge(
        [load_model(model.url) for model in models.values()],
        [load_diagonal(diagonal.url) for diagonal in diagonals.values()],
        coefficients=merged.counts["coefficients"],
        normalise="model",
    )
    for name, value in load_model(merged.url).state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_counts_of_a_merge_are_of_all_data_each_once() -> None:
    markets = torch.tensor([[3, 0, 1], [0, 2, 5]])
    of_market = [Items(pa.array(["a", "b", "c"]), counts, counts > 0) for counts in markets]
    merged = merged_items([*of_market, *of_market])  # two members of each
    assert merged.counts.tolist() == [3, 2, 6] and merged.offered.tolist() == [True] * 3
    assert merged_items(of_market[:1] * 3).counts.tolist() == [3, 0, 1]


def test_a_merge_goes_only_a_step_from_the_start(
    make_context: MakeContext, data: Artifact, models: dict[str, Artifact]
) -> None:
    context = make_context("out", "merge={method: average, coefficients: equal, step: 0.75}")
    start, *members = models
    with context.pool() as pool:
        merged = merge_stage(
            context,
            pool,
            [data],
            {name: models[name] for name in members},
            {},
            context.config.merge,
            start=models[start],
        )
    origin, *ends = (dict(load_model(model.url).named_parameters()) for model in models.values())
    for name, value in load_model(merged.url).named_parameters():
        expected = 0.25 * origin[name] + 0.75 * sum(end[name] for end in ends) / len(ends)
        torch.testing.assert_close(value, expected)
    assert merged.manifest["inputs"]["start"] == model_digest(models[start])


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
