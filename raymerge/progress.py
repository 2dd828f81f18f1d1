"""Progress display: bars on a terminal; in a log, lines per stage and a line per minute."""

import threading
import time
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from raymerge.events import Message, Progress

LINE_EVERY_S = 60.0
START_AFTER_S, TICK_S = 2.0, 0.5


def display(console: Console) -> "BarDisplay | LineDisplay":
    """Bars on a terminal, lines elsewhere."""
    return BarDisplay(console) if console.is_terminal else LineDisplay(console)


class BarDisplay:
    """One bar per run: progress, remaining time, and a note."""

    def __init__(self, console: Console) -> None:
        self._bars = Bars(
            TextColumn("{task.description:<16}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> "BarDisplay":
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def __call__(self, message: Message) -> None:
        """Update the bar of the message's run."""
        if not isinstance(message, Progress):
            return
        if message.run not in self._tasks:
            self._tasks[message.run] = self._bars.add_task(message.run, total=message.total, note="")
        task = self._tasks[message.run]
        self._bars.update(task, completed=message.done, total=message.total, note=message.note)


@dataclass
class _Run:
    """A run: when it started, how much was done by then, when it was last printed, its latest message."""

    started: float
    found: float
    printed: float | None
    message: Progress


class LineDisplay:
    """A line when a run has started, once a minute while it works, and when it is done.

    A thread prints the minute's line even if a run has no news. A run that finishes within `START_AFTER_S` gets one
    line only.
    """

    def __init__(self, console: Console, *, every_s: float = LINE_EVERY_S) -> None:
        self._console = console
        self._every_s = every_s
        self._begin = time.monotonic()
        self._runs: dict[str, _Run] = {}
        self._done: set[str] = set()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._ticker = threading.Thread(target=self._tick_for_ever, name="progress", daemon=True)

    def __enter__(self) -> "LineDisplay":
        self._ticker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._ticker.join()

    def __call__(self, message: Message) -> None:
        """Record how far a run is; print its last line when it is done."""
        if not isinstance(message, Progress):
            return
        with self._lock:
            if message.run in self._done:
                return
            run = self._runs.setdefault(message.run, _Run(time.monotonic(), message.done, None, message))
            run.message = message
            if message.done >= message.total:
                self._done.add(message.run)
                self._print(self._runs.pop(message.run), finished=True)

    def tick(self) -> None:
        """Print the lines that are due."""
        with self._lock:
            now = time.monotonic()
            for run in self._runs.values():
                due = run.started + START_AFTER_S if run.printed is None else run.printed + self._every_s
                if now >= due:
                    self._print(run, finished=False)
                    run.printed = now

    def _tick_for_ever(self) -> None:
        while not self._ended.wait(TICK_S):
            self.tick()

    def _print(self, run: _Run, *, finished: bool) -> None:
        message, now = run.message, time.monotonic()
        seconds, made = now - run.started, message.done - run.found
        if finished:
            state = f"done in {_clock(seconds)}"
        elif run.printed is None:
            state = f"{message.done / message.total:4.0%} found, resumed" if run.found else "started"
        elif not made:
            state = f"started {_clock(seconds)} ago"
        else:
            left = seconds * (message.total - message.done) / made
            state = f"{message.done / message.total:4.0%}, about {_clock(left)} left"
        line = f"{_clock(now - self._begin)}  {message.run:<20} {state}"
        note = f"  {message.note}" if message.note else ""
        self._console.print(line + note, markup=False, highlight=False, soft_wrap=True)


def _clock(seconds: float) -> str:
    """Minutes and seconds, with hours if there are any.

    >>> _clock(75), _clock(3723)
    ('1:15', '1:02:03')
    """
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
