"""Given coefficients are not searched, and lucky choices are not made."""

from typing import Any

import pytest
import torch

from raymerge.errors import ConfigError
from raymerge.merging.choice import choose
from raymerge.merging.held_out import FoldedScore, folded
from raymerge.merging.methods import MergeConfig, MergeSetting


def test_given_coefficients_are_not_searched() -> None:
    asked: list[tuple[MergeSetting, tuple[float, ...]]] = []

    def score(setting: MergeSetting, point: tuple[float, ...]) -> FoldedScore:
        asked.append((setting, point))
        return folded(torch.full((100,), 0.5 if setting.normalise == "model" else 0.25), torch.arange(100))

    chosen = choose(score, MergeConfig(coefficients=(1.0, 3.0)), members=2)
    setting, point = chosen.trial
    assert {point for _, point in asked} == {(1.0, 3.0)}
    assert (setting.normalise, point, chosen.score, chosen.held_out_gain) == ("model", (1.0, 3.0), 0.5, 0.25)
    with pytest.raises(ConfigError, match="one for each of 3 models, got 2"):
        MergeConfig(coefficients=(1.0, 3.0)).check_members(3)


@pytest.mark.parametrize(("members", "step"), [(2, 1.0), (7, 1.0), (20, "search")])
def test_the_least_budget_tries_each_member_under_each_setting(members: int, step: Any) -> None:
    asked: set[tuple[str, tuple[float, ...]]] = set()

    def score(setting: MergeSetting, point: tuple[float, ...]) -> FoldedScore:
        asked.add((setting.normalise, point))
        return folded(torch.zeros(100), torch.arange(100))

    least = 3 * (2 * members + 1) + 2 * (step == "search")
    with pytest.raises(ConfigError, match=f"merge.budget must be at least {least} to try each of {members} models"):
        MergeConfig(coefficients="search", step=step, budget=least - 1).check_members(members)
    settings = MergeConfig(coefficients="search", step=step, budget=least)
    settings.check_members(members)
    choose(score, settings, members=members)
    for number in range(members):
        assert ("none", tuple(float(other == number) for other in range(members))) in asked, "alone"
        for normalise in ("none", "model", "tensor"):
            points = (point for name, point in asked if name == normalise)
            assert any(point[number] == max(point) > sorted(point)[-2] for point in points), "with the most"


def test_the_step_is_chosen_last_for_the_best_weights() -> None:
    asked: list[tuple[str, float]] = []

    def score(setting: MergeSetting, point: tuple[float, ...]) -> FoldedScore:
        asked.append((setting.normalise, setting.step))
        better = (setting.normalise == "model") + (setting.step == 0.75)
        return folded(torch.full((100,), 0.25 * better), torch.arange(100))

    settings = MergeConfig(coefficients="equal", step="search")
    chosen = choose(score, settings, members=2)
    assert asked == [("none", 1.0), ("model", 1.0), ("tensor", 1.0), ("model", 0.75), ("model", 0.5)]
    assert (len(asked), settings.searched, settings.needs_start) == (settings.trials, ["normalise", "step"], True)
    assert chosen.trial == (MergeSetting("model", step=0.75), (0.5, 0.5))


@pytest.mark.parametrize("budget", [5, 24])
def test_a_search_of_weights_and_steps_keeps_to_its_budget(budget: int) -> None:
    asked: list[tuple[MergeSetting, tuple[float, ...]]] = []

    def score(setting: MergeSetting, point: tuple[float, ...]) -> FoldedScore:
        asked.append((setting, point))
        return folded(torch.full((100,), point[0] ** 0.5 + setting.step), torch.arange(100))

    settings = MergeConfig(coefficients="search", step="search", budget=budget)
    choose(score, settings, members=2)
    assert {setting.normalise for setting, _ in asked} == {"none", "model", "tensor"}
    assert {setting.step for setting, _ in asked} == set(settings.steps)
    assert len(asked) <= budget == settings.trials


def test_a_lucky_choice_is_not_made() -> None:
    noise = torch.Generator().manual_seed(1)
    plain, means = torch.rand(1000, generator=noise), []

    def score(setting: MergeSetting, point: tuple[float, ...]) -> FoldedScore:
        is_plain = setting.normalise == "none" and point[0] == point[1]
        gains = plain if is_plain else plain - 0.002 + 0.1 * torch.randn(1000, generator=noise)
        means.append(float(gains.mean()))
        return folded(gains, torch.arange(1000))

    chosen = choose(score, MergeConfig(coefficients="search"), members=2)
    assert max(means) > means[0]
    assert (chosen.trial, chosen.score) == ((MergeSetting(), (0.5, 0.5)), pytest.approx(float(plain.double().mean())))
    assert chosen.held_out_gain < 0


@pytest.mark.parametrize(("advantage", "least", "most"), [(0.0, 0, 30), (3.0, 190, 200)])
def test_a_choice_is_made_for_a_real_advantage_and_seldom_for_none(advantage: float, least: int, most: int) -> None:
    """Eight settings that are all better than the plainest, or no better, by so many standard errors of the noise."""
    users = 640
    noise, keys, made = torch.Generator().manual_seed(0), torch.arange(users), 0
    for _ in range(200):
        plain = torch.rand(users, generator=noise)

        def score(setting: MergeSetting, point: tuple[float, ...], plain: torch.Tensor = plain) -> FoldedScore:
            better = 0.1 * (torch.randn(users, generator=noise) + advantage / users**0.5)
            return folded(plain if setting == MergeSetting() else plain + better, keys)

        chosen = choose(score, MergeConfig(coefficients="equal", epsilon="search"), members=2)
        made += chosen.trial[0] != MergeSetting()
    assert least <= made <= most
