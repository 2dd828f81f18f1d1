"""From plain values, such as of a YAML file, and `--set` overrides to a configuration, or one line on what is wrong."""

import copy
import re
from collections.abc import Iterable, Mapping
from typing import Any

import yaml
from pydantic import ValidationError

from raymerge.config import Config
from raymerge.errors import ConfigError
from raymerge.redaction import redact
from raymerge.registry import known
from raymerge.settings_checks import class_in

TYPE_NAMES = ("float", "int", "bool", "str")  # pydantic's names for the alternatives of a type; not keys
REUSED_SECTIONS = ("training", "fisher")  # as settings name theirs, though other sections consist of the same
PLAIN_WORDS = (
    (r"a valid integer(, .*)?", "a whole number"),
    (r"a valid number(, .*)?", "a number"),
    (r"a valid (tuple|list)", "a list, such as [1, 2]"),
    (r"a (valid )?dictionary.*", "a section: set the keys below it"),
)


class _Loader(yaml.SafeLoader):
    """Reads 1e-3 and 1.5e3 as numbers, as in YAML 1.2; in 1.1 they are text."""


EXPONENTIAL = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", EXPONENTIAL, list("-+.0123456789"))


def read_yaml(text: str | bytes) -> Any:
    """Content of a YAML document; raises yaml.YAMLError."""
    try:
        return yaml.load(text, Loader=_Loader)
    except ValueError as error:  # such as of the date 2024-13-01
        raise yaml.YAMLError(str(error)) from error


def resolve(values: Mapping[str, Any], overrides: Iterable[str] = ()) -> Config:
    """The configuration with `--set key.key=value` overrides applied; values are read as YAML.

    Raises ConfigError in one line for an unknown key, a wrong type or a value out of range.
    """
    tree: dict[str, Any] = copy.deepcopy(dict(values))
    for override in overrides:
        _override(tree, override)
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(_one_line(error)) from None
    _refuse_booleans(tree, config.plain(), "")
    return config


def _refuse_booleans(given: Any, taken: Any, path: str) -> None:
    """Raise ConfigError for true or false in place of a number: pydantic takes them for 1 or 0."""
    if isinstance(given, dict) and isinstance(taken, dict):
        for key in given.keys() & taken.keys():
            _refuse_booleans(given[key], taken[key], f"{path}.{key}")
    elif isinstance(given, list) and isinstance(taken, list):
        for one, other in zip(given, taken, strict=True):
            _refuse_booleans(one, other, path)
    elif isinstance(given, bool) and not isinstance(taken, bool):
        raise ConfigError(f"{path[1:]}: should be a number, got {str(given).lower()}")


def _override(tree: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise ConfigError(f"--set takes key=value, such as training.epochs=3, got {redact(override)!r}")
    *sections, last = path.split(".")
    for section in sections:
        if not isinstance(tree.get(section), dict):
            if tree.get(section, {}) is not None or section not in tree:
                names = [key for key, value in tree.items() if value is None or isinstance(value, dict)]
                cure = f"; to replace all: --set '{sections[0]}={{…}}'" if sections[0] in ("members", "rivals") else ""
                raise ConfigError(
                    f"unknown section {section!r} in --set {redact(override)}; {known(section, names)}{cure}"
                )
            tree[section] = {}
        tree = tree[section]
    try:
        tree[last] = read_yaml(text)
    except yaml.YAMLError:
        raise ConfigError(
            f"the value in --set {redact(override)} cannot be parsed; quote text with special characters"
        ) from None


def _one_line(error: ValidationError) -> str:
    """One line for the first error: where it is, what was expected and what was found."""
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"] if str(part) not in TYPE_NAMES and "[" not in str(part))
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"unknown configuration key {where}; {known(str(first['loc'][-1]), _keys(first['loc'][:-1]))}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        section, dot, rest = message.partition(".")
        if dot and where and section in REUSED_SECTIONS:
            return f"{where}.{rest}"
        return message if message.startswith(where.partition(".")[0]) else f"{where}: {message}"
    if first["type"] == "missing":  # the input would be the whole section
        return f"{where}: {message[0].lower()}{message[1:]}"
    if first["type"] == "too_short":
        return f"{where}: at least one is needed, got none"
    for pattern, plain in PLAIN_WORDS:
        message = re.sub(pattern, plain, message)
    return f"{where}: {message[0].lower()}{message[1:]}, got {_as_yaml(first['input'])}"


def _as_yaml(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return repr(value)


def _keys(location: tuple[int | str, ...]) -> list[str]:
    kind: Any = Config
    for part in location:
        fields = getattr(kind, "model_fields", None) or {}
        if part in fields:
            kind = class_in(fields[part].annotation)
    names = getattr(kind, "model_fields", None) or getattr(kind, "__dataclass_fields__", {})
    return list(names)
