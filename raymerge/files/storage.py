"""Files by URL, on this machine or in any store that fsspec supports; `filesystem` says what is asked of a store."""

import fcntl
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TypeVar

import pyarrow.fs

from raymerge.errors import InputError, LostError, MissingError, reason
from raymerge.files.filesystem import WEB, Store, is_local, local_path, refuse_secrets
from raymerge.files.retries import MISSING, plain_errors
from raymerge.redaction import without_credentials

LAST_FILE = "manifest.json"  # written last: a folder without it is incomplete
AT_ONCE = 8  # concurrent requests to a store

S = TypeVar("S")
T = TypeVar("T")


def absolute(url: str) -> str:
    """The URL in a form that does not depend on the working directory: local paths become absolute.

    InputError for none at all, such as an unset variable of a shell, and for one with a secret, see `refuse_secrets`.
    """
    if not url.strip():
        raise InputError("a path is empty: name a file, a folder or a URL")
    refuse_secrets(url)
    return local_path(url) if is_local(url) else url.rstrip("/")


def join(url: str, *parts: str) -> str:
    """Path below a URL."""
    return "/".join([url.rstrip("/"), *(part.strip("/") for part in parts)])


@contextmanager
def open_file(url: str) -> Iterator[IO[bytes]]:
    """Open a file for reading; MissingError if it does not exist."""
    store = Store(url)
    with _found(url):
        handle = store.open(store.path)
    with handle:
        yield handle


def read_bytes(url: str) -> bytes:
    """Content of a file; MissingError if it does not exist."""
    store = Store(url)
    with _found(url):
        return store.read(store.path)


def write_bytes(url: str, content: bytes) -> None:
    """Write a small file atomically."""
    store = Store(url)
    with _writable(url), store.open(store.path, "wb") as file:
        file.write(content)


@contextmanager
def _found(url: str) -> Iterator[None]:
    try:
        yield
    except MISSING:
        raise MissingError(f"no such file: {without_credentials(url)}") from None
    except IsADirectoryError:
        raise MissingError(f"is a folder, not a file: {without_credentials(url)}") from None


@contextmanager
def _writable(url: str) -> Iterator[None]:
    try:
        with plain_errors(url):
            yield
    except (*MISSING, IsADirectoryError, FileExistsError) as error:
        raise InputError(f"cannot write to {without_credentials(url)}: {reason(error)}") from error


def exists(url: str) -> bool:
    """Whether there is a file or folder."""
    store = Store(url)
    return store.exists(store.path)


def modified(url: str) -> float:
    """When a file was last written, in seconds since 1970."""
    store = Store(url)
    return store.modified(store.path)


def list_folder(url: str) -> list[str]:
    """Sorted names of a folder's direct contents; empty if there is no such folder.

    The object `folder/`, with which consoles of object stores mark a folder, is not one of them.
    """
    store = Store(url)
    try:
        below = [name for name in store.ls(store.path) if name != store.path.rstrip("/") + "/"]
        return sorted(name.rstrip("/").rpartition("/")[2] for name in below)
    except MISSING:
        return []


def list_files(url: str) -> list[str]:
    """Sorted files of a file, folder or glob; in folders, hidden and underscored names are left out."""
    store = Store(url)
    if store.isfile(store.path):
        return [url]
    with suppress(*MISSING):
        if store.protocol in WEB:  # cannot be listed, and what looks like a pattern may be the query
            found = []
        elif any(mark in store.path for mark in "*?[") and not store.isdir(store.path):
            found = store.glob(store.path)
        else:
            files = (name for name in store.find(store.path) if not name.endswith("/"))  # object that marks a folder
            found = [name for name in files if not _hidden(name, below=store.path)]
        if found:
            return [store.url_of(name) for name in sorted(found)]
    raise InputError(f"no such file: {without_credentials(url)}")


def _hidden(name: str, *, below: str) -> bool:
    return any(part[0] in "._" for part in os.path.relpath(name, below).split("/"))


def make_folder(url: str) -> None:
    """Make a folder and its parents, if the store has folders."""
    store = Store(url)
    with _writable(url):
        store.mkdir(store.path)


def remove_folder(url: str) -> None:
    """Delete a folder and its contents, if it exists."""
    store = Store(url)
    store.rm(store.path, recursive=True)


@contextmanager
def claimed(url: str) -> Iterator[None]:
    """Make a folder and lock it against other processes of this machine; LostError if one of them holds the lock.

    The lock ends with the block or the process. Object stores, and file systems without locks, are not locked.
    """
    if not is_local(url):
        yield
        return
    make_folder(url)
    folder = os.open(absolute(url), os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(folder)
        raise LostError(
            f"another command is working in {url}: wait until it has ended, or choose another --output"
        ) from None
    except OSError:  # a file system without locks
        pass
    try:
        yield
    finally:
        os.close(folder)


def commit_folder(staging: Path, url: str) -> None:
    """Move a finished local folder to its URL, so that readers see all of it or nothing.

    On this machine by one rename within a file system; in an object store by uploading `manifest.json` last. If
    another process has committed the folder meanwhile, so that it has a manifest, it is kept; else it is replaced.
    """
    with _writable(url):
        if is_local(url):
            _move(staging, Path(absolute(url)))
        elif not exists(join(url, LAST_FILE)):
            _upload(staging, url)


def _move(staging: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if (target / LAST_FILE).exists():
        return
    with tempfile.TemporaryDirectory(dir=staging.parent) as aside:
        with suppress(FileNotFoundError):  # a partly deleted folder
            os.rename(target, Path(aside, "incomplete"))
        os.rename(staging, target)


def _upload(staging: Path, url: str) -> None:
    put_files(staging, url, (file for file in staging.rglob("*") if file.is_file() and file != staging / LAST_FILE))
    put_files(staging, url, [staging / LAST_FILE])


def put_files(folder: Path, url: str, files: Iterable[Path]) -> None:
    """Copy files below a local folder to the same paths below a URL, several at once; each appears whole."""
    store = Store(url)
    with _writable(url):
        at_once(lambda file: store.put(file, join(store.path, file.relative_to(folder).as_posix())), files)


def fetch_folder(url: str, target: Path) -> Path:
    """Copy a folder to this machine."""
    store = Store(url)
    at_once(lambda name: store.get(name, target / os.path.relpath(name, store.path)), store.find(store.path))
    return target


def at_once(function: Callable[[S], T], values: Iterable[S]) -> list[T]:
    """The function's results, in order, computed by threads: a store answers slowly, but many requests at once."""
    with ThreadPoolExecutor(AT_ONCE) as threads:
        return list(threads.map(function, values))


def arrow_filesystem(url: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """The store of a URL as an Arrow file system, and the path in it, for libraries that need those."""
    store = Store(url)
    return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(store)), store.path
