"""Inputs of commands: logs, prepared data, models, reports. They are opened and checked before anything starts."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from raymerge.artifacts import MODEL_STAGES, Artifact, digest_of, file_digest, open_artifact
from raymerge.data.prepare import ITEMS_FILE
from raymerge.data.sequences import read_items
from raymerge.errors import ConfigError, InputError, MergeError
from raymerge.evaluation import report_schema
from raymerge.evaluation.report_schema import REPORT_FILE
from raymerge.files import storage
from raymerge.redaction import without_credentials
from raymerge.stages.context import Context
from raymerge.stages.inputs import model_digest
from raymerge.stages.prepare import check_logs, source
from raymerge.tracking.record import newest_place

DATA_STAGES = ("prepare", "markets")


def log_files(context: Context, log: str | None) -> list[str]:
    """Files of the given log or the recipe's; each is checked for the configured columns."""
    files = source(context, log)
    check_logs(context, files)
    return files


def dataset_of_log(context: Context, files: Sequence[str]) -> dict[str, Any]:
    """A log as `Tracker` records it."""
    return {
        "name": Path(context.config.recipe).stem,
        "digest": digest_of([file_digest(file) for file in files]),
        "source": files[0] if len(files) == 1 else files[0].rpartition("/")[0],
        "counts": {"files": len(files)},
    }


def dataset_of(data: Artifact) -> dict[str, Any]:
    """Prepared data as `Tracker` records them."""
    return {"name": "prepared", "digest": data.digest, "source": data.url, "counts": data.counts}


def dataset_of_models(models: Sequence[Artifact]) -> dict[str, Any]:
    """Models as `Tracker` records them, if there are no data."""
    digest = digest_of([model.digest for model in models])
    return {"name": "models", "digest": digest, "source": models[0].url, "counts": {}}


def open_data(url: str, *, tests: bool = False) -> Artifact:
    """Prepared data, verified: of a whole log or, unless `tests`, of one market, which has no test items."""
    artifact = open_artifact(url, *DATA_STAGES)
    if tests and artifact.manifest["stage"] == "markets":
        raise InputError(f"{url} is one market's part of other data, without test items: name the whole data")
    return artifact


def open_models(urls: Sequence[str]) -> dict[str, Artifact]:
    """Model artifacts, verified, by a unique name."""
    models = {}
    for url in urls:
        artifact = open_artifact(storage.absolute(url).removesuffix("/model"), *MODEL_STAGES)
        models[_name_of(artifact)] = artifact
    if len(models) < len(urls):
        raise ConfigError(f"a model was named twice: {', '.join(urls)}")
    return models


def _name_of(model: Artifact) -> str:
    """What made a model, and the start of its digest: `cl4srec-1c5aa3f0`, `fisher-b92d04e7`."""
    configuration = model.manifest["configuration"]
    maker = configuration["method"] if model.manifest["stage"] == "merge" else configuration["objective"]["name"]
    return f"{maker}-{model.digest[:8]}"


def open_diagonals(urls: Sequence[str], models: Mapping[str, Artifact]) -> dict[str, Artifact]:
    """The diagonal of each model, by its name, from diagonals in any order."""
    found = {artifact.manifest["inputs"]["model"]: artifact for artifact in (open_artifact(u, "fisher") for u in urls)}
    for model in models.values():
        if model_digest(model) not in found:
            raise MergeError(f"none of the diagonals is of {model.url}: `raymerge report` lists those of a run")
    return {name: found[model_digest(model)] for name, model in models.items()}


def open_start(context: Context, data: Artifact, url: str) -> Artifact:
    """A model to start members from, checked for the data's catalogue and the configured encoder."""
    models = open_models([url])
    check_catalogue(data, models)
    [start] = models.values()
    theirs = start.json("model", "config.json")
    for key, value in asdict(context.config.encoder).items():
        if theirs.get(key) != value:
            raise ConfigError(f"encoder.{key} is {value}, but {url} has {theirs.get(key)}: set it to that")
    return start


def check_catalogue(data: Artifact, models: Mapping[str, Artifact]) -> None:
    """Raise InputError unless each model's item indices mean the same items as in the data."""
    ids = read_items(data.file(ITEMS_FILE)).ids
    for model in models.values():
        if not read_items(model.file("model", ITEMS_FILE)).ids.equals(ids):
            raise InputError(
                f"{model.url} has a different catalogue from {data.url}: prepare the log that it was trained on"
            )


def chosen_model(url: str) -> str:
    """URL of a model: the given one or, for an output folder, the one that its last run chose."""
    url = storage.absolute(url)
    if not storage.exists(storage.join(url, "report")):
        return url
    content = report_schema.read(find_report(url))
    return storage.join(url, content["artifacts"]["models"][content["final"]])


def find_report(url: str) -> str:
    """The report file of a URL: the file itself, a report's folder, or an output folder (its last run's report)."""
    url = storage.absolute(url)
    if url.endswith(".json"):
        return url
    if storage.exists(storage.join(url, REPORT_FILE)):
        return storage.join(url, REPORT_FILE)
    place = newest_place(url, "report")
    if place is not None:
        return storage.join(url, place, REPORT_FILE)
    folder = storage.join(url, "report")  # without records of commands: the report written last
    places = [storage.join(folder, name, REPORT_FILE) for name in storage.list_folder(folder)]
    found = [place for place in places if storage.exists(place)]
    if not found:
        raise InputError(f"no report at {without_credentials(url)}; `raymerge run` makes one")
    return max(found, key=storage.modified)
