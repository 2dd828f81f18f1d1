"""From weights over the catalogue to probes: cotangents of h whose squared backward passes add up to the diagonal.

Let r_j = W_j - μ with μ = Σ_j p_j W_j, and J = ∂h/∂θ upstream of h. Then ∇ log p_j = Jᵀ r_j there, and for any matrix Q
with Q Qᵀ = C = Σ_j w_j r_j r_jᵀ (d × d) the columns q_i of Q give Σ_j w_j (∇ log p_j)² = Σ_i (Jᵀ q_i)². A probe is such
a column: from the eigenvectors of C, q_i = √λ_i u_i; or, if fewer than d items have weight, q_j = √w_j r_j itself.

A row k of the embedding that the history reads and the head scores has the gradient J_kᵀ r_j + (δ_jk - p_k) h. In terms
of probes it is J_kᵀ q_i + a_ki h, and Σ_i (J_kᵀ q_i + a_ki h)² + (rest of row k) h²: `mixing` holds a. For eigenvectors
a_ki = u_iᵀ c_k / √λ_i with c_k = w_k r_k - p_k Σ_j w_j r_j; it is bounded, |a_ki|² ≤ w_k (1 - 2 p_k) + p_k² Σ_j w_j.

For groups of S users (the batch-wise form) h, r and J are those of all S users, one under the other.
Shapes: G groups, S users of a group, P probes, d dimensions, K rows read, n chosen items; see scores for the rest.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from raymerge.fisher.draws import integers
from raymerge.fisher.scores import Scores

WORKING_SET = 4 << 20
"""Bytes of centred output weights formed at once: small enough to stay in a core's cache."""


@dataclass(frozen=True)
class ChosenItems:
    """Chosen items and their weights: `items` int64[G, S, n] columns of each user, `weights` [G, n].

    The j-th items of a group's users are aligned: their log-probabilities are added before the gradient is squared.
    """

    items: Tensor
    weights: Tensor


@dataclass(frozen=True)
class Probes:
    """What an estimator passes to the backward pass.

    `cotangents` [G, P, S, d] of h; `mixing` [G, S, K, P] (see above; None if no row is both read and scored); `choice`
    of items, None if each item is weighted by its probability; `complete` if, at rows that are read, Σ_i a_ki² is to be
    topped up to the whole output side, which all other rows have.
    """

    cotangents: Tensor
    mixing: Tensor | None
    choice: ChosenItems | None = None
    complete: bool = True


def from_choice(scores: Scores, choice: ChosenItems, columns: Tensor | None) -> Probes:
    """Probes of chosen items: the items themselves, or eigenvectors if these are fewer (n > S·d)."""
    root = choice.weights.sqrt()
    centred = scores.centred(choice.items.flatten(0, 1)).unflatten(0, choice.items.shape[:2])
    stacked = (centred * root[:, None, :, None]).transpose(1, 2).flatten(2)  # [G, n, S·d]
    shares = torch.diag_embed(root)  # [G, n, P]: how a probe is made of items, times √w
    if stacked.shape[1] > stacked.shape[2]:
        values, vectors = torch.linalg.eigh(stacked.transpose(1, 2) @ stacked)
        lengths = _floored(values).sqrt()
        shares = root[:, :, None] * (stacked @ vectors) / lengths[:, None]
        stacked = (vectors * lengths[:, None]).transpose(1, 2)
    cotangents = stacked.unflatten(2, (scores.group_size, scores.dim))
    if columns is None:
        return Probes(cotangents, None, choice)
    hit = (columns[:, None, :, None] == choice.items[:, :, None]).to(shares.dtype)  # [G, S, K, n]
    p = _probabilities_at(scores, columns)
    mixing = hit @ shares[:, None] - p[..., None] * shares.sum(1)[:, None, None]
    return Probes(cotangents, mixing, choice)


def from_all(scores: Scores, columns: Tensor | None, rank: int | None = None) -> Probes:
    """Probes of all items, each weighted by its probability: the eigenvectors of C, or only the `rank` largest.

    Those with λ_i ≤ d·eps·λ_1 are left out, unless a row that is read needs them for its a_ki √λ_i = u_iᵀ c_k.
    """
    values, vectors = torch.linalg.eigh(covariance(scores))
    limit = scores.dim * torch.finfo(values.dtype).eps
    needed = values > limit * values[:, -1:]
    towards = None if columns is None else _covariances_with(scores, columns)
    if rank is None and towards is not None:
        needed |= (towards @ vectors).abs().amax(1) > limit * towards.norm(dim=2).amax(1, keepdim=True)
    first = int(needed.int().argmax(1).min())  # eigenvalues ascend: drop those that no user needs
    kept = slice(max(first, 0 if rank is None else scores.dim - rank), None)
    vectors = (vectors * needed[:, None])[:, :, kept]
    lengths = _floored(values)[:, None, kept].sqrt()
    mixing = None if towards is None else (towards @ vectors / lengths)[:, None]
    return Probes((vectors * lengths).transpose(1, 2)[:, :, None], mixing, complete=rank is None)


def completed(largest: Probes, signs: Probes) -> Probes:
    """The largest eigenvectors and, in one more probe, a random combination of all the rest.

    A probe of random signs over the items loses its part along the eigenvectors; what remains has the covariance of
    the rest, so the squares add up to the diagonal in expectation and are never negative.
    """
    q, random = largest.cotangents[:, :, 0], signs.cotangents[:, :, 0]
    lengths = q.square().sum(2)
    along = torch.where(lengths > 0, (q @ random.transpose(1, 2)).squeeze(2) / lengths, 0)  # [G, P]
    rest = random - along[:, None] @ q
    cotangents = torch.cat([q, rest], dim=1)[:, :, None]
    if largest.mixing is None or signs.mixing is None:
        return Probes(cotangents, None, complete=False)
    mixing = signs.mixing - largest.mixing @ along[:, None, :, None]
    return Probes(cotangents, torch.cat([largest.mixing, mixing], dim=3), complete=False)


def from_signs(scores: Scores, columns: Tensor | None, count: int) -> Probes:
    """Probes Σ_j ξ_j √p_j r_j with independent random signs ξ over the items: `count` probes, scaled by 1/√count."""
    total = scores.flat.new_zeros(len(scores.flat), count, scores.dim)
    sums = scores.flat.new_zeros(len(scores.flat), count)
    for run in scores.tiles():
        signed = _signed_roots(scores, torch.arange(run.start, run.stop, device=total.device), count)
        total += (signed.flatten(0, 1) @ scores.head.weight[run]).view_as(total)
        sums += signed.sum(2)
    if scores.had is not None and scores.head.repeat_direction is not None:
        signed = _signed_roots(scores, scores.had, count) * (scores.had >= 0)[:, None]
        total += signed.sum(2)[..., None] * scores.head.repeat_direction
    cotangents = (total - sums[..., None] * scores.mean[:, None]) / count**0.5
    if columns is None:
        return Probes(cotangents[:, :, None], None, complete=False)
    p = _probabilities_at(scores, columns)[:, 0]
    signed = _signed_roots(scores, columns, count).transpose(1, 2) * (columns >= 0)[..., None]
    mixing = (signed - p[..., None] * sums[:, None]) / count**0.5
    return Probes(cotangents[:, :, None], mixing[:, None], complete=False)


def covariance(scores: Scores) -> Tensor:
    """C = Σ_j p_j (W_j - μ)(W_j - μ)ᵀ for each user: [B, d, d]; centred first, since the difference would cancel."""
    weight, mean = scores.head.weight, scores.mean
    total = mean.new_zeros(len(mean), scores.dim, scores.dim)
    for columns in scores.tiles():
        roots = scores.probabilities(columns).sqrt_()[..., None]
        if scores.had is not None:
            roots.masked_fill_(scores.run_had(columns)[..., None], 0)  # their weights differ, see below
        users = max(1, WORKING_SET // (weight[columns].numel() * weight.element_size()))
        for start in range(0, len(mean), users):
            part = slice(start, start + users)
            centred = (weight[columns] - mean[part, None]).mul_(roots[part])
            total[part].baddbmm_(centred.transpose(1, 2), centred)
    if scores.had is not None:
        centred = scores.centred(scores.had.clamp_min(0)).mul_(scores.had_probabilities.sqrt()[..., None])
        total.baddbmm_(centred.transpose(1, 2), centred)
    return total


def _covariances_with(scores: Scores, columns: Tensor) -> Tensor:
    """c_k = p_k (W_k - μ) at the rows that are read, 0 at those that are not scored: [B, K, d]."""
    return scores.centred(columns.clamp_min(0)) * _probabilities_at(scores, columns)[:, 0, :, None]


def _probabilities_at(scores: Scores, columns: Tensor) -> Tensor:
    """p of each user of a group at the group's columns [G, K], 0 where the column is -1: [G, S, K]."""
    spread = columns[:, None].expand(-1, scores.group_size, -1)
    p = scores.probabilities_of(spread.clamp_min(0).flatten(0, 1)).view(spread.shape)
    return p.masked_fill_(spread < 0, 0)


def _signed_roots(scores: Scores, columns: Tensor, count: int) -> Tensor:
    """ξ_j √p_j with `count` random signs per item, at columns [n] or [B, n]: [B, count, n]."""
    if columns.ndim == 1:
        p = scores.probabilities(slice(int(columns[0]), int(columns[-1]) + 1))
    else:
        p = scores.probabilities_of(columns.clamp_min(0))
    stream = scores.stream.flatten()
    words = [integers(stream, columns + word * scores.head.items) for word in range(-(-count // 64))]
    bits = torch.stack([words[sign // 64] >> (sign % 64) & 1 for sign in range(count)], dim=1)
    return (2 * bits - 1) * p.sqrt_()[:, None]


def _floored(eigenvalues: Tensor) -> Tensor:
    """Eigenvalues [B, d], ascending, raised to the working precision of the largest so that nothing is divided by 0."""
    finfo = torch.finfo(eigenvalues.dtype)
    return eigenvalues.maximum((finfo.eps * eigenvalues[:, -1:]).clamp_min(finfo.tiny))
