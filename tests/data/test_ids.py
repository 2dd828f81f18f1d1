import subprocess
import sys

import numpy as np
import oracles_data as naive
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raymerge.data.ids import are_whole_numbers, check_id_type, encode_ids, split_mix, stable_keys
from raymerge.errors import InputError

IDS = st.one_of(
    st.text(max_size=6), st.integers(-(2**63) + 1, 2**63 - 1).map(str), st.sampled_from(["007", "-0", "+1"])
)


@settings(max_examples=60, deadline=None)
@given(st.lists(IDS, max_size=20))
def test_keys_equal_the_naive_hash_of_each_id(ids: list[str]) -> None:
    keys = stable_keys(pa.array(ids, pa.string()))
    assert keys.dtype == np.int64
    assert keys.tolist() == [naive.stable_key(one) for one in ids]


def test_split_mix_gives_the_published_first_output_for_seed_0() -> None:
    assert split_mix(np.array([0])).view(np.uint64).tolist() == [0xE220A8397B1DCDAF]


def test_keys_are_the_same_in_another_process_with_another_hash_seed() -> None:
    code = (
        "import pyarrow as pa; from raymerge.data.ids import stable_keys;"
        "print(stable_keys(pa.array(['anna', '7'])).tolist())"
    )
    env = {"PYTHONHASHSEED": "42", "PYTHONPATH": ":".join(sys.path)}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env).stdout
    assert out.strip() == str(stable_keys(pa.array(["anna", "7"])).tolist())


def test_whole_numbers_are_int64_in_canonical_spelling_only() -> None:
    ids = ["0", "12", "-12", str(2**63 - 1), str(2**63), "9" * 20, "-0", "01", "1.0", "1e3", "", " 1", "x"]
    assert are_whole_numbers(pa.array(ids)).tolist() == [True] * 4 + [False] * 9


@pytest.mark.parametrize(
    "column",
    [
        pa.array([12, None, 7, 12]),
        pa.array([12, None, 7, 12], pa.uint8()),
        pa.array([12.0, float("nan"), 7.0, 12.0]),
        pa.array(["12", "", "7", " 12 "]),
        pa.array(["12", None, "7", "12"], pa.large_string()),
        pa.array(["12", None, "7", "12"]).dictionary_encode(),
        pa.array(["12", "  ", "7", "12"], pa.string_view()),
    ],
)
def test_ids_of_any_type_give_the_same_result(column: pa.Array) -> None:
    distinct, codes = encode_ids(column)
    ids = [distinct[code].as_py() if code >= 0 else None for code in codes.tolist()]
    assert ids == ["12", None, "7", "12"]
    assert codes[0] == codes[3]


@pytest.mark.parametrize("column", [pa.nulls(3), pa.array([], pa.string()), pa.array(["", " "])])
def test_a_column_without_any_id_has_none(column: pa.Array) -> None:
    distinct, codes = encode_ids(column)
    assert len(distinct) == 0
    assert codes.tolist() == [-1] * len(column)


def test_fractions_are_refused_as_ids() -> None:
    with pytest.raises(InputError, match=r"whole numbers or text, found a fraction.*1\.5"):
        encode_ids(pa.array([1.0, 1.5]))


def test_floats_that_may_have_lost_digits_are_refused_as_ids() -> None:
    with pytest.raises(InputError, match=r"reach 2\^53, where different ids become equal"):
        encode_ids(pa.array([1.0, 2.0**53 + 1]))
    assert encode_ids(pa.array([2.0**53 - 1, None]))[0].to_pylist() == [str(2**53 - 1)]


@pytest.mark.parametrize("kind", [pa.bool_(), pa.list_(pa.int64()), pa.timestamp("s"), pa.binary()])
def test_columns_that_cannot_hold_ids_are_refused_by_name(kind: pa.DataType) -> None:
    with pytest.raises(InputError, match="column 'user' of log.parquet holds"):
        check_id_type(kind, column="user", url="log.parquet")
