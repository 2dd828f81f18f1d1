"""Where MLflow keeps the runs: its URI, how to view it, and calls that survive a server outage."""

import json
import logging
import os
import re
import shlex
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from mlflow.exceptions import MlflowException
from tenacity import Retrying, retry_if_exception, stop_after_attempt, stop_after_delay, wait_random_exponential

from raymerge.config import leaves
from raymerge.errors import ConfigError, TrackingError, innermost, reason
from raymerge.files import storage
from raymerge.files.filesystem import is_local
from raymerge.redaction import redact, without_credentials

REQUEST_TIMEOUT_S, UPLOAD_TIMEOUT_S, RETRY_LIMIT_S = 10, 120, 8  # with passwords a request may take seconds
PARAM_LENGTH, KEY_LENGTH = 6000, 250  # MLflow's limits
STORES = ("http://", "https://", "sqlite://", "postgresql", "mysql", "mssql", "databricks")
OUTAGES = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "DEADLINE_EXCEEDED")
SECRET = re.compile(r"password|passwd|secret|credential|api_?key|access_?key|auth_?token|^token$", re.IGNORECASE)

P = ParamSpec("P")
T = TypeVar("T")


def default_uri(output_dir: str) -> str:
    """The store for an output folder on this machine: `<output>/mlflow.db`; artifacts go to `<output>/mlartifacts`."""
    return f"sqlite:///{storage.absolute(output_dir)}/mlflow.db"


def resolve_uri(explicit: str | None, env: str | None, output_url: str) -> str:
    """The tracking URI: `--tracking-uri`, else MLFLOW_TRACKING_URI, else a database in the output folder.

    Raises ConfigError for a kind of store that MLflow no longer has, and for a remote output without a server.
    """
    uri = explicit or env
    if uri is None or not uri.strip():
        if is_local(output_url):
            return default_uri(output_url)
        raise ConfigError(
            f"the output {without_credentials(output_url)} is not on this machine and cannot hold MLflow's "
            "database; give a server with --tracking-uri http://HOST:PORT (or MLFLOW_TRACKING_URI)"
        )
    if not uri.startswith(STORES):
        raise ConfigError(
            f"tracking URI {redact(uri)!r} is neither a server nor a database; "
            "give --tracking-uri http://HOST:PORT or sqlite:////folder/mlflow.db"
        )
    path = sqlite_path(uri)
    return f"sqlite:///{path.absolute()}" if path else uri


def ui_command(uri: str) -> str:
    """The command that shows the runs in MLflow's UI; for a server, a command that opens its page."""
    python = shlex.quote(sys.executable)
    if uri.startswith("http"):
        return f"{python} -m webbrowser {redact(uri)}"
    beside = Path(sys.executable).with_name("mlflow")
    mlflow = "mlflow" if shutil.which("mlflow") == str(beside) else f"{python} -m mlflow"
    return f"{mlflow} ui --backend-store-uri {shlex.quote(redact(uri))}"


def metric_name(key: str) -> str:
    """The key as MLflow allows it, without `@`: its own evaluation also writes `ndcg_at_10`.

    >>> metric_name("ndcg@10")
    'ndcg_at_10'
    """
    return _allowed(key.replace("@", "_at_"))


def _allowed(name: str) -> str:
    """The name with `_` for each character that MLflow does not allow."""
    return re.sub(r"[^\w\-. :/]", "_", name)


def flatten(configuration: Mapping[str, Any]) -> dict[str, str]:
    """Nested settings as dotted parameters, lists as JSON; secrets are masked, and overlong values are cut and say so.

    >>> flatten({"training": {"epochs": 3, "seeds": [1, 2]}})
    {'training.epochs': '3', 'training.seeds': '[1, 2]'}
    """
    parameters: dict[str, str] = {}
    for path, value in leaves(configuration):
        name = _allowed(".".join(path))[:KEY_LENGTH]
        parameters[name] = "***" if SECRET.search(path[-1]) and value else _parameter(value)
    return parameters


def _parameter(value: Any) -> str:
    text = redact(value if isinstance(value, str) else json.dumps(value, default=str))
    if len(text) <= PARAM_LENGTH:
        return text
    mark = f"… ({len(text)} characters)"
    return text[: PARAM_LENGTH - len(mark)] + mark


def sqlite_path(uri: str) -> Path | None:
    """The database file of a `sqlite:///` URI, None for any other store."""
    return Path(uri.removeprefix("sqlite:///").partition("?")[0]) if uri.startswith("sqlite:///") else None


def call(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function of the client, retrying for at most about `RETRY_LIMIT_S` while the store is down."""
    attempts = Retrying(
        retry=retry_if_exception(is_outage),
        stop=stop_after_attempt(4) | stop_after_delay(RETRY_LIMIT_S),
        wait=wait_random_exponential(multiplier=0.2, max=2),
        reraise=True,
    )
    return attempts(function, *args, **kwargs)


def is_outage(error: BaseException) -> bool:
    """Whether an error means that the store cannot be reached, rather than that it refuses."""
    return isinstance(error, MlflowException) and error.error_code in OUTAGES


@contextmanager
def as_tracking_error(uri: str) -> Iterator[None]:
    """Turn any exception inside into one line that names the option to change."""
    try:
        yield
    except Exception as error:
        cure = "start that server or give another --tracking-uri"
        if isinstance(error, MlflowException) and error.get_http_status_code() in (401, 403):
            cure = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        raise TrackingError(f"MLflow at {redact(uri)} cannot be used: {reason(innermost(error))}; {cure}") from None


@contextmanager
def settings(timeout_s: int = REQUEST_TIMEOUT_S) -> Iterator[None]:
    """Inside the block, MLflow without its minutes of retries and its links, progress bars, warnings and log lines."""
    values = {
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(timeout_s),
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    }
    before = {name: os.environ[name] for name in values if name in os.environ}
    levels = {logger: logger.level for logger in map(logging.getLogger, ("mlflow", "alembic"))}
    os.environ.update(values)
    try:
        for logger in levels:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(record=True):  # a filter is not enough: MLflow sets its own on top
            yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)
        for name in values:
            del os.environ[name]
        os.environ.update(before)
