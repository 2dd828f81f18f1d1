"""The items visible from a place, against Python sets."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raymerge.models.repeats import Repeats, add_shift, contains, distinct_columns, repeat_direction

ITEMS = 6
ROWS = st.lists(st.lists(st.integers(0, ITEMS + 1), min_size=5, max_size=5), min_size=1, max_size=4)


def names(had: torch.Tensor) -> list[list[int]]:
    """The columns of each row, in order."""
    return [sorted(column for column in row if column >= 0) for row in had.tolist()]


def columns_of(inputs: list[int]) -> list[int]:
    return sorted({item - 1 for item in inputs if 1 <= item <= ITEMS})


@given(ROWS)
def test_each_column_appears_once_where_its_item_first_occurs(rows: list[list[int]]) -> None:
    had = distinct_columns(torch.tensor(rows), ITEMS)
    assert names(had) == [columns_of(row) for row in rows]
    for row, found in zip(rows, had.tolist(), strict=True):
        assert all(column < 0 or row.index(column + 1) == place for place, column in enumerate(found))


@given(ROWS, st.booleans(), st.integers(1, 5), st.data())
def test_places_have_the_columns_they_can_see(
    rows: list[list[int]], causal: bool, chunk: int, data: st.DataObject
) -> None:
    asked = torch.tensor([data.draw(st.lists(st.booleans(), min_size=5, max_size=5)) for _ in rows])
    found = Repeats.before(torch.tensor(rows), asked, torch.ones(3), num_items=ITEMS, causal=causal)
    places = asked.nonzero().tolist()
    had = [row for start in range(0, len(places), chunk) for row in names(found.of(slice(start, start + chunk)))]
    seen = [rows[window][: place + 1] if causal else rows[window] for window, place in places]
    assert had == [columns_of(row) for row in seen]
    some = torch.tensor([0, 2, 5])
    offered = [
        row
        for start in range(0, len(places), chunk)
        for row in names(found.among(some).of(slice(start, start + chunk)))
    ]
    assert offered == [[place for place, column in enumerate([0, 2, 5]) if column in row] for row in had]


@given(ROWS, st.integers(1, ITEMS))
def test_shifts_and_lookups_reach_each_column_in_the_history(rows: list[list[int]], width: int) -> None:
    had = distinct_columns(torch.tensor(rows), ITEMS)
    expected = torch.tensor([[column in columns_of(row) for column in range(ITEMS)] for row in rows])
    shift = torch.arange(1.0, len(rows) + 1)
    scores = torch.zeros(len(rows), ITEMS)
    for first in range(0, ITEMS, width):
        block = torch.zeros(len(rows), min(width, ITEMS - first))
        add_shift(block, had, shift, first=first)
        scores[:, first : first + width] = block
    assert torch.equal(scores, expected * shift[:, None])
    assert torch.equal(contains(had.sort(dim=1).values, torch.arange(ITEMS).expand(len(rows), -1)), expected)


@pytest.mark.parametrize("value", [None, 3])
def test_other_attributes_of_that_name_are_not_a_direction(value: object) -> None:
    module = torch.nn.Linear(2, 2)
    assert repeat_direction(module) is None
    module.repeat_direction = value
    assert repeat_direction(module) is None
