"""Checks that a module is a recommender, and finds the parameters that its head is made of."""

from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn

from raymerge.errors import ConfigError
from raymerge.models.recommender import Recommender


def as_recommender(module: nn.Module) -> Recommender:
    """The module itself; raises ConfigError if one of the three parts is missing."""
    for name in ("embed", "encode", "head"):
        if not callable(getattr(module, name, None)):
            raise ConfigError(f"{type(module).__name__} has no method {name}: the engine needs embed, encode and head")
    return cast(Recommender, module)


@dataclass(frozen=True)
class HeadNames:
    """Where the head's tensors are: parameter, and its row for column 0 of `items`.

    A name is None if that part is a constant.
    """

    weight: str | None
    bias: str | None
    items: int
    first: int = 0
    first_bias: int = 0
    tied: bool = False
    repeat_direction: str | None = None

    @classmethod
    def of(
        cls, module: nn.Module, weight: Tensor, bias: Tensor | None, tied: str | None, direction: Tensor | None
    ) -> "HeadNames":
        """From what `head` and `repeat_direction` returned.

        Raises ConfigError unless it consists of the parameters that it claims.
        """
        name, first = _locate(module, weight, "weight")
        bias_name, first_bias = (None, 0) if bias is None else _locate(module, bias, "bias")
        if tied is not None and (name is None or module.get_parameter(tied) is not module.get_parameter(name)):
            raise ConfigError(f"head() says that its weight is tied to {tied!r}, but it is {name or 'not a parameter'}")
        whole = None if direction is None else _locate(module, direction, "repeat_direction")[0]
        if whole is not None and direction is not None and module.get_parameter(whole).shape != direction.shape:
            raise ConfigError(f"repeat_direction must be a whole parameter or a constant, but it is part of {whole!r}")
        return cls(name, bias_name, len(weight), first, first_bias, tied is not None, whole)

    @property
    def scored(self) -> slice:
        """The rows of the weight's parameter that are output weights."""
        return slice(self.first, self.first + self.items)

    def columns(self, rows: Tensor) -> Tensor | None:
        """The column scored by each row that is read, -1 if none; None if the head is not tied: int64[G, K]."""
        if not self.tied:
            return None
        columns = rows - self.first
        return columns.masked_fill((rows == 0) | (columns < 0) | (columns >= self.items), -1)


def _locate(module: nn.Module, tensor: Tensor, what: str) -> tuple[str | None, int]:
    """Name of the parameter that a tensor is, or is a run of rows of, and its first row; None for a constant."""
    for name, parameter in module.named_parameters():
        same = parameter.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()
        if same and parameter.shape[1:] == tensor.shape[1:] and parameter.stride() == tensor.stride():
            return name, int((tensor.storage_offset() - parameter.storage_offset()) // parameter.stride(0))
    if tensor.grad_fn is not None:
        raise ConfigError(f"the model's {what} is computed from parameters: give the parameter or a run of its rows")
    return None, 0
