"""Named choices: objectives, estimators and merge methods are registered where they are defined."""

from collections.abc import Callable, Iterable, Iterator
from difflib import get_close_matches
from typing import Generic, TypeVar

from raymerge.errors import UnknownNameError

T = TypeVar("T")


def known(name: str, names: Iterable[str]) -> str:
    """What an error says about names that exist, the most similar one first.

    >>> known("tranining", ["base", "training"]), known("x", ["base", "training"]), known("x", [])
    ('did you mean training? known: base, training', 'known: base, training', 'known: none')
    """
    names = list(names)
    similar = get_close_matches(name, names, n=1, cutoff=0.75)
    return "".join(f"did you mean {one}? " for one in similar) + f"known: {', '.join(names) or 'none'}"


class Registry(Generic[T]):
    """Maps names to entries of one kind. Duplicates are refused; the error for an unknown name lists the known ones.

    >>> colours = Registry[str]("colour")
    >>> colours.add("red", "#f00")
    '#f00'
    >>> colours["blue"]
    Traceback (most recent call last):
    raymerge.errors.UnknownNameError: unknown colour 'blue'; known: red
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def add(self, name: str, entry: T) -> T:
        """Add an entry under a new name and return it."""
        if name in self._entries:
            raise ValueError(f"{self.kind} {name!r} is already registered")
        self._entries[name] = entry
        return entry

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator form of `add`."""
        return lambda entry: self.add(name, entry)

    def __getitem__(self, name: str) -> T:
        try:
            return self._entries[name]
        except KeyError:
            raise UnknownNameError(f"unknown {self.kind} {name!r}; {known(name, self._entries)}") from None

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)
