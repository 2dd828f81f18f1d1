"""Naive versions of what raymerge/data does fast: plain Python, one row at a time, to be checked by eye."""

import hashlib

from oracles_splitmix import MASK, splitmix64


def stable_key(user: str) -> int:
    """Hash of one id as a signed 64-bit integer."""
    try:
        number = int(user)
    except ValueError:
        number = None
    if number is not None and str(number) == user and -(2**63) < number < 2**63:
        return signed(splitmix64(number & MASK))
    return signed(int.from_bytes(hashlib.blake2b(user.encode(), digest_size=8).digest(), "little"))


def signed(number: int) -> int:
    """Two's complement of 64 bits."""
    return number - 2**64 if number >= 2**63 else number


def without_duplicates(rows: list[tuple], duplicates: str) -> list[tuple]:
    """Rows (user, item, time, …) in order of time, repetitions dropped."""
    if duplicates == "keep":
        return rows
    if duplicates == "last":
        return without_duplicates(rows[::-1], "first")[::-1]
    kept, known = [], set()
    for row in rows:
        key = row[:3] if duplicates == "exact" else row[:2]
        if key not in known:
            kept.append(row)
        known.add(key)
    return kept


def one_pass(rows: list[tuple], min_item: int, min_user: int) -> list[tuple]:
    """Items with at least `min_item` interactions, then users with at least `min_user` of those left."""
    items = [row[1] for row in rows]
    rows = [row for row in rows if items.count(row[1]) >= min_item]
    users = [row[0] for row in rows]
    return [row for row in rows if users.count(row[0]) >= min_user]


def core(rows: list[tuple], min_item: int, min_user: int, kind: str) -> list[tuple]:
    """The rows that `core: once` or `core: iterated` leaves."""
    left = one_pass(rows, min_item, min_user)
    while kind == "iterated" and len(left) < len(rows):
        rows, left = left, one_pass(left, min_item, min_user)
    return left


def prepare(rows: list[tuple], *, duplicates: str, kind: str, min_item: int, min_user: int) -> tuple[dict, dict]:
    """Histories by user, as item indices, and (index, training count) by item, of rows (user, item, time)."""
    rows = without_duplicates(sorted(rows, key=lambda row: row[2]), duplicates)
    rows = core(rows, min_item, min_user, kind)
    index = {item: 1 + place for place, item in enumerate(sorted({row[1] for row in rows}))}
    histories: dict = {}
    for user, item, _ in rows:
        histories.setdefault(user, []).append(index[item])
    trained = [item for history in histories.values() for item in history[:-2]]
    return histories, {item: (place, trained.count(place)) for item, place in index.items()}


def examples(
    histories: list[list[int]], held_out: int, max_length: int, asked: list[bool] | None = None
) -> list[tuple]:
    """(padded history, target, seen items) of each history with at least three items, or of those asked for."""
    found = []
    for history, wanted in zip(histories, asked or [True] * len(histories), strict=True):
        if len(history) >= 3 and wanted:
            seen, target = history[:-held_out], history[-held_out]
            last = seen[-max_length:]
            found.append(([0] * (max_length - len(last)) + last, target, seen))
    return found
