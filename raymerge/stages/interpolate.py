"""From members to how well the models between them do: a dip on the way would be a barrier to averaging."""

from collections.abc import Mapping, Sequence

from raymerge.artifacts import Artifact, Key
from raymerge.execution.pool import Pool
from raymerge.merging.distributed import Candidate, validate
from raymerge.merging.lines import POINTS, coefficients, models_on_lines, pairs
from raymerge.merging.methods import MergeSetting
from raymerge.stages.context import Context, TrackedDraft
from raymerge.stages.inputs import catalogues_of, model_digest

INTERPOLATION_FILE = "interpolation.json"


def interpolate(
    context: Context, pool: Pool, data: Sequence[Artifact], models: Mapping[str, Artifact]
) -> Artifact | None:
    """Validation NDCG@10 of models on the lines between members, over all `data`; None for a single member."""
    names = list(models)
    if len(names) < 2:
        return None
    filter_seen = context.config.evaluation.filter_seen
    inputs = {"data": [one.digest for one in data], "models": [model_digest(model) for model in models.values()]}
    configuration = {"names": names, "points": POINTS, "filter_seen": filter_seen}
    partitions = catalogues_of(data)
    urls = tuple(model.file("model") for model in models.values())

    def fill(draft: TrackedDraft) -> None:
        scores: dict[tuple[float, ...], float] = {}  # a member is the end of several lines but one model

        def score(point: tuple[float, ...]) -> float:
            if point not in scores:
                draft.progress(len(scores), models_on_lines(len(names)))
                candidate = Candidate(urls, (), "average", point, MergeSetting())
                scores[point] = validate(pool, candidate, partitions, filter_seen=filter_seen).mean
            return scores[point]

        lines = []
        for first, second in pairs(names):
            values = [score(coefficients(names, first, second, t)) for t in POINTS]
            lines.append({"first": first, "second": second, "scores": values})
            for t, value in zip(POINTS, values, strict=True):
                draft.tell(f"{first}.{second}.ndcg@10", value, step=round(100 * t))
        draft.write_json(INTERPOLATION_FILE, {"points": POINTS, "lines": lines})
        draft.progress(1, 1, f"{len(scores)} models validated")

    return context.find_or_make("interpolate", Key("interpolate", inputs, configuration), fill)
