"""Estimate of what will run where, for how long and with how much memory, and of what does not fit.

Times follow from multiply-adds and a few measured rates (`raymerge.execution.costs`), memory from the shapes of what a
process holds.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil

from raymerge.config import Config
from raymerge.data.size import DataSize
from raymerge.errors import ResourceError
from raymerge.evaluation.scoring import MEMORY_BYTES as SCORES_BYTES
from raymerge.execution.capacity import Capacity, Node
from raymerge.execution.costs import (
    ACTIVATIONS,
    ATTENTION,
    AVERAGE_COPIES,
    INTERACTION_BYTES,
    NODE_BYTES,
    PADDED_BYTES,
    PREPARE_ITEM_BYTES,
    PREPARE_ROW_BYTES,
    PROCESS_BYTES,
    RATES,
    SCORE_PASSES,
    TRAINING_COPIES,
    USER_BYTES,
    encoding,
    layers,
    parameters,
)
from raymerge.execution.worker_cache import MODELS_KEPT
from raymerge.fisher.engine import MEMORY_BYTES as ENGINE_BYTES
from raymerge.fisher.weights import ESTIMATORS, FisherConfig
from raymerge.formatting import describe, duration, gib
from raymerge.merging.lines import models_on_lines
from raymerge.models.item_losses import SoftmaxSettings
from raymerge.models.losses import LOGIT_BYTES
from raymerge.models.objectives import ContrastiveSettings, ObjectiveConfig
from raymerge.training.config import TrainingConfig

REPORT = "report"


@dataclass(frozen=True)
class Stage:
    """A stage: number of concurrent processes, resources and memory of each, and seconds of the whole stage."""

    name: str
    processes: int
    resources: dict[str, float]
    memory_bytes: float
    seconds: float


@dataclass(frozen=True)
class Plan:
    """All stages in order; what does not fit, with the setting to change; and notes for the reader."""

    stages: tuple[Stage, ...]
    nodes: tuple[Node, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def seconds(self) -> float:
        """Total of all stages, which run one after the other."""
        return sum(stage.seconds for stage in self.stages)

    def check(self) -> None:
        """Raise ResourceError with all that does not fit, in one line."""
        if self.problems:
            raise ResourceError("this does not fit: " + "; ".join(self.problems))


def make_plan(config: Config, size: DataSize, nodes: Sequence[Node]) -> Plan:
    """The plan of a whole run for this size of data on these nodes."""
    planner = _Planner(config, size, Capacity(tuple(nodes)))
    stages = tuple(planner.stages())
    problems = [*_unschedulable(config, planner.capacity), *_too_large(stages, nodes)]
    total, limit = sum(stage.seconds for stage in stages), config.cluster.deadline_hours * 3600
    if total > limit:
        problems.append(
            f"about {duration(total)} is more than the deadline of {config.cluster.deadline_hours:g} hours: "
            "raise cluster.deadline_hours, train fewer epochs or take more nodes"
        )
    return Plan(stages, tuple(nodes), tuple(problems), tuple(planner.notes()))


class _Planner:
    """Plans the stages of a run, with one method each."""

    def __init__(self, config: Config, size: DataSize, capacity: Capacity) -> None:
        self.config, self.size, self.capacity = config, size, capacity
        self.gpus = capacity.usable_gpus(config.cluster)
        self.cores = self.gpus * RATES.gpu_cores or max(1.0, capacity.cpus)
        self.length = min(config.encoder.max_length, max(1.0, size.interactions / max(1, size.users)))
        self.validating = size.validation_users or min(size.users, config.prepare.validation_users or size.users)
        self.tokens = max(0, size.interactions - size.users - self.validating)
        self.parameters = parameters(config.encoder, size.items)
        self.data_bytes = INTERACTION_BYTES * size.interactions + USER_BYTES * size.users

    def stages(self) -> list[Stage]:
        """Stages in the order in which they run."""
        config, cluster = self.config, self.config.cluster
        workers = self.capacity.base_workers(cluster)
        members = [(one, config.member_training) for one in config.all_members.values()]
        stages = [self._prepare()]
        if config.base:
            base = [(config.base, config.training)]
            stages.append(self._training("train/base", base, workers, cluster.base_threads))
        training = self._training("train/members", members, cluster.member_workers, cluster.member_threads)
        stages.append(replace(training, seconds=config.rounds * training.seconds))
        if config.merge.needs_diagonals:
            stages.append(self._fisher())
        stages.append(self._merge())
        if config.markets:
            ceiling = [(members[0][0], config.ceiling_training)]
            stages.append(self._training("train/ceiling", ceiling, workers, cluster.base_threads))
        if config.after_merge:
            settings = [config.control_training, *[config.after_merge] * (1 + len(config.rivals))]
            after = [(config.base or members[0][0], training) for training in settings]
            stages.append(self._training("train/after", after, cluster.member_workers, cluster.member_threads))
        drawn = PROCESS_BYTES + 4.0 * self._diagonals() * self.parameters
        seconds = RATES.close_s + self.size.users * config.evaluation.replicates / RATES.bootstrap
        return [*stages, self._evaluate(), Stage(REPORT, 1, {"CPU": 0}, drawn, seconds)]

    def notes(self) -> list[str]:
        """Where the figures come from, and what they leave out."""
        notes = [f"estimates from rates measured on {RATES.source}, scaled by cores; other jobs make it slower"]
        if self.gpus:
            notes.append(f"no rate was measured on a GPU: each counts as {RATES.gpu_cores:g} CPU cores, so expect less")
        size, pieces = self._pool_size(), self.config.prepare.partitions
        if size > pieces:
            notes.append(f"evaluation uses only {pieces} of {size} processes: raise prepare.partitions to use all")
        return notes

    def _prepare(self) -> Stage:
        partition = self.size.interactions / self.config.prepare.partitions
        seconds = RATES.start_ray_s + self.size.interactions / RATES.prepare
        memory = PROCESS_BYTES + PREPARE_ROW_BYTES * partition + PREPARE_ITEM_BYTES * self.size.items
        return Stage("prepare", 1, {"CPU": 0}, memory, seconds)

    def _training(
        self, name: str, jobs: Sequence[tuple[ObjectiveConfig, TrainingConfig]], workers: int, threads: int
    ) -> Stage:
        at_once = self.capacity.trainings(self.config.cluster, len(jobs))
        each = RATES.gpu_cores * workers if self.gpus else float(workers * threads)
        work = [self._training_work(*job) for job in jobs]
        usable = min(self.cores, at_once * each)
        seconds = max(max(work) / min(each, usable), sum(work) / usable)
        waves = ceil(len(jobs) / at_once)
        imports = RATES.start_training_s * max(0.5, at_once * workers / max(1.0, self.capacity.cpus))
        epochs = max(training.epochs for _, training in jobs)
        seconds = max(seconds + RATES.report_s * epochs, 2 * RATES.report_s * epochs)
        seconds += waves * (RATES.start_training_waits_s + imports)
        memory = max(self._training_bytes(*job, workers) for job in jobs)
        resources = self.capacity.share(self.config.cluster, at_once * workers, threads=threads)
        return Stage(name, at_once * workers, resources, memory, seconds)

    def _training_work(self, objective: ObjectiveConfig, training: TrainingConfig) -> float:
        """Seconds of one core for all epochs, with validation after each."""
        windows = 1.0 if training.windows == "all" else min(1.0, self.size.users * self.length / max(1, self.tokens))
        cost = self._token_work(objective, training) * self.tokens * windows / RATES.training
        return training.epochs * (cost + self._ranking_work(self.validating))

    def _token_work(self, objective: ObjectiveConfig, training: TrainingConfig) -> float:
        """Multiply-adds per token: its encoding, once more per contrastive view, and its scores."""
        encoder, settings = self.config.encoder, objective.resolved()
        views = 2 if isinstance(settings, ContrastiveSettings) else 0
        scored = settings.mask_rate if encoder.cloze else 1.0
        items = self._softmax_items(settings, scored * training.batch_size * self.length)
        return (1 + views) * encoding(encoder, self.length) + scored * items * encoder.dim

    def _softmax_items(self, settings: SoftmaxSettings, targets: float) -> float:
        """Items in the softmax of a batch with this many targets."""
        return min(self.size.items, settings.negatives + targets) if settings.loss == "sampled" else self.size.items

    def _training_bytes(self, objective: ObjectiveConfig, training: TrainingConfig, workers: int) -> float:
        encoder = self.config.encoder
        settings = objective.resolved()
        views = 3 if isinstance(settings, ContrastiveSettings) else 1
        rows = ceil(training.batch_size / workers)
        items = self._softmax_items(settings, training.batch_size * encoder.max_length)
        position = ACTIVATIONS * encoder.dim + ATTENTION * encoder.heads * encoder.max_length
        activations = 4.0 * views * rows * encoder.max_length * encoder.blocks * position
        models = TRAINING_COPIES + (AVERAGE_COPIES if training.average_epochs > 1 else 0)
        held = models * 4 * self.parameters + 2 * self.data_bytes / workers
        return PROCESS_BYTES + held + activations + min(LOGIT_BYTES, 8.0 * rows * encoder.max_length * items)

    def _pool_size(self) -> int:
        return self.capacity.actors(self.config.cluster)

    def _pool(self, name: str, core_seconds: float, pieces: int, memory: float, *, start: bool) -> Stage:
        processes = self._pool_size()
        threads = RATES.gpu_cores if self.gpus else self.config.cluster.actor_threads
        cores = min(self.cores, min(processes, pieces) * threads)
        resources = self.capacity.share(self.config.cluster, processes, threads=self.config.cluster.actor_threads)
        seconds = core_seconds / cores + (RATES.start_pool_s if start else 0)
        return Stage(name, processes, resources, PROCESS_BYTES + memory + self._partition_bytes(), seconds)

    def _partition_bytes(self) -> float:
        """Bytes of the two partitions that a process keeps, with their padded histories."""
        users = self.size.users / self.config.prepare.partitions
        padded = PADDED_BYTES * users * self.config.encoder.max_length
        return 2 * (self.data_bytes / self.config.prepare.partitions + padded)

    def _fisher(self) -> Stage:
        models, partitions = len(self.config.all_members), self.config.prepare.partitions
        rounds, rivals = self.config.rounds, self.config.rivals.values()  # rivals play a part in the last round only
        user = rounds * self._fisher_work(self.config.fisher) + sum(map(self._fisher_work, rivals))
        kept = (8.0 + 4.0 * min(models, MODELS_KEPT)) * self.parameters  # sums are in float64
        memory = ENGINE_BYTES * self.config.cluster.actor_threads + kept
        work = self.size.users * models * user / RATES.fisher
        stage = self._pool("fisher", work, models * partitions, memory, start=True)
        return replace(stage, seconds=stage.seconds + (rounds - 1) * RATES.start_pool_s)

    def _fisher_work(self, settings: FisherConfig) -> float:
        """Multiply-adds per user."""
        encoder, estimator = self.config.encoder, ESTIMATORS[settings.estimator]
        probes = min(encoder.dim, settings.samples or estimator.passes(0, encoder.dim))
        products = encoder.dim if estimator.eigenvectors else SCORE_PASSES + probes
        return probes * self.length * layers(encoder) + 2.0 * self.size.items * encoder.dim * products

    def _diagonals(self) -> int:
        return len(self.config.all_members) if self.config.merge.needs_diagonals else 0

    def _merge(self) -> Stage:
        models, settings = len(self.config.all_members), self.config.merge
        merges = self.config.rounds + len(self.config.rivals)
        trials = len(settings.steps) + settings.trials * merges + models_on_lines(models)  # first those of the average
        diagonals = self._diagonals()
        work = trials * (self._ranking_work(self.validating) + self.parameters * models * 4 / RATES.ranking)
        kept = min(models, MODELS_KEPT) if diagonals else 0  # kept by the same processes for the diagonals
        taking_part = models + settings.needs_start
        memory = 4.0 * self.parameters * (taking_part + diagonals + 1 + kept) + SCORES_BYTES
        stage = self._pool("merge", work, self.config.prepare.partitions, memory, start=False)
        return replace(stage, seconds=stage.seconds + trials * RATES.trial_s)

    def _evaluate(self) -> Stage:
        members = len(self.config.all_members)  # each alone and all in the ensemble; then base and merges
        rivals = len(self.config.rivals)
        models = 2 * members + 3 + rivals + (2 + rivals if self.config.after_merge else 0)
        models += self.config.rounds - 1 + (self.config.markets is not None)
        memory = 4.0 * self.parameters * min(models, MODELS_KEPT + members) + SCORES_BYTES
        return self._pool(
            "evaluate", models * self._ranking_work(self.size.users), self.config.prepare.partitions, memory, start=True
        )

    def _ranking_work(self, users: int) -> float:
        """Seconds of one core to rank one target of each of `users` users."""
        encoder = self.config.encoder
        user = self.length * encoding(encoder, self.length) + self.size.items * encoder.dim
        return users * user / RATES.ranking


def _unschedulable(config: Config, capacity: Capacity) -> list[str]:
    try:
        capacity.check(config.cluster)
    except ResourceError as error:
        return [str(error)]
    return []


def _too_large(stages: Sequence[Stage], nodes: Sequence[Node]) -> list[str]:
    """Stages whose processes need more memory than the nodes have that Ray may place them on."""
    problems = []
    for stage in stages:
        for node in nodes:
            here = _on(node, stage)
            needed, there = NODE_BYTES + here * stage.memory_bytes, node.memory_bytes
            if here and needed > there:
                problems.append(
                    f"{stage.name} needs about {gib(needed)} on a node of {gib(there)} ({here} processes of "
                    f"{gib(stage.memory_bytes)}): {_remedy(stage, nodes)}"
                )
                break
    return problems


def _on(node: Node, stage: Stage) -> int:
    """Processes of a stage that Ray may place on one node; a stage that takes no CPU runs in the driver."""
    kind = "GPU" if "GPU" in stage.resources else "CPU"
    share, room = stage.resources[kind], node.gpus if kind == "GPU" else node.cpus
    if not share:
        return stage.processes if node.has_driver else 0
    return min(stage.processes, int(room / share + 1e-9))


def _remedy(stage: Stage, nodes: Sequence[Node]) -> str:
    if stage.name.startswith("train/"):
        return "set a smaller training.batch_size, more workers, or take larger nodes"
    if stage.name == REPORT:
        return "take a larger head node"
    if stage.name == "prepare":
        return "raise prepare.partitions or take a larger head node"
    fitting = sum(max(0, int((node.memory_bytes - NODE_BYTES) / stage.memory_bytes)) for node in nodes)
    return f"set cluster.actors={fitting}" if fitting else "raise prepare.partitions or take larger nodes"


def summary(plan: Plan) -> str:
    """One line to show at the start of a run."""
    longest = sorted(plan.stages, key=lambda stage: -stage.seconds)[:3]
    parts = ", ".join(f"{stage.name} {duration(stage.seconds)}" for stage in longest)
    return f"estimate: {duration(plan.seconds)} on {describe(plan.nodes)} ({parts}); `raymerge plan` shows the details"
