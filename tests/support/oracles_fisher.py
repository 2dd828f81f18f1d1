"""The Fisher diagonal by its definition: one backward pass per user and item, squared, weighted, added up."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def log_probabilities(module: nn.Module, histories: Tensor, temperature: float = 1.0) -> Tensor:
    """log p_ij, with a graph that reaches all parameters, ties included: [B, V]."""
    hidden = module.encode(module.embed(histories), histories)
    weight, bias, _ = module.head()
    logits = hidden @ weight.t()
    if bias is not None:
        logits = logits + bias
    direction = getattr(module, "repeat_direction", None)
    if direction is not None:
        rows = module.input_rows(histories) if hasattr(module, "input_rows") else histories
        had = torch.tensor([[item in row for item in range(1, len(weight) + 1)] for row in rows.tolist()])
        logits = logits + had * (hidden @ direction)[:, None]
    return (logits / temperature).log_softmax(dim=1)


def squared_gradient(module: nn.Module, value: Tensor) -> dict[str, Tensor]:
    """(∂value/∂θ)² for each parameter, 0 where it does not reach."""
    names, parameters = zip(*module.named_parameters(), strict=True)
    gradients = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
    return {
        name: torch.zeros_like(p) if g is None else g.square()
        for name, p, g in zip(names, parameters, gradients, strict=True)
    }


def diagonal(module: nn.Module, histories: Tensor, weights: Tensor, *, temperature: float = 1.0) -> dict[str, Tensor]:
    """1/N Σ_i Σ_j w_ij (∇ log p_ij)² with w [N, V]."""
    total = {name: torch.zeros_like(p) for name, p in module.named_parameters()}
    for history, weight in zip(histories, weights, strict=True):
        log_p = log_probabilities(module, history[None], temperature)[0]
        for item in weight.nonzero().flatten().tolist():
            for name, square in squared_gradient(module, log_p[item]).items():
                total[name] += weight[item].item() * square
    return {name: value / len(histories) for name, value in total.items()}


def batch_diagonal(
    module: nn.Module,
    histories: Tensor,
    groups: Sequence[tuple[Sequence[int], Tensor, Tensor]],
    temperature: float = 1.0,
) -> dict[str, Tensor]:
    """1/N Σ_groups Σ_j (Σ_i w_ij) (∇ Σ_i log p_i,item(i,j))²; a group is (users, items [S, n], weights [S, n])."""
    total = {name: torch.zeros_like(p) for name, p in module.named_parameters()}
    for users, items, weights in groups:
        log_p = log_probabilities(module, histories[list(users)], temperature)
        for j in range(items.shape[1]):
            value = log_p.gather(1, items[:, j : j + 1]).sum()
            for name, square in squared_gradient(module, value).items():
                total[name] += weights[:, j].sum().item() * square
    return {name: value / len(histories) for name, value in total.items()}
