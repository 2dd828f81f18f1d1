"""`raymerge config`: a configuration as YAML, with the comments and choices that classes declare for settings."""

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, get_type_hints

import click
import yaml

from raymerge.config import Config
from raymerge.errors import ConfigError
from raymerge.fisher.weights import ESTIMATORS
from raymerge.models.objectives import OBJECTIVES, ObjectiveConfig, complete_settings
from raymerge.recipes import RECIPES, configure
from raymerge.settings_checks import choices_in, class_in

SETTING = re.compile(r" {4}(\w+): [^#]*# (?!type:)(.*)")


def print_config(
    recipe: str, overrides: Sequence[str], listing: bool, objective: str | None, estimator: str | None
) -> None:
    """`raymerge config`."""
    if sum(map(bool, (objective, estimator, listing, overrides))) > 1:
        raise ConfigError("--objective, --estimator, --list and --set cannot be combined: give one of them")
    if listing:
        for name in RECIPES:
            click.echo(f"{name:<10} {RECIPES[name].about}")
    elif objective:
        settings = complete_settings(ObjectiveConfig(objective))
        click.echo(_explained(settings, OBJECTIVES[objective].Settings), nl=False)
    elif estimator:
        entry = ESTIMATORS[estimator]
        click.echo(f"{inspect.getdoc(entry.build)}\nformula: {entry.formula}\nsource: {entry.source}")
        click.echo(f"unbiased: {'yes' if entry.unbiased else 'no'}\nn: {entry.samples or 'none'}")
    else:
        click.echo(explained(configure(recipe, overrides)), nl=False)


def explained(config: Config) -> str:
    """The whole configuration as commented YAML, which `--recipe` accepts."""
    return _explained(config.plain(), Config)


def _explained(values: Mapping[str, Any], kind: Any) -> str:
    return "".join(f"{line}\n" for line in _lines(values, kind, ""))


def _lines(values: Mapping[str, Any], kind: Any, indent: str) -> Iterator[str]:
    for key, value in values.items():
        inner = _annotations(kind).get(key, kind)  # a name that is not a field is the user's, such as a member's
        comment = f"  # {_notes(kind)[key]}" if key in _notes(kind) else ""
        if isinstance(value, Mapping) and value:
            yield f"{indent}{_yaml(key)}:{comment}"
            yield from _lines(value, class_in(inner), indent + "  ")
        else:
            yield f"{indent}{_yaml(key)}: {_yaml(value)}{comment}"


def _yaml(value: Any) -> str:
    """As YAML on one line."""
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("\n...\n").strip()


@cache
def _annotations(kind: Any) -> dict[str, Any]:
    return (
        get_type_hints(kind, include_extras=True)
        if inspect.isclass(kind) and kind.__module__.startswith("raymerge.")
        else {}
    )


@cache
def _notes(kind: Any) -> dict[str, str]:
    """The comment of each field of a class, after its choices if it has any."""
    notes: dict[str, str] = {}
    for one in reversed(kind.__mro__ if inspect.isclass(kind) else ()):
        if one.__module__.startswith("raymerge."):
            found = (SETTING.fullmatch(line) for line in inspect.getsource(one).splitlines())
            notes |= {match[1]: match[2] for match in found if match}
    for name, annotation in _annotations(kind).items():
        choices = _choices(annotation)
        if choices and not notes.get(name, "").startswith(choices[0]):
            notes[name] = "; ".join(filter(None, (" | ".join(choices), notes.get(name))))
    return notes


def _choices(annotation: Any) -> list[str]:
    return [_yaml(value) for value in choices_in(annotation)]
