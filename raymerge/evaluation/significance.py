"""Is a difference between two models more than the luck of the sampled users? Paired, streaming, exact sums.

The Poisson bootstrap gives each user an independent Poisson(1) weight in each replicate, so that no replicate needs
to know how many users there are (Hanley and MacGibbon, "Creating non-parametric bootstrap samples using Poisson
frequencies", 2006; Chamandy et al., "Estimating uncertainty for massive data streams", Google 2012). The weight is a
hash of (seed, user key, replicate): all models get the same weights, which makes the comparison paired, and partitions
may be processed anywhere and in any order.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from raymerge.errors import ConfigError, InputError, ScoreError
from raymerge.evaluation.draws import poisson
from raymerge.splitmix import Stream

WEIGHTS_AT_ONCE = 1 << 20
ROUNDING = 1e-12  # relative; what rounding leaves of a difference of 0 must not get a sign


@dataclass(frozen=True)
class Interval:
    """A mean over users with its bootstrap percentile interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """Model a against model b on the same users.

    `low` and `high` bound the `difference` of their means; `relative` is to the mean of b, None if that is 0.
    """

    difference: float
    relative: float | None
    low: float
    high: float
    p_value: float


class Bootstrap:
    """Means of several columns (one model's metric each) over users, with their joint bootstrap distribution.

    Memory is O(replicates · columns), for any number of users; time is one hash per user and replicate. The sums
    depend on partitions and their order only in the last bits of float64; add parts in a fixed order where these
    matter. `totals` float64[columns + 1] and `sums` float64[columns + 1, replicates] end with the (weighted)
    number of users.

    >>> bootstrap = Bootstrap(["merged", "average"], replicates=200)
    >>> bootstrap.update(torch.arange(3), {"merged": torch.tensor([1.0, 0.5, 0.0]), "average": torch.zeros(3)})
    >>> bootstrap.compare("merged", "average").difference
    0.5
    """

    def __init__(self, columns: Sequence[str], *, replicates: int, seed: int = 0) -> None:
        if replicates < 100:
            raise ConfigError(f"a bootstrap needs at least 100 replicates for its intervals, got {replicates}")
        self.columns = tuple(columns)
        self.replicates = replicates
        self.seed = seed
        self.totals = torch.zeros(len(self.columns) + 1, dtype=torch.float64)
        self.sums = torch.zeros(len(self.columns) + 1, replicates, dtype=torch.float64)

    @property
    def users(self) -> int:
        """How many users have been added."""
        return int(self.totals[-1])

    def update(self, keys: Tensor, values: Mapping[str, Tensor]) -> None:
        """Add users: their keys int64[U], each only once overall, and for every column one value per user, float[U].

        Raises InputError for lengths that differ and ScoreError for a value that is not finite.
        """
        for name in self.columns:
            if len(values[name]) != len(keys):
                raise InputError(f"column {name!r} needs one value per user, got {len(values[name])} for {len(keys)}")
        table = torch.stack([*(values[name].to(torch.float64) for name in self.columns), torch.ones_like(keys)])
        if not bool(table.isfinite().all()):
            raise ScoreError("metrics must be finite numbers to be compared: check which model gave others")
        self.totals += table.sum(dim=1)
        replicate = torch.arange(self.replicates)[:, None]
        chunk = max(1, WEIGHTS_AT_ONCE // self.replicates)
        for some_keys, some_columns in zip(keys.split(chunk), table.split(chunk, dim=1), strict=True):
            self.sums += some_columns @ poisson(self.seed, Stream.BOOTSTRAP, some_keys, replicate).T

    def interval(self, column: str, *, confidence: float = 0.95) -> Interval:
        """Mean of a column and its interval; raises InputError if there are no users."""
        mean, replicated = self._mean(column)
        return Interval(mean, *_percentiles(replicated, confidence))

    def compare(self, a: str, b: str, *, confidence: float = 0.95) -> Difference:
        """Column a minus column b on the same users; raises InputError if there are no users.

        The p value is two-sided: twice the share of replicates whose difference has the other sign or is 0, with 1
        added to both counts (Davison and Hinkley, "Bootstrap methods and their application", 1997, eq. 4.11), so it
        is never below 2 / (replicates + 1). Nor is it below what a sign test of as many users can give, 2^(1 − users):
        of a handful of users the bootstrap is too sure.
        """
        mean_a, replicated_a = self._mean(a)
        mean_b, replicated_b = self._mean(b)
        replicated = replicated_a - replicated_b
        replicated[replicated.abs() <= ROUNDING * (replicated_a.abs() + replicated_b.abs())] = 0
        opposite = min(int((replicated <= 0).sum()), int((replicated >= 0).sum()))
        low, high = _percentiles(replicated, confidence)
        return Difference(
            difference=mean_a - mean_b,
            relative=(mean_a - mean_b) / mean_b if mean_b else None,
            low=low,
            high=high,
            p_value=min(1.0, max(2 * (1 + opposite) / (1 + len(replicated)), 2.0 ** (1 - self.users))),
        )

    def _mean(self, column: str) -> tuple[float, Tensor]:
        """Mean of a column, and its means in the replicates that have any weight: float64[≤ replicates]."""
        if not self.users:
            raise InputError("no users to compare models on: the evaluated partitions are empty")
        position = self.columns.index(column)
        drawn = self.sums[:, self.sums[-1] > 0]
        return float(self.totals[position] / self.totals[-1]), drawn[position] / drawn[-1]


def _percentiles(replicated: Tensor, confidence: float) -> tuple[float, float]:
    tail = (1 - confidence) / 2
    low, high = torch.quantile(replicated, torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's correction for several comparisons, in the order given: each adjusted p value is at most 1.

    With p_(1) <= … <= p_(m): adjusted p_(i) = max over j <= i of (m − j + 1) · p_(j) (Holm, "A simple sequentially
    rejective multiple test procedure", 1979). Raises InputError for a p value outside 0..1.

    >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
    {'a': 0.03, 'b': 0.06, 'c': 0.06}
    """
    adjusted: dict[str, float] = {}
    largest = 0.0
    for position, (name, p) in enumerate(sorted(p_values.items(), key=lambda entry: entry[1])):
        if not 0 <= p <= 1:
            raise InputError(f"p values must be between 0 and 1, got {p} for {name!r}")
        largest = max(largest, min(1.0, (len(p_values) - position) * p))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p_values}
