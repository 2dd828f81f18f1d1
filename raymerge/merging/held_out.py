"""Whether what some users choose is better for other users too.

The best of many trials is partly the luckiest one. So users are divided into folds, by a hash of their key, and a trial
keeps one sum per fold, from which any division of the users into halves can be scored without ranking again. Memory is
a few hundred bytes per trial, for any number of users.

Shapes: T trials, K folds, S divisions into halves.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from raymerge.models.draws import hashed
from raymerge.splitmix import Stream

FOLDS = 32
DIVISIONS = 500


@dataclass(frozen=True)
class FoldedScore:
    """A score that is a mean over users, by fold: `sums` f64[K] over its users, and their `counts` int64[K]."""

    sums: Tensor
    counts: Tensor

    def __add__(self, other: "FoldedScore") -> "FoldedScore":
        return FoldedScore(self.sums + other.sums, self.counts + other.counts)

    @property
    def mean(self) -> float:
        """The mean over all users; 0 if there are none."""
        return float(self.sums.sum()) / max(1, int(self.counts.sum()))


def folded(gains: Tensor, keys: Tensor) -> FoldedScore:
    """The score of users by their gains [U] and keys int64[U]."""
    fold = hashed(Stream.FOLD, keys.cpu()) % FOLDS
    sums = torch.zeros(FOLDS, dtype=torch.float64).index_add_(0, fold, gains.cpu().double())
    return FoldedScore(sums, torch.bincount(fold, minlength=FOLDS))


def held_out_gain(trials: Sequence[FoldedScore]) -> float:
    """By how much the trial that half of the users choose beats the first trial for the other half.

    The mean over `DIVISIONS` random halves of the folds; each half chooses the trial with its best mean (of ties the
    first). Both halves are of one sample, whose luck remains: where all trials are equally good, the gain is above 0 in
    up to half of the cases, and above the `standard_error` in about a tenth.
    """
    sums, counts = torch.stack([trial.sums for trial in trials]), trials[0].counts.double()
    drawn = hashed(Stream.FOLD, torch.arange(DIVISIONS)[:, None], torch.arange(FOLDS))
    choosing = (drawn.argsort(dim=1).argsort(dim=1) < FOLDS // 2).double()  # [S, K], 1 for those who choose

    def means(halves: Tensor) -> Tensor:
        return halves @ sums.t() / (halves @ counts).clamp(min=1)[:, None]  # [S, T]

    chosen, others = means(choosing).argmax(dim=1, keepdim=True), means(1 - choosing)
    return float((others.gather(1, chosen)[:, 0] - others[:, 0]).mean())


def standard_error(best: FoldedScore, first: FoldedScore) -> float:
    """Standard error of the difference between the means of two trials over the same users, from its K folds.

    √(K / (K − 1) Σ_k (d_k − g c_k)²) / Σ_k c_k, for differences d of the sums, counts c and g = Σ_k d_k / Σ_k c_k
    (Cochran, "Sampling Techniques", 1977, section 2.11).
    """
    differences, users = best.sums - first.sums, best.counts.double()
    total = users.sum().clamp(min=1)
    rest = differences - differences.sum() / total * users
    return float((rest.square().sum() * FOLDS / (FOLDS - 1)).sqrt() / total)
