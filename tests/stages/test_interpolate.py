"""Models between members, held against models that are averaged and validated here."""

import pytest
from random_models import random_model

from raymerge.artifacts import Artifact, load_model
from raymerge.data.sequences import Sequences
from raymerge.merging.methods import merge
from raymerge.stages.interpolate import INTERPOLATION_FILE, POINTS, interpolate
from raymerge.training.loop import validate
from tests.stages.conftest import MakeContext


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
        assert score == pytest.approx(validate(between, partitions), abs=1e-12)


def test_lines_join_all_pairs_of_few_members_and_neighbours_of_many(make_context: MakeContext, data: Artifact) -> None:
    context = make_context("out")
    models = {f"m{seed}": random_model(context, data, name=f"m{seed}", seed=seed) for seed in range(5)}

    def joined(number: int) -> list[tuple[str, str]]:
        with context.pool() as pool:
            made = interpolate(context, pool, [data], dict(list(models.items())[:number]))
        return [(one["first"], one["second"]) for one in made.json(INTERPOLATION_FILE)["lines"]] if made else []

    assert joined(1) == []
    assert joined(3) == [("m0", "m1"), ("m0", "m2"), ("m1", "m2")]
    assert joined(5) == [("m0", "m1"), ("m1", "m2"), ("m2", "m3"), ("m3", "m4")]
