"""How far a merge goes from the model that its members started from."""

import torch
from torch import Tensor

from raymerge.errors import ConfigError, UserError
from raymerge.merging.checks import Model, Tensors, check_models, tensors_of


@torch.no_grad()
def step_from(start: Model, merged: Tensors, step: float) -> dict[str, Tensor]:
    """θ_start + s (θ* − θ_start) for a step s in (0, 1], by name, with the merge's dtype and device.

    Members that train at a constant rate scatter around what they have in common, and so does their start: as one more
    member it removes some of the noise. For a Fisher merge with equal λ of M members, s = M / (M + 1) is the merge
    with the start whose diagonal is the mean of theirs. In rounds this is the slow weights' step of Zhang et al.,
    "Lookahead optimizer", NeurIPS 2019, eq. 1. Integer tensors are the merge's. Raises MergeError unless both have
    the same names, shapes and dtypes, ConfigError for a step out of range.

    >>> step_from({"w": torch.tensor([0.0, 4.0])}, {"w": torch.tensor([1.0, 2.0])}, 0.75)
    {'w': tensor([0.7500, 2.5000])}
    """
    check_step(step)
    check_models([tensors_of(start), merged])
    origin = tensors_of(start)
    return {name: _between(origin[name], end, step) for name, end in merged.items()}


def _between(origin: Tensor, end: Tensor, step: float) -> Tensor:
    if not end.is_floating_point():
        return end
    return origin.to(end.device, torch.float64).lerp(end.double(), step).to(end.dtype)


def check_step(step: float, error: type[UserError] = ConfigError) -> None:
    """Raise unless 0 < s <= 1."""
    if not 0 < step <= 1:
        raise error(f"step must be above 0 and at most 1, got {step}")
