"""Choose how to merge: the best setting and coefficients on validation, unless that may be luck."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from raymerge.merging.coefficients import Point, search_settings
from raymerge.merging.held_out import FoldedScore, held_out_gain, standard_error
from raymerge.merging.methods import MergeConfig, MergeSetting, Trial


@dataclass(frozen=True)
class ChosenMerge:
    """How to merge, its score, and by how much the best trial beats the first for users who did not choose it.

    `gain_error` is the standard error of the best trial's lead over the first.
    """

    trial: Trial
    score: float
    held_out_gain: float
    gain_error: float


def choose(score: Callable[[MergeSetting, Point], FoldedScore], settings: MergeConfig, *, members: int) -> ChosenMerge:
    """The best-scoring setting and coefficients, if such a choice is clearly better for users who did not make it.

    That is, by more than a standard error. Otherwise it may be luck, and the first trial is taken: the plainest
    setting, with equal or given coefficients.

    The step is chosen last, with everything else as chosen by then. Whatever `settings` fixes is not searched.
    """
    scores: dict[Trial, FoldedScore] = {}

    def mean(setting: MergeSetting, point: Point) -> float:
        if (setting, point) not in scores:
            scores[setting, point] = score(setting, point)
        return scores[setting, point].mean

    candidates = settings.options()
    if settings.coefficients == "search":
        budget = settings.budget - len(settings.steps) + 1  # the steps are tried afterwards
        choice = search_settings(mean, candidates, members, budget=budget)
        best = (choice.setting, choice.found.coefficients)
    else:
        point = settings.point(members)
        best = max(((setting, point) for setting in candidates), key=lambda trial: mean(*trial))
    shorter = [(replace(best[0], step=step), best[1]) for step in settings.steps[1:]]
    best = max([best, *shorter], key=lambda trial: mean(*trial))
    first = next(iter(scores))
    gain, error = held_out_gain(list(scores.values())), standard_error(scores[best], scores[first])
    chosen = best if gain > error else first
    return ChosenMerge(chosen, scores[chosen].mean, gain, error)
