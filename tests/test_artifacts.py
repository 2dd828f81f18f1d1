"""Artifacts are committed whole or not at all, found by digest, and refused when altered."""

import errno
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from raymerge import artifacts
from raymerge.artifacts import Key, Output, load_model, open_artifact, save_model, save_tensors
from raymerge.errors import ArtifactError, InputError, ResourceError
from raymerge.models.encoder import EncoderConfig, SequenceEncoder

KEY = Key("prepare", {"log": "abc"}, {"k": 5})


@pytest.fixture
def output(tmp_path: Path) -> Output:
    return Output(str(tmp_path / "out")).open()


def commit(output: Output, text: str = "content") -> artifacts.Artifact:
    with output.draft(KEY) as draft:
        (draft.folder / "file.txt").write_text(text)
        draft.counts["users"] = 3
    found = output.find(KEY)
    assert found is not None
    return found


def test_a_number_that_is_not_finite_is_refused_before_the_artifact_is_committed(output: Output) -> None:
    refused = pytest.raises(ArtifactError, match="report.json would contain a number that is not finite")
    with refused, output.draft(KEY) as draft:
        draft.write_json("report.json", {"rows": [{"difference": float("nan")}]})
    assert output.find(KEY) is None


def test_committed_artifact_is_found_again_with_its_counts(output: Output) -> None:
    artifact = commit(output)
    assert artifact.counts == {"users": 3}
    assert artifact.manifest["inputs"] == KEY.inputs
    assert Path(artifact.file("file.txt")).read_text() == "content"
    assert not list((Path(output.url) / ".staging").iterdir())


def test_other_configuration_is_another_artifact(output: Output) -> None:
    commit(output)
    assert output.find(replace(KEY, configuration={"k": 6})) is None


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("stop")])
def test_interrupted_stage_leaves_nothing(output: Output, error: BaseException) -> None:
    with pytest.raises(type(error)), output.draft(KEY) as draft:
        (draft.folder / "file.txt").write_text("half")
        raise error
    assert output.find(KEY) is None
    assert not list((Path(output.url) / ".staging").iterdir())


def test_full_disk_is_one_clear_line_and_keeps_old_results(output: Output) -> None:
    artifact, other = commit(output), replace(KEY, stage="train")
    with pytest.raises(ResourceError, match="no space left"), output.draft(other):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert output.find(other) is None
    assert artifact.verify()


def test_no_room_for_an_artifact_of_a_remote_output_names_the_folder_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    remote = Output(f"memory://{tmp_path.name}")
    with pytest.raises(ResourceError, match=f"no space left for {tmp_path} "), remote.draft(KEY):
        refuse()
    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    with pytest.raises(ResourceError, match=f"no space left for {tmp_path} "), remote.draft(KEY):
        pass


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_altered_file_is_refused(output: Output, damage: str) -> None:
    file = Path(commit(output).file("file.txt"))
    if damage == "remove":
        file.unlink()
    else:
        file.write_text("conten" if damage == "truncate" else "cOntent")
    with pytest.raises(ArtifactError, match=r"file\.txt"):
        output.find(KEY)


def test_second_commit_of_the_same_leaves_the_first(output: Output) -> None:
    commit(output, "first")
    assert Path(commit(output, "second").file("file.txt")).read_text() == "first"


def test_folder_with_a_partly_written_marker_can_be_used(tmp_path: Path) -> None:
    (tmp_path / "raymerge.json.0123.part").write_text("{")
    Output(str(tmp_path)).open()
    assert (tmp_path / "raymerge.json").exists()


def test_foreign_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.doc").write_text("mine")
    with pytest.raises(InputError, match="not a raymerge output"):
        Output(str(tmp_path)).open()
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.doc"]


MAKES = """
import sys, time
from raymerge.artifacts import Key, Output
with Output(sys.argv[1]).draft(Key("prepare", {})):
    print(flush=True)
    time.sleep(100)
"""


@pytest.mark.parametrize("store", ["", "memory://"])
def test_staging_of_a_killed_process_is_cleared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: str) -> None:
    url, temporary = f"{store}{tmp_path}/out", tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    environment = os.environ | {"TMPDIR": str(temporary)}
    command = [sys.executable, "-c", MAKES, url]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"\n"
        [made] = temporary.iterdir() if store else Path(url, ".staging").iterdir()
        Output(url).open()
        assert made.exists(), "the process is still running"
        other.kill()
    Output(url).open()
    assert not made.exists()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "items.parquet").write_bytes(b"any")
    module = SequenceEncoder(7, EncoderConfig(max_length=4, dim=8, heads=2, feed_forward=8))
    save_model(module, tmp_path / "model", items_url=str(tmp_path / "items.parquet"))
    return tmp_path / "model"


def test_model_is_saved_and_loaded_unchanged(model: Path) -> None:
    histories = torch.tensor([[0, 3, 7]])
    first, second = load_model(str(model)), load_model(str(model))
    assert not first.training
    assert torch.equal(first(histories), second(histories))
    assert first(histories).shape == (1, 7)


def test_a_setting_missing_in_a_model_has_its_default(model: Path) -> None:
    settings = json.loads((model / "config.json").read_text())
    del settings["repeat_direction"]
    (model / "config.json").write_text(json.dumps(settings))
    assert load_model(str(model)).repeat_direction is None


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("model.safetensors", b"\x00"),
        ("config.json", b"{"),
        ("config.json", b'{"num_items": 7, "layers": 2}'),
        ("config.json", b'{"num_items": 7, "dim": "wide"}'),
    ],
)
def test_damaged_model_is_refused(model: Path, file: str, content: bytes) -> None:
    (model / file).write_bytes(content)
    with pytest.raises(ArtifactError):
        load_model(str(model))


def test_missing_model_names_the_place(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="nowhere"):
        load_model(str(tmp_path / "nowhere"))


def test_model_whose_tensors_do_not_fit_is_refused(model: Path) -> None:
    settings = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**settings, "num_items": 8}))
    with pytest.raises(ArtifactError, match="cannot be read"):
        load_model(str(model))


def test_open_artifact_refuses_another_stage(output: Output) -> None:
    with pytest.raises(ArtifactError, match="stage 'prepare', not 'fisher'"):
        open_artifact(commit(output).url, "fisher")


def test_same_tensors_give_the_same_bytes(tmp_path: Path) -> None:
    a, b = torch.arange(3.0), torch.ones(2, 2)
    save_tensors({"a": a, "b": b}, tmp_path / "one")
    save_tensors({"b": b.t(), "a": a}, tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
