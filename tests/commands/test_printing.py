"""Tables where there is no terminal, as in a file or the log of a job."""

import pytest
from tracking.examples import example_report

from raymerge.commands.printing import console, print_metrics
from raymerge.recipes import configure
from raymerge.tracking.report import render


def test_metrics_of_many_models_are_one_line_for_each_model_and_ranking(capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"next_item-{number:08x}" for number in range(8)]
    kinds = [f"{metric}@{k}" for metric in ("ndcg", "hr") for k in (5, 10, 20)]
    values = {f"{ranking}.{kind}": 0.1234 for ranking in ("full", "pop100") for kind in kinds}
    print_metrics(configure("demo", []), dict.fromkeys(names, values))
    lines = capsys.readouterr().out.splitlines()
    [heading] = [line for line in lines if "model" in line]
    assert all(kind in heading for kind in kinds)
    for name in names:
        mine = [line for line in lines if name in line]
        assert [("full" in line, "pop100" in line) for line in mine] == [(True, False), (False, True)]
        assert all(line.count("0.1234") == len(kinds) for line in mine)


def test_a_report_is_neither_cut_nor_padded(capsys: pytest.CaptureFixture[str]) -> None:
    console().print(render(example_report()))
    lines = capsys.readouterr().out.splitlines()
    [judgement] = [line for line in lines if "Not significantly different from the uniform average: " in line]
    assert judgement.endswith("p = 0.12).")
    assert max(map(len, lines)) < 200
