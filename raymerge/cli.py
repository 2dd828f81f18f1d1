"""The `raymerge` command: `run` for the whole pipeline, and one subcommand for each of its stages."""

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

GRACE_S = 60.0  # from the first signal on
SUBMITTED = ("run", "plan", "prepare", "train", "fisher", "fisher-study", "merge", "evaluate")
RECIPE = click.option(
    "--recipe",
    help="A named configuration, or a YAML file that `raymerge config` printed; without it `default`, or `demo` where "
    "neither a log nor data are named.",
)
SET = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change a setting, such as training.epochs=3; `raymerge config` prints all. May be repeated.",
)


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Exit codes: 0 done, 2 an error of yours, 75 try again, 130 interrupted; a submitted job's is its own.",
)
@click.version_option(__version__)
@click.option("--debug", is_flag=True, help="Show the traceback of an error; goes before the command.")
def cli(debug: bool) -> None:
    """Train several sequential recommenders, weigh them by Fisher information, merge them into one.

    Start with `raymerge run`: it simulates a log and does everything. A command that was cut off goes on where it was
    when it is given again.
    """
    # main() reads --debug from the arguments: an error may come before this is called


def configured(command: F) -> F:
    """The options that all commands with a configuration share."""
    options = [
        RECIPE,
        click.option("--output", default="out", show_default=True, help="Folder or URL for all that is made."),
        SET,
        click.option("--address", help="A Ray cluster to join; without it RAY_ADDRESS, else Ray is started here."),
        click.option(
            "--tracking-uri", help="An MLflow server; without it MLFLOW_TRACKING_URI, else <output>/mlflow.db."
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@cli.command(short_help="From a log to a merged model and a table of results.")
@click.option("--input", "log", help="The interaction log: a file, folder, glob or URL.")
@configured
def run(log: str | None, **options: Any) -> None:
    """Do everything: from an interaction log to a merged model in MLflow, and a table of results."""
    from raymerge.commands import run_pipeline

    run_pipeline(log, **options)


@cli.command(short_help="Clean a log and write it as user partitions.")
@click.option("--input", "log", help="The interaction log: a file, folder, glob or URL.")
@configured
def prepare(log: str | None, **options: Any) -> None:
    """Clean an interaction log and write it as user partitions; prints a line of JSON with their URL."""
    from raymerge.commands import run_prepare

    run_prepare(log, **options)


@cli.command(short_help="Train the base, then all members at the same time.")
@click.option("--data", required=True, help="URL of data that `raymerge prepare` wrote.")
@click.option("--start", help="URL of a model that members start from, instead of a base of their own.")
@configured
def train(data: str, start: str | None, **options: Any) -> None:
    """Train the base, then all members at the same time; prints a line of JSON with the URL of each model."""
    from raymerge.commands import run_train

    run_train(data, start, **options)


@cli.command(short_help="Compute the Fisher diagonal of each model.")
@click.option("--data", required=True, help="URL of prepared data.")
@click.option("--model", "models", multiple=True, required=True, help="URL of a model; may be repeated.")
@configured
def fisher(data: str, models: tuple[str, ...], **options: Any) -> None:
    """Compute the Fisher diagonal of each model; prints a line of JSON with the URL of each."""
    from raymerge.commands import run_fisher

    run_fisher(data, models, **options)


@cli.command(short_help="How many samples are enough for a diagonal.")
@click.option("--data", required=True, help="URL of prepared data.")
@click.option("--model", required=True, help="URL of a trained model.")
@click.option("--users", type=int, help="How many users at most; without it all.")
@configured
def fisher_study(data: str, model: str, users: int | None, **options: Any) -> None:
    """Compare all estimators with the exact diagonal: error over cost, and how many samples are enough."""
    from raymerge.commands import run_fisher_study

    run_fisher_study(data, model, users, **options)


@cli.command(short_help="Merge models, also of other runs, into one.")
@click.option("--data", help="URL of prepared data; needed if there is something to choose on its validation split.")
@click.option("--model", "models", multiple=True, required=True, help="URL of a model; give two or more.")
@click.option("--diagonal", "diagonals", multiple=True, help="URL of a model's diagonal, in the order of the models.")
@configured
def merge(data: str | None, models: tuple[str, ...], diagonals: tuple[str, ...], **options: Any) -> None:
    """Merge models, also those of other runs, into one; prints a line of JSON with its URL."""
    from raymerge.commands import run_merge

    run_merge(data, models, diagonals, **options)


@cli.command(short_help="Rank every user's test item under each model.")
@click.option("--data", required=True, help="URL of prepared data.")
@click.option("--model", "models", multiple=True, required=True, help="URL of a model; may be repeated.")
@configured
def evaluate(data: str, models: tuple[str, ...], **options: Any) -> None:
    """Rank every user's test item under each model; prints a table of metrics."""
    from raymerge.commands import run_evaluate

    run_evaluate(data, models, **options)


@cli.command()
@click.option("--model", required=True, help="URL of a model, or of an output folder for the model that its run chose.")
@click.option(
    "--history",
    required=True,
    help="Own item ids, oldest first, separated by commas; in double quotes where they hold one.",
)
@click.option("--top", default=10, show_default=True, type=click.IntRange(1), help="How many items to recommend.")
@click.option("--include-seen", is_flag=True, help="Also recommend items of the history.")
def recommend(model: str, history: str, top: int, include_seen: bool) -> None:
    """Recommend the next items after a history."""
    from raymerge.commands import run_recommend

    run_recommend(model, history, top=top, exclude_seen=not include_seen)


@cli.command(short_help="Show a report, or several as one table.")
@click.argument("urls", nargs=-1, required=True)
@click.option("--html", help="File for the page; without it the table is printed.")
@click.option("--json", "json_file", help="File for all figures of the table.")
def report(urls: tuple[str, ...], html: str | None, json_file: str | None) -> None:
    """Show the report of a run again, or write it as one web page. URLS: output folders, or reports in them.

    Several runs that differ in their seed (--set seed=1) make one table of means, with their spread.
    """
    from raymerge.commands import run_report

    run_report(urls, html, json_file)


@cli.command(short_help="Send to MLflow what an output folder holds.")
@click.argument("url")
@click.option("--tracking-uri", help="An MLflow server; without it MLFLOW_TRACKING_URI, else <output>/mlflow.db.")
def log(url: str, tracking_uri: str | None) -> None:
    """Send to MLflow what an output folder holds, each figure once: after an outage, or to another server.

    URL: an output folder. Nothing is computed, and Ray is not started. A command with results missing is marked FAILED
    there: give it again to go on.
    """
    from raymerge.tracking_commands import run_log

    run_log(url, tracking_uri=tracking_uri)


@cli.command(short_help="Print all settings of a recipe, or list recipes.")
@click.option("--recipe", default="default", show_default=True, help="A named configuration or a YAML file.")
@SET
@click.option("--list", "listing", is_flag=True, help="List the recipes.")
@click.option("--objective", help="Print the `settings` that an objective takes, such as those of cl4srec.")
@click.option("--estimator", help="Print the formula of an estimator of the diagonal, and its source.")
def config(
    recipe: str, overrides: tuple[str, ...], listing: bool, objective: str | None, estimator: str | None
) -> None:
    """Print the whole configuration of a recipe with what each setting does, as YAML that --recipe takes."""
    from raymerge.config_command import print_config

    print_config(recipe, overrides, listing, objective, estimator)


@cli.command(short_help="What a run would take: processes, memory, time.")
@RECIPE
@SET
@click.option("--input", "log", help="The interaction log: a file, folder, glob or URL.")
@click.option("--data", help="URL of prepared data, instead of a log.")
@click.option("--address", help="A Ray cluster to plan for; without it RAY_ADDRESS, else this machine.")
def plan(log: str | None, data: str | None, **options: Any) -> None:
    """Print what a run would do: processes, CPUs, GPUs, memory and time of each stage, and what does not fit.

    Nothing is trained. Ends with exit code 2 if it does not fit.
    """
    from raymerge.cluster_commands import run_plan

    run_plan(log, data, **options)


@cli.command(
    short_help="Run a command as a job of a cluster.",
    epilog=f"Commands: {', '.join(SUBMITTED)}.",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.option("--address", help="The cluster's dashboard; without it RAY_ADDRESS, else http://127.0.0.1:8265.")
@click.option("--working-dir", help="A folder that the job starts in; what its .gitignore names does not travel.")
@click.option("--requirements", help="A file of pinned requirements, such as constraints.txt, to install for the job.")
@click.option("--metadata", multiple=True, metavar="KEY=VALUE", help="Noted beside the job; may be repeated.")
@click.option("--retries", default=3, show_default=True, type=click.IntRange(0), help="Tries after the cluster failed.")
@click.argument("command", type=click.Choice(SUBMITTED), metavar="COMMAND")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def submit(command: str, arguments: tuple[str, ...], **options: Any) -> None:
    """Run a COMMAND with its ARGUMENTS as a job of a Ray cluster, and follow its log.

    For example: raymerge submit --address http://HEAD:8265 run --recipe ml-1m --output s3://bucket/out. Ends with the
    job's exit code; Ctrl-C stops the job. The cluster's token is taken from RAY_AUTH_MODE and RAY_AUTH_TOKEN, or
    RAY_AUTH_TOKEN_PATH.
    """
    from raymerge.cluster_commands import run_submit

    parent = click.get_current_context().parent
    given = cli.commands[command].make_context(command, list(arguments), parent=parent).params
    sys.exit(run_submit(command, arguments, given, **options))


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command: 0 when all is done, 130 when interrupted; one line and 2 for what the user can mend, 75 for what
    another try may.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as for a command in the background of a script
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
        click.echo("raymerge: interrupted; give the same command again to go on", err=True)
        sys.exit(EXIT_INTERRUPTED)
    sys.exit(0)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Unwind, but not for ever: whoever stops a whole group of processes has stopped the Ray that is waited for."""
    last_resort = threading.Timer(GRACE_S, os._exit, [EXIT_INTERRUPTED])
    last_resort.daemon = True
    last_resort.start()
    raise KeyboardInterrupt
