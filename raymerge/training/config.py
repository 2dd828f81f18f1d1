"""How long, how fast and on which windows an encoder is trained."""

import math
from dataclasses import dataclass
from typing import Literal

from raymerge.errors import ConfigError
from raymerge.settings_checks import check_choices, check_ranges

_RANGES: dict[str, tuple[float, float]] = {
    "epochs": (1, 10**6),
    "average_epochs": (1, 10**6),
    "batch_size": (1, 10**7),
    "learning_rate": (0, 100),
    "weight_decay": (0, 100),
    "warmup_steps": (0, 10**9),
    "clip_norm": (0, 10**9),
    "patience": (0, 10**6),
    "stride": (1, 65536),
    "seed": (0, 2**62),
}


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of one training; a base model and a fine-tune differ in these and in where they start."""

    __pydantic_config__ = {"extra": "forbid"}  # a plain dict: the class needs no pydantic to exist

    epochs: int = 30
    average_epochs: int = 1  # final epochs in which the weights' running average is validated instead; 1: none
    batch_size: int = 128  # windows per step on average, over all ranks
    learning_rate: float = 1e-3
    weight_decay: float = 0.0  # of AdamW, on matrices only
    warmup_steps: int = 0
    schedule: Literal["constant", "linear", "cosine"] = "constant"  # linear and cosine end at 0
    clip_norm: float = 5.0  # of the gradient; 0: no clipping
    patience: int = 10  # epochs without a better NDCG@10 before stopping, from the first averaged one on; 0: never stop
    windows: Literal["all", "last"] = "all"  # over the whole history, or only each user's last window
    stride: int | None = None  # items between the ends of a history's windows; null: encoder.max_length
    precision: Literal["auto", "float32", "bf16"] = "auto"  # bf16 autocast of products; auto: where it is faster
    seed: int = 0

    def __post_init__(self) -> None:
        check_ranges(self, "training", **_RANGES)
        check_choices(self, "training")
        if self.windows == "last" and self.stride is not None:
            raise ConfigError(f"training.stride must be left out with training.windows last, got {self.stride}")


def averaged_from(config: TrainingConfig) -> int:
    """The number of epochs before those whose parameters are averaged; 0 if none are."""
    return max(0, config.epochs - config.average_epochs) if config.average_epochs > 1 else 0


def averaged_before(config: TrainingConfig, epoch: int) -> int | None:
    """How many epochs are in the average before this one (from 1) adds its own; None if it does not.

    >>> [averaged_before(TrainingConfig(epochs=5, average_epochs=3), epoch) for epoch in range(1, 6)]
    [None, None, 0, 1, 2]
    """
    before = epoch - 1 - averaged_from(config)
    return before if config.average_epochs > 1 and before >= 0 else None


def learning_rate(config: TrainingConfig, step: int, steps: int) -> float:
    """The rate of a step (from 0) out of all steps of all epochs: a linear warm-up, then the schedule.

    >>> config = TrainingConfig(learning_rate=1.0, warmup_steps=2, schedule="linear")
    >>> [learning_rate(config, step, 6) for step in range(6)]
    [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    left = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 + 0.5 * math.cos(math.pi * done)}
    return config.learning_rate * left[config.schedule]
