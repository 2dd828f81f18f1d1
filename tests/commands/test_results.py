"""`raymerge recommend`: the next items in the ids of the log."""

import json
import os
from pathlib import Path

import pytest
from command_cases import diagonal_artifact, mistake, model_artifact
from tracking.examples import example_report

from raymerge.cli import cli
from raymerge.tracking.record import Record

pytestmark = pytest.mark.usefixtures("ray_is_never_started")


def test_recommend_names_an_unknown_item(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    line = mistake(
        capsys, "recommend", "--model", model_artifact(tmp_path / "a"), "--history", "film 1,film 9", "--top", 2
    )
    assert "no item 'film 9'; items are named as in the log, such as 'film 0'" in line


def test_recommend_refuses_what_is_no_model(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    of = model_artifact(tmp_path / "a")
    line = mistake(capsys, "recommend", "--model", diagonal_artifact(tmp_path, of, 1.0), "--history", "film 1")
    assert "is an artifact of stage 'fisher', not 'train' or 'merge'" in line
    assert "--history is empty" in mistake(capsys, "recommend", "--model", of, "--history", " ")


def test_recommend_gives_own_ids_and_leaves_out_the_history(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    cli(
        ["recommend", "--model", str(model_artifact(tmp_path / "a")), "--history", "film 1", "--top", "2"],
        standalone_mode=False,
    )
    text = capsys.readouterr().out
    assert "film 0" in text
    assert "film 2" in text
    assert "film 1" not in text


def test_recommend_shows_ids_as_they_are(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    strange = model_artifact(tmp_path / "a", ids=["[new] shirt", "sku[/1]", "a[b]"])
    cli(["recommend", "--model", str(strange), "--history", "a[b]", "--top", "2"], standalone_mode=False)
    text = capsys.readouterr().out
    assert "[new] shirt" in text
    assert "sku[/1]" in text


def test_recommend_takes_ids_with_commas_as_csv_has_them(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    strange = model_artifact(tmp_path / "a", ids=["one, two", 'the "third"', "fourth"])
    history = '"one, two", "the ""third"""'
    cli(["recommend", "--model", str(strange), "--history", history, "--top", "1"], standalone_mode=False)
    assert "fourth" in capsys.readouterr().out


def test_recommend_takes_the_model_that_the_last_run_chose(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    output, chosen = tmp_path / "out", model_artifact(tmp_path / "out")
    for run, final in (("0123", f"train/{chosen.name}"), ("4567", "train/none")):
        (output / "report" / run).mkdir(parents=True)
        content = example_report()
        content["final"], content["artifacts"]["models"] = "fine-tuned", {"fisher": "train/none", "fine-tuned": final}
        (output / "report" / run / "report.json").write_text(json.dumps(content))
        (output / "report" / run / "manifest.json").touch()
    facts = {"configuration": {}, "dataset": {}}
    for run in ("0123", "4567", "0123"):  # the first run was repeated: it found its report
        for file in output.glob("runs/*.json"):
            os.utime(file, (file.stat().st_mtime - 10,) * 2)
        Record(str(output), "run demo", f"of-{run}", **facts).open().note("report", f"{output}/report/{run}")
    Record(str(output), "evaluate demo", "other", **facts).open().note("evaluate/x", f"{output}/evaluate/89")
    Record(str(output), "run demo", "under-way", **facts).open().note("report", f"{output}/report/not-there-yet")
    (output / "runs" / ".DS_Store").touch()
    cli(["recommend", "--model", str(output), "--history", "film 1", "--top", "2"], standalone_mode=False)
    assert "film 0" in capsys.readouterr().out
    (output / "report" / "0123" / "report.json").write_text("{")
    line = mistake(capsys, "recommend", "--model", output, "--history", "film 1")
    assert "is not a report: it was cut off" in line


def test_altered_model_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = model_artifact(tmp_path / "a")
    file = folder / "model" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    line = mistake(capsys, "recommend", "--model", folder, "--history", "film 1")
    assert "was altered or truncated" in line
