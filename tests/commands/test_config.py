"""`raymerge config`: what it prints is a recipe again, and explains itself."""

from pathlib import Path

import pytest
import yaml
from command_cases import mistake

from raymerge import recipes
from raymerge.cli import cli
from raymerge.errors import ConfigError
from raymerge.fisher.weights import ESTIMATORS
from raymerge.models.objectives import OBJECTIVES, ObjectiveConfig

pytestmark = pytest.mark.usefixtures("ray_is_never_started")


@pytest.mark.parametrize("name", list(recipes.RECIPES))
def test_printed_configuration_is_a_recipe_again(capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str) -> None:
    cli(["config", "--recipe", name], standalone_mode=False)
    file = tmp_path / "mine.yaml"
    file.write_text(capsys.readouterr().out)
    assert recipes.configure(str(file)) == recipes.configure(name)
    assert yaml.safe_load(file.read_text())["recipe"] == name


@pytest.mark.parametrize("value", ["2024-13-01", "0b_"])
def test_value_that_yaml_cannot_parse_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, value: str
) -> None:
    assert "quote text with special characters" in mistake(capsys, "config", "--set", f"prepare.user={value}")
    (tmp_path / "own.yaml").write_text(f"prepare: {{user: {value}}}")
    assert "own.yaml is not YAML" in mistake(capsys, "config", "--recipe", tmp_path / "own.yaml")


def test_the_suggested_delimiter_can_be_set_as_shown() -> None:
    assert recipes.configure("demo", ('prepare.delimiter="|"',)).prepare.delimiter == "|"
    assert recipes.configure("demo", ('prepare.delimiter="\\t"',)).prepare.delimiter == "\t"


def test_numbers_with_an_exponent_are_numbers_in_all_settings(tmp_path: Path) -> None:
    config = recipes.configure("demo", ("members.duorec.settings.weight=5e-3", "training.weight_decay=1.5e1"))
    assert config.members["duorec"].resolved().weight == 0.005
    file = tmp_path / "own.yaml"
    file.write_text(yaml.safe_dump(config.plain()).replace("0.005", "5e-3"))
    assert recipes.configure(str(file)) == config


def test_printed_configuration_explains_settings(capsys: pytest.CaptureFixture[str]) -> None:
    cli(["config", "--recipe", "demo"], standalone_mode=False)
    lines = capsys.readouterr().out.splitlines()
    assert "  norm: pre  # pre | post; before or after attention and feed-forward" in lines
    assert any(line.startswith("  patience: ") and line.endswith("; 0: never stop") for line in lines)
    assert "  epsilon: 1.0e-06  # ε, in units of a diagonal's mean: a number or search" in lines


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_settings_of_an_objective_are_printed_as_it_takes_them(capsys: pytest.CaptureFixture[str], name: str) -> None:
    cli(["config", "--objective", name], standalone_mode=False)
    printed = capsys.readouterr().out
    assert ObjectiveConfig(name, yaml.safe_load(printed)).resolved() == ObjectiveConfig(name).resolved()
    assert all("  # " in line for line in printed.splitlines())


def test_error_of_an_unknown_objective_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="unknown objective 'sasrec'; known: bert4rec"):
        cli(["config", "--objective", "sasrec"], standalone_mode=False)


@pytest.mark.parametrize("name", list(ESTIMATORS))
def test_an_estimator_is_printed_with_its_formula_and_source(capsys: pytest.CaptureFixture[str], name: str) -> None:
    cli(["config", "--estimator", name], standalone_mode=False)
    printed = capsys.readouterr().out
    assert f"formula: {ESTIMATORS[name].formula}\nsource: {ESTIMATORS[name].source}\n" in printed
