"""Evaluation on Ray gives the metrics of one process, among the items that a model chooses from."""

from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from partitions import concatenate
from stages.contexts import MakeContext

from raymerge.artifacts import Artifact, load_model
from raymerge.data.prepare import ITEMS_FILE
from raymerge.data.sequences import Sequences, read_items, read_partition
from raymerge.data.split import examples
from raymerge.evaluation.metrics import per_user
from raymerge.evaluation.ranking import rank_targets
from raymerge.stages.evaluate import evaluate, metrics_of
from raymerge.stages.inputs import partitions_of
from raymerge.stages.prepare import prepare

pytestmark = pytest.mark.usefixtures("capacity")


def test_metrics_equal_those_of_one_process(
    make_context: MakeContext, data: Artifact, models: dict[str, Artifact], partitions: list[Sequences]
) -> None:
    context = make_context("out")
    with context.pool() as pool:
        ranks = evaluate(context, pool, data, models)
    settings = context.config.evaluation
    found = metrics_of(ranks["second"])
    asked = examples(concatenate(partitions), "test", 10)
    counts = read_items(data.file(ITEMS_FILE)).counts
    expected = rank_targets(load_model(models["second"].url), asked, config=settings, counts=counts)
    for ranking in settings.rankings:
        for metric, values in per_user(expected[ranking], settings.ks).items():
            assert found[f"{ranking}.{metric}"] == pytest.approx(float(values.mean()))


def test_data_of_a_part_of_a_catalogue_are_tested_among_its_items(
    make_context: MakeContext, log: Path, data: Artifact, models: dict[str, Artifact], tmp_path: Path
) -> None:
    rows = pq.read_table(log)
    pq.write_table(rows.filter(pc.match_substring_regex(rows["item"], "[0-4]$")), tmp_path / "half.parquet")
    context = make_context("out", f"prepare.catalogue={data.url}")
    half = prepare(context, [str(tmp_path / "half.parquet")])
    items = read_items(half.file(ITEMS_FILE))
    assert items.offered is not None
    assert 0 < items.offered.sum() < len(items)
    with context.pool() as pool:
        found = metrics_of(evaluate(context, pool, half, models)["second"])
    parts = concatenate([read_partition(url) for url in partitions_of(half)])
    settings, module = context.config.evaluation, load_model(models["second"].url)
    for offered, same in ((items.offered, True), (None, False)):
        ranks = rank_targets(module, examples(parts, "test", 10), config=settings, counts=items.counts, offered=offered)
        ndcg = float(per_user(ranks["full"], settings.ks)["ndcg@10"].mean())
        assert (found["full.ndcg@10"] == pytest.approx(ndcg)) == same
