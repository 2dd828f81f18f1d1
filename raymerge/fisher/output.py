"""The output side in closed form: squared gradients of the output weights and bias, and of tied rows that are read.

Row k of the output weights has the gradient Σ_s (δ_π_s(j),k - p_sk) h_s of log p_j (s runs over the users of a group,
one but for batch-wise estimators). Summed over items: [w_k (1 - 2 p_k) + p_k² Σ_j w_j] h², one matrix product
per batch; with w = p that is p_k (1 - p_k) h². The bias is the same without h.
"""

import torch
from torch import Tensor

from raymerge.fisher.factor import ChosenItems, Probes
from raymerge.fisher.model import HeadNames
from raymerge.fisher.scores import Head, Scores
from raymerge.fisher.sums import Sink, add_at_rows


def add_output(sums: Sink, scores: Scores, names: HeadNames, choice: ChosenItems | None) -> None:
    """Add the squared gradients of the output weights and bias, summed over the groups and the items of a choice."""
    if names.weight is None and names.bias is None:
        return
    side = _OutputSide(sums, names, scores.head)
    if choice is None:
        for run in scores.tiles():
            side.add_products(run, scores.variances(run), scores)
    elif scores.group_size == 1:
        _add_chosen(side, scores, choice)
    else:
        for group in range(scores.groups):
            _add_group(side, scores, choice, group)


def add_repeat_direction(sums: Sink, scores: Scores, names: HeadNames, choice: ChosenItems | None) -> None:
    """Add the squared gradients of r, summed over the groups and the items of a choice.

    That of Σ_s log p_s,π_s(j) is Σ_s (y_sj - P_s) h_s, where y_sj is 1 if user s had the item π_s(j), else 0, and P_s
    is the probability of all items that the user had. For one user and w = p: P (1 - P) h².
    """
    if names.repeat_direction is None or not sums.wants(names.repeat_direction):
        return
    had, new = scores.repeated
    if choice is None:
        squares = (had * new) @ scores.flat.square()
    else:
        residual = torch.where(scores.has_had(choice.items.flatten(0, 1)), new[:, None], -had[:, None])
        gradients = residual.view(choice.items.shape).transpose(1, 2) @ scores.hidden  # [G, n, d]
        squares = (choice.weights[..., None] * gradients.square()).sum((0, 1))
    sums.add(names.repeat_direction, squares * scores.head.temperature**-2)


class _OutputSide:
    """Adds to the rows of the output weights and bias that belong to columns of the scores."""

    def __init__(self, sums: Sink, names: HeadNames, head: Head) -> None:
        self.sums, self.names = sums, names
        self.scale = head.temperature**-2

    def add_products(self, run: slice, factors: Tensor, scores: Scores) -> None:
        """Add factors [B, run] times h², for all users at once."""
        self.add(run, factors.t() @ scores.flat.square(), factors.sum(0))

    def add(self, run: slice, weight: Tensor, bias: Tensor) -> None:
        """Add weight [run, d] and bias [run] to a run of columns."""
        if self.names.weight is not None:
            self.sums.add(self.names.weight, weight * self.scale, first=self.names.first + run.start)
        if self.names.bias is not None:
            self.sums.add(self.names.bias, bias * self.scale, first=self.names.first_bias + run.start)

    def add_items(self, items: Tensor, weight: Tensor, bias: Tensor) -> None:
        """Add weight [n, d] and bias [n] to columns int64[n], which may repeat."""
        if self.names.weight is not None:
            self.sums.add_rows(self.names.weight, items + self.names.first, weight * self.scale)
        if self.names.bias is not None:
            self.sums.add_rows(self.names.bias, items + self.names.first_bias, bias * self.scale)


def _add_chosen(side: _OutputSide, scores: Scores, choice: ChosenItems) -> None:
    """p_k² Σ_j w_j for all k, w_k (1 - 2 p_k) for the chosen ones; groups of one user."""
    total = choice.weights.sum(1, keepdim=True)
    for run in scores.tiles():
        side.add_products(run, scores.probabilities(run).square_() * total, scores)
    items = choice.items[:, 0]
    factors = choice.weights * (1 - 2 * scores.probabilities_of(items))
    products = factors[..., None] * scores.flat.square()[:, None]
    side.add_items(items.flatten(), products.flatten(0, 1), factors.flatten())


def _add_group(side: _OutputSide, scores: Scores, choice: ChosenItems, group: int) -> None:
    """Σ_j w_j (H_jk - m_k)² with m_k = Σ_s p_sk h_s and H_jk the sum of h_s over the users whose j-th item is k."""
    size = scores.group_size
    users = slice(group * size, (group + 1) * size)
    extended = torch.cat([scores.flat[users], scores.flat.new_ones(size, 1)], dim=1)  # the bias is a weight of 1
    weights, items = choice.weights[group], choice.items[group]
    for run in scores.tiles():
        squares = (scores.probabilities(run, users).t() @ extended).square_() * weights.sum()
        side.add(run, squares[:, :-1], squares[:, -1])
    pairs, where = (items + scores.head.items * torch.arange(items.shape[1], device=items.device)).unique(
        return_inverse=True
    )
    aligned = extended.new_zeros(len(pairs), extended.shape[1])
    add_at_rows(aligned, where.flatten(), extended.repeat_interleave(items.shape[1], dim=0))
    rank, item = pairs // scores.head.items, pairs % scores.head.items
    single, back = item.unique(return_inverse=True)
    mean = scores.probabilities(single, users).t() @ extended
    squares = weights[rank, None] * (aligned.square() - 2 * aligned * mean[back])
    side.add_items(item, squares[:, :-1], squares[:, -1])


def tied_row_squares(gradients: Tensor, mixing: Tensor | None, hidden: Tensor) -> Tensor:
    """Squares of rows that are read, and twice their product with the output part of the same row, if any: [G, K, d].

    `gradients` [G, K, P, d] of the rows for each probe (overwritten), `mixing` [G, S, K, P] and `hidden` [G, S, d]
    (over the temperature) of the output part Σ_s a_skp h_s. The square of the output part is `add_output`'s.
    """
    if mixing is None:
        return gradients.square_().sum(2)
    if mixing.shape[1] == 1:
        products = (mixing.flatten(0, 2)[:, None] @ gradients.flatten(0, 1)).view(len(gradients), -1, hidden.shape[2])
        return gradients.square_().sum(2).addcmul_(products, hidden, value=2)
    output = (mixing.permute(0, 2, 3, 1).flatten(1, 2) @ hidden).view_as(gradients)
    return gradients.mul_(output.mul_(2).add_(gradients)).sum(2)


def replace_output_of_rows(sums: Sink, scores: Scores, names: HeadNames, probes: Probes, columns: Tensor) -> None:
    """At rows that are read, replace p_k (1 - p_k) h² by Σ_i a_ki² h² of the probes (groups of one user)."""
    assert probes.mixing is not None and names.weight is not None
    whole = scores.variances_of(columns.clamp_min(0))
    factors = (probes.mixing[:, 0].square().sum(2) - whole).masked_fill_(columns < 0, 0)
    squares = factors[..., None] * scores.flat.square()[:, None] * scores.head.temperature**-2
    sums.add_rows(names.weight, (columns.clamp_min(0) + names.first).flatten(), squares.flatten(0, 1))
