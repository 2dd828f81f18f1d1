"""Commands for a cluster elsewhere: check all that can be checked here, then hand the work over."""

import io
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich.table import Table

import raymerge
from raymerge.artifacts import open_artifact
from raymerge.commands.printing import console
from raymerge.config import Config
from raymerge.data.size import DataSize, measure
from raymerge.errors import ConfigError, InputError
from raymerge.execution.capacity import ClusterConfig
from raymerge.execution.deadline import Deadline
from raymerge.execution.plan import Plan, make_plan
from raymerge.execution.runtime import cluster_nodes, session
from raymerge.execution.submission import DEFAULT_ADDRESS, Job, run_job
from raymerge.files import storage
from raymerge.files.filesystem import is_local
from raymerge.formatting import describe, duration, gib
from raymerge.recipes import RECIPES, configure, default_recipe, is_file
from raymerge.redaction import credentials_in, query_in, redact
from raymerge.tracking.store import default_uri, sqlite_path

SETUP_TIMEOUT_S = 3600  # to install requirements, such as torch; Ray gives it ten minutes
JOB_GRACE_S = 60.0  # for a job to end by its own deadline, and to report that itself
PLACES = ("output", "log", "data", "models", "model", "start", "diagonals", "picture")
OPTIONS = {"log": "input", "models": "model", "diagonals": "diagonal"}  # whose parameters have other names
ELSEWHERE = re.compile(r"https?://(?!(localhost|127\.[\d.]+|\[::1\])([:/]|$))")  # servers that are not on loopback


def run_submit(
    command: str,
    arguments: Sequence[str],
    given: Mapping[str, Any],
    *,
    address: str | None,
    working_dir: str | None,
    requirements: str | None,
    metadata: Sequence[str],
    retries: int,
) -> int:
    """`raymerge submit`; returns the job's exit code. `given` are the parsed `arguments` of the submitted command."""
    check_travels(arguments, given)
    config = _configuration(given, working_dir)
    if command == "run":
        config.merge.check_members(len(config.all_members))
    catalogue = config.prepare.catalogue
    if command in ("run", "prepare") and catalogue is not None and is_local(catalogue) and not working_dir:
        _refuse_relative("set prepare.catalogue", catalogue, catalogue.removeprefix("file://"))
    tracking = _tracking(config, given) if "tracking_uri" in given else None
    extra = ["--tracking-uri", tracking] if tracking and not given["tracking_uri"] else []
    job = Job(
        entrypoint=shlex.join(["python", "-m", "raymerge", command, *arguments, *extra]),
        runtime_env=runtime_env(working_dir, requirements),
        metadata={"raymerge.version": raymerge.__version__, "raymerge.recipe": config.recipe, **_pairs(metadata)},
    )
    if "output" in given:
        say(f"MLflow: {_where_runs_are(tracking, given['output'])}")
    return run_job(
        job,
        address=address or os.environ.get("RAY_ADDRESS") or DEFAULT_ADDRESS,
        retries=retries,
        deadline=Deadline(config.cluster.deadline_hours * 3600 + JOB_GRACE_S),
        write=_write,
        say=say,
    )


def say(text: str) -> None:
    """Print a message on stderr; stdout has the job's log."""
    click.echo(f"raymerge: {text}", err=True)


def _write(text: str) -> None:
    """Print a part of the job's log; after an OSError nothing more, not even what Python still holds at its end."""
    try:
        click.echo(text, nl=False)
    except OSError:
        sys.stdout = io.StringIO()
        raise


def check_travels(arguments: Sequence[str], given: Mapping[str, Any]) -> None:
    """Refuse arguments that mean something else on the cluster, or secrets that its dashboard would show."""
    for argument in arguments:
        _refuse_credentials(argument)
    if given["address"]:
        raise ConfigError("--address of the cluster goes before the command: raymerge submit --address URL run …")
    for name in PLACES:
        value = given.get(name) or ()
        for url in (value,) if isinstance(value, str) else value:
            if is_local(url):
                _refuse_relative(OPTIONS.get(name, name), url, url.removeprefix("file://"))


def _refuse_relative(option: str, url: str, path: str | Path) -> None:
    if not os.path.isabs(path):
        raise InputError(
            f"--{option} {url!r} is relative to a folder of this machine; "
            "give a URL, or an absolute path that all nodes of the cluster see"
        )


def _configuration(given: Mapping[str, Any], working_dir: str | None) -> Config:
    """The job's configuration; its errors are found here."""
    recipe = given["recipe"] or default_recipe(given.get("log"))
    if is_file(recipe) and is_local(recipe):
        if working_dir is None or os.path.isabs(recipe):
            raise InputError(
                f"{recipe} would not be uploaded: give --working-dir FOLDER, and --recipe relative to that folder"
            )
        recipe = os.path.join(working_dir, recipe)
    return configure(recipe, given["overrides"])


def runtime_env(working_dir: str | None, requirements: str | None) -> dict[str, Any]:
    """What is sent with a job: this package; a folder, without files matched by its .gitignore; and requirements."""
    package = Path(raymerge.__file__).parent
    environment: dict[str, Any] = {}
    if working_dir is not None:
        if not os.path.isdir(working_dir):
            raise InputError(f"--working-dir {working_dir} is not a folder")
        environment["working_dir"] = os.path.abspath(working_dir)
    if working_dir is None or not (Path(working_dir) / package.name / "__init__.py").is_file():
        environment["py_modules"] = [str(package)]
    if requirements is not None:
        environment["pip"] = {"packages": _requirements(requirements), "pip_check": False}
        environment["config"] = {"setup_timeout_seconds": SETUP_TIMEOUT_S}
    return environment


def _requirements(file: str) -> list[str]:
    """Lines of a requirements file, without Ray itself: a job runs on the cluster's."""
    try:
        lines = storage.read_bytes(file).decode("utf-8").splitlines()
    except UnicodeDecodeError:
        raise InputError(f"--requirements {file} is not UTF-8 text") from None
    wanted = [line.partition("#")[0].strip() for line in lines]
    for line in wanted:
        _refuse_credentials(line)
    return [line for line in wanted if line and not re.match(r"ray\b(?!-)", line)]


def _refuse_credentials(argument: str) -> None:
    found = "a user or password" if credentials_in(argument) else "the query of a URL" if query_in(argument) else None
    if found:
        raise ConfigError(
            f"{redact(argument)} contains {found}, which the cluster's dashboard would show; "
            "leave it out and set credentials in the environment of the cluster's processes"
        )


def _tracking(config: Config, given: Mapping[str, Any]) -> str | None:
    """The tracking URI that is configured here, else the server of the environment.

    The latter is used only if it means the same on the cluster and has no credentials, since a command line shows it.
    """
    _refuse_credentials(config.tracking.uri or "")
    named = given["tracking_uri"] or config.tracking.uri
    if named and (path := sqlite_path(named)):
        _refuse_relative("tracking-uri", named, path)
    ours = os.environ.get("MLFLOW_TRACKING_URI") or ""
    travels = ELSEWHERE.match(ours) and not credentials_in(ours) and not query_in(ours)
    return named or (ours if travels else None)


def _where_runs_are(tracking: str | None, output: str) -> str:
    if tracking:
        return redact(tracking)
    theirs = "the server in MLFLOW_TRACKING_URI of the cluster"
    return f"{theirs}, else {default_uri(output)}" if is_local(output) else theirs


def _pairs(metadata: Sequence[str]) -> dict[str, str]:
    for pair in metadata:
        _refuse_credentials(pair)
        if "=" not in pair:
            raise ConfigError(f"--metadata takes key=value, got {pair!r}")
    return dict(pair.split("=", 1) for pair in metadata)


def run_plan(
    log: str | None, data: str | None, *, recipe: str | None, overrides: Sequence[str], address: str | None
) -> None:
    """`raymerge plan`: print the plan of a run; ResourceError if it does not fit."""
    changes = [*overrides, *([f"cluster.address={address}"] if address else [])]
    config = configure(recipe or default_recipe(log or data), changes)
    config.merge.check_members(len(config.all_members))
    size = _size(config, log, data)
    with session(ClusterConfig(address=config.cluster.address)):  # all that it has is planned for
        nodes = cluster_nodes()
    plan = make_plan(config, size, nodes)
    click.echo(f"{size.users:,} users, {size.items:,} items, {size.interactions:,} interactions on {describe(nodes)}")
    console().print(_table(plan))
    for note in plan.notes:
        click.echo(f"note: {note}")
    plan.check()


def _size(config: Config, log: str | None, data: str | None) -> DataSize:
    if data is not None and log is not None:
        raise InputError("plan takes a log with --input or prepared --data, not both: leave one out")
    if data is not None:
        return DataSize.of(open_artifact(data, "prepare").counts)
    if log is not None:
        return measure(storage.list_files(storage.absolute(log)), config.prepare)
    known = RECIPES[config.recipe].size if config.recipe in RECIPES else None
    if known is None:
        raise InputError(f"recipe {config.recipe} needs data to plan for: give a log with --input, or prepared --data")
    return known


def _table(plan: Plan) -> Table:
    table = Table("stage", "processes", "each with", "memory each", "time")
    for stage in plan.stages:
        each = ", ".join(f"{amount:g} {kind}" for kind, amount in stage.resources.items() if amount) or "the driver"
        row = (stage.name, str(stage.processes), each, gib(stage.memory_bytes), duration(stage.seconds))
        table.add_row(*row)
    table.add_section()
    table.add_row("all", "", "", "", duration(plan.seconds))
    return table
