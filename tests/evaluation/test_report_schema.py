"""What a report may contain, and how anything else is refused."""

import json
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
from tracking.examples import example_report

from raymerge.errors import ArtifactError
from raymerge.evaluation.report_schema import loads


def test_a_report_survives_its_file() -> None:
    assert loads(json.dumps(example_report())) == example_report()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.update(schema=2), "schema 2, this version of raymerge reads 1"),
        (lambda content: content.pop("schema"), "not a report"),
        (lambda content: content["data"].update(users="many"), "data.users: .*integer"),
        (lambda content: content["rows"][0].update(kind="oracle"), "rows.0.kind"),
        (
            lambda content: content["rows"][0]["metrics"]["full"]["ndcg@10"].pop("low"),
            "rows.0.metrics.full.ndcg@10.low",
        ),
    ],
)
def test_a_wrong_report_is_refused_with_the_name_of_the_key(
    change: Callable[[dict[str, Any]], object], message: str
) -> None:
    content = deepcopy(example_report())
    change(content)
    with pytest.raises(ArtifactError, match=message):
        loads(json.dumps(content))


def test_a_truncated_file_is_refused() -> None:
    with pytest.raises(ArtifactError, match="cut off"):
        loads(json.dumps(example_report())[:-20])
