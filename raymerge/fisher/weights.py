"""The estimators: the weight of each catalogue item in a user's Fisher diagonal.

F = 1/N Σ_i Σ_j w_ij (∇ log p_ij)², squared per user and item before any sum. An estimator is one decorated function
that turns a batch of users' scores into probes; configuration, command line and tests then know it.
Batch-wise forms replace a user by a group of S users: (Σ_i w_ij)(∇ Σ_i log p_i,π_i(j))² summed over the group, where
π_i aligns the items of its users: by identity (the same item) or by rank (user i's j-th most probable item).
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from torch import Tensor

from raymerge.errors import ConfigError
from raymerge.fisher.factor import ChosenItems, Probes, completed, from_all, from_choice, from_signs
from raymerge.fisher.sampling import drawn_by_probability, for_each_user, picked_uniformly
from raymerge.fisher.scores import Scores
from raymerge.registry import Registry
from raymerge.settings_checks import check_choices, check_ranges

PAPER = "https://arxiv.org/abs/2307.05476"
SAMPLING = "Kunstner, Hennig, Balles 2019, https://arxiv.org/abs/1905.12558"
HUTCHINSON = "Hutchinson 1990, https://doi.org/10.1080/03610919008812866"


@dataclass(frozen=True)
class Request:
    """What an estimator may need besides the scores: `targets` int64[G, S] and `columns` int64[G, K] are columns."""

    samples: int
    align: str
    targets: Tensor | None
    columns: Tensor | None


Build = Callable[[Scores, Request], Probes]
Limit = Literal["items", "dimensions"] | None


@dataclass(frozen=True)
class Estimator:
    """A way to weight the items, with what a reader needs to choose it.

    `passes(n, d)` is the most backward passes per user; `eigenvectors` says whether those of C, d × d, are computed;
    `random` whether the seed matters; `signs` whether each of n probes combines all items. `samples` says what the
    number n counts, None if there is no n; `limit` what in the model n may not exceed; `alignments` are those of the
    batch-wise form, empty if there is none.
    """

    build: Build
    formula: str
    unbiased: bool
    passes: Callable[[int, int], int]
    source: str = PAPER
    eigenvectors: bool = False
    random: bool = False
    signs: bool = False
    samples: str | None = None
    limit: Limit = None
    alignments: tuple[str, ...] = ()


ESTIMATORS = Registry[Estimator]("estimator")


def estimator(name: str, **facts: Any) -> Callable[[Build], Build]:
    """Register a function as an estimator under a name, with the other fields of `Estimator`."""

    def add(build: Build) -> Build:
        ESTIMATORS.add(name, Estimator(build, **facts))
        return build

    return add


@dataclass(frozen=True)
class FisherConfig:
    """Which estimator of the Fisher diagonal, and its settings; a diagonal depends on these and its inputs alone.

    `batch_size` B makes the paper's batch-wise form, over groups of B users in the order given (diagonals of
    different B are not comparable).
    """

    __pydantic_config__ = {"extra": "forbid"}

    estimator: Annotated[str, ESTIMATORS] = "exact"  # raymerge config --estimator NAME says what it is
    samples: int | None = None  # n of an estimator that samples
    temperature: float = 1.0  # of the logits
    batch_size: int | None = None  # B of the paper's batch-wise form; null: each user alone
    align: Literal["identity", "rank"] = "rank"  # items across users of a batch
    precision: Literal["float32", "bf16"] = "float32"  # of the encoder's products, if it is in float32; never of sums
    seed: int = 0

    def __post_init__(self) -> None:
        entry = ESTIMATORS[self.estimator]
        self._check_samples(entry)
        check_ranges(self, "fisher", samples=(1, math.inf), batch_size=(1, math.inf))
        if not 0 < self.temperature < float("inf"):
            raise ConfigError(f"fisher.temperature must be a positive number, got {self.temperature}")
        check_choices(self, "fisher")
        if self.batch_size is None:
            return
        if self.align not in entry.alignments:
            allowed = [name for name in ESTIMATORS if self.align in ESTIMATORS[name].alignments]
            raise ConfigError(
                f"estimator {self.estimator!r} has no batch-wise form aligned by {self.align}; "
                f"leave out fisher.batch_size or use one of {', '.join(allowed)}"
            )

    def _check_samples(self, entry: Estimator) -> None:
        if entry.samples is None and self.samples is not None:
            raise ConfigError(f"estimator {self.estimator!r} takes no fisher.samples, got {self.samples}: leave it out")
        if entry.samples is not None and self.samples is None:
            raise ConfigError(f"estimator {self.estimator!r} needs fisher.samples: {entry.samples}")

    @property
    def key(self) -> dict[str, Any]:
        """The settings that a diagonal depends on: a seed if items are drawn, an alignment if users form groups."""
        found = asdict(self)
        if not ESTIMATORS[self.estimator].random:
            del found["seed"]
        if self.batch_size is None:
            del found["align"]
        return found

    def check_model(self, section: str = "fisher", *, dim: int, items: int | None = None) -> None:
        """Raise ConfigError if a model of this many dimensions, and items if known, cannot give this many samples.

        `section` is where these settings are in the configuration, for the message.
        """
        entry = ESTIMATORS[self.estimator]
        most = {"items": items, "dimensions": dim, None: None}[entry.limit]
        if most is not None and self.samples is not None and self.samples > most:
            raise ConfigError(
                f"{section}.samples must be at most the {most} {entry.limit} of the model, got {self.samples}"
            )


@estimator(
    "exact",
    formula="w_j = p_j",
    unbiased=True,
    passes=lambda n, d: d,
    source="F = Jᵀ C J, C = Σ_j p_j (W_j - μ)(W_j - μ)ᵀ",
    eigenvectors=True,
)
def exact(scores: Scores, request: Request) -> Probes:
    """The Fisher diagonal over all items, without error."""
    return from_all(scores, request.columns)


@estimator(
    "model",
    formula="w_j = (draws of j in n draws from p) / n",
    unbiased=True,
    passes=min,
    source=SAMPLING,
    random=True,
    samples="draws per user, with replacement",
    alignments=("rank",),
)
def model(scores: Scores, request: Request) -> Probes:
    """Items drawn from the model's own distribution; in groups each user's draws are aligned by probability."""
    items = drawn_by_probability(scores, request.samples)
    if scores.group_size > 1:
        order = scores.probabilities_of(items).argsort(dim=1, descending=True, stable=True)
        items = items.gather(1, order)
    return _evenly(scores, request, items)


@estimator(
    "random",
    formula="w_j = p_j V / n on n items drawn uniformly without replacement",
    unbiased=True,
    passes=min,
    random=True,
    samples="items per user",
    limit="items",
    alignments=("identity", "rank"),
)
def random(scores: Scores, request: Request) -> Probes:
    """Items drawn uniformly, weighted so that the mean over draws is exact; high variance."""
    return _by_probability(scores, request, _picked(scores, request), scale=scores.head.choices / request.samples)


@estimator(
    "random_unweighted",
    formula="w_j = 1 / n on n items drawn uniformly without replacement",
    unbiased=False,
    passes=min,
    random=True,
    samples="items per user",
    limit="items",
    alignments=("identity", "rank"),
)
def random_unweighted(scores: Scores, request: Request) -> Probes:
    """Items drawn uniformly, all with the same weight: a different quantity, one reading of the paper's text."""
    return _evenly(scores, request, _picked(scores, request))


@estimator(
    "topk",
    formula="w_j = p_j on the n most probable items",
    unbiased=False,
    passes=min,
    samples="items per user",
    limit="items",
    alignments=("identity", "rank"),
)
def topk(scores: Scores, request: Request) -> Probes:
    """The most probable items: a lower bound, whose share of the whole differs between models."""
    if request.align == "identity" and scores.group_size > 1:
        items = for_each_user(
            scores, scores.top(lambda run: _group_sum(scores, scores.probabilities(run)), request.samples)
        )
    else:
        items = scores.top(scores.logits, request.samples)
    return _by_probability(scores, request, items)


@estimator(
    "target",
    formula="w_j = 1 on the observed next item",
    unbiased=False,
    passes=lambda n, d: 1,
    alignments=("rank",),
)
def target(scores: Scores, request: Request) -> Probes:
    """The item that did follow: the empirical Fisher. Unless the user validates, the model was trained on it."""
    assert request.targets is not None
    return _evenly(scores, request, request.targets.reshape(-1, 1))


@estimator(
    "rank",
    formula="the n largest eigenvectors of C",
    unbiased=False,
    passes=lambda n, d: n,
    source="Σ_i≤n (J_kᵀ q_i + a_ki h)², a lower bound of every entry",
    eigenvectors=True,
    samples="eigenvectors per user",
    limit="dimensions",
)
def rank(scores: Scores, request: Request) -> Probes:
    """The directions of h that matter most: never above the exact diagonal, equal to it on rows that are not read."""
    return from_all(scores, request.columns, rank=request.samples)


@estimator(
    "rank_unbiased",
    formula="the n largest eigenvectors of C, and one random-sign probe over the rest",
    unbiased=True,
    passes=lambda n, d: n + 1,
    source=HUTCHINSON,
    eigenvectors=True,
    random=True,
    samples="eigenvectors per user",
    limit="dimensions",
)
def rank_unbiased(scores: Scores, request: Request) -> Probes:
    """`rank` plus an unbiased, never negative estimate of what it leaves out."""
    return completed(from_all(scores, request.columns, rank=request.samples), from_signs(scores, request.columns, 1))


@estimator(
    "hutchinson",
    formula="n random-sign probes Σ_j ξ_j √p_j (W_j - μ), each weighing 1/n",
    unbiased=True,
    passes=lambda n, d: n,
    source=HUTCHINSON,
    random=True,
    signs=True,
    samples="probes per user",
)
def hutchinson(scores: Scores, request: Request) -> Probes:
    """Random combinations of all items: `rank_unbiased` without eigenvectors, the cheapest unbiased estimator."""
    return from_signs(scores, request.columns, request.samples)


def _evenly(scores: Scores, request: Request, items: Tensor) -> Probes:
    """Give each of the items int64[B, n] weight 1/n for each user."""
    items = items.view(scores.groups, scores.group_size, -1)
    share = scores.group_size / items.shape[2]
    weights = scores.flat.new_full((scores.groups, items.shape[2]), share)
    return from_choice(scores, ChosenItems(items, weights), request.columns)


def _by_probability(scores: Scores, request: Request, items: Tensor, scale: float = 1.0) -> Probes:
    """Give each of the items int64[B, n] its probability times `scale` as weight."""
    weights = _group_sum(scores, scores.probabilities_of(items)) * scale
    items = items.view(scores.groups, scores.group_size, -1)
    return from_choice(scores, ChosenItems(items, weights), request.columns)


def _picked(scores: Scores, request: Request) -> Tensor:
    return picked_uniformly(scores, request.samples, by_rank=request.align == "rank")


def _group_sum(scores: Scores, values: Tensor) -> Tensor:
    """[B, n] → [G, n], the sum over each group's users."""
    return values.view(scores.groups, scores.group_size, -1).sum(1)
