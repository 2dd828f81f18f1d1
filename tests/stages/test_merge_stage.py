"""The merge of a stage is the closed form of what it chose."""

import pyarrow as pa
import pytest
import torch
from stages.contexts import MakeContext

from raymerge.artifacts import Artifact, load_diagonal, load_model
from raymerge.data.sequences import Items
from raymerge.merging.methods import merge
from raymerge.stages.fisher import fisher
from raymerge.stages.inputs import model_digest
from raymerge.stages.merge import merge as merge_stage
from raymerge.stages.merge import merged_items

pytestmark = pytest.mark.usefixtures("capacity")


def test_merge_stage_gives_the_closed_form_of_its_choice(
    make_context: MakeContext, data: Artifact, models: dict[str, Artifact]
) -> None:
    context = make_context("out", "merge.budget=8", "merge.normalise=model")
    with context.pool() as pool:
        diagonals = fisher(context, pool, data, models)
        merged = merge_stage(context, pool, [data], models, diagonals, context.config.merge)
    expected = merge(
        [load_model(model.url) for model in models.values()],
        [load_diagonal(diagonal.url) for diagonal in diagonals.values()],
        coefficients=merged.counts["coefficients"],
        normalise="model",
    )
    for name, value in load_model(merged.url).state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_counts_of_a_merge_are_of_all_data_each_once() -> None:
    markets = torch.tensor([[3, 0, 1], [0, 2, 5]])
    of_market = [Items(pa.array(["a", "b", "c"]), counts, counts > 0) for counts in markets]
    merged = merged_items([*of_market, *of_market])  # two members of each
    assert merged.counts.tolist() == [3, 2, 6] and merged.offered.tolist() == [True] * 3
    assert merged_items(of_market[:1] * 3).counts.tolist() == [3, 0, 1]


def test_a_merge_goes_only_a_step_from_the_start(
    make_context: MakeContext, data: Artifact, models: dict[str, Artifact]
) -> None:
    context = make_context("out", "merge={method: average, coefficients: equal, step: 0.75}")
    start, *members = models
    with context.pool() as pool:
        merged = merge_stage(
            context,
            pool,
            [data],
            {name: models[name] for name in members},
            {},
            context.config.merge,
            start=models[start],
        )
    origin, *ends = (dict(load_model(model.url).named_parameters()) for model in models.values())
    for name, value in load_model(merged.url).named_parameters():
        expected = 0.25 * origin[name] + 0.75 * sum(end[name] for end in ends) / len(ends)
        torch.testing.assert_close(value, expected)
    assert merged.manifest["inputs"]["start"] == model_digest(models[start])
