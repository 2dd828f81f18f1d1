"""Multi-head self-attention for many probes: activations once per user, backward for all its probes.

With mixed_t = Σ_s A_ts v_s and logits q_t·k_s/√c + bias_(t-s), the softmax is folded into the values:
∂mixed_t/∂logit_ts = A_ts (v_s - mixed_t), one [L, c] matrix per position and head, shared by all probes. The gradient
of a distance's bias is the sum of the logits' gradients along a diagonal. Shapes: see transformer.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from raymerge.fisher.scratch import Scratch
from raymerge.fisher.squares import Squares, with_one
from raymerge.models.encoder import SelfAttention


@dataclass(frozen=True)
class AttentionState:
    """Inputs followed by a 1 [B, L, d + 1]; q, k, v [B, H, L, c]; A [B, H, Q, L] and mixed [B, H, Q, c] of Q queries.

    The queries are all positions, or only the last. Inputs, q and k are in the dtype of `products`.
    """

    name: str
    module: SelfAttention
    inputs: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    probabilities: Tensor
    mixed: Tensor
    products: torch.dtype

    @classmethod
    def of(
        cls, name: str, module: SelfAttention, x: Tensor, allowed: Tensor, queries: int, products: torch.dtype
    ) -> tuple["AttentionState", Tensor]:
        """The state and the output [B, Q, d] of the last Q positions."""
        heads = module.qkv(x).unflatten(2, (3, module.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = (part.contiguous() for part in heads)
        logits = q[:, :, -queries:] @ k.transpose(2, 3) * q.shape[3] ** -0.5
        if module.distance_bias is not None:
            logits += module.bias(x.shape[1])[:, :, -queries:]
        probabilities = logits.masked_fill_(~allowed[:, :, -queries:], -torch.inf).softmax(dim=3)
        inputs, q, k = with_one(x).to(products), q.to(products), k.to(products)
        state = cls(name, module, inputs, q, k, v, probabilities, probabilities @ v, products)
        return state, module.out(state.merged)

    @property
    def merged(self) -> Tensor:
        """What the output projection sees: [B, Q, d]."""
        return self.mixed.transpose(1, 2).flatten(2)

    def backward(self, g: Tensor, squares: Squares) -> Tensor:
        """Cotangent of the output [B, L, P, d] → of the input [B, L, P, d]; all positions are queries."""
        scratch, products, dim, size = squares.scratch, self.products, g.shape[3], self.v.shape[3]
        g = scratch.cast("cotangents", g, products)
        squares.linear(self.name + ".out", with_one(self.merged).to(products), g)
        mixed_g = scratch.empty("mixed", *g.shape[:3], size, dtype=products)
        qkv_g = scratch.empty("qkv", *g.shape[:3], 3 * dim, dtype=products)
        out_weight = self.module.out.weight.to(products)
        for head in range(self.module.heads):
            torch.mm(g.flatten(0, 2), out_weight[:, head * size :][:, :size], out=mixed_g.flatten(0, 2))
            for kind, part in enumerate(self._through_head(head, mixed_g, squares)):
                first = kind * dim + head * size
                qkv_g[..., first : first + size] = part
        squares.linear(self.name + ".qkv", self.inputs, qkv_g)
        out = scratch.empty("attention", *g.shape, dtype=products)
        torch.mm(qkv_g.flatten(0, 2), self.module.qkv.weight.to(products), out=out.flatten(0, 2))
        return scratch.cast("attention", out, squares.dtype)

    def _through_head(self, head: int, mixed_g: Tensor, squares: Squares) -> Iterator[Tensor]:
        """Cotangents of one head's queries, then keys, then values, each [B, L, P, c], overwriting the one before."""
        batch, length, _, size = mixed_g.shape
        scratch, products = squares.scratch, self.products
        part = scratch.empty("part", *mixed_g.shape, dtype=products)
        logits_g = self._logits_backward(head, mixed_g, scratch)
        if self.module.distance_bias is not None:
            sums = distance_sums(logits_g.unflatten(0, (batch, length)), causal=not self.module.most_ahead)
            self._add_bias(squares, head, sums)
        keys = scratch.empty("keys", batch, length, length, size, dtype=products).copy_(self.k[:, head, None])
        torch.bmm(logits_g.transpose(1, 2), keys.flatten(0, 1), out=part.flatten(0, 1))
        yield part
        torch.bmm(logits_g.view(batch, length, -1).transpose(1, 2), self.q[:, head], out=part.flatten(1, 2))
        yield part
        probabilities = self.probabilities[:, head].to(products)
        torch.bmm(probabilities.transpose(1, 2), mixed_g.flatten(2), out=part.flatten(2))
        yield part

    def _logits_backward(self, head: int, mixed_g: Tensor, scratch: Scratch) -> Tensor:
        """Cotangents of q_t·k_s, A_ts (v_s - mixed_t)/√c · mixed_g_t: [B, L, P, c] → [B·L, s, P]."""
        batch, length, probes, size = mixed_g.shape
        slopes = scratch.empty("slopes", batch, length, length, size, dtype=self.v.dtype)
        torch.sub(self.v[:, head, None], self.mixed[:, head, :, None], out=slopes)
        slopes.mul_((self.probabilities[:, head] * size**-0.5)[..., None])
        slopes = scratch.cast("slopes", slopes, mixed_g.dtype)
        logits_g = scratch.empty("logits", batch * length, length, probes, dtype=mixed_g.dtype)
        return torch.bmm(slopes.flatten(0, 1), mixed_g.flatten(0, 1).transpose(1, 2), out=logits_g)

    def backward_last(self, g: Tensor, squares: Squares) -> Tensor:
        """Cotangent of the output at the last position [B, 1, P, d], the only query → of the input [B, L, P, d].

        The gradient of the query weights is (cotangent) × (last input), of the key weights (query) × (inputs weighted
        by the logits' cotangents), of the value weights (cotangent) × (mean input): no sums over positions. That of the
        key bias is 0, since adding a constant to all logits changes nothing.
        """
        squares.linear(self.name + ".out", with_one(self.merged), g)
        heads, dim = self.module.heads, g.shape[3]
        query_rows, key_rows, value_rows = self.module.qkv.weight.view(3, heads, -1, dim)  # [H, c, d]
        mixed_g = (g @ self.module.out.weight)[:, 0].unflatten(2, (heads, -1)).transpose(1, 2)  # [B, H, P, c]
        slopes = (self.v - self.mixed).mul_(self.probabilities.transpose(2, 3) * self.v.shape[3] ** -0.5)
        logits_g = slopes @ mixed_g.transpose(2, 3)  # [B, H, L, P]
        query_g = (logits_g.transpose(2, 3) @ self.k).transpose(1, 2).flatten(2)[:, None]
        self._add_last(squares, query_g, logits_g, mixed_g)
        if self.module.distance_bias is not None:
            for head in range(heads):
                self._add_bias(squares, head, logits_g[:, head].flip(1))
        values = (mixed_g @ value_rows).flatten(2)  # [B, H, P·d]
        keys = (self.q[:, :, -1:] @ key_rows)[:, :, 0]  # [B, H, d]
        out = squares.empty("stream", g.shape[0], self.v.shape[2], *g.shape[2:])
        torch.bmm(self.probabilities[:, :, 0].transpose(1, 2), values, out=out.flatten(2))
        out.flatten(1, 2).baddbmm_(logits_g.permute(0, 2, 3, 1).flatten(1, 2), keys)
        out[:, -1:] += query_g @ query_rows.flatten(0, 1)
        return out

    def _add_last(self, squares: Squares, query_g: Tensor, logits_g: Tensor, mixed_g: Tensor) -> None:
        """Squares of the query, key and value weights and biases for a single query."""
        name, dim, size = self.name + ".qkv", query_g.shape[3], self.v.shape[3]
        squares.linear(name, self.inputs[:, -1:], query_g)
        reads = logits_g.transpose(2, 3) @ self.inputs[:, None, :, :-1]  # [B, H, P, d]
        means = self.probabilities @ self.inputs[:, None]  # [B, H, 1, d + 1]
        for head in range(self.module.heads):
            first = dim + head * size
            squares.rows(name + ".weight", self.q[:, head, -1:], reads[:, head, None], first=first)
            squares.linear(name, means[:, head], mixed_g[:, head, None], first=dim + first)

    def _add_bias(self, squares: Squares, head: int, logits_g: Tensor) -> None:
        """Squares of one head's row of the distance bias, from the logits' cotangents summed by distance [B, D, P].

        The last of the D distances is the longest; logits_g are of q_t·k_s, which is divided by √c.
        """
        totals = logits_g.unflatten(0, (-1, squares.group_size)).sum(1)
        row = totals.to(squares.dtype).square_().sum((0, 2)) * self.v.shape[3]
        end = self.module.most_ahead + self.v.shape[2]
        whole = row.new_zeros(1, self.module.most_ahead + self.module.max_length)
        whole[0, end - len(row) : end] = row
        squares.sums.add(self.name + ".distance_bias", whole, first=head)


def distance_sums(x: Tensor, *, causal: bool) -> Tensor:
    """Sums over t of x[b, t, t − δ, p], by δ: contiguous [B, L, L, P] → [B, L, P], δ from 0 on, or all, [B, 2L − 1, P].

    If causal, x is 0 above the diagonal.
    """
    if not causal:
        seen = x.new_ones(x.shape[1:3]).tril()[..., None]
        ahead = distance_sums(x.flip(1, 2) * seen, causal=True)[:, 1:]
        return torch.cat([ahead.flip(1), distance_sums(x * seen, causal=True)], dim=1)
    batch, length, _, probes = x.shape
    # Row t is shifted left by t; the entries this lacks come from above the previous row's diagonal, which are 0.
    strides, start = (length * length * probes, (length + 1) * probes, probes, 1), x.storage_offset() + 2 * probes
    sums = x.as_strided((batch, length - 1, length, probes), strides, start).sum(1).flip(1)
    sums[:, 0] += x[:, 0, 0]
    return sums
