"""Registers a model in MLflow and gives the alias `champion` to the best one measured on the same data."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import mlflow.pyfunc
import pyarrow as pa
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from packaging.version import Version

import raymerge
from raymerge.artifacts import digest_of, file_digest
from raymerge.data.sequences import read_items
from raymerge.tracking import serving, store
from raymerge.tracking.runs import TAG_DATA, Tracker
from raymerge.tracking.store import call

CHAMPION = "champion"
MODEL_FILES = ("model.safetensors", "config.json", "items.parquet")
REQUIREMENTS = ("mlflow", "torch", "safetensors", "pyarrow", "numpy", "fsspec", "tenacity", "packaging")
TAG_SCORE, TAG_METRIC, TAG_MODEL = ("raymerge.validation_score", "raymerge.metric", "raymerge.model_digest")


@dataclass(frozen=True)
class Score:
    """A validation score, the metric and protocol in words, and the digest of the prepared data it was measured on."""

    value: float
    metric: str
    data: str


@dataclass(frozen=True)
class RegisteredVersion:
    """A version in the registry; `reason` says why it is or is not the champion."""

    name: str
    version: str
    champion: bool
    reason: str

    @property
    def uri(self) -> str:
        """What `mlflow.pyfunc.load_model` and `mlflow models serve` take."""
        return f"models:/{self.name}/{self.version}"


def register(tracker: Tracker, run: str, model_folder: Path, *, name: str, score: Score) -> RegisteredVersion:
    """Log the model in a folder (`model.safetensors`, `config.json`, `items.parquet`) to a run and register it.

    It becomes `champion` if there is none, or if its validation score is above the current champion's. Scores are
    compared only if they were measured in the same way on the same data; otherwise the alias stays, and moving it is up
    to the user. A model that the run has registered before keeps its version. Raises TrackingError if the server fails.
    """
    digest = digest_of({file: file_digest(str(model_folder / file)) for file in MODEL_FILES})
    tags = {TAG_SCORE: repr(score.value), TAG_METRIC: score.metric, TAG_DATA: score.data, TAG_MODEL: digest}
    with store.as_tracking_error(tracker.uri), store.settings():
        run_id = tracker.run_id(run)
        found = call(_find_version, tracker.client, name, run_id, digest)
    found = found or _create_version(tracker, run_id, model_folder, name, tags)
    with store.as_tracking_error(tracker.uri), store.settings():
        return _crown(tracker.client, found, tags)


def _find_version(client: MlflowClient, name: str, run_id: str, digest: str) -> ModelVersion | None:
    versions = client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
    return next((one for one in versions if one.tags.get(TAG_MODEL) == digest), None)


def _create_version(tracker: Tracker, run_id: str, folder: Path, name: str, tags: Mapping[str, str]) -> ModelVersion:
    client = tracker.client
    with store.as_tracking_error(tracker.uri), store.settings():
        logged = call(_open_model, client, tracker.experiment_id, run_id, name, tags)
    with tempfile.TemporaryDirectory() as temporary:
        saved = Path(temporary) / "pyfunc"
        save_pyfunc(folder, saved, Model(run_id=run_id, model_uuid=logged.model_id, model_id=logged.model_id))
        with store.as_tracking_error(tracker.uri), store.settings(store.UPLOAD_TIMEOUT_S):
            call(client.log_model_artifacts, logged.model_id, str(saved))
    with store.as_tracking_error(tracker.uri), store.settings():
        call(client.finalize_logged_model, logged.model_id, "READY")
        call(_log_output, client, run_id, logged)
        _make_name(client, name)
        return call(_open_version, client, run_id, name, tags, logged)


def _open_model(client: MlflowClient, experiment: str, run_id: str, name: str, tags: Mapping[str, str]) -> LoggedModel:
    """Look first: the answer to an earlier attempt to create it may have been lost."""
    condition = f"name = '{name}' and source_run_id = '{run_id}' and tags.`{TAG_MODEL}` = '{tags[TAG_MODEL]}'"
    found = client.search_logged_models([experiment], condition, max_results=1)
    return found[0] if found else client.create_logged_model(experiment, name, run_id, tags=dict(tags))


def _log_output(client: MlflowClient, run_id: str, model: LoggedModel) -> None:
    """Look first: a server refuses the same output twice."""
    outputs = client.get_run(run_id).outputs
    if outputs is None or model.model_id not in [one.model_id for one in outputs.model_outputs]:
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])


def _open_version(
    client: MlflowClient, run_id: str, name: str, tags: Mapping[str, str], model: LoggedModel
) -> ModelVersion:
    """Look first, as for the model."""
    # Not `models:/<id>`: a store in a local database would look that up in MLflow's process-wide tracking URI.
    source = model.artifact_location
    return _find_version(client, name, run_id, tags[TAG_MODEL]) or client.create_model_version(
        name, source, run_id, tags=dict(tags), model_id=model.model_id
    )


def save_pyfunc(folder: Path, target: Path, model: Model | None = None) -> None:
    """Save a model folder as an MLflow model from code, which MLflow tries on one history.

    Requirements are the installed versions, pinned without their build tag (`2.13.0`, not `2.13.0+cpu`, which package
    indexes lack). This package is on no reliable index, so its source is saved in `code/`.
    """
    ids = read_items(str(folder / "items.parquet")).ids
    with store.settings():
        mlflow.pyfunc.save_model(
            str(target),
            python_model=serving.__file__,
            model_config={"item_ids": "integer" if pa.types.is_integer(ids.type) else "string"},
            artifacts={"model": str(folder)},
            code_paths=[str(Path(raymerge.__file__).parent)],
            pip_requirements=[f"{package}=={Version(version(package)).public}" for package in REQUIREMENTS],
            input_example=([ids[:1].to_pylist()], serving.DEFAULTS | {"top_k": min(10, len(ids))}),
            mlflow_model=model,
        )


def _make_name(client: MlflowClient, name: str) -> None:
    try:
        call(client.create_registered_model, name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _crown(client: MlflowClient, candidate: ModelVersion, tags: Mapping[str, str]) -> RegisteredVersion:
    aliases = call(client.get_registered_model, candidate.name).aliases
    present = call(client.get_model_version, candidate.name, aliases[CHAMPION]) if CHAMPION in aliases else None
    better, reason = _compare(tags, present, candidate.version)
    if better:
        call(client.set_registered_model_alias, candidate.name, CHAMPION, candidate.version)
    return RegisteredVersion(candidate.name, str(candidate.version), better, reason)


def _compare(tags: Mapping[str, str], present: ModelVersion | None, candidate: str) -> tuple[bool, str]:
    """Whether the candidate takes or keeps the title, and why."""
    if present is None:
        return True, "there was no champion"
    if str(present.version) == str(candidate):
        return True, "it is the champion already"
    champion = f"the champion, version {present.version}"
    if any(present.tags.get(tag) != tags[tag] for tag in (TAG_DATA, TAG_METRIC)):
        return False, f"{champion}, was measured on other data or in another way, so their scores are not comparable"
    score, best = float(tags[TAG_SCORE]), float(present.tags[TAG_SCORE])
    verb = "beats" if score > best else "does not beat"
    return score > best, f"its validation score {score:.4f} {verb} {best:.4f} of {champion}"
