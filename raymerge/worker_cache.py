"""What a worker process has read and keeps for its next piece of work: models, histories, items on offer."""

from functools import lru_cache

import torch
from torch import Tensor

from raymerge.artifacts import load_model
from raymerge.data.sequences import Sequences, read_items, read_partition
from raymerge.data.split import Examples, Split, examples
from raymerge.models.encoder import SequenceEncoder

MODELS_KEPT = 8


@lru_cache(maxsize=MODELS_KEPT)
def model_at(url: str) -> SequenceEncoder:
    """The model at a URL, on this process' GPU where it has one; kept between pieces of work."""
    return load_model(url).to("cuda" if torch.cuda.is_available() else "cpu")


@lru_cache(maxsize=2)
def sequences_at(partition: str) -> Sequences:
    """The histories of a partition; the last ones are kept between pieces of work."""
    return read_partition(partition)


@lru_cache(maxsize=2)
def examples_of(partition: str, split: Split, max_length: int, *, everyone: bool = False) -> Examples:
    """`examples` of a partition; the last ones are kept between pieces of work."""
    return examples(sequences_at(partition), split, max_length, everyone=everyone)


@lru_cache(maxsize=8)
def offered_in(catalogue: str | None) -> Tensor | None:
    """Which items of a catalogue are on offer, bool[V]; None for no catalogue."""
    return None if catalogue is None else read_items(catalogue).offered
