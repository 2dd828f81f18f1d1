"""Checks of settings: of a few choices, or of a range.

Choices are declared by the type alone: `Literal[…]`, or `Annotated[str, REGISTRY]` for the names of a registry, which
refuses other names itself.
"""

import math
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from raymerge.errors import ConfigError


def choices_in(annotation: Any) -> tuple[Any, ...]:
    """The values of a literal type or the names of a registry; none for any other type.

    >>> choices_in(Literal["pre", "post"]), choices_in(Annotated[str, {"sum": sum}]), choices_in(int)
    (('pre', 'post'), ('sum',), ())
    """
    if get_origin(annotation) is Annotated:
        return tuple(annotation.__metadata__[0])
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def class_in(annotation: Any) -> Any:
    """The class in `Class | None`, `dict[str, Class]` or `Class`."""
    options = [one for one in getattr(annotation, "__args__", ()) if one not in (str, type(None))]
    return options[0] if options else annotation


def check_choices(settings: object, section: str = "") -> None:
    """Raise ConfigError unless each field of a dataclass has one of its choices; `section` is for the message."""
    for name, kind in get_type_hints(type(settings)).items():
        choices, value = choices_in(kind), getattr(settings, name)
        if choices and value not in choices:
            raise ConfigError(f"{_path(section, name)} must be one of {', '.join(choices)}, got {value!r}")


def check_ranges(settings: object, section: str = "", /, **bounds: tuple[float, float]) -> None:
    """Raise ConfigError unless each named field of a dataclass is a number within its bounds, both included.

    Each entry of a tuple is checked. If the default is a whole number, so must the value be; if it is None, it may be.
    """
    for name, (low, high) in bounds.items():
        default, value = getattr(type(settings), name), getattr(settings, name)
        for one in value if isinstance(value, tuple | list) else (value,):
            if one is None and default is None:
                continue
            whole = isinstance(default, int)
            is_number = isinstance(one, int if whole else int | float) and not isinstance(one, bool)
            if not is_number or not low <= one <= high:
                kind = "" if is_number else "a whole number " if whole else "a number "
                allowed = f"at least {low:,}" if math.isinf(high) else f"between {low:,} and {high:,}"
                allowed += " or null" if default is None else ""
                raise ConfigError(f"{_path(section, name)} must be {kind}{allowed}, got {one!r}")


def _path(section: str, name: str) -> str:
    return f"{section}.{name}" if section else name
