"""What commands are given: logs, prepared data, models, reports. Opened and checked before anything starts."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from raymerge import storage
from raymerge.artifacts import Artifact, digest_of, file_digest, open_artifact
from raymerge.data.prepare import ITEMS_FILE
from raymerge.data.sequences import read_items
from raymerge.errors import ConfigError, InputError
from raymerge.evaluation import reported
from raymerge.redaction import without_credentials
from raymerge.stages.context import Context
from raymerge.stages.prepare import check_logs, source
from raymerge.tracking.record import newest_place

DATA_STAGES = ("prepare", "markets")
MODEL_STAGES = ("train", "merge")


def log_files(context: Context, log: str | None) -> list[str]:
    """Files of the log that was given or that the recipe makes; each opens with the columns configured."""
    markets = context.config.markets
    if markets is not None and markets.by == "column" and context.config.prepare.market is None:
        raise ConfigError("markets.by column needs prepare.market, the column that names each row's market")
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
    """Models as `Tracker` records them, where there are no data."""
    digest = digest_of([model.digest for model in models])
    return {"name": "models", "digest": digest, "source": models[0].url, "counts": {}}


def open_data(url: str, *, tests: bool = False) -> Artifact:
    """Prepared data, of a whole log or of one market, which has none of the items that test the whole; verified."""
    artifact = open_artifact(url, *DATA_STAGES)
    if tests and artifact.manifest["stage"] == "markets":
        raise InputError(
            f"{url} are a part of other data and hold no test items: name the data that they are a part of"
        )
    return artifact


def open_models(urls: Sequence[str]) -> dict[str, Artifact]:
    """Artifacts of models by a name that tells them apart; each is verified."""
    found = {}
    for url in urls:
        artifact = open_artifact(storage.absolute(url).removesuffix("/model"), *MODEL_STAGES)
        found["-".join(artifact.url.rsplit("/", 2)[1:])] = artifact
    if len(found) < len(urls):
        raise ConfigError(f"a model was named twice: {', '.join(urls)}")
    return found


def open_start(context: Context, data: Artifact, url: str) -> Artifact:
    """A model to train members from, of the data's catalogue and with the configured encoder."""
    models = open_models([url])
    check_catalogue(data, models)
    [start] = models.values()
    theirs = start.json("model", "config.json")
    for key, value in asdict(context.config.encoder).items():
        if theirs.get(key) != value:
            raise ConfigError(f"encoder.{key} is {value}, but {url} has {theirs.get(key)}: set it to that")
    return start


def check_catalogue(data: Artifact, models: Mapping[str, Artifact]) -> None:
    """Raise InputError unless each model's item indices mean the same items as the data's."""
    ids = read_items(data.file(ITEMS_FILE)).ids
    for model in models.values():
        if not read_items(model.file("model", ITEMS_FILE)).ids.equals(ids):
            raise InputError(
                f"{model.url} has a different catalogue from {data.url}: prepare the log that it was trained on"
            )


def chosen_model(url: str) -> str:
    """URL of a model: the one given, or of an output folder the one that its last run chose."""
    url = storage.absolute(url)
    if not storage.exists(storage.join(url, "report")):
        return url
    content = reported.read(find_report(url))
    return storage.join(url, content["artifacts"]["models"][content["final"]])


def find_report(url: str) -> str:
    """The report that a URL stands for: a file, a report's folder, or that of the last run of an output folder."""
    url = storage.absolute(url)
    if url.endswith(".json"):
        return url
    if storage.exists(storage.join(url, "report.json")):
        return storage.join(url, "report.json")
    place = newest_place(url, "report")
    if place is not None:
        return storage.join(url, place, "report.json")
    folder = storage.join(url, "report")  # of an output that no command has worked in, the one that was written last
    places = [storage.join(folder, name, "report.json") for name in storage.list_folder(folder)]
    found = [place for place in places if storage.exists(place)]
    if not found:
        raise InputError(f"there is no report at {without_credentials(url)}; `raymerge run` makes one")
    return max(found, key=storage.modified)
