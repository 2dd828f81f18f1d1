"""How models are ranked, measured and compared."""

import re
from dataclasses import dataclass

from raymerge.errors import ConfigError
from raymerge.settings_checks import check_ranges


@dataclass(frozen=True)
class EvaluationConfig:
    """How rankings are measured and compared. `uniN` and `popN` rank among N uniform or popular negatives."""

    __pydantic_config__ = {"extra": "forbid"}  # a plain dict: the class needs no pydantic to exist

    rankings: tuple[str, ...] = ("full", "uni100", "pop100")  # all items, or N uniform or popular ones
    filter_seen: bool = True  # leave out items already in the history, here and in validation
    ks: tuple[int, ...] = (5, 10, 20)  # cut-offs of the metrics
    replicates: int = 10_000  # of the bootstrap over users; no p value of m comparisons is below 2 m / (replicates + 1)
    confidence: float = 0.95
    seed: int = 0
    memory_mib: int = 256  # for scores, in each process

    def __post_init__(self) -> None:
        for name in ("rankings", "ks"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ConfigError(f"evaluation.{name} needs at least one entry and none twice, got {list(values)}")
        for ranking in self.rankings:
            parse_ranking(ranking)
        bounds = {"ks": (1, 10**6), "replicates": (100, 10**5), "seed": (0, 2**63 - 1), "memory_mib": (1, 2**20)}
        check_ranges(self, "evaluation", **bounds)
        if not {10, 20} <= set(self.ks):
            raise ConfigError(f"evaluation.ks needs 10 and 20, which every report has, got {list(self.ks)}")
        if not 0.5 <= self.confidence < 1:
            raise ConfigError(f"evaluation.confidence must be at least .5 and below 1, got {self.confidence}")


def parse_ranking(name: str) -> tuple[str, int]:
    """Kind (full, uni or pop) and number of negatives of a ranking; raises ConfigError for an unknown name.

    >>> parse_ranking("full"), parse_ranking("pop100")
    (('full', 0), ('pop', 100))
    """
    if name == "full":
        return "full", 0
    match = re.fullmatch(r"(uni|pop)([1-9]\d{0,3})", name)
    if match is None:
        raise ConfigError(f"unknown ranking {name!r}; known: full, uniN and popN, such as uni100, N below 10,000")
    return match[1], int(match[2])
