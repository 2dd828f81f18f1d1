"""Memory that is reused: fresh memory has to be mapped, and is in no cache when it is first written."""

from math import prod

import torch
from torch import Tensor


class Scratch:
    """Uninitialised tensors by name. The same name gives the same memory again, which overwrites what was in it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._memory: dict[tuple[str, torch.dtype], Tensor] = {}

    def empty(self, name: str, *shape: int, dtype: torch.dtype) -> Tensor:
        """A contiguous tensor of a shape and dtype."""
        count, key = prod(shape), (name, dtype)
        found = self._memory.get(key)
        if found is None or found.numel() < count:
            found = self._memory[key] = torch.empty(count, dtype=dtype, device=self._device)
        return found[:count].view(shape)

    def cast(self, name: str, x: Tensor, dtype: torch.dtype) -> Tensor:
        """The tensor itself if it has the dtype, otherwise a copy under a name."""
        return x if x.dtype is dtype else self.empty(name, *x.shape, dtype=dtype).copy_(x)
