"""Preparing in the driver ends with the deadline, and commits nothing that no model could be chosen on."""

from dataclasses import replace
from pathlib import Path

import pytest
from stages.contexts import MakeContext

from raymerge.errors import InputError, ResourceError
from raymerge.execution.deadline import Deadline
from raymerge.stages.prepare import prepare


def test_stage_of_the_driver_is_given_up_after_the_deadline(make_context: MakeContext, log: Path) -> None:
    late = replace(make_context("out"), deadline=Deadline(0.0))
    with pytest.raises(ResourceError, match="prepare was not done within 0 hours; run the same command again"):
        prepare(late, [str(log)])
    assert prepare(make_context("out"), [str(log)]).counts["users"] > 100


def test_a_log_on_which_nobody_validates_is_refused(make_context: MakeContext, tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user,item,timestamp\nu,i,1\nv,j,2\n")
    context = make_context("out", "prepare.min_item_count=1", "prepare.min_user_count=1")
    with pytest.raises(InputError, match="none of the 2 users has the 3 items that it takes to validate"):
        prepare(context, [str(tmp_path / "log.csv")])
    assert not (tmp_path / "out" / "prepare").exists()
