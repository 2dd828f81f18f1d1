"""The report: the table in the terminal, and a page in which everything is escaped."""

import io
import re
from html.parser import HTMLParser

from rich.console import Console
from tracking.examples import comparison, example_report

from raymerge.evaluation.report_schema import Report
from raymerge.tracking import plots, report


def printed(content: Report, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(report.render(content))
    return console.file.getvalue()  # type: ignore[attr-defined]


def line_of(text: str, start: str) -> str:
    [line] = [line for line in text.splitlines() if line.startswith("│") and line.strip(" │").startswith(start)]
    return line


def test_the_table_shows_the_three_metrics_and_marks_the_best_but_no_ensemble() -> None:
    text = printed(example_report())
    best = line_of(text, "merge + fine-tuning")
    assert re.findall(r"\d\.\d{4}\*?", best) == ["0.1400*", "0.1360", "0.1440", "0.1680*", "0.2800*"]
    assert "*" not in line_of(text, "ensemble")
    assert text.count("*") == 4, "three marks and their explanation"
    assert "Test, leave-one-out, full ranking, seen items filtered, last 50 items, 6,040 users" in text


def test_models_that_print_the_same_are_both_best() -> None:
    content = example_report()
    content["rows"][3]["metrics"]["full"]["ndcg@10"]["mean"] = 0.140004
    assert report.best_names(content, "ndcg@10") == {"Fisher merge", "merge + fine-tuning"}


def test_the_table_fits_an_80_column_terminal() -> None:
    assert all("…" not in line for line in printed(example_report(), width=80).splitlines())


def test_the_verdict_names_each_reference_and_whether_the_difference_is_significant() -> None:
    assert report.verdict(example_report()) == [
        "Chosen on validation: merge + fine-tuning. Its NDCG@10 on test is 0.1400.",
        "Significantly better than the best member (duorec): +0.0100, +7.7% (+0.0050 to +0.0150, p = 0.004).",
        "Not significantly different from the uniform average: +0.0040, +2.9% (-0.0010 to +0.0090, p = 0.12).",
        "p values are Holm-corrected.",
    ]


def test_a_name_that_is_only_part_of_a_word_of_the_verdict_is_given_too() -> None:
    content = example_report()
    content["rows"][1]["name"] = "b"
    content["comparisons"] = [comparison("b", 0.01, p_holm=0.004)]
    assert "better than the best member (b): " in report.verdict(content)[1]


def test_the_verdict_says_when_it_is_worse_and_when_nothing_was_compared() -> None:
    content = example_report()
    content["comparisons"] = [comparison("duorec", -0.01, p_holm=0.01)]
    assert report.verdict(content)[1].startswith("Significantly worse than the best member (duorec): -0.0100")
    content["comparisons"] = []
    assert report.verdict(content)[1:] == ["It was not compared with other models."]


def test_the_verdict_is_about_the_model_that_validates_best_even_if_another_is_better_on_test() -> None:
    content = example_report()
    content["final"] = "Fisher merge"
    assert report.verdict(content)[0] == "Chosen on validation: Fisher merge. Its NDCG@10 on test is 0.1380."


class Page(HTMLParser):
    """Collects what a browser would act on."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_holds_every_ranking_every_comparison_and_the_plots_and_needs_no_other_file() -> None:
    content = example_report()
    page = Page(report.to_html(content, {"NDCG@10": plots.to_png(plots.metric_bars(content))}))
    assert page.tags.count("img") == 1
    assert all(source.startswith("data:image/png;base64,iVBOR") for source in page.sources)
    for expected in (
        "full ranking",
        "uni100 ranking",
        "0.1360 to 0.1440",
        "+7.7 %",
        "0.1400*",
        "Significantly better",
        "0123456789abcdef",
    ):
        assert expected in page.text, expected


def test_the_page_shows_which_members_hit_which_users_if_there_are_several() -> None:
    content = example_report()
    assert "Users by the members" not in Page(report.to_html(content, {})).text
    groups = [{"members": "no member", "users": 4321, "hits": {"fisher": 17, "ensemble of 2": 18}}]
    content["overlap"] = {"k": 10, "ranking": "full", "groups": groups}
    text = Page(report.to_html(content, {})).text
    assert re.search(r"no member\s*4,321\s*17\s*18", text), text


def test_names_are_escaped_in_page_and_terminal() -> None:
    content = example_report()
    content["rows"][0]["name"] = "<script>alert(1)</script>[bold red]"
    content["artifacts"]["models"]["duorec"] = '"><img src="https://example.org/x">'
    page = Page(report.to_html(content, {'a"b<c>': b"\x89PNG"}))
    assert "script" not in page.tags
    assert page.tags.count("img") == 1
    assert not [source for source in page.sources if not source.startswith("data:")]
    assert "<script>alert(1)</script>[bold red]" in page.text
    assert "[bold red]" in printed(content, width=160)
