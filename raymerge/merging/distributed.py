"""Scoring candidate merges on Ray: each process merges the members itself and ranks its part of the users."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, reduce
from operator import add

from torch import Tensor

from raymerge.artifacts import load_diagonal, load_model
from raymerge.evaluation.validation import validation_gains
from raymerge.execution.pool import Pool
from raymerge.execution.worker_cache import device, examples_of, offered_in
from raymerge.merging.held_out import FoldedScore, folded
from raymerge.merging.methods import MergeSetting, merge
from raymerge.merging.step import step_from
from raymerge.models.encoder import SequenceEncoder


@dataclass(frozen=True)
class Candidate:
    """One way to merge: everything that the merged parameters depend on."""

    models: tuple[str, ...]
    diagonals: tuple[str, ...]  # empty for a method that needs none
    method: str
    coefficients: tuple[float, ...]
    setting: MergeSetting
    start: str | None = None  # needed for a step below 1


@lru_cache(maxsize=1)
def _members(
    models: tuple[str, ...], diagonals: tuple[str, ...], start: str | None
) -> tuple[list[SequenceEncoder], list[dict[str, Tensor]], SequenceEncoder | None]:
    modules = [load_model(url) for url in models]
    return modules, [load_diagonal(url) for url in diagonals], load_model(start) if start else None


def merged_model(candidate: Candidate) -> SequenceEncoder:
    """The merged model of a candidate, on the CPU; the members stay in memory for the next one."""
    modules, diagonals, start = _members(candidate.models, candidate.diagonals, candidate.start)
    parameters = merge(
        modules,
        diagonals or None,
        method=candidate.method,
        coefficients=candidate.coefficients,
        normalise=candidate.setting.normalise,
        epsilon=candidate.setting.epsilon,
        power=candidate.setting.power,
    )
    if start is not None:
        parameters = step_from(start, parameters, candidate.setting.step)
    return SequenceEncoder.of(modules[0].num_items, modules[0].config, parameters)


@lru_cache(maxsize=1)
def _worker_merged(candidate: Candidate) -> SequenceEncoder:
    """The merged model on this process's device, kept for the next partition."""
    return merged_model(candidate).to(device())


def forget() -> None:
    """Release the members, which otherwise stay in memory for the next candidate."""
    _members.cache_clear()


def validate_partition(candidate: Candidate, partition: str, catalogue: str | None, filter_seen: bool) -> FoldedScore:
    """Validation NDCG@10 (full ranking) of the users of a partition (runs in a worker).

    `catalogue` is the URL of the items if not all of them are on offer in the partition's data.
    """
    module = _worker_merged(candidate)
    asked = examples_of(partition, "validation", module.config.max_length)
    gains = validation_gains(module, asked, filter_seen=filter_seen, offered=offered_in(catalogue))
    return folded(gains, asked.keys)


def validate(
    pool: Pool, candidate: Candidate, partitions: Mapping[str, str | None], *, filter_seen: bool
) -> FoldedScore:
    """Validation NDCG@10 over all partitions, each with its catalogue as in `validate_partition`.

    Sums are added in the order of the partitions.
    """
    pieces = {url: (candidate, url, catalogue, filter_seen) for url, catalogue in partitions.items()}
    scores = dict(pool.run(validate_partition, pieces, doing="validating a merge"))
    return reduce(add, (scores[partition] for partition in partitions))
