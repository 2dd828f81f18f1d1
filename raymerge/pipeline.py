"""READ FIRST: from an interaction log to one merged model and its report, stage by stage."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from raymerge.artifacts import Artifact
from raymerge.evaluation.reported import Kind
from raymerge.pool import Pool
from raymerge.stages.context import Context
from raymerge.stages.evaluate import evaluate, evaluate_together
from raymerge.stages.fisher import check_samples, fisher
from raymerge.stages.interpolate import interpolate
from raymerge.stages.markets import TrainingData, divide
from raymerge.stages.merge import average, merge
from raymerge.stages.prepare import prepare
from raymerge.stages.report import Entry, report
from raymerge.stages.train import train_after_merge, train_base, train_ceiling, train_members


@dataclass(frozen=True)
class Result:
    """The artifacts of a run, each committed in the output folder."""

    data: Artifact
    base: Artifact | None
    members: Mapping[str, Artifact]
    diagonals: Mapping[str, Artifact]
    merged: Artifact
    entries: list[Entry]
    report: Artifact

    @property
    def final(self) -> Artifact:
        """The model to serve: the merged model that validates best, fine-tuned or not."""
        models = {entry.name: entry.model for entry in self.entries if entry.model}
        return models[self.report.json("report.json")["final"]]


@dataclass(frozen=True)
class Round:
    """What an early round makes."""

    members: Mapping[str, Artifact]
    merged: Artifact


def run(context: Context, log: Sequence[str]) -> Result:
    """Run the pipeline from the files of a log to the report; stages reuse artifacts of earlier runs."""
    data = prepare(context, log)
    parts = divide(context, data)
    check_samples(context.config, parts.validation)
    base = train_base(context, parts.base)
    settings, label = context.config.merge, context.config.merge.label
    early: list[Round] = []
    for number in range(1, context.config.rounds):
        early.append(_round(context, parts, early[-1].merged if early else base, number))
    members = train_members(context, parts.members, early[-1].merged if early else base, after=len(early))
    with context.pool() as pool:
        diagonals = _own_diagonals(context, pool, parts, members)
        uniform = average(context, pool, parts.validation, members)
        merged = merge(context, pool, parts.validation, members, diagonals, settings)
        merges = {label: merged} | _rivals(context, pool, parts, members)
        between = interpolate(context, pool, parts.validation, members)
    groups: list[tuple[Kind, Mapping[str, Artifact]]] = [
        ("base", {"base": base} if base else {}),
        ("member", members),
        ("average", {"average": uniform}),
        ("round", {f"{label}-round-{number}": one.merged for number, one in enumerate(early, 1)}),
        ("merged", merges),
        *train_after_merge(context, data, merges, early[0].members if early else members),
        ("ceiling", train_ceiling(context, data, base)),
    ]
    entries = _evaluate_all(context, data, groups, members)
    made = report(context, data, entries, merge=merged, diagonals=diagonals, interpolation=between)
    return Result(data, base, members, diagonals, merged, entries, made)


def _evaluate_all(
    context: Context,
    data: Artifact,
    groups: Sequence[tuple[Kind, Mapping[str, Artifact]]],
    members: Mapping[str, Artifact],
) -> list[Entry]:
    """The rows of the report: every model of every kind, and the members' ensemble."""
    models = {name: model for _, group in groups for name, model in group.items()}
    with context.pool() as pool:
        ranks = evaluate(context, pool, data, models)
        together = evaluate_together(context, pool, data, list(members.values()))
    entries = [Entry(name, kind, model, ranks[name]) for kind, group in groups for name, model in group.items()]
    return [*entries, Entry("ensemble", "ensemble", None, together)]


def _round(context: Context, parts: TrainingData, start: Artifact | None, number: int) -> Round:
    """Members of an early round, and their merge, from which the next round starts."""
    suffix, settings = f"-round-{number}", context.config.merge
    members = train_members(context, parts.members, start, after=number - 1, suffix=suffix)
    with context.pool() as pool:
        diagonals = _own_diagonals(context, pool, parts, members, suffix=suffix)
        name = settings.label + suffix
        return Round(members, merge(context, pool, parts.validation, members, diagonals, settings, name=name))


def _rivals(context: Context, pool: Pool, parts: TrainingData, members: Mapping[str, Artifact]) -> dict[str, Artifact]:
    """The merges by other diagonals, by name."""
    merges: dict[str, Artifact] = {}
    for rival in context.config.rivals:
        theirs = replace(context, config=context.config.of_rival(rival))
        diagonals = _own_diagonals(theirs, pool, parts, members, suffix=f"-{rival}")
        merges[rival] = merge(context, pool, parts.validation, members, diagonals, context.config.merge, name=rival)
    return merges


def _own_diagonals(
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
