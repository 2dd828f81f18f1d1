"""Merge models by a weighted mean of each parameter: θ*_k = Σ_m λ_m w_mk θ_mk / Σ_m λ_m w_mk.

Shapes: M models, n entries of a block of one tensor. Methods see blocks in float64, so that a merge needs little
memory besides its result, whatever the size of the models.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product, repeat
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from raymerge.errors import ConfigError, MergeError
from raymerge.merging.checks import (
    Model,
    Tensors,
    check_coefficients,
    check_diagonals,
    check_epsilon,
    check_models,
    check_power,
    check_unmerged,
    diagonal_names,
    tensors_of,
)
from raymerge.merging.coefficients import Point
from raymerge.merging.step import check_step
from raymerge.merging.weights import ENTRIES_AT_ONCE, NORMALISATIONS, FisherWeights, Normalise, stacked_blocks
from raymerge.registry import Registry
from raymerge.settings_checks import check_choices, check_ranges

EPSILON = 1e-6  # times the mean of the diagonals, unless told
EPSILONS = (EPSILON, 1e-3, 1e-1)
POWERS = (1.0, 0.5, 2.0)
STEPS = (1.0, 0.75, 0.5)


@dataclass(frozen=True)
class MergeMethod:
    """How M values of a parameter become one, entry by entry.

    `combine(values f64[M, n], coefficients f64[M, 1])` gives f64[n]; the coefficients sum to 1. A method that
    `needs_diagonals` gets two more arguments, the diagonals f64[M, n] and the floor ε of their tensor.
    """

    combine: Callable[..., Tensor]
    needs_diagonals: bool


METHODS: Registry[MergeMethod] = Registry("merge method")


def average(values: Tensor, coefficients: Tensor) -> Tensor:
    """Σ_m λ_m θ_m (Wortsman et al., "Model soups", ICML 2022)."""
    return (coefficients * values).sum(dim=0)


def fisher(values: Tensor, coefficients: Tensor, diagonals: Tensor, floor: float) -> Tensor:
    """Σ_m λ_m (F_m + ε) θ_m / Σ_m λ_m (F_m + ε), with the λ-weighted mean where that is 0 / 0.

    Matena and Raffel, "Merging models with Fisher-weighted averaging", NeurIPS 2022, eq. 4; ε is ours, and so is the
    power α that F may have been raised to: above 1 it favours whoever knows more, towards 0 all count alike.
    """
    return (fisher_shares(coefficients, diagonals, floor) * values).sum(dim=0)


def fisher_shares(coefficients: Tensor, diagonals: Tensor, floor: float) -> Tensor:
    """The share of each merged entry that comes from each model: f64[M, n], columns sum to 1."""
    weights = coefficients * (diagonals + floor)
    total = weights.sum(dim=0)
    return torch.where(total > 0, weights / total, coefficients)


METHODS.add("average", MergeMethod(average, needs_diagonals=False))
METHODS.add("fisher", MergeMethod(fisher, needs_diagonals=True))


@dataclass(frozen=True)
class MergeSetting:
    """How diagonals become weights, and how far a merge goes from the start: one candidate of a search."""

    normalise: Normalise = "none"
    epsilon: float = EPSILON
    power: float = 1.0
    step: float = 1.0  # see `raymerge.merging.step`


Trial = tuple[MergeSetting, Point]


@dataclass(frozen=True)
class MergeConfig:
    """How members become one model. Settings of "search" are chosen on the validation split.

    Where coefficients are searched, `budget` is the most trials of all settings together.
    """

    __pydantic_config__ = {"extra": "forbid"}  # a plain dict: the class needs no pydantic to exist

    method: Annotated[str, METHODS] = "fisher"
    coefficients: Literal["search", "equal"] | tuple[float, ...] = "equal"  # λ: search | equal | a list
    normalise: Literal["none", "model", "tensor", "search"] = "search"  # scale of diagonals
    epsilon: float | Literal["search"] = EPSILON  # ε, in units of a diagonal's mean: a number or search
    power: float | Literal["search"] = 1.0  # of each diagonal, near 0 almost equal weights: a number or search
    step: float | Literal["search"] = 1.0  # share of the way from the members' start to the merge: a number or search
    budget: int = 48  # trials of a search of coefficients

    def __post_init__(self) -> None:
        METHODS[self.method]
        check_choices(self, "merge")
        if not isinstance(self.coefficients, str):
            check_coefficients(self.coefficients, len(self.coefficients), ConfigError)
        elif self.coefficients not in ("search", "equal"):
            raise ConfigError(f"merge.coefficients must be numbers, equal or search, got {self.coefficients!r}")
        for name, check in (("epsilon", check_epsilon), ("power", check_power), ("step", check_step)):
            value = getattr(self, name)
            if not isinstance(value, str):
                check(value, ConfigError)
            elif value != "search":
                raise ConfigError(f"merge.{name} must be a number or search, got {value!r}")
        check_ranges(self, "merge", budget=(1, 10**6))
        if self.coefficients == "search" and self.budget < self.settings_tried:
            raise ConfigError(
                f"merge.budget must be at least {self.settings_tried}, a trial for each setting, got {self.budget}"
            )

    @property
    def trials(self) -> int:
        """How many merges are scored, at most."""
        return self.budget if self.coefficients == "search" else self.settings_tried

    @property
    def settings_tried(self) -> int:
        """How many settings are tried with the same coefficients: the step last, with the best of the others."""
        return len(self.options()) + len(self.steps) - 1

    @property
    def steps(self) -> tuple[float, ...]:
        """The candidates for the step; just one if there is nothing to choose."""
        return STEPS if isinstance(self.step, str) else (self.step,)

    @property
    def needs_start(self) -> bool:
        """Whether the model that members started from takes part."""
        return self.steps != (1.0,)

    def options(self) -> list[MergeSetting]:
        """The candidates for normalisation, ε and α, the plainest first, all with the first step."""
        first = self.steps[0]
        if not self.needs_diagonals:
            return [MergeSetting(step=first)]
        normalise = NORMALISATIONS if self.normalise == "search" else (self.normalise,)
        epsilon = EPSILONS if isinstance(self.epsilon, str) else (self.epsilon,)
        power = POWERS if isinstance(self.power, str) else (self.power,)
        return [MergeSetting(*candidate, first) for candidate in product(normalise, epsilon, power)]

    @property
    def label(self) -> str:
        """The name of a merge in a report."""
        return "weighted-average" if self.method == "average" and not self.is_uniform else self.method

    @property
    def is_uniform(self) -> bool:
        """Whether the merge is the uniform average, which other merges are compared with."""
        return self.method == "average" and self.coefficients == "equal"

    @property
    def needs_diagonals(self) -> bool:
        """Whether the Fisher diagonals of the members are used."""
        return METHODS[self.method].needs_diagonals

    @property
    def searched(self) -> list[str]:
        """Names of the settings that are chosen on validation; without any, a merge needs no data."""
        of_diagonals = ("normalise", "epsilon", "power") if self.needs_diagonals else ()
        return [name for name in ("coefficients", *of_diagonals, "step") if getattr(self, name) == "search"]

    def given(self, members: int) -> Trial:
        """The only setting and coefficients there are if nothing is searched."""
        [setting] = self.options()
        return setting, self.point(members)

    def point(self, members: int) -> Point:
        """The coefficients if they are not searched."""
        return (1 / members,) * members if isinstance(self.coefficients, str) else tuple(self.coefficients)

    def check_members(self, members: int) -> None:
        """Raise ConfigError if there is not a coefficient for each member, or not enough trials to try each of them.

        For each setting a search tries equal coefficients, each member with the most, and each member alone.
        """
        least = len(self.options()) * (2 * members + 1) + len(self.steps) - 1
        if self.coefficients == "search" and self.budget < least:
            raise ConfigError(
                f"merge.budget must be at least {least} to try each of {members} models, got {self.budget}: raise it, "
                "fix merge.normalise, or set merge.coefficients=equal"
            )
        if not isinstance(self.coefficients, str) and len(self.coefficients) != members:
            raise ConfigError(
                f"merge.coefficients must be one for each of {members} models, got {len(self.coefficients)}"
            )


@torch.no_grad()
def merge(
    models: Sequence[Model],
    diagonals: Sequence[Tensors] | None = None,
    *,
    method: str = "fisher",
    coefficients: Sequence[float] | None = None,
    normalise: Normalise = "none",
    epsilon: float = EPSILON,
    power: float = 1.0,
) -> dict[str, Tensor]:
    """Merge modules or state dicts of one shape: name → new tensor, with the first model's dtype and device.

    `diagonals` are the Fisher diagonals of the models, by `named_parameters()` name; `coefficients` are the λ_m >= 0
    (equal by default; their sum does not matter). ε is `epsilon` times the mean of the diagonals over the tensor
    and the models: entries on which no model has information take the λ-weighted mean, and nothing becomes NaN.
    `normalise` scales the diagonals between models first: not at all, each model's by its overall mean ("model"), or
    each tensor of each model by its own mean ("tensor"); then they are raised to `power`.

    Parameters are merged; in a state dict these are all floating-point tensors. All other tensors (buffers, parameters
    without a diagonal) must be equal in all models and are copied. No argument is changed. Besides the result, memory
    is O(M · 2^18) float64 numbers: tensors are merged block by block.

    Raises MergeError, with the first difference, for models that differ in settings, catalogue, names, shapes or
    dtypes, for diagonals that do not belong to them, and for coefficients or ε out of range; UnknownNameError for an
    unknown method.

    >>> models = [{"w": torch.tensor([0.0, 0.0])}, {"w": torch.tensor([1.0, 1.0])}]
    >>> merge(models, method="average", coefficients=[3, 1])
    {'w': tensor([0.2500, 0.2500])}
    >>> merge(models, [{"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([1.0, 1.0])}])
    {'w': tensor([0.5000, 1.0000])}
    """
    chosen = METHODS[method]
    check_models(models)
    weights = _fisher_weights(method, models, diagonals, MergeSetting(normalise, epsilon, power))
    lambdas = _sum_to_one(coefficients, len(models))
    names = diagonal_names(models[0])
    members = [tensors_of(model) for model in models]
    merged = {}
    for name in members[0]:
        values = [member[name] for member in members]
        if name not in names or (weights is not None and names[name] not in weights):
            check_unmerged(name, values)
            merged[name] = values[0].clone()
        else:
            merged[name] = _merge_tensor(chosen.combine, values, lambdas, weights, names[name])
    return merged


@torch.no_grad()
def shares(
    diagonals: Sequence[Tensors],
    *,
    coefficients: Sequence[float] | None = None,
    normalise: Normalise = "none",
    epsilon: float = EPSILON,
    power: float = 1.0,
) -> dict[str, list[float]]:
    """The share of each tensor of a Fisher merge that comes from each model: name → M numbers that sum to 1.

    A share is the mean over the tensor's entries of λ_m (F_m^α + ε) / Σ λ (F^α + ε), with the arguments of `merge`.
    """
    weights = FisherWeights(diagonals, normalise, epsilon, power)
    lambdas = _sum_to_one(coefficients, len(diagonals))
    parts = {}
    for name, tensor in diagonals[0].items():
        total = torch.zeros(len(diagonals), dtype=torch.float64)
        floor = weights.floor(name, total.device)
        for block in weights.blocks(name, total.device):
            total += fisher_shares(lambdas, block, floor).sum(dim=1)
        parts[name] = (total / tensor.numel()).tolist()
    return parts


def _fisher_weights(
    method: str, models: Sequence[Model], diagonals: Sequence[Tensors] | None, setting: MergeSetting
) -> FisherWeights | None:
    """The diagonals that a method needs, checked; None for a method that needs none."""
    needed = METHODS[method].needs_diagonals
    if needed and diagonals is None:
        raise MergeError(f"method {method!r} needs the models' diagonals: estimate them, or use 'average'")
    if not needed and diagonals is not None:
        raise MergeError(f"method {method!r} uses no diagonals: leave them out, or use 'fisher'")
    if diagonals is None:
        return None
    check_diagonals(models, diagonals)
    return FisherWeights(diagonals, setting.normalise, setting.epsilon, setting.power)


def _sum_to_one(coefficients: Sequence[float] | None, members: int) -> Tensor:
    """Checked coefficients, scaled to sum to 1; equal ones for None: f64[M, 1]."""
    coefficients = [1.0] * members if coefficients is None else coefficients
    check_coefficients(coefficients, members)
    lambdas = torch.tensor(coefficients, dtype=torch.float64)[:, None] / max(coefficients)  # sums cannot overflow
    return lambdas / lambdas.sum()


def _merge_tensor(
    combine: Callable[..., Tensor], values: Sequence[Tensor], lambdas: Tensor, weights: FisherWeights | None, name: str
) -> Tensor:
    """One merged tensor, filled block by block."""
    device = values[0].device
    merged = torch.empty_like(values[0], memory_format=torch.contiguous_format)
    arguments: Iterator[tuple[Any, ...]] = ((block,) for block in stacked_blocks(values, device))
    if weights is not None:
        floor = repeat(weights.floor(name, device))
        arguments = zip(stacked_blocks(values, device), weights.blocks(name, device), floor, strict=False)
    lambdas = lambdas.to(device)
    for output, (theta, *rest) in zip(merged.view(-1).split(ENTRIES_AT_ONCE), arguments, strict=True):
        output.copy_(combine(theta, lambdas, *rest))
    return merged
