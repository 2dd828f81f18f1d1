"""Counter-based random numbers: bits equal to the reference's, which depend only on the counters."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles_splitmix import MASK, splitmix64

from raymerge.models.draws import hashed, uniform
from raymerge.splitmix import Stream

WORD = st.integers(-(2**63), 2**63 - 1)


@settings(max_examples=50, deadline=None)
@given(WORD, WORD)
def test_the_hash_applies_splitmix64_once_per_counter(first: int, second: int) -> None:
    expected = splitmix64(splitmix64(int(Stream.ROW) ^ (first & MASK)) ^ (second & MASK))
    assert int(hashed(Stream.ROW, first, torch.tensor(second))) & MASK == expected


def test_words_are_on_the_device_of_the_counters() -> None:
    assert hashed(Stream.VIEW, 3, torch.zeros(2, dtype=torch.int64, device="meta"), 1).device.type == "meta"


def test_uniform_numbers_fill_the_unit_interval_and_streams_differ() -> None:
    counters = torch.arange(20000)
    drawn = uniform(Stream.ROW, 0, counters)
    assert float(drawn.min()) >= 0 and float(drawn.max()) < 1
    histogram = torch.histc(drawn.float(), bins=20, min=0, max=1)
    assert ((histogram - 1000).abs() < 150).all()  # five standard deviations
    other = uniform(Stream.VIEW, 0, counters)
    assert abs(float(torch.corrcoef(torch.stack([drawn, other]))[0, 1])) < 0.03


def test_a_rows_draws_do_not_depend_on_other_rows() -> None:
    seeds = torch.tensor([5, 9, -3])
    together = uniform(Stream.VIEW, seeds[:, None], torch.arange(7))
    assert torch.equal(together[1:2], uniform(Stream.VIEW, seeds[1:2, None], torch.arange(7)))
