"""From user partitions to models: the base, the members, and those trained after the merge."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace

from raymerge.artifacts import Artifact, Key, save_model
from raymerge.config import SEEDS_OF_A_RUN, Config
from raymerge.data.prepare import ITEMS_FILE
from raymerge.evaluation.validation import SCORE
from raymerge.files import storage
from raymerge.models.encoder import SequenceEncoder
from raymerge.models.objectives import ObjectiveConfig, complete_settings
from raymerge.names import fine_tuned_name
from raymerge.stages.context import Context, TrackedDraft
from raymerge.stages.inputs import partitions_of, restricted_catalogue
from raymerge.training.config import TrainingConfig
from raymerge.training.distributed import TrainingJob, epoch_events, train_all
from raymerge.training.state import EpochReport, TrainingState


@dataclass(frozen=True)
class Training:
    """One model to train: objective, settings, data, start, and size on the cluster."""

    run: str
    objective: ObjectiveConfig
    settings: TrainingConfig
    data: Artifact
    start: Artifact | None
    workers: int
    threads: int

    def key(self, config: Config) -> Key:
        """All that the model's parameters depend on."""
        inputs = {"data": self.data.digest, "start": self.start.digest if self.start else None}
        configuration = {
            "encoder": asdict(config.encoder),
            "objective": {"name": self.objective.name, **complete_settings(self.objective)},
            "training": asdict(self.settings),
            "filter_seen": config.evaluation.filter_seen,  # in validation, so that scores compare with a merge's
            "workers": self.workers,
            "threads": self.threads,
        }
        return Key("train", inputs, configuration)


def train_base(context: Context, data: Artifact) -> Artifact | None:
    """The common encoder that members start from; None if they start from scratch."""
    config = context.config
    if config.base is None:
        return None
    workers, threads = _of_base(context)
    training = Training("train/base", config.base, seeded(config, config.training), data, None, workers, threads)
    return train(context, [training])[training.run]


def train_members(
    context: Context, data: Mapping[str, Artifact], start: Artifact | None, *, after: int = 0
) -> dict[str, Artifact]:
    """All members by name, trained in parallel, each on its own data, or on the same data in an order of its own.

    Seeds differ from those of the rounds that they come `after`.
    """
    config = context.config
    settings, members = config.fine_tuning if start else config.training, config.all_members
    trainings = [
        Training(
            context.run_name("train", name),
            objective,
            seeded(config, settings, member=after * len(members) + number),
            data[name],
            start,
            config.cluster.member_workers,
            config.cluster.member_threads,
        )
        for number, (name, objective) in enumerate(members.items(), start=1)
    ]
    trained = train(context, trainings)
    return {name: trained[context.run_name("train", name)] for name in data}


def train_ceiling(context: Context, data: Artifact, base: Artifact | None) -> dict[str, Artifact]:
    """With markets: one model trained on all their data for the epochs of all rounds."""
    config = context.config
    if config.markets is None:
        return {}
    objective, *_ = config.members.values()
    workers, threads = _of_base(context)
    training = Training(
        "train/ceiling", objective, seeded(config, config.ceiling_training), data, base, workers, threads
    )
    return {"ceiling": train(context, [training])[training.run]}


def train_after_merge(
    context: Context,
    data: Artifact,
    merged: Artifact,
    rivals: Mapping[str, Artifact],
    first_members: Mapping[str, Artifact],
) -> tuple[dict[str, Artifact], dict[str, Artifact]]:
    """Fine-tuned merges, `<name>-fine-tuned` for rivals, and the control; both by name, both empty if not configured.

    The control is the best of the members that do not start from a merge, trained further for as many epochs as all
    that comes after them.
    """
    config = context.config
    if config.after_merge is None:
        return {}, {}
    best = best_member(first_members)
    objective = config.base or config.members[best]
    workers, threads = config.cluster.member_workers, config.cluster.member_threads

    def training(name: str, start: Artifact, settings: TrainingConfig) -> Training:
        return Training(f"train/{name}", objective, seeded(config, settings), data, start, workers, threads)

    starts = {"fine-tuned": merged} | {fine_tuned_name(name): rival for name, rival in rivals.items()}
    trainings = [training(name, start, config.after_merge) for name, start in starts.items()]
    trained = train(context, [*trainings, training("control", first_members[best], config.control_training)])
    return {name: trained[f"train/{name}"] for name in starts}, {"control": trained["train/control"]}


def _of_base(context: Context) -> tuple[int, int]:
    """Processes of a training that runs alone, and their threads."""
    cluster = context.config.cluster
    return context.capacity.base_workers(cluster), cluster.base_threads


def seeded(config: Config, training: TrainingConfig, *, member: int = 0) -> TrainingConfig:
    """The settings with a seed of its own for each member, counted from 1, and for each run.

    Base, ceiling, control and fine-tuned models are all member 0.
    """
    return replace(training, seed=training.seed + member + SEEDS_OF_A_RUN * config.seed)


def best_member(members: Mapping[str, Artifact]) -> str:
    """Name of the member with the best validation score."""
    return max(members, key=lambda name: members[name].counts[SCORE])


def train(context: Context, trainings: Sequence[Training]) -> dict[str, Artifact]:
    """The models of all trainings, by run; those not yet committed are trained in parallel."""
    checkpoints = storage.join(context.output.open().url, "checkpoints")
    by_run = {training.run: training for training in trainings}

    def commit(job: TrainingJob, state: TrainingState) -> None:
        trained[job.run] = _commit_model(context, by_run[job.run], state)
        storage.remove_folder(storage.join(checkpoints, job.key))

    with ExitStack() as claims:
        trained, jobs = _find_or_claim(context, trainings, checkpoints, claims)
        if jobs:
            train_all(
                jobs,
                checkpoints=checkpoints,
                capacity=context.capacity,
                cluster=context.config.cluster,
                deadline=context.deadline,
                emit=context.emit,
                on_trained=commit,
            )
    for training in trainings:
        if training.run not in trained:
            shared = context.find(training.run, training.key(context.config))
            assert shared is not None, "the first training with this key has just made it"
            trained[training.run] = shared
    return {run: trained[run] for run in by_run}  # in the order given, not that of completion


def _find_or_claim(
    context: Context, trainings: Sequence[Training], checkpoints: str, claims: ExitStack
) -> tuple[dict[str, Artifact], list[TrainingJob]]:
    """The models that are committed, by run, and jobs for the others, which no other command may train meanwhile.

    Trainings with the same key, such as those of equal merges, share one job.
    """
    trained: dict[str, Artifact] = {}
    jobs: dict[str, TrainingJob] = {}
    for training in trainings:
        key = training.key(context.config)
        folder = storage.join(checkpoints, key.digest)
        found = context.find(training.run, key)
        if found is None and key.digest not in jobs:
            claims.enter_context(storage.claimed(folder))
            found = context.find(training.run, key)  # another command may have committed it before the claim
            if found is None:
                jobs[key.digest] = _job(context, training)
        if found is not None:
            trained[training.run] = found
            storage.remove_folder(folder)
    return trained, list(jobs.values())


def _job(context: Context, training: Training) -> TrainingJob:
    config = context.config
    return TrainingJob(
        run=training.run,
        key=training.key(config).digest,
        partitions=tuple(partitions_of(training.data)),
        num_items=training.data.counts["items"],
        encoder=config.encoder,
        objective=training.objective,
        settings=training.settings,
        start=training.start.file("model") if training.start else None,
        # a model that starts from scratch has nothing to keep
        catalogue=restricted_catalogue(training.data) if training.start else None,
        filter_seen=config.evaluation.filter_seen,
        workers=training.workers,
        threads=training.threads,
    )


def _commit_model(context: Context, training: Training, state: TrainingState) -> Artifact:
    def fill(draft: TrackedDraft) -> None:
        module = SequenceEncoder.of(training.data.counts["items"], context.config.encoder, state.best)
        save_model(module, draft.folder / "model", items_url=training.data.file(ITEMS_FILE))
        draft.write_json("history.json", [asdict(report) for report in state.history])
        for event in (event for report in state.history for event in epoch_events(training.run, report)):
            draft.tell(event.key, event.value, step=event.step)  # again: a killed driver may not have recorded them
        draft.counts.update({SCORE: state.best_ndcg, "epochs": state.epoch, "best_epoch": state.best_epoch})
        draft.counts["seconds"] = round(sum(_seconds(report) for report in state.history), 1)
        note = f"best validation NDCG@10 {state.best_ndcg:.4f} in epoch {state.best_epoch}"
        draft.progress(1, 1, note)

    return context.make(training.run, training.key(context.config), fill)


def _seconds(report: EpochReport) -> float:
    return report.training_seconds + report.validation_seconds
