"""Checks before a merge: models of one shape, diagonals that belong to them, coefficients that are not all 0.

Each check names the first difference that it finds; models and diagonals are counted from 1.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass

import torch
from torch import Tensor, nn

from raymerge.errors import MergeError, UserError

Tensors = Mapping[str, Tensor]
Model = nn.Module | Tensors


def tensors_of(model: Model) -> Tensors:
    """Parameters and buffers by name; a state dict is taken as it is."""
    return model.state_dict() if isinstance(model, nn.Module) else model


def diagonal_names(model: Model) -> dict[str, str]:
    """Names of the parameters that can be merged, with the names that diagonals have for them.

    The two differ for a parameter with several names: `named_parameters()`, and so a diagonal, has only the first.
    In a state dict every floating-point tensor is a parameter.
    """
    if not isinstance(model, nn.Module):
        return {name: name for name, tensor in model.items() if tensor.is_floating_point()}
    first: dict[int, str] = {}
    return {name: first.setdefault(id(p), name) for name, p in model.named_parameters(remove_duplicate=False)}


def check_models(models: Sequence[Model]) -> None:
    """Raise MergeError unless all models have the settings, catalogue, names, shapes and dtypes of the first."""
    if not models:
        raise MergeError("nothing to merge: give at least 1 model, got 0")
    for number, model in enumerate(models[1:], start=2):
        _check_settings(models[0], model, number)
        _check_catalogue(models[0], model, number)
        _check_tensors(tensors_of(models[0]), tensors_of(model), number)
    for number, model in enumerate(models, start=1):
        for name in diagonal_names(model):
            tensor = tensors_of(model)[name]
            if not _extrema_are_finite(tensor):
                raise MergeError(f"model {number} has values in {name!r} that are not finite: leave this model out")


def _check_settings(first: Model, other: Model, number: int) -> None:
    """Compare the `config` dataclasses that modules carry, field by field."""
    mine, theirs = getattr(first, "config", None), getattr(other, "config", None)
    if not is_dataclass(mine) or not is_dataclass(theirs):
        return
    if type(mine) is not type(theirs):
        raise MergeError(
            f"models 1 and {number} are of different kinds: {type(mine).__name__} and {type(theirs).__name__}"
        )
    group = type(mine).__name__.removesuffix("Config").lower()
    for field in fields(mine):
        values = getattr(mine, field.name), getattr(theirs, field.name)
        if values[0] != values[1]:
            raise MergeError(
                f"models 1 and {number} differ in {group}.{field.name}: {values[0]} and {values[1]}; "
                "only models with equal settings merge"
            )


def _check_catalogue(first: Model, other: Model, number: int) -> None:
    mine, theirs = getattr(first, "num_items", None), getattr(other, "num_items", None)
    if mine is not None and theirs is not None and mine != theirs:
        raise MergeError(
            f"models 1 and {number} have different catalogues: {mine} and {theirs} items; train both on one catalogue"
        )


def _check_tensors(first: Tensors, other: Tensors, number: int) -> None:
    for name in [*first, *other]:
        if name not in first or name not in other:
            holder, lacker = (1, number) if name in first else (number, 1)
            raise MergeError(
                f"model {holder} has a tensor {name!r} that model {lacker} lacks: they are not of the same kind"
            )
        for what in ("shape", "dtype"):
            mine, theirs = getattr(first[name], what), getattr(other[name], what)
            if mine != theirs:
                mine, theirs = (tuple(mine), tuple(theirs)) if what == "shape" else (mine, theirs)
                raise MergeError(f"models 1 and {number} differ in the {what} of {name!r}: {mine} and {theirs}")


def check_unmerged(name: str, values: Sequence[Tensor]) -> None:
    """Raise MergeError unless a tensor that is not merged (a buffer) is the same in all models."""
    for number, value in enumerate(values[1:], start=2):
        if not torch.equal(values[0], value.to(values[0].device)):
            raise MergeError(
                f"models 1 and {number} differ in {name!r}, which has no diagonal: make it equal in all models "
                "or give diagonals that include it"
            )


def check_diagonals(models: Sequence[Model], diagonals: Sequence[Tensors]) -> None:
    """Raise MergeError unless each model has a diagonal of its names and shapes, finite and nowhere negative."""
    if len(diagonals) != len(models):
        raise MergeError(f"each model needs a diagonal: got {len(diagonals)} diagonals for {len(models)} models")
    tensors = tensors_of(models[0])
    known = set(diagonal_names(models[0]).values())
    for number, diagonal in enumerate(diagonals, start=1):
        for name in [*diagonals[0], *diagonal]:
            if name not in known:
                raise MergeError(f"diagonal {number} has {name!r}, which is not a parameter of the models")
            if name not in diagonal or name not in diagonals[0]:
                holder, lacker = (1, number) if name in diagonals[0] else (number, 1)
                raise MergeError(f"diagonal {holder} has {name!r} and diagonal {lacker} lacks it: estimate it again")
            _check_diagonal(name, diagonal[name], tensors[name], number)


def _check_diagonal(name: str, diagonal: Tensor, parameter: Tensor, number: int) -> None:
    if diagonal.shape != parameter.shape:
        found, wanted = tuple(diagonal.shape), tuple(parameter.shape)
        raise MergeError(f"diagonal {number} has shape {found} for {name!r}, but the models have {wanted}")
    if not _extrema_are_finite(diagonal):
        raise MergeError(f"diagonal {number} has values in {name!r} that are not finite: estimate it again")
    if diagonal.numel() and float(diagonal.min()) < 0:
        raise MergeError(f"diagonal {number} has negative values in {name!r}, the lowest is {float(diagonal.min()):g}")


def _extrema_are_finite(tensor: Tensor) -> bool:
    """Whether all values are finite (true if there are none), without a mask of the tensor's size."""
    return not tensor.numel() or all(bool(extremum.isfinite()) for extremum in torch.aminmax(tensor))


def check_coefficients(coefficients: Sequence[float], members: int, error: type[UserError] = MergeError) -> None:
    """Raise unless there is one finite λ >= 0 per member, and not all are 0."""
    if len(coefficients) != members:
        raise error(f"each model needs a coefficient: got {len(coefficients)} coefficients for {members} models")
    for number, value in enumerate(coefficients, start=1):
        if not (math.isfinite(value) and value >= 0):
            raise error(f"coefficients must be finite and at least 0, got {value} for model {number}")
    if not any(coefficients):
        raise error("coefficients must not all be 0: no model would count")


def check_power(power: float, error: type[UserError] = MergeError) -> None:
    """Raise unless α is finite and above 0."""
    if not (math.isfinite(power) and power > 0):
        raise error(f"power must be finite and above 0, got {power}")


def check_epsilon(epsilon: float, error: type[UserError] = MergeError) -> None:
    """Raise unless ε is finite and at least 0."""
    if not (math.isfinite(epsilon) and epsilon >= 0):
        raise error(f"epsilon must be finite and at least 0, got {epsilon}")
