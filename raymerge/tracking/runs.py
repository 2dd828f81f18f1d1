"""The pipeline's runs in MLflow, written only by the driver: one parent, and one child per stage and model.

Runs are addressed by id through `MlflowClient`; MLflow's process-wide state (active run, tracking URI) is never used.
"""

import json
import logging
import time
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from typing_extensions import Self

from raymerge.errors import innermost, reason
from raymerge.events import Event
from raymerge.files.filesystem import is_local
from raymerge.redaction import redact, without_credentials
from raymerge.tracking import store
from raymerge.tracking.store import call, flatten, metric_name

PIPELINE = ""  # the parent's name among the runs
TAG_IDENTITY, TAG_RUN, TAG_DATA = ("raymerge.identity", "raymerge.run", "raymerge.data_digest")
METRICS_A_BATCH, PARAMS_A_BATCH, DATASET_DIGEST_LENGTH = (1000, 100, 36)  # MLflow's limits
FLUSH_INTERVAL_S, OUTAGE_INTERVAL_S = 5.0, 60.0

log = logging.getLogger(__name__)


def check_server(uri: str) -> None:
    """Raise TrackingError within seconds if a server cannot be reached; a database is neither opened nor created."""
    if uri.startswith("http"):
        with store.as_tracking_error(uri), store.settings():
            call(MlflowClient(uri).search_experiments, max_results=1)


class Tracker:
    """Records one pipeline run: buffers events, sends them in batches, and survives server outages.

    The parent run is found again by `identity`, which must digest everything that determines the run's results, and
    where its output is: the same command, restarted, continues the run, and no (run, key, step) is recorded twice.
    Not thread-safe. Credentials in URLs are never recorded.
    """

    def __init__(
        self,
        uri: str,
        experiment: str,
        *,
        name: str,
        identity: str,
        configuration: Mapping[str, Any],
        dataset: Mapping[str, Any],
    ) -> None:
        """`dataset` has `name`, `digest`, `source` (a URL) and `counts`.

        Nothing is sent before the `with` block is entered.
        """
        self.uri = uri
        self.name = name
        self.identity = identity
        self.experiment = experiment
        self.experiment_id = ""
        self.data_digest = str(dataset["digest"])
        self._configuration = configuration
        self._dataset = dataset
        self._runs: dict[str, Run] = {}
        self._finished: set[str] = set()
        self._held: dict[str, set[tuple[str, int]]] = {}  # by run: what the server had before this process
        self._taken: set[tuple[str, str, int]] = set()
        self._waiting: dict[str, list[Metric]] = {}
        self._refused: dict[str, float] = {}  # by run: when to try again
        self._due = 0.0
        self._away = False
        self.outcome = "FINISHED"
        """The pipeline's final status in MLflow if no exception ends it."""

    @cached_property
    def client(self) -> MlflowClient:
        """MLflow's client for the store; creating the first one sets up a new database."""
        return MlflowClient(self.uri)

    def __enter__(self) -> Self:
        """Open the pipeline's run; TrackingError within seconds if the store cannot be reached."""
        with store.as_tracking_error(self.uri), store.settings():
            call(self.client.search_experiments, max_results=1)
            call(self._open_pipeline)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._refused = dict.fromkeys(self._refused, 0.0)
        self.flush()
        status = self.outcome if kind is None else "FAILED" if issubclass(kind, Exception) else "KILLED"
        for name in sorted(set(self._runs) - self._finished, reverse=True):  # the parent, "", last
            if not self._terminate(name, "FAILED" if name in self._waiting else status):
                break  # if the store is down, do not try every run
        if self.pending:
            log.warning("%d metrics did not reach MLflow at %s", self.pending, redact(self.uri))

    def __call__(self, event: Event) -> None:
        """Take an event once per (run, key, step); send the buffer if it was last sent some seconds ago."""
        key = metric_name(event.key)
        if (event.run, key, event.step) in self._taken:
            return
        self._taken.add((event.run, key, event.step))
        # The time is fixed here: the store then sees a batch resent after a lost answer as the same one.
        metric = Metric(key, float(event.value), time.time_ns() // 1_000_000, event.step)
        self._waiting.setdefault(event.run, []).append(metric)
        if time.monotonic() >= self._due:
            self.flush()

    def log_artifacts(self, run: str, files: Iterable[Path], folder: str | None = None) -> None:
        """Upload files to a run now; TrackingError if the server does not take them."""
        with store.as_tracking_error(self.uri), store.settings(store.UPLOAD_TIMEOUT_S):
            for file in files:
                call(self.client.log_artifact, self.run_id(run), str(file), folder)

    def finish(self, run: str) -> None:
        """Mark a child as FINISHED now rather than with the pipeline; in an outage this waits until the end."""
        away = self._away and time.monotonic() < self._due  # do not wait repeatedly for a store that is down
        if run not in self._runs.keys() | self._waiting.keys() or away:
            return
        self.flush()
        if run not in self._waiting and not self._away:
            self._terminate(run, "FINISHED")

    def run_id(self, run: str = PIPELINE) -> str:
        """MLflow's id of a run, which is created if necessary."""
        if run not in self._runs:
            with store.settings():
                self._runs[run] = call(self._open_child, run)
        return str(self._runs[run].info.run_id)

    @property
    def pending(self) -> int:
        """How many metrics are waiting to be sent."""
        return sum(map(len, self._waiting.values()))

    def flush(self) -> bool:
        """Send the buffer; False if the store did not take all of it: the rest is kept, and the job continues.

        A run that the store refuses, such as one that somebody has deleted, does not hold up the others.
        """
        for run in sorted(run for run in self._waiting if time.monotonic() >= self._refused.get(run, 0.0)):
            try:
                with store.settings():
                    self._send_metrics(run)
            except Exception as error:
                if store.is_outage(error):
                    self._report_outage(error)
                    return False
                self._report_refusal(run, error)
        self._due = time.monotonic() + FLUSH_INTERVAL_S
        self._away = False
        return not self._waiting

    def _send_metrics(self, run: str) -> None:
        run_id, held, waiting = self.run_id(run), self._held_by_server(run), self._waiting[run]
        while waiting:
            fresh = [metric for metric in waiting[:METRICS_A_BATCH] if (metric.key, metric.step) not in held]
            if fresh:
                call(self.client.log_batch, run_id, metrics=fresh)
                self._finished.discard(run)
            del waiting[:METRICS_A_BATCH]
        del self._waiting[run]

    def _held_by_server(self, run: str) -> set[tuple[str, int]]:
        if run not in self._held:
            run_id = self.run_id(run)
            keys = call(self.client.get_run, run_id).data.metrics
            histories = [call(self.client.get_metric_history, run_id, key) for key in keys]
            self._held[run] = {(metric.key, metric.step) for history in histories for metric in history}
        return self._held[run]

    def _terminate(self, run: str, status: str) -> bool:
        """End a run in MLflow; False if the store is down, True even if it refuses only this run."""
        try:
            with store.settings():
                call(self.client.set_terminated, self.run_id(run), status)
        except Exception as error:
            if store.is_outage(error):
                self._report_outage(error)
                return False
            self._report_refusal(run, error)
            return True
        self._finished.add(run)
        return True

    def _report_refusal(self, run: str, error: Exception) -> None:
        if run not in self._refused:
            log.warning("MLflow at %s refuses run %s: %s", redact(self.uri), run, reason(innermost(error)))
        self._refused[run] = time.monotonic() + OUTAGE_INTERVAL_S

    def _report_outage(self, error: Exception) -> None:
        if not self._away:
            log.warning("MLflow at %s: %s; metrics are kept and sent later", redact(self.uri), reason(innermost(error)))
        self._away = True
        self._due = time.monotonic() + OUTAGE_INTERVAL_S

    def _open_pipeline(self) -> None:
        self.experiment_id = self._open_experiment()
        tags = {TAG_RUN: "pipeline", TAG_IDENTITY: self.identity}
        parent = self._find_run(tags) or self.client.create_run(
            self.experiment_id, run_name=self.name, tags=tags | {TAG_DATA: self.data_digest}
        )
        run_id = parent.info.run_id
        if parent.info.status != "RUNNING":
            self.client.update_run(run_id, status="RUNNING")
        children = self.client.search_runs([self.experiment_id], _condition({MLFLOW_PARENT_RUN_ID: run_id}))
        self._runs = {PIPELINE: parent} | {child.data.tags[TAG_RUN]: child for child in children}
        self._finished = {child.data.tags[TAG_RUN] for child in children if child.info.status == "FINISHED"}
        self._log_parameters(parent)
        self.client.log_inputs(run_id, [_dataset_input(self._dataset)])

    def _open_experiment(self) -> str:
        found = self.client.get_experiment_by_name(self.experiment)
        if found is not None:
            return str(found.experiment_id)
        database = store.sqlite_path(self.uri)
        location = (database.parent / "mlartifacts").as_uri() if database else None  # a server has its own place
        return str(self.client.create_experiment(self.experiment, artifact_location=location))

    def _open_child(self, run: str) -> Run:
        """Look first: the answer to an earlier attempt to create it may have been lost."""
        tags = {TAG_RUN: run, MLFLOW_PARENT_RUN_ID: self._runs[PIPELINE].info.run_id}
        return self._find_run(tags) or self.client.create_run(self.experiment_id, run_name=run, tags=tags)

    def _find_run(self, tags: Mapping[str, str]) -> Run | None:
        found = self.client.search_runs([self.experiment_id], _condition(tags), max_results=1)
        return found[0] if found else None

    def _log_parameters(self, parent: Run) -> None:
        """A parameter is written once; the new value of one that a restart changed (actors, GPUs) goes into a tag."""
        parameters, held = flatten(self._configuration), parent.data.params
        new = [Param(key, value) for key, value in parameters.items() if key not in held]
        changed = [
            RunTag(f"restarted.{key}", parameters[key]) for key in held if parameters.get(key) not in (None, held[key])
        ]
        for start in range(0, len(new), PARAMS_A_BATCH):
            self.client.log_batch(parent.info.run_id, params=new[start : start + PARAMS_A_BATCH])
        for start in range(0, len(changed), PARAMS_A_BATCH):
            self.client.log_batch(parent.info.run_id, tags=changed[start : start + PARAMS_A_BATCH])


def _condition(tags: Mapping[str, str]) -> str:
    return " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())


def _dataset_input(dataset: Mapping[str, Any]) -> DatasetInput:
    """The input data set as `mlflow.data` would record it, but without reading the data."""
    source = str(dataset["source"])
    scheme = "local" if is_local(source) else source.partition("://")[0].replace("https", "http")
    entity = Dataset(
        name=str(dataset["name"]),
        digest=str(dataset["digest"])[:DATASET_DIGEST_LENGTH],
        source_type=scheme,
        source=json.dumps({"url" if scheme == "http" else "uri": without_credentials(source)}),
        profile=json.dumps(dataset.get("counts", {})),
    )
    return DatasetInput(entity, [InputTag("mlflow.data.context", "training")])
