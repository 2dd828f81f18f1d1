"""From members to how well the models between them do: are they in one basin, where their average does no harm?

Frankle et al., "Linear mode connectivity and the lottery ticket hypothesis", ICML 2020.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations, pairwise

from raymerge.artifacts import Artifact
from raymerge.merging.distributed import Candidate, validate
from raymerge.merging.methods import MergeSetting
from raymerge.pool import Pool
from raymerge.stages.context import Context, Making
from raymerge.stages.prepare import partitions_of, restricted_catalogue
from raymerge.stages.train import model_digest

POINTS = (0.0, 0.25, 0.5, 0.75, 1.0)
MEMBERS_IN_ALL_PAIRS = 4  # of more each is joined to the next alone, so that cost grows with their number only
INTERPOLATION_FILE = "interpolation.json"


def interpolate(
    context: Context, pool: Pool, data: Sequence[Artifact], models: Mapping[str, Artifact]
) -> Artifact | None:
    """Validation NDCG@10 at points (1 − t) θ_a + t θ_b between pairs of members a, b; None for a single member."""
    names = list(models)
    pairs = list(combinations(names, 2) if len(names) <= MEMBERS_IN_ALL_PAIRS else pairwise(names))
    if not pairs:
        return None
    filter_seen = context.config.evaluation.filter_seen
    inputs = {"data": [one.digest for one in data], "models": [model_digest(model) for model in models.values()]}
    configuration = {"names": names, "points": POINTS, "filter_seen": filter_seen}
    partitions = {partition: restricted_catalogue(one) for one in data for partition in partitions_of(one)}
    urls = tuple(model.file("model") for model in models.values())

    def fill(making: Making) -> None:
        scores: dict[tuple[float, ...], float] = {}  # a member is the end of several lines, but one model
        total = len(names) + len(pairs) * (len(POINTS) - 2)

        def score(a: str, b: str, t: float) -> float:
            coefficients = tuple((1 - t) * (name == a) + t * (name == b) for name in names)
            if coefficients not in scores:
                making.progress(len(scores), total)
                candidate = Candidate(urls, (), "average", coefficients, MergeSetting())
                scores[coefficients] = validate(pool, candidate, partitions, filter_seen=filter_seen).mean
            return scores[coefficients]

        lines = []
        for a, b in pairs:
            values = [score(a, b, t) for t in POINTS]
            lines.append({"first": a, "second": b, "scores": values})
            for t, value in zip(POINTS, values, strict=True):
                making.tell(f"{a}.{b}.ndcg@10", value, step=round(100 * t))
        making.draft.write_json(INTERPOLATION_FILE, {"points": POINTS, "lines": lines})
        making.progress(1, 1, f"{len(scores)} models validated")

    return context.find_or_make("interpolate", "interpolate", fill, inputs=inputs, configuration=configuration)
