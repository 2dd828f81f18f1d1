"""Settings that may have a few values only say which in their type, and nowhere else.

It is `Literal[…]`, or `Annotated[str, REGISTRY]` for the names of a registry, which refuses others itself.
"""

from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from raymerge.errors import ConfigError


def choices_in(annotation: Any) -> tuple[Any, ...]:
    """All values of a literal type, or the names of a registry; none of any other.

    >>> choices_in(Literal["pre", "post"]), choices_in(Annotated[str, {"sum": sum}]), choices_in(int)
    (('pre', 'post'), ('sum',), ())
    """
    if get_origin(annotation) is Annotated:
        return tuple(annotation.__metadata__[0])
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def check_choices(settings: object, section: str = "") -> None:
    """Raise ConfigError for a field of a dataclass that has none of its choices; its name comes after `section`."""
    for name, kind in get_type_hints(type(settings)).items():
        choices, value = choices_in(kind), getattr(settings, name)
        if choices and value not in choices:
            where = f"{section}.{name}" if section else name
            raise ConfigError(f"{where} must be one of {', '.join(choices)}, got {value!r}")
