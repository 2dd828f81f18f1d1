"""Files by URL."""

import threading
import uuid
from pathlib import Path

import pytest

from raymerge import storage
from raymerge.errors import InputError, UserError


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


def test_a_store_is_the_same_in_every_thread(root: str) -> None:
    """Ray Train keeps a checkpoint only where its own file system and that of the worker's thread are equal."""
    found = []
    thread = threading.Thread(target=lambda: found.append(storage.arrow_filesystem(f"{root}/elsewhere")[0]))
    thread.start()
    thread.join()
    here, _ = storage.arrow_filesystem(root)
    assert found == [here]
    assert storage.arrow_filesystem("memory://" if not root.startswith("memory") else "/tmp")[0] != here


def test_files_are_put_to_the_same_places(root: str, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    storage.put_files(tmp_path, root, [tmp_path / "one" / "a", tmp_path / "b"])
    assert storage.read_bytes(f"{root}/one/a") == b"a"
    assert storage.read_bytes(f"{root}/b") == b"b"


def test_a_file_that_cannot_be_put_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    with pytest.raises(UserError, match="cannot write to .*: Is a directory"):
        storage.write_bytes(str(tmp_path), b"")
    with pytest.raises(UserError, match="cannot write to .*: Not a directory"):
        storage.put_files(tmp_path, str(tmp_path / "a" / "below"), [tmp_path / "a"])
