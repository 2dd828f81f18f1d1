import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet as pq

from raymerge.data.demo import GENRES, SHIPPED_SEED, generate
from raymerge.data.prepare import PrepareConfig, prepare
from raymerge.errors import ConfigError


@pytest.fixture(scope="module")
def log() -> pa.Table:
    return generate(seed=5, users=1200)


def histories(log: pa.Table) -> list[list[str]]:
    """Items by user, oldest first."""
    found = {}
    for user, item in zip(log["user"].to_pylist(), log["item"].to_pylist(), strict=True):
        found.setdefault(user, []).append(item)
    return list(found.values())


def test_the_log_is_a_function_of_its_seed() -> None:
    small = {"users": 50, "items": 100}
    assert generate(seed=1, **small).equals(generate(seed=1, **small))
    assert not generate(seed=1, **small).equals(generate(seed=2, **small))


def test_the_shipped_log_has_thousands_of_users_and_hundreds_of_items(tmp_path: Path) -> None:
    log = generate(seed=SHIPPED_SEED)
    pq.write_table(log, tmp_path / "log.parquet")
    counts = prepare([str(tmp_path / "log.parquet")], PrepareConfig(), tmp_path / "out")
    assert counts["users"] == 3500 and 500 <= counts["items"] <= 600
    assert 20 <= counts["interactions"] / counts["users"] <= 40


def test_the_log_has_the_default_columns_of_prepare_in_order_of_time(log: pa.Table) -> None:
    assert log.schema.names == ["user", "item", "timestamp"]
    assert log.schema.types == [pa.int64(), pa.string(), pa.int64()]
    assert (np.diff(log["timestamp"].to_numpy()) >= 0).all()


def test_histories_have_10_to_60_items_and_few_repetitions(log: pa.Table) -> None:
    lengths = [len(history) for history in histories(log)]
    assert min(lengths) >= 10 and max(lengths) <= 60 and len(lengths) == 1200
    distinct = sum(len(set(history)) for history in histories(log))
    assert distinct >= 0.98 * log.num_rows


def test_popularity_has_a_long_tail(log: pa.Table) -> None:
    counts = np.sort(np.unique(log["item"].to_numpy(zero_copy_only=False), return_counts=True)[1])[::-1]
    assert counts[:60].sum() > 0.25 * counts.sum()
    assert counts[300:].sum() > 0.1 * counts.sum()


def test_users_continue_series_and_stay_in_genres_far_more_often_than_by_chance(log: pa.Table) -> None:
    def shares(orders: list[list[str]]) -> tuple[float, float]:
        pairs = [pair for order in orders for pair in itertools.pairwise(order)]
        parts = [(a.split("."), b.split(".")) for a, b in pairs]
        stayed = np.mean([a[0] == b[0] for a, b in parts])
        continued = np.mean([a[:2] == b[:2] and int(b[2]) == int(a[2]) + 1 for a, b in parts])
        return stayed, continued

    random = np.random.default_rng(0)
    real = shares(histories(log))
    shuffled = shares([random.permutation(history).tolist() for history in histories(log)])
    assert real[0] > 1.3 * shuffled[0]
    assert real[1] > 3 * shuffled[1]


def test_interests_shift_within_a_history(log: pa.Table) -> None:
    """The genres of a user's first ten items resemble those of the next ten more than those of the last ten."""

    def profile(items: list[str]) -> np.ndarray:
        counts = np.array([sum(item.startswith(genre + ".") for item in items) for genre in GENRES])
        return counts / np.linalg.norm(counts)

    long = [history for history in histories(log) if len(history) >= 40]
    near = np.mean([profile(history[:10]) @ profile(history[10:20]) for history in long])
    far = np.mean([profile(history[:10]) @ profile(history[-10:]) for history in long])
    other = np.mean([profile(a[:10]) @ profile(b[10:20]) for a, b in itertools.pairwise(long)])
    assert near > far > other


@pytest.mark.parametrize("size", [{"users": 0}, {"items": 99}])
def test_impossible_sizes_are_refused(size: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="at least 1 user and 100 items"):
        generate(**size)
