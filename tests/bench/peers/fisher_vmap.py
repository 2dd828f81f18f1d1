"""The exact diagonal as one would write it with torch.func: a vmap over users of a vmap over each one's d probes.

The mathematics is that of raymerge.fisher, except that every layer's gradients are formed for each user and probe, and
then squared. Only for causal encoders and full histories without repeated items, which is what is measured.
"""

import torch
from torch import Tensor
from torch.func import functional_call, vjp, vmap
from torch.nn import functional as F

from raymerge.models.encoder import SequenceEncoder

TIED = "item_embedding.weight"


class States(torch.nn.Module):
    """The encoder from embedded items [L, d] to the state [d] at the last position, for one user."""

    def __init__(self, encoder: SequenceEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> Tensor:
        real = torch.ones(1, len(x), dtype=torch.bool)
        return self.encoder.hidden_states(x[None], real)[0, -1]


def squared_gradients(states: States, x: Tensor, probes: Tensor, scales: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Of each parameter, Σ_i λ_i (∂ u_iᵀh/∂θ)² over the probes u_i (rows), and ∂ u_iᵀh/∂x [d, L, d], for one user."""
    parameters = {name: p for name, p in states.named_parameters() if not name.endswith((TIED, "output_bias"))}
    _, pull_back = vjp(lambda p, x: functional_call(states, p, (x,)), parameters, x)
    gradients, on_x = vmap(pull_back)(probes)
    return {name: torch.einsum("i,i...->...", scales, g.square()) for name, g in gradients.items()}, on_x


def diagonal_sum(encoder: SequenceEncoder, histories: Tensor) -> dict[str, Tensor]:
    """Sum over users of the exact diagonal: histories int64[B, L] → by parameter name."""
    states = States(encoder)
    with torch.no_grad():
        x = encoder.embed(histories)
        h = encoder.encode(x, histories)
        weight = encoder.head()[0]
        p = F.linear(h, weight, encoder.output_bias).softmax(1)
        r = weight - (p @ weight)[:, None]  # [B, V, d]
        scales, vectors = torch.linalg.eigh((r * p[..., None]).transpose(1, 2) @ r)
    probes = vectors.transpose(1, 2)
    squares, on_x = vmap(lambda *user: squared_gradients(states, *user))(x.detach(), probes, scales)
    total = {name.removeprefix("encoder."): square.sum(0) for name, square in squares.items()}
    with torch.no_grad():
        variance = p * (1 - p)
        total["output_bias"] = variance.sum(0)
        total[TIED] = torch.zeros_like(encoder.item_embedding.weight)
        total[TIED][1:-1] = variance.t() @ h.square()
        read = histories - 1
        c = p.gather(1, read)[..., None] * r.gather(1, read[..., None].expand(-1, -1, r.shape[2]))  # [B, L, d]
        crossed = torch.einsum("bil,bild->bld", probes @ c.transpose(1, 2), on_x)
        rows = torch.einsum("bi,bild->bld", scales, on_x.square()) + 2 * h[:, None] * crossed
        total[TIED].index_add_(0, histories.flatten(), rows.flatten(0, 1))
    return total
