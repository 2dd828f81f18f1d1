"""Files by URL."""

import uuid
from pathlib import Path

import pytest

from raymerge import storage
from raymerge.errors import InputError


@pytest.fixture(params=["local", "memory", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        return f"{request.getfixturevalue('bucket')}/root"
    return str(tmp_path) if request.param == "local" else f"memory://{uuid.uuid4().hex}"


def test_file_folder_and_glob_give_files_sorted(root: str) -> None:
    for name in ("log/b.csv", "log/a.csv", "log/_SUCCESS", "log/c.txt"):
        storage.write_bytes(storage.join(root, name), b"x")
    names = lambda url: [found.rpartition("/")[2] for found in storage.list_files(url)]  # noqa: E731
    assert names(storage.join(root, "log/a.csv")) == ["a.csv"]
    assert names(storage.join(root, "log")) == ["a.csv", "b.csv", "c.txt"]
    assert names(storage.join(root, "log/*.csv")) == ["a.csv", "b.csv"]


@pytest.mark.parametrize("name", ["none.csv", "*.none", "no/folder"])
def test_missing_file_is_one_clear_line(root: str, name: str) -> None:
    with pytest.raises(InputError, match="no such file"):
        storage.list_files(storage.join(root, name))


def test_commit_moves_all_files_and_keeps_what_is_there(root: str, tmp_path: Path) -> None:
    target = storage.join(root, "prepare", "abc")
    for content in ("one", "two"):
        staging = tmp_path / f"staging-{content}"
        (staging / "sub").mkdir(parents=True)
        (staging / "manifest.json").write_text("{}")
        (staging / "sub" / "data").write_text("same")
        storage.commit_folder(staging, target)
    assert storage.list_folder(target) == ["manifest.json", "sub"]
    copy = storage.fetch_folder(target, tmp_path / "copy")
    assert (copy / "sub" / "data").read_text() == "same"


def test_credentials_do_not_show() -> None:
    with pytest.raises(InputError) as caught:
        storage.list_files("nosuchscheme://me:secret@host/path")
    assert "secret" not in str(caught.value)
