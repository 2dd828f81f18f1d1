"""Files by URL: on this machine or any store that fsspec knows. The only module that imports fsspec."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit, urlunsplit

from fsspec.core import url_to_fs

from raymerge.errors import InputError, ResourceError

LAST_FILE = "manifest.json"  # written after all others: a folder without it is not finished


def is_local(url: str) -> bool:
    """Whether the URL names a place on this machine.

    >>> is_local("data/log.csv"), is_local("file:///data"), is_local("s3://bucket/log.csv")
    (True, True, False)
    """
    return "://" not in url or url.startswith("file://")


def absolute(url: str) -> str:
    """The URL such that it means the same in any working directory: local paths become absolute."""
    return os.path.abspath(os.path.expanduser(url.removeprefix("file://"))) if is_local(url) else url.rstrip("/")


def without_credentials(url: str) -> str:
    """The URL as it may be logged: no user, password or query.

    >>> without_credentials("https://me:secret@host:80/a?token=x")
    'https://host:80/a'
    """
    if is_local(url):
        return url
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def join(url: str, *parts: str) -> str:
    """Path below a URL."""
    return "/".join([url.rstrip("/"), *(part.strip("/") for part in parts)])


def _filesystem(url: str) -> tuple[Any, str]:
    try:
        filesystem, path = url_to_fs(url)
    except ImportError as error:
        scheme = url.partition("://")[0]
        raise InputError(f"no support for {scheme}:// is installed ({error}); pip install 'raymerge[s3,gcs]'") from None
    except ValueError as error:
        raise InputError(f"not a URL that can be read: {without_credentials(url)} ({error})") from None
    return filesystem, path


@contextmanager
def open_file(url: str, mode: str = "rb") -> Iterator[IO[Any]]:
    """Open a file by URL; a missing one is an InputError."""
    filesystem, path = _filesystem(url)
    try:
        handle = filesystem.open(path, mode)
    except FileNotFoundError:
        raise InputError(f"no such file: {without_credentials(url)}") from None
    except IsADirectoryError:
        raise InputError(f"is a folder, not a file: {without_credentials(url)}") from None
    with handle:
        yield handle


def read_bytes(url: str) -> bytes:
    """Whole content of a file."""
    with open_file(url) as handle:
        return bytes(handle.read())


def exists(url: str) -> bool:
    """Whether a file or folder lies there."""
    filesystem, path = _filesystem(url)
    return bool(filesystem.exists(path))


def modified(url: str) -> float:
    """When a file was last written, in seconds since 1970."""
    filesystem, path = _filesystem(url)
    return float(filesystem.modified(path).timestamp())


def list_folder(url: str) -> list[str]:
    """Names directly below a folder, sorted; empty if there is none."""
    filesystem, path = _filesystem(url)
    filesystem.invalidate_cache()
    try:
        entries = filesystem.ls(path, detail=False)
    except FileNotFoundError:
        return []
    return sorted(name.rstrip("/").rpartition("/")[2] for name in entries)


def list_files(url: str) -> list[str]:
    """Files that a file, folder or glob stands for, sorted; hidden and underscored names in folders are left out."""
    filesystem, path = _filesystem(url)
    if filesystem.isfile(path):
        return [url]
    if any(mark in path for mark in "*?["):
        found = [name for name in filesystem.glob(path) if filesystem.isfile(name)]
    else:
        found = [name for name in filesystem.find(path) if not _hidden(name, below=path)]
    if not found:
        raise InputError(f"no such file: {without_credentials(url)}")
    return [name if is_local(url) else filesystem.unstrip_protocol(name) for name in sorted(found)]


def _hidden(name: str, *, below: str) -> bool:
    return any(part[0] in "._" for part in os.path.relpath(name, below).split("/"))


def remove_folder(url: str) -> None:
    """Delete a folder with all that is in it; nothing happens if there is none."""
    filesystem, path = _filesystem(url)
    if filesystem.exists(path):
        filesystem.rm(path, recursive=True)


def commit_folder(staging: Path, url: str) -> None:
    """Move a finished local folder to its place, so that readers see all of it or nothing.

    On this machine by one rename within a file system; in an object store by uploading `manifest.json` last. A folder
    that is there already, committed by somebody else in the meantime, is left as it is.
    """
    with disk_errors(url):
        if is_local(url):
            target = Path(absolute(url))
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                os.rename(staging, target)
            return
        filesystem, path = _filesystem(url)
        files = sorted((f for f in staging.rglob("*") if f.is_file()), key=lambda f: (f.name == LAST_FILE, str(f)))
        for file in files:
            filesystem.put_file(str(file), join(path, file.relative_to(staging).as_posix()))


def fetch_folder(url: str, target: Path) -> Path:
    """Copy of a folder on this machine."""
    filesystem, path = _filesystem(url)
    for name in filesystem.find(path):
        file = target / os.path.relpath(name, path)
        file.parent.mkdir(parents=True, exist_ok=True)
        filesystem.get_file(name, str(file))
    return target


@contextmanager
def disk_errors(url: str) -> Iterator[None]:
    """Turn a full or forbidden disk into one clear line."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(
                f"no space left for {without_credentials(url)}; free some or choose another --output"
            ) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise ResourceError(f"may not write to {without_credentials(url)}; choose another --output") from error
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            raise InputError(f"cannot write to {without_credentials(url)}: {error.strerror}") from error
        raise
