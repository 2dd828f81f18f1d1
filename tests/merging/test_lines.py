"""Lines between members: how many models stand on them, counted by name."""

import pytest

from raymerge.merging.lines import POINTS, coefficients, models_on_lines, pairs


@pytest.mark.parametrize("members", range(1, 9))
def test_models_on_lines_are_counted_once_each(members: int) -> None:
    names = [f"m{number}" for number in range(members)]
    points = {coefficients(names, first, second, t) for first, second in pairs(names) for t in POINTS}
    assert models_on_lines(members) == len(points)
    assert all(sum(point) == 1 for point in points)
