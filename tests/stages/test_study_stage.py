"""The study as a stage: its figures are those of one process, and it resumes after an interruption."""

from pathlib import Path

import pytest
import torch
from stages.contexts import MakeContext

import raymerge.fisher
from raymerge.artifacts import Artifact, load_model
from raymerge.data.sequences import Sequences
from raymerge.data.split import examples
from raymerge.events import Event, Progress
from raymerge.fisher.study import Study
from raymerge.stages.context import Context
from raymerge.stages.study import fisher_study

pytestmark = pytest.mark.usefixtures("capacity")

FEW = ("study.samples=[2,40]", "study.seeds=2", "study.users=50", "study.batch_size=5")


def made_by(context: Context, data: Artifact, model: Artifact) -> Study:
    with context.pool() as pool:
        study: Study = fisher_study(context, pool, data, "first", model).json("study.json")
    return study


def relative_error(found: dict[str, torch.Tensor], exact: dict[str, torch.Tensor]) -> float:
    x, e = (torch.cat([one[name].double().flatten() for name in exact]) for one in (found, exact))
    return float((x - e).norm() / e.norm())


def test_study_has_the_errors_of_one_process_and_keeps_no_shards(
    make_context: MakeContext, data: Artifact, models: dict[str, Artifact], partitions: list[Sequences]
) -> None:
    messages: list[Event | Progress] = []
    context = make_context("out", *FEW, emit=messages.append)
    study = made_by(context, data, models["first"])
    parts = [examples(part, "validation", 10) for part in partitions]
    bounds = (17, 17, 16)
    histories = torch.cat([part.histories[:n] for part, n in zip(parts, bounds, strict=True)])
    keys = torch.cat([part.keys[:n] for part, n in zip(parts, bounds, strict=True)])
    module = load_model(models["first"].url)
    exact = raymerge.fisher.estimate(module, histories, dtype=torch.float64)
    rows = {(row["line"], row["samples"]): row for row in study["rows"]}
    assert study["users"] == 50
    assert rows["exact", None]["overall"]["error"]["mean"] < 1e-4
    topk = raymerge.fisher.estimate(module, histories, estimator="topk", samples=40)
    assert rows["topk", 40]["overall"]["error"]["mean"] == pytest.approx(relative_error(topk, exact), rel=1e-3)
    drawn = [
        relative_error(
            raymerge.fisher.estimate(module, histories, estimator="hutchinson", samples=2, keys=keys, seed=seed), exact
        )
        for seed in (0, 1)
    ]
    assert rows["hutchinson", 2]["overall"]["error"]["mean"] == pytest.approx(sum(drawn) / 2, rel=1e-3)
    assert ("rank", 40) not in rows, "more than the model's 16 dimensions"
    assert ("topk B=5 by identity", 2) in rows
    told = {(m.key, m.step): m.value for m in messages if isinstance(m, Event)}
    assert told["topk.error", 40] == rows["topk", 40]["overall"]["error"]["mean"]
    assert all(m.done <= m.total for m in messages if isinstance(m, Progress))
    assert not list((Path(context.output.url) / "study-shard").iterdir())


def test_interrupted_study_resumes_and_ends_the_same(
    make_context: MakeContext, data: Artifact, models: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ("study.samples=[2]", "study.seeds=1", "study.users=30", "cluster.actors=1")
    whole = made_by(make_context("whole", *settings), data, models["first"])
    context = make_context("out", *settings, emit=Interrupt(results=4))
    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        killed.setattr("raymerge.stages.study._remove", lambda shards: None)  # as if before each result's shards were
        made_by(context, data, models["first"])
    assert list((Path(context.output.url) / "study-shard").iterdir())
    results = Path(context.output.url) / "study-result"
    before = {file.parent.name: file.stat().st_mtime_ns for file in results.glob("*/manifest.json")}
    assert before
    study = made_by(make_context("out", *settings), data, models["first"])
    after = {file.parent.name: file.stat().st_mtime_ns for file in results.glob("*/manifest.json")}
    assert before.items() < after.items()
    assert without_times(study) == without_times(whole)
    assert not list((Path(context.output.url) / "study-shard").iterdir())


class Interrupt:
    """Stops once some results and one shard of the next are committed."""

    def __init__(self, results: int) -> None:
        self._left = 3 * results + 1

    def __call__(self, message: Event | Progress) -> None:
        if isinstance(message, Progress) and not message.run.endswith("exact") and message.done:
            self._left -= 1
            if not self._left:
                raise KeyboardInterrupt


def without_times(study: Study) -> list[dict]:
    return [{key: value for key, value in row.items() if key != "seconds_per_user"} for row in study["rows"]]
