"""Rounds: members, the diagonal of each on its own data, and their merge, from which the next round starts."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from raymerge.artifacts import Artifact
from raymerge.execution.pool import Pool
from raymerge.names import round_suffix
from raymerge.stages.context import Context
from raymerge.stages.fisher import fisher
from raymerge.stages.markets import TrainingData
from raymerge.stages.merge import merge
from raymerge.stages.train import train_members


@dataclass(frozen=True)
class Round:
    """What a round makes from its start; None is a start from scratch."""

    start: Artifact | None
    members: Mapping[str, Artifact]
    diagonals: Mapping[str, Artifact]
    merged: Artifact


def run_rounds(context: Context, training_data: TrainingData, base: Artifact | None) -> list[Round]:
    """All rounds, the first from the base; runs of rounds before the last have their number as a suffix."""
    rounds: list[Round] = []
    for number in range(1, context.config.rounds + 1):
        suffix = round_suffix(number) if number < context.config.rounds else ""
        start = rounds[-1].merged if rounds else base
        rounds.append(_run_round(replace(context, suffix=suffix), training_data, start, after=number - 1))
    return rounds


def _run_round(context: Context, training_data: TrainingData, start: Artifact | None, *, after: int) -> Round:
    members = train_members(context, training_data.members, start, after=after)
    with context.pool() as pool:
        diagonals = _own_diagonals(context, pool, training_data, members)
        merged = merge(context, pool, training_data.validation, members, diagonals, context.config.merge, start=start)
    return Round(start, members, diagonals, merged)


def merge_rivals(context: Context, training_data: TrainingData, last: Round) -> dict[str, Artifact]:
    """Merge the members of the last round with the diagonals of each rival; by name."""
    if not context.config.rivals:
        return {}
    merges: dict[str, Artifact] = {}
    settings = context.config.merge
    with context.pool() as pool:
        for rival in context.config.rivals:
            theirs = replace(context, config=context.config.of_rival(rival), suffix=f"-{rival}")
            diagonals = _own_diagonals(theirs, pool, training_data, last.members)
            merges[rival] = merge(
                context, pool, training_data.validation, last.members, diagonals, settings, start=last.start, name=rival
            )
    return merges


def _own_diagonals(
    context: Context, pool: Pool, training_data: TrainingData, members: Mapping[str, Artifact]
) -> dict[str, Artifact]:
    """The Fisher diagonal of each member, on the data that it was trained on; none if the method takes none."""
    if not context.config.merge.needs_diagonals:
        return {}
    diagonals: dict[str, Artifact] = {}
    for data in training_data.validation:
        diagonals |= fisher(context, pool, data, {name: members[name] for name in training_data.names_on(data)})
    return {name: diagonals[name] for name in members}
