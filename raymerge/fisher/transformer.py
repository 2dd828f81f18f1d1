"""Squared gradients of a SequenceEncoder for many users and probes at once, by a hand-written backward pass.

What makes it fast. (1) Activations are computed once per user and shared by its probes, attention probabilities too.
(2) In the last block only the last position reaches h, so its weight gradients are outer products of vectors, whose
squared sum over users and probes is one matrix product; its keys and values reach the other positions through H
directions per user, not through matrices. (3) In other blocks a weight's gradient is a sum over positions; for all
probes of a user it is one matrix product, squared and added up while it is in cache.

Shapes: B users in G groups of S (S = 1 except for batch-wise estimators), L positions, P probes, d dimensions, H heads
of c dimensions. Cotangents are [B, L, P, ·]: positions before probes, so that sums over positions are products.
"""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from raymerge.fisher.attention import AttentionState
from raymerge.fisher.inputs import InputSide
from raymerge.fisher.squares import Squares, runs, with_one
from raymerge.models.encoder import Block, FeedForward, SequenceEncoder

MOST_PROBES = 32
"""Probes at a time: with all positions of a user, enough rows for full-speed products that still fit the cache."""

FEWEST_BF16 = 4
"""Probes at a time from which products in bf16 pay off: for fewer the conversions cost what they gain."""


@dataclass(frozen=True)
class NormState:
    """LayerNorm: normalised x̂ [B, L, 1, d] of its input, γ/σ [B, L, 1, d], and 1/σ and x̂/σ [B·L, 2, d]."""

    name: str
    module: nn.LayerNorm
    normed: Tensor
    scale: Tensor
    basis: Tensor

    @classmethod
    def of(cls, name: str, module: nn.LayerNorm, x: Tensor) -> tuple["NormState", Tensor]:
        """The state and the output."""
        variance, mean = torch.var_mean(x, dim=-1, correction=0, keepdim=True)
        inverse = (variance + module.eps).rsqrt()
        normed = (x - mean) * inverse
        basis = torch.stack([inverse.expand_as(x), inverse * normed], dim=2).flatten(0, 1)
        state = cls(name, module, normed[:, :, None], (inverse * module.weight)[:, :, None], basis)
        return state, torch.addcmul(module.bias, normed, module.weight)

    def backward(self, g: Tensor, squares: Squares, residual: Tensor | None = None) -> Tensor:
        """Cotangent of the input, 1/σ (gγ - mean(gγ) - x̂ mean(gγ x̂)), plus that of a residual, all [B, L, P, d].

        Overwrites the residual or, if there is none, g.
        """
        weighted = torch.mul(g, self.normed, out=squares.empty("weighted", *g.shape))
        squares.vector(self.name + ".weight", weighted)
        squares.vector(self.name + ".bias", g)
        gamma = self.module.weight
        means = torch.stack([g @ gamma, weighted @ gamma], dim=-1).flatten(0, 1)  # [B·L, P, 2], times d
        out = g.mul_(self.scale) if residual is None else residual.addcmul_(g, self.scale)
        out.flatten(0, 1).baddbmm_(means, self.basis, alpha=-1 / gamma.numel())
        return out


@dataclass(frozen=True)
class FeedForwardState:
    """Input and activations, each followed by a 1, [B, L, d + 1] and [B, L, f + 1], and the slopes [B, L, 1, f].

    The weights inner [f, d] and outer [d, f] are in the dtype of the products, as all of these are.
    """

    name: str
    inner: Tensor
    outer: Tensor
    inputs: Tensor
    active: Tensor
    slope: Tensor

    @classmethod
    def of(cls, name: str, module: FeedForward, x: Tensor, products: torch.dtype) -> tuple["FeedForwardState", Tensor]:
        """The state and the output [B, L, d]."""
        with torch.enable_grad():
            before = module.inner(x).detach().requires_grad_()
            after = module.activation(before)
            (slope,) = torch.autograd.grad(after.sum(), before)
        active = after.detach()
        weights = module.inner.weight, module.outer.weight
        factors = *weights, with_one(x), with_one(active), slope[:, :, None]
        return cls(name, *(factor.to(products) for factor in factors)), module.outer(active)

    def backward(self, g: Tensor, squares: Squares) -> Tensor:
        """Cotangent of the output [B, L, P, d] → of the input [B, L, P, d].

        A few groups at a time, so that the cotangents of the wide layer, the largest tensors of all, fit the cache.
        """
        scratch, size, width, dtype = squares.scratch, squares.group_size, self.inner.shape[0], self.inner.dtype
        g = scratch.cast("cotangents", g, dtype)
        squares.linear(self.name + ".outer", self.active, g)
        out = scratch.empty("feed_forward", *g.shape, dtype=dtype)
        for run in runs(g.shape[0] // size, g[:size, ..., 0].numel() * width * g.element_size()):
            part = slice(run.start * size, run.stop * size)
            wide = scratch.empty("wide", *g[part].shape[:3], width, dtype=dtype)
            torch.mm(g[part].flatten(0, 2), self.outer, out=wide.flatten(0, 2))
            wide.mul_(self.slope[part])
            squares.linear(self.name + ".inner", self.inputs[part], wide)
            torch.mm(wide.flatten(0, 2), self.inner, out=out[part].flatten(0, 2))
        return scratch.cast("feed_forward", out, squares.dtype)


@dataclass(frozen=True)
class BlockState:
    """One block's activations. The last block has only those of the last position, and its keys and values."""

    pre: bool
    last: bool
    attention_norm: NormState
    attention: AttentionState
    feed_forward_norm: NormState
    feed_forward: FeedForwardState

    @classmethod
    def of(
        cls, name: str, block: Block, x: Tensor, allowed: Tensor, last: bool, products: torch.dtype
    ) -> tuple["BlockState", Tensor]:
        """The state and the output, [B, L, d] or of the last position [B, 1, d]."""
        queries = 1 if last else x.shape[1]
        parts = (name + ".attention", block.attention), (name + ".feed_forward", block.feed_forward)
        if block.pre:
            first, normed = NormState.of(name + ".attention_norm", block.attention_norm, x)
            attention, out = AttentionState.of(*parts[0], normed, allowed, queries, products)
            x = x[:, -queries:] + out
            second, normed = NormState.of(name + ".feed_forward_norm", block.feed_forward_norm, x)
            feed_forward, out = FeedForwardState.of(*parts[1], normed, products)
            x = x + out
        else:
            attention, out = AttentionState.of(*parts[0], x, allowed, queries, products)
            first, x = NormState.of(name + ".attention_norm", block.attention_norm, x[:, -queries:] + out)
            feed_forward, out = FeedForwardState.of(*parts[1], x, products)
            second, x = NormState.of(name + ".feed_forward_norm", block.feed_forward_norm, x + out)
        return cls(block.pre, last, first, attention, second, feed_forward), x

    def backward(self, g: Tensor, squares: Squares) -> Tensor:
        """Cotangent of the output (which is overwritten) → of the input: [B, L or 1, P, d] → [B, L, P, d]."""
        return self._backward_pre(g, squares) if self.pre else self._backward_post(g, squares)

    def _backward_pre(self, g: Tensor, squares: Squares) -> Tensor:
        g = self.feed_forward_norm.backward(self.feed_forward.backward(g, squares), squares, residual=g)
        inner_g = self._through_attention(g, squares)
        if not self.last:
            return self.attention_norm.backward(inner_g, squares, residual=g)
        inner_g = self.attention_norm.backward(inner_g, squares)
        inner_g[:, -1:] += g
        return inner_g

    def _backward_post(self, g: Tensor, squares: Squares) -> Tensor:
        g = self.feed_forward_norm.backward(g, squares)
        g = self.feed_forward.backward(g, squares).add_(g)
        g = self.attention_norm.backward(g, squares)
        inner_g = self._through_attention(g, squares)
        inner_g[:, -g.shape[1] :] += g
        return inner_g

    def _through_attention(self, g: Tensor, squares: Squares) -> Tensor:
        return self.attention.backward_last(g, squares) if self.last else self.attention.backward(g, squares)


@dataclass(frozen=True)
class EncoderState:
    """Activations of B users: everything that a backward pass from h needs."""

    input_norm: NormState
    blocks: list[BlockState]
    output_norm: NormState

    @classmethod
    def of(cls, module: SequenceEncoder, histories: Tensor, products: torch.dtype) -> "EncoderState":
        """Run the encoder in eval mode on histories int64[B, L]; the last block's few products stay in x's dtype."""
        rows = module.input_rows(histories)
        positions = module.position_embedding.weight[: rows.shape[1]].flip(0)
        input_norm, x = NormState.of("input_norm", module.input_norm, module.item_embedding.weight[rows] + positions)
        allowed = module.attention_mask(rows != 0)
        states = []
        for number, block in enumerate(module.blocks):
            last = number == len(module.blocks) - 1
            of_block = x.dtype if last else products
            state, x = BlockState.of(f"blocks.{number}", cast(Block, block), x, allowed, last, of_block)
            states.append(state)
        return cls(input_norm, states, NormState.of("output_norm", module.output_norm, x)[0])

    def backward(self, g: Tensor, squares: Squares) -> Tensor:
        """Cotangents of h [B, 1, P, d] → of the embedded input [B, L, P, d]."""
        g = self.output_norm.backward(g, squares)
        for block in reversed(self.blocks):
            g = block.backward(g, squares)
        return self.input_norm.backward(g, squares)


class EncoderBackward:
    """Adds Σ_i (Jᵀ q_i)² of each group, for a SequenceEncoder; memory stays within a budget.

    With `in_bf16` the products of a float32 model are in bf16, unless the probes are too few.
    """

    skips_padding = True
    """Positions count from the end, so columns that are padding for all users of a batch can be cut off."""

    threaded = True
    """A pass leaves no state behind, and its squares go only to the sink of `inputs`."""

    def __init__(self, module: SequenceEncoder, memory_bytes: int, in_bf16: bool) -> None:
        self.module = module
        self.memory_bytes = memory_bytes
        self.in_bf16 = in_bf16 and module.item_embedding.weight.dtype == torch.float32

    def table_read(self, histories: Tensor, rows: Tensor) -> str:
        """Name of the embedding whose rows the embedded input is."""
        return "item_embedding.weight"

    def add(self, histories: Tensor, cotangents: Tensor, inputs: InputSide) -> None:
        """Add the squares for histories int64[G·S, L] with all their cotangents of h [G, P, S, d]."""
        groups, probes, size, _ = cotangents.shape
        squares = Squares(inputs.sums, size, cotangents)
        many_groups, many_probes = self._chunk(histories.shape[1] + 1, size, probes)
        products = torch.bfloat16 if self.in_bf16 and many_probes >= FEWEST_BF16 else cotangents.dtype
        for start in range(0, groups, many_groups):
            some = slice(start, start + many_groups)
            state = EncoderState.of(self.module, histories[start * size : (start + many_groups) * size], products)
            rows = []
            for first in range(0, probes, many_probes):
                run = slice(first, first + many_probes)
                g = cotangents[some, run].transpose(1, 2).contiguous().flatten(0, 1)[:, None]
                g = state.backward(g, squares).unflatten(0, (-1, size))
                self._add_positions(g, squares)
                if inputs.wanted:
                    rows.append(inputs.squares_of_positions(g.flatten(1, 2), some, run))
            if inputs.wanted:
                inputs.add(torch.stack(rows).sum(0), some)
        squares.flush()

    def _add_positions(self, g: Tensor, squares: Squares) -> None:
        """Squares of the position embedding, from cotangents of the embedded input [G, S, L, P, d]."""
        total = g.sum(1) if g.shape[1] > 1 else g[:, 0]
        total = torch.mul(total, total, out=squares.empty("weighted", *total.shape))
        squares.sums.add("position_embedding.weight", total.sum((0, 2)).flip(0))

    def _chunk(self, length: int, size: int, probes: int) -> tuple[int, int]:
        """How many groups and how many probes at a time fit the budget."""
        config = self.module.config
        width = config.dim // config.heads
        probes = min(probes, MOST_PROBES)
        states = config.blocks * (14 * config.dim + 3 * config.feed_forward + config.heads * length)
        shared = states + 3 * length * width  # by the probes of a user; the second term for one head at a time
        logits = length * (3 if config.distance_bias and config.cloze else 1)  # both directions are copied to sum them
        one = size * length * (probes * (logits + 9 * config.dim) + shared)
        fit = self.memory_bytes // (one * self.module.item_embedding.weight.element_size())
        return max(1, fit), probes
