"""Stages on Ray give what one process gives, whatever the number of processes and whoever dies on the way."""

import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from partitions import concatenate
from processes import named

from raymerge.artifacts import Artifact, load_diagonal, load_model, save_model
from raymerge.data.prepare import ITEMS_FILE
from raymerge.data.sequences import Sequences, read_items, read_partition
from raymerge.data.split import examples
from raymerge.errors import ConfigError, InputError, ResourceError, ScoreError
from raymerge.evaluation.metrics import per_user
from raymerge.evaluation.ranking import rank_targets
from raymerge.merging.choice import choose
from raymerge.merging.held_out import FoldedScore, folded
from raymerge.merging.methods import MergeConfig, MergeSetting, merge
from raymerge.models.objectives import ObjectiveConfig
from raymerge.runtime import Capacity, ClusterConfig, cluster_capacity
from raymerge.stages.context import Context, Making
from raymerge.stages.evaluate import evaluate, metrics_of
from raymerge.stages.fisher import fisher
from raymerge.stages.markets import divide
from raymerge.stages.merge import merge as merge_stage
from raymerge.stages.prepare import partitions_of, prepare
from raymerge.stages.train import Training, model_digest, seeded, train, train_base
from tests.stages.conftest import MakeContext

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


def test_markets_of_a_column_are_named_and_divided_by_it(make_context: MakeContext, log: Path, tmp_path: Path) -> None:
    rows = pq.read_table(log)
    shops = pa.array(["New York" if user % 3 else "Rome" for user in rows["user"].to_pylist()])
    pq.write_table(rows.append_column("shop", shops), tmp_path / "shops.parquet")
    changes = ["prepare.market=shop", "after_merge=null", "members={next_item: {name: next_item}}"]
    context = make_context("out", *changes, 'markets={by: column, names: ["Rome", "New York"]}')
    assert list(context.config.all_members) == ["next_item-Rome", "next_item-New-York"]
    whole = prepare(context, [str(tmp_path / "shops.parquet")])
    lessons = divide(context, whole)
    for name, rest in (("next_item-Rome", [0]), ("next_item-New-York", [1, 2])):
        parts = [read_partition(url) for url in partitions_of(lessons.members[name])]
        users = [user for part in parts for user in part.users.to_pylist()]
        assert users and {user % 3 for user in users} == set(rest), "users were given to shops by their ids"
    other = make_context("out", *changes, 'markets={by: column, names: ["Rome", "Paris"]}')
    with pytest.raises(InputError, match="the log has the markets New York, Rome, markets.names lists Rome, Paris"):
        divide(other, whole)
    with pytest.raises(InputError, match="are one market's data, which are not divided again: --set markets=null"):
        divide(context, lessons.members["next_item-Rome"])


def test_a_market_with_too_little_to_learn_from_is_named(make_context: MakeContext, tmp_path: Path) -> None:
    rows = [(user, item, "old" if item < 8 else "new") for user in range(5) for item in range(10)]
    text = "user,item,timestamp,shop\n" + "".join(f"{user},{item},{item},{shop}\n" for user, item, shop in rows)
    (tmp_path / "log.csv").write_text(text)
    changes = ["prepare.market=shop", "after_merge=null", "markets={by: column, names: [old, new]}"]
    context = make_context("out", *changes)
    with pytest.raises(
        InputError, match="market-new has no user with 2 items to learn from beside those held out, of 5 interactions"
    ):
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


def test_given_coefficients_are_not_searched() -> None:
    asked: list[tuple[MergeSetting, tuple[float, ...]]] = []

    def score(setting: MergeSetting, point: tuple[float, ...]) -> FoldedScore:
        asked.append((setting, point))
        return folded(torch.full((100,), 0.5 if setting.normalise == "model" else 0.25), torch.arange(100))

    chosen = choose(score, MergeConfig(coefficients=(1.0, 3.0)), members=2)
    setting, point = chosen.trial
    assert {point for _, point in asked} == {(1.0, 3.0)}
    assert (setting.normalise, point, chosen.score, chosen.held_out_gain) == ("model", (1.0, 3.0), 0.5, 0.25)
    with pytest.raises(ConfigError, match="one for each of 3 models, got 2"):
        MergeConfig(coefficients=(1.0, 3.0)).check_members(3)


def test_plans_of_the_very_same_model_are_trained_once(make_context: MakeContext, data: Artifact) -> None:
    done: list[str] = []
    context = make_context("out", "training.epochs=1", emit=lambda message: done.append(message.run))
    assert context.config.base is not None
    plan = Training("train/a", context.config.base, context.config.training, data, None, 1, 1)
    trained = train(context, [plan, replace(plan, run="train/b")])
    assert trained["train/a"].url == trained["train/b"].url
    assert {"train/a", "train/b"} <= set(done)


def test_a_choice_that_is_luck_is_not_made() -> None:
    noise = torch.Generator().manual_seed(1)
    plain, means = torch.rand(1000, generator=noise), []

    def score(setting: MergeSetting, point: tuple[float, ...]) -> FoldedScore:
        is_plain = setting.normalise == "none" and point[0] == point[1]
        gains = plain if is_plain else plain - 0.002 + 0.1 * torch.randn(1000, generator=noise)
        means.append(float(gains.mean()))
        return folded(gains, torch.arange(1000))

    chosen = choose(score, MergeConfig(coefficients="search"), members=2)
    assert max(means) > means[0]
    assert (chosen.trial, chosen.score) == ((MergeSetting(), (0.5, 0.5)), pytest.approx(float(plain.double().mean())))
    assert chosen.held_out_gain < 0


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
    """Once a checkpoint is there."""
    checkpoints = Path(context.output.url) / "checkpoints"
    while not list(checkpoints.glob("*/*/state.json")):
        time.sleep(0.02)
    worker, *_ = named("ray::RayTrainWorker")
    os.kill(worker, signal.SIGKILL)


def test_loss_that_is_not_a_number_ends_the_training_in_one_line(
    make_context: MakeContext, data: Artifact, models: dict[str, Artifact]
) -> None:
    context = make_context("out")

    def spoil(making: Making) -> None:
        module = load_model(models["first"].url)
        module.item_embedding.weight.data[5] = float("nan")
        save_model(module, making.folder / "model", items_url=data.file(ITEMS_FILE))

    start = context.make("train", "diverged", spoil, inputs={}, configuration={})
    plan = Training(
        "train/next", ObjectiveConfig("next_item"), context.config.training, data, start, workers=1, threads=1
    )
    with pytest.raises(ScoreError, match="lower training.learning_rate"):
        train(context, [plan])


def test_more_gpus_than_the_cluster_has_are_refused(capacity: Capacity) -> None:
    with pytest.raises(ResourceError, match=r"cluster\.gpus is 8, but the cluster has 0 GPUs"):
        cluster_capacity(ClusterConfig(gpus=8))


def test_no_two_trainings_of_two_runs_share_a_seed(make_context: MakeContext) -> None:
    configs = [make_context("out", f"seed={seed}").config for seed in (0, 1)]
    seeds = {seeded(config, config.training, member=member).seed for config in configs for member in range(5)}
    assert len(seeds) == 10
