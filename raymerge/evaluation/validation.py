"""How well a model does on validation: the one measure by which trainings and merges are chosen."""

from torch import Tensor

from raymerge import chunking
from raymerge.data.split import Examples
from raymerge.evaluation.metrics import ndcg
from raymerge.evaluation.ranking import full_ranks
from raymerge.evaluation.scoring import MEMORY_BYTES
from raymerge.models.recommender import Recommender

METRIC = "ndcg@10"  # by which models are compared
SCORE = f"validation.{METRIC}"  # by which they are chosen; the test split chooses nothing


def validation_gains(
    module: Recommender, asked: Examples, *, filter_seen: bool, offered: Tensor | None = None
) -> Tensor:
    """NDCG@10 of each user, float[U]: the target ranked among all items, or those `offered` bool[V].

    Without items of the user's history if `filter_seen`. Cost and memory are those of `full_ranks`.
    """
    seen, budget = asked.seen if filter_seen else None, chunking.budget(MEMORY_BYTES)
    ranks = full_ranks(module, asked.histories, asked.targets, seen=seen, offered=offered, memory_bytes=budget)
    return ndcg(ranks, 10)
