"""Models between members, compared with models averaged and validated here."""

import pytest
from stages.contexts import MakeContext

from raymerge.artifacts import Artifact, load_model
from raymerge.data.sequences import Sequences
from raymerge.merging.lines import POINTS
from raymerge.merging.methods import merge
from raymerge.stages.interpolate import INTERPOLATION_FILE, interpolate
from raymerge.training.loop import validate

pytestmark = pytest.mark.usefixtures("capacity")


def test_points_of_a_line_are_models_between_its_ends(
    make_context: MakeContext, data: Artifact, models: dict[str, Artifact], partitions: list[Sequences]
) -> None:
    context = make_context("out")
    with context.pool() as pool:
        made = interpolate(context, pool, [data], models)
        again = interpolate(context, pool, [data], models)
    assert made is not None and again is not None and again.url == made.url
    content = made.json(INTERPOLATION_FILE)
    assert tuple(content["points"]) == POINTS
    [line] = content["lines"]
    assert (line["first"], line["second"]) == ("first", "second")
    ends = [load_model(model.file("model")) for model in models.values()]
    for t, score in zip(POINTS, line["scores"], strict=True):
        between = load_model(models["first"].file("model"))
        between.load_state_dict(merge(ends, method="average", coefficients=[1 - t, t]))
        assert score == pytest.approx(validate(between, partitions, filter_seen=True), abs=1e-12)
