"""How well each estimator's diagonal agrees with the exact one, and at what cost: how many samples are enough.

With x an estimate and e the exact diagonal as one long vector: relative error |x - e| / |e|; cosine x·e / |x||e|; and
the error after the best single scale, |c x - e| / |e| with c = x·e / x·x. A merge weighs models against each other, so
a scale that all diagonals share does no harm: for a biased estimator the scaled error is what counts.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, sqrt
from statistics import fmean, stdev
from typing import Literal, TypedDict

from torch import Tensor

from raymerge.errors import ConfigError
from raymerge.fisher.weights import ESTIMATORS, Estimator, FisherConfig
from raymerge.models.layers import by_layer
from raymerge.settings_checks import check_ranges

MOST_SEEDS = 100
SCHEMA = 1  # of study.json; raised when a key changes its meaning


@dataclass(frozen=True)
class StudyConfig:
    """What is compared: each estimator with these numbers of samples, and with several seeds if it draws at random.

    `batch_size` B adds the batch-wise forms over groups of B users, which estimate a different quantity.
    """

    __pydantic_config__ = {"extra": "forbid"}

    samples: tuple[int, ...] = (1, 2, 5, 10, 20, 30, 50)  # the values of n to compare
    seeds: int = 3  # for estimators that draw at random
    users: int | None = None  # at most; null: all
    batch_size: int | None = None  # users per group of the batch-wise forms; null: leaves these out

    def __post_init__(self) -> None:
        if not self.samples or min(self.samples) < 1 or len(set(self.samples)) < len(self.samples):
            raise ConfigError(f"study.samples must be distinct numbers of at least 1, got {list(self.samples)}")
        check_ranges(self, "study", seeds=(1, MOST_SEEDS), users=(1, inf), batch_size=(2, inf))


def candidates(settings: StudyConfig, like: FisherConfig, *, items: int, dim: int) -> Iterator[FisherConfig]:
    """All registered estimators with every number of samples that a model of this size allows, and every seed.

    Temperature and precision are as in `like`.
    """
    for name in ESTIMATORS:
        entry = ESTIMATORS[name]
        most = {"items": items, "dimensions": dim, None: max(settings.samples)}[entry.limit]
        numbers = [None] if entry.samples is None else [n for n in sorted(settings.samples) if n <= most]
        for plain in (FisherConfig(name, n, like.temperature, precision=like.precision) for n in numbers):
            for form in [plain, *_batch_wise(plain, entry, settings.batch_size)]:
                for seed in range(settings.seeds if entry.random else 1):
                    yield replace(form, seed=seed)


def _batch_wise(config: FisherConfig, entry: Estimator, batch_size: int | None) -> Iterator[FisherConfig]:
    alignments: tuple[Literal["identity", "rank"], ...] = ("identity", "rank")
    for align in alignments:
        if batch_size is not None and align in entry.alignments:
            yield replace(config, batch_size=batch_size, align=align)


def backward_passes(config: FisherConfig, *, dim: int) -> int:
    """Most backward passes per user, as the estimator states; the h of a group of B users has d·B entries."""
    return ESTIMATORS[config.estimator].passes(config.samples or 0, dim * (config.batch_size or 1))


def line_of(config: FisherConfig) -> str:
    """The name that all sample sizes of a candidate share."""
    form = f" B={config.batch_size} by {config.align}" if config.batch_size else ""
    return config.estimator + form


@dataclass(frozen=True)
class Agreement:
    """Sums over entries that give all comparisons, Σ(x - e)², Σx², Σxe and Σe²; they add up over parameters."""

    difference: float = 0.0
    estimate: float = 0.0
    product: float = 0.0
    exact: float = 0.0

    @classmethod
    def of(cls, estimate: Tensor, exact: Tensor) -> "Agreement":
        """The agreement of two tensors of one shape, summed in float64."""
        x, e = estimate.double().flatten(), exact.double().flatten()
        return cls(float((x - e).square().sum()), float(x @ x), float(x @ e), float(e @ e))

    def __add__(self, other: "Agreement") -> "Agreement":
        return Agreement(
            self.difference + other.difference,
            self.estimate + other.estimate,
            self.product + other.product,
            self.exact + other.exact,
        )

    @property
    def scale(self) -> float:
        """The c that minimises |c x - e|."""
        return self.product / self.estimate if self.estimate else 0.0

    def scaled(self, scale: float) -> "Agreement":
        """The same with the estimate times `scale`."""
        estimate, product = scale**2 * self.estimate, scale * self.product
        return Agreement(max(0.0, estimate - 2 * product + self.exact), estimate, product, self.exact)

    @property
    def error(self) -> float:
        """|x - e| / |e|."""
        return sqrt(self.difference / self.exact)

    @property
    def cosine(self) -> float:
        """x·e / |x||e|, 0 if x is 0."""
        return self.product / sqrt(self.estimate * self.exact) if self.estimate else 0.0


@dataclass(frozen=True)
class Measured:
    """One candidate with one seed: agreement by parameter of its diagonal over `users` users, and the cost per user."""

    config: FisherConfig
    users: int
    seconds_per_user: float
    agreement: Mapping[str, Agreement]


class Spread(TypedDict):
    """Mean over seeds, and standard deviation between them (0 for a single one)."""

    mean: float
    spread: float


class Metrics(TypedDict):
    """How well a diagonal agrees; the `scaled_error` of a layer uses the best scale of the whole diagonal."""

    error: Spread
    scaled_error: Spread
    cosine: Spread
    scale: Spread


class Row(TypedDict):
    """One estimator with one number of samples."""

    line: str
    estimator: str
    samples: int | None
    batch_size: int | None
    align: str | None
    unbiased: bool
    seeds: int
    users: int
    passes: int
    seconds_per_user: float
    overall: Metrics
    layers: dict[str, Metrics]


class Study(TypedDict):
    """`study.json`: candidates compared with `exact` in float64, over `users` users of a model of this size.

    Seconds are core seconds, or GPU seconds where the processes have a GPU.
    """

    schema: int
    users: int
    items: int
    dim: int
    temperature: float
    precision: str
    rows: list[Row]


def rows(measured: Sequence[Measured], *, dim: int) -> list[Row]:
    """One row per candidate, over all its seeds, in the order given."""
    groups: dict[FisherConfig, list[Measured]] = {}
    for one in measured:
        groups.setdefault(replace(one.config, seed=0), []).append(one)
    return [_row(config, group, dim) for config, group in groups.items()]


def _row(config: FisherConfig, seeds: Sequence[Measured], dim: int) -> Row:
    totals = [sum(one.agreement.values(), Agreement()) for one in seeds]
    scales = [total.scale for total in totals]
    layers = {
        layer: [sum((one.agreement[name] for name in names), Agreement()) for one in seeds]
        for layer, names in by_layer(seeds[0].agreement).items()
    }
    return {
        "line": line_of(config),
        "estimator": config.estimator,
        "samples": config.samples,
        "batch_size": config.batch_size,
        "align": config.align if config.batch_size else None,
        "unbiased": ESTIMATORS[config.estimator].unbiased and config.batch_size is None,
        "seeds": len(seeds),
        "users": seeds[0].users,
        "passes": backward_passes(config, dim=dim),
        "seconds_per_user": min(one.seconds_per_user for one in seeds),
        "overall": _metrics(totals, scales),
        "layers": {layer: _metrics(found, scales) for layer, found in layers.items() if found[0].exact},
    }


def _metrics(seeds: Sequence[Agreement], scales: Sequence[float]) -> Metrics:
    return {
        "error": _spread([one.error for one in seeds]),
        "scaled_error": _spread([one.scaled(scale).error for one, scale in zip(seeds, scales, strict=True)]),
        "cosine": _spread([one.cosine for one in seeds]),
        "scale": _spread([one.scale for one in seeds]),
    }


def _spread(values: Sequence[float]) -> Spread:
    return {"mean": fmean(values), "spread": stdev(values) if len(values) > 1 else 0.0}


def enough(found: Sequence[Row], tolerance: float) -> dict[str, Row | None]:
    """For each line the cheapest row whose scaled error is at most `tolerance`; None if there is none."""
    best: dict[str, Row | None] = {}
    for row in sorted(found, key=lambda row: row["passes"]):
        good = row["overall"]["scaled_error"]["mean"] <= tolerance
        if best.setdefault(row["line"], None) is None and good:
            best[row["line"]] = row
    return {row["line"]: best[row["line"]] for row in found}
