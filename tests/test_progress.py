"""What a person sees: a line when a run starts, once in a while, and when it is done; bars on a terminal."""

import io

import pytest
from rich.console import Console

from raymerge.events import Event, Progress
from raymerge.progress import BarDisplay, LineDisplay, display


def lines(*messages: Event | Progress, every_s: float) -> list[str]:
    console = Console(file=io.StringIO(), width=200)
    with LineDisplay(console, every_s=every_s) as show:
        for message in messages:
            show(message)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_quiet_run_has_a_line_at_its_start_and_one_at_its_end() -> None:
    steps = [Progress("train/base", done, 9) for done in range(10)]
    printed = lines(*steps, Event("train/base", "loss", 1, 0.5), Progress("train/base", 9, 9), every_s=3600)
    assert [("started" in line, "done in" in line) for line in printed] == [(True, False), (False, True)]


def test_long_run_says_how_far_it_is_and_how_long_yet() -> None:
    printed = lines(Progress("fisher/duorec", 0, 4), Progress("fisher/duorec", 1, 4, "120 users/s"), every_s=0)
    assert "25%, about" in printed[1]
    assert printed[1].endswith("120 users/s")


def test_what_was_found_does_not_count_as_fast_work(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 0.0, 10.0])
    monkeypatch.setattr("raymerge.progress.time.monotonic", lambda: next(clock))
    printed = lines(Progress("fisher/duorec", 6, 8), Progress("fisher/duorec", 7, 8, "90 users/s"), every_s=0)
    assert printed[0].endswith("75% found, goes on")
    assert "88%, about 0:10 left" in printed[1]


def test_terminal_gets_bars_and_a_log_gets_lines() -> None:
    terminal = Console(file=io.StringIO(), force_terminal=True, width=120)
    assert isinstance(display(terminal), BarDisplay)
    assert isinstance(display(Console(file=io.StringIO())), LineDisplay)
    with display(terminal) as show:
        show(Progress("train/base", 1, 2, "half way"))
    assert "half way" in terminal.file.getvalue()  # type: ignore[attr-defined]
