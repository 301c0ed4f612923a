"""What the commands print on: a rich console, and the progress of several worker processes."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from dagonizer.cli.outcome import printable

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from rich.console import RenderableType
    from rich.measure import Measurement

NARROW = 80
"""In how many columns what is drawn has room; fewer are written over the edge where something would be lost."""

_PIPED_WIDTH = 100
_ANY_WIDTH = 100_000
_SECONDS_BETWEEN_LINES = 3.0


def open_console(*, stderr: bool = False) -> Console:
    """Return a console on stdout or stderr; what is piped gets a fixed width, unless COLUMNS says another."""
    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _PIPED_WIDTH
    return console


def measured(console: Console, renderable: RenderableType) -> Measurement:
    """Return how wide ``renderable`` must be and can be, however wide ``console`` is; narrower, parts are left out."""
    return console.measure(renderable, options=console.options.update_width(_ANY_WIDTH))


def say(text: str) -> None:
    """Print a line for people on stderr, without what could move a terminal's cursor."""
    print(printable(text), file=sys.stderr)


class WorkerProgress(Protocol):
    """Shows what several workers do."""

    def show(self, worker: str, event: dict[str, Any]) -> None:
        """Take in one event of ``worker``: the ``node`` it is at, or its ``progress`` there."""

    def end(self, worker: str, how: str) -> None:
        """Say that ``worker`` has ended, and how."""

    def note(self, text: str) -> None:
        """Say something between the progress of the workers."""


class Bars:
    """One progress bar for each worker, for a terminal."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def show(self, worker: str, event: dict[str, Any]) -> None:
        """Move the bar of ``worker``."""
        task = self._task(worker)
        if event["event"] == "progress":
            self._progress.update(task, node=event["node"], completed=event["done"], total=event["total"])
        elif event["event"] == "node":
            self._progress.update(task, node=event["name"])

    def end(self, worker: str, how: str) -> None:
        """Stop the bar of ``worker`` where it is."""
        task = self._task(worker)
        self._progress.update(task, node=how)
        self._progress.stop_task(task)

    def note(self, text: str) -> None:
        """Print ``text`` above the bars."""
        self._progress.console.print(Text(text))

    def _task(self, worker: str) -> TaskID:
        if worker not in self._tasks:
            self._tasks[worker] = self._progress.add_task(worker, total=None, node="starting")
        return self._tasks[worker]


class Lines:
    """A line for each node and every few seconds, for a pipe or a file."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._said: dict[str, float] = {}

    def show(self, worker: str, event: dict[str, Any]) -> None:
        """Print a line if there is something new to say of ``worker``."""
        if event["event"] == "node":
            self._say(worker, event["name"])
        elif event["event"] == "progress" and time.monotonic() - self._said[worker] > _SECONDS_BETWEEN_LINES:
            self._say(worker, f"{event['node']} {event['done']:,} of {event['total']:,}")

    def end(self, worker: str, how: str) -> None:
        """Print how ``worker`` ended."""
        self._say(worker, how)

    def note(self, text: str) -> None:
        """Print ``text``."""
        self._console.print(Text(text))

    def _say(self, worker: str, what: str) -> None:
        self._said[worker] = time.monotonic()
        self._console.print(Text(f"{worker:<15}{what}"))


class _Seconds(ProgressColumn):
    """The age of a worker. Rich's own column stops when a bar is full, here after the first node."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.elapsed or 0:5.1f} s", style="dim")


def worker_bars(console: Console) -> Progress:
    """Return the progress display that ``Bars`` writes on."""
    return Progress(
        TextColumn("{task.description:<15}", style="bold", markup=False),
        TextColumn("{task.fields[node]:<18}", markup=False),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        _Seconds(),
        console=console,
    )


class EntryProgress:
    """How far a command that goes through many entries has come, on stderr.

    A terminal gets a bar with the rate and the time left, anything else a line every few seconds.
    """

    def __init__(self, doing: str) -> None:
        self._doing = doing
        self._console = open_console(stderr=True)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._total = 0
        self._done = 0
        self._bytes = 0
        self._started = self._said = time.monotonic()

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}", style="dim", markup=False),
                TimeRemainingColumn(),
                console=self._console,
                expand=True,
                # What a command prints on stdout is not the console's business.
                redirect_stdout=False,
                redirect_stderr=False,
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task(self._doing, total=None, rate="")
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None, /
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def expect(self, total: int) -> None:
        """Say how many entries there are; the clock begins."""
        self._total = total
        self._started = self._said = time.monotonic()
        if self._bar is not None and self._task is not None:
            self._bar.reset(self._task, total=total)

    def advance(self, size: int) -> None:
        """Say that one more entry is done, for which ``size`` bytes were handled."""
        self._done += 1
        self._bytes += size
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, advance=1, rate=self._rate())
        elif time.monotonic() - self._said > _SECONDS_BETWEEN_LINES:
            self._said = time.monotonic()
            left = (self._total - self._done) * (self._said - self._started) / self._done
            say(f"{self._doing}: {self._done:,} of {self._total:,}, {self._rate()}, {left:.0f} s left")

    def note(self, text: str) -> None:
        """Print a line above the bar."""
        if self._bar is None:
            say(text)
        else:
            self._console.print(Text(printable(text)))

    def _rate(self) -> str:
        seconds = max(time.monotonic() - self._started, 1e-3)
        return f"{self._done / seconds:,.0f}/s {decimal(int(self._bytes / seconds))}/s"
