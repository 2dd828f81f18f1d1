from calendar import timegm
from datetime import date, datetime
from decimal import Decimal

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raymerge.data.timestamps import check_timestamp_type, parse_timestamps
from raymerge.errors import InputError


def moments(column: pa.Array) -> list[tuple[int, float] | None]:
    whole, fraction, parsed = parse_timestamps(column)
    assert ((fraction >= 0) & (fraction <= 1)).all()
    return [(w, f) if p else None for w, f, p in zip(whole.tolist(), fraction.tolist(), parsed.tolist(), strict=True)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("978300760", (978300760, 0.0)),
        (" 978300760 ", (978300760, 0.0)),
        ("978300760.25", (978300760, 0.25)),
        ("-1.5", (-2, 0.5)),
        ("1e3", (1000, 0.0)),
        ("1700000000123456789", (1700000000123456789, 0.0)),
        ("1970-01-02", (86400, 0.0)),
        ("1970-01-01T00:01", (60, 0.0)),
        ("1970-01-01 00:00:01.5", (1, 0.5)),
        ("1970-01-01T00:00:00Z", (0, 0.0)),
        ("1970-01-01T02:00:00+02:00", (0, 0.0)),
        ("1969-12-31 23:59:59", (-1, 0.0)),
        ("1969-12-31 23:59:58.123456789", (-2, 0.123456789)),
        ("1600-01-01", (-11676096000, 0.0)),
        ("9999-12-31T23:59:59.5Z", (253402300799, 0.5)),
        ("2001-02-29", None),
        ("2001-02-30", None),
        ("2001-04-31", None),
        ("0000-00-00", None),
        ("2001-13-01", None),
        ("yesterday", None),
        ("", None),
        ("nan", None),
        ("inf", None),
        ("9" * 19, None),
        (None, None),
    ],
)
def test_text_is_read_as_a_number_or_as_iso_8601(text: str | None, expected: tuple[int, float] | None) -> None:
    assert moments(pa.array([text], pa.string())) == [expected]


def test_forms_may_be_mixed_and_a_bad_value_spoils_no_other() -> None:
    days = [f"2001-02-{day:02d}" for day in range(1, 31)]
    found = moments(pa.array([*days, "7", "7.5"]))
    start = timegm((2001, 2, 1, 0, 0, 0))
    assert found == [(start + 86400 * k, 0.0) for k in range(28)] + [None, None, (7, 0.0), (7, 0.5)]


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([3, None], pa.int32()), [(3, 0.0), None]),
        (pa.array([3, 2**63], pa.uint64()), [(3, 0.0), None]),
        (pa.array([1.5, float("nan"), float("inf"), 1e30]), [(1, 0.5), None, None, None]),
        (pa.array([datetime(1970, 1, 1, 0, 0, 1, 500000), None]), [(1, 0.5), None]),
        (pa.array([datetime(1970, 1, 1, 0, 0, 1)], pa.timestamp("ns", "Europe/Berlin")), [(1, 0.0)]),
        (pa.array([date(1970, 1, 2), date(9999, 1, 1)], pa.date32()), [(86400, 0.0), (253370764800, 0.0)]),
        (pa.array([date(1970, 1, 2)], pa.date64()), [(86400, 0.0)]),
        (pa.nulls(2), [None, None]),
        (pa.array(["7", None]).dictionary_encode(), [(7, 0.0), None]),
    ],
)
def test_typed_columns_are_read_by_their_type(column: pa.Array, expected: list[tuple[int, float] | None]) -> None:
    assert moments(column) == expected


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(-(2**63) + 1, 2**63 - 1), min_size=2, max_size=2), st.booleans())
def test_integers_keep_their_order_exactly(numbers: list[int], as_text: bool) -> None:
    first, second = moments(pa.array([str(n) for n in numbers] if as_text else numbers))
    assert (first < second) == (numbers[0] < numbers[1])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-1e15, 1e15), min_size=1, max_size=9))
def test_floats_are_split_losslessly(numbers: list[float]) -> None:
    for number, (whole, fraction) in zip(numbers, moments(pa.array(numbers)), strict=True):
        assert Decimal(whole) + Decimal(fraction) == pytest.approx(Decimal(number), abs=Decimal("1e-16"))


@pytest.mark.parametrize("kind", [pa.bool_(), pa.duration("s"), pa.time64("us"), pa.list_(pa.int64())])
def test_columns_that_cannot_hold_times_are_refused_by_name(kind: pa.DataType) -> None:
    with pytest.raises(InputError, match="column 'when' of log.parquet holds"):
        check_timestamp_type(kind, column="when", url="log.parquet")
