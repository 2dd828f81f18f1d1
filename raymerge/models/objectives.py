"""What an encoder learns from: a registry of objectives, each with its own settings.

An objective turns a batch of windows into terms, each a sum and the number of its summands. The loss of a step is
Σ weight · (sum over ranks of the sums) / (sum over ranks of the counts), so two workers compute exactly what one would.
A new objective is one decorated class; configuration checks and tests then pick it up by themselves.

Shapes: B windows, W columns, L = max_length, d dimensions, V items. Windows are int64[B, W], padded on the left.
"""

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field, fields
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raymerge.errors import ConfigError
from raymerge.models.augmentations import AUGMENTATIONS, two_views
from raymerge.models.batch import Batch, Term
from raymerge.models.encoder import EncoderConfig, SequenceEncoder
from raymerge.models.item_losses import (
    ClozeSettings,
    SoftmaxSettings,
    cloze,
    next_item,
)
from raymerge.models.losses import info_nce
from raymerge.registry import Registry
from raymerge.settings_checks import check_ranges

Mode = Literal["supervised", "unsupervised", "both"]


@dataclass(frozen=True)
class ContrastiveSettings(ClozeSettings):
    """A recommendation loss and a contrastive one; masks are for bidirectional encoders only.

    Raw dot products at temperature 1, as published, swamp the recommendation loss, because states have norms near √d:
    on MovieLens-1M, d 64, after 120 steps, the weighted contrastive gradient is 5 to 36 times as long as that of the
    recommendation loss. With these defaults the ratio is .4 to 1.4, at temperature 1 .2 to .7.
    """

    weight: float = 0.1  # of the contrastive loss
    similarity: Literal["cosine", "dot"] = "cosine"  # between two states
    temperature: float = 0.5  # divides the similarities
    projection: bool = False  # contrast a two-layer projection of the state, which is not part of the model

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, weight=(0, 1000), temperature=(1e-4, 1000))
        if not isinstance(self.projection, bool):
            raise ConfigError(f"projection must be true or false, got {self.projection!r}")


@dataclass(frozen=True)
class Cl4srecSettings(ContrastiveSettings):
    """The augmentations to draw views from, and the share of a history that each keeps or changes.

    Another registered augmentation needs a subclass with a setting of its name.
    """

    augmentations: tuple[str, ...] = ("crop", "mask", "reorder")  # each view draws one of these
    crop: float = 0.6  # share that is kept
    mask: float = 0.3  # share that is hidden
    reorder: float = 0.6  # share that is shuffled

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, crop=(0, 1), mask=(0, 1), reorder=(0, 1))
        names = self.augmentations
        if not names or not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
            raise ConfigError(f"augmentations must be a list of some of {', '.join(AUGMENTATIONS)}, got {names!r}")
        object.__setattr__(self, "augmentations", tuple(names))
        for name in self.augmentations:
            AUGMENTATIONS[name]
            if name not in {f.name for f in fields(self)}:
                raise ConfigError(f"{type(self).__name__} has no setting {name!r} for the share of that augmentation")
        check_ranges(self, **dict.fromkeys(self.augmentations, (0, 1)))
        for f in fields(self):
            if f.name in AUGMENTATIONS and f.name not in self.augmentations and getattr(self, f.name) != f.default:
                raise ConfigError(f"{f.name} is not among the augmentations {list(self.augmentations)}: leave it out")


@dataclass(frozen=True)
class DuorecSettings(ContrastiveSettings):
    """Which views of a history are drawn together."""

    mode: Mode = "both"  # supervised: another history with the same next item; unsupervised: other dropout
    candidates: int = 8  # histories kept per next item, to draw views from

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, candidates=(1, 1000))


class Objective(nn.Module, ABC):
    """Base class of all objectives: called with an encoder and a batch, returns the terms of the loss.

    Parameters of its own (a projection) are trained with the encoder, but are not part of the model.
    """

    Settings: ClassVar[type[Any]] = SoftmaxSettings
    attention: ClassVar[str | None] = None  # the only one that it can train; None: any
    same_target_candidates: int | None = None  # histories kept per next item; None: no same-target views

    def __init__(self, config: EncoderConfig, settings: Any) -> None:
        super().__init__()
        self.settings = settings
        self.window = config.max_length if config.cloze else config.max_length + 1  # items in a full window

    @abstractmethod
    def forward(self, encoder: SequenceEncoder, batch: Batch) -> list[Term]:
        """The terms of the loss on this rank's rows, in a fixed order; B may be 0."""


OBJECTIVES: Registry[type[Objective]] = Registry("objective")


@dataclass(frozen=True)
class ObjectiveConfig:
    """An objective by name, with the settings that differ from its defaults."""

    __pydantic_config__ = {"extra": "forbid"}

    name: Annotated[str, OBJECTIVES] = "bert4rec"
    settings: dict[str, Any] = field(default_factory=dict)  # that differ from its defaults, such as {weight: 0.05}

    def __post_init__(self) -> None:
        self.resolved()

    def resolved(self) -> Any:
        """The complete settings; raises ConfigError for an unknown key or a value out of range."""
        kind = OBJECTIVES[self.name].Settings
        known = [f.name for f in fields(kind)]
        for key in self.settings:
            if key not in known:
                raise ConfigError(f"objective {self.name} has no setting {key!r}; known: {', '.join(known) or 'none'}")
        return kind(**self.settings)


def check_objective(objective: ObjectiveConfig, encoder: EncoderConfig) -> None:
    """Raise ConfigError if the objective cannot train this encoder, or a setting has no effect on it."""
    needed = OBJECTIVES[objective.name].attention
    if needed not in (None, encoder.attention):
        other = "next_item" if needed == "bidirectional" else "bert4rec"
        raise ConfigError(
            f"objective {objective.name} needs encoder.attention {needed}, got {encoder.attention}: "
            f"change it, or use {other}"
        )
    settings = objective.resolved()
    masks = {f.name: f.default for f in fields(ClozeSettings) if f.name in ("mask_rate", "last_only")}
    unused = next((name for name, default in masks.items() if getattr(settings, name, default) != default), None)
    if unused is not None and not encoder.cloze:
        raise ConfigError(f"{objective.name} masks nothing for a causal encoder, so leave out its {unused}")
    if isinstance(settings, DuorecSettings) and settings.mode == "unsupervised" and encoder.dropout == 0:
        raise ConfigError(f"{objective.name} needs encoder.dropout above 0: without it both views are the same")


def build_objective(objective: ObjectiveConfig, encoder: EncoderConfig) -> Objective:
    """The objective, ready to train an encoder with these settings; raises ConfigError if it cannot."""
    check_objective(objective, encoder)
    return OBJECTIVES[objective.name](encoder, objective.resolved())


def complete_settings(objective: ObjectiveConfig) -> dict[str, Any]:
    """All settings with their values, as JSON can hold them."""
    return asdict(objective.resolved())


@OBJECTIVES.register("bert4rec")
class Bert4rec(Objective):
    """Cloze: guess hidden items from both sides (BERT4Rec, arXiv 1904.06690)."""

    Settings = ClozeSettings
    attention = "bidirectional"

    def forward(self, encoder: SequenceEncoder, batch: Batch) -> list[Term]:
        """Mean cross-entropy at the hidden positions."""
        return [cloze(encoder, batch, self.settings)]


@OBJECTIVES.register("next_item")
class NextItem(Objective):
    """Guess each next item from those before it (SASRec, arXiv 1808.09781, with a softmax over all items)."""

    attention = "causal"

    def forward(self, encoder: SequenceEncoder, batch: Batch) -> list[Term]:
        """Mean cross-entropy at every position."""
        return [next_item(encoder, batch, self.settings)]


class Contrastive(Objective):
    """A recommendation loss (cloze or next item, by the encoder's direction) and a weighted InfoNCE."""

    def __init__(self, config: EncoderConfig, settings: ContrastiveSettings) -> None:
        super().__init__(config, settings)
        layers = [nn.Linear(config.dim, config.dim), nn.ReLU(), nn.Linear(config.dim, config.dim)]
        self.projection = nn.Sequential(*layers) if settings.projection else nn.Identity()

    def recommendation(self, encoder: SequenceEncoder, batch: Batch) -> Term:
        """The recommendation loss."""
        return (
            cloze(encoder, batch, self.settings) if encoder.config.cloze else next_item(encoder, batch, self.settings)
        )

    def states(self, encoder: SequenceEncoder, *views: Tensor) -> list[Tensor]:
        """The states to contrast: for each view int64[B, W] the (projected) one at its prediction position, [B, d]."""
        width = max(view.shape[1] for view in views)
        rows = encoder.prediction_rows(torch.cat([F.pad(view, (width - view.shape[1], 0)) for view in views]))
        last = rows.new_full((len(rows), 1), rows.shape[1] - 1)
        states = encoder.hidden_states(encoder.item_embedding(rows), rows != 0, last)[:, 0]
        return list(self.projection(states).chunk(len(views)))

    def contrast(self, name: str, first: Tensor, second: Tensor, targets: Tensor | None = None) -> Term:
        """The contrastive term of two views [B, d]; rows of the same target are not negatives of each other."""
        chosen = self.settings
        total, count = info_nce(
            first, second, similarity=chosen.similarity, temperature=chosen.temperature, targets=targets
        )
        return Term(name, chosen.weight, total, count)


@OBJECTIVES.register("cl4srec")
class Cl4srec(Contrastive):
    """Two augmented views of a history are each other's positive (CL4SRec, arXiv 2010.14395)."""

    Settings = Cl4srecSettings

    def forward(self, encoder: SequenceEncoder, batch: Batch) -> list[Term]:
        """Recommendation loss + weight · InfoNCE of crop, mask and reorder views."""
        shares = [(name, getattr(self.settings, name)) for name in self.settings.augmentations]
        history = batch.windows[:, :-1]
        views = two_views(history, batch.seeds, shares=shares, mask_index=encoder.mask_index)
        first, second = self.states(encoder, *views)
        return [self.recommendation(encoder, batch), self.contrast("contrast", first, second)]


@OBJECTIVES.register("duorec")
class Duorec(Contrastive):
    """A history under two dropout masks, and histories of the same target, are positives (arXiv 2110.05730)."""

    Settings = DuorecSettings

    def __init__(self, config: EncoderConfig, settings: DuorecSettings) -> None:
        super().__init__(config, settings)
        self.same_target_candidates = None if settings.mode == "unsupervised" else settings.candidates

    def forward(self, encoder: SequenceEncoder, batch: Batch) -> list[Term]:
        """Recommendation loss + weight · InfoNCE of dropout views, same-target views, or the sum of both."""
        history, targets = batch.windows[:, :-1], batch.windows[:, -1]
        views = {"state": history}
        if self.settings.mode != "supervised":
            views["unsupervised"] = history
        if self.same_target_candidates:
            assert batch.same_target is not None
            views["supervised"] = batch.same_target
        anchor, *others = self.states(encoder, *views.values())
        contrasts = [self.contrast(n, anchor, o, targets) for n, o in zip(list(views)[1:], others, strict=True)]
        return [self.recommendation(encoder, batch), *contrasts]
