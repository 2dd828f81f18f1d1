"""Several models that answer together: the yardstick for one merged model at a fraction of the cost."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from raymerge.models.encoder import SequenceEncoder


class Ensemble(nn.Module):
    """The mean of the logits of M models of one catalogue, at M times the cost of each.

    It is a recommender too, with `embed`, `encode` and `head`: the mean of W_m h_m + b_m is one product of the
    concatenated hidden states and the concatenated output weights, [B, M·d] · [M·d, V].
    """

    def __init__(self, models: Sequence[SequenceEncoder]) -> None:
        super().__init__()
        self.members = nn.ModuleList(models)

    @property
    def _models(self) -> list[SequenceEncoder]:
        return [cast(SequenceEncoder, member) for member in self.members]

    def embed(self, histories: Tensor) -> Tensor:
        """Embedded input of each model: int64[B, L] → [M, B, L', d]."""
        return torch.stack([model.embed(histories) for model in self._models])

    def encode(self, x: Tensor, histories: Tensor) -> Tensor:
        """Hidden states of all models, concatenated: [M, B, L', d] → [B, M·d]."""
        states = [model.encode(part, histories) for model, part in zip(self._models, x, strict=True)]
        return torch.cat(states, dim=1)

    def head(self) -> tuple[Tensor, Tensor | None, None]:
        """Output weights [V, M·d] and bias [V] of the mean; not tied to any single embedding."""
        weights, biases, _ = zip(*(model.head() for model in self._models), strict=True)
        present = [bias for bias in biases if bias is not None]
        bias = torch.stack(present).sum(dim=0) / len(biases) if present else None
        return torch.cat(weights, dim=1) / len(weights), bias, None

    @property
    def repeat_direction(self) -> Tensor | None:
        """Those of all models, concatenated like the output weights: [M·d]; None if the models have none."""
        found = tuple(model.repeat_direction for model in self._models if model.repeat_direction is not None)
        return torch.cat(found) / len(found) if found else None

    def input_rows(self, histories: Tensor) -> Tensor:
        """What the models read, the same for all: int64[B, L] → int64[B, L']."""
        return self._models[0].input_rows(histories)
