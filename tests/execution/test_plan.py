"""The plan: more data takes longer, more cores do not; what cannot fit is named with a remedy."""

import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raymerge.commands.cluster import run_plan
from raymerge.data import demo
from raymerge.data.prepare import PrepareConfig
from raymerge.data.size import DataSize, measure
from raymerge.errors import ResourceError
from raymerge.execution.capacity import Capacity, Node
from raymerge.execution.plan import Plan, make_plan, summary
from raymerge.execution.runtime import cluster_nodes
from raymerge.formatting import describe
from raymerge.recipes import RECIPES, configure

GIB = 2**30
LAPTOP = Node(cpus=2, gpus=0, memory_bytes=8 * GIB)
SHOP = DataSize(users=20_000, items=5_000, interactions=600_000)
MORE = (
    replace(SHOP, users=40_000, interactions=1_200_000),  # more users
    replace(SHOP, interactions=900_000),  # longer histories
    replace(SHOP, items=15_000),
)


def plan(*overrides: str, recipe: str = "default", size: DataSize = SHOP, nodes: tuple[Node, ...] = (LAPTOP,)) -> Plan:
    return make_plan(configure(recipe, overrides), size, nodes)


def seconds(found: Plan) -> dict[str, float]:
    return {stage.name: stage.seconds for stage in found.stages}


@pytest.mark.parametrize(
    ("recipe", "measured_s", "stages"),
    [
        ("demo", 217, {"train/members": 60, "fisher": 62}),  # an idle machine: 190 to 217 s in all
        ("ml-1m", None, {"train/after": 750}),  # jobs/README.md; the other stages shared the cores
    ],
)
def test_estimate_is_near_what_was_measured(recipe: str, measured_s: float | None, stages: dict[str, float]) -> None:
    size = RECIPES[recipe].size
    assert size is not None
    found = plan(recipe=recipe, size=size)
    assert measured_s is None or found.seconds == pytest.approx(measured_s, rel=0.25)
    for name, expected in stages.items():
        assert seconds(found)[name] == pytest.approx(expected, rel=0.25), name
    assert not found.problems


def test_a_second_round_takes_as_long_as_the_first_and_gives_the_control_more_epochs() -> None:
    size = RECIPES["ml-1m"].size
    assert size is not None
    one, two = (seconds(plan(f"rounds={rounds}", recipe="ml-1m", size=size)) for rounds in (1, 2))
    assert (two["train/members"], two["fisher"]) == (2 * one["train/members"], 2 * one["fisher"])
    control = configure("ml-1m", ("rounds=2",)).control_training.epochs
    assert control == 4 + 6 and one["train/after"] < two["train/after"] < one["train/after"] * control / 6
    assert two["train/base"] == one["train/base"]


def test_command_prints_a_row_per_stage_and_refuses_the_impossible(
    capacity: Capacity, capsys: pytest.CaptureFixture[str]
) -> None:
    run_plan(None, None, recipe="ml-1m", overrides=("cluster.actors=1",), address=None)  # fits on any machine
    said = capsys.readouterr().out
    assert said.startswith(f"6,040 users, 3,416 items, 999,611 interactions on {describe(cluster_nodes())}")
    for stage in (
        "prepare",
        "train/base",
        "train/members",
        "fisher",
        "merge",
        "train/after",
        "evaluate",
        "report",
        "all",
    ):
        assert stage in said
    with pytest.raises(ResourceError, match=r"cluster\.gpus is 4, but the cluster has 0 GPUs"):
        run_plan(None, None, recipe="ml-1m", overrides=("cluster.gpus=4",), address=None)


@given(larger=st.sampled_from(MORE), cpus=st.integers(1, 64), nodes=st.integers(1, 8))
@settings(max_examples=25, deadline=None)
def test_more_data_never_takes_less_time_or_memory(larger: DataSize, cpus: int, nodes: int) -> None:
    machines = (Node(cpus, 0, 64 * GIB),) * nodes
    before, after = plan(nodes=machines), plan(size=larger, nodes=machines)
    for old, new in zip(before.stages, after.stages, strict=True):
        assert new.seconds >= old.seconds, old.name
        assert new.memory_bytes >= old.memory_bytes, old.name


@given(cpus=st.integers(1, 64), more=st.integers(1, 64))
@settings(max_examples=25, deadline=None)
def test_more_cores_never_take_longer(cpus: int, more: int) -> None:
    few, many = plan(nodes=(Node(cpus, 0, 64 * GIB),)), plan(nodes=(Node(cpus + more, 0, 64 * GIB),))
    assert many.seconds <= few.seconds * 1.0001


@pytest.mark.parametrize(
    "setting", ["training.epochs=48", "encoder.dim=128", "fine_tuning.epochs=12", "merge.budget=96"]
)
def test_more_work_takes_longer(setting: str) -> None:
    search = "merge.coefficients=search"
    assert plan(search, setting).seconds > plan(search).seconds > plan().seconds


def test_the_average_is_tried_with_each_step_too() -> None:
    def two_more_steps(rounds: int) -> float:
        least, most = (plan(f"rounds={rounds}", f"merge.step={step}") for step in ("0.5", "search"))
        return seconds(most)["merge"] - seconds(least)["merge"]

    assert two_more_steps(rounds=2) == pytest.approx(1.5 * two_more_steps(rounds=1)), "average and merges alike"


@pytest.mark.parametrize(
    ("estimator", "dearer"), [("target", "rank"), ("rank", "exact"), ("model", "exact"), ("hutchinson", "model")]
)
def test_fisher_costs_by_its_probes(estimator: str, dearer: str) -> None:
    def fisher(name: str) -> float:
        samples = {"rank": 8, "model": 10, "hutchinson": 1}.get(name)
        return seconds(plan(f"fisher.estimator={name}", f"fisher.samples={samples or 'null'}"))["fisher"]

    assert fisher(estimator) < fisher(dearer)


def test_a_sampled_softmax_is_cheaper_where_the_catalogue_is_larger_than_the_sample() -> None:
    def training(items: int, **settings: object) -> float:
        base = json.dumps({"name": "next_item", "settings": settings})
        return seconds(plan(f"base={base}", size=replace(SHOP, items=items)))["train/base"]

    assert training(10**6, loss="sampled") < training(10**6) / 10
    assert training(5000, loss="sampled") == training(5000)


def test_processes_and_shares_are_those_that_the_run_uses() -> None:
    found = {stage.name: stage for stage in plan(nodes=(LAPTOP,) * 3).stages}
    assert found["fisher"].processes == 6
    assert found["train/base"].processes == 2
    assert found["train/members"].processes == 3
    assert found["train/members"].resources == {"CPU": 1.0}
    shared = {stage.name: stage for stage in plan(nodes=(Node(16, 1, 64 * GIB),)).stages}
    assert shared["train/members"].resources == {"GPU": 0.33, "CPU": 1.0}


@pytest.mark.parametrize(
    ("overrides", "nodes", "size", "expected"),
    [
        (["cluster.gpus=4"], (LAPTOP,), SHOP, r"cluster\.gpus is 4, but the cluster has 0 GPUs"),
        ([], (Node(2, 0, 1.5 * GIB),), SHOP, r"train/members needs about .* on a node of 1\.5 GiB"),
        ([], (Node(64, 0, 16 * GIB),), SHOP, r"fisher needs about .*set cluster\.actors=\d+"),
        (["cluster.deadline_hours=0.01"], (LAPTOP,), SHOP, r"is more than the deadline of 0\.01 hours"),
        ([], (LAPTOP,), DataSize(10**8, 10**7, 10**9), r"train/base needs about"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_remedy(
    overrides: list[str], nodes: tuple[Node, ...], size: DataSize, expected: str
) -> None:
    with pytest.raises(ResourceError, match=expected) as refused:
        plan(*overrides, size=size, nodes=nodes).check()
    assert "\n" not in str(refused.value)


def test_work_of_the_driver_must_fit_on_its_own_node_only() -> None:
    head, workers = Node(2, 0, 64 * GIB), (Node(2, 0, 4 * GIB, has_driver=False),) * 2
    catalogue = replace(SHOP, items=5_000_000)

    def refused(node: Node) -> set[str]:
        return {problem.partition(" ")[0] for problem in plan(size=catalogue, nodes=(node, *workers)).problems}

    assert "report" not in refused(head) and "evaluate" in refused(head)
    assert "report" in refused(replace(head, memory_bytes=4 * GIB))


def test_advice_on_actors_is_enough() -> None:
    node = Node(64, 0, 16 * GIB)
    with pytest.raises(ResourceError) as refused:
        plan(nodes=(node,)).check()
    advised = str(refused.value).rpartition("cluster.actors=")[2].partition(";")[0]
    plan(f"cluster.actors={advised}", nodes=(node,)).check()


def test_estimates_are_labelled_with_their_source() -> None:
    found = plan(nodes=(Node(8, 1, 64 * GIB),))
    assert any("measured on one machine with 2 CPU cores" in note for note in found.notes)
    assert any("no rate was measured on a GPU" in note for note in found.notes)
    assert "estimate" in summary(found)
    assert "\n" not in summary(found)


def test_size_of_a_log_is_counted(tmp_path: Path) -> None:
    pq.write_table(demo.generate(seed=3, users=200, items=100), tmp_path / "log.parquet")
    table = pq.read_table(tmp_path / "log.parquet")
    found = measure([str(tmp_path / "log.parquet")], PrepareConfig())
    users, items = (len(pa.compute.unique(table[name])) for name in ("user", "item"))
    assert found == DataSize(users, items, len(table))


def test_large_log_is_estimated_from_its_beginning(tmp_path: Path) -> None:
    lines = "".join(f"u{n // 10:06d},i{n % 50:03d},{n:07d}\n" for n in range(400_000))
    (tmp_path / "log.csv").write_text("user,item,timestamp\n" + lines)
    found = measure([str(tmp_path / "log.csv")] * 2, PrepareConfig(), sample_rows=200_000)
    assert found.interactions == pytest.approx(800_000, rel=0.2)
    assert found.items == 50


def test_demo_has_the_size_that_its_recipe_states() -> None:
    table = demo.generate()
    size = RECIPES["demo"].size
    assert size is not None
    assert size.interactions == pytest.approx(len(table), rel=0.001)
    assert size.users == len(pa.compute.unique(table["user"]))


def test_plan_of_every_recipe_and_without_optional_stages() -> None:
    short = plan("base=null", "after_merge=null", "fisher.estimator=target")
    assert [stage.name for stage in short.stages] == [
        "prepare",
        "train/members",
        "fisher",
        "merge",
        "evaluate",
        "report",
    ]
    for name in RECIPES:
        assert plan(recipe=name).seconds > 0
