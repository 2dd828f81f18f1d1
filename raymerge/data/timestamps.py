"""Points in time in any form that logs use, as (whole, fraction): comparable, and exact for large integers."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pyarrow as pa
from pyarrow import compute as pc

from raymerge.data.ids import is_text
from raymerge.errors import InputError

INTEGER = r"^-?[0-9]{1,19}$"
DECIMAL = r"^-?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?$"
DAYS = r"((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|[12][0-9]))"
DAY = rf"^[0-9]{{4}}-{DAYS}"
CLOCK = r"([T ]([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9](\.[0-9]{1,9})?)?)"
LOCAL_ISO, ZONED_ISO = (f"{DAY}{CLOCK}?$", f"{DAY}{CLOCK}(Z|[+-][0-9]{{2}}(:?[0-9]{{2}})?)$")
POINT = r"\.[0-9]+"
PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}

Moments = tuple[np.ndarray, np.ndarray, np.ndarray]  # whole int64[n], fraction float64[n] in [0, 1], parsed bool[n]


def check_timestamp_type(kind: pa.DataType, *, column: str, url: str) -> None:
    """Raise InputError if a column cannot hold points in time."""
    is_a = pa.types
    inner = kind.value_type if is_a.is_dictionary(kind) else kind
    number = is_a.is_integer(inner) or is_a.is_floating(inner)
    if not (number or is_text(inner) or is_a.is_timestamp(inner) or is_a.is_date(inner) or is_a.is_null(inner)):
        raise InputError(f"column {column!r} of {url} holds {kind}; timestamps must be numbers, dates, times or text")


def parse_timestamps(column: pa.Array) -> Moments:
    """Points in time of any accepted type → (whole int64[n], fraction float64[n], parsed bool[n]).

    Numbers keep their unit; dates, times and ISO 8601 text become seconds since 1970 UTC, text without a zone is read
    as UTC. Values that are missing, infinite or do not parse have parsed False.
    """
    column = column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
    kind = column.type
    if pa.types.is_integer(kind):
        return _from_integers(column)
    if pa.types.is_floating(kind):
        return _from_floats(column)
    if pa.types.is_date(kind):
        return _from_moments(column.cast(pa.timestamp("s" if pa.types.is_date32(kind) else "ms")))
    if pa.types.is_timestamp(kind):
        return _from_moments(column)
    return _from_text(column.cast(pa.string()))


def _from_integers(column: pa.Array) -> Moments:
    if pa.types.is_uint64(column.type):
        column = pc.if_else(pc.less(column, pa.scalar(2**63, pa.uint64())), column, pa.scalar(None, pa.uint64()))
    whole = _filled(column.cast(pa.int64()))
    return whole, np.zeros(len(whole)), _present(column)


def _from_floats(column: pa.Array) -> Moments:
    values = pc.fill_null(column.cast(pa.float64()), np.nan).to_numpy(zero_copy_only=False)
    parsed = np.abs(values) < 2.0**63  # False for NaN
    values = np.where(parsed, values, 0.0)
    floor = np.floor(values)
    return floor.astype(np.int64), values - floor, parsed


def _from_moments(column: pa.Array) -> Moments:
    per_second = PER_SECOND[column.type.unit]
    whole, rest = np.divmod(_filled(column.cast(pa.int64())), per_second)
    return whole, rest / per_second, _present(column)


def _from_text(column: pa.StringArray) -> Moments:
    texts = pc.utf8_trim_whitespace(column)
    whole, fraction = np.zeros(len(texts), np.int64), np.zeros(len(texts))
    parsed = np.zeros(len(texts), bool)
    for pattern, read in _TEXT_FORMS:
        matches = pc.fill_null(pc.match_substring_regex(texts, pattern), False).to_numpy(zero_copy_only=False) & ~parsed
        if matches.any():
            whole[matches], fraction[matches], parsed[matches] = read(texts.filter(pa.array(matches)))
        if parsed.all():
            break
    return whole, fraction, parsed


def _from_iso(texts: pa.StringArray, zone: str | None) -> Moments:
    """Whole seconds apart from what is after the point: in nanoseconds only the years 1677 to 2262 would fit."""
    whole, _, parsed = _from_moments(
        _cast_or_null(pc.replace_substring_regex(texts, POINT, ""), pa.timestamp("s", zone))
    )
    digits = pc.struct_field(pc.extract_regex(texts, f"(?P<digits>{POINT})"), "digits")
    return whole, _filled(digits.cast(pa.float64())), parsed


_TEXT_FORMS: tuple[tuple[str, Callable[[pa.StringArray], Moments]], ...] = (
    (INTEGER, lambda texts: _from_integers(_cast_or_null(texts, pa.int64()))),
    (DECIMAL, lambda texts: _from_floats(_cast_or_null(texts, pa.float64()))),
    (LOCAL_ISO, partial(_from_iso, zone=None)),
    (ZONED_ISO, partial(_from_iso, zone="UTC")),
)


def _cast_or_null(texts: pa.StringArray, kind: pa.DataType) -> pa.Array:
    """Cast that turns text that cannot be cast (29 February 2001) into null; such text is found by halving."""
    try:
        return texts.cast(kind)
    except pa.ArrowInvalid:
        if len(texts) == 1:
            return pa.nulls(1, kind)
        half = len(texts) // 2
        return pa.concat_arrays([_cast_or_null(texts[:half], kind), _cast_or_null(texts[half:], kind)])


def _filled(column: pa.Array) -> np.ndarray:
    return pc.fill_null(column, 0).to_numpy(zero_copy_only=False)


def _present(column: pa.Array) -> np.ndarray:
    return column.is_valid().to_numpy(zero_copy_only=False)
