"""Evaluation on Ray: each user partition is ranked by whichever process is free, and its ranks are taken once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import pyarrow as pa
import torch
from torch import Tensor

from raymerge import memory
from raymerge.artifacts import load_model
from raymerge.data.sequences import Sequences, read_items, read_partition
from raymerge.data.split import Examples, Split, evaluated_users, examples
from raymerge.evaluation.ranking import EvaluationConfig, rank_targets
from raymerge.models.encoder import SequenceEncoder
from raymerge.models.ensemble import Ensemble
from raymerge.pool import Pool

MODELS_KEPT = 8  # in the memory of a process, for the next piece of work


@dataclass(frozen=True)
class Ranks:
    """Where a model ranks the targets of one partition: own ids, keys int64[U], ranks int64[U] by ranking."""

    users: pa.Array
    keys: Tensor
    ranks: dict[str, Tensor]

    def table(self) -> pa.Table:
        """As it is written to Parquet: columns user, key and one for each ranking."""
        columns = {name: ranks.numpy() for name, ranks in self.ranks.items()}
        return pa.table({"user": self.users, "key": self.keys.numpy(), **columns})


@lru_cache(maxsize=MODELS_KEPT)
def worker_model(url: str) -> SequenceEncoder:
    """The model at a URL, on this process' GPU where it has one; kept between pieces of work."""
    return load_model(url).to("cuda" if torch.cuda.is_available() else "cpu")


@lru_cache(maxsize=2)
def _worker_sequences(partition: str) -> Sequences:
    return read_partition(partition)


@lru_cache(maxsize=2)
def worker_examples(partition: str, split: Split, max_length: int, *, everyone: bool = False) -> Examples:
    """`examples` of a partition; the last ones are kept between pieces of work."""
    return examples(_worker_sequences(partition), split, max_length, everyone=everyone)


@lru_cache(maxsize=8)
def worker_offered(catalogue: str | None) -> Tensor | None:
    """Which items of a catalogue are on offer, bool[V]; None for no catalogue."""
    return None if catalogue is None else read_items(catalogue).offered


@lru_cache(maxsize=1)
def _popularity(items: str) -> Tensor:
    return read_items(items).counts


@lru_cache(maxsize=1)
def _worker_ensemble(urls: tuple[str, ...]) -> Ensemble:
    return Ensemble([worker_model(url) for url in urls])


def rank_partition(models: tuple[str, ...], partition: str, items: str, config: EvaluationConfig) -> Ranks:
    """Rank the test items of one partition under a model, or under several together (runs in a worker)."""
    first = worker_model(models[0])
    module = first if len(models) == 1 else _worker_ensemble(models)
    found = worker_examples(partition, "test", first.config.max_length)
    sequences = _worker_sequences(partition)
    users = sequences.users.take(pa.array(evaluated_users(sequences, "test").numpy()))
    config = replace(config, memory_mib=max(1, memory.budget(config.memory_mib << 20) >> 20))
    return Ranks(users, found.keys, rank_targets(module, found, config=config, counts=_popularity(items)))


def rank_users(
    pool: Pool,
    models: tuple[str, ...],
    *,
    partitions: Sequence[str],
    items: str,
    config: EvaluationConfig,
    on_partition: Callable[[str, Ranks], None],
) -> None:
    """Rank the test items of all users, partition by partition; `on_partition(url, ranks)` in order of completion.

    `models` are the URLs of one model, or of several whose logits are averaged.
    What is in memory is one partition in each process, whatever the number of users.
    """
    pieces: Mapping[str, tuple[tuple[str, ...], str, str, EvaluationConfig]] = {
        partition: (models, partition, items, config) for partition in partitions
    }
    pool.run(rank_partition, pieces, doing=f"evaluating {', '.join(models)}", on_result=on_partition)
