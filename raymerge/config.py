"""The configuration: one frozen, typed tree that refuses unknown keys.

The settings of each stage are defined with the stage; here they are put together and checked against each other.
`raymerge config` prints the comments next to fields, so they are written for users.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from raymerge.data.markets import MarketsConfig
from raymerge.data.prepare import PrepareConfig
from raymerge.errors import ConfigError
from raymerge.evaluation.config import EvaluationConfig
from raymerge.execution.capacity import ClusterConfig
from raymerge.fisher.study import StudyConfig
from raymerge.fisher.weights import FisherConfig
from raymerge.merging.methods import MergeConfig
from raymerge.models.encoder import EncoderConfig
from raymerge.models.objectives import ObjectiveConfig, check_objective
from raymerge.names import fine_tuned_name, market_member_name, round_suffix
from raymerge.training.config import TrainingConfig

SEEDS_OF_A_RUN = 100_000  # between the seeds of runs with seeds 0, 1, …; each model takes one
RESERVED = ("base", "average", "fine-tuned", "control", "ceiling", "ensemble")  # rows of a report, besides the merges


class TrackingConfig(BaseModel):
    """Where MLflow logs go, and under which names."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    uri: str | None = None  # server or database; null: MLFLOW_TRACKING_URI, else <output>/mlflow.db
    experiment: str = "raymerge"
    model_name: str | None = Field(default=None, pattern=r"^[^/:.%\"']+$")  # in the model registry; null: the recipe's


class Config(BaseModel):
    """The configuration of a whole run. `raymerge config --recipe NAME` prints it resolved."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: str
    seed: int = Field(default=0, ge=0, lt=2**31)  # of all trainings; fisher, markets and evaluation have their own
    prepare: PrepareConfig = PrepareConfig()
    encoder: EncoderConfig = EncoderConfig()
    markets: MarketsConfig | None = None  # parts of the log that share no data: each member is trained on each part
    base: ObjectiveConfig | None = None  # what the common encoder learns first; null: members start from scratch
    training: TrainingConfig = TrainingConfig()  # of the base, or of members that start from scratch
    members: dict[str, ObjectiveConfig] = Field(min_length=1)
    fine_tuning: TrainingConfig = TrainingConfig()  # of each member from the base
    rounds: int = Field(default=1, ge=1, le=1000)  # of fine-tuning and merging, each from the last merge
    fisher: FisherConfig = FisherConfig()
    study: StudyConfig = StudyConfig()  # of the estimators (raymerge fisher-study); not part of a run
    merge: MergeConfig = MergeConfig()
    rivals: dict[str, FisherConfig] = Field(default_factory=dict)  # more merges of the last members, by other diagonals
    after_merge: TrainingConfig | None = None  # of merged models, and of the control (plus the epochs of later rounds)
    evaluation: EvaluationConfig = EvaluationConfig()
    tracking: TrackingConfig = TrackingConfig()
    cluster: ClusterConfig = ClusterConfig()

    @model_validator(mode="after")
    def _check(self) -> "Config":
        for objective in [*self.members.values(), *([self.base] if self.base else [])]:
            check_objective(objective, self.encoder)
        for section, settings in self.estimators.items():
            settings.check_model(section, dim=self.encoder.dim)
        for name in (*self.members, *self.rivals):
            if not name.replace("-", "").replace("_", "").isalnum():
                raise ConfigError(f"names of members and rivals consist of letters, digits, - and _, got {name!r}")
        if self.rivals and not self.merge.needs_diagonals:
            raise ConfigError(
                f"rivals merge with other diagonals, but merge.method {self.merge.method} takes none: set rivals={{}}"
            )
        if self.markets is not None and self.markets.by == "column" and self.prepare.market is None:
            raise ConfigError("markets.by column needs prepare.market, the column that names each row's market")
        if self.markets is not None and self.after_merge is not None:
            raise ConfigError("after_merge trains on all data, which markets do not share: set after_merge=null")
        if self.merge.needs_start and self.base is None:
            raise ConfigError("merge.step goes from the base towards a merge, but base is null: set merge.step=1")
        if self.rounds > 1 and self.base is None:
            raise ConfigError("rounds > 1 needs a base, from which the first round starts")
        if self.rounds * len(self.all_members) >= SEEDS_OF_A_RUN:
            raise ConfigError(f"rounds times members must be below {SEEDS_OF_A_RUN:,}, or their seeds would repeat")
        for rival in self.rivals:
            if re.fullmatch(r"round-\d+", rival):
                raise ConfigError(f"a rival cannot be named like a round, got {rival!r}: rename it")
        self._check_names()
        return self

    def _check_names(self) -> None:
        merge = self.merge.label
        early = [round_suffix(number) for number in range(1, self.rounds)]
        names = [*dict.fromkeys((*RESERVED, merge)), *(merge + suffix for suffix in early)]  # it may be the average
        names += [*self.all_members, *self.rivals, *(fine_tuned_name(rival) for rival in self.rivals)]
        suffixes = [*early, *(f"-{rival}" for rival in self.rivals)]
        names += [member + suffix for member in self.all_members for suffix in suffixes]
        twice = next((name for name, count in Counter(names).items() if count > 1), None)
        if twice is not None:
            raise ConfigError(f"two models of the run would be named {twice!r}: rename the member, market or rival")

    @property
    def all_members(self) -> dict[str, ObjectiveConfig]:
        """The models to merge, by name: with markets, one of each member per market."""
        if self.markets is None:
            return self.members
        labels = self.markets.labels
        return {
            market_member_name(name, label): objective for name, objective in self.members.items() for label in labels
        }

    @property
    def estimators(self) -> dict[str, FisherConfig]:
        """The settings of all diagonals, by their place in the configuration."""
        return {"fisher": self.fisher} | {f"rivals.{name}": settings for name, settings in self.rivals.items()}

    @property
    def member_training(self) -> TrainingConfig:
        """Training of members in one round: from the base, or from scratch."""
        return self.fine_tuning if self.base else self.training

    @property
    def ceiling_training(self) -> TrainingConfig:
        """Training of the one model of all markets' data: for as many epochs as members have in all rounds."""
        return replace(self.member_training, epochs=self.rounds * self.member_training.epochs)

    @property
    def control_training(self) -> TrainingConfig:
        """Further training of a first-round member, for as many epochs as all that comes after it."""
        assert self.after_merge is not None, "without it there is no control"
        epochs = self.after_merge.epochs + (self.rounds - 1) * self.member_training.epochs
        return replace(self.after_merge, epochs=epochs)

    def of_rival(self, name: str) -> "Config":
        """The same run with a rival's diagonals."""
        return self.model_copy(update={"fisher": self.rivals[name]})

    def plain(self) -> dict[str, Any]:
        """As plain values for JSON and YAML."""
        return self.model_dump(mode="json")

    def determining(self) -> dict[str, Any]:
        """The same without the settings that only say where the work is done and recorded."""
        return self.model_dump(mode="json", exclude={"cluster", "tracking"})


def leaves(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """All settings of a configuration, each with its path; an empty mapping is a setting.

    >>> dict(leaves({"training": {"epochs": 3, "seeds": [1, 2]}}))
    {('training', 'epochs'): 3, ('training', 'seeds'): [1, 2]}
    """
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, (*path, str(key)))
        else:
            yield (*path, str(key)), value
