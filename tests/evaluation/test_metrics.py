import numpy as np
import pytest
import torch

from raymerge.errors import ConfigError, InputError
from raymerge.evaluation.metrics import METRICS, per_user

# A hand-computed table: rank, then HR, NDCG and MRR at 5 and at 10.
TABLE = [
    (1, 1, 1, 1.0, 1.0, 1.0, 1.0),
    (2, 1, 1, 0.6309297535714574, 0.6309297535714574, 0.5, 0.5),
    (3, 1, 1, 0.5, 0.5, 1 / 3, 1 / 3),
    (5, 1, 1, 0.3868528072345416, 0.3868528072345416, 0.2, 0.2),
    (6, 0, 1, 0.0, 0.3562071871080222, 0.0, 1 / 6),
    (7, 0, 1, 0.0, 1 / 3, 0.0, 1 / 7),
    (10, 0, 1, 0.0, 0.2890648263178879, 0.0, 0.1),
    (11, 0, 0, 0.0, 0.0, 0.0, 0.0),
    (3416, 0, 0, 0.0, 0.0, 0.0, 0.0),
]


def test_metrics_equal_a_hand_computed_table() -> None:
    columns = list(zip(*TABLE, strict=True))
    found = per_user(torch.tensor(columns[0]), ks=(5, 10))
    assert list(found) == ["hr@5", "hr@10", "ndcg@5", "ndcg@10", "mrr@5", "mrr@10"]
    for (name, values), expected in zip(found.items(), columns[1:], strict=True):
        assert values.dtype == torch.float64
        assert values.tolist() == pytest.approx(list(expected), abs=1e-15), name


def test_no_users_give_empty_columns() -> None:
    assert {len(values) for values in per_user(torch.zeros(0, dtype=torch.int64)).values()} == {0}


def test_a_rank_of_zero_and_a_cut_off_of_zero_are_refused() -> None:
    with pytest.raises(InputError, match="ranks count from 1, found 0"):
        per_user(torch.tensor([3, 0]))
    with pytest.raises(ConfigError, match="got 0"):
        per_user(torch.tensor([1]), ks=(10, 0))


def test_a_metric_registered_by_a_user_is_computed() -> None:
    METRICS.register("top")(lambda ranks, k: (ranks == 1).double())
    try:
        assert per_user(torch.tensor([1, 2]), ks=(5,))["top@5"].tolist() == [1, 0]
    finally:
        METRICS._entries.pop("top")


def test_ndcg_equals_scikit_learn() -> None:
    from sklearn.metrics import ndcg_score

    rng = np.random.default_rng(0)
    scores = rng.permuted(np.tile(np.arange(50.0), (40, 1)), axis=1)
    targets = rng.integers(50, size=40)
    relevance = np.eye(50)[targets]
    ranks = 1 + (scores > scores[np.arange(40), targets][:, None]).sum(1)
    for k in (1, 5, 10, 50):
        ours = float(METRICS["ndcg"](torch.tensor(ranks), k).mean())
        assert ours == pytest.approx(ndcg_score(relevance, scores, k=k), abs=1e-12)
