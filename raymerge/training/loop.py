"""The training loop: one encoder, one objective, this rank's partitions. Plain torch; knows nothing of Ray or files.

Under an initialised torch.distributed each rank calls `train` with its own partitions, and all of them together take
the steps that one process with all partitions would, but for rounding and dropout masks, which each rank draws itself:
losses and gradients are sums over ranks, divided by counts over ranks. A base model and a fine-tune differ only in the
encoder that they start from.

Memory per rank: its partitions, 8 bytes per interaction and about 60 per user; 40 bytes per window (about 100 while an
epoch is planned), of which a history has one for each `stride` items; one partition's histories in validation; with
same-target views their index (see `same_target`); the model 4 times (weights, gradient, two moments), 4 times more in
the last state, 4 while the next one replaces it, and once while it is written, with averaged epochs 3 times more; and
one batch, in which positions × items stay within `raymerge.models.losses.LOGIT_BYTES`, while a contrastive loss holds
about 16 numbers for each pair of a row of this rank and one of any rank. Nothing grows with the number of steps. In
smaller chunks (`raymerge.execution.chunking`) a batch takes an eighth, except for these pairs, its activations are
computed twice, and dropout masks differ.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from raymerge.data.sequences import Sequences
from raymerge.data.split import examples
from raymerge.errors import InputError, ScoreError
from raymerge.evaluation.validation import validation_gains
from raymerge.models.batch import Batch, Term
from raymerge.models.draws import hashed
from raymerge.models.encoder import SequenceEncoder
from raymerge.models.objectives import Objective
from raymerge.splitmix import Stream
from raymerge.training.batches import (
    SHORTEST,
    EpochPlan,
    Windows,
    bucket_steps,
    epoch_batches,
    make_windows,
    plan_epoch,
)
from raymerge.training.collectives import index_of_all_ranks, start_alike, sum_over_ranks, world
from raymerge.training.config import TrainingConfig, averaged_before, averaged_from, learning_rate
from raymerge.training.same_target import SameTargetIndex, index_same_targets
from raymerge.training.state import EpochReport, TrainingState, copies
from raymerge.training.step import StepFigures, Stepper

CHECK_STEPS = 20  # losses are checked only this often, because each check waits for the device
SECONDS_BETWEEN_REPORTS = 1.0


@dataclass(frozen=True)
class StepReport:
    """The progress of a training, reported about once a second."""

    epoch: int  # the one under way, from 1
    epochs: int
    step: int  # steps of this epoch that are done
    steps: int
    tokens_per_second: float


@dataclass(frozen=True)
class BadStep:
    """A step whose loss over all ranks is not finite, and this rank's part of its batch."""

    epoch: int  # from 1, like the step
    step: int
    loss: float
    batch: Batch


OnEpoch = Callable[[EpochReport, TrainingState], None]
OnStep = Callable[[StepReport], None]
OnBadStep = Callable[[BadStep], str]
"""Keeps the batch; returns what the error message says about it."""


def train(
    encoder: SequenceEncoder,
    objective: Objective,
    partitions: Sequence[Sequences],
    config: TrainingConfig,
    *,
    filter_seen: bool = True,
    offered: Tensor | None = None,
    resume: TrainingState | None = None,
    on_epoch: OnEpoch | None = None,
    on_step: OnStep | None = None,
    on_bad_step: OnBadStep | None = None,
) -> TrainingState:
    """Train on the training part of these partitions until the epochs or the patience end; return the last state.

    Everything runs on the encoder's device. The encoder ends with the parameters of the best epoch on validation, by
    NDCG@10 (full ranking, without items of the history if `filter_seen`); in the last `average_epochs` an epoch's
    parameters are their average since the first of these, while training continues from its own. Softmax and
    validation are over the items `offered` bool[V], all if None. `on_epoch` gets each epoch's report and a state from
    which `resume` continues bit for bit. Raises InputError if no rank has anything to train on, and ScoreError if a
    loss is not finite, after `on_bad_step` has received its batch, or a score in validation.
    """
    device = encoder.item_embedding.weight.device
    start_alike(encoder, objective.to(device))
    windows, steps, bucket = _windows(encoder, objective, partitions, config)
    same_target = _same_target(objective, partitions, config, device)
    offered = None if offered is None else offered.to(device)
    stepper = Stepper(encoder, objective, config)
    state = resume or TrainingState()
    if resume is not None:
        resume.load_into(encoder, objective, stepper.optimizer)
    while not is_finished(state, config):
        epoch = Epoch(stepper, windows, same_target, offered, number=state.epoch, steps=steps, bucket=bucket)
        epoch.run(on_step, on_bad_step)
        began = time.perf_counter()
        average = state.averaged_with(encoder, averaged_before(config, state.epoch + 1))
        with _holding(encoder, average):
            score = validate(encoder, partitions, filter_seen=filter_seen, offered=offered)
        report = epoch.report(score, best=state.best_ndcg, validation_seconds=time.perf_counter() - began)
        state = state.after_epoch(report, encoder, objective, stepper.optimizer, average)
        if on_epoch is not None:
            on_epoch(report, state)
    encoder.load_state_dict(state.best)
    return state


@contextmanager
def _holding(encoder: SequenceEncoder, parameters: Mapping[str, Tensor]) -> Iterator[None]:
    """Give the encoder other parameters inside the block, if there are any."""
    if not parameters:
        yield
        return
    own = copies(encoder.state_dict())
    encoder.load_state_dict(parameters)
    try:
        yield
    finally:
        encoder.load_state_dict(own)


def is_finished(state: TrainingState, config: TrainingConfig) -> bool:
    """Whether all epochs are done or the patience has run out; it counts from the first averaged epoch on."""
    since = max(state.best_epoch, averaged_from(config))
    return state.epoch >= config.epochs or 0 < config.patience <= state.epoch - since


def validate(
    encoder: SequenceEncoder, partitions: Sequence[Sequences], *, filter_seen: bool, offered: Tensor | None = None
) -> float:
    """Mean NDCG@10 of the validation items, ranked among all items or those offered, over all ranks.

    Raises ScoreError on all of them if one finds scores that are not finite: a rank may have nobody to validate on.
    """
    total, failure = torch.zeros(3, dtype=torch.float64), None
    try:
        for partition in partitions:
            asked = examples(partition, "validation", encoder.config.max_length)
            gains = validation_gains(encoder, asked, filter_seen=filter_seen, offered=offered)
            total += torch.tensor([float(gains.sum()), len(gains), 0], dtype=torch.float64)
    except ScoreError as error:
        failure = error
        total[2] = 1
    gain, users, failures = sum_over_ranks(total.to(encoder.item_embedding.weight.device)).tolist()
    if failures:
        raise ScoreError("scores in validation are not finite numbers: lower training.learning_rate") from failure
    return gain / max(users, 1.0)


def _windows(
    encoder: SequenceEncoder, objective: Objective, partitions: Sequence[Sequences], config: TrainingConfig
) -> tuple[Windows, int, int]:
    """This rank's windows, and over all ranks the steps per epoch and the steps that are sorted together."""
    device = encoder.item_embedding.weight.device
    stride = config.stride or encoder.config.max_length
    last_only = config.windows == "last"
    windows = make_windows(partitions, width=objective.window, stride=stride, last_only=last_only, device=device)
    count, parts = sum_over_ranks(torch.tensor([len(windows), len(partitions)], device=device)).tolist()
    if count == 0:
        raise InputError(
            f"training needs users with at least {SHORTEST} items besides those held out "
            "(the test item, and one more if the user validates), found none"
        )
    bucket = bucket_steps(partitions=parts, batch_size=config.batch_size)
    return windows, math.ceil(count / config.batch_size), bucket


def _same_target(
    objective: Objective, partitions: Sequence[Sequences], config: TrainingConfig, device: torch.device
) -> SameTargetIndex | None:
    length, candidates = objective.window - 1, objective.same_target_candidates
    if candidates is None:
        return None
    return index_of_all_ranks(
        index_same_targets(partitions, length=length, candidates=candidates, seed=config.seed), device
    )


class Epoch:
    """One pass over all windows: its steps and their figures."""

    def __init__(
        self,
        stepper: Stepper,
        windows: Windows,
        same_target: SameTargetIndex | None,
        offered: Tensor | None,
        *,
        number: int,
        steps: int,
        bucket: int,
    ) -> None:
        self.stepper, self.windows, self.same_target = stepper, windows, same_target
        self.offered_columns = None if offered is None else offered.nonzero().squeeze(1)
        self.config = stepper.config
        self.number, self.steps, self.bucket = number, steps, bucket  # epochs count from 0 here, from 1 in reports
        self.done, self.seconds = 0, 0.0
        self._terms: list[Term] = []
        self._recent: list[StepFigures] = []  # not checked yet
        self._summed: Tensor | None = None  # of all other steps: memory does not grow with their number

    def run(self, on_step: OnStep | None, on_bad_step: OnBadStep | None) -> None:
        """Take all steps; raises ScoreError within CHECK_STEPS of a loss that is not finite, on all ranks at once."""
        seed = self.config.seed
        torch.manual_seed(int(hashed(Stream.DROPOUT, seed, self.number, world()[0])))
        self.stepper.encoder.train()
        self.stepper.objective.train()
        began = told = time.perf_counter()
        plan = plan_epoch(self.windows, steps=self.steps, bucket=self.bucket, seed=seed, epoch=self.number)
        for batch in epoch_batches(self.windows, plan, self.same_target, self.offered_columns):
            figures = self.stepper.step(batch, rate=self._rate(self.done))
            self.done += 1
            self._recent.append(figures)
            self.seconds = time.perf_counter() - began
            if len(self._recent) == CHECK_STEPS or self.done == self.steps:
                self._check_losses(plan, on_bad_step)
            if on_step is not None and began + self.seconds - told > SECONDS_BETWEEN_REPORTS:
                told = began + self.seconds
                on_step(self._progress())
        self.seconds = time.perf_counter() - began

    def _rate(self, step: int) -> float:
        return learning_rate(self.config, self.number * self.steps + step, self.config.epochs * self.steps)

    def _check_losses(self, plan: EpochPlan, on_bad_step: OnBadStep | None) -> None:
        """Add up the recent steps; raises ScoreError if one of their losses is not finite."""
        losses = torch.stack([figures.loss for figures in self._recent]).tolist()
        for step, loss in enumerate(losses, start=self.done - len(losses) + 1):
            if not math.isfinite(loss):
                batches = epoch_batches(self.windows, plan, self.same_target, self.offered_columns)
                batch = next(islice(batches, step - 1, None))
                kept = on_bad_step(BadStep(self.number + 1, step, loss, batch)) if on_bad_step else ""
                raise ScoreError(
                    f"the loss of epoch {self.number + 1}, step {step} of {self.steps}, is {loss}: "
                    f"lower training.learning_rate (it is {self.config.learning_rate}){kept}"
                )
        self._summed = self._sums()
        self._terms, self._recent = self._recent[-1].terms, []

    def _sums(self) -> Tensor:
        """The summands of all steps so far: float64[2T + 3]."""
        recent = [figures.summands for figures in self._recent]
        return torch.stack(recent if self._summed is None else [self._summed, *recent]).sum(0)

    def _progress(self) -> StepReport:
        return StepReport(
            epoch=self.number + 1,
            epochs=self.config.epochs,
            step=self.done,
            steps=self.steps,
            tokens_per_second=float(self._sums()[-2]) / self.seconds,
        )

    def report(self, ndcg: float, *, best: float, validation_seconds: float) -> EpochReport:
        """The epoch in numbers, given its validation score and the best one before it."""
        *sums, targets, tokens, columns = self._sums().tolist()
        terms, had = self._terms, sums[len(self._terms) :]  # steps that had each term: a step may be empty
        means = [total / max(1.0, steps) for total, steps in zip(sums, had, strict=False)]
        return EpochReport(
            epoch=self.number + 1,
            epochs=self.config.epochs,
            steps=self.steps,
            loss=sum(term.weight * mean for term, mean in zip(terms, means, strict=True)),
            terms={term.name: mean for term, mean in zip(terms, means, strict=True)},
            ndcg=ndcg,
            best_ndcg=max(ndcg, best),
            improved=ndcg > best,
            learning_rate=self._rate(self.steps - 1),
            training_seconds=self.seconds,
            validation_seconds=validation_seconds,
            tokens=int(tokens),
            targets=int(targets),
            useful_share=tokens / max(1.0, columns),
        )
