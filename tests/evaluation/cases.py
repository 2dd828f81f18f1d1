"""What the tests of rankings share: seen items from lists, and a recommender whose scores are known."""

from types import SimpleNamespace

import torch
from torch import Tensor, nn

from raymerge.evaluation import ranking
from raymerge.evaluation.scoring import MEMORY_BYTES, States
from raymerge.models.recommender import Recommender, evaluation_mode


def ragged(rows: list[list[int]]) -> SimpleNamespace:
    """Items of each user, as `raymerge.data.split.Seen` holds them."""
    offsets = torch.tensor([0, *(len(row) for row in rows)]).cumsum(0)
    return SimpleNamespace(items=torch.tensor([i for row in rows for i in row], dtype=torch.int64), offsets=offsets)


def sampled_ranks(
    module: Recommender, histories: Tensor, targets: Tensor, negatives: Tensor, *, memory_bytes: int = MEMORY_BYTES
) -> Tensor:
    """`ranking.sampled_ranks` of histories."""
    with evaluation_mode(module):
        states = States.of(module, histories, memory_bytes=memory_bytes)
        return ranking.sampled_ranks(states, targets, negatives, memory_bytes)


class TableScorer(nn.Module):
    """Scores of the next item looked up by the last one: table[V + 1, V], exact in the table's dtype."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(table)
        self.weight = nn.Parameter(torch.eye(table.shape[1], dtype=table.dtype))
        self.batches: list[tuple[int, ...]] = []

    def embed(self, histories: Tensor) -> Tensor:
        self.batches.append(tuple(histories.shape))
        return self.table[histories]

    def encode(self, x: Tensor, histories: Tensor) -> Tensor:
        return x[:, -1]

    def head(self) -> tuple[Tensor, Tensor | None, str | None]:
        return self.weight, None, None
