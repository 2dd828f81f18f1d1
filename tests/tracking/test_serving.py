"""The registered model as its users load it: in a fresh process, without this checkout and without pickle."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from mlflow import MlflowClient, pyfunc
from mlflow.artifacts import download_artifacts
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE
from mlflow_server import Server
from random_models import save_random_model
from tracking.examples import scored

import raymerge
from raymerge.errors import InputError
from raymerge.events import Event
from raymerge.tracking.registration import register, save_pyfunc
from raymerge.tracking.runs import Tracker

NewTracker = Callable[..., Tracker]
ITEMS = [30, 10, 20, 50, 40, 60, 80, 70]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_model(tmp_path_factory.mktemp("numbers") / "model", ITEMS)


@pytest.fixture(scope="module")
def served(folder: Path) -> pyfunc.PyFuncModel:
    saved = folder.parent / "pyfunc"
    save_pyfunc(folder, saved)
    return pyfunc.load_model(str(saved))


def best_by_hand(folder: Path, history: list[int], *, top_k: int, leave_out: list[int]) -> list[tuple[int, float]]:
    """Score every item, drop what is left out, sort."""
    indices = torch.tensor([[ITEMS.index(item) + 1 for item in history]])
    with torch.no_grad():
        scores = raymerge.load_model(str(folder))(indices)[0]
    ranked = sorted(zip(ITEMS, scores.tolist(), strict=True), key=lambda pair: -pair[1])
    return [pair for pair in ranked if pair[0] not in leave_out][:top_k]


def test_a_prediction_is_the_best_unseen_items_and_their_scores(served: pyfunc.PyFuncModel, folder: Path) -> None:
    history = [10, 80, 30]
    [found] = served.predict([history], params={"top_k": 3})
    expected = best_by_hand(folder, history, top_k=3, leave_out=history)
    assert found["items"] == [item for item, _ in expected]
    assert found["scores"] == pytest.approx([score for _, score in expected], abs=1e-5)


def test_seen_items_stay_if_requested(served: pyfunc.PyFuncModel, folder: Path) -> None:
    [found] = served.predict([[10, 80]], params={"top_k": 8, "exclude_seen": False})
    assert found["items"] == [item for item, _ in best_by_hand(folder, [10, 80], top_k=8, leave_out=[])]


def test_a_history_longer_than_the_model_keeps_its_last_items_and_is_excluded_whole(
    served: pyfunc.PyFuncModel, folder: Path
) -> None:
    history = [30, 10, 20, 50, 40, 60, 80]
    [found] = served.predict([history], params={"top_k": 8})
    assert found["items"] == [70]
    [found] = served.predict([history], params={"top_k": 2, "exclude_seen": False})
    assert found["items"] == [item for item, _ in best_by_hand(folder, history[-4:], top_k=2, leave_out=[])]


def test_histories_may_differ_in_length_and_a_data_frame_gives_the_same(served: pyfunc.PyFuncModel) -> None:
    histories = [[10], [20, 50, 10], [40, 40]]
    together = served.predict(histories)
    for one, history in zip(together, histories, strict=True):
        [alone] = served.predict([history])
        assert one["items"] == alone["items"]
        assert one["scores"] == pytest.approx(alone["scores"], abs=1e-5)
    assert served.predict(pd.DataFrame({"history": histories})) == together
    assert served.predict([]) == []


@pytest.mark.parametrize("histories", ["10", [10, 20], [["10"]], [[1.5]], [[None]]])
def test_input_that_is_not_a_list_of_histories_is_refused(served: pyfunc.PyFuncModel, histories: object) -> None:
    with pytest.raises(MlflowException, match=r"Expected (list|type int)"):
        served.predict(histories)


@pytest.mark.parametrize(
    ("history", "params", "message"),
    [([99], {}, "no item '99'"), ([], {}, "history 0 is empty"), ([10], {"top_k": 0}, "between 1 and 8 items")],
)
def test_an_unknown_item_an_empty_history_and_an_impossible_number_are_refused(
    served: pyfunc.PyFuncModel, history: list[int], params: dict, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        served.predict([history], params=params)


def test_more_items_than_the_catalogue_has_gives_all_that_are_not_in_the_history(served: pyfunc.PyFuncModel) -> None:
    [best] = served.predict([[10]], params={"top_k": 99})
    assert len(best["items"]) == 7 and 10 not in best["items"]


def test_a_catalogue_of_text_ids_takes_and_gives_text(tmp_path: Path) -> None:
    save_pyfunc(save_random_model(tmp_path / "model", ["b", "a", "c"]), tmp_path / "pyfunc")
    served = pyfunc.load_model(str(tmp_path / "pyfunc"))
    assert sorted(served.predict([["a"]], params={"top_k": 2})[0]["items"]) == ["b", "c"]
    with pytest.raises(MlflowException, match="Expected type str"):
        served.predict([[1]])


PREDICT = """
import json, sys, mlflow
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/recommender@champion")
import raymerge
print(json.dumps({"predictions": model.predict([[10, 80]], params={"top_k": 3}), "code": raymerge.__file__}))
"""


def test_the_champion_predicts_in_a_fresh_process_without_pickle_and_without_this_checkout(
    new_tracker: NewTracker, server: Server, folder: Path, tmp_path: Path
) -> None:
    with new_tracker() as tracker:
        tracker(Event("merge", "ndcg@10", 0, 0.2))
        registered = register(tracker, "merge", folder, name="recommender", score=scored(0.2))
    assert registered.champion
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "False"
    done = subprocess.run(
        [sys.executable, "-c", PREDICT, server.uri],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    expected = best_by_hand(folder, [10, 80], top_k=3, leave_out=[10, 80])
    assert answer["predictions"][0]["items"] == [item for item, _ in expected]
    assert not Path(answer["code"]).is_relative_to(Path(raymerge.__file__).parent), "the model brings its own code"


def test_a_registered_version_says_where_it_comes_from_and_pins_what_it_needs(
    new_tracker: NewTracker, server: Server, folder: Path, tmp_path: Path
) -> None:
    with new_tracker() as tracker:
        registered = register(tracker, "merge", folder, name="origin", score=scored(0.2))
        again = register(tracker, "merge", folder, name="origin", score=scored(0.2))
    assert again.version == registered.version, "a restart registers nothing twice"
    client = MlflowClient(tracker.uri)
    version = client.get_model_version("origin", registered.version)
    assert version.run_id == tracker.run_id("merge")
    assert version.tags["raymerge.validation_score"] == "0.2"
    assert version.tags["raymerge.data_digest"] == scored(0.2).data
    [output] = client.get_run(version.run_id).outputs.model_outputs
    assert version.source == client.get_logged_model(output.model_id).artifact_location
    requirements = download_artifacts(
        f"{version.source}/requirements.txt", tracking_uri=server.uri, dst_path=str(tmp_path)
    )
    pinned = Path(requirements).read_text().split()
    assert f"torch=={torch.__version__.partition('+')[0]}" in pinned
    assert all("==" in requirement for requirement in pinned)


def lose_the_first_answer(client: MlflowClient, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the server do what it is asked for, while its first answer is lost."""
    act, lost = getattr(client, name), []

    def ask(*arguments: object, **options: object) -> object:
        answer = act(*arguments, **options)
        if lost:
            return answer
        lost.append(answer)
        raise MlflowException("no answer", error_code=TEMPORARILY_UNAVAILABLE)

    monkeypatch.setattr(client, name, ask)


@pytest.mark.parametrize(
    "lost", ["create_logged_model", "create_model_version", "create_registered_model", "log_outputs"]
)
def test_a_model_is_registered_once_although_an_answer_was_lost(
    new_tracker: NewTracker, folder: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    with new_tracker() as tracker:
        lose_the_first_answer(tracker.client, lost, monkeypatch)
        registered = register(tracker, "merge", folder, name=lost, score=scored(0.2))
    client = MlflowClient(tracker.uri)
    [version] = client.search_model_versions(f"name = '{lost}'")
    assert version.version == registered.version
    [logged] = client.search_logged_models([tracker.experiment_id])
    assert logged.artifact_location == version.source
    assert [output.model_id for output in client.get_run(version.run_id).outputs.model_outputs] == [logged.model_id]


def test_the_champion_changes_only_for_a_better_score_on_the_same_data(new_tracker: NewTracker, folder: Path) -> None:
    other = save_random_model(folder.parent / "other", ITEMS, seed=1)
    third = save_random_model(folder.parent / "third", ITEMS, seed=2)

    def champion() -> str:
        return str(MlflowClient(tracker.uri).get_model_version_by_alias("title", "champion").version)

    with new_tracker() as tracker:
        first = register(tracker, "merge", folder, name="title", score=scored(0.2))
        assert (first.champion, champion()) == (True, first.version)
        worse = register(tracker, "merge", other, name="title", score=scored(0.1))
        assert (worse.champion, champion()) == (False, first.version)
        assert "0.1000 does not beat 0.2000" in worse.reason
        better = register(tracker, "merge", third, name="title", score=scored(0.3))
        assert (better.champion, champion()) == (True, better.version)
    for change in ({"data": "of a smaller catalogue"}, {"metric": "NDCG@10, seen items not filtered"}):
        with new_tracker(identity=f"another {'-'.join(change)}") as tracker:
            incomparable = register(tracker, "merge", folder, name="title", score=replace(scored(0.9), **change))
            assert (incomparable.champion, champion()) == (False, better.version)
            assert "on other data or in another way" in incomparable.reason
