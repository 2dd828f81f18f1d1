"""Memory that is used over and over: fresh memory has to be mapped, and is in no cache when it is first written."""

from math import prod

from torch import Tensor


class Scratch:
    """Uninitialised tensors by name. Asking for a name again gives the same memory: what was in it is gone."""

    def __init__(self, like: Tensor) -> None:
        self._like = like
        self._memory: dict[str, Tensor] = {}

    def empty(self, name: str, *shape: int) -> Tensor:
        """A contiguous tensor of a shape, of the dtype and device of `like`."""
        count = prod(shape)
        found = self._memory.get(name)
        if found is None or found.numel() < count:
            found = self._memory[name] = self._like.new_empty(count)
        return found[:count].view(shape)
