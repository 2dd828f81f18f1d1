"""Where a model ranks each user's held-out item. Never users × items at once.

Shapes: U users, B users of a chunk, L columns, d dimensions, V items, n negatives per user.
"""

from typing import Protocol

import torch
from torch import Tensor

from raymerge.errors import ConfigError, InputError
from raymerge.evaluation.config import EvaluationConfig, parse_ranking
from raymerge.evaluation.negatives import Ragged, check_items, draw_negatives
from raymerge.evaluation.scoring import (
    MEMORY_BYTES,
    CatalogueScores,
    States,
    excluded_pairs,
    finite,
    masked,
    user_chunks,
    working_dtype,
)
from raymerge.models.recommender import Recommender, evaluation_mode


class Examples(Protocol):
    """Users with one held-out item each (`raymerge.data.split.Examples`)."""

    @property
    def histories(self) -> Tensor:
        """int64[U, L], padded on the left."""

    @property
    def targets(self) -> Tensor:
        """Held-out items, int64[U]."""

    @property
    def keys(self) -> Tensor:
        """The users' identities for seeding, int64[U]."""

    @property
    def seen(self) -> Ragged:
        """All items of the untruncated histories."""


def rank_targets(
    module: Recommender,
    examples: Examples,
    *,
    config: EvaluationConfig,
    counts: Tensor | None = None,
    offered: Tensor | None = None,
) -> dict[str, Tensor]:
    """Rank of each user's target in each of the configured rankings, from one encoding: {"full": int64[U], ...}.

    `counts` (int64[V]) is the items' popularity, needed by popN. `offered` bool[V] marks the items to rank among and
    draw from, all if None. `filter_seen` is about the full ranking: sampled negatives are never seen items. Raises
    ConfigError for popN without counts, InputError for items outside the catalogue, ScoreError for scores that are
    not finite.
    """
    memory = config.memory_mib << 20
    ranks = {}
    with evaluation_mode(module):
        states = States.of(module, examples.histories, memory_bytes=memory)
        for name in config.rankings:
            if name == "full":
                seen = examples.seen if config.filter_seen else None
                ranks[name] = _full_ranks(states, examples.targets, seen, memory, offered)
            else:
                negatives = negatives_for(name, examples, states.num_items, config.seed, counts, offered)
                ranks[name] = sampled_ranks(states, examples.targets, negatives, memory)
    return ranks


def negatives_for(
    name: str, examples: Examples, num_items: int, seed: int, counts: Tensor | None, offered: Tensor | None = None
) -> Tensor:
    """The negatives int64[U, n] that a ranking `uniN` or `popN` uses; raises ConfigError for popN without counts."""
    kind, n = parse_ranking(name)
    if kind == "pop" and counts is None:
        raise ConfigError(f"ranking {name} needs the items' popularity counts; give counts or leave it out")
    chances = counts if kind == "pop" else None
    if offered is not None:
        chances = offered.long() if chances is None else chances * offered
    return draw_negatives(examples.keys, examples.seen, examples.targets, num_items, n, seed, chances)


def full_ranks(
    module: Recommender,
    histories: Tensor,
    targets: Tensor,
    *,
    seen: Ragged | None = None,
    offered: Tensor | None = None,
    memory_bytes: int = MEMORY_BYTES,
) -> Tensor:
    """Rank of each target in the whole catalogue: 1 + how many other items score at least as high: int64[U].

    Ties count against the model, so a constant scorer has rank V; scores that differ by no more than the rounding of
    the matrix product are ties. Items of `seen`, and those not in `offered` (bool[V], None if all are), are left out
    of the ranking, except the target itself. Users are encoded once; scores stream in blocks that fit memory_bytes.
    Time is O(U·V·d), twice that if a block cannot hold the catalogue for 64 users. Raises InputError for items outside
    the catalogue and for lengths that differ, ScoreError for scores that are not finite.
    """
    with evaluation_mode(module):
        states = States.of(module, histories, memory_bytes=memory_bytes)
        return _full_ranks(states, targets, seen, memory_bytes, offered)


def _full_ranks(
    states: States,
    targets: Tensor,
    seen: Ragged | None,
    memory_bytes: int,
    offered: Tensor | None = None,
) -> Tensor:
    _check_targets(states, targets)
    if seen is not None:
        _check_users("seen items", len(seen.offsets) - 1, len(states))
        check_items("seen items", seen.items, states.num_items)
    missing = None if offered is None else ~offered.to(states.hidden.device)
    ranks = torch.empty(len(states), dtype=torch.int64)
    for rows, blocks in user_chunks(states, memory_bytes):
        items = targets[rows].to(states.hidden.device)
        bar = blocks.of(items) - _rounding(states[rows], items)
        ranks[rows] = _ranks_of_chunk(
            blocks, bar, items, missing, *excluded_pairs(seen, rows, states.hidden.device)
        ).cpu()
    return ranks


def _check_targets(states: States, targets: Tensor) -> None:
    _check_users("targets", len(targets), len(states))
    check_items("targets", targets, states.num_items)


def _check_users(what: str, found: int, users: int) -> None:
    if found != users:
        raise InputError(f"{what} must be of the same users as the histories, got {found} and {users} users")


def _rounding(states: States, items: Tensor) -> Tensor:
    """By how much rounding may separate the scores of a target and an equal item: [B].

    A matrix product sums the columns at the edge of a tile in another order than those inside. For equal rows, d up to
    300, score differences of up to .75·eps·‖h‖·‖w‖ were observed; the bound is 2·eps·(‖h‖·‖w‖ + |b| + |h·r|), even if
    the target is not a repeat.
    """
    dtype = working_dtype(states.weight)
    size = states.hidden.to(dtype).norm(dim=1) * states.weight[items - 1].to(dtype).norm(dim=1)
    if states.bias is not None:
        size = size + states.bias[items - 1].to(dtype).abs()
    return 2 * torch.finfo(dtype).eps * (size if states.shift is None else size + states.shift.abs())


def _ranks_of_chunk(
    blocks: CatalogueScores, bar: Tensor, targets: Tensor, missing: Tensor | None, users: Tensor, items: Tensor
) -> Tensor:
    """1 + the items that reach the bar [B], except targets, the pairs (users, items) and missing ones: int64[B]."""
    users = torch.cat([users, torch.arange(blocks.users, device=users.device)])
    items = torch.cat([items, targets])
    ranks = torch.ones_like(targets)
    for _, scores in masked(blocks, missing, users, items):
        ranks += (scores >= bar[:, None]).sum(dim=1, dtype=torch.int32)  # several times faster than int64
    return ranks


def sampled_ranks(states: States, targets: Tensor, negatives: Tensor, memory_bytes: int) -> Tensor:
    """Rank of each target among its negatives int64[U, n], 0 for none: int64[U] from 1 to n + 1.

    Ties count against the model. Time and memory do not depend on V. Raises the errors of `full_ranks`.
    """
    _check_targets(states, targets)
    _check_users("negatives", len(negatives), len(states))
    check_items("negatives", negatives[negatives != 0], states.num_items)
    weight, dtype = states.weight, working_dtype(states.weight)
    users = max(1, memory_bytes // (2 * dtype.itemsize * (negatives.shape[1] + 1) * weight.shape[1]))
    ranks = torch.empty(len(states), dtype=torch.int64)
    for first in range(0, len(states), users):
        rows = slice(first, first + users)
        some, items, others = states[rows], *(x[rows].to(states.hidden.device) for x in (targets, negatives))
        candidates = (torch.cat([items[:, None], others], dim=1) - 1).clamp_(min=0)  # one gather: both round alike
        scores = torch.einsum("bnd,bd->bn", weight[candidates].to(dtype), some.hidden.to(dtype))
        if states.bias is not None:
            scores += states.bias[candidates].to(dtype)
        some.shift_columns(scores, candidates)
        bar = finite(scores)[:, 0] - _rounding(some, items)
        ranks[rows] = 1 + ((scores[:, 1:] >= bar[:, None]) & (others != 0)).sum(dim=1).cpu()
    return ranks
