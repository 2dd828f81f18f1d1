"""The display: a line when a run starts, each minute, and when it is done; bars on a terminal."""

import io
import time

import pytest
from rich.console import Console

from raymerge import progress
from raymerge.events import Event, Progress
from raymerge.progress import BarDisplay, LineDisplay, display


class Clock:
    """Replaces the time in a display, so that lines do not depend on the speed of the test."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(progress, "time", found)
    return found


def shown(clock: Clock, *messages: tuple[float, Event | Progress]) -> list[str]:
    """Lines printed when each message comes at its second, with ticks each half second."""
    console = Console(file=io.StringIO(), width=200)
    show = LineDisplay(console)
    for second, message in messages:
        while clock.now < second:
            clock.now += 0.5
            show.tick()
        show(message)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_quiet_run_has_a_line_at_its_start_and_one_at_its_end(clock: Clock) -> None:
    steps = [(5.0 * done, Progress("train/base", done, 9)) for done in range(10)]
    printed = shown(clock, *steps, (46, Event("train/base", "loss", 1, 0.5)), (47, Progress("train/base", 9, 9)))
    assert [("started" in line, "done in 0:45" in line) for line in printed] == [(True, False), (False, True)]


def test_run_that_is_done_at_once_has_one_line(clock: Clock) -> None:
    printed = shown(clock, (0, Progress("evaluate/base", 0, 9)), (1, Progress("evaluate/base", 1, 1, "done")))
    assert len(printed) == 1
    assert "done in 0:01" in printed[0]


def test_long_run_reports_progress_and_remaining_time_each_minute(clock: Clock) -> None:
    first, second = Progress("fisher/duorec", 0, 4), Progress("fisher/duorec", 1, 4, "120 users/s")
    printed = shown(clock, (0, first), (100, second), (300, Progress("fisher/duorec", 4, 4)))
    assert "started" in printed[0]
    assert "started 1:02 ago" in printed[1]
    assert "25%, about" in printed[2]
    assert printed[2].endswith("120 users/s")
    assert len(printed) == 6  # a start, one each minute although no message came, an end


def test_lines_appear_without_new_messages() -> None:
    console = Console(file=io.StringIO(), width=200)
    with LineDisplay(console, every_s=0) as show:
        show(Progress("train/base", 0, 9))
        end = time.monotonic() + 10
        while len(console.file.getvalue().splitlines()) < 2 and time.monotonic() < end:  # type: ignore[attr-defined]
            time.sleep(0.05)
    assert "started" in console.file.getvalue()  # type: ignore[attr-defined]


def test_reused_work_does_not_count_as_fast_work(clock: Clock) -> None:
    messages = [Progress("fisher/duorec", done, 8, "90 users/s") for done in (6, 7, 8)]
    printed = shown(clock, (0, messages[0]), (10, messages[1]), (100, messages[2]))
    assert "75% found, resumed" in printed[0]
    assert "88%, about 1:02 left" in printed[1]


def test_terminal_gets_bars_and_a_log_gets_lines() -> None:
    terminal = Console(file=io.StringIO(), force_terminal=True, width=120)
    assert isinstance(display(terminal), BarDisplay)
    assert isinstance(display(Console(file=io.StringIO())), LineDisplay)
    with display(terminal) as show:
        show(Progress("train/base", 1, 2, "half way"))
    assert "half way" in terminal.file.getvalue()  # type: ignore[attr-defined]
