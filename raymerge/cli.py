"""The `raymerge` command: `run` for the whole pipeline, and one subcommand per stage."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn, TypeVar

import click

from raymerge import __version__
from raymerge.errors import EXIT_INTERRUPTED, EXIT_TRY_AGAIN, EXIT_USER_ERROR, LostError, UserError

F = TypeVar("F", bound=Callable[..., Any])

GRACE_S = 60.0  # after the first signal
SUBMITTED = ("run", "plan", "prepare", "train", "fisher", "fisher-study", "merge", "evaluate")
RECIPE = click.option(
    "--recipe",
    help="Recipe name, or YAML file as printed by `raymerge config` (default: `default`; for run, prepare and plan "
    "without a log or data: `demo`).",
)
SET = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change a setting, such as training.epochs=3; `raymerge config` lists them (repeatable).",
)
INPUT = click.option("--input", "log", help="Interaction log: file, folder, glob or URL.")
DATA = click.option("--data", required=True, help="URL of prepared data.")
TRACKING_URI = click.option(
    "--tracking-uri",
    help="MLflow server or database (default: MLFLOW_TRACKING_URI, else <output>/mlflow.db).",
)


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Exit codes: 0 success, 2 user error, 75 temporary failure (retry), 130 interrupted; "
    "submit returns the job's own code, or 1 if the cluster was lost.",
)
@click.version_option(__version__)
@click.option("--debug", is_flag=True, help="Show the traceback of an error; place it before the command.")
def cli(debug: bool) -> None:
    """Train several sequential recommenders, weigh them by Fisher information, merge them into one.

    Start with `raymerge run`: it simulates a log and runs the whole pipeline. Repeat an interrupted command to resume
    it.
    """
    # main() reads --debug from the arguments: an error may come before this is called


def stage_options(command: F) -> F:
    """Add the options shared by all commands that have a configuration."""
    options = [
        RECIPE,
        click.option("--output", default="out", show_default=True, help="Output folder or URL."),
        SET,
        click.option("--address", help="Ray cluster to join (default: RAY_ADDRESS, else a local Ray is started)."),
        TRACKING_URI,
    ]
    for option in reversed(options):
        command = option(command)
    return command


@cli.command(short_help="Run the whole pipeline, from a log to a merged model.")
@INPUT
@stage_options
def run(log: str | None, **options: Any) -> None:
    """Run the whole pipeline: from an interaction log to a merged model in MLflow and a table of results."""
    from raymerge.commands.stages import run_pipeline

    run_pipeline(log, **options)


@cli.command(short_help="Clean a log and partition it by user.")
@INPUT
@stage_options
def prepare(log: str | None, **options: Any) -> None:
    """Clean an interaction log and partition it by user. Prints one line of JSON with the URL of the data."""
    from raymerge.commands.stages import run_prepare

    run_prepare(log, **options)


@cli.command(short_help="Train the base, then all members in parallel.")
@DATA
@click.option("--start", help="URL of a model that members start from, instead of training a base.")
@stage_options
def train(data: str, start: str | None, **options: Any) -> None:
    """Train the base, then all members in parallel. Prints one line of JSON per model with its URL."""
    from raymerge.commands.stages import run_train

    run_train(data, start, **options)


@cli.command(short_help="Compute the Fisher diagonal of each model.")
@DATA
@click.option("--model", "models", multiple=True, required=True, help="URL of a model (repeatable).")
@stage_options
def fisher(data: str, models: tuple[str, ...], **options: Any) -> None:
    """Compute the Fisher diagonal of each model. Prints one line of JSON per diagonal with its URL."""
    from raymerge.commands.stages import run_fisher

    run_fisher(data, models, **options)


@cli.command(short_help="Compare estimators of the Fisher diagonal.")
@DATA
@click.option("--model", required=True, help="URL of a trained model.")
@click.option("--users", type=int, help="Maximum number of users (default: all).")
@click.option("--picture", metavar="FILE", help="Draw error over cost into this file: .png, .svg or .pdf.")
@stage_options
def fisher_study(data: str, model: str, users: int | None, picture: str | None, **options: Any) -> None:
    """Compare all estimators with the exact diagonal: error against cost, and how many samples are enough."""
    from raymerge.commands.stages import run_fisher_study

    run_fisher_study(data, model, users, picture, **options)


@cli.command(short_help="Merge models, of this or other runs, into one.")
@click.option("--data", help="URL of prepared data; needed if the merge makes a choice on its validation split.")
@click.option("--model", "models", multiple=True, required=True, help="URL of a model (repeatable; at least two).")
@click.option("--diagonal", "diagonals", multiple=True, help="URL of a diagonal (one per model, in any order).")
@click.option("--start", help="URL of the model that they started from; needed for a merge.step other than 1.")
@stage_options
def merge(
    data: str | None, models: tuple[str, ...], diagonals: tuple[str, ...], start: str | None, **options: Any
) -> None:
    """Merge models, of this or other runs, into one. Prints one line of JSON with its URL."""
    from raymerge.commands.stages import run_merge

    run_merge(data, models, diagonals, start, **options)


@cli.command(short_help="Rank each user's test item under each model.")
@DATA
@click.option("--model", "models", multiple=True, required=True, help="URL of a model (repeatable).")
@stage_options
def evaluate(data: str, models: tuple[str, ...], **options: Any) -> None:
    """Rank each user's test item under each model. Prints a table of metrics."""
    from raymerge.commands.stages import run_evaluate

    run_evaluate(data, models, **options)


@cli.command()
@click.option(
    "--model", required=True, help="URL of a model, or of an output folder: the model that its last run chose."
)
@click.option(
    "--history",
    required=True,
    help="Item ids as in your log, oldest first, comma-separated; double-quote an id that contains a comma.",
)
@click.option("--top", default=10, show_default=True, type=click.IntRange(1), help="Number of items to recommend.")
@click.option("--include-seen", is_flag=True, help="Also recommend items that are in the history.")
def recommend(model: str, history: str, top: int, include_seen: bool) -> None:
    """Recommend the next items after a history."""
    from raymerge.commands.results import run_recommend

    run_recommend(model, history, top=top, exclude_seen=not include_seen)


@cli.command(short_help="Show the report of one run, or of several in one table.")
@click.argument("urls", nargs=-1, required=True)
@click.option("--html", help="Write an HTML page to this file instead of printing the table.")
@click.option("--json", "json_file", help="Write all figures of the table to this file.")
def report(urls: tuple[str, ...], html: str | None, json_file: str | None) -> None:
    """Show the report of a run, or write it as a web page. URLS: output folders, or reports in them.

    Several runs that differ only in their seed (--set seed=1) give one table of means with their spread.
    """
    from raymerge.commands.results import run_report

    run_report(urls, html, json_file)


@cli.command(short_help="Send the results in an output folder to MLflow.")
@click.argument("url")
@TRACKING_URI
def log(url: str, tracking_uri: str | None) -> None:
    """Send the results in an output folder to MLflow, each figure once: after an outage, or to another server.

    URL: an output folder. Nothing is computed and Ray is not started. A command with missing results is marked FAILED
    in MLflow: run it again to resume it.
    """
    from raymerge.commands.tracking import run_log

    run_log(url, tracking_uri=tracking_uri)


@cli.command(short_help="Print all settings of a recipe, or list the recipes.")
@click.option("--recipe", default="default", show_default=True, help="Recipe name or YAML file.")
@SET
@click.option("--list", "listing", is_flag=True, help="List the recipes.")
@click.option("--objective", help="Print the settings of an objective, such as cl4srec.")
@click.option("--estimator", help="Print the formula and the source of an estimator of the diagonal.")
def config(
    recipe: str, overrides: tuple[str, ...], listing: bool, objective: str | None, estimator: str | None
) -> None:
    """Print the whole configuration of a recipe as commented YAML, which --recipe accepts."""
    from raymerge.commands.config import print_config

    print_config(recipe, overrides, listing, objective, estimator)


@cli.command(short_help="Estimate the processes, memory and time of a run.")
@RECIPE
@SET
@INPUT
@click.option("--data", help="URL of prepared data, instead of a log.")
@click.option("--address", help="Ray cluster to plan for (default: RAY_ADDRESS, else this machine).")
def plan(log: str | None, data: str | None, **options: Any) -> None:
    """Print the processes, CPUs, GPUs, memory and time that each stage of a run would take, and what does not fit.

    Nothing is trained. The exit code is 2 if something does not fit.
    """
    from raymerge.commands.cluster import run_plan

    run_plan(log, data, **options)


@cli.command(
    short_help="Run a command as a job on a cluster.",
    epilog=f"Commands: {', '.join(SUBMITTED)}.",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.option("--address", help="URL of the cluster's dashboard (default: RAY_ADDRESS, else http://127.0.0.1:8265).")
@click.option(
    "--working-dir",
    help="Folder to upload as the job's working directory; files matched by its .gitignore are skipped.",
)
@click.option("--requirements", help="File of pinned requirements to install for the job, such as constraints.txt.")
@click.option("--metadata", multiple=True, metavar="KEY=VALUE", help="Metadata to attach to the job (repeatable).")
@click.option(
    "--retries",
    default=3,
    show_default=True,
    type=click.IntRange(0),
    help="How often to resubmit after a cluster failure.",
)
@click.argument("command", type=click.Choice(SUBMITTED), metavar="COMMAND")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def submit(command: str, arguments: tuple[str, ...], **options: Any) -> None:
    """Run a command as a job on a Ray cluster and follow its log.

    For example: raymerge submit --address http://HEAD:8265 run --recipe ml-1m --output s3://bucket/out. The exit code
    is the job's; Ctrl-C stops the job. For a cluster with a token set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN, or
    RAY_AUTH_TOKEN_PATH.
    """
    from raymerge.commands.cluster import run_submit

    parent = click.get_current_context().parent
    given = cli.commands[command].make_context(command, list(arguments), parent=parent).params
    sys.exit(run_submit(command, arguments, given, **options))


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command and exit with a code that the help lists; a user error is reported in one line."""
    arguments = sys.argv[1:] if arguments is None else arguments
    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as it is for a background command of a script
            signal.signal(number, _interrupt)
    try:
        cli(arguments, prog_name="raymerge", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(EXIT_USER_ERROR)
    except click.ClickException as error:
        where = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "raymerge"
        message = " ".join(error.format_message().split()).rstrip(".")
        click.echo(f"raymerge: {message} (see {where} --help)", err=True)
        sys.exit(EXIT_USER_ERROR)
    except (UserError, click.exceptions.Abort, KeyboardInterrupt) as error:
        if "--debug" in arguments:
            raise
        if isinstance(error, UserError):
            click.echo(f"raymerge: {error}", err=True)
            sys.exit(EXIT_TRY_AGAIN if isinstance(error, LostError) else EXIT_USER_ERROR)
        click.echo("raymerge: interrupted; run the same command again to resume it", err=True)
        sys.exit(EXIT_INTERRUPTED)
    sys.exit(0)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Unwind, but not for ever: a signal to the whole process group also stops the Ray that cleanup waits for."""
    last_resort = threading.Timer(GRACE_S, os._exit, [EXIT_INTERRUPTED])
    last_resort.daemon = True
    last_resort.start()
    raise KeyboardInterrupt
