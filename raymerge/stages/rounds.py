"""What a round consists of: members, the diagonal of each on its own data, and their merge."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from raymerge.artifacts import Artifact
from raymerge.execution.pool import Pool
from raymerge.stages.context import Context
from raymerge.stages.fisher import fisher
from raymerge.stages.markets import TrainingData
from raymerge.stages.merge import merge
from raymerge.stages.train import train_members


@dataclass(frozen=True)
class Round:
    """What an early round makes."""

    members: Mapping[str, Artifact]
    merged: Artifact


def early_round(context: Context, parts: TrainingData, start: Artifact | None, number: int) -> Round:
    """Train members from `start` and merge them; the next round starts from the merge."""
    suffix, settings = f"-round-{number}", context.config.merge
    members = train_members(context, parts.members, start, after=number - 1, suffix=suffix)
    with context.pool() as pool:
        diagonals = own_diagonals(context, pool, parts, members, suffix=suffix)
        name = settings.label + suffix
        merged = merge(context, pool, parts.validation, members, diagonals, settings, start=start, name=name)
    return Round(members, merged)


def merge_rivals(
    context: Context, pool: Pool, parts: TrainingData, members: Mapping[str, Artifact], start: Artifact | None
) -> dict[str, Artifact]:
    """Merge the same members, from the same start, with the diagonals of each rival; by name."""
    merges: dict[str, Artifact] = {}
    settings = context.config.merge
    for rival in context.config.rivals:
        theirs = replace(context, config=context.config.of_rival(rival))
        diagonals = own_diagonals(theirs, pool, parts, members, suffix=f"-{rival}")
        merges[rival] = merge(context, pool, parts.validation, members, diagonals, settings, start=start, name=rival)
    return merges


def own_diagonals(
    context: Context, pool: Pool, parts: TrainingData, members: Mapping[str, Artifact], suffix: str = ""
) -> dict[str, Artifact]:
    """The Fisher diagonal of each member, on the data that it was trained on; none if the method takes none.

    The suffix is appended to the names of their runs.
    """
    if not context.config.merge.needs_diagonals:
        return {}
    found: dict[str, Artifact] = {}
    for data in parts.validation:
        mine = {name + suffix: model for name, model in members.items() if parts.members[name] is data}
        found |= fisher(context, pool, data, mine)
    return {name: found[name + suffix] for name in members}
