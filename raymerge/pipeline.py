"""READ FIRST: from an interaction log to one merged model and its report, stage by stage."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from raymerge.artifacts import Artifact
from raymerge.evaluation.report_schema import REPORT_FILE, Kind
from raymerge.names import round_suffix
from raymerge.stages.context import Context
from raymerge.stages.evaluate import Entry, evaluate_all
from raymerge.stages.fisher import check_samples
from raymerge.stages.interpolate import interpolate
from raymerge.stages.markets import divide
from raymerge.stages.merge import average
from raymerge.stages.prepare import prepare
from raymerge.stages.report import report
from raymerge.stages.rounds import Round, merge_rivals, run_rounds
from raymerge.stages.train import train_after_merge, train_base, train_ceiling


@dataclass(frozen=True)
class Result:
    """The artifacts of a run, each committed in the output folder."""

    data: Artifact
    rounds: Sequence[Round]
    entries: Sequence[Entry]
    report: Artifact

    @property
    def last(self) -> Round:
        """The last round."""
        return self.rounds[-1]

    @property
    def final(self) -> Artifact:
        """The model to serve: the merged model that is best on validation, fine-tuned or not."""
        models = {entry.name: entry.model for entry in self.entries if entry.model}
        return models[self.report.json(REPORT_FILE)["final"]]


def run(context: Context, log: Sequence[str]) -> Result:
    """Run the pipeline from the files of a log to the report; stages reuse artifacts of earlier runs."""
    data = prepare(context, log)
    training_data = divide(context, data)
    check_samples(context.config, training_data.validation)
    base = train_base(context, training_data.base)
    rounds = run_rounds(context, training_data, base)
    first, last, label = rounds[0], rounds[-1], context.config.merge.label
    rivals = merge_rivals(context, training_data, last)
    fine_tuned, control = train_after_merge(context, data, last.merged, rivals, first.members)
    ceiling = train_ceiling(context, data, base)
    with context.pool() as pool:
        uniform = {}
        if not context.config.merge.is_uniform:
            uniform["average"] = average(context, pool, training_data.validation, last.members, start=last.start)
        lines = interpolate(context, pool, training_data.validation, last.members)
        models: dict[Kind, Mapping[str, Artifact]] = {
            "base": {"base": base} if base else {},
            "member": last.members,
            "average": uniform,
            "round": {label + round_suffix(number): early.merged for number, early in enumerate(rounds[:-1], 1)},
            "merged": {label: last.merged} | rivals,
            "fine-tuned": fine_tuned,
            "control": control,
            "ceiling": ceiling,
        }
        entries = evaluate_all(context, pool, data, models)
    return Result(
        data,
        rounds,
        entries,
        report(context, data, entries, merge=last.merged, diagonals=last.diagonals, interpolation=lines),
    )
