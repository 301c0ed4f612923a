"""``dagonizer demo``: kill a worker in the middle, resume in another process, compare with an uninterrupted run."""

from __future__ import annotations

import asyncio
import contextlib
import json
import platform
import signal
import sys
import sysconfig
import tempfile
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import typer
from rich.table import Table
from rich.text import Text

from dagonizer import Checkpoint, open_store
from dagonizer.cli.outcome import UsageError, shown, termination_as_interrupt, without_secrets
from dagonizer.cli.survey import HALTING_NODE, NODES, SurveyState, find_modules
from dagonizer.cli.terminal import NARROW, Bars, Lines, open_console, worker_bars
from dagonizer.errors import DagonizerError
from dagonizer.url import StoreURL

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console

    from dagonizer.cli.terminal import WorkerProgress

FIRST, SECOND, WHOLE = "worker 1", "worker 2", "uninterrupted"
"""What the three workers are called."""

_FEWEST_MODULES = 2
_EVENT_LIMIT = 16 * 1024 * 1024
_SHOWN_STDERR = 4000
_SHOWN_DIFFERENCES = 20
_KILLED = 1 if sys.platform == "win32" else -signal.SIGKILL


class DemoError(DagonizerError):
    """The demo cannot be run, or did not go as it must."""


@dataclass
class Worker:
    """What the parent saw of a worker process: the nodes it started, how far it came, its last word."""

    pid: int
    started: list[str] = field(default_factory=list)
    done: int = 0
    total: int = 0
    result: dict[str, Any] | None = None
    error: str | None = None
    returncode: int | None = None
    stderr: str = ""


@dataclass(frozen=True)
class Outcome:
    """Everything that the demo found out."""

    first: Worker
    second: Worker
    whole: Worker
    cursor: str
    saved_nodes: tuple[str, ...]
    saved_bytes: int
    deleted: bool


def run_demo(store_url: str | None, directory: Path | None, *, as_json: bool) -> int:
    """Run the demo and print what happened; return 0 if the resumed run equals the uninterrupted one, else 1.

    Raises ``DemoError`` or another ``DagonizerError`` if it could not come so far. Ctrl-C and SIGTERM leave nothing
    behind either.
    """
    with termination_as_interrupt():
        return asyncio.run(_run_demo(store_url, directory, as_json=as_json))


async def _run_demo(store_url: str | None, directory: Path | None, *, as_json: bool) -> int:
    root = Path(sysconfig.get_path("stdlib")) if directory is None else directory
    modules = _count_modules(root)
    tree = f"the standard library of Python {platform.python_version()}" if directory is None else str(directory)
    console = open_console(stderr=as_json)
    with contextlib.ExitStack() as stack:
        if store_url is None:
            # The file: store wants an absolute path, and a temporary folder may be behind a link.
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dagonizer-demo-"))).resolve()
            store_url = f"file://{quote(folder.as_posix())}"
        shown_store = _check_store(store_url)
        console.print(Text.assemble(("tree   ", "dim"), f"{tree}, {modules:,} modules"))
        console.print(Text.assemble(("store  ", "dim"), shown_store))
        console.print()
        key = f"demo:{uuid.uuid4()}"
        if console.is_terminal:
            progress: WorkerProgress = Bars(stack.enter_context(worker_bars(console)))
        else:
            progress = Lines(console)
        outcome = await _kill_and_resume(store_url, key, root.resolve(), modules // 2, progress)
    problems = find_problems(outcome)
    if as_json:
        typer.echo(json.dumps(_outcome_json(outcome, problems, tree, shown_store, key), indent=2))
    else:
        _print_outcome(console, outcome, problems)
    return 1 if problems else 0


def find_problems(outcome: Outcome) -> list[str]:
    """Return what is not as it must be; nothing if the resumed run equals the uninterrupted one."""
    resumed, whole = outcome.second.result or {}, outcome.whole.result or {}
    problems = find_differences(whole.get("report"), resumed.get("report"), "report")
    problems += find_differences(whole.get("executed"), resumed.get("executed"), "executed")
    again = [name for name in resumed.get("ran", ()) if name in outcome.saved_nodes]
    if again:
        problems.append(f"worker 2 ran again what worker 1 had executed: {', '.join(again)}")
    if not outcome.deleted:
        problems.append("the checkpoint is still in the store")
    return problems


def find_differences(expected: Any, actual: Any, path: str) -> list[str]:  # noqa: ANN401 - any JSON value
    """Return the paths at which two JSON values differ, each with both values."""
    if isinstance(expected, dict) and isinstance(actual, dict):
        names = dict.fromkeys((*expected, *actual))
        return [d for name in names for d in find_differences(expected.get(name), actual.get(name), f"{path}.{name}")]
    if isinstance(expected, list) and isinstance(actual, list) and len(expected) == len(actual):
        pairs = enumerate(zip(expected, actual, strict=True))
        return [d for index, (one, other) in pairs for d in find_differences(one, other, f"{path}[{index}]")]
    return [] if expected == actual else [f"{path}: uninterrupted {expected!r}, resumed {actual!r}"]


def _count_modules(root: Path) -> int:
    if not root.is_dir():
        raise UsageError(f"--input {shown(without_secrets(str(root)))} is not a directory")
    modules = len(find_modules(root))
    if modules < _FEWEST_MODULES:
        found = "only one Python module" if modules else "no Python modules"
        raise UsageError(f"--input {root} has {found}; the demo needs at least {_FEWEST_MODULES}")
    return modules


def _check_store(url: str) -> str:
    """Return the URL without its secrets. A memory: store is refused at once, not after the first worker's death."""
    parsed = StoreURL.parse(url)
    if parsed.scheme == "memory":
        raise UsageError(_not_shared(parsed))
    return str(parsed)


def _not_shared(url: StoreURL) -> str:
    return (
        f"{url} is seen by one process only; the demo needs a store that two processes share, such as file:///tmp/demo"
    )


async def _kill_and_resume(url: str, key: str, root: Path, stop_at: int, progress: WorkerProgress) -> Outcome:
    arguments = {"store": url, "key": key, "root": str(root)}
    async with open_store(url) as store:
        # A store that cannot be reached, or refuses, says so now.
        await store.load(key)
        whole_task = asyncio.create_task(_work(WHOLE, {**arguments, "store": "memory://reference"}, progress))
        try:
            first = await _work(FIRST, {**arguments, "stop_at": stop_at}, progress, kill_at=stop_at)
            progress.end(FIRST, f"killed in {HALTING_NODE}")
            document = await store.load(key)
            if document is None:
                raise DemoError(_not_shared(StoreURL.parse(url)))
            saved = Checkpoint.restore(document, SurveyState.restore)
            size = len(document.encode())
            nodes = ", ".join(saved.executed_nodes)
            progress.note(f"checkpoint: {size:,} bytes, executed {nodes}; next is {saved.cursor}")
            second = await _work(SECOND, arguments, progress)
            progress.end(SECOND, "done")
            deleted = await store.load(key) is None
            whole = await whole_task
            progress.end(WHOLE, "done")
        finally:
            whole_task.cancel()
            await asyncio.gather(whole_task, return_exceptions=True)
            # After a run that came to its end there is nothing; after a failure nothing is left behind.
            with contextlib.suppress(DagonizerError):
                await store.delete(key)
    return Outcome(first, second, whole, saved.cursor, tuple(saved.executed_nodes), size, deleted)


async def _work(
    name: str, arguments: dict[str, Any], progress: WorkerProgress, *, kill_at: int | None = None
) -> Worker:
    """Run a worker process to its end, which is SIGKILL with ``kill_at``; any other end raises ``DemoError``."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "dagonizer.cli.survey",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=_EVENT_LIMIT,
    )
    if process.stdin is None or process.stdout is None or process.stderr is None:
        raise DemoError(f"{name} has no pipes")
    stderr = asyncio.create_task(process.stderr.read())
    worker = Worker(process.pid)
    try:
        # A worker that dies at once breaks the pipe; its exit code and stderr tell more.
        with contextlib.suppress(ConnectionError):
            process.stdin.write(json.dumps(arguments).encode() + b"\n")
            await process.stdin.drain()
        async for line in process.stdout:
            event = json.loads(line)
            _take_in(worker, event)
            progress.show(name, event)
            if kill_at is not None and worker.started[-1:] == [HALTING_NODE] and worker.done >= kill_at:
                process.kill()
                break
        worker.returncode = await process.wait()
    finally:
        # stdin stays open until here: its end tells a halted worker that the parent is gone.
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        process.stdin.close()
        worker.stderr = (await stderr).decode(errors="replace").strip()
    _check_end(name, worker, killed=kill_at is not None)
    return worker


def _take_in(worker: Worker, event: dict[str, Any]) -> None:
    match event["event"]:
        case "node":
            worker.started.append(event["name"])
            worker.done = worker.total = 0
        case "progress":
            worker.done, worker.total = event["done"], event["total"]
        case "result":
            worker.result = event
        case "error":
            worker.error = event["message"]


def _check_end(name: str, worker: Worker, *, killed: bool) -> None:
    if killed and worker.returncode == _KILLED and worker.result is None and worker.error is None:
        return
    if not killed and worker.returncode == 0 and worker.result is not None:
        return
    why = worker.error or f"it ended with exit code {worker.returncode}" + (" before it was killed" if killed else "")
    error = DemoError(f"{name} failed: {why}")
    if worker.stderr:
        error.add_note(worker.stderr[-_SHOWN_STDERR:])
    raise error


def _who_ran(outcome: Outcome) -> Iterable[tuple[str, str, str, str]]:
    by_second, by_whole = ((worker.result or {}).get("ran", ()) for worker in (outcome.second, outcome.whole))
    for node in NODES:
        if node in outcome.saved_nodes:
            first = "ran"
        else:
            first = "killed" if node == outcome.first.started[-1] else "not reached"
        second = "ran" if node in by_second else "from the checkpoint" if node in outcome.saved_nodes else "missing"
        yield node, first, second, "ran" if node in by_whole else "missing"


def _outcome_json(outcome: Outcome, problems: list[str], tree: str, shown_store: str, key: str) -> dict[str, Any]:
    killed = outcome.first
    return {
        "identical": not problems,
        "problems": problems,
        "tree": tree,
        "store": shown_store,
        "key": key,
        "killed": {"node": killed.started[-1], "done": killed.done, "total": killed.total, "exit": killed.returncode},
        "checkpoint": {"cursor": outcome.cursor, "executed": outcome.saved_nodes, "bytes": outcome.saved_bytes},
        "nodes": [
            {"name": node, "worker_1": first, "worker_2": second, "uninterrupted": whole}
            for node, first, second, whole in _who_ran(outcome)
        ],
        "report": (outcome.second.result or {}).get("report"),
    }


def _print_outcome(console: Console, outcome: Outcome, problems: list[str]) -> None:
    console.width = max(console.width, NARROW)
    console.print()
    console.print(_node_table(outcome))
    console.print()
    report = (outcome.second.result or {})["report"]
    console.print(_report_table(report))
    totals = report["totals"]
    console.print(
        Text(
            f"{totals['lines']:,} lines: {totals['code']:,} code, "
            f"{totals['comments']:,} comment, {totals['blank']:,} blank; {totals['functions']:,} functions, "
            f"{totals['classes']:,} classes; warnings: {len(report['warnings'])}"
        )
    )
    console.print()
    if not problems:
        console.print(Text.assemble(("identical", "bold green"), ": the resumed report equals the uninterrupted one,"))
        console.print(Text("no executed node ran again, and the checkpoint is gone from the store"))
        return
    console.print(Text("not identical", style="bold red"))
    for problem in problems[:_SHOWN_DIFFERENCES]:
        console.print(Text(f"  {problem}"))
    if len(problems) > _SHOWN_DIFFERENCES:
        console.print(Text(f"  and {len(problems) - _SHOWN_DIFFERENCES} more"))


def _node_table(outcome: Outcome) -> Table:
    table = Table(title="who ran what", title_justify="left", title_style="bold", header_style="bold")
    table.add_column("node")
    for name, worker in ((FIRST, outcome.first), (SECOND, outcome.second), (WHOLE, outcome.whole)):
        table.add_column(Text(f"{name} (pid {worker.pid})"))
    styles = {"ran": "green", "killed": "bold red", "missing": "bold red"}
    for node, *cells in _who_ran(outcome):
        texts = [Text(cell, style=styles.get(cell, "dim")) for cell in cells]
        if cells[0] == "killed":
            texts[0].append(f" at {outcome.first.done:,} of {outcome.first.total:,}")
        table.add_row(node, *texts)
    return table


def _report_table(report: dict[str, Any]) -> Table:
    table = Table(title="most complex modules", title_justify="left", title_style="bold", header_style="bold")
    table.add_column("#", justify="right", style="dim")
    table.add_column("module", overflow="fold", ratio=1)
    for heading in ("score", "code", "complexity", "per 100"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("longest function", no_wrap=True, overflow="ellipsis", max_width=20)
    for place, row in enumerate(report["top"], 1):
        function = f"{row['longest_function_lines']:>3} {row['longest_function']}" if row["longest_function"] else ""
        table.add_row(
            str(place),
            Text(row["module"]),
            f"{row['score']:,.1f}",
            f"{row['code']:,}",
            f"{row['complexity']:,}",
            f"{row['density']:.1f}",
            Text(function),
        )
    return table
