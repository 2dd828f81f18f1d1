"""Evaluation on Ray: each user partition is ranked by whichever process is free, and its ranks are taken once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import pyarrow as pa
import torch
from torch import Tensor

from raymerge.artifacts import load_model
from raymerge.data.sequences import Sequences, read_items, read_partition
from raymerge.data.split import Examples, Split, evaluated_users, examples
from raymerge.evaluation.ranking import EvaluationConfig, rank_targets
from raymerge.models.encoder import SequenceEncoder
from raymerge.pool import Pool


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


@lru_cache(maxsize=8)
def worker_model(url: str) -> SequenceEncoder:
    """The model at a URL, on this process' GPU where it has one; kept between pieces of work."""
    return load_model(url).to("cuda" if torch.cuda.is_available() else "cpu")


@lru_cache(maxsize=2)
def _worker_sequences(partition: str) -> Sequences:
    return read_partition(partition)


@lru_cache(maxsize=2)
def worker_examples(partition: str, split: Split, max_length: int) -> Examples:
    """Examples of a partition; the last ones are kept between pieces of work."""
    return examples(_worker_sequences(partition), split, max_length)


@lru_cache(maxsize=1)
def _popularity(items: str) -> Tensor:
    return read_items(items).counts


def rank_partition(model: str, partition: str, items: str, split: Split, config: EvaluationConfig) -> Ranks:
    """Rank the targets of one partition (runs in a worker; all arguments are URLs or plain values)."""
    module = worker_model(model)
    found = worker_examples(partition, split, module.config.max_length)
    sequences = _worker_sequences(partition)
    users = sequences.users.take(pa.array(evaluated_users(sequences).numpy()))
    return Ranks(users, found.keys, rank_targets(module, found, config=config, counts=_popularity(items)))


def rank_users(
    pool: Pool,
    model: str,
    *,
    partitions: Sequence[str],
    items: str,
    split: Split,
    config: EvaluationConfig,
    on_partition: Callable[[str, Ranks], None],
) -> None:
    """Rank the targets of all users, partition by partition; `on_partition(url, ranks)` in order of completion.

    What is in memory is one partition in each process, whatever the number of users.
    """
    pieces: Mapping[str, tuple[str, str, str, Split, EvaluationConfig]] = {
        partition: (model, partition, items, split, config) for partition in partitions
    }
    pool.run(rank_partition, pieces, doing=f"evaluating {model}", on_result=on_partition)
