"""Training on Ray: each model is a Ray Train run of its own with one or more data-parallel workers, all at once.

Rank r of k holds every k-th partition. After each epoch rank 0 writes a checkpoint (safetensors and JSON) to the output
folder, wherever that is; a restarted worker or driver continues from the last one, bit for bit. Workers that ran out of
memory continue in smaller chunks. Events reach the driver through an actor.
"""

import json
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import ray
import safetensors.torch
import torch
from ray import train as ray_train
from ray.exceptions import OutOfMemoryError
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raymerge.artifacts import file_digest, load_model, load_tensors, save_tensors
from raymerge.data.sequences import read_partition
from raymerge.errors import ArtifactError, LostError, MissingError, ResourceError, ScoreError, UserError, reason
from raymerge.evaluation.validation import SCORE
from raymerge.events import Emit, Event, Progress
from raymerge.execution import chunking
from raymerge.execution.capacity import Capacity, ClusterConfig
from raymerge.execution.deadline import Deadline
from raymerge.execution.runtime import POLL_S
from raymerge.execution.worker_cache import offered_in
from raymerge.files import storage
from raymerge.files.retries import disk_errors
from raymerge.models.encoder import EncoderConfig, SequenceEncoder
from raymerge.models.objectives import ObjectiveConfig, build_objective
from raymerge.training.config import TrainingConfig
from raymerge.training.event_log import EventLog, UserFailure
from raymerge.training.loop import BadStep, StepReport, train
from raymerge.training.state import EpochReport, TrainingState

MAX_FAILURES = 3  # of a run's workers before the run is given up
STATE_TENSORS, STATE_NUMBERS = "state.safetensors", "state.json"


@dataclass(frozen=True)
class TrainingJob:
    """A training for the cluster. `key` names its checkpoints and covers everything that the result depends on."""

    run: str
    key: str
    partitions: tuple[str, ...]
    num_items: int
    encoder: EncoderConfig
    objective: ObjectiveConfig
    settings: TrainingConfig
    start: str | None = None  # URL of the model to start from; None: from scratch
    catalogue: str | None = None  # URL of the items if not all are on offer; None: all are
    filter_seen: bool = True  # in validation
    workers: int = 1
    threads: int = 1


OnTrained = Callable[[TrainingJob, TrainingState], None]


def train_all(
    jobs: Sequence[TrainingJob],
    *,
    checkpoints: str,
    capacity: Capacity,
    cluster: ClusterConfig,
    deadline: Deadline,
    emit: Emit,
    on_trained: OnTrained,
) -> None:
    """Train all jobs at the same time, as far as the cluster can; `on_trained` gets each last state when it is ready.

    Raises the first user error that a worker finds, and LostError if a run's workers keep dying. With
    `cluster.keep_going` a loss that is not finite is raised only after all other jobs are done.
    """
    log, failed = _launch_log(), dict[str, UserError]()
    at_once = capacity.trainings(cluster, len(jobs))
    threads = ThreadPoolExecutor(max_workers=at_once)
    try:
        most = max(job.workers for job in jobs)
        resources = capacity.share(cluster, at_once * most, threads=max(job.threads for job in jobs))
        running = {threads.submit(_fit, job, checkpoints, resources, log): job for job in jobs}
        while running:
            deadline.check("training")
            done, _ = wait(running, timeout=POLL_S, return_when=FIRST_COMPLETED)
            for message in ray.get(log.take.remote()):
                if not isinstance(message, UserFailure):
                    emit(message)
                elif cluster.keep_going and isinstance(message.error, ScoreError):
                    failed.setdefault(message.run, message.error)
                else:
                    raise _named(message.run, message.error)
            for future in done:
                job = running.pop(future)
                if job.run not in failed:
                    on_trained(job, _result(future, exhausted=ray.get(log.was_exhausted.remote(job.run))))
        if failed:
            raise ScoreError("; ".join(str(_named(run, error)) for run, error in failed.items()))
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
        ray.kill(log)


def _launch_log() -> Any:
    """An `EventLog` as an actor without a CPU, on the driver's node: messages survive the loss of any other."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    kind: Any = ray.remote(num_cpus=0)(EventLog)
    return kind.options(scheduling_strategy=here).remote()


def _named(run: str, error: UserError) -> UserError:
    return type(error)(f"{run}: {error}")


def _result(future: "Future[TrainingState]", *, exhausted: bool) -> TrainingState:
    error = future.exception()
    if error is None or isinstance(error, UserError):
        return future.result()
    last = str(error).strip().rpartition("\n")[2]
    if exhausted:
        raise _exhaustion(last) from error
    raise LostError(f"training was abandoned after {MAX_FAILURES} restarts of its workers: {last}") from error


def _exhaustion(what: str) -> ResourceError:
    return ResourceError(
        f"training ran out of memory, even in chunks of 1/{chunking.SMALLER} of a batch ({what}); "
        "lower training.batch_size, or use larger machines"
    )


def _fit(job: TrainingJob, checkpoints: str, resources: dict[str, float], log: Any) -> TrainingState:
    """Run one trainer to its end, in a thread of the driver; return its last state."""
    log.add.remote([Progress(job.run, 0, job.settings.epochs, "waiting for its processes")])
    gpu = resources.get("GPU", 0)
    filesystem, path = storage.arrow_filesystem(checkpoints)
    trainer = TorchTrainer(
        _work,
        train_loop_config={"job": job, "checkpoints": storage.join(checkpoints, job.key), "log": log},
        torch_config=TorchConfig(backend="nccl" if gpu >= 1 else "gloo"),
        scaling_config=ScalingConfig(num_workers=job.workers, use_gpu=gpu > 0, resources_per_worker=resources),
        run_config=RunConfig(
            name=job.key,
            storage_path=path,
            storage_filesystem=filesystem,
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
            callbacks=[NoteExhaustion(job.run, log)],  # type: ignore[list-item] # annotated as Ray Tune's
        ),
    )
    result = trainer.fit()
    return read_state(storage.join(checkpoints, job.key), result.checkpoint) if result.checkpoint else TrainingState()


class NoteExhaustion(UserCallback):
    """Records that workers of a run ran out of memory before Ray Train restarts them (runs in its controller)."""

    def __init__(self, run: str, log: Any) -> None:
        self._run, self._log = run, log

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Some ranks have failed: those that ran out of memory, and with errors of their own those that waited."""
        for error in worker_exceptions.values():
            found = getattr(error, "health_check_failure", error)  # Ray Train's wrapper of a process's fate
            if isinstance(found, OutOfMemoryError) or chunking.is_exhausted(found):
                ray.get(self._log.note_exhausted.remote(self._run))


def _work(arguments: dict[str, Any]) -> None:
    """Train one rank of a job (runs in a worker of Ray Train).

    A user error is reported to the driver, which ends the training; the worker is not restarted for it.
    """
    run, log = arguments["job"].run, arguments["log"]
    smaller = ray.get(log.was_exhausted.remote(run))
    try:
        with chunking.chunks(smaller):
            _train_rank(**arguments)
    except UserError as error:
        ray.get(log.add.remote([UserFailure(run, error)]))
    except Exception as error:
        if not (smaller and chunking.is_exhausted(error)):
            raise
        ray.get(log.add.remote([UserFailure(run, _exhaustion(reason(error)))]))


def _train_rank(job: TrainingJob, checkpoints: str, log: Any) -> None:
    context = ray_train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(job.threads)
    torch.manual_seed(job.settings.seed)
    encoder = load_model(job.start) if job.start else SequenceEncoder(job.num_items, job.encoder)
    checkpoint = ray_train.get_checkpoint()
    reporter = Reporter(job, checkpoints, log if rank == 0 else None)
    train(
        encoder.to(get_device()),
        build_objective(job.objective, encoder.config),
        [read_partition(url) for url in job.partitions[rank::world]],
        job.settings,
        filter_seen=job.filter_seen,
        offered=offered_in(job.catalogue),
        resume=read_state(checkpoints, checkpoint) if checkpoint else None,
        on_epoch=reporter.epoch,
        on_step=reporter.step,
        on_bad_step=partial(keep_batch, storage.join(f"{checkpoints}-failed", f"rank-{rank}.safetensors")),
    )


def keep_batch(url: str, bad: BadStep) -> str:
    """Write this rank's rows of a failed step's batch as safetensors; return what the error says about it."""
    batch = bad.batch
    parts = {
        "windows": batch.windows,
        "seeds": batch.seeds,
        "same_target": batch.same_target,
        "offered": batch.offered_columns,
    }
    tensors = {name: part.cpu().contiguous() for name, part in parts.items() if part is not None}
    facts = {"epoch": str(bad.epoch), "step": str(bad.step), "loss": str(bad.loss)}
    try:
        storage.write_bytes(url, safetensors.torch.save(tensors, metadata=facts))
    except (UserError, OSError) as error:  # the loss is what must be reported
        return f"; its batch could not be kept ({error})"
    return f"; its batch is in {url.rpartition('/')[0]}, one file per rank"


def epoch_events(run: str, report: EpochReport) -> list[Event]:
    """The figures of an epoch as events."""
    figures = {
        "loss": report.loss,
        **{f"loss.{name}": value for name, value in report.terms.items()},
        SCORE: report.ndcg,
        "learning_rate": report.learning_rate,
        "tokens_per_second": report.tokens_per_second,
        "useful_share": report.useful_share,
    }
    return [Event(run, key, report.epoch, value) for key, value in figures.items()]


class Reporter:
    """Reports progress to the driver, and writes a checkpoint after each epoch; only rank 0 has a log."""

    def __init__(self, job: TrainingJob, checkpoints: str, log: Any | None) -> None:
        self._job, self._checkpoints, self._log = job, checkpoints, log
        self._pace = "tokens/s" + (", in smaller chunks after running out of memory" if chunking.divisor() > 1 else "")
        self._note = ""

    def step(self, report: StepReport) -> None:
        """Report progress; called about once a second."""
        done = report.epoch - 1 + 0.99 * report.step / report.steps  # the epoch ends with its validation
        self._send(
            Progress(self._job.run, done, report.epochs, f"{report.tokens_per_second:,.0f} {self._pace}{self._note}")
        )

    def epoch(self, report: EpochReport, state: TrainingState) -> None:
        """Report an epoch and keep its state; a barrier for all ranks."""
        run, rate = self._job.run, f"{report.tokens_per_second:,.0f} {self._pace}"
        self._note = f", validation NDCG@10 {report.ndcg:.4f} (best {report.best_ndcg:.4f})"
        self._send(*epoch_events(run, report), Progress(run, report.epoch, report.epochs, rate + self._note))
        with tempfile.TemporaryDirectory() as folder, disk_errors(folder):
            checkpoint = write_state(state, Path(folder)) if self._log else None
            ray_train.report({"ndcg": report.ndcg}, checkpoint=checkpoint, checkpoint_upload_fn=self._keep)

    def _keep(self, checkpoint: Checkpoint, name: str) -> Checkpoint:
        """Put a checkpoint where Ray Train would.

        Ray Train copies with Arrow, which hides errors on closing a file, such as a full disk: a missing checkpoint
        would be noticed only when it is needed.
        """
        url = storage.join(self._checkpoints, name)
        folder = Path(checkpoint.path)
        storage.put_files(folder, url, folder.iterdir())
        filesystem, path = storage.arrow_filesystem(url)
        return Checkpoint(path=path, filesystem=filesystem)

    def _send(self, *messages: Event | Progress) -> None:
        if self._log:
            self._log.add.remote(list(messages))


def write_state(state: TrainingState, folder: Path) -> Checkpoint:
    """Write a state to a local folder, as a checkpoint that includes the digest of its tensors."""
    save_tensors(state.to_tensors(), folder / STATE_TENSORS)
    numbers = {"sha256": file_digest(str(folder / STATE_TENSORS)), **state.to_json()}
    (folder / STATE_NUMBERS).write_text(json.dumps(numbers), encoding="utf-8")
    return Checkpoint.from_directory(str(folder))


def read_state(checkpoints: str, checkpoint: Checkpoint) -> TrainingState:
    """The state in a checkpoint in the folder `checkpoints`; ArtifactError if it is not as it was written."""
    url = storage.join(checkpoints, PurePosixPath(checkpoint.path).name)
    tensors = storage.join(url, STATE_TENSORS)
    try:
        numbers = json.loads(storage.read_bytes(storage.join(url, STATE_NUMBERS)))
        if file_digest(tensors) == numbers["sha256"]:
            return TrainingState.restore(load_tensors(tensors), numbers)
    except (MissingError, KeyError, TypeError, json.JSONDecodeError):
        pass  # missing, or not as written
    raise ArtifactError(f"the checkpoint {url} was altered or truncated; delete {checkpoints} to train from scratch")
