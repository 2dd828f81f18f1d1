"""Markets: parts of a log that must not be combined, and what each of them may learn from.

A log is divided by one of its columns or by a seeded draw, to measure what merging is worth without sharing data. No
market sees test items of the whole (`raymerge.data.split`). Validation items of the whole validate in the markets that
have them, and train in none; if a user's second-to-last item is another market's, all that a market has of the user
trains. Shapes: n interactions, V items.
"""

import re
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from raymerge.data.sequences import Sequences, bounds
from raymerge.data.split import before_test
from raymerge.errors import ConfigError
from raymerge.settings_checks import check_choices
from raymerge.splitmix import GAMMA, mix_, signed, unit

By = Literal["items", "users", "column"]
Base = Literal["all", "shared", "first", "old"]
SHARED = 0  # the owner of what belongs to all markets; the markets themselves are 1, 2, …
MOST = 64


@dataclass(frozen=True)
class MarketsConfig:
    """How a log is divided into markets, and which part of it the common base has seen.

    By `items`, a share `shared` of the items belongs to all markets and each other item to one: a market sees users'
    interactions with its own and the shared items. By `users`, each user belongs to one market, and `shared` is unused.
    By `column`, a column of the log (`prepare.market`) says where each interaction happened, and `names` lists the
    markets; users and items may be in several, and `count` and `shared` are unused. The base has seen `all` data, only
    the `shared` items, only the `first` market, or the `old` half of each history.
    """

    __pydantic_config__ = {"extra": "forbid"}

    count: int = 3
    by: By = "items"  # what a market has to itself; column: by prepare.market
    shared: float = 0.4  # share of the items that all markets have, for by items
    names: tuple[str | int | bool, ...] = ()  # as in the column; quote what YAML would not read as text, such as 'no'
    base: Base = "all"  # what the common base has seen; old: the older half of each history
    seed: int = 0

    def __post_init__(self) -> None:
        check_choices(self, "markets")
        markets = len(self.names) if self.names else self.count
        if not 2 <= markets <= MOST:
            what = "the number of markets.names" if self.names else "markets.count"
            raise ConfigError(f"{what} must be between 2 and {MOST}, got {markets}")
        self._check_names()
        if not 0 <= self.shared < 1:
            raise ConfigError(f"markets.shared must be at least 0 and below 1, got {self.shared}")
        if self.by != "items" and self.base == "shared":
            raise ConfigError("markets.base shared needs markets.by items: only items can be shared")

    def _check_names(self) -> None:
        for name in self.names:
            if isinstance(name, bool):
                raise ConfigError(
                    f"markets.names must be text, got {str(name).lower()}; put it in quotes, as in ['no']"
                )
        if (self.by == "column") != bool(self.names):
            raise ConfigError(
                f"markets.names and markets.by column need each other, got by {self.by} and names {list(self.names)}"
            )
        if len(set(self.labels)) < len(self.labels):
            raise ConfigError(f"markets.names must differ in letters and digits, got {list(self.names)}")

    @property
    def own_names(self) -> list[str]:
        """The `names` as text, as in the log's column."""
        return [str(name) for name in self.names]

    @property
    def labels(self) -> list[str]:
        """The names of markets 1, 2, … within names of models."""
        drawn = [str(number) for number in range(1, self.count + 1)]
        return [re.sub(r"[^\w-]", "-", name) for name in self.own_names or drawn]


def owners(numbers: Tensor, config: MarketsConfig) -> Tensor:
    """The market 1..count that each item index (or user key) belongs to, 0 for all markets: int64[n] → int64[n].

    >>> owners(torch.arange(1, 9), MarketsConfig(count=2, shared=0.25, seed=1)).tolist()
    [1, 0, 2, 0, 0, 1, 2, 2]
    """
    shared = config.shared if config.by == "items" else 0.0
    seed = mix_(torch.tensor(signed(config.seed)) + GAMMA)
    drawn = (unit(mix_(numbers ^ seed)).float() - shared) / (1 - shared)
    return torch.where(drawn < 0, SHARED, 1 + (drawn * config.count).long().clamp(max=config.count - 1))


def seen_by_market(sequences: Sequences, market: int, config: MarketsConfig) -> Sequences:
    """The histories before the test as market 1, 2, … sees them; users without interactions there are left out.

    The log numbers the markets of a column in the order of their names, all of which the configuration lists.
    """
    known = before_test(sequences)
    if config.by == "column":
        assert known.markets is not None, "the log was prepared without prepare.market"
        number = 1 + sorted(config.own_names).index(config.own_names[market - 1])
        return _part(known, known.markets == number)
    if config.by == "users":
        mine = owners(known.keys, config) == market
        return _part(known, mine.repeat_interleave(known.lengths))
    owner = owners(known.items.long(), config)
    return _part(known, (owner == market) | (owner == SHARED))


def seen_by_base(sequences: Sequences, config: MarketsConfig) -> Sequences:
    """The histories before the test as the common base sees them, unless it sees all."""
    known = before_test(sequences)
    if config.base == "first":
        return seen_by_market(sequences, 1, config)
    if config.base == "shared":
        return _keep(known, owners(known.items.long(), config) == SHARED)
    place = torch.arange(len(known.items)) - known.offsets[:-1].repeat_interleave(known.lengths)
    return _keep(known, place < known.lengths.repeat_interleave(known.lengths) / 2)


def _part(known: Sequences, kept: Tensor) -> Sequences:
    """The interactions `kept` bool[n]; users validate if their last one is among them."""
    last = kept[known.offsets[1:] - 1]
    return _keep(replace(known, validates=last if known.validates is None else last & known.validates), kept)


def _keep(sequences: Sequences, kept: Tensor) -> Sequences:
    """The interactions `kept` bool[n], of the users who have any."""
    before = bounds(kept.long())[sequences.offsets]
    users = before.diff().nonzero().squeeze(1)
    markets = None if sequences.markets is None else sequences.markets[kept]
    rest = replace(sequences, items=sequences.items[kept], offsets=before, markets=markets)
    return rest.select(users, before[users], before[users + 1])
