"""Groups of users by the members that hit them, held against sets."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from raymerge.evaluation.overlap import by_agreement


@given(st.integers(2, 5).flatmap(lambda models: st.lists(st.lists(st.booleans(), min_size=models, max_size=models))))
def test_each_user_is_in_the_group_of_those_who_hit_it(users: list[list[bool]]) -> None:
    names = [f"m{number}" for number in range(len(users[0]) if users else 2)]
    hits = {name: torch.tensor([row[at] for row in users], dtype=torch.bool) for at, name in enumerate(names)}
    groups = by_agreement(hits)
    for user, row in enumerate(users):
        by = [name for name, hit in zip(names, row, strict=True) if hit]
        words = {0: "no member", len(names): "all members", 1: f"only {by[0]}" if by else ""}
        expected = words.get(len(by), "several members")
        assert [group for group, inside in groups.items() if inside[user]] == [expected]
