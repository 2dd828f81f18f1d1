"""Temporary failures of stores cost time only; permanent ones give one line and leave nothing half done."""

import json
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import s3fs
from object_store import Faults

from raymerge.artifacts import Artifact, Key, Output, load_model, open_artifact
from raymerge.errors import ArtifactError, InputError, LostError, ResourceError
from raymerge.files import retries, storage
from raymerge.files.blocks import TensorFile
from raymerge.tracking import record

KEY = Key("prepare", {"log": "abc"}, {"k": 5})
CONTENT = {f"part-{number}": bytes(range(256)) * (number + 1) for number in range(3)}


@pytest.fixture
def output(bucket: str, faults: Faults) -> Output:
    return Output(f"{bucket}/out").open()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up after a few attempts, not after a minute."""
    monkeypatch.setattr(retries, "RETRY_LIMIT_S", 0.3)


def commit(output: Output, stage: str = "prepare") -> Artifact:
    key = replace(KEY, stage=stage)
    with output.draft(key) as draft:
        for name, content in CONTENT.items():
            (draft.folder / name).write_bytes(content)
    found = output.find(key)
    assert found is not None
    return found


def contents(artifact: Artifact) -> dict[str, bytes]:
    return {name: storage.read_bytes(artifact.file(name)) for name in CONTENT}


@pytest.mark.parametrize("kind", ["500", "503", "reset", "cut-download", "cut-upload"])
def test_temporary_faults_are_survived(output: Output, faults: Faults, kind: str) -> None:
    method = {"cut-download": "GET", "cut-upload": "PUT"}.get(kind, "")
    faults.plan(*[kind] * 5, concerns=lambda request: request[0].startswith(method))
    assert contents(commit(output)) == CONTENT
    assert faults.done == [kind] * 5


@pytest.mark.parametrize("seed", [1, 2])
def test_store_that_fails_one_request_in_eight_gives_the_same(output: Output, faults: Faults, seed: int) -> None:
    faults.scatter(1 / 8, seed)
    for stage in ("prepare", "train", "fisher"):
        assert contents(commit(output, stage)) == CONTENT
    assert len(storage.list_files(output.url)) == 3 * (len(CONTENT) + 1) + 1
    assert len(storage.list_files(f"{output.url}/*/*/part-*")) == 3 * len(CONTENT)
    storage.remove_folder(f"{output.url}/train")
    assert output.find(replace(KEY, stage="train")) is None
    assert len(set(faults.done)) >= 2


def test_upload_that_never_ends_commits_nothing(output: Output, faults: Faults, impatient: None) -> None:
    faults.plan(*["cut-upload"] * 99, concerns=lambda request: request[0] == "PUT" and "part-1" in request[1])
    with pytest.raises(LostError, match=r"s3://.* did not answer"):
        commit(output)
    assert output.find(KEY) is None
    assert storage.LAST_FILE not in {name.rpartition("/")[2] for name in storage.list_files(output.url)}
    faults.clear()
    assert contents(commit(output)) == CONTENT


@pytest.mark.parametrize("kind", ["500", "reset"])
def test_store_that_is_down_is_not_mistaken_for_an_empty_one(
    output: Output, faults: Faults, impatient: None, kind: str
) -> None:
    artifact = commit(output)
    faults.plan(*[kind] * 999)
    read_record = partial(record.read, output.url)
    listing = (storage.exists, storage.list_files, storage.list_folder)
    for call in (*listing, storage.read_bytes, open_artifact, TensorFile, read_record):
        with pytest.raises(LostError, match="did not answer"):
            call(artifact.url)
    with pytest.raises(LostError, match="did not answer"):
        storage.list_files(f"{artifact.url}/*")


@pytest.mark.chaos
def test_request_to_a_store_that_does_not_answer_is_retried(output: Output, faults: Faults) -> None:
    faults.plan("stall", concerns=lambda request: request[0] == "PUT")
    began = time.monotonic()
    assert contents(commit(output)) == CONTENT
    assert 10 < time.monotonic() - began < 40


def test_forbidden_place_is_one_line(output: Output, faults: Faults) -> None:
    faults.plan("403", concerns=lambda request: request[0] == "PUT")
    with pytest.raises(ResourceError, match=r"no permission for s3://.*Access Denied"):
        commit(output)
    assert faults.done == ["403"]


def test_missing_bucket_is_one_line(object_store: Faults) -> None:
    with pytest.raises(InputError, match="cannot write to s3://no-such-bucket/out/raymerge.json: .*does not exist"):
        Output("s3://no-such-bucket/out").open()
    with pytest.raises(InputError, match="no such file"):
        storage.list_files("s3://no-such-bucket/log.csv")


def test_missing_credentials_are_one_line_and_nothing_is_called_missing(
    output: Output, bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    artifact = commit(output)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("HOME", str(tmp_path))
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        with pytest.raises(InputError, match="no credentials for s3://.*AWS_ACCESS_KEY_ID"):
            Output(f"{bucket}/out").open()
        for look in (lambda: open_artifact(artifact.url), artifact.verify, lambda: load_model(artifact.url)):
            with pytest.raises(InputError, match="no credentials for s3://"):
                look()
    finally:
        s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_damaged_object_is_refused_with_its_name_and_digest(output: Output, damage: str) -> None:
    artifact = commit(output)
    url, content = artifact.file("part-1"), CONTENT["part-1"]
    if damage == "remove":
        storage.remove_folder(url)
    else:
        storage.write_bytes(url, content[:-1] if damage == "truncate" else content[:-1] + b"\0")
    digest = artifact.manifest["files"]["part-1"][:12]
    expected = "missing" if damage == "remove" else f"sha256 .*manifest says {digest}"
    with pytest.raises(ArtifactError, match=f"{url} .*{expected}"):
        output.find(KEY)


def test_folder_without_a_manifest_is_made_again(output: Output) -> None:
    artifact = commit(output)
    storage.remove_folder(artifact.file(storage.LAST_FILE))
    storage.write_bytes(artifact.file("part-1"), b"something else")
    assert contents(commit(output)) == CONTENT


def test_file_of_a_store_can_be_read_in_any_order(bucket: str, faults: Faults) -> None:
    content = bytes(range(256)) * 40_000
    storage.write_bytes(f"{bucket}/big", content)
    faults.plan("cut-download", "reset")
    with storage.open_file(f"{bucket}/big") as file:
        assert file.seek(-5, 2) == len(content) - 5
        assert (file.read(), file.read(1)) == (content[-5:], b"")
        assert file.seek(300) == 300
        assert file.read() == content[300:]


def test_retries_are_logged_without_secrets_of_urls(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    fails = iter([ConnectionError("https://me:secret@host/x?token=secret"), None])

    def call() -> str:
        if error := next(fails):
            raise error
        return json.dumps("done")

    assert retries.retried(call) == '"done"'
    assert "https://host/x" in caplog.text
    assert "secret" not in caplog.text
