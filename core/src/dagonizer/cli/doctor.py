"""``dagonizer doctor``: what can hurt a store's users later, and how to mend it."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing, contextmanager
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, get_args

import msgspec
from rich.text import Text

from dagonizer.cli.outcome import FAILED, NO, YES, printable, termination_as_interrupt
from dagonizer.cli.terminal import open_console
from dagonizer.diagnosis import CONNECTION, DURABILITY, Finding, Verdict
from dagonizer.registry import diagnose_store
from dagonizer.url import StoreURL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from rich.console import Console

P = ParamSpec("P")
T = TypeVar("T")

_VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
_STYLES = dict(zip(_VERDICTS, ("green", "cyan", "yellow", "bold red"), strict=True))
_MARKS = dict(zip(_VERDICTS, "✓·!✗", strict=True))
_ASCII_MARKS = dict(zip(_VERDICTS, "+.!x", strict=True))

# Wide enough for nearly every name of a check.
_CHECK_WIDTH = 19
_NARROWEST = 20

# Seconds that calls in threads have to end after the examination.
_GRACE = 5.0


def examine(url: str, *, as_json: bool) -> int:
    """Examine the store of ``url`` and print each finding as it is found, or all of them as JSON."""
    with termination_as_interrupt():
        findings = asyncio.run(_examine(url, as_json=as_json))
    if as_json:
        document = {"store": str(StoreURL.parse(url)), "findings": findings, "verdict": worst_verdict(findings)}
        print(json.dumps(msgspec.to_builtins(document), indent=2))
    else:
        _print_counts(open_console(), findings)
    if any((finding.check, finding.verdict) == (CONNECTION, "bad") for finding in findings):
        return FAILED
    return NO if worst_verdict(findings) in {"warning", "bad"} else YES


def worst_verdict(findings: Sequence[Finding]) -> Verdict:
    """Return the worst verdict of ``findings``."""
    return _VERDICTS[max((_VERDICTS.index(finding.verdict) for finding in findings), default=0)]


async def _examine(url: str, *, as_json: bool) -> list[Finding]:
    asyncio.get_running_loop().set_default_executor(_DaemonThreads())
    console = open_console(stderr=as_json)
    found: list[Finding] = []
    async with aclosing(diagnose_store(url)) as findings:
        if not as_json:
            console.print(Text(printable(str(StoreURL.parse(url))), style="bold"), end="\n\n")
        with _status(console):
            async for finding in findings:
                found.append(finding)
                if not as_json:
                    _print_finding(console, finding)
    return found


@contextmanager
def _status(console: Console) -> Iterator[None]:
    """Show that something goes on, at a terminal."""
    if not console.is_terminal:
        yield
        return
    with console.status("examining"):
        yield


def _print_finding(console: Console, finding: Finding) -> None:
    if finding.check == DURABILITY:
        console.print()
    marks = _ASCII_MARKS if console.options.ascii_only else _MARKS
    style = _STYLES[finding.verdict]
    check = printable(finding.check)
    beginning = Text.assemble((marks[finding.verdict], style), " ", (f"{check:<{_CHECK_WIDTH}}", "bold"), " ")
    _print_hanging(console, beginning, finding.message, style if finding.check == DURABILITY else "")
    if finding.remedy is not None:
        arrow = "->" if console.options.ascii_only else "→"
        _print_hanging(console, Text.assemble(" " * (_CHECK_WIDTH + 3), (arrow, style), " "), finding.remedy)


def _print_hanging(console: Console, beginning: Text, text: str, style: str = "") -> None:
    """Print ``text`` after its ``beginning``, and its further lines below where it begins."""
    indent = beginning.cell_len
    width = max(console.width - indent, _NARROWEST)
    for line in Text(printable(text), style=style).wrap(console, width):
        line.rstrip()
        console.print(Text.assemble(beginning, line), soft_wrap=True)
        beginning = Text(" " * indent)


def _print_counts(console: Console, findings: Sequence[Finding]) -> None:
    counts = Counter(finding.verdict for finding in findings)
    parts = [
        (_counted(counts[verdict], verdict), _STYLES[verdict] if counts[verdict] else "dim") for verdict in _VERDICTS
    ]
    console.print()
    console.print(Text(", ").join(Text(text, style=style) for text, style in parts))


def _counted(number: int, verdict: Verdict) -> str:
    plural = verdict in {"note", "warning"} and number != 1
    return f"{number} {verdict}{'s' if plural else ''}"


class _DaemonThreads(ThreadPoolExecutor):
    """Makes each call in a thread for which the end of the process does not wait for ever.

    A call to a dead network file system does not return, and the examination has long said so.
    """

    def __init__(self) -> None:
        super().__init__()
        self._mine: list[threading.Thread] = []

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Begin a call."""
        future: Future[T] = Future()

        def work() -> None:
            try:
                future.set_result(fn(*args, **kwargs))
            except BaseException as exc:  # noqa: BLE001 - it is for whoever awaits the result
                future.set_exception(exc)

        future.set_running_or_notify_cancel()
        thread = threading.Thread(target=work, daemon=True)
        self._mine.append(thread)
        thread.start()
        return future

    def shutdown(self, wait: bool = True, **_: Any) -> None:  # noqa: ANN401, FBT001, FBT002 - the signature is not ours
        """Wait a little, if at all."""
        until = time.monotonic() + _GRACE
        for thread in self._mine if wait else ():
            thread.join(max(0.0, until - time.monotonic()))
