"""The losses that objectives consist of, each a sum over rows, so that any split of the rows adds up exactly."""

import math
from typing import Any, Literal

import torch
from torch import Tensor
from torch import distributed as dist
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from raymerge.models.draws import uniform
from raymerge.models.repeats import Repeats, add_shift
from raymerge.splitmix import Stream

LOGIT_BYTES = 2**28  # the most that is held of positions × items matrices
CACHE_ROWS = 128  # chunks of this many rows stay in a CPU's cache


def catalogue_cross_entropy(
    states: Tensor,
    targets: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    repeats: Repeats | None = None,
    logit_bytes: int = LOGIT_BYTES,
) -> Tensor:
    """Sum over rows of −log softmax(W h + b)[target] over all V items, with scores of `repeats` shifted (see there).

    states [n, d], targets int64[n] in 0..V − 1, weight [V, d], bias [V] or None → scalar. The forward pass also
    computes the gradients, by chunks of rows, while it has the probabilities: the logits are computed once, and at most
    `logit_bytes` of them and their probabilities are held (but at least one row).
    """
    rows = max(1, logit_bytes // (2 * len(weight) * weight.element_size()))  # logits and probabilities
    if states.device.type == "cpu":
        rows = min(rows, CACHE_ROWS)
    direction = None if repeats is None else repeats.direction
    return _CatalogueCrossEntropy.apply(states, targets, weight, bias, direction, repeats, rows)


def sampled_cross_entropy(
    states: Tensor,
    targets: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    draws: int,
    seed: Tensor,
    repeats: Repeats | None = None,
    offered_columns: Tensor | None = None,
    logit_bytes: int = LOGIT_BYTES,
) -> Tensor:
    """As `catalogue_cross_entropy`, over the targets of all ranks' rows and a sample of all other items, shared by all.

    Of `draws` items, drawn uniformly with replacement, each distinct one stands for 1/q items in Σ exp(z), where
    q = 1 − (1 − 1/V)^draws is its chance of being drawn; targets stand for themselves. Given the rows that sum is
    unbiased, so the loss is unbiased as `draws` grows; draws ≥ V takes all items and gives the softmax itself. (Sampled
    softmax with the correction by log q: Jean et al., arXiv 1412.2007; Yi et al., RecSys 2019.) `seed` int64 scalar is
    the same on all ranks. With `offered_columns` int64[n], ascending, only these of the V items count; targets and
    repeats are then positions among them. Memory: states, the sampled items and V · d for the gradient, never rows ×
    items.
    """
    num_items = len(weight if offered_columns is None else offered_columns)
    items, log_q = _sample(gather_rows(targets)[0], num_items, draws, seed)
    columns = items if offered_columns is None else offered_columns[items]
    shift = -log_q.to(weight.dtype)
    some_bias = shift if bias is None else bias[columns] + shift
    some = None if repeats is None else repeats.among(items)
    places = torch.searchsorted(items, targets)
    return catalogue_cross_entropy(states, places, weight[columns], some_bias, repeats=some, logit_bytes=logit_bytes)


def _sample(targets: Tensor, num_items: int, draws: int, seed: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct columns, ascending, and the log of the chance of each to be drawn: int64[n], float64[n]."""
    if draws >= num_items:
        everything = torch.arange(num_items, device=targets.device)
        return everything, torch.zeros_like(everything, dtype=torch.float64)
    numbers = uniform(Stream.SOFTMAX_NEGATIVES, seed, torch.arange(draws, device=targets.device))
    items = torch.cat([(numbers * num_items).long(), targets]).unique()
    log_q = items.new_full(items.shape, math.log(-math.expm1(draws * math.log1p(-1 / num_items))), dtype=torch.float64)
    return items, log_q.masked_fill_(torch.isin(items, targets), 0.0)


class _CatalogueCrossEntropy(torch.autograd.Function):
    """Loss and its four gradients in one pass over chunks of rows."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        targets: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        direction: Tensor | None,
        repeats: Repeats | None,
        rows: int,
    ) -> Tensor:
        total = torch.zeros((), dtype=weight.dtype, device=weight.device)
        wanted = any(ctx.needs_input_grad)
        states_grad, weight_grad = torch.empty_like(states), torch.zeros_like(weight)
        bias_grad, direction_grad = (None if x is None else torch.zeros_like(x) for x in (bias, direction))
        cast = weight.to(_product_dtype(weight))
        for start in range(0, len(states), rows):
            some = slice(start, start + rows)
            h, target = states[some], targets[some, None]
            logits = F.linear(h.to(cast.dtype), cast).to(weight.dtype)
            if bias is not None:
                logits += bias
            had = None if repeats is None else repeats.of(some)
            if had is not None and direction is not None:
                add_shift(logits, had, (h * direction).sum(1))  # not a matrix product, which autocast would round
            likeliest, at_target = logits.amax(1), logits.gather(1, target).sum()
            p = logits.softmax(1)
            # log Σ exp(z) = max z − log max p, exact however small the target's probability is
            total += (likeliest - p.amax(1).log()).sum() - at_target
            if wanted:
                p.scatter_add_(1, target, p.new_full((len(p), 1), -1.0))
                states_grad[some] = _add_gradients(p, h, cast, weight_grad, bias_grad)
                if had is not None and direction is not None and direction_grad is not None:
                    each = (p.gather(1, had.clamp(min=0)) * (had >= 0)).sum(1, keepdim=True)
                    states_grad[some] += each * direction
                    direction_grad += (each * h).sum(0)
        ctx.save_for_backward(states_grad, weight_grad, bias_grad, direction_grad)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        states, weight, bias, direction = (None if g is None else g * outer[0] for g in ctx.saved_tensors)
        return states, None, weight, bias, direction, None, None


def _product_dtype(weight: Tensor) -> torch.dtype:
    """The dtype of products with the catalogue: autocast's, but double precision stays; sums are not in it."""
    device = weight.device.type
    cast = torch.is_autocast_enabled(device) and weight.dtype == torch.float32
    return torch.get_autocast_dtype(device) if cast else weight.dtype


def _add_gradients(dz: Tensor, h: Tensor, weight: Tensor, weight_grad: Tensor, bias_grad: Tensor | None) -> Tensor:
    """The gradient of states h [n, d] whose logits have the gradient dz [n, V]; those of weight and bias are added."""
    cast = dz.to(weight.dtype)
    if dz.device.type == "cpu" and h.dtype == dz.dtype:
        weight_grad.addmm_(dz.t(), h)  # not rounded, or the result would depend on how rows are split
    else:
        weight_grad += cast.t() @ h.to(cast.dtype)  # the product has lower precision, the sum does not
    if bias_grad is not None:
        bias_grad += dz.sum(0)
    return cast @ weight


def info_nce(
    first: Tensor,
    second: Tensor,
    *,
    similarity: Literal["cosine", "dot"],
    temperature: float,
    targets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """InfoNCE between two views of B rows: (sum over the 2B anchors, their number int64).

    Row i of `first` [B, d] and row i of `second` are each other's positive; the views of all other rows, **of all
    ranks**, are negatives, except those of the same target if `targets` int64[B] is given: −log of
    exp(sim(a, a⁺)/τ) / (exp(sim(a, a⁺)/τ) + Σ exp(sim(a, a⁻)/τ)), as in CL4SRec (arXiv 2010.14395) and DuoRec
    (arXiv 2110.05730).
    """
    with torch.autocast(first.device.type, enabled=False):
        exact = torch.promote_types(first.dtype, torch.float32)  # half precision would blur the similarities
        return _info_nce(first.to(exact), second.to(exact), similarity, temperature, targets)


def _info_nce(
    first: Tensor, second: Tensor, similarity: str, temperature: float, targets: Tensor | None
) -> tuple[Tensor, Tensor]:
    if similarity == "cosine":
        first, second = F.normalize(first, dim=-1), F.normalize(second, dim=-1)
    everyone, offset = gather_rows(torch.stack([first, second], dim=1))
    own = torch.arange(len(first), device=first.device)
    logits = torch.einsum("avd,wbd->vawb", torch.stack([first, second], 1), everyone.transpose(0, 1)) / temperature
    excluded = _excluded(own + offset, len(everyone), targets)
    positive = torch.stack([logits[0, own, 1, own + offset], logits[1, own, 0, own + offset]])
    negatives = logits.masked_fill(excluded[None, :, None, :], -torch.inf).flatten(2)
    total = torch.cat([positive[..., None], negatives], dim=-1).logsumexp(-1).sum() - positive.sum()
    return total, torch.full((), 2 * len(first), device=first.device)


def _excluded(rows: Tensor, world_rows: int, targets: Tensor | None) -> Tensor:
    """Which of all ranks' rows are not negatives of which own row: bool[B, N]."""
    everyone = torch.arange(world_rows, device=rows.device)
    if targets is None:
        return rows[:, None] == everyone
    return targets[:, None] == gather_rows(targets)[0]  # a row's own target is among them


def gather_rows(x: Tensor) -> tuple[Tensor, int]:
    """Rows of all ranks in rank order, and where this rank's begin: [n, ...] → ([N, ...], offset); differentiable.

    Ranks may hold different numbers of rows, even none. In one process: (x, 0).
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return x, 0
    sizes = [torch.zeros(1, dtype=torch.int64, device=x.device) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, torch.tensor([len(x)], device=x.device))
    counts = torch.cat(sizes).tolist()
    return _GatherRows.apply(x, counts), sum(counts[: dist.get_rank()])


class _GatherRows(torch.autograd.Function):
    """All-gather with different row counts; the gradient of a row is the sum of all ranks' gradients of it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, counts: list[int]) -> Tensor:
        start = sum(counts[: dist.get_rank()])
        ctx.own = slice(start, start + len(x))
        padded = x.new_zeros(max(counts), *x.shape[1:])
        padded[: len(x)] = x
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None]:
        grad = outer[0].contiguous()
        dist.all_reduce(grad)
        return grad[ctx.own], None
