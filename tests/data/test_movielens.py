import hashlib
import io
import stat
import zipfile
from dataclasses import replace
from http.client import IncompleteRead
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest

from raymerge.data.movielens import ML_1M, Archive, fetch, unpack
from raymerge.data.prepare import PrepareConfig, prepare
from raymerge.errors import InputError

RATINGS = "".join(f"{user}::{item}::5::{item}\n" for user in range(1, 8) for item in range(1, 9))


class Response(io.BytesIO):
    def __init__(self, content: bytes, url: str) -> None:
        super().__init__(content)
        self.geturl = lambda: url


class Site:
    """Answers each request with the same bytes or error, and counts the requests."""

    def __init__(self, content: bytes = b"", *, moved_to: str | None = None, error: Exception | None = None) -> None:
        self.content, self.moved_to, self.error, self.requests = (content, moved_to, error, 0)

    def __call__(self, url: str) -> Response:
        self.requests += 1
        if self.error:
            raise self.error
        return Response(self.content, self.moved_to or url)


def packed(*members: tuple[str | zipfile.ZipInfo, str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return buffer.getvalue()


def expected(content: bytes, **options: Any) -> Archive:
    return replace(ML_1M, sha256=hashlib.sha256(content).hexdigest(), **options)


GOOD = packed(("ml-1m/", ""), ("ml-1m/README", "read me"), ("ml-1m/ratings.dat", RATINGS))


def test_the_log_is_fetched_once_and_can_be_prepared(tmp_path: Path) -> None:
    site = Site(GOOD)
    for _ in range(2):
        log = fetch(tmp_path / "raw", expected(GOOD), opener=site)
    assert site.requests == 1
    assert log.read_text() == RATINGS
    assert {path.name for path in (tmp_path / "raw").iterdir()} == {"ml-1m", "ml-1m.zip"}
    counts = prepare([str(log)], PrepareConfig(), tmp_path / "out")
    assert (counts["users"], counts["items"], counts["interactions"]) == (7, 8, 56)


def test_a_damaged_copy_is_fetched_again(tmp_path: Path) -> None:
    (tmp_path / "ml-1m.zip").write_bytes(GOOD[:-9])
    site = Site(GOOD)
    assert fetch(tmp_path, expected(GOOD), opener=site).read_text() == RATINGS
    assert site.requests == 1


def refused(folder: Path, archive: Archive, site: Site, match: str) -> None:
    with pytest.raises(InputError, match=match) as caught:
        fetch(folder, archive, opener=site)
    assert "\n" not in str(caught.value)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("error", [URLError("name not known"), TimeoutError("timed out"), IncompleteRead(b"")])
def test_without_network_the_error_names_the_alternatives(tmp_path: Path, error: Exception) -> None:
    refused(
        tmp_path, ML_1M, Site(error=error), "cannot fetch https://files.grouplens.org.*--input, or try the recipe demo"
    )


def test_a_wrong_digest_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, ML_1M, Site(GOOD), "has sha256 .*, not a6898adb")


def test_insecure_addresses_are_refused(tmp_path: Path) -> None:
    refused(tmp_path, replace(ML_1M, url="http://example.org/x.zip"), Site(GOOD), "only https")
    refused(tmp_path, expected(GOOD), Site(GOOD, moved_to="http://example.org/ml-1m.zip"), "only https")


def test_too_many_bytes_are_refused(tmp_path: Path) -> None:
    refused(tmp_path, expected(GOOD, max_bytes=len(GOOD) - 1), Site(GOOD), "is larger than")


def link(name: str, target: str) -> tuple[zipfile.ZipInfo, str]:
    member = zipfile.ZipInfo(name)
    member.create_system = 3
    member.external_attr = (stat.S_IFLNK | 0o777) << 16
    return member, target


UNSAFE = {
    "upwards": ("../evil", "x"),
    "upwards within": ("ml-1m/../../evil", "x"),
    "absolute": ("/tmp/evil", "x"),
    "windows": ("..\\evil", "x"),
    "drive": ("c:evil", "x"),
    "symbolic link": link("ml-1m/link", "/etc/passwd"),
}


@pytest.mark.parametrize("member", UNSAFE.values(), ids=UNSAFE)
def test_members_that_leave_the_folder_are_refused_and_nothing_is_unpacked(
    tmp_path: Path, member: tuple[str | zipfile.ZipInfo, str]
) -> None:
    content = packed(("ml-1m/ratings.dat", RATINGS), member)
    with pytest.raises(InputError, match="unsafe member"):
        fetch(tmp_path / "raw", expected(content), opener=Site(content))
    assert [path.name for path in tmp_path.rglob("*")] == ["raw", "ml-1m.zip"]


def test_archives_that_unpack_to_too_much_or_lack_the_log_are_refused(tmp_path: Path) -> None:
    bomb = packed(("ml-1m/ratings.dat", "0" * 10_000_000))
    with pytest.raises(InputError, match="unpacks to 10000000 bytes, more than the 1000000 expected"):
        fetch(tmp_path, expected(bomb, max_unpacked_bytes=1_000_000), opener=Site(bomb))
    other = packed(("README", "read me"))
    with pytest.raises(InputError, match="holds no ml-1m/ratings.dat"):
        fetch(tmp_path, expected(other), opener=Site(other))


def test_a_file_that_is_not_a_zip_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(b"not a zip")
    with pytest.raises(InputError, match="is not a whole zip archive"):
        unpack(tmp_path / "x.zip", tmp_path, max_bytes=100)


def test_the_archive_is_the_one_that_grouplens_publishes() -> None:
    assert ML_1M.url == "https://files.grouplens.org/datasets/movielens/ml-1m.zip"
    assert len(ML_1M.sha256) == 64
