"""One step of the optimizer and its figures, over all ranks."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor, nn

from raymerge.execution import chunking
from raymerge.models.batch import Batch, Term
from raymerge.models.encoder import SequenceEncoder
from raymerge.models.objectives import Objective
from raymerge.training.collectives import sum_gradients, sum_over_ranks
from raymerge.training.config import TrainingConfig
from raymerge.training.state import trained_parameters

CAST_POSITIONS = 4096
"""Positions per batch from which bf16 layers pay off on a CPU, over all ranks: 8 × 200 lose 18%, 128 × 50 gain 10%."""


@dataclass(frozen=True)
class StepFigures:
    """The figures of one step; all tensors stay on the device, so that nothing waits for it."""

    terms: list[Term]  # this rank's, for their names and weights; totals are detached
    totals: Tensor  # [T], sums of the T terms over all ranks
    counts: Tensor  # int64[T], of the summands; 0 where no rank had any
    tokens: Tensor  # scalar, input items that are not padding
    columns: Tensor  # scalar, all computed input columns

    @property
    def loss(self) -> Tensor:
        """Σ weight · mean: scalar."""
        return weighted_sum(self.terms, self.totals, self.counts)

    @property
    def summands(self) -> Tensor:
        """The values that an epoch adds up: float64[2T + 3].

        Each term's mean, whether it has one, the first term's count, tokens and columns.
        """
        means = self.totals / self.counts.clamp(min=1)
        return torch.cat([means, self.counts > 0, torch.stack([self.counts[0], self.tokens, self.columns])]).double()


def weighted_sum(terms: Sequence[Term], totals: Tensor, counts: Tensor) -> Tensor:
    """Σ weight · total / count: scalar; weights stay numbers, since a tensor of them would wait for a GPU."""
    counts = counts.clamp(min=1)
    means = [term.weight * total / count for term, total, count in zip(terms, totals, counts, strict=True)]
    return torch.stack(means).sum()


class Stepper:
    """An encoder, its objective and their optimizer."""

    def __init__(self, encoder: SequenceEncoder, objective: Objective, config: TrainingConfig) -> None:
        self.encoder = encoder
        self.objective = objective
        self.config = config
        self.parameters = list(trained_parameters(encoder, objective).values())
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in self.parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
                {"params": [p for p in self.parameters if p.ndim < 2], "weight_decay": 0.0},
            ],
            lr=config.learning_rate,
            fused=True,
        )

    def step(self, batch: Batch, *, rate: float) -> StepFigures:
        """Descend on Σ weight · (sum over ranks of a term's total) / (sum over ranks of its count)."""
        figures = self.gradients(batch)
        if self.config.clip_norm:
            nn.utils.clip_grad_norm_(self.parameters, self.config.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        return figures

    def gradients(self, batch: Batch) -> StepFigures:
        """Leave the gradient of the loss over all ranks' rows in the parameters."""
        self.optimizer.zero_grad(set_to_none=True)
        with self._as_configured(batch.windows.device.type):
            terms = self.objective(self.encoder, batch)
        counts = sum_over_ranks(torch.stack([term.count for term in terms]))
        totals = torch.stack([term.total for term in terms])
        weighted_sum(terms, totals, counts).backward()
        for parameter in self.parameters:  # another rank's rows may have reached it, none of these
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        figures = torch.cat([totals.detach(), self._columns(batch).to(totals.dtype)])
        sum_gradients(self.parameters, figures)
        terms = [replace(term, total=term.total.detach()) for term in terms]  # or each step's graph would be kept
        return StepFigures(terms, figures[:-2], counts, figures[-2], figures[-1])

    @contextmanager
    def _as_configured(self, device: str) -> Iterator[None]:
        """Let the encoder compute in this training's precision and chunks inside the block."""
        encoder, config = self.encoder, self.config
        mixed = config.precision == "bf16" or (config.precision == "auto" and multiplies_bf16(device))
        before = encoder.casts_layers, encoder.training_chunks
        encoder.casts_layers = config.batch_size * encoder.config.max_length >= CAST_POSITIONS
        encoder.training_chunks = chunking.divisor()
        try:
            with torch.autocast(device, dtype=torch.bfloat16, enabled=mixed):
                yield
        finally:
            encoder.casts_layers, encoder.training_chunks = before

    def _columns(self, batch: Batch) -> Tensor:
        """Input columns that hold an item, and all computed ones: int64[2]. Views are not counted."""
        rows, width = batch.windows.shape
        not_read = rows * (self.objective.window - self.encoder.config.max_length)  # the last item of a causal window
        real = (batch.windows != 0).sum()
        return torch.stack([real, torch.full_like(real, rows * width)]) - not_read


@cache
def multiplies_bf16(device: str) -> bool:
    """Whether products are faster in bf16 on a device: a GPU or CPU that has instructions for them."""
    if device == "cuda":
        return torch.cuda.get_device_capability() >= (8, 0)
    if device != "cpu":
        return False
    found = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))
