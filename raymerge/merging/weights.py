"""Diagonals made comparable to serve as weights: scaled, raised to a power, floored within a tensor, block by block.

Shapes: M models, n entries of a block of one tensor.
"""

from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from raymerge.errors import ConfigError
from raymerge.merging.checks import Tensors, check_epsilon, check_power

Normalise = Literal["none", "model", "tensor"]
NORMALISATIONS: tuple[Normalise, ...] = get_args(Normalise)
ENTRIES_AT_ONCE = 1 << 18


def stacked_blocks(tensors: Sequence[Tensor], device: torch.device) -> Iterator[Tensor]:
    """Matching blocks of M flattened tensors of one shape, stacked: f64[M, n <= 2^18]."""
    flattened = (tensor.reshape(-1).split(ENTRIES_AT_ONCE) for tensor in tensors)
    for block in zip(*flattened, strict=True):
        yield torch.stack([part.to(device, torch.float64) for part in block])


class FisherWeights:
    """What each model knows about each parameter entry: (s F)^α, with its diagonal F and the scale s by `normalise`.

    none: 1. model: 1 / mean of F over all entries of the model. tensor: 1 / mean of F over the tensor of that model.
    A mean of 0 is left as it is. α is the `power`. Raises ConfigError for an unknown normalisation, MergeError for ε
    or α out of range.
    """

    def __init__(self, diagonals: Sequence[Tensors], normalise: Normalise, epsilon: float, power: float) -> None:
        check_epsilon(epsilon)
        check_power(power)
        if normalise not in NORMALISATIONS:
            raise ConfigError(f"unknown normalisation {normalise!r}; known: {', '.join(NORMALISATIONS)}")
        self._diagonals = diagonals
        self._epsilon, self._power = epsilon, power
        self._scales = [_scales(diagonal, normalise) for diagonal in diagonals]

    def __contains__(self, name: str) -> bool:
        return name in self._diagonals[0]

    def floor(self, name: str, device: torch.device) -> float:
        """ε of a tensor: `epsilon` times the mean of (s F)^α over its entries and the models."""
        entries = len(self._diagonals) * self._diagonals[0][name].numel()
        total = sum(float(block.sum()) for block in self.blocks(name, device))
        return self._epsilon * total / max(1, entries)

    def blocks(self, name: str, device: torch.device) -> Iterator[Tensor]:
        """(s F)^α of a tensor, block by block: f64[M, n]."""
        scales = torch.tensor([[scales[name]] for scales in self._scales], dtype=torch.float64, device=device)
        for block in stacked_blocks([diagonal[name] for diagonal in self._diagonals], device):
            yield block.mul_(scales) if self._power == 1 else block.mul_(scales).pow_(self._power)


def _mean(tensor: Tensor) -> float:
    return float(tensor.sum(dtype=torch.float64)) / max(1, tensor.numel())


def _scales(diagonal: Tensors, normalise: Normalise) -> dict[str, float]:
    """The scale of a model's diagonal, by tensor name."""
    if normalise == "none":
        return dict.fromkeys(diagonal, 1.0)
    means = {name: _mean(tensor) for name, tensor in diagonal.items()}
    if normalise == "tensor":
        return {name: 1 / mean if mean else 1.0 for name, mean in means.items()}
    entries = sum(tensor.numel() for tensor in diagonal.values())
    overall = sum(means[name] * tensor.numel() for name, tensor in diagonal.items()) / max(1, entries)
    return dict.fromkeys(means, 1 / overall if overall else 1.0)
