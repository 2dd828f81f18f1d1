"""Reports of several runs as one table, compared with means over all users and runs computed by hand."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from stages.contexts import MakeContext

from raymerge.artifacts import Artifact, Key
from raymerge.commands.results import run_report
from raymerge.data.sequences import read_partition
from raymerge.errors import InputError
from raymerge.evaluation.distributed import Ranks
from raymerge.evaluation.metrics import ndcg
from raymerge.evaluation.validation import SCORE
from raymerge.stages.context import Context, TrackedDraft
from raymerge.stages.evaluate import Entry
from raymerge.stages.inputs import partitions_of
from raymerge.stages.prepare import prepare
from raymerge.stages.report import report

KINDS = {"one": "member", "two": "member", "average": "average", "fisher": "merged"}
SCORES = {"a": {"one": 0.1, "two": 0.2}, "b": {"one": 0.4, "two": 0.3}, "c": {}}  # the best member differs
MERGE = {
    "method": "fisher",
    "normalise": "none",
    "epsilon": 1e-6,
    "power": 1.0,
    "step": 1.0,
    "coefficients": [0.5, 0.5],
}


def made(context: Context, stage: str, run: str, counts: dict, ranks: dict[str, Ranks] | None = None) -> Artifact:
    def fill(draft: TrackedDraft) -> None:
        draft.counts.update({SCORE: 0.1, "seconds": 1.0, **counts})
        for file, found in (ranks or {}).items():
            pq.write_table(found.table(), draft.folder / file)

    return context.make(run, Key(stage, {"run": run, "output": context.output.url}), fill)


def run_of(context: Context, log: Path, name: str) -> dict[str, torch.Tensor]:
    """A run whose models rank at random; its ranks by model, over all users in order."""
    data = prepare(context, [str(log)])
    generator = torch.Generator().manual_seed(ord(name))
    entries, everything = [], {}
    for model, kind in KINDS.items():
        ranks = {}
        for partition in partitions_of(data):
            users = read_partition(partition)
            drawn = torch.randint(1, 30, (len(users.keys),), generator=generator)
            found = dict.fromkeys(context.config.evaluation.rankings, drawn)
            ranks[partition.rpartition("/")[2]] = Ranks(users.users, users.keys, found)
        counts = MERGE if kind == "merged" else {SCORE: SCORES[name].get(model, 0.0)}
        trained = made(context, "train", model, counts)
        entries.append(Entry(model, kind, trained, made(context, "evaluate", model, {}, ranks)))
        everything[model] = torch.cat([part.ranks["full"] for part in ranks.values()])
    report(context, data, entries, merge=entries[-1].model, diagonals={})
    return everything


def test_means_and_spread_are_over_runs_and_each_run_has_its_own_best_member(
    make_context: MakeContext, log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ranks = {name: run_of(make_context(name), log, name) for name in "ab"}
    run_report([str(tmp_path / name) for name in "ab"], None, str(tmp_path / "pooled.json"))
    assert "mean of 2 runs" in capsys.readouterr().out
    pooled = json.loads((tmp_path / "pooled.json").read_text())
    rows = {row["name"]: row for row in pooled["rows"]}
    means = {(run, name): float(ndcg(r, 10).mean()) for run, found in ranks.items() for name, r in found.items()}
    pairs = {name: (means["a", name], means["b", name]) for name in KINDS}
    pairs["best member"] = means["a", "two"], means["b", "one"]
    pairs["mean of the members"] = tuple((means[run, "one"] + means[run, "two"]) / 2 for run in "ab")
    assert list(rows) == ["one", "two", "mean of the members", "average", "fisher", "best member"]
    for name, (a, b) in pairs.items():
        assert rows[name]["metrics"]["full"]["ndcg@10"]["mean"] == pytest.approx((a + b) / 2)
        assert rows[name]["spread"]["full"]["ndcg@10"] == pytest.approx(abs(a - b) / 2**0.5)
    [against] = [one for one in pooled["comparisons"] if one["reference"] == "best member"]
    expected = sum(pairs["fisher"]) / 2 - sum(pairs["best member"]) / 2
    assert against["difference"] == pytest.approx(expected)
    assert against["low"] < expected < against["high"]


def test_runs_that_do_not_belong_together_are_refused(make_context: MakeContext, log: Path, tmp_path: Path) -> None:
    settings = {"a": (), "b": ("evaluation.filter_seen=false",), "c": ("fine_tuning.epochs=1",)}
    for name, changes in settings.items():
        run_of(make_context(name, *changes), log, name)
    a, b, c = (str(tmp_path / name) for name in settings)
    with pytest.raises(InputError, match=r"differ in evaluation\.filter_seen: True and False"):
        run_report([a, b], None, None)
    with pytest.raises(InputError, match=r"differ in fine_tuning\.epochs: 3 and 1; .* only in their seed"):
        run_report([a, c], None, None)
    with pytest.raises(InputError, match="name each run once"):
        run_report([a, a], None, None)
    with pytest.raises(InputError, match="--html shows one run"):
        run_report([a, b], str(tmp_path / "page.html"), None)
