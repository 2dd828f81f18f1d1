"""How well a model does on validation: the one measure that trainings and merges are chosen by."""

from torch import Tensor

from raymerge.data.split import Examples
from raymerge.evaluation.metrics import ndcg
from raymerge.evaluation.ranking import full_ranks
from raymerge.evaluation.scoring import MEMORY_BYTES
from raymerge.execution import chunking
from raymerge.models.recommender import Recommender

CUTOFF = 10
METRIC = f"ndcg@{CUTOFF}"  # models are compared by it
SCORE = f"validation.{METRIC}"  # models are chosen by it, never by the test split


def validation_gains(
    module: Recommender, asked: Examples, *, filter_seen: bool, offered: Tensor | None = None
) -> Tensor:
    """NDCG@10 of each user, float[U]: the target ranked among all items, or those `offered` bool[V].

    `filter_seen` leaves out items of the user's history. Cost and memory are those of `full_ranks`.
    """
    seen, budget = asked.seen if filter_seen else None, chunking.budget(MEMORY_BYTES)
    ranks = full_ranks(module, asked.histories, asked.targets, seen=seen, offered=offered, memory_bytes=budget)
    return ndcg(ranks, CUTOFF)
