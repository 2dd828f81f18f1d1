"""Files by URL."""

import gzip
import http.server
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from fsspec.implementations.http import HTTPFileSystem

from raymerge.data.interactions import LogConfig, open_log
from raymerge.errors import InputError, LostError, UserError
from raymerge.files import storage
from raymerge.files.filesystem import Store, refuse_secrets


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


def test_objects_that_stand_for_empty_folders_are_no_files(bucket: str) -> None:
    storage.write_bytes(f"{bucket}/logs/sub/a.csv", b"x")
    store = Store(bucket)
    for folder in ("logs", "logs/sub", "new"):
        name, _, key = f"{store.path}/{folder}/".partition("/")
        store._filesystem.call_s3("put_object", Bucket=name, Key=key, Body=b"")
    assert storage.list_files(f"{bucket}/logs") == [f"{bucket}/logs/sub/a.csv"]
    assert storage.list_folder(f"{bucket}/logs") == ["sub"]
    assert storage.list_folder(f"{bucket}/new") == []


@pytest.mark.parametrize("root", ["local", "s3"], indirect=True)  # fsspec's memory takes all names for patterns
@pytest.mark.parametrize("name", ["run[1]", "run?", "run*"])
def test_names_are_no_patterns_where_there_is_such_a_folder(root: str, name: str) -> None:
    folder, other = storage.join(root, name), storage.join(root, "run1")
    for place in (folder, other):
        storage.write_bytes(storage.join(place, "sub/x.csv"), b"x")
    [found] = storage.list_files(folder)
    assert found.endswith(f"{root.rpartition('/')[2]}/{name}/sub/x.csv")
    storage.remove_folder(folder)
    assert not storage.exists(folder)
    assert storage.exists(storage.join(other, "sub/x.csv"))


def test_colons_in_a_local_name_are_no_chain_of_stores(tmp_path: Path) -> None:
    storage.write_bytes(f"{tmp_path}/a::b/x.json", b"x")
    assert (tmp_path / "a::b" / "x.json").read_bytes() == b"x"
    assert storage.list_folder(f"{tmp_path}/a::b") == ["x.json"]


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


@pytest.mark.parametrize("url", ["s3://KEY:sec/ret@bucket/x", "s3://me:sec[ret@bucket/x", "http://me:secret@host/x"])
def test_a_password_in_a_url_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(InputError) as caught:
        storage.list_files(url)
    assert "sec" not in str(caught.value)


@pytest.mark.parametrize("url", ["hdfs://node:8020/user/me@corp/log.csv", "http://host:80/a@b", "abfs://c@account/x"])
def test_what_is_no_password_is_left_alone(url: str) -> None:
    refuse_secrets(url)


def test_credentials_do_not_show() -> None:
    with pytest.raises(InputError) as caught:
        storage.list_files("nosuchscheme://me:secret@host/path")
    assert "secret" not in str(caught.value)


class Web(http.server.BaseHTTPRequestHandler):
    """Serves two compressed rows at a signed URL; can be told to fail, or to be slow."""

    failures = 0
    pause_s = 0.0  # before each fifth of a file

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        body = gzip.compress(b"user,item,timestamp\n1,2,3\n4,5,6\n")
        status = {"/log.csv.gz?sig=x": 200, "/log.csv?sig=old": 403}.get(self.path, 404)
        if type(self).failures:
            type(self).failures -= 1
            status = 503
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if status == 200 else 0))
        self.end_headers()
        if status == 200 and self.command == "GET":
            for start in range(0, len(body), length := len(body) // 5 + 1):
                time.sleep(self.pause_s)
                self.wfile.write(body[start : start + length])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def web() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Web) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_log_at_a_signed_address_is_read_through_an_outage(web: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"{web}/log.csv.gz?sig=x"
    monkeypatch.setattr(Web, "failures", 4)
    assert storage.list_files(url) == [url]
    monkeypatch.setattr(Web, "failures", 2)
    for _ in range(2):
        with open_log(url, LogConfig()) as log:
            assert sum(len(batch) for batch in log.batches) == 2


def test_a_download_may_take_long_but_not_be_silent_for_long(web: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"{web}/log.csv.gz?sig=x"
    monkeypatch.setattr("raymerge.files.filesystem.SILENCE_S", 1.0)
    monkeypatch.setattr("raymerge.files.retries.MAX_ATTEMPTS", 1)
    HTTPFileSystem.clear_instance_cache()
    try:
        monkeypatch.setattr(Web, "pause_s", 0.4)
        assert len(gzip.decompress(storage.read_bytes(url)).splitlines()) == 3
        monkeypatch.setattr(Web, "pause_s", 3.0)
        with pytest.raises(LostError, match="log.csv.gz did not answer"):
            storage.read_bytes(url)
    finally:
        HTTPFileSystem.clear_instance_cache()


@pytest.mark.parametrize("path", ["none.csv?sig=secret", "logs/*.csv"])
def test_file_missing_on_a_web_server_is_one_clear_line(web: str, path: str) -> None:
    with pytest.raises(InputError, match="no such file") as error:
        storage.list_files(f"{web}/{path}")
    assert "secret" not in str(error.value)


def test_file_forbidden_by_a_web_server_is_not_called_missing(web: str) -> None:
    with pytest.raises(UserError, match="log.csv cannot be used: 403") as error:
        storage.list_files(f"{web}/log.csv?sig=old")
    assert "old" not in str(error.value)


def test_write_to_a_web_server_is_one_clear_line(web: str) -> None:
    with pytest.raises(UserError, match="cannot be used") as error:
        storage.write_bytes(f"{web}/out?sig=secret", b"x")
    assert "secret" not in str(error.value)


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


NO_ROOM = """
import resource, sys
from raymerge.errors import ResourceError
from raymerge.files import storage
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    storage.write_bytes("memory://shop/x", b"x" * 5000)
except ResourceError as error:
    print(error)
print(storage.exists("memory://shop/x"))
"""


def test_no_room_for_the_copy_here_of_a_file_for_a_store_names_the_place_and_stores_nothing(tmp_path: Path) -> None:
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", NO_ROOM], env=environment, capture_output=True, text=True)
    line, stored = done.stdout.splitlines()
    assert line.startswith(f"no space left for {tmp_path} (File too large)")
    assert stored == "False"


def test_a_claimed_folder_is_refused_to_others_until_its_process_ends(tmp_path: Path) -> None:
    folder = str(tmp_path / "checkpoints")
    holds = f"from raymerge.files import storage as s\nwith s.claimed({folder!r}):\n print('held', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", holds], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        with pytest.raises(LostError, match=f"another command is working in {folder}"), storage.claimed(folder):
            pass
        other.kill()
    with storage.claimed(folder), pytest.raises(LostError), storage.claimed(folder):
        pass
    with storage.claimed(folder):
        pass


def test_stores_have_no_claims(bucket: str) -> None:
    with storage.claimed(f"{bucket}/a"), storage.claimed(f"{bucket}/a"):
        pass
