"""Named, complete configurations: what `--recipe` takes. A recipe is one decorated function."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from raymerge.config import Config
from raymerge.data import demo, movielens
from raymerge.data.markets import MarketsConfig
from raymerge.data.prepare import PrepareConfig
from raymerge.data.size import DataSize
from raymerge.errors import ConfigError
from raymerge.evaluation.config import EvaluationConfig
from raymerge.files import storage
from raymerge.fisher.weights import FisherConfig
from raymerge.merging.methods import MergeConfig
from raymerge.models.encoder import EncoderConfig
from raymerge.models.objectives import ObjectiveConfig
from raymerge.overrides import read_yaml, resolve
from raymerge.registry import Registry
from raymerge.training.config import TrainingConfig

Source = Callable[[Path], Path]
"""Makes or fetches an interaction log in a local folder and returns its path."""


ML_1M_SIZE = DataSize(users=6040, items=3416, interactions=999_611)
ML_1M_CLEANING = PrepareConfig(user="user_id", item="item_id", core="once", min_user_count=3)


@dataclass(frozen=True)
class Recipe:
    """A configuration, its purpose, and the source of its log if there is no `--input`."""

    about: str
    config: Callable[[], Config]
    source: Source | None
    size: DataSize | None  # of the source's log, as prepared


RECIPES = Registry[Recipe]("recipe")


def recipe(
    name: str, about: str, *, source: Source | None = None, size: DataSize | None = None
) -> Callable[[Callable[[], Config]], Callable[[], Config]]:
    """Register a function that returns a complete configuration."""

    def add(config: Callable[[], Config]) -> Callable[[], Config]:
        RECIPES.add(name, Recipe(about, config, source, size))
        return config

    return add


@recipe(
    "demo",
    "a simulated log: see everything work in a few minutes",
    source=demo.write,
    size=DataSize(users=3500, items=593, interactions=92_037),
)
def demo_config() -> Config:
    """Small enough for two CPUs. A constant rate keeps members apart, so that merging gains."""
    settings = {"weight": 0.05}
    return Config(
        recipe="demo",
        encoder=EncoderConfig(attention="causal", max_length=50, dropout=0.1),
        base=ObjectiveConfig("next_item"),
        training=TrainingConfig(epochs=8, learning_rate=3e-3),
        members={
            "next_item": ObjectiveConfig("next_item"),
            "cl4srec": ObjectiveConfig("cl4srec", settings),
            "duorec": ObjectiveConfig("duorec", settings),
        },
        fine_tuning=TrainingConfig(epochs=3, learning_rate=3e-3),
        after_merge=TrainingConfig(epochs=2, learning_rate=8e-4, schedule="linear"),
    )


@recipe("default", "for your own log: columns user, item, timestamp (others: --set prepare.…)")
def default_config() -> Config:
    """A causal encoder that predicts the next item at each position; two members are contrastive, one is not.

    Members continue at the base's rate, which keeps them apart; the merged model ends with a falling one. Only as many
    users validate as the choices need, so that the second-to-last item of most users is trained on.
    """
    settings = {"weight": 0.005}  # ten times more made a well-trained base worse
    return Config(
        recipe="default",
        prepare=PrepareConfig(validation_users=5000),
        encoder=EncoderConfig(
            attention="causal", max_length=50, dropout=0.2, distance_bias=True, repeat_direction=True
        ),
        base=ObjectiveConfig("next_item"),
        training=TrainingConfig(epochs=24),
        members={
            "next_item": ObjectiveConfig("next_item"),
            "cl4srec": ObjectiveConfig("cl4srec", settings),
            "duorec": ObjectiveConfig("duorec", settings),
        },
        fine_tuning=TrainingConfig(epochs=6),
        after_merge=TrainingConfig(epochs=4, learning_rate=3e-4, schedule="linear"),
    )


@recipe(
    "ml-1m",
    "MovieLens-1M, downloaded from GroupLens unless --input names a copy",
    source=movielens.fetch,
    size=ML_1M_SIZE,
)
def ml_1m_config() -> Config:
    """As `default`, with long histories and the usual cleaning: items with 5 interactions, then users with 3.

    Small batches give many steps in few epochs; the merged model's rate falls from the base's rate. Two rounds validate
    better than one.
    """
    config = default_config()
    return config.model_copy(
        update={
            "recipe": "ml-1m",
            "prepare": ML_1M_CLEANING,
            "encoder": replace(config.encoder, max_length=200, dropout=0.1),
            "training": TrainingConfig(epochs=14, batch_size=8),
            "fine_tuning": TrainingConfig(epochs=4, batch_size=8),
            "rounds": 2,
            "after_merge": TrainingConfig(epochs=6, batch_size=8, schedule="linear"),
        }
    )


@recipe(
    "paper",
    "MovieLens-1M as in arXiv 2307.05476: each row of its table, and more; takes hours",
    source=movielens.fetch,
    size=ML_1M_SIZE,
)
def paper_config() -> Config:
    """The paper's setting and estimators, fine-tuned or not, and the exact diagonal, the average and the control.

    One deviation: cross-entropy at each position of windows instead of the last position of each prefix, which gives
    nearly the same in a fortieth of the time. A batch then has about 750 targets instead of 256, twice as many in
    fine-tuning, because contrastive terms use the other windows of a batch as negatives. As in the paper, seen items
    are not filtered.
    """
    contrast = {"weight": 0.1, "similarity": "dot", "temperature": 1.0}
    fine_tuning = TrainingConfig(epochs=5, batch_size=32, learning_rate=1e-4)
    sampled = {
        f"{estimator}-{n}": FisherConfig(estimator=estimator, samples=n)
        for estimator in ("random", "topk", "model")
        for n in (10, 30, 50)
    }
    return Config(
        recipe="paper",
        prepare=ML_1M_CLEANING,
        encoder=EncoderConfig(attention="causal", max_length=50, dropout=0.5, output_bias=False),
        base=ObjectiveConfig("next_item"),
        training=TrainingConfig(epochs=24, batch_size=16),
        members={
            "baseline": ObjectiveConfig("next_item"),
            "cl4srec": ObjectiveConfig("cl4srec", contrast),
            **{
                f"duorec-{mode}": ObjectiveConfig("duorec", {**contrast, "mode": mode})
                for mode in ("supervised", "unsupervised", "both")
            },
        },
        fine_tuning=fine_tuning,
        rivals={**sampled, "target": FisherConfig(estimator="target")},
        after_merge=fine_tuning,
        evaluation=EvaluationConfig(filter_seen=False, ks=(10, 20)),
    )


@recipe("beauty", "Amazon Beauty, lines of `user item item …`; --input names the file")
def beauty_config() -> Config:
    """As `default`, with more dropout for a sparser log."""
    config = default_config()
    return config.model_copy(update={"recipe": "beauty", "encoder": replace(config.encoder, dropout=0.5)})


@recipe(
    "markets",
    "MovieLens-1M in three markets that share no data, or --input another log",
    source=movielens.fetch,
    size=ML_1M_SIZE,
)
def markets_config() -> Config:
    """Members of one objective, each on its own market's data, from a base of older data; merges share no data.

    Three rounds validate better than one with as many epochs. λ is searched, because a market may be far behind the
    others: each reports how well a merge does on its own validation items, and only their sums are compared.
    For other logs: --set prepare.user=… etc.; to divide differently: --set markets.…
    """
    config = default_config()
    return config.model_copy(
        update={
            "recipe": "markets",
            "prepare": ML_1M_CLEANING,
            "markets": MarketsConfig(base="old"),
            "training": TrainingConfig(epochs=12),
            "members": {"market": ObjectiveConfig("next_item")},
            "fine_tuning": TrainingConfig(epochs=2),
            "rounds": 3,
            "merge": MergeConfig(coefficients="search", normalise="none"),
            "after_merge": None,
        }
    )


def default_recipe(log: str | None) -> str:
    """The recipe if none is named."""
    return "default" if log else "demo"


def is_file(name: str) -> bool:
    """Whether the name of a recipe is a file."""
    return name.endswith((".yaml", ".yml", ".json"))


def configure(name: str, overrides: Iterable[str] = ()) -> Config:
    """The configuration of a recipe, or of a YAML file that `raymerge config` printed, with overrides applied.

    Raises UnknownNameError for an unknown recipe and ConfigError for invalid settings.
    """
    if not is_file(name):
        return resolve(RECIPES[name].config().plain(), overrides)
    try:
        values: Any = read_yaml(storage.read_bytes(name))
    except yaml.YAMLError as error:
        raise ConfigError(f"{name} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{name} must contain a mapping, as printed by `raymerge config`")
    return resolve(values, overrides)
