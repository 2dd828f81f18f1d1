"""fsspec's file systems, made safe: whole operations, retried in an outage. The only module that imports fsspec.

Object stores take credentials and endpoints from the environment of each process, never from a URL. S3 uses
AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, or AWS_PROFILE, else the role of the machine; a server
other than Amazon's is set by AWS_ENDPOINT_URL_S3 (or FSSPEC_S3_ENDPOINT_URL, or `{"s3": {"endpoint_url": "…"}}` in a
JSON file in ~/.config/fsspec). Google Cloud uses GOOGLE_APPLICATION_CREDENTIALS, else the machine's account.
"""

import io
import logging
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fsspec import filesystem
from fsspec.core import url_to_fs
from fsspec.utils import glob_translate

from raymerge.errors import InputError
from raymerge.files.retries import MISSING, disk_errors, plain_errors, retried
from raymerge.redaction import credentials_in, redact, without_credentials

WEB, GONE = ("http", "https"), (404, 410)
OBJECT_STORES = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oss", "oci"})
CONNECT_TIMEOUT_S, SILENCE_S = 30.0, 60.0  # of a web server; a download may take any time
GOOGLE_SILENCE_S = 20.0  # of each of the six attempts that gcsfs makes
BLOCK_BYTES = 8 << 20  # of files that are read in pieces
ONE_ATTEMPT = {"config_kwargs": {"retries": {"total_max_attempts": 1}}}  # retries are counted here, not in three layers
logging.getLogger("gcsfs").setLevel(logging.ERROR)  # it warns at each call without permission to look up the bucket


def is_local(url: str) -> bool:
    """Whether the URL is on this machine.

    >>> is_local("data/log.csv"), is_local("file:///data"), is_local("s3://bucket/log.csv")
    (True, True, False)
    """
    return "://" not in url or url.startswith("file://")


def local_path(url: str) -> str:
    """The absolute path of a local URL, with `~` expanded."""
    return os.path.abspath(os.path.expanduser(url.removeprefix("file://")))


def refuse_secrets(url: str) -> None:
    """Raise InputError for a password in a URL, or for a query in a URL that is not http(s).

    They are refused, not hidden: a URL ends up in commands, manifests and messages of other libraries, and credentials
    of a store belong in the environment. The query of a signed http(s) URL is kept, but never shown.
    """
    if is_local(url):
        return
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise InputError(f"cannot parse URL {redact(url)} ({error})") from None
    query = "=" in parts.query and parts.scheme not in WEB
    user = parts.netloc.rpartition("@")[0] if parts.scheme in WEB else credentials_in(url)  # stores have no ports
    if query or ":" in user:
        raise InputError(
            f"{without_credentials(url)} has {'a query' if query else 'a password'} in its URL; "
            "remove it and set credentials in the environment"
        )


def _silence(most_s: float) -> Any:
    """A limit to a server's silence instead of its downloads, to which aiohttp gives 300 s by default."""
    from aiohttp import ClientTimeout

    return ClientTimeout(total=None, sock_connect=min(most_s, CONNECT_TIMEOUT_S), sock_read=most_s)


class Store:
    """A file system of fsspec whose operations are whole, retried in an outage, and never served from a cache.

    Missing files raise FileNotFoundError; all other failures are a UserError. Pickled as its URL, it uses the
    credentials of the process that it arrives in. Methods named as in fsspec are what Arrow's FSSpecHandler calls.
    """

    def __init__(self, url: str) -> None:
        refuse_secrets(url)
        self._url = url
        self.protocol = url.partition("://")[0] if "://" in url else "file"
        options = ONE_ATTEMPT if self.protocol in ("s3", "s3a") else {}
        try:
            if is_local(url):  # url_to_fs would read :: in a path as a chain of stores
                self._filesystem, self.path = filesystem("file"), local_path(url)
            else:
                self._filesystem, self.path = url_to_fs(url, use_listings_cache=False, **options)
        except ImportError as error:
            raise InputError(
                f"no support for {self.protocol}:// is installed ({error}); run pip install 'raymerge[s3,gcs]'"
            ) from None
        except ValueError as error:
            raise InputError(f"cannot parse URL {without_credentials(url)} ({error})") from None
        if options:
            self._filesystem.retries = 1
        if self.protocol in WEB:
            self._filesystem.client_kwargs.setdefault("timeout", _silence(SILENCE_S))
        if self.protocol in ("gs", "gcs"):
            self._filesystem.requests_timeout = _silence(GOOGLE_SILENCE_S)

    def __reduce__(self) -> tuple[Callable[[str], "Store"], tuple[str]]:
        return Store, (self._url,)

    def __eq__(self, other: object) -> bool:
        """Whether paths mean the same; fsspec's own file systems differ between threads."""
        return (
            isinstance(other, Store)
            and type(other._filesystem) is type(self._filesystem)
            and other._filesystem.storage_options == self._filesystem.storage_options
        )

    __hash__ = None  # type: ignore[assignment]

    def _call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        return self._whole(getattr(self._filesystem, name), *args, **kwargs)

    def _whole(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with plain_errors(self._url):
            return function(*args, **kwargs) if is_local(self._url) else retried(function, *args, **kwargs)

    def info(self, path: str) -> dict[str, Any]:
        """Name, `type` (file or directory) and size; FileNotFoundError if there is nothing."""
        return dict(self._whole(self._web_info, path) if self.protocol in WEB else self._call("info", path))

    def _web_info(self, path: str) -> Any:
        """Of a web server; fsspec reports every failed request as a missing file."""
        try:
            return self._filesystem.info(path)
        except FileNotFoundError as error:
            cause = error.__cause__
            if cause is None or isinstance(cause, FileNotFoundError) or getattr(cause, "status", None) in GONE:
                raise
            raise cause from None

    def kind(self, path: str) -> str | None:
        """`file`, `directory`, or None if there is nothing; fsspec's own `isfile` is False in an outage."""
        try:
            return str(self.info(path)["type"])
        except MISSING:
            return None

    def exists(self, path: str) -> bool:
        """Whether there is a file or folder."""
        return self.kind(path) is not None

    def isfile(self, path: str) -> bool:
        """Whether there is a file."""
        return self.kind(path) == "file"

    def isdir(self, path: str) -> bool:
        """Whether there is a folder."""
        return self.kind(path) == "directory"

    def ls(self, path: str) -> list[str]:
        """Paths directly below a folder; FileNotFoundError if there is no such folder."""
        return list(self._call("ls", path, detail=False))

    def find(self, path: str, **options: Any) -> Any:
        """All files below a folder, as fsspec gives them."""
        return self._call("find", path, **options)

    def glob(self, pattern: str) -> list[str]:
        """Files that match a pattern.

        In an object store, by listing everything below the pattern's fixed part: during an outage fsspec's own `glob`
        silently omits folders it could not list.
        """
        if self.protocol not in OBJECT_STORES:
            return [name for name in self._call("glob", pattern, on_error="raise") if self.isfile(name)]
        folder = re.split(r"[*?[]", pattern, maxsplit=1)[0].rpartition("/")[0]
        if not folder:
            raise InputError(f"the bucket must be named without wildcards: {without_credentials(self._url)}")
        matches = re.compile(glob_translate(pattern)).match
        return [name for name in self.find(folder) if matches(name) and not name.endswith("/")]  # / marks a folder

    def mkdir(self, path: str, create_parents: bool = True) -> None:
        """Make a folder, unless in an object store, which has none and would make a bucket."""
        if self.protocol not in OBJECT_STORES:
            self._call("makedirs", path, exist_ok=True)

    def rm(self, path: str, recursive: bool = False) -> None:
        """Delete a file, or a folder with its contents; it is no error if it does not exist.

        In an object store file by file: its `rm` would read [, * or ? in a name as a pattern.
        """
        if self.protocol not in OBJECT_STORES:
            with suppress(*MISSING):
                self._call("rm", path, recursive=recursive)
            return
        for file in self.find(path) if recursive else [path]:
            with suppress(*MISSING):
                self._call("rm_file", file)

    def modified(self, path: str) -> float:
        """When a file was last written, in seconds since 1970."""
        return float(self._call("modified", path).timestamp())

    def read(self, path: str) -> bytes:
        """Content of a file."""
        return bytes(self._call("cat_file", path))

    def put(self, file: Path, path: str) -> None:
        """Copy a file of this machine into the store, where it appears whole or not at all."""
        self.mkdir(path.rpartition("/")[0])
        if not is_local(self._url):
            self._call("put_file", str(file), path)
            return
        part = f"{path}.{uuid.uuid4().hex[:8]}.part"
        with plain_errors(self._url):
            try:
                shutil.copyfile(file, part)
                os.replace(part, path)
            finally:
                Path(part).unlink(missing_ok=True)

    def get(self, path: str, file: Path) -> None:
        """Copy a file to this machine."""
        file.parent.mkdir(parents=True, exist_ok=True)
        self._call("get_file", path, str(file))

    def open(self, path: str, mode: str = "rb") -> Any:
        """A binary file for reading (`rb`), or one that is stored when it is closed (`wb`)."""
        if mode == "wb":
            return _Whole(self, path)
        if self.protocol in WEB:
            return _copy_of(self._url).open("rb")
        if self.protocol not in OBJECT_STORES:
            return self._call("open", path, mode)
        return io.BufferedReader(_Pieces(self, path), BLOCK_BYTES)

    def piece(self, path: str, start: int, end: int) -> bytes:
        """Bytes `start` up to but not including `end` of a file."""
        return bytes(self._whole(self._piece, path, start, end))

    def _piece(self, path: str, start: int, end: int) -> bytes:
        found = bytes(self._filesystem.cat_file(path, start=start, end=end))
        if len(found) != end - start:
            raise ConnectionError(f"{len(found)} bytes received instead of {end - start}")
        return found

    def url_of(self, path: str) -> str:
        """The URL of a path that this store gave."""
        return path if is_local(self._url) else str(self._filesystem.unstrip_protocol(path))


@cache
def _copy_of(url: str) -> Path:
    """A local copy of a web server's file, made once per process: the server may not serve parts of it."""
    store, file = Store(url), Path(_copies().name) / uuid.uuid4().hex
    store.get(store.path, file)
    return file


@cache
def _copies() -> tempfile.TemporaryDirectory[str]:
    """A folder that is removed with the process."""
    return tempfile.TemporaryDirectory(prefix="raymerge-")


class _Pieces(io.RawIOBase):
    """A file of an object store, read in pieces, each retried when its connection breaks."""

    def __init__(self, store: Store, path: str) -> None:
        self._store, self._path, self._at = store, path, 0
        info = store.info(path)
        if info["type"] != "file":
            raise IsADirectoryError(path)
        self._size = int(info["size"])

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence])
        return self._at

    def readall(self) -> bytes:
        rest = self._store.piece(self._path, self._at, self._size) if self._at < self._size else b""
        self._at += len(rest)
        return rest

    def readinto(self, buffer: Any) -> int:
        end = min(self._at + len(buffer), self._size)
        if end <= self._at:
            return 0
        piece = self._store.piece(self._path, self._at, end)
        buffer[: len(piece)] = piece
        self._at = end
        return len(piece)


class _Whole(io.FileIO):
    """A temporary file of this machine that is stored when it is closed without an error."""

    def __init__(self, store: Store, path: str) -> None:
        with disk_errors(tempfile.gettempdir()):
            handle, self._temporary = tempfile.mkstemp(prefix="raymerge-")
        self._store, self._path = store, path
        super().__init__(handle, "wb")

    def write(self, content: Any) -> int:
        left = memoryview(content).cast("B")
        with disk_errors(tempfile.gettempdir()):
            while left:  # a nearly full disk takes a part, and Linux at most 2 GiB
                left = left[super().write(left) :]
        return memoryview(content).nbytes

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._close(keep=kind is None)

    def close(self) -> None:
        self._close(keep=True)

    def _close(self, *, keep: bool) -> None:
        if self.closed:
            return
        super().close()
        try:
            if keep:
                self._store.put(Path(self._temporary), self._path)
        finally:
            os.unlink(self._temporary)
