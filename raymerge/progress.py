"""What a person sees while stages work: bars on a terminal, a line a stage and a line a minute in a log."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from raymerge.events import Event, Progress

LINE_EVERY_S = 60.0


def display(console: Console) -> "BarDisplay | LineDisplay":
    """Bars where there is a terminal, lines elsewhere."""
    return BarDisplay(console) if console.is_terminal else LineDisplay(console)


class BarDisplay:
    """A bar for each run: how far, how long yet, and the figures of interest."""

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

    def __call__(self, message: Event | Progress) -> None:
        """Move the bar of the run that the message is about."""
        if isinstance(message, Event):
            return
        if message.run not in self._tasks:
            self._tasks[message.run] = self._bars.add_task(message.run, total=message.total, note="")
        task = self._tasks[message.run]
        self._bars.update(task, completed=message.done, total=message.total, note=message.note)


class LineDisplay:
    """A line when a run starts, once a minute while it works, and when it is done."""

    def __init__(self, console: Console, *, every_s: float = LINE_EVERY_S) -> None:
        self._console = console
        self._every_s = every_s
        self._begin = time.monotonic()
        self._started: dict[str, tuple[float, float]] = {}  # when, and how much was done already
        self._printed: dict[str, float] = {}
        self._done: set[str] = set()

    def __enter__(self) -> "LineDisplay":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def __call__(self, message: Event | Progress) -> None:
        """Print a line if one is due for the run that the message is about."""
        if isinstance(message, Event) or message.run in self._done:
            return
        now = time.monotonic()
        self._started.setdefault(message.run, (now, message.done))
        finished = message.done >= message.total
        if not finished and now - self._printed.get(message.run, -self._every_s) < self._every_s:
            return
        self._printed[message.run] = now
        self._done |= {message.run} if finished else set()
        self._console.print(self._line(message, now, finished), markup=False, highlight=False, soft_wrap=True)

    def _line(self, message: Progress, now: float, finished: bool) -> str:
        clock = _clock(now - self._begin)
        start, found = self._started[message.run]
        seconds, made = now - start, message.done - found
        if finished:
            state = f"done in {_clock(seconds)}"
        elif made:
            left = seconds * (message.total - message.done) / made
            state = f"{message.done / message.total:4.0%}, about {_clock(left)} left"
        else:
            state = f"{message.done / message.total:4.0%} found, goes on" if found else "started"
        return f"{clock}  {message.run:<18} {state}" + (f"  {message.note}" if message.note else "")


def _clock(seconds: float) -> str:
    """Minutes and seconds, hours where there are any.

    >>> _clock(75), _clock(3723)
    ('1:15', '1:02:03')
    """
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
