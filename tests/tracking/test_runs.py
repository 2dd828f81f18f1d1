"""Runs as a user reads them from a real server: recorded once, whatever happened to the server or driver."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow_server import Server
from random_models import save_random_model
from tracking.examples import DATASET, scored

from raymerge.errors import TrackingError
from raymerge.events import Event
from raymerge.tracking import runs, store
from raymerge.tracking.registration import register
from raymerge.tracking.runs import Tracker

NewTracker = Callable[..., Tracker]


def all_runs(tracker: Tracker) -> dict[str, Run]:
    client = MlflowClient(tracker.uri)
    experiment = client.get_experiment_by_name(tracker.experiment)
    found = client.search_runs([experiment.experiment_id])
    by_name = {run.info.run_name: run for run in found}
    assert len(by_name) == len(found), "a run was made twice"
    return by_name


def history(tracker: Tracker, run: Run, key: str) -> list[tuple[int, float]]:
    measured = MlflowClient(tracker.uri).get_metric_history(run.info.run_id, key)
    return sorted((metric.step, metric.value) for metric in measured)


def losses(run: str, epochs: range) -> list[Event]:
    return [Event(run, "loss", epoch, 5.0 - epoch) for epoch in epochs]


def test_a_pipeline_is_a_parent_with_parameters_input_and_artifacts_and_children_with_metrics_by_epoch(
    new_tracker: NewTracker, tmp_path: Path
) -> None:
    report = tmp_path / "report.json"
    report.write_text("{}")
    with new_tracker() as tracker:
        for event in losses("train/duorec", range(3)):
            tracker(event)
        tracker(Event("train/duorec", "ndcg@10", 2, 0.125))
        tracker(Event(runs.PIPELINE, "ndcg@10", 0, 0.25))
        tracker.log_artifacts(runs.PIPELINE, [report])
        tracker.log_artifacts(runs.PIPELINE, [report], "plots")

    found = all_runs(tracker)
    parent, child = found["demo"], found["train/duorec"]
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert history(tracker, child, "loss") == [(0, 5.0), (1, 4.0), (2, 3.0)]
    assert history(tracker, child, "ndcg_at_10") == [(2, 0.125)]
    assert parent.data.metrics == {"ndcg_at_10": 0.25}
    assert parent.data.params["training.epochs"] == "3"
    assert json.loads(parent.data.params["training.objectives"]) == ["bert4rec", "duorec"]
    [data] = [entry.dataset for entry in parent.inputs.dataset_inputs]
    assert (data.name, data.digest, json.loads(data.profile)) == (
        "demo",
        "0123456789abcdef",
        {"users": 20, "items": 9, "interactions": 180},
    )
    assert json.loads(data.source) == {"url": "https://example.org/log.csv"}
    files = MlflowClient(tracker.uri).list_artifacts(parent.info.run_id)
    assert {file.path for file in files} == {"report.json", "plots"}
    assert {run.info.status for run in found.values()} == {"FINISHED"}


def test_no_secret_is_recorded(new_tracker: NewTracker) -> None:
    with new_tracker() as tracker:
        pass
    parent = all_runs(tracker)["demo"]
    assert "hunter2" not in json.dumps(parent.to_dictionary())
    assert parent.data.params["input.url"] == "s3://bucket/log.parquet"


def test_more_parameters_and_metrics_than_fit_a_batch_all_arrive(new_tracker: NewTracker) -> None:
    many = {f"key{index}": index for index in range(250)} | {"long": "x" * 9000}
    with new_tracker(configuration=many) as tracker:
        for event in losses("train/base", range(2500)):
            tracker(event)
    found = all_runs(tracker)
    assert len(history(tracker, found["train/base"], "loss")) == 2500
    assert len(found["demo"].data.params) == 251
    assert found["demo"].data.params["long"].endswith("… (9000 characters)")


def test_a_restarted_driver_continues_the_run_and_repeats_no_step(new_tracker: NewTracker) -> None:
    first = new_tracker()
    first.__enter__()  # this driver is killed: no run is marked as ended
    for event in losses("train/base", range(3)) + losses("prepare", range(1)):
        first(event)
    first.flush()
    with new_tracker(configuration={"recipe": "demo", "workers": 4, "training": {"epochs": 5}}) as second:
        for event in losses("train/base", range(5)):
            second(event)
    found = all_runs(second)
    assert set(found) == {"demo", "train/base", "prepare"}
    assert history(second, found["train/base"], "loss") == [(epoch, 5.0 - epoch) for epoch in range(5)]
    assert found["demo"].data.params["training.epochs"] == "3", "a parameter is written once"
    assert found["demo"].data.tags["restarted.training.epochs"] == "5"
    assert found["demo"].data.params["workers"] == "4"
    assert len(found["demo"].inputs.dataset_inputs) == 1
    assert {run.info.status for run in found.values()} == {"FINISHED"}


def test_another_identity_is_another_run(new_tracker: NewTracker) -> None:
    with new_tracker(identity="one", name="one"), new_tracker(identity="two", name="two") as tracker:
        pass
    assert set(all_runs(tracker)) == {"one", "two"}


def test_an_event_emitted_twice_is_recorded_once(new_tracker: NewTracker) -> None:
    with new_tracker() as tracker:
        for event in losses("train/base", range(2)) * 2:
            tracker(event)
            tracker.flush()
    assert history(tracker, all_runs(tracker)["train/base"], "loss") == [(0, 5.0), (1, 4.0)]


def test_a_batch_whose_answer_was_lost_is_sent_again_and_recorded_once(new_tracker: NewTracker) -> None:
    with new_tracker() as tracker:
        tracker._due = float("inf")
        for event in losses("train/base", range(3)):
            tracker(event)
        tracker.client.log_batch(tracker.run_id("train/base"), metrics=list(tracker._waiting["train/base"]))
        tracker._held["train/base"] = set()  # what the server took was never confirmed to this process
        assert tracker.flush()
    assert history(tracker, all_runs(tracker)["train/base"], "loss") == [(0, 5.0), (1, 4.0), (2, 3.0)]


def test_a_deleted_run_does_not_hold_up_the_others(new_tracker: NewTracker, caplog: pytest.LogCaptureFixture) -> None:
    with new_tracker() as tracker:
        for event in losses("train/a", range(1)) + losses("train/b", range(1)):
            tracker(event)
        tracker.flush()
        MlflowClient(tracker.uri).delete_run(tracker.run_id("train/a"))
        for event in losses("train/a", range(3)) + losses("train/b", range(3)) + losses("train/c", range(3)):
            tracker(event)
        tracker.finish("train/b")
    found = all_runs(tracker)
    assert "train/a" not in found
    assert [len(history(tracker, found[name], "loss")) for name in ("train/b", "train/c")] == [3, 3]
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    assert tracker.pending == 2
    assert "refuses run train/a" in caplog.text and "2 metrics did not reach MLflow" in caplog.text


@pytest.mark.parametrize(("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_an_error_marks_unfinished_runs(new_tracker: NewTracker, error: type[BaseException], status: str) -> None:
    tracker = new_tracker()
    with pytest.raises(error), tracker:
        tracker(Event("prepare", "users", 0, 20))
        tracker.finish("prepare")
        tracker(Event("train/base", "loss", 0, 5.0))
        raise error
    found = all_runs(tracker)
    assert {name: run.info.status for name, run in found.items()} == {
        "demo": status, "prepare": "FINISHED", "train/base": status,
    }  # fmt: skip


def test_an_outage_delays_events_without_losing_or_repeating_any(
    new_tracker: NewTracker, server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "curve.txt"
    file.write_text("a curve")
    with new_tracker() as tracker:
        for event in losses("train/base", range(2)):
            tracker(event)
        tracker.flush()
        server.stop()
        try:
            for event in losses("train/base", range(1, 4)) + losses("train/duorec", range(2)):
                tracker(event)
            assert not tracker.flush()
            assert tracker.pending == 4
            with pytest.raises(TrackingError, match="cannot be used"):
                tracker.log_artifacts("train/duorec", [file])
        finally:
            server.start()
        assert tracker.flush()
        assert tracker.pending == 0
        tracker.log_artifacts("train/duorec", [file])
        tracker(Event("train/base", "loss", 4, 1.0))
    found = all_runs(tracker)
    assert history(tracker, found["train/base"], "loss") == [(epoch, 5.0 - epoch) for epoch in range(5)]
    assert history(tracker, found["train/duorec"], "loss") == [(0, 5.0), (1, 4.0)]
    [artifact] = MlflowClient(tracker.uri).list_artifacts(found["train/duorec"].info.run_id)
    assert artifact.path == "curve.txt"
    warnings = [record for record in caplog.records if record.name == "raymerge.tracking.runs"]
    assert len(warnings) == 1, "one outage is reported once"


def test_an_unreachable_server_is_reported_in_one_line_within_seconds() -> None:
    tracker = Tracker(
        "http://me:hunter2@127.0.0.1:9", "demo", name="demo", identity="x", configuration={}, dataset=DATASET
    )
    begin = time.monotonic()
    with pytest.raises(TrackingError) as error:
        tracker.__enter__()
    assert time.monotonic() - begin < 20
    message = str(error.value)
    assert "http://127.0.0.1:9 cannot be used: Connection refused" in message
    assert "--tracking-uri" in message
    assert "\n" not in message


@pytest.mark.chaos  # half a minute: such a server hashes the password for each request
def test_a_server_with_passwords_takes_runs_and_artifacts_only_with_the_right_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    password = "correct-horse-battery"
    server = Server(tmp_path, password=password)
    tracker = Tracker(server.uri, "demo", name="demo", identity="x", configuration={}, dataset=DATASET)
    try:
        for given in ({}, {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": "wrong-hunter2"}):
            for name, value in given.items():
                monkeypatch.setenv(name, value)
            with pytest.raises(TrackingError, match="cannot be used") as error:
                tracker.__enter__()
            assert "MLFLOW_TRACKING_PASSWORD" in str(error.value)
            assert "\n" not in str(error.value) and "hunter2" not in str(error.value)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
        (tmp_path / "curve.txt").write_text("1 2 3")
        with tracker:
            tracker(Event("train/base", "loss", 1, 0.5))
            tracker.log_artifacts("train/base", [tmp_path / "curve.txt"])
        found = all_runs(tracker)
        assert history(tracker, found["train/base"], "loss") == [(1, 0.5)]
        [artifact] = tracker.client.list_artifacts(found["train/base"].info.run_id)
        assert artifact.path == "curve.txt"
        kept = [file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()]
        assert not any(password.encode() in content for content in kept)
    finally:
        server.stop()


def test_a_store_that_is_not_a_database_is_a_tracking_error(tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    database.write_text("not a database " * 100)
    tracker = Tracker(f"sqlite:///{database}", "demo", name="demo", identity="x", configuration={}, dataset=DATASET)
    with pytest.raises(TrackingError, match="file is not a database"):
        tracker.__enter__()


def test_the_default_store_keeps_everything_in_the_output_folder_and_is_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    output, elsewhere = tmp_path / "out", tmp_path / "cwd"
    output.mkdir()
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    (output / "report.json").write_text("{}")
    tracker = Tracker(
        store.default_uri(str(output)), "raymerge", name="demo", identity="x", configuration={}, dataset=DATASET
    )
    with tracker:
        tracker(Event("prepare", "users", 0, 7))
        tracker.log_artifacts("prepare", [output / "report.json"])
        register(
            tracker, "merge", save_random_model(tmp_path / "model", [1, 2, 3]), name="recommender", score=scored(0.1)
        )
    assert all_runs(tracker)["prepare"].data.metrics == {"users": 7}
    for name in ("report.json", "MLmodel"):
        assert list((output / "mlartifacts").rglob(name)), "artifacts are in the output folder"
    assert not list(elsewhere.iterdir()), "nothing is left in the working directory"
    assert capfd.readouterr() == ("", "")
