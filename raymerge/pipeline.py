"""READ FIRST: from an interaction log to one merged model and its report, stage by stage."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from raymerge.artifacts import Artifact
from raymerge.evaluation.reported import Kind
from raymerge.stages.context import Context
from raymerge.stages.evaluate import evaluate, evaluate_together
from raymerge.stages.fisher import check_samples
from raymerge.stages.interpolate import interpolate
from raymerge.stages.markets import divide
from raymerge.stages.merge import average, merge
from raymerge.stages.prepare import prepare
from raymerge.stages.report import Entry, report
from raymerge.stages.rounds import Round, early_round, merge_rivals, own_diagonals
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


def run(context: Context, log: Sequence[str]) -> Result:
    """Run the pipeline from the files of a log to the report; stages reuse artifacts of earlier runs."""
    data = prepare(context, log)
    parts = divide(context, data)
    check_samples(context.config, parts.validation)
    base = train_base(context, parts.base)
    settings, label = context.config.merge, context.config.merge.label
    start, early = base, list[Round]()
    for number in range(1, context.config.rounds):
        early.append(early_round(context, parts, start, number))
        start = early[-1].merged
    members = train_members(context, parts.members, start, after=len(early))
    with context.pool() as pool:
        diagonals = own_diagonals(context, pool, parts, members)
        uniform = average(context, pool, parts.validation, members, start=start)
        merged = merge(context, pool, parts.validation, members, diagonals, settings, start=start)
        merges = {label: merged} | merge_rivals(context, pool, parts, members, start)
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
