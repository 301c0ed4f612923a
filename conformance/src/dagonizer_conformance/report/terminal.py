"""What a run prints: its progress, and in the end what it found."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import rich.progress
from rich.table import Column, Table
from rich.text import Text

from dagonizer_conformance.report._timeline import history_lines
from dagonizer_conformance.report._visible import made_visible, visible
from dagonizer_conformance.report._wording import (
    NO_LEVEL_WITHOUT_ALL,
    STATUS_MEANINGS,
    SYMBOLS,
    by_group,
    capability_standing,
    duration,
    failures,
    level_standing,
    verdict,
)
from dagonizer_conformance.results import Capability, Level, Status

if TYPE_CHECKING:
    from types import TracebackType

    from rich.console import Console

    from dagonizer_conformance.results import Report, Result

STATUS_STYLES = {
    Status.PASS: "green",
    Status.FAIL: "bold red",
    Status.XFAIL: "yellow",
    Status.UNSUPPORTED: "dim",
    Status.UNVERIFIED: "blue",
    Status.INCONCLUSIVE: "magenta",
    Status.ERROR: "bold magenta",
}
"""How each status is printed."""
VERDICT_STYLES = {0: "bold green", 1: "bold red", 2: "bold magenta", 3: "bold magenta"}
"""How the verdict of each exit code is printed."""
_INDENT = "    "
_STATUS_WIDTH = max(len(status) for status in Status)
_UNSETTLED = (Status.XFAIL, Status.UNSUPPORTED, Status.UNVERIFIED, Status.INCONCLUSIVE)


class Progress:
    """Shows how far a run has come: a bar on a terminal, a line for each finished case elsewhere.

    ``with Progress(console) as progress:`` around the run, ``started`` and ``finished`` for each of its cases.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._counts = dict.fromkeys(Status, 0)
        self._bar = rich.progress.Progress(
            rich.progress.SpinnerColumn(),
            rich.progress.TextColumn(
                "{task.description}",
                markup=False,
                table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"),
            ),
            rich.progress.BarColumn(bar_width=24),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TextColumn("{task.fields[counts]}", markup=False, table_column=Column(no_wrap=True)),
            rich.progress.TimeElapsedColumn(),
            console=console,
            expand=True,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("starting", total=None, counts="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def started(self, case_id: str, number: int, total: int) -> None:
        """Say that the case ``case_id`` is run now, the ``number``-th of ``total``, counted from 1."""
        self._bar.update(self._task, description=visible(case_id), completed=number - 1, total=total)

    def finished(self, result: Result) -> None:
        """Count ``result``; print it if it has to be looked into, or if there is no bar to show that it is over."""
        result = made_visible(result)
        self._counts[result.status] += 1
        if not self._console.is_terminal:
            self._console.print(_line(result))
        elif result.status in {Status.FAIL, Status.ERROR}:
            self._bar.console.print(_line(result))
            _print_indented(result.detail, self._bar.console, "dim")
        counts = "  ".join(f"{n} {SYMBOLS[status]}" for status, n in self._counts.items() if n)
        self._bar.update(self._task, advance=1, counts=counts)


def print_report(report: Report, console: Console) -> None:
    """Print what was earned, the groups, the failures with what reproduces them, and the verdict as the last line."""
    report = made_visible(report)
    console.print()
    console.print(_standings(report))
    if not report.complete:
        console.print(Text(NO_LEVEL_WITHOUT_ALL, style="dim"))
    if report.results:
        console.print()
        console.print(_groups(report))
    _print_reasons(report, console)
    for result in failures(report):
        console.print()
        _print_failure(result, console)
    console.print()
    console.print(Text(verdict(report), style=VERDICT_STYLES[report.exit_code]))


def print_timeline(result: Result, console: Console) -> None:
    """Print the history of ``result``: a line for each operation in the order of their start, drawn as a bar."""
    for line in history_lines(made_visible(result).timeline):
        console.print(Text(line), soft_wrap=True)


def _line(result: Result) -> Text:
    status = (f"{SYMBOLS[result.status]} {result.status:<{_STATUS_WIDTH}}", STATUS_STYLES[result.status])
    return Text.assemble(status, f"  {result.id}  ", (duration(result.seconds), "dim"))


def _standings(report: Report) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(overflow="fold")
    table.add_row(Text("store", style="dim"), Text(report.store))
    run = f"seed {report.seed}, budget {report.budget}, {duration(report.seconds)}"
    versions = f"kit {report.kit_version}, Python {report.python}"
    table.add_row(Text("run", style="dim"), Text(f"{run}, {versions}"))
    for level in Level:
        table.add_row(
            Text(level, style="bold"), _standing(level_standing(report, level), earned=level in report.levels)
        )
    for capability in Capability:
        if any(result.capability == capability for result in report.results):
            standing = _standing(capability_standing(report, capability), earned=capability in report.chips)
            table.add_row(Text(capability, style="bold"), standing)
    return table


def _standing(words: str, *, earned: bool) -> Text:
    return Text(f"✓ {words}", style="bold green") if earned else Text(words, style="dim")


def _groups(report: Report) -> Table:
    statuses = list(report.counts())
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False, header_style="dim")
    table.add_column("group", overflow="fold")
    for status in statuses:
        table.add_column(Text(status), justify="right")
    table.add_column("time", justify="right", style="dim")
    for group, results in by_group(report.results).items():
        counts = [sum(result.status == status for result in results) for status in statuses]
        cells = [
            Text(str(n) if n else "·", style=STATUS_STYLES[status] if n else "dim")
            for status, n in zip(statuses, counts, strict=True)
        ]
        table.add_row(Text(group), *cells, duration(sum(result.seconds for result in results)))
    return table


def _print_reasons(report: Report, console: Console) -> None:
    """Print why cases neither passed nor failed, each reason once with the number of its cases."""
    for status in _UNSETTLED:
        results = [result for result in report.results if result.status == status]
        if not results:
            continue
        console.print()
        console.print(Text.assemble((f"{SYMBOLS[status]} {status}  ", STATUS_STYLES[status]), STATUS_MEANINGS[status]))
        ids: dict[str, list[str]] = {}
        for result in results:
            ids.setdefault(result.detail, []).append(result.id)
        for detail, of_detail in ids.items():
            which = of_detail[0] if len(of_detail) == 1 else f"{len(of_detail)} cases"
            _print_indented(f"{which}: {detail}" if detail else which, console, "dim")


def _print_failure(result: Result, console: Console) -> None:
    console.print(_line(result))
    _print_indented(result.sentence, console, "bold")
    _print_indented(result.detail, console)
    if result.timeline:
        console.print()
        print_timeline(result, console)
    if result.reproduction is not None:
        _print_indented("reproduce:", console, "dim")
        # Never wrapped by us: what is copied must stay a command.
        console.print(Text(result.reproduction), soft_wrap=True)


def _print_indented(text: str, console: Console, style: str = "") -> None:
    if text:
        width = max(console.width - len(_INDENT), 1)
        for line in Text(text, style=style, overflow="fold").wrap(console, width):
            console.print(Text(_INDENT) + line)
