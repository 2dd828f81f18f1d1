"""The transformer that every objective trains and every merge keeps: one shape, one cost.

Shapes: B histories, L columns, d dimensions, V items, H heads. Index 0 is padding, 1..V the items, V + 1 the mask.
Histories are padded on the left, oldest first; positions count back from the last column, so that padding and
bucketing by length make no difference.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import repeat
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from raymerge.errors import ConfigError, InputError
from raymerge.models.dropout import Dropout
from raymerge.models.repeats import add_shift, distinct_columns
from raymerge.settings_checks import check_choices, check_ranges

ROWS_DRAWN = 1 << 16  # of a weight at a time: drawing takes torch three times the memory of the result
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu}


@dataclass(frozen=True)
class EncoderConfig:
    """All settings of an encoder except the number of items. Models merge only if these are all equal."""

    __pydantic_config__ = {"extra": "forbid"}  # a plain dict: the class needs no pydantic to exist

    attention: Literal["bidirectional", "causal"] = "bidirectional"  # bert4rec needs bidirectional, next_item causal
    max_length: int = 50  # L, items that are read
    dim: int = 64  # d
    blocks: int = 2
    heads: int = 2
    feed_forward: int = 256
    dropout: float = 0.2
    activation: Literal["gelu", "relu", "silu"] = "gelu"
    norm: Literal["pre", "post"] = "pre"  # before or after attention and feed-forward
    output_bias: bool = True
    distance_bias: bool = False  # a learned bias per head and distance between two items, added to attention
    repeat_direction: bool = False  # a learned direction raises or lowers the scores of items read (models.repeats)

    def __post_init__(self) -> None:
        check_choices(self, "encoder")
        sizes = dict.fromkeys(("dim", "blocks", "heads", "feed_forward"), (1, 65536))
        check_ranges(self, "encoder", max_length=(2, 65536), **sizes)
        if self.dim % self.heads:
            raise ConfigError(f"encoder.dim must be a multiple of encoder.heads, got {self.dim} and {self.heads}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"encoder.dropout must be at least 0 and below 1, got {self.dropout}")

    @property
    def cloze(self) -> bool:
        """Whether the prediction position holds a mask (bidirectional), or the last item itself (causal)."""
        return self.attention == "bidirectional"


class SelfAttention(nn.Module):
    """Multi-head scaled dot-product self-attention.

    With `distance_bias` [H, D] a head's logit of query t and column s gains entry t − s (T5, arXiv 1910.10683, has one
    for each bucket of distances); in a bidirectional encoder entry L − 1 + t − s, where L is `max_length`.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.dim, 3 * config.dim)
        self.out = nn.Linear(config.dim, config.dim)
        self.dropout = Dropout(config.dropout)
        self.max_length = config.max_length
        self.most_ahead = config.max_length - 1 if config.cloze else 0  # how far behind a query a column can be
        bias = torch.zeros(self.heads, self.most_ahead + self.max_length)
        self.distance_bias = nn.Parameter(bias) if config.distance_bias else None

    def forward(self, x: Tensor, allowed: Tensor, at: Tensor | None = None) -> Tensor:
        """[B, L, d] → [B, Q, d], with queries at columns `at` int64[B, Q] (all if None).

        `allowed` bool[B, 1, Q, L] says which query (row) sees which column.
        """
        dim = x.shape[-1]
        weight, bias = self.qkv.weight, self.qkv.bias
        q = self._split(F.linear(pick(x, at), weight[:dim], bias[:dim]))  # only at those columns
        k, v = self._split(F.linear(x, weight[dim:], bias[dim:])).chunk(2, dim=1)
        return self.out(self._mix(q, k, v, self._mask(allowed, at)).transpose(1, 2).flatten(2))

    def _split(self, rows: Tensor) -> Tensor:
        """Into heads: [B, L, m·d] → [B, m·H, L, d/H]."""
        return rows.unflatten(2, (-1, self.qkv.in_features // self.heads)).transpose(1, 2)

    def _mask(self, allowed: Tensor, at: Tensor | None) -> Tensor:
        """`allowed` as it is or, where there is a bias, what to add to the logits: [B, 1 or H, Q, L]."""
        if self.distance_bias is None:
            return allowed
        return torch.where(allowed, self.bias(allowed.shape[3], at), -torch.inf)

    def bias(self, length: int, at: Tensor | None = None) -> Tensor:
        """The distance bias of queries at columns `at` int64[B, Q] (all if None) of L: [B or 1, H, Q, L]."""
        assert self.distance_bias is not None
        columns = torch.arange(length, device=self.distance_bias.device)
        queries = columns[None] if at is None else at
        distance = (queries[..., None] - columns + self.most_ahead).clamp(min=0)  # negative only where not allowed
        return self.distance_bias.t()[distance].permute(0, 3, 1, 2)

    def _mix(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        if not self.dropout.active or q.device.type != "cpu":
            mask = mask if mask.dtype == torch.bool else mask.to(q.dtype)
            return F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, dropout_p=self.dropout.rate if self.training else 0.0
            )
        # torch has no fused kernel with dropout for a CPU
        logits = (q * q.shape[-1] ** -0.5) @ k.transpose(2, 3)
        if mask.dtype == torch.bool:
            mask = torch.where(mask, 0.0, -torch.inf)  # cheaper than masked_fill, which has a backward pass
        return self.dropout((logits + mask).softmax(-1)) @ v


class FeedForward(nn.Module):
    """Two layers applied to each position."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.inner = nn.Linear(config.dim, config.feed_forward)
        self.outer = nn.Linear(config.feed_forward, config.dim)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        """[..., d] → [..., d]."""
        return self.outer(self.activation(self.inner(x)))


class Block(nn.Module):
    """Attention and feed-forward, each with dropout and a residual, normalised before (pre) or after (post)."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.pre = config.norm == "pre"
        self.attention_norm = nn.LayerNorm(config.dim)
        self.attention = SelfAttention(config)
        self.feed_forward_norm = nn.LayerNorm(config.dim)
        self.feed_forward = FeedForward(config)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, allowed: Tensor, at: Tensor | None = None) -> Tensor:
        """[B, L, d] → [B, Q, d], the output at columns `at` int64[B, Q] only (all if None)."""
        if self.pre:
            x = pick(x, at) + self.dropout(self.attention(self.attention_norm(x), allowed, at))
            return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))
        x = self.attention_norm(pick(x, at) + self.dropout(self.attention(x, allowed, at)))
        return self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))


class SequenceEncoder(nn.Module):
    """Next-item recommender: a transformer over the history, scored against the item embedding (tied).

    With `repeat_direction`, items that it reads score differently (see `raymerge.models.repeats`).

    Memory is (V + 2 + L)·d + O(blocks·d²) parameters; a forward pass over B histories costs
    O(B·L·blocks·(d² + L·d)) and, with scores, B·V·d.
    """

    def __init__(self, num_items: int, config: EncoderConfig) -> None:
        super().__init__()
        if num_items < 1:
            raise ConfigError(f"an encoder needs at least 1 item, got {num_items}")
        self.num_items = num_items
        self.config = config
        self.item_embedding = nn.Embedding(num_items + 2, config.dim, padding_idx=0)
        self.position_embedding = nn.Embedding(config.max_length, config.dim)
        self.input_norm = nn.LayerNorm(config.dim)
        self.input_dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))
        self.output_norm = nn.LayerNorm(config.dim)
        self.output_bias = nn.Parameter(torch.zeros(num_items)) if config.output_bias else None
        self.repeat_direction = nn.Parameter(torch.zeros(config.dim)) if config.repeat_direction else None
        self.casts_layers = True
        self.training_chunks = 1
        self.apply(_initialise)

    @classmethod
    def of(cls, num_items: int, config: EncoderConfig, parameters: Mapping[str, Tensor]) -> "SequenceEncoder":
        """A model in eval mode that takes over the given parameters: nothing is drawn or copied.

        Raises RuntimeError if names or shapes do not match.
        """
        with torch.device("meta"):
            module = cls(num_items, config)
        module.load_state_dict(parameters, assign=True)
        return module.eval()

    @property
    def mask_index(self) -> int:
        """Row of the embedding for an item to guess."""
        return self.num_items + 1

    def input_rows(self, histories: Tensor) -> Tensor:
        """Row of the embedding at each input position: int64[B, L] → int64[B, ≤ max_length].

        Longer histories keep their last items; a cloze model keeps one fewer and appends the mask. Raises InputError
        for anything but item indices padded on the left.
        """
        self._check(histories)
        return self.prediction_rows(histories)

    def prediction_rows(self, histories: Tensor) -> Tensor:
        """Like `input_rows`, unchecked: for histories made by training, which may contain the mask."""
        if not self.config.cloze:
            return histories[:, -self.config.max_length :]
        kept = histories[:, -(self.config.max_length - 1) :]
        return torch.cat([kept, kept.new_full((len(kept), 1), self.mask_index)], dim=1)

    def _check(self, histories: Tensor) -> None:
        if histories.ndim != 2 or histories.shape[1] < 1:
            raise InputError(f"histories must be int64[B, L] with L >= 1, got shape {tuple(histories.shape)}")
        if not len(histories):
            return
        low, high, last = torch.stack([histories.min(), histories.max(), histories[:, -1].min()]).tolist()  # one wait
        if low < 0 or high > self.num_items:
            raise InputError(f"item indices must be in 0..{self.num_items}, found {low if low < 0 else high}")
        if last == 0:
            raise InputError("a history must end with an item in its last column: pad on the left, leave none empty")

    def embed(self, histories: Tensor) -> Tensor:
        """Embedded input at each position, without positions or norm: int64[B, L] → [B, L', d]."""
        return self.item_embedding(self.input_rows(histories))

    def encode(self, x: Tensor, histories: Tensor) -> Tensor:
        """Hidden state at the prediction position (the last): [B, L', d] → [B, d]."""
        real = self.input_rows(histories) != 0
        last = torch.full((len(x), 1), x.shape[1] - 1, device=x.device)
        return self.hidden_states(x, real, last)[:, 0]

    def head(self) -> tuple[Tensor, Tensor | None, str | None]:
        """Output weights [V, d], bias [V] or None, and the name of the embedding they are tied to."""
        return self.item_embedding.weight[1 : self.num_items + 1], self.output_bias, "item_embedding.weight"

    def hidden_states(self, x: Tensor, real: Tensor, at: Tensor | None = None) -> Tensor:
        """States at columns `at` int64[B, Q] (all L if None): x [B, L, d], real bool[B, L] → [B, Q, d].

        `real` is False at padding. At the other columns the last block computes only keys and values. On a CPU,
        autocast applies only to the scores unless `casts_layers`. To train in less memory, histories can be split into
        `training_chunks`; activations are recomputed for the gradient, so that only one chunk's are held.
        """
        with torch.autocast("cpu", enabled=torch.is_autocast_enabled("cpu") and self.casts_layers):
            if self.training_chunks == 1 or not torch.is_grad_enabled():
                return self._hidden_states(x, real, at)
            size = max(1, -(-len(x) // self.training_chunks))
            columns = repeat(None) if at is None else at.split(size)
            parts = zip(x.split(size), real.split(size), columns, strict=False)
            return torch.cat([checkpoint(self._hidden_states, *part, use_reentrant=False) for part in parts])

    def _hidden_states(self, x: Tensor, real: Tensor, at: Tensor | None) -> Tensor:
        length = x.shape[1]
        distance_from_end = torch.arange(length - 1, -1, -1, device=x.device)
        x = self.input_dropout(self.input_norm(x + self.position_embedding(distance_from_end)))
        allowed = self.attention_mask(real)
        for block in self.blocks[:-1]:
            x = block(x, allowed)
        return self.output_norm(self.blocks[-1](x, pick(allowed.transpose(1, 2), at).transpose(1, 2), at))

    def attention_mask(self, real: Tensor) -> Tensor:
        """Who sees whom: bool[B, L] → bool[B, 1, L, L].

        Each position also sees itself: harmless for an item, and it keeps a padded row from being fully masked (NaN).
        """
        length = real.shape[1]
        itself = torch.eye(length, dtype=torch.bool, device=real.device)
        allowed = real[:, None, None, :] | itself
        return allowed if self.config.cloze else allowed & torch.ones_like(itself).tril()

    def forward(self, histories: Tensor) -> Tensor:
        """Next-item logits, column j for item j + 1: int64[B, L] → [B, V]."""
        weight, bias, _ = self.head()
        states = self.encode(self.embed(histories), histories)
        logits = F.linear(states, weight, bias)
        if self.repeat_direction is not None:
            had = distinct_columns(self.input_rows(histories), self.num_items)
            add_shift(logits, had, states @ self.repeat_direction)
        return logits


def pick(x: Tensor, at: Tensor | None) -> Tensor:
    """Columns `at` int64[B, Q] of each row: [B, L, ...] → [B, Q, ...]; x itself if None."""
    if at is None:
        return x
    first = torch.arange(len(x), device=x.device)[:, None] * x.shape[1]
    return x.flatten(0, 1).index_select(0, (first + at).flatten()).unflatten(0, at.shape)


def _initialise(module: nn.Module) -> None:
    """Truncated normal of σ 0.02 for weights, zero for biases and the padding row (as in BERT)."""
    if isinstance(module, nn.Linear | nn.Embedding):
        for rows in module.weight.data.split(ROWS_DRAWN):
            nn.init.trunc_normal_(rows, std=0.02, a=-0.04, b=0.04)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        nn.init.zeros_(module.weight.data[module.padding_idx])
