"""MovieLens-1M from GroupLens: fetched by https, checked by digest, unpacked without leaving the folder.

Harper and Konstan, "The MovieLens Datasets: History and Context", ACM TiiS 2015. It may not be passed on, so each user
fetches it.
"""

import hashlib
import shutil
import stat
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import IO, Any

from raymerge.errors import InputError

CHUNK_BYTES = 1 << 20
TIMEOUT_S = 30.0

Opener = Callable[[str], AbstractContextManager[Any]]
"""Gives the response to a URL: a binary stream with `geturl()`, the address after redirections."""


@dataclass(frozen=True)
class Archive:
    """A zip archive on the web: its digest, bounds on its size packed and unpacked, and the log in it."""

    url: str
    sha256: str
    max_bytes: int
    max_unpacked_bytes: int
    log: str


ML_1M = Archive(
    url="https://files.grouplens.org/datasets/movielens/ml-1m.zip",
    sha256="a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20",
    max_bytes=16 << 20,
    max_unpacked_bytes=128 << 20,
    log="ml-1m/ratings.dat",
)


def _open_https(url: str) -> Any:
    return urllib.request.urlopen(url, timeout=TIMEOUT_S)


def fetch(folder: Path, archive: Archive = ML_1M, *, opener: Opener = _open_https) -> Path:
    """Fetch and unpack an archive below a local folder; return the path of the log in it.

    An archive that lies there already and has the right digest is not fetched again. Raises InputError if it cannot be
    fetched, is not the one expected, or holds members that leave the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    packed = folder / PurePosixPath(archive.url).name
    if not packed.exists() or _sha256(packed) != archive.sha256:
        _download(archive, packed, opener)
    unpack(packed, folder, max_bytes=archive.max_unpacked_bytes)
    log = folder / archive.log
    if not log.is_file():
        raise InputError(f"{archive.url} holds no {archive.log}; give a local copy with --input")
    return log


def _download(archive: Archive, packed: Path, opener: Opener) -> None:
    partial = packed.with_name(packed.name + ".part")
    try:
        _refuse_insecure(archive.url)
        with opener(archive.url) as response, partial.open("wb") as file:
            _refuse_insecure(response.geturl())
            for chunk in _chunks(response, archive.max_bytes, archive.url):
                file.write(chunk)
        found = _sha256(partial)
        if found != archive.sha256:
            raise InputError(f"{archive.url} has sha256 {found}, not {archive.sha256}; give a local copy with --input")
        partial.replace(packed)
    except (OSError, HTTPException) as error:
        raise InputError(
            f"cannot fetch {archive.url} ({error}); give a local copy with --input, or try the recipe demo"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def _refuse_insecure(url: str) -> None:
    if not url.startswith("https://"):
        raise InputError(f"refusing to fetch from {url}: only https; give a local copy with --input")


def _chunks(stream: IO[bytes], max_bytes: int, name: str) -> Iterator[bytes]:
    done = 0
    while chunk := stream.read(CHUNK_BYTES):
        done += len(chunk)
        if done > max_bytes:
            raise InputError(f"{name} is larger than the {max_bytes} bytes expected; give a local copy with --input")
        yield chunk


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def unpack(packed: Path, folder: Path, *, max_bytes: int) -> None:
    """Unpack a zip archive below a folder, all of it or, if a single member is refused, none.

    Refused with InputError: paths that are absolute or lead upwards, links and other special files, more than
    `max_bytes` in sum, and what is not a zip archive.
    """
    try:
        with zipfile.ZipFile(packed) as archive:
            members = archive.infolist()
            for member in members:
                _refuse_unsafe(member, packed)
            total = sum(member.file_size for member in members)
            if total > max_bytes:
                raise InputError(f"{packed} unpacks to {total} bytes, more than the {max_bytes} expected")
            for member in members:
                _unpack_member(archive, member, folder)
    except (zipfile.BadZipFile, EOFError) as error:
        raise InputError(f"{packed} is not a whole zip archive ({error}); delete it and fetch it again") from error


def _refuse_unsafe(member: zipfile.ZipInfo, packed: Path) -> None:
    path = PurePosixPath(member.filename)
    leaves = path.is_absolute() or ".." in path.parts or "\\" in member.filename or ":" in member.filename
    kind = stat.S_IFMT(member.external_attr >> 16)
    if leaves or kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise InputError(f"{packed} has the unsafe member {member.filename!r}; nothing was unpacked")


def _unpack_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, folder: Path) -> None:
    target = folder / member.filename
    if member.is_dir():
        target.mkdir(parents=True, exist_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(member) as source, target.open("wb") as sink:
        shutil.copyfileobj(source, sink, CHUNK_BYTES)  # zipfile stops at the size that was checked
