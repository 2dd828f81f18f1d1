"""A small pipeline on real Ray: its results, what it does not do twice, and what survives a kill."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import processes
import pytest
import torch
from mlflow import MlflowClient
from object_store import FAULTS, Faults
from pipeline_runs import SMALL, check_mlflow, report_in, start, without_times, write_log

from raymerge import load_diagonal, load_model
from raymerge.artifacts import Artifact, Output
from raymerge.cli import GRACE_S
from raymerge.commands.stages import run_evaluate
from raymerge.data.sequences import read_items
from raymerge.errors import ArtifactError
from raymerge.evaluation import report_schema
from raymerge.evaluation.validation import SCORE
from raymerge.events import Event, Progress
from raymerge.execution.capacity import Capacity
from raymerge.execution.deadline import Deadline
from raymerge.files import storage
from raymerge.pipeline import Result, run
from raymerge.recipes import configure
from raymerge.stages.context import Context
from raymerge.training.distributed import STATE_NUMBERS


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_log(tmp_path_factory.mktemp("log"))


def context(output: Path | str, *overrides: str, messages: list[Event | Progress] | None = None) -> Context:
    kept = [] if messages is None else messages
    return Context(configure("demo", (*SMALL, *overrides)), Output(str(output)), kept.append, Deadline(600))


@pytest.fixture(scope="module")
def first(capacity: Capacity, log: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result, list]:
    output, messages = tmp_path_factory.mktemp("run") / "out", []
    return output, run(context(output, messages=messages), [str(log)]), messages


def test_report_has_all_models_with_intervals_and_comparisons(first: tuple[Path, Result, list]) -> None:
    _, result, _ = first
    content = report_schema.read(result.report.file("report.json"))
    names = [row["name"] for row in content["rows"]]
    members = ["next_item", "cl4srec", "duorec"]
    merges = ["average", "fisher", "fine-tuned", "control", "ensemble"]
    assert names == ["base", *members, "mean of the members", *merges]
    for row in content["rows"]:
        for metrics in row["metrics"].values():
            assert all(value["low"] <= value["mean"] <= value["high"] for value in metrics.values())
    assert 60 < content["protocol"]["validation_users"] < 140 < content["protocol"]["users"] == 300
    assert len(content["comparisons"]) == 10
    assert all(one["p_holm"] >= one["p"] for one in content["comparisons"])


def test_report_groups_users_by_the_members_that_hit_them(first: tuple[Path, Result, list]) -> None:
    content = report_schema.read(first[1].report.file("report.json"))
    assert sum(group["users"] for group in content["overlap"]["groups"]) == content["protocol"]["users"]
    rows = {row["name"]: row["metrics"]["full"]["hr@10"]["mean"] for row in content["rows"]}
    for name in ("base", "fisher", "ensemble"):
        hits = sum(group["hits"][name] for group in content["overlap"]["groups"])
        assert hits == round(rows[name] * content["protocol"]["users"])
    by = {group["members"]: group["users"] for group in content["overlap"]["groups"]}
    alone = sum(by[f"only {name}"] for name in ("next_item", "cl4srec", "duorec"))
    assert alone + 3 * by["all members"] <= 3 * rows["mean of the members"] * content["protocol"]["users"] + 1e-6


def test_lines_between_members_end_at_members(first: tuple[Path, Result, list]) -> None:
    content = report_schema.read(first[1].report.file("report.json"))
    for line in content["interpolation"]["lines"]:
        for name, score in (line["first"], line["scores"][0]), (line["second"], line["scores"][-1]):
            assert score == pytest.approx(content["validation"][name], abs=1e-3)


def test_merged_model_and_diagonals_load(first: tuple[Path, Result, list]) -> None:
    _, result, _ = first
    module = load_model(result.last.merged.url)
    diagonal = load_diagonal(result.last.diagonals["duorec"].url)
    assert module(torch.tensor([[0, 1, 2]])).isfinite().all()
    assert {name: p.shape for name, p in module.named_parameters()} == {n: v.shape for n, v in diagonal.items()}
    assert all((value >= 0).all() for value in diagonal.values())


def test_search_takes_the_best_trial_if_its_gain_holds_up_and_else_its_start(first: tuple[Path, Result, list]) -> None:
    merged = first[1].last.merged
    scores = [trial["score"] for trial in merged.json("trials.json")]
    holds = merged.counts["held_out_gain"] > merged.counts["held_out_gain_error"]
    assert merged.counts[SCORE] == (max(scores) if holds else scores[0])


def test_every_stage_emits_figures_and_progress(first: tuple[Path, Result, list]) -> None:
    _, _, messages = first
    events = [message for message in messages if isinstance(message, Event)]
    assert {event.run for event in events} >= {"prepare", "train/base", "train/duorec", "fisher/duorec", "merge/fisher"}
    epochs = {event.step for event in events if (event.run, event.key) == ("train/base", "validation.ndcg@10")}
    assert epochs == {1, 2}
    assert any(isinstance(message, Progress) and message.run == "evaluate/fisher" for message in messages)


def test_second_run_makes_nothing_and_emits_the_same_figures(first: tuple[Path, Result, list], log: Path) -> None:
    output, result, messages = first
    again: list[Event | Progress] = []
    second = run(context(output, messages=again), [str(log)])
    assert second.report.url == result.report.url
    assert {m.note for m in again if isinstance(m, Progress)} == {"found, reused"}
    told = {message for message in messages if isinstance(message, Event)}
    assert {message for message in again if isinstance(message, Event)} <= told


def test_an_average_with_searched_weights_needs_no_diagonals(first: tuple[Path, Result, list], log: Path) -> None:
    result = run(context(first[0], "merge.method=average", "after_merge=null"), [str(log)])
    assert result.last.diagonals == {}
    kinds = {entry.name: entry.kind for entry in result.entries}
    assert (kinds["average"], kinds["weighted-average"]) == ("average", "merged")
    [uniform] = [entry for entry in first[1].entries if entry.name == "average"]
    assert result.last.merged.counts[SCORE] >= uniform.model.counts[SCORE], "equal weights are its first trial"


def test_a_uniform_average_as_the_merge_is_not_compared_with_itself(
    first: tuple[Path, Result, list], log: Path
) -> None:
    settings = ("merge.method=average", "merge.coefficients=equal", "after_merge=null")
    result = run(context(first[0], *settings), [str(log)])
    assert [entry.kind for entry in result.entries if "average" in entry.name] == ["merged"]
    assert result.report.json("report.json")["final"] == "average"


def test_rivals_merge_the_same_members_by_other_diagonals(first: tuple[Path, Result, list], log: Path) -> None:
    rivals = "rivals={target: {estimator: target}, topk-2: {estimator: topk, samples: 2}}"
    result = run(context(first[0], rivals, "after_merge=null"), [str(log)])
    kinds = {entry.name: entry.kind for entry in result.entries}
    assert [name for name, kind in kinds.items() if kind == "merged"] == ["fisher", "target", "topk-2"]
    merged = {entry.name: entry.model for entry in result.entries if entry.kind == "merged"}
    assert merged["fisher"].url == first[1].last.merged.url
    for name, model in merged.items():
        used = [load for load in first[0].glob("fisher/*/manifest.json") if load.parent.name in diagonals_of(model)]
        estimators = {json.loads(file.read_text())["configuration"]["estimator"] for file in used}
        assert estimators == {{"fisher": "exact"}.get(name, name.partition("-")[0])}
    content = report_schema.read(result.report.file("report.json"))
    assert {one["candidate"] for one in content["comparisons"]} == set(merged)


def diagonals_of(merged: Artifact) -> list[str]:
    return list(merged.manifest["inputs"]["diagonals"])


def test_evaluate_leaves_its_figures_in_mlflow(
    first: tuple[Path, Result, list], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, result, _ = first
    models, options = [result.last.merged.url], {"overrides": SMALL, "address": None, "tracking_uri": None}
    run_evaluate(result.data.url, models, recipe="demo", output=str(tmp_path / "out"), **options)
    [row] = [
        row
        for row in json.loads(Path(result.report.file("report.json")).read_text())["rows"]
        if row["kind"] == "merged"
    ]
    expected = row["metrics"]["full"]["ndcg@10"]["mean"]
    assert f"{expected:.4f}" in capsys.readouterr().out
    client = MlflowClient(f"sqlite:///{tmp_path}/out/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("raymerge").experiment_id])
    [found] = [one.data.metrics for one in runs if one.data.tags["raymerge.run"].startswith("evaluate/")]
    assert found["full.ndcg_at_10"] == pytest.approx(expected)


def markets_context(output: Path, rounds: int, messages: list[Event | Progress]) -> Context:
    small = [change for change in SMALL if not change.startswith(("prepare", "after_merge"))]
    columns = ("prepare.user=user", "prepare.item=item", "prepare.partitions=3")
    changes = (*small, *columns, "markets.count=2", f"rounds={rounds}")
    return Context(configure("markets", changes), Output(str(output)), messages.append, Deadline(600))


@pytest.fixture(scope="module")
def markets(capacity: Capacity, log: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    output = tmp_path_factory.mktemp("markets") / "out"
    return output, run(markets_context(output, 1, []), [str(log)])


def test_markets_merge_members_that_never_saw_each_others_items(markets: tuple[Path, Result]) -> None:
    output, result = markets
    kinds = {entry.name: entry.kind for entry in result.entries}
    assert kinds == {
        "base": "base", "market-1": "member", "market-2": "member", "average": "average", "fisher": "merged",
        "ceiling": "ceiling", "ensemble": "ensemble",
    }  # fmt: skip
    assert len({model.manifest["inputs"]["data"] for model in result.last.members.values()}) == 2, (
        "each from its own data"
    )
    base = load_model(next(entry.model for entry in result.entries if entry.name == "base").file("model"))
    for name, diagonal in result.last.diagonals.items():
        member = result.last.members[name]
        assert diagonal.manifest["inputs"]["data"] == member.manifest["inputs"]["data"]
        offered = read_items(f"{output}/markets/{member.manifest['inputs']['data']}/items.parquet").offered
        assert offered is not None and 0 < offered.sum() < len(offered)
        changed = load_model(member.url).output_bias != base.output_bias
        known = load_diagonal(diagonal.url)["output_bias"] > 0
        assert torch.equal(changed, offered), f"{name} unlearns nothing about items that its market has not"
        assert torch.equal(known, offered)
    content = report_schema.read(result.report.file("report.json"))
    references = [one["reference"] for one in content["comparisons"]]
    assert references == ["market-1", "market-2", "base", "average", "ceiling", "ensemble"]


def test_another_round_starts_from_the_merge_of_the_first(markets: tuple[Path, Result], log: Path) -> None:
    output, first = markets
    told: list[Event | Progress] = []
    second = run(markets_context(output, 2, told), [str(log)])
    found = {one.run for one in told if isinstance(one, Progress) and one.note == "found, reused"}
    assert found >= {"train/market-1-round-1", "fisher/market-1-round-1", "merge/fisher-round-1"}
    assert [entry.name for entry in second.entries if entry.kind == "round"] == ["fisher-round-1"]
    for name, member in second.last.members.items():
        assert member.manifest["inputs"]["start"] == first.last.merged.digest
        seeds = [one.manifest["configuration"]["training"]["seed"] for one in (member, first.last.members[name])]
        assert seeds[0] - seeds[1] == 2, "other draws than in the first round"
    ceiling = next(entry.model for entry in second.entries if entry.name == "ceiling")
    assert ceiling.manifest["configuration"]["training"]["epochs"] == 2, "as many as all rounds have"


def test_rounds_on_one_log_have_a_control_of_as_many_epochs_that_starts_from_no_merge(
    first: tuple[Path, Result, list], log: Path, tmp_path: Path
) -> None:
    made, once, _ = first
    output = tmp_path / "out"
    shutil.copytree(made, output)
    twice = run(context(output, "rounds=2", "rivals={target: {estimator: target}}"), [str(log)])
    models = {entry.name: entry.model for entry in twice.entries if entry.model}
    assert models["fisher-round-1"].digest == once.last.merged.digest
    assert models["target"].manifest["inputs"]["models"] == twice.last.merged.manifest["inputs"]["models"]
    assert "target-round-1" not in models, "a rival merges the members of the last round"
    starts = {name: models[name].manifest["inputs"]["start"] for name in ("duorec", "fine-tuned", "control")}
    best = max(once.last.members.values(), key=lambda member: member.counts[SCORE])
    assert starts == {
        "duorec": once.last.merged.digest,
        "fine-tuned": twice.last.merged.digest,
        "control": best.digest,
    }
    epochs = {name: models[name].manifest["configuration"]["training"]["epochs"] for name in starts}
    assert epochs == {"duorec": 1, "fine-tuned": 1, "control": 2}


def test_two_workers_train_what_one_does(capacity: Capacity, log: Path, tmp_path: Path) -> None:
    from raymerge.stages.prepare import prepare
    from raymerge.stages.train import train_base

    scores, weights = [], []
    for workers in (1, 2):
        here = context(tmp_path / "out", f"cluster.base_workers={workers}", "encoder.dropout=0")
        base = train_base(here, prepare(here, [str(log)]))
        assert base is not None
        scores.append(base.counts[SCORE])
        weights.append(load_model(base.url).item_embedding.weight)
    assert scores[1] == pytest.approx(scores[0], rel=0.05)
    torch.testing.assert_close(weights[0], weights[1], atol=2e-3, rtol=0)


def test_driver_killed_in_training_resumes_and_ends_with_the_same_report(
    first: tuple[Path, Result, list], log: Path, tmp_path: Path
) -> None:
    """All before the last training is made; the driver, with its own Ray, is killed during it."""
    made, result, _ = first
    output = tmp_path / "out"
    shutil.copytree(made, output, ignore=shutil.ignore_patterns("evaluate", "report"))
    [merged] = output.glob(f"merge/{result.last.merged.digest}")
    trained_after = {entry.model.digest for entry in result.entries if entry.name in ("fine-tuned", "control")}
    assert merged.is_dir() and len(trained_after) == 2
    for digest in trained_after:
        shutil.rmtree(output / "train" / digest)
    kill_once_there_is(f"checkpoints/*/checkpoint_*/{STATE_NUMBERS}", log, output)
    assert not all((output / "train" / digest).is_dir() for digest in trained_after)
    assert_goes_on(log, output, result)


@pytest.mark.chaos
@pytest.mark.parametrize("stage", ["train", "prepare", "fisher-shard", "merge", "evaluate"])
def test_driver_killed_after_the_first_artifact_of_a_stage_resumes_and_ends_with_the_same_report(
    first: tuple[Path, Result, list], log: Path, tmp_path: Path, stage: str
) -> None:
    """The driver, with its own Ray, is killed as soon as the stage has written something."""
    output = tmp_path / "out"
    kill_once_there_is(f"{stage}/*/manifest.json", log, output)
    assert_goes_on(log, output, first[1])


@pytest.mark.chaos
def test_driver_killed_in_the_report_resumes_and_ends_with_the_same_report(
    first: tuple[Path, Result, list], log: Path, tmp_path: Path
) -> None:
    """All inputs of the report are made: the driver is killed when it has begun to write it."""
    made, result, _ = first
    output = tmp_path / "out"
    shutil.copytree(made, output, ignore=shutil.ignore_patterns("report"))
    kill_once_there_is(".staging/*", log, output)
    assert_goes_on(log, output, result)


@pytest.mark.chaos
@pytest.mark.parametrize("whom", ["group", "driver"])
def test_command_stopped_in_training_resumes_and_ends_with_the_same_report(
    first: tuple[Path, Result, list], log: Path, tmp_path: Path, whom: str
) -> None:
    """By Ctrl-C, or by a scheduler that also signals Ray and workers, so that the driver waits for a dead Ray."""
    output, home = tmp_path / "out", tmp_path / "home"
    home.mkdir()
    driver = start(log, output, home=home)
    wait_for_file(driver, output, f"checkpoints/*/checkpoint_*/{STATE_NUMBERS}")
    if whom == "group":
        for pid in processes.of_home(str(home)):
            with contextlib.suppress(ProcessLookupError):  # another's end may have ended it
                os.kill(pid, signal.SIGTERM)
    else:
        driver.send_signal(signal.SIGINT)
    _, said = driver.communicate(timeout=GRACE_S + 30)
    lost = [1] if whom == "group" else []  # Ray ends a driver whose node is gone before that ends itself
    assert driver.returncode in [130, *lost], said
    assert "Traceback" not in said
    processes.wait_until_gone(str(home))
    assert_goes_on(log, output, first[1])


@pytest.mark.chaos
@pytest.mark.timeout(900)  # every process of a training reads and writes there
def test_pipeline_on_a_store_that_fails_now_and_then_ends_with_the_same_report(
    first: tuple[Path, Result, list], log: Path, bucket: str, faults: Faults
) -> None:
    storage.write_bytes(f"{bucket}/log.parquet", log.read_bytes())
    faults.scatter(1 / 40, seed=1)
    result = run(context(f"{bucket}/out"), [f"{bucket}/log.parquet"])
    assert len(faults.done) > 20 and set(faults.done) == set(FAULTS)
    faults.clear()
    assert without_times(report_of(result)) == without_times(report_of(first[1]))


@pytest.mark.parametrize(
    "damage", ["flip", *(pytest.param(kind, marks=pytest.mark.chaos) for kind in ("truncate", "remove"))]
)
def test_damaged_partition_is_named_and_once_it_is_back_the_same_command_resumes(
    first: tuple[Path, Result, list], log: Path, tmp_path: Path, damage: str
) -> None:
    made, result, _ = first
    output = tmp_path / "out"
    shutil.copytree(
        made, output, ignore=shutil.ignore_patterns("fisher", "fisher-shard", "merge", "evaluate", "report")
    )
    file = sorted(output.glob("prepare/*/partitions/*"))[1]
    content = file.read_bytes()
    damaged = {"flip": content[:99] + bytes([content[99] ^ 1]) + content[100:], "truncate": content[:-1]}
    if damage == "remove":
        file.unlink()
    else:
        file.write_bytes(damaged[damage])
    with pytest.raises(ArtifactError, match=file.name):
        run(context(output), [str(log)])
    assert not (output / "fisher").exists()
    file.write_bytes(content)
    again = run(context(output), [str(log)])
    assert without_times(report_of(again)) == without_times(report_of(result))


def report_of(result: Result) -> dict:
    return json.loads(storage.read_bytes(result.report.file("report.json")))


def wait_for_file(driver: subprocess.Popen[str], output: Path, pattern: str) -> None:
    """Wait until the driver's output has such a file."""
    while driver.poll() is None and not list(output.glob(pattern)):
        time.sleep(0.05)


def kill_once_there_is(pattern: str, log: Path, output: Path) -> None:
    """Start a driver and kill it when its output has such a file."""
    driver = start(log, output)
    wait_for_file(driver, output, pattern)
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    assert not list(output.glob("report/*/manifest.json")), "it was done before it could be killed"


def assert_goes_on(log: Path, output: Path, expected: Result) -> None:
    """The same command ends with the report of an unkilled run, and MLflow has everything once."""
    again = start(log, output)
    table, progress = again.communicate(timeout=280)
    assert again.returncode == 0, progress
    assert "found, reused" in progress
    assert "fine-tuned" in table
    mine = report_in(output)
    assert mine == without_times(report_of(expected))
    assert not list((output / "checkpoints").iterdir())
    check_mlflow(f"sqlite:///{output}/mlflow.db", mine)
