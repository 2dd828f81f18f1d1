"""Own ids of users and items: compared as text, kept as whole numbers if all are, hashed the same on any machine.

So a log gives the same partitions whether its ids arrive as `12` or as `"12"`, from CSV or from Parquet. Floats that
missing values have made of whole numbers are whole numbers again; as text, `12.0` is another id than `12`.
"""

import hashlib

import numpy as np
import pyarrow as pa
import torch
from pyarrow import compute as pc

from raymerge.errors import InputError
from raymerge.splitmix import GAMMA, mix_

WHOLE_NUMBER = r"^(0|-?[1-9][0-9]{0,18})$"
LARGEST = str(2**63 - 1)
EXACT = 2**53  # below it floats hold all whole numbers
HASHED_AT_ONCE = 1 << 14  # they stay in a core's cache, and are too few for torch to use threads


def check_id_type(kind: pa.DataType, *, column: str, url: str) -> None:
    """Raise InputError if a column cannot hold ids."""
    inner = kind.value_type if pa.types.is_dictionary(kind) else kind
    number = pa.types.is_integer(inner) or pa.types.is_floating(inner)
    if not (number or is_text(inner) or pa.types.is_null(inner)):
        raise InputError(f"column {column!r} of {url} holds {kind}; ids must be whole numbers or text")


def is_text(kind: pa.DataType) -> bool:
    """Whether the type is one of Arrow's string types."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def encode_ids(column: pa.Array) -> tuple[pa.StringArray, np.ndarray]:
    """Distinct ids as text, and which of them each row holds: n rows → (text[k], int64[n] with −1 for none).

    Missing and blank ids, and NaN among numbers, are none; blanks around an id are stripped. Whole numbers that missing
    values have turned into floats are read as whole numbers; fractions raise InputError.
    """
    encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    texts = pc.utf8_trim_whitespace(_text(encoded.dictionary))
    distinct = pc.if_else(pc.not_equal(texts, ""), texts, pa.scalar(None, pa.string())).dictionary_encode()
    code_of = np.append(_codes(distinct.indices), -1)  # its last entry, at −1, means none
    return distinct.dictionary, code_of[_codes(encoded.indices)]


def _codes(indices: pa.Array) -> np.ndarray:
    return pc.fill_null(indices.cast(pa.int64()), -1).to_numpy(zero_copy_only=False)


def _text(ids: pa.Array) -> pa.StringArray:
    if pa.types.is_floating(ids.type):
        ids = pc.if_else(pc.is_finite(ids), ids, pa.scalar(None, ids.type))
        if (pc.max(pc.abs(ids)).as_py() or 0) >= EXACT:
            raise InputError(
                "ids in a column of floats reach 2^53, where different ids become equal: store them as text"
            )
        try:
            ids = ids.cast(pa.int64())
        except pa.ArrowInvalid as error:
            raise InputError(f"ids must be whole numbers or text, found a fraction ({error})") from None
    return ids.cast(pa.string())


def are_whole_numbers(ids: pa.StringArray) -> np.ndarray:
    """Which ids are int64 in canonical spelling, so that text and number are interchangeable: text[n] → bool[n].

    >>> are_whole_numbers(pa.array(["12", "-3", "012", "1.0", "9223372036854775808"])).tolist()
    [True, True, False, False, False]
    """
    digits = pc.utf8_ltrim(ids, characters="-")
    fits = pc.or_(pc.less(pc.utf8_length(digits), len(LARGEST)), pc.less_equal(digits, LARGEST))
    return pc.and_(pc.match_substring_regex(ids, WHOLE_NUMBER), fits).to_numpy(zero_copy_only=False)


def own_ids(ids: pa.StringArray, *, whole_numbers: bool) -> pa.Array:
    """Ids in the type in which they are stored: int64 if all ids of the log are whole numbers, otherwise text."""
    return ids.cast(pa.int64()) if whole_numbers else ids


def stable_keys(ids: pa.StringArray) -> np.ndarray:
    """64-bit hash of each id, the same in every process and on every machine: text[n] → int64[n].

    Whole numbers go through SplitMix64, a bijection, so that no two of them collide; other text is hashed to the first
    8 bytes of BLAKE2b over its UTF-8.
    """
    keys = np.empty(len(ids), np.int64)
    whole = are_whole_numbers(ids)
    keys[whole] = split_mix(ids.filter(pa.array(whole)).cast(pa.int64()).to_numpy())
    texts = ids.filter(pa.array(~whole)).to_pylist()
    digests = (hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    keys[~whole] = np.frombuffer(b"".join(digests), "<i8")
    return keys


def split_mix(numbers: np.ndarray) -> np.ndarray:
    """SplitMix64's next value from each state: int64[n] → int64[n]."""
    words = torch.from_numpy(numbers.astype(np.int64)) + GAMMA
    for some in words.split(HASHED_AT_ONCE):
        mix_(some)
    return words.numpy()
