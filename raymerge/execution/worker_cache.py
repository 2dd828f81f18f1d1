"""What a worker process keeps between pieces of work: models, histories, items on offer."""

from functools import lru_cache

import torch
from torch import Tensor

from raymerge.artifacts import load_model
from raymerge.data.sequences import Sequences, read_items, read_partition
from raymerge.data.split import Examples, Split, examples
from raymerge.models.encoder import SequenceEncoder

MODELS_KEPT = 8


def device() -> torch.device:
    """This process's GPU if it has one, else its CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@lru_cache(maxsize=MODELS_KEPT)
def model_at(url: str) -> SequenceEncoder:
    """The model at a URL, on this process's device."""
    return load_model(url).to(device())


@lru_cache(maxsize=2)
def sequences_at(partition: str) -> Sequences:
    """The histories of a partition."""
    return read_partition(partition)


@lru_cache(maxsize=2)
def examples_of(partition: str, split: Split, max_length: int, *, everyone: bool = False) -> Examples:
    """`examples` of a partition."""
    return examples(sequences_at(partition), split, max_length, everyone=everyone)


@lru_cache(maxsize=8)
def offered_in(catalogue: str | None) -> Tensor | None:
    """Which items of a catalogue are on offer, bool[V]; None without a catalogue."""
    return None if catalogue is None else read_items(catalogue).offered
