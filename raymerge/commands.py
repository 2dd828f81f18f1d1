"""What each command does: check everything first, then start Ray, run the stages, and say where the results lie."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import yaml
from rich.console import Console
from rich.table import Table

from raymerge import storage
from raymerge.artifacts import Artifact, Output, digest_of, file_digest, load_model, model_folder, open_artifact
from raymerge.config import Config
from raymerge.data.prepare import ITEMS_FILE
from raymerge.data.sequences import read_items
from raymerge.errors import ConfigError, InputError, MergeError, TrackingError
from raymerge.events import Event, Progress
from raymerge.merging.methods import METHODS
from raymerge.pipeline import Result
from raymerge.pipeline import run as pipeline
from raymerge.progress import display
from raymerge.recipes import RECIPES, configure
from raymerge.runtime import Deadline, session
from raymerge.stages.context import SCORE, Context
from raymerge.stages.evaluate import evaluate
from raymerge.stages.fisher import fisher
from raymerge.stages.merge import check_coefficients, check_mergeable, merge
from raymerge.stages.prepare import check_logs, prepare, source
from raymerge.stages.report import final_model, metrics_of
from raymerge.stages.train import train_base, train_members
from raymerge.tracking import report as reports
from raymerge.tracking.plots import to_png
from raymerge.tracking.results import figures, log_results
from raymerge.tracking.runs import Tracker
from raymerge.tracking.store import resolve_uri, ui_command

MODEL_STAGES = ("train", "merge")


class Announcer:
    """Hands what stages say to the display and, once there is one, to the tracker."""

    def __init__(self, console: Console) -> None:
        self.display = display(console)
        self.tracker: Tracker | None = None

    def __call__(self, message: Event | Progress) -> None:
        """Show the message; record it if it is a figure."""
        self.display(message)
        if self.tracker is not None and isinstance(message, Event):
            self.tracker(message)


@contextmanager
def working(
    *, recipe: str, output: str, overrides: Sequence[str], address: str | None, tracking_uri: str | None
) -> Iterator[Context]:
    """A context for stages: the configuration is resolved and the output folder is ours, or nothing was touched."""
    changes = [*overrides]
    changes += [f"cluster.address={address}"] if address else []
    changes += [f"tracking.uri={tracking_uri}"] if tracking_uri else []
    config = configure(recipe, tuple(changes))
    place = Output(output)
    place.check()
    announcer = Announcer(Console(stderr=True))
    with announcer.display:
        yield Context(config, place, announcer, Deadline(config.cluster.deadline_hours * 3600))


@contextmanager
def tracked(context: Context, command: str, dataset: Mapping[str, Any]) -> Iterator[Tracker]:
    """A run in MLflow and a session of Ray around stages; an unreachable server is refused before Ray starts."""
    config, announcer = context.config, context.emit
    assert isinstance(announcer, Announcer)
    uri = resolve_uri(config.tracking.uri, os.environ.get("MLFLOW_TRACKING_URI"), context.output.url)
    configuration = config.plain()
    context.output.open()
    tracker = Tracker(
        uri,
        config.tracking.experiment,
        name=f"{command} {Path(config.recipe).stem}",
        identity=digest_of([command, _determining(configuration), dataset["digest"], context.output.url]),
        configuration=configuration,
        dataset=dataset,
    )
    with tracker, session(config.cluster):
        announcer.tracker = tracker
        try:
            yield tracker
        finally:
            announcer.tracker = None


def _determining(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration without what only says where the work is done and recorded."""
    return {key: value for key, value in configuration.items() if key not in ("cluster", "tracking")}


def run_pipeline(log: str | None, *, recipe: str | None, **options: Any) -> None:
    """`raymerge run`."""
    with working(recipe=recipe or ("default" if log else "demo"), **options) as context:
        check_coefficients(context.config.merge, len(context.config.members))
        files = _log_files(context, log)
        with tracked(context, "run", _dataset(context, files)) as tracker:
            result = pipeline(context, files)
            content = reports.loads(storage.read_bytes(result.report.file("report.json")))
            registered = _log_to_mlflow(context, tracker, result, content)
    final = final_model(result.entries).model
    console = Console()
    console.print(reports.render(content))
    rows = {
        "model": final.file("model"),
        "report": result.report.file("report.json"),
        "registered": registered,
        "MLflow": ui_command(tracker.uri),
        "try it": f"raymerge recommend --model {final.url} --history {_some_items(result.data)}",
    }
    _print_rows(console, rows)


def _log_to_mlflow(context: Context, tracker: Tracker, result: Result, content: reports.Report) -> str:
    """Log what there is beside the figures and register the model; in words, what came of it.

    A server that is gone by now does not take the results away: they lie in the output folder, and the same command
    sends them once the server is back.
    """
    config, model = context.config, final_model(result.entries).model
    try:
        registered = log_results(
            tracker,
            configuration=config.plain(),
            report_url=result.report.file("report.json"),
            drawn=figures(content, context.output.url),
            model=model,
            score=model.counts[SCORE],
            model_name=config.tracking.model_name or f"raymerge-{Path(config.recipe).stem}",
        )
    except TrackingError as error:
        return f"not yet: {error}; give the same command again once the server is there"
    return f"{registered.uri} ({'champion' if registered.champion else 'not the champion'}: {registered.reason})"


def run_prepare(log: str | None, *, recipe: str | None, **options: Any) -> None:
    """`raymerge prepare`."""
    with working(recipe=recipe or ("default" if log else "demo"), **options) as context:
        data = prepare(context, _log_files(context, log))
    _print_artifacts({"data": data})


def run_train(data: str, *, recipe: str | None, **options: Any) -> None:
    """`raymerge train`."""
    with working(recipe=recipe or "default", **options) as context:
        prepared = open_artifact(data, stage="prepare")
        with tracked(context, "train", _prepared_dataset(prepared)):
            base = train_base(context, prepared)
            members = train_members(context, prepared, base)
    _print_artifacts({**({"base": base} if base else {}), **members})


def run_fisher(data: str, models: Sequence[str], *, recipe: str | None, **options: Any) -> None:
    """`raymerge fisher`."""
    with working(recipe=recipe or "default", **options) as context:
        prepared, members = open_artifact(data, stage="prepare"), _open_models(models)
        check_catalogue(prepared, members)
        with tracked(context, "fisher", _prepared_dataset(prepared)), context.pool() as pool:
            diagonals = fisher(context, pool, prepared, members)
    _print_artifacts(diagonals)


def run_merge(
    data: str | None, models: Sequence[str], diagonals: Sequence[str], *, recipe: str | None, **options: Any
) -> None:
    """`raymerge merge`."""
    with working(recipe=recipe or "default", **options) as context:
        members = _open_models(models)
        if diagonals and len(diagonals) != len(models):
            raise MergeError(f"give one --diagonal for each --model, or none: got {len(diagonals)} for {len(models)}")
        weights = dict(zip(members, (open_artifact(url, stage="fisher") for url in diagonals), strict=False))
        check_mergeable(members, weights)
        if METHODS[context.config.merge.method].needs_diagonals and not weights:
            raise MergeError("method fisher needs a --diagonal for each --model; or --set merge.method=average")
        check_coefficients(context.config.merge, len(members))
        if data is None:
            raise InputError("merge chooses on the validation split of prepared data: name it with --data")
        prepared = open_artifact(data, stage="prepare")
        check_catalogue(prepared, members)
        with tracked(context, "merge", _prepared_dataset(prepared)), context.pool() as pool:
            merged = merge(context, pool, prepared, members, weights, context.config.merge)
    _print_artifacts({"merged": merged})


def run_evaluate(data: str, models: Sequence[str], *, recipe: str | None, **options: Any) -> None:
    """`raymerge evaluate`."""
    with working(recipe=recipe or "default", **options) as context:
        prepared, members = open_artifact(data, stage="prepare"), _open_models(models)
        check_catalogue(prepared, members)
        with tracked(context, "evaluate", _prepared_dataset(prepared)), context.pool() as pool:
            ranks = evaluate(context, pool, prepared, members)
        metrics = {name: metrics_of(context.config.evaluation, prepared, artifact) for name, artifact in ranks.items()}
    _print_metrics(context.config, metrics)


def run_recommend(model: str, history: str, *, top: int, exclude_seen: bool) -> None:
    """`raymerge recommend`."""
    from raymerge.recommendation import recommend

    module, items = load_model(model), read_items(storage.join(model_folder(model), ITEMS_FILE))
    wanted = [item.strip() for item in history.split(",") if item.strip()]
    best = recommend(module, items, [wanted], top_k=top, exclude_seen=exclude_seen)[0]
    table = Table("item", "score")
    for item, score in zip(best["items"], best["scores"], strict=True):
        table.add_row(str(item), f"{score:.3f}")
    Console().print(table)


def run_report(url: str, html: str | None) -> None:
    """`raymerge report`."""
    place = _find_report(url)
    content = reports.loads(storage.read_bytes(place))
    if html is None:
        Console().print(reports.render(content))
        return
    drawn = figures(content, place.rsplit("/", 3)[0])  # <output>/report/<digest>/report.json
    page = reports.to_html(content, {title: to_png(one) for title, one in drawn.items()})
    storage.write_bytes(html, page.encode())
    click.echo(html)


def print_config(recipe: str, overrides: Sequence[str], listing: bool) -> None:
    """`raymerge config`."""
    if listing:
        for name in RECIPES:
            click.echo(f"{name:<10} {RECIPES[name].about}")
        return
    click.echo(yaml.safe_dump(configure(recipe, tuple(overrides)).plain(), sort_keys=False), nl=False)


def _log_files(context: Context, log: str | None) -> list[str]:
    files = source(context, log)
    check_logs(context, files)
    return files


def _dataset(context: Context, files: Sequence[str]) -> dict[str, Any]:
    return {
        "name": Path(context.config.recipe).stem,
        "digest": digest_of([file_digest(file) for file in files]),
        "source": files[0] if len(files) == 1 else files[0].rpartition("/")[0],
        "counts": {"files": len(files)},
    }


def _prepared_dataset(data: Artifact) -> dict[str, Any]:
    return {"name": "prepared", "digest": data.digest, "source": data.url, "counts": data.counts}


def _open_models(urls: Sequence[str]) -> dict[str, Artifact]:
    """Artifacts of models by a name that tells them apart; each is verified."""
    found = {}
    for url in urls:
        artifact = open_artifact(storage.absolute(url).removesuffix("/model"))
        if artifact.manifest["stage"] not in MODEL_STAGES:
            raise InputError(f"{url} is an artifact of stage {artifact.manifest['stage']!r}, not a model")
        found["-".join(artifact.url.rsplit("/", 2)[1:])] = artifact
    if len(found) < len(urls):
        raise ConfigError(f"a model was named twice: {', '.join(urls)}")
    return found


def check_catalogue(data: Artifact, models: Mapping[str, Artifact]) -> None:
    """Raise InputError unless each model's item indices mean the same items as the data's."""
    ids = read_items(data.file(ITEMS_FILE)).ids
    for model in models.values():
        if not read_items(model.file("model", ITEMS_FILE)).ids.equals(ids):
            raise InputError(
                f"{model.url} is of another catalogue than {data.url}: prepare the log that it was trained on"
            )


def _find_report(url: str) -> str:
    """The report that a URL stands for: a file, a report's folder, or the newest of an output folder."""
    url = storage.absolute(url)
    if url.endswith(".json"):
        return url
    if storage.exists(storage.join(url, "report.json")):
        return storage.join(url, "report.json")
    found = [
        storage.join(url, "report", name, "report.json") for name in storage.list_folder(storage.join(url, "report"))
    ]
    if not found:
        raise InputError(f"there is no report at {storage.without_credentials(url)}; `raymerge run` makes one")
    return max(found, key=storage.modified)


def _some_items(data: Artifact) -> str:
    return ",".join(str(item) for item in read_items(data.file(ITEMS_FILE)).ids[:3].to_pylist())


def _print_artifacts(artifacts: Mapping[str, Artifact]) -> None:
    for name, artifact in artifacts.items():
        click.echo(json.dumps({"name": name, "url": artifact.url, **artifact.counts}))


def _print_metrics(config: Config, metrics: Mapping[str, Mapping[str, float]]) -> None:
    seen = "filtered" if config.evaluation.filter_seen else "not filtered"
    table = Table("model", *next(iter(metrics.values())), title=f"test, leave-one-out, seen items {seen}")
    for name, values in metrics.items():
        table.add_row(name, *(f"{value:.4f}" for value in values.values()))
    Console().print(table)


def _print_rows(console: Console, rows: Mapping[str, str]) -> None:
    console.print()
    for name, value in rows.items():
        console.print(f"{name + ':':<12} {value}", markup=False, highlight=False, soft_wrap=True)
