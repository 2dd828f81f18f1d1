"""The two recommendation losses, cloze and next item, on batches of windows.

Shapes: B windows, W columns, Q columns to guess, d dimensions. Windows are padded on the left.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from raymerge.models.augmentations import column_draws, lengths
from raymerge.models.batch import Batch, Term
from raymerge.models.draws import uniform
from raymerge.models.encoder import SequenceEncoder
from raymerge.models.losses import LOGIT_BYTES, catalogue_cross_entropy, gather_rows, sampled_cross_entropy
from raymerge.models.repeats import Repeats
from raymerge.settings_checks import check_choices, check_ranges
from raymerge.splitmix import Stream


@dataclass(frozen=True)
class SoftmaxSettings:
    """Over which items the softmax is taken: all, or those of the batch and a sample of the others.

    Sampling is for catalogues too large for all items: a step then costs as much as `negatives` and the batch's own
    items, plus the optimizer, which visits all rows of the embedding.
    """

    __pydantic_config__ = {"extra": "forbid"}

    loss: Literal["full", "sampled"] = "full"
    negatives: int = 8192  # draws from the catalogue per step, shared by all ranks; for `sampled`

    def __post_init__(self) -> None:
        check_choices(self)
        check_ranges(self, negatives=(1, 2**31))


@dataclass(frozen=True)
class ClozeSettings(SoftmaxSettings):
    """How items are hidden from a bidirectional encoder."""

    mask_rate: float = 0.2  # share of a window's items that are hidden, at least one
    last_only: float = 0.1  # share of windows in which only the last item is hidden, as when recommending

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, mask_rate=(0, 1), last_only=(0, 1))


def cloze(encoder: SequenceEncoder, batch: Batch, settings: ClozeSettings) -> Term:
    """Cross-entropy at hidden positions; the window's other items are the input."""
    inputs, columns, hidden = hide(batch.windows, batch.seeds, settings, mask_index=encoder.mask_index)
    states = encoder.hidden_states(encoder.item_embedding(inputs), inputs != 0, columns)
    targets, repeats = batch.windows.gather(1, columns)[hidden], _repeats(encoder, inputs, hidden)
    return _recommendation(encoder, states[hidden], targets, repeats=repeats, batch=batch, settings=settings)


def hide(windows: Tensor, seeds: Tensor, settings: ClozeSettings, *, mask_index: int) -> tuple[Tensor, Tensor, Tensor]:
    """Replace items by the mask: windows int64[B, W] → (inputs int64[B, W], columns int64[B, Q], hidden bool[B, Q]).

    `columns` are to be guessed where `hidden`; in rows that hide fewer than Q the rest is to be ignored. Exactly
    round(mask_rate · n) of a window's n items are hidden, at least one, or only the last.
    """
    width = windows.shape[1]
    last_only = uniform(Stream.CLOZE_SHARE, seeds) < settings.last_only
    keys = column_draws(windows, seeds, Stream.CLOZE_COLUMNS).masked_fill(windows == 0, 2.0)
    keys[:, -1] -= last_only * 2.0
    most = max(1, round(settings.mask_rate * width))
    columns = keys.topk(most, largest=False).indices
    count = (lengths(windows).double() * settings.mask_rate).round().long().clamp(1, most).masked_fill(last_only, 1)
    hidden = torch.arange(most, device=windows.device) < count[:, None]
    chosen = torch.zeros_like(windows, dtype=torch.bool).scatter_(1, columns, hidden)
    return windows.masked_fill(chosen, mask_index), columns, hidden


def next_item(encoder: SequenceEncoder, batch: Batch, settings: SoftmaxSettings) -> Term:
    """Cross-entropy at each position that has an item before it."""
    inputs, targets = batch.windows[:, :-1], batch.windows[:, 1:]
    real = inputs != 0
    states = encoder.hidden_states(encoder.item_embedding(inputs), real)
    repeats = _repeats(encoder, inputs, real)
    return _recommendation(encoder, states[real], targets[real], repeats=repeats, batch=batch, settings=settings)


def _repeats(encoder: SequenceEncoder, inputs: Tensor, asked: Tensor) -> Repeats | None:
    """The items seen from each of the target positions, if the encoder has a repeat direction."""
    if encoder.repeat_direction is None:
        return None
    causal = not encoder.config.cloze
    return Repeats.before(inputs, asked, encoder.repeat_direction, num_items=encoder.num_items, causal=causal)


def _recommendation(
    encoder: SequenceEncoder,
    states: Tensor,
    targets: Tensor,
    *,
    repeats: Repeats | None,
    batch: Batch,
    settings: SoftmaxSettings,
) -> Term:
    """Cross-entropy of states [n, d] whose next items are `targets` int64[n], over the items on offer."""
    weight, bias, _ = encoder.head()
    columns, offered_columns = targets - 1, batch.offered_columns
    logit_bytes = LOGIT_BYTES // encoder.training_chunks
    if offered_columns is not None:  # the others take no part: their gradient is 0
        columns = torch.searchsorted(offered_columns, columns)
        repeats = None if repeats is None else repeats.among(offered_columns)
    if settings.loss == "sampled":
        seed, draws = gather_rows(batch.seeds)[0].sum(), settings.negatives  # of all ranks' rows, in any order
        total = sampled_cross_entropy(
            states,
            columns,
            weight,
            bias,
            draws=draws,
            seed=seed,
            repeats=repeats,
            offered_columns=offered_columns,
            logit_bytes=logit_bytes,
        )
    else:
        if offered_columns is not None:
            weight, bias = weight[offered_columns], None if bias is None else bias[offered_columns]
        total = catalogue_cross_entropy(states, columns, weight, bias, repeats=repeats, logit_bytes=logit_bytes)
    return Term("recommendation", 1.0, total, torch.full((), len(states), device=states.device))
