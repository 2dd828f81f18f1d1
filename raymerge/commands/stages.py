"""Commands that run stages: check everything, start Ray, run them, and print where the results are."""

import csv
import io
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raymerge.artifacts import Artifact
from raymerge.commands.context import CommandContext, command_context, tracked, tracked_pool
from raymerge.commands.inputs import (
    check_catalogue,
    dataset_of,
    dataset_of_log,
    dataset_of_models,
    log_files,
    open_data,
    open_diagonals,
    open_models,
    open_start,
)
from raymerge.commands.printing import console, print_artifacts, print_metrics, print_rows
from raymerge.commands.tracking import send_report
from raymerge.data.prepare import ITEMS_FILE
from raymerge.data.sequences import read_items
from raymerge.data.size import measure
from raymerge.errors import ConfigError, InputError, MergeError, TrackingError
from raymerge.evaluation import report_schema
from raymerge.evaluation.report_schema import REPORT_FILE
from raymerge.execution.plan import make_plan, summary
from raymerge.execution.runtime import cluster_nodes, session
from raymerge.files import storage
from raymerge.merging.methods import MergeSetting
from raymerge.pipeline import run as pipeline
from raymerge.recipes import default_recipe
from raymerge.redaction import redact
from raymerge.stages.context import Context
from raymerge.stages.evaluate import evaluate, metrics_of
from raymerge.stages.fisher import check_samples, fisher
from raymerge.stages.markets import check_division, divide
from raymerge.stages.merge import check_mergeable, merge
from raymerge.stages.prepare import prepare
from raymerge.stages.study import fisher_study, run_of
from raymerge.stages.train import train_base, train_members
from raymerge.tracking import report as reports
from raymerge.tracking import study as studies
from raymerge.tracking.plots import FILE_KINDS, error_over_cost, to_file
from raymerge.tracking.runs import Tracker
from raymerge.tracking.store import ui_command


def run_pipeline(log: str | None, *, recipe: str | None, **options: Any) -> None:
    """`raymerge run`."""
    with command_context(recipe=recipe or default_recipe(log), **options) as context:
        context.config.merge.check_members(len(context.config.all_members))
        files = log_files(context, log)
        with tracked(context, "run", dataset_of_log(context, files)) as tracker, session(context.config.cluster):
            _announce_plan(context, files)
            result = pipeline(context, files)
            registered = _register(context, tracker, result.report)
    shown = console()
    shown.print(reports.render(report_schema.read(result.report.file(REPORT_FILE))))
    rows = {
        "model": result.final.file("model"),
        "report": result.report.file(REPORT_FILE),
        "registered": registered,
        "MLflow": ui_command(tracker.uri),
        "try it": f"raymerge recommend --model {shlex.quote(result.final.url)} --history {_some_items(result.data)}",
    }
    print_rows(shown, rows)


def _announce_plan(context: CommandContext, files: Sequence[str]) -> None:
    """Print how long it will take and what may not fit: memory is an estimate, so the run is not refused."""
    plan = make_plan(context.config, measure(files, context.config.prepare), cluster_nodes())
    for line in (summary(plan), *(f"may not fit: {problem}" for problem in plan.problems)):
        context.emit.console.print(line, markup=False, highlight=False, soft_wrap=True)


def _register(context: Context, tracker: Tracker, report: Artifact) -> str:
    """Upload the report and register the model; returns the outcome in words."""
    try:
        registered = send_report(tracker, context.output.url, context.config.plain(), report)
    except TrackingError as error:
        return _not_yet(context, tracker, error)
    return f"{registered.uri} ({'champion' if registered.champion else 'not the champion'}: {registered.reason})"


def _not_yet(context: Context, tracker: Tracker, error: TrackingError) -> str:
    """What to do about a server that is gone by now: the results are in the output folder."""
    later = f"raymerge log {shlex.quote(context.output.url)} --tracking-uri {shlex.quote(redact(tracker.uri))}"
    return f"not yet: {error}; once the server is up: {later}"


def _some_items(data: Artifact) -> str:
    """The first items of a catalogue, quoted for a shell, for `--history`."""
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(read_items(data.file(ITEMS_FILE)).ids[:3].to_pylist())
    return shlex.quote(line.getvalue())


def run_prepare(log: str | None, *, recipe: str | None, **options: Any) -> None:
    """`raymerge prepare`."""
    with command_context(recipe=recipe or default_recipe(log), **options) as context:
        files = log_files(context, log)
        with tracked(context, "prepare", dataset_of_log(context, files)):
            data = prepare(context, files)
    print_artifacts({"data": data})


def run_train(data: str, start: str | None, *, recipe: str | None, **options: Any) -> None:
    """`raymerge train`."""
    with command_context(recipe=recipe or "default", **options) as context:
        if context.config.rounds > 1:
            raise ConfigError(
                "train makes one round: --set rounds=1, and for each further round --start MERGED --set seed=OTHER"
            )
        prepared = open_data(data)
        check_division(context.config.markets, prepared)
        given = open_start(context, prepared, start) if start else None
        starts = [given] if given else []
        with tracked(context, "train", dataset_of(prepared), starts), session(context.config.cluster):
            parts = divide(context, prepared)
            base = given or train_base(context, parts.base)
            members = train_members(context, parts.members, base)
    print_artifacts({**({"base": base} if base else {}), **members})
    if context.config.markets is not None:
        print_artifacts({f"data of {name}": part for name, part in parts.members.items()})


def run_fisher(data: str, models: Sequence[str], *, recipe: str | None, **options: Any) -> None:
    """`raymerge fisher`."""
    with command_context(recipe=recipe or "default", **options) as context:
        prepared, members = open_data(data), open_models(models)
        check_catalogue(prepared, members)
        check_samples(context.config, [prepared], members.values())
        with tracked_pool(context, "fisher", prepared, members.values()) as pool:
            diagonals = fisher(context, pool, prepared, members)
    print_artifacts(diagonals)


def run_fisher_study(
    data: str,
    model: str,
    users: int | None,
    picture: str | None,
    *,
    recipe: str | None,
    overrides: Sequence[str],
    **options: Any,
) -> None:
    """`raymerge fisher-study`."""
    kind = Path(picture or "study.png").suffix[1:]
    if kind not in FILE_KINDS:
        raise InputError(f"--picture must end with .{', .'.join(FILE_KINDS)}, got {picture}")
    changes = [*overrides, *([] if users is None else [f"study.users={users}"])]
    with command_context(recipe=recipe or "default", overrides=changes, **options) as context:
        prepared, members = open_data(data), open_models([model])
        check_catalogue(prepared, members)
        [(name, trained)] = members.items()
        dataset = dataset_of(prepared)
        with tracked(context, "fisher-study", dataset, [trained]) as tracker, session(context.config.cluster):
            with context.pool() as pool:
                made = fisher_study(context, pool, prepared, name, trained)
            in_mlflow = _log_study(context, tracker, name, made)
    shown, study = console(), studies.read(made)
    shown.print(studies.render(study))
    places = {"study": made.file("study.json"), "MLflow": in_mlflow}
    if picture is not None:
        storage.write_bytes(picture, to_file(error_over_cost(study), kind))
        places["picture"] = picture
    print_rows(shown, places)


def _log_study(context: Context, tracker: Tracker, model: str, made: Artifact) -> str:
    """Log the study of a model; returns where it can be seen, in words."""
    try:
        studies.log_study(tracker, run_of(model), made)
    except TrackingError as error:
        return _not_yet(context, tracker, error)
    return ui_command(tracker.uri)


def run_merge(
    data: str | None,
    models: Sequence[str],
    diagonals: Sequence[str],
    start: str | None,
    *,
    recipe: str | None,
    **options: Any,
) -> None:
    """`raymerge merge`."""
    with command_context(recipe=recipe or "default", **options) as context:
        settings, members = context.config.merge, open_models(models)
        if len(members) < 2:
            raise MergeError(f"a merge needs at least two models, got {len(members)}: give --model for each")
        if diagonals and len(diagonals) != len(models):
            raise MergeError(f"give one --diagonal for each --model, or none: got {len(diagonals)} for {len(models)}")
        weights = open_diagonals(diagonals, members) if diagonals else {}
        if settings.needs_start and start is None:
            raise MergeError(f"merge.step is {settings.step}: name the model that they started from with --start")
        if start is not None and not settings.needs_start:
            raise MergeError("merge.step is 1, which takes no --start: leave it out, or --set merge.step=0.75")
        origin = next(iter(open_models([start]).values())) if start else None
        check_mergeable(members | ({"--start": origin} if origin else {}), weights)
        if settings.needs_diagonals and not weights:
            raise MergeError(
                f"method {settings.method} needs a --diagonal for each --model; or --set merge.method=average"
            )
        settings.check_members(len(members))
        merged = _merge(context, data, members, weights, origin)
    print_artifacts({"merged": merged})


def _merge(
    context: CommandContext,
    data: str | None,
    members: Mapping[str, Artifact],
    diagonals: Mapping[str, Artifact],
    start: Artifact | None,
) -> Artifact:
    """The merge; open settings are chosen on the validation split of the data."""
    settings, given = context.config.merge, [*members.values(), *diagonals.values(), *([start] if start else [])]
    if data is not None:
        prepared = open_data(data)
        check_catalogue(prepared, members)
        with tracked_pool(context, "merge", prepared, given) as pool:
            return merge(context, pool, [prepared], members, diagonals, settings, start=start)
    if settings.searched:
        name = settings.searched[0]
        plain = getattr(MergeSetting(), name, "equal")  # coefficients are not part of a setting
        raise InputError(
            f"merge chooses {', '.join(settings.searched)} on the validation split of prepared data: give --data, or "
            f"set what it would choose, as in --set merge.{name}={plain}"
        )
    with tracked(context, "merge", dataset_of_models([*members.values()]), given):
        return merge(context, None, [], members, diagonals, settings, start=start)


def run_evaluate(data: str, models: Sequence[str], *, recipe: str | None, **options: Any) -> None:
    """`raymerge evaluate`."""
    with command_context(recipe=recipe or "default", **options) as context:
        prepared, members = open_data(data, tests=True), open_models(models)
        check_catalogue(prepared, members)
        with tracked_pool(context, "evaluate", prepared, members.values()) as pool:
            ranks = evaluate(context, pool, prepared, members)
    print_metrics(context.config, {name: metrics_of(one) for name, one in ranks.items()})
