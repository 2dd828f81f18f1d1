"""Metrics of a ranking with one relevant item per user (leave-one-out), as functions of that item's rank."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from raymerge.errors import ConfigError, InputError
from raymerge.registry import Registry

Metric = Callable[[Tensor, int], Tensor]
METRICS: Registry[Metric] = Registry("metric")


@METRICS.register("hr")
def hit_rate(ranks: Tensor, k: int) -> Tensor:
    """HR@k = 1 if rank <= k, else 0. Ranks int64[U] from 1 → float64[U].

    >>> hit_rate(torch.tensor([1, 2, 3, 9]), 3).tolist()
    [1.0, 1.0, 1.0, 0.0]
    """
    return (ranks <= k).to(torch.float64)


@METRICS.register("ndcg")
def ndcg(ranks: Tensor, k: int) -> Tensor:
    """NDCG@k = 1 / log2(1 + rank) if rank <= k, else 0; the ideal DCG is 1. Ranks int64[U] → float64[U].

    Järvelin and Kekäläinen, "Cumulated gain-based evaluation of IR techniques", TOIS 2002.

    >>> ndcg(torch.tensor([1, 3, 7, 9]), 7).tolist()
    [1.0, 0.5, 0.3333333333333333, 0.0]
    """
    return hit_rate(ranks, k) / torch.log2(ranks.to(torch.float64) + 1)


@METRICS.register("mrr")
def reciprocal_rank(ranks: Tensor, k: int) -> Tensor:
    """MRR@k = 1 / rank if rank <= k, else 0. Ranks int64[U] from 1 → float64[U].

    >>> reciprocal_rank(torch.tensor([1, 2, 4, 9]), 4).tolist()
    [1.0, 0.5, 0.25, 0.0]
    """
    return hit_rate(ranks, k) / ranks.to(torch.float64)


def per_user(ranks: Tensor, ks: Sequence[int] = (5, 10, 20)) -> dict[str, Tensor]:
    """Every registered metric at every cut-off, one value per user: int64[U] → {"ndcg@10": float64[U], ...}.

    Raises InputError for a rank below 1 and ConfigError for a cut-off below 1.

    >>> list(per_user(torch.tensor([1]), ks=(5, 10)))
    ['hr@5', 'hr@10', 'ndcg@5', 'ndcg@10', 'mrr@5', 'mrr@10']
    """
    if len(ranks) and int(ranks.min()) < 1:
        raise InputError(f"ranks count from 1, found {int(ranks.min())}")
    if any(k < 1 for k in ks):
        raise ConfigError(f"cut-offs of metrics must be at least 1, got {min(ks)}")
    return {f"{name}@{k}": METRICS[name](ranks, k) for name in METRICS for k in ks}
