"""What ranking and the Fisher diagonal require of a model."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn


class Recommender(Protocol):
    """Any torch module with these three parts (`raymerge.models.encoder.SequenceEncoder` is one).

    It may also have `repeat_direction` and `input_rows` (see `raymerge.models.repeats`).
    """

    def embed(self, histories: Tensor) -> Tensor:
        """int64[B, L] → embedded input x, [B, L', d] for a Fisher diagonal."""

    def encode(self, x: Tensor, histories: Tensor) -> Tensor:
        """Embedded input → hidden state at the prediction position [B, d]."""

    def head(self) -> tuple[Tensor, Tensor | None, str | None]:
        """Output weights [V, d], bias [V] or None, name of the embedding they are tied to or None."""

    def modules(self) -> Iterator[nn.Module]:
        """The module itself and every module inside."""


@contextmanager
def evaluation_mode(module: Recommender | nn.Module) -> Iterator[None]:
    """Eval mode and no gradients inside the block; afterwards each submodule returns to its previous mode."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        for part, _ in modes:
            part.training = False
        with torch.no_grad():
            yield
    finally:
        for part, training in modes:
            part.training = training
