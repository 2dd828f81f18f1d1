"""Evaluation on Ray: each user partition is ranked by whichever process is free, and counted once."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import pyarrow as pa
from torch import Tensor

from raymerge.data.sequences import read_items
from raymerge.data.split import evaluated_users
from raymerge.evaluation.config import EvaluationConfig
from raymerge.evaluation.ranking import rank_targets
from raymerge.execution import chunking
from raymerge.execution.pool import Pool
from raymerge.execution.worker_cache import examples_of, model_at, offered_in, sequences_at
from raymerge.models.ensemble import Ensemble


@dataclass(frozen=True)
class Ranks:
    """Where a model ranks the targets of one partition: users' own ids, keys int64[U], ranks int64[U] by ranking."""

    users: pa.Array
    keys: Tensor
    ranks: dict[str, Tensor]

    def table(self) -> pa.Table:
        """The table written to Parquet: columns user, key and one per ranking."""
        columns = {name: ranks.numpy() for name, ranks in self.ranks.items()}
        return pa.table({"user": self.users, "key": self.keys.numpy(), **columns})


@lru_cache(maxsize=1)
def _popularity(items: str) -> Tensor:
    return read_items(items).counts


@lru_cache(maxsize=1)
def _worker_ensemble(urls: tuple[str, ...]) -> Ensemble:
    return Ensemble([model_at(url) for url in urls])


def rank_partition(models: tuple[str, ...], partition: str, items: str, config: EvaluationConfig) -> Ranks:
    """Rank the test items of one partition by a model, or by several together (runs in a worker).

    They are ranked among the items of the catalogue at `items` that are on offer in these data.
    """
    first = model_at(models[0])
    module = first if len(models) == 1 else _worker_ensemble(models)
    found = examples_of(partition, "test", first.config.max_length)
    sequences = sequences_at(partition)
    users = sequences.users.take(pa.array(evaluated_users(sequences, "test").numpy()))
    config = replace(config, memory_mib=max(1, chunking.budget(config.memory_mib << 20) >> 20))
    ranks = rank_targets(module, found, config=config, counts=_popularity(items), offered=offered_in(items))
    return Ranks(users, found.keys, ranks)


def rank_users(
    pool: Pool,
    models: tuple[str, ...],
    *,
    partitions: Sequence[str],
    items: str,
    config: EvaluationConfig,
) -> Iterator[tuple[str, Ranks]]:
    """Rank the test items of all users; yields each partition's URL and ranks, in order of completion.

    `models` are the URLs of one model, or of several whose logits are averaged. Each process holds one partition in
    memory, for any number of users.
    """
    pieces: Mapping[str, tuple[tuple[str, ...], str, str, EvaluationConfig]] = {
        partition: (models, partition, items, config) for partition in partitions
    }
    return pool.run(rank_partition, pieces, doing=f"evaluating {', '.join(models)}")
