"""Naive versions of what training computes fast: plain loops that can be checked against the formula by eye."""

import math

import torch
from torch import Tensor

from raymerge.models.encoder import SequenceEncoder

Had = tuple[list[set[int]], Tensor]
"""The columns in each row's history, and what is added to their weights."""


def row_logits(state: Tensor, row: int, weight: Tensor, bias: Tensor | None, had: Had | None) -> Tensor:
    """One row's scores."""
    if had is not None:
        columns, direction = had
        weight = torch.stack([w + direction if j in columns[row] else w for j, w in enumerate(weight)])
    return weight @ state + (0 if bias is None else bias)


def cross_entropy_sum(
    states: Tensor,
    targets: list[int],
    weight: Tensor,
    bias: Tensor | None,
    had: Had | None = None,
) -> Tensor:
    """Σ −log p(target), one row after the other."""
    total = states.new_zeros(())
    for row, (state, target) in enumerate(zip(states, targets, strict=True)):
        logits = row_logits(state, row, weight, bias, had)
        total = total - (logits[target] - torch.log(torch.exp(logits).sum()))
    return total


def sampled_cross_entropy_sum(
    states: Tensor,
    targets: list[int],
    weight: Tensor,
    bias: Tensor | None,
    had: Had | None = None,
    *,
    drawn: list[int],
) -> Tensor:
    """Σ −log of exp(z_target) over the targets' exp(z) plus, for each other drawn item, exp(z) / q."""
    q = 1 - (1 - 1 / len(weight)) ** len(drawn)
    total = states.new_zeros(())
    for row, (state, target) in enumerate(zip(states, targets, strict=True)):
        odds = torch.exp(row_logits(state, row, weight, bias, had))
        partition = sum(odds[item] for item in set(targets)) + sum(odds[item] / q for item in set(drawn) - set(targets))
        total = total - torch.log(odds[target] / partition)
    return total


def info_nce_sum(
    first: Tensor, second: Tensor, *, similarity: str, temperature: float, targets: list[int] | None
) -> Tensor:
    """Σ over both views of each row, one anchor after the other."""

    def alike(a: Tensor, b: Tensor) -> Tensor:
        product = a @ b / temperature
        return product / (a.norm() * b.norm()) if similarity == "cosine" else product

    views = [first, second]
    total = first.new_zeros(())
    for i in range(len(first)):
        for view in (0, 1):
            anchor, partner = views[view][i], views[1 - view][i]
            scores = [torch.exp(alike(anchor, partner))]
            for j in range(len(first)):
                if j == i or (targets is not None and targets[j] == targets[i]):
                    continue
                scores += [torch.exp(alike(anchor, views[0][j])), torch.exp(alike(anchor, views[1][j]))]
            total = total - torch.log(scores[0] / sum(scores))
    return total


def state_at(encoder: SequenceEncoder, inputs: list[int], column: int) -> Tensor:
    """The state at one position of a single sequence, without padding: [d]."""
    rows = torch.tensor([inputs])
    return encoder.hidden_states(encoder.item_embedding(rows), torch.ones_like(rows, dtype=torch.bool))[0, column]


def item_loss(encoder: SequenceEncoder, inputs: list[int], column: int, item: int) -> Tensor:
    """−log p(item) at one position of one sequence, given the items visible from there."""
    weight, bias, _ = encoder.head()
    state, seen = state_at(encoder, inputs, column), inputs if encoder.config.cloze else inputs[: column + 1]
    logits = weight @ state + (0 if bias is None else bias)
    if encoder.repeat_direction is not None:
        logits = logits + torch.tensor([j + 1 in seen for j in range(len(weight))]) * (state @ encoder.repeat_direction)
    return -torch.log_softmax(logits, 0)[item - 1]


def state_at_end(encoder: SequenceEncoder, history: list[int]) -> Tensor:
    """The state at the prediction position of one history (which may hold the mask): [d]."""
    inputs = [*history, encoder.mask_index] if encoder.config.cloze else history
    return state_at(encoder, inputs, len(inputs) - 1)


def window_count(training_items: int, *, width: int, stride: int) -> int:
    """Windows of one history: its last, and one more for each `stride` back until they reach its start."""
    if training_items < 2:
        return 0
    count, uncovered = 1, training_items - width
    while uncovered > 0:
        count, uncovered = count + 1, uncovered - stride
    return count


def same_target_histories(histories: list[list[int]], *, length: int) -> dict[int, list[list[int]]]:
    """For each item, all (truncated) histories that it followed in the training part."""
    found: dict[int, list[list[int]]] = {}
    for history in histories:
        training = history[:-2]
        for place in range(1, len(training)):
            found.setdefault(training[place], []).append(training[max(0, place - length) : place])
    return found


def ndcg_at_10(rank: int) -> float:
    """NDCG@10 with one relevant item."""
    return 1 / math.log2(rank + 1) if rank <= 10 else 0.0
