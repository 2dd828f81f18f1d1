"""Reading interaction logs: each format gives the same record batches, columns `user`, `item`, `timestamp`, `market`.

The last two exist if the configuration names them.

A log is streamed: memory holds one batch, whatever the size of the log.
"""

import codecs
import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
from pyarrow import compute as pc
from pyarrow import parquet as pq

from raymerge.data.ids import check_id_type
from raymerge.data.timestamps import check_timestamp_type
from raymerge.errors import ConfigError, InputError, first_line
from raymerge.files.storage import open_file
from raymerge.redaction import without_credentials
from raymerge.registry import Registry

BATCH_ROWS = 1 << 18
BLOCK_BYTES = 4 << 20
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".lz4": "lz4"}
SUFFIXES = {".csv": "csv", ".tsv": "tsv", ".parquet": "parquet", ".pq": "parquet"}
LINES_OF_A_VALUE = 10  # or 1% of a file's: with more between two quotes, a stray one has swallowed rows
CANNOT_READ = (pa.ArrowException, UnicodeDecodeError, csv.Error, OSError)


@dataclass(frozen=True)
class LogConfig:
    """How to read an interaction log.

    `user`, `item` and `timestamp` name columns of CSV, TSV and Parquet; without a timestamp column (`None`) rows
    are taken to be in order of time. `market` names the column with the market (shop, country) of each row, if that
    matters. `column_names` are the columns, in order, of a CSV or TSV file without a header. `movielens`
    (`user::item::rating::timestamp`) and `sequences` (`user item item …`, oldest first) have no names and no markets.
    """

    __pydantic_config__ = {"extra": "forbid"}

    format: str = "auto"  # csv | tsv | parquet | movielens | sequences | auto (by suffix, else first line)
    user: str = "user"  # names of the columns
    item: str = "item"
    timestamp: str | None = "timestamp"  # null if the rows are in order of time
    market: str | None = None  # column with each row's market, for markets.by column
    column_names: tuple[str, ...] = ()  # of a CSV or TSV without a header line
    delimiter: str | None = None  # of a CSV, if not the usual one

    def __post_init__(self) -> None:
        if self.format != "auto":
            FORMATS[self.format]
        if len(set(self.columns)) != len(self.columns):
            raise ConfigError(
                f"prepare.user, .item, .timestamp and .market must name different columns, got {self.columns}"
            )
        if self.delimiter is not None and len(self.delimiter.encode()) != 1:
            raise ConfigError(f"prepare.delimiter must be a single byte, got {self.delimiter!r}")

    @property
    def columns_by_role(self) -> dict[str, str]:
        """Names of the columns to read, by role: user, item, and perhaps timestamp and market."""
        named = {"user": self.user, "item": self.item, "timestamp": self.timestamp, "market": self.market}
        return {role: name for role, name in named.items() if name is not None}

    @property
    def columns(self) -> list[str]:
        """Names of the columns to read."""
        return list(self.columns_by_role.values())


@dataclass
class LogReader:
    """An open log: record batches of the columns in `schema`, each of any type allowed for ids and timestamps."""

    schema: pa.Schema
    batches: Iterable[pa.RecordBatch] = ()
    malformed: int = 0
    """Rows so far with too few or too many columns, which are in no batch."""
    size: int = 0
    position: Callable[[], int] = field(default=int)
    """Called for the number of bytes read so far, of `size` in the file."""


Format = Callable[[io.BufferedReader, LogConfig, str], LogReader]
FORMATS: Registry[Format] = Registry("format")


@contextmanager
def open_log(url: str, config: LogConfig) -> Iterator[LogReader]:
    """Open a log and check that it can be one, before any row is read.

    Raises InputError for a missing or empty file, a missing column (naming those found), and columns of wrong types;
    while batches are read, for content that does not match the format.
    """
    shown = without_credentials(url)
    with open_file(url) as file:
        size = file.seek(0, io.SEEK_END)
        if not size:
            raise InputError(f"{shown} is empty; an interaction log needs at least one row")
        file.seek(0)
        stream = io.BufferedReader(_decompressed(file, url), BLOCK_BYTES)
        with _reading(shown):
            name = detect_format(shown, stream.peek(4096)) if config.format == "auto" else config.format
            log = FORMATS[name](stream, config, shown)
        _check_types(log.schema, config, shown)
        log.batches, log.size, log.position = (_guarded(log.batches, shown), size, file.tell)
        yield log


def _decompressed(file: IO[bytes], url: str) -> Any:
    codec = COMPRESSIONS.get(PurePosixPath(without_credentials(url)).suffix.lower())
    return file if codec is None else pa.CompressedInputStream(pa.PythonFile(file, mode="r"), codec)


@contextmanager
def _reading(shown: str) -> Iterator[None]:
    try:
        yield
    except CANNOT_READ as error:
        what = f"{shown} cannot be read: {first_line(error)}"
        raise InputError(f"{what}; is it whole, and text in UTF-8? Else set prepare.format to its format") from error


def _guarded(batches: Iterable[pa.RecordBatch], shown: str) -> Iterator[pa.RecordBatch]:
    with _reading(shown):
        yield from batches


def _check_types(schema: pa.Schema, config: LogConfig, shown: str) -> None:
    names = config.columns_by_role
    for column in schema:
        check = check_timestamp_type if column.name == "timestamp" else check_id_type
        check(column.type, column=names.get(column.name, column.name), url=shown)


def detect_format(url: str, head: bytes) -> str:
    """Name of a file's format, by its suffix or else its first line; InputError if there is none.

    >>> detect_format("log.csv", b""), detect_format("ratings.dat", b"1::1193::5::978300760")
    ('csv', 'movielens')
    """
    suffixes = [suffix.lower() for suffix in PurePosixPath(url).suffixes]
    suffixes = [suffix for suffix in suffixes if suffix not in COMPRESSIONS]
    if suffixes and suffixes[-1] in SUFFIXES:
        return SUFFIXES[suffixes[-1]]
    line = head.partition(b"\n")[0]
    marks = ((b"::", "movielens"), (b",", "csv"), (b"\t", "tsv"), (b" ", "sequences"))
    found = "parquet" if head.startswith(b"PAR1") else next((name for mark, name in marks if mark in line), None)
    if found is None:
        raise InputError(f"cannot tell the format of {url}; set prepare.format to one of {', '.join(FORMATS)}")
    return found


def _columns_found(wanted: Mapping[str, str], found: Sequence[str], shown: str) -> None:
    for role, name in wanted.items():
        if name not in found:
            raise InputError(
                f"{shown} has no column {name!r}, it has {', '.join(map(repr, found))}; {_cure(role, found)}"
            )
        if found.count(name) > 1:
            raise InputError(f"{shown} has {found.count(name)} columns {name!r}: give each a name of its own")


def _cure(role: str, found: Sequence[str]) -> str:
    """The advice for a missing column."""
    separator = next((mark for mark in ";|\t" if len(found) == 1 and mark in found[0]), None)
    if separator is not None:
        quoted = json.dumps(separator)  # as in YAML
        return f"they look separated by {separator!r}: --set 'prepare.delimiter={quoted}'"
    if role == "market":
        return "set prepare.market"
    roles = "prepare.user, prepare.item and prepare.timestamp (null if the rows are in order of time)"
    return f"set {roles}, or prepare.column_names if there is no header line"


def _refuse_markets(config: LogConfig, shown: str, name: str) -> None:
    if config.market is not None:
        raise InputError(
            f"{shown} is of format {name}, which has no markets (prepare.market={config.market}); "
            "make it CSV or Parquet"
        )


@FORMATS.register("csv")
def read_csv(stream: io.BufferedReader, config: LogConfig, url: str) -> LogReader:
    """Comma-separated values, quoted where needed; ids and timestamps are read as text."""
    return _read_with_header(stream, config, url, delimiter=config.delimiter or ",")


@FORMATS.register("tsv")
def read_tsv(stream: io.BufferedReader, config: LogConfig, url: str) -> LogReader:
    """Tab-separated values."""
    return _read_with_header(stream, config, url, delimiter=config.delimiter or "\t")


def _read_with_header(stream: io.BufferedReader, config: LogConfig, url: str, *, delimiter: str) -> LogReader:
    names = list(config.column_names)
    if not names:
        names = next(csv.reader([stream.readline().decode("utf-8-sig")], delimiter=delimiter), [])
    _columns_found(config.columns_by_role, names, url)
    options = pa_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    return _read_delimited(stream, names, config.columns_by_role, options, url)


@FORMATS.register("movielens")
def read_movielens(stream: io.BufferedReader, config: LogConfig, url: str) -> LogReader:
    """MovieLens `ratings.dat`: `user::item::rating::timestamp`, each rating an interaction."""
    _refuse_markets(config, url, "movielens")
    names = ["user", "", "item", " ", "rating", "  ", "timestamp"]  # every second colon ends an empty column
    options = pa_csv.ParseOptions(delimiter=":", quote_char=False)
    return _read_delimited(stream, names, {role: role for role in ("user", "item", "timestamp")}, options, url)


def _read_delimited(
    stream: io.BufferedReader, names: list[str], wanted: Mapping[str, str], options: pa_csv.ParseOptions, url: str
) -> LogReader:
    """Delimited text from the stream's position on; `wanted` are the columns by role.

    A quote that is not closed takes what follows, up to the next quote, as its value: InputError if that is over 1% of
    the lines.
    """
    log = LogReader(pa.schema([(role, pa.string()) for role in wanted]))
    counted = _Counted(stream)

    def skip(row: pa_csv.InvalidRow) -> str:
        log.malformed += 1 + (row.text or "").count("\n")
        return "skip"

    options.invalid_row_handler = skip
    columns = list(wanted.values())
    convert = pa_csv.ConvertOptions(include_columns=columns, column_types={name: pa.string() for name in columns})
    read = pa_csv.ReadOptions(column_names=names, block_size=BLOCK_BYTES)

    def batches() -> Iterator[pa.RecordBatch]:
        if not stream.peek(1):  # a file may be nothing but a header
            return
        rows = 0
        try:
            file = pa.PythonFile(counted, mode="r")
            for batch in pa_csv.open_csv(file, read_options=read, parse_options=options, convert_options=convert):
                rows += len(batch)
                yield batch.rename_columns(log.schema.names)
        except pa.ArrowInvalid as error:
            if "straddling" in str(error):  # a value that is larger than a block
                raise _never_closed(url) from error
            raise
        swallowed = counted.lines - rows - log.malformed
        if options.quote_char and min(swallowed, counted.longest) > max(LINES_OF_A_VALUE, counted.lines / 100):
            raise _never_closed(url)

    log.batches = batches()
    return log


class _Counted:
    """A stream that counts lines, and the most between an odd quote and the next one, as they are read."""

    closed = False  # Arrow requires this of a file

    def __init__(self, stream: io.BufferedReader) -> None:
        self._stream = stream
        self.lines = self.longest = 0
        self._inside, self._since = False, 0  # whether a quote is open, and the lines since then

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self.lines += data.count(b"\n")
        if self._inside or b'"' in data:
            content = np.frombuffer(data, np.uint8)
            quotes, ends = (np.flatnonzero(content == ord(mark)) for mark in '"\n')
            lines = np.bincount(np.searchsorted(quotes, ends), minlength=len(quotes) + 1)  # before each, then after
            lines[0] += self._since
            self.longest = max(self.longest, *lines[not self._inside :: 2].tolist(), 0)
            self._inside ^= bool(len(quotes) % 2)
            self._since = int(lines[-1]) if self._inside else 0
        return data


def _never_closed(url: str) -> InputError:
    return InputError(f'{url} cannot be read: a quote (") that begins a value is not closed on its line; fix it')


@FORMATS.register("parquet")
def read_parquet(stream: io.BufferedReader, config: LogConfig, url: str) -> LogReader:
    """Parquet, read one group of rows at a time."""
    file = pq.ParquetFile(stream)
    roles = config.columns_by_role
    _columns_found(roles, file.schema_arrow.names, url)
    schema = pa.schema([(role, file.schema_arrow.field(name).type) for role, name in roles.items()])
    batches = file.iter_batches(BATCH_ROWS, columns=config.columns)
    return LogReader(schema, (batch.select(config.columns).rename_columns(list(roles)) for batch in batches))


@FORMATS.register("sequences")
def read_sequences(stream: io.BufferedReader, config: LogConfig, url: str) -> LogReader:
    """Sequence text: one line per user, `user item item …`, separated by blanks, oldest first."""
    _refuse_markets(config, url, "sequences")
    if stream.peek(3)[:3] == codecs.BOM_UTF8:
        stream.read(3)
    lines = iter(lambda: stream.readlines(BLOCK_BYTES), [])
    schema = pa.schema([("user", pa.string()), ("item", pa.string())])
    return LogReader(schema, (_explode(block, schema) for block in lines))


def _explode(lines: list[bytes], schema: pa.Schema) -> pa.RecordBatch:
    """Rows (user, item) of lines; a user without items gives one row with a missing item."""
    text = pc.utf8_trim_whitespace(pa.array(lines, pa.binary()).cast(pa.string()))
    words = pc.utf8_split_whitespace(text.filter(pc.not_equal(text, "")))
    users = pc.list_element(words, 0)
    items = pc.list_slice(words, 1)
    items = pc.if_else(pc.equal(pc.list_value_length(items), 0), pa.scalar([None], items.type), items)
    return pa.record_batch([users.take(pc.list_parent_indices(items)), pc.list_flatten(items)], schema=schema)
