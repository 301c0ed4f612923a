"""What the commands print on: a rich console, and the progress of several worker processes."""

from __future__ import annotations

import os
import time
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

_PIPED_WIDTH = 100
_SECONDS_BETWEEN_LINES = 3.0


def open_console(*, stderr: bool = False) -> Console:
    """Return a console on stdout or stderr; what is piped gets a fixed width, unless COLUMNS says another."""
    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _PIPED_WIDTH
    return console


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
