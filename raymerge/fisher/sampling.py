"""Items drawn for users or groups of users, by their own streams of random numbers.

Shapes: G groups of S users, B = G·S users, n items drawn for each.
"""

import torch
from torch import Tensor

from raymerge.fisher.draws import integers, uniforms
from raymerge.fisher.scores import Scores


def picked_uniformly(scores: Scores, count: int, *, by_rank: bool) -> Tensor:
    """`count` items drawn uniformly without replacement, one draw per group: int64[B, count].

    `by_rank` draws ranks for groups of several users, and gives each user the items that it ranks there.
    """
    stream, offered = scores.stream[:, 0], scores.head.offered
    by_rank = by_rank and scores.group_size > 1
    if offered is not None and by_rank:
        offered = torch.arange(len(offered), device=stream.device) < scores.head.choices

    def lots(run: slice) -> Tensor:
        drawn = integers(stream, torch.arange(run.start, run.stop, device=stream.device))
        return drawn if offered is None else drawn.masked_fill(~offered[run], torch.iinfo(drawn.dtype).min)

    picked = for_each_user(scores, scores.top(lots, count))
    if not by_rank:
        return picked
    everything = slice(0, scores.head.items)
    each = (slice(user, user + 1) for user in range(len(scores.flat)))
    ordered = (scores.logits(everything, user)[0].argsort(descending=True, stable=True) for user in each)
    return torch.stack([order[ranks] for order, ranks in zip(ordered, picked, strict=True)])


def for_each_user(scores: Scores, items: Tensor) -> Tensor:
    """The items of a group, for each of its users: [G, n] → [B, n]."""
    return items.repeat_interleave(scores.group_size, dim=0)


def drawn_by_probability(scores: Scores, count: int) -> Tensor:
    """`count` draws from each user's p, with replacement, by inverting its cumulative sum: int64[B, count]."""
    total = sum(_cumulative(scores, run)[:, -1] for run in scores.tiles())
    level = uniforms(scores.stream.flatten(), count) * torch.as_tensor(total)[:, None]
    items = torch.zeros_like(level, dtype=torch.int64)
    below = torch.zeros_like(level[:, 0])
    for run in scores.tiles():
        cumulative = _cumulative(scores, run) + below[:, None]
        here = (level >= below[:, None]) & (level < cumulative[:, -1:])
        found = torch.searchsorted(cumulative, level, right=True)
        items = torch.where(here, found + run.start, items)
        below = cumulative[:, -1]
    return items


def _cumulative(scores: Scores, columns: slice) -> Tensor:
    """Cumulative sum of p over a run of columns, in float64: [B, columns]."""
    return scores.probabilities(columns).double().cumsum(1)
