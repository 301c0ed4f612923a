"""The door for the command line: ``dagonizer-conformance URL``."""

from __future__ import annotations

import asyncio
import difflib
import faulthandler
import inspect
import json
import os
import sys
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import quote

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dagonizer.cli.discretion import DiscreetGroup
from dagonizer.cli.outcome import PIPE_CLOSED
from dagonizer.cli.streams import OutputError, PipeClosedError, flushed, guard_streams
from dagonizer_conformance.cases import all_cases
from dagonizer_conformance.context import Budget
from dagonizer_conformance.interruption import abandoned
from dagonizer_conformance.mutants.catalogue import all_mutants
from dagonizer_conformance.mutants.matrix import judge
from dagonizer_conformance.outcomes import TargetError
from dagonizer_conformance.report import FORMATS, read_json, render
from dagonizer_conformance.report.comparison import print_comparison, render_comparison, worst_exit_code
from dagonizer_conformance.report.terminal import Progress, print_report
from dagonizer_conformance.results import Level
from dagonizer_conformance.runner import PATIENCE, run, select

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dagonizer_conformance.case import Case
    from dagonizer_conformance.mutants.matrix import Matrix

_WIDTH_WHEN_PIPED = 120
_KIT_ERROR = 3
_TYPER_MISTAKE = 2
_HEARTBEAT = 0.5
_SECONDS_TO_END = 3.0

_Only = Annotated[
    list[str] | None, typer.Option("-k", help="Only cases whose id contains this, or matches it as a pattern.")
]
_Json = Annotated[bool, typer.Option("--json", help="Print as JSON.")]

app = typer.Typer(
    name="dagonizer-conformance",
    cls=DiscreetGroup,
    help="Tell whether a checkpoint store keeps the contract. `dagonizer-conformance URL` is short for `run URL`.",
    no_args_is_help=True,
    # The pretty exceptions of typer print local variables, and with them store URLs and their passwords.
    pretty_exceptions_enable=False,
    add_completion=False,
)


@app.command("run")
def run_command(
    target: Annotated[
        str,
        typer.Argument(
            help="A store URL, with {namespace} where it takes one; or module:name, path.py:name of a harness."
        ),
    ],
    only: _Only = None,
    seed: Annotated[int, typer.Option(help="Repeats what chance decided.")] = 0,
    budget: Annotated[Budget, typer.Option(help="How much to do.")] = Budget.DEFAULT,
    report: Annotated[
        list[str] | None, typer.Option(help=f"FORMAT=FILE, any number of times; FORMAT is {', '.join(FORMATS)}.")
    ] = None,
    require: Annotated[Level | None, typer.Option(help="The level that the store must earn, else exit code 1.")] = None,
    patience: Annotated[float, typer.Option(min=0.1, help="Seconds that one operation may take.")] = PATIENCE,
    allow_remote: Annotated[bool, typer.Option("--allow-remote", help="Test a store on another machine.")] = False,
    json_output: _Json = False,
) -> None:
    """Test a store.

    Exit code 0: as it should be, 1: the store does not conform, 2: inconclusive, 3: the kit or the harness failed.
    """
    files = [_report_file(text) for text in report or ()]
    console = _console(stderr=json_output)
    stdout = sys.stdout

    async def test() -> int:
        executor = ThreadPoolExecutor()
        abandoned_before = len(abandoned)
        asyncio.get_running_loop().set_default_executor(executor)
        with Progress(console) as progress, _watchdog(3 * patience + (120 if budget is Budget.SOAK else 5)):
            finished = await run(
                target,
                only=only or None,
                seed=seed,
                budget=budget,
                allow_remote=allow_remote,
                patience=patience,
                observer=progress,
            )
        for kind, file in files:
            _write(file, render(finished, kind))
        if json_output:
            stdout.write(render(finished, "json") + "\n")
            stdout.flush()
        else:
            print_report(finished, console)
        code = finished.exit_code
        if require is not None and require not in finished.levels:
            console.print(Text(f"{require} was required, and not earned.", style="bold red"))
            code = code or 1
        if len(abandoned) > abandoned_before or not _ends(executor):
            sys.stderr.write("dagonizer-conformance: an operation of the store does not end, and is left behind\n")
            # It would hold up the end of the program for ever. Never 0, for such a store does not conform.
            os._exit(flushed(code or 1))
        return code

    # What a store prints must not come among what a script reads.
    with redirect_stdout(sys.stderr) if json_output else nullcontext():
        code = asyncio.run(test())
    raise _Ended(code)


@app.command("list")
def list_command(
    only: _Only = None,
    json_output: _Json = False,
) -> None:
    """List the cases."""
    cases = select(all_cases(), only or None)
    if json_output:
        _print_json([{"id": case.id, "counts_for": _counts_for(case), "sentence": case.sentence} for case in cases])
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("case", "counts for", "what a store must do"):
        table.add_column(heading, overflow="fold")
    for case in cases:
        table.add_row(Text(case.id), Text(_counts_for(case)), Text(case.sentence))
    _console().print(table)


@app.command()
def explain(case_id: Annotated[str, typer.Argument(metavar="ID", help="The id of a case.")]) -> None:
    """Explain a case: what it asks, how it knows, and which mutants it catches."""
    cases = {case.id: case for case in all_cases()}
    if case_id not in cases:
        nearest = difflib.get_close_matches(case_id, cases, n=1, cutoff=0.4)
        hint = f"did you mean {nearest[0]!r}?" if nearest else "`dagonizer-conformance list` shows them all"
        raise TargetError(f"no case is called {case_id!r}; {hint}")
    case = cases[case_id]
    console = _console()
    console.print(Text(case.id, style="bold"))
    console.print(Text(case.sentence))
    console.print()
    console.print(Text(f"Counts for  {_counts_for(case)}"))
    console.print(Text(f"Knows by    {case.oracle}"))
    for mutant in (mutant for mutant in all_mutants() if case_id in mutant.caught_by):
        console.print(Text(f"Catches     {mutant.id}: {mutant.sentence}"))
    console.print()
    console.print(Text(inspect.getsource(case.check), style="dim"))


@app.command()
def compare(
    reports: Annotated[list[Path], typer.Argument(help="Files that `run --report json=FILE` has written.")],
    html: Annotated[Path | None, typer.Option(help="Write one page with every case of every store.")] = None,
    require: Annotated[Level | None, typer.Option(help="The level that each must have, else exit code 1.")] = None,
) -> None:
    """Show the reports of several stores in one table, each under the name of its file.

    On the page a store's name leads to its own page, where NAME.html stands beside NAME.json. The exit code is that of
    the worst report.
    """
    by_name = {file.stem: read_json(file) for file in reports}
    if len(by_name) < len(reports):
        raise TargetError("two reports have files of one name; a report is shown under the name of its file")
    console = _console()
    print_comparison(by_name, console)
    if html is not None:
        pages = {file.stem: file.with_suffix(".html") for file in reports if file.with_suffix(".html").is_file()}
        addresses = {name: quote(os.path.relpath(page, html.parent)) for name, page in pages.items()}
        _write(html, render_comparison(by_name, addresses))
    code = worst_exit_code(by_name)
    short = [name for name, report in by_name.items() if require is not None and require not in report.levels]
    if short:
        console.print(Text(f"{require} was required, and not earned by {', '.join(short)}.", style="bold red"))
    raise _Ended(code or bool(short))


@app.command()
def mutants(
    only: Annotated[
        list[str] | None,
        typer.Option("-k", help="Only mutants whose id, or that of a case they are for, contains this."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=0, help="How many seeds the reference must pass.")] = 25,
    full: Annotated[
        bool, typer.Option("--full", help="Try every case on every mutant, not only those made for it.")
    ] = False,
    json_output: _Json = False,
) -> None:
    """Test the kit itself: every mutant must be caught, and the reference store must pass.

    Exit code 0 if so, else 3.
    """
    console = _console(stderr=json_output)
    matrix = judge(only=only or None, seeds=seeds, full=full, console=console)
    if json_output:
        _print_json(_matrix_as_json(matrix))
    else:
        _print_matrix(matrix, console)
    raise typer.Exit(0 if matrix.sound else _KIT_ERROR)


class _Ended(Exception):  # noqa: N818 - a result
    """A store was tested; unlike what typer raises, this is no mistake in the command."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def main() -> None:
    """Run the command; print what a user can mend as one line."""
    guard_streams()
    arguments = sys.argv[1:]
    if arguments and arguments[0] not in {"run", "list", "explain", "compare", "mutants", "--help"}:
        arguments = ["run", *arguments]
    # For a harness in a module of the current directory, which a command does not see otherwise.
    sys.path.append(str(Path.cwd()))
    try:
        app(arguments)
        code: object = 0
    except _Ended as ended:
        code = ended.code
    except PipeClosedError:
        code = PIPE_CLOSED
    except (TargetError, OutputError) as exc:
        _console(stderr=True).print(Text(f"dagonizer-conformance: {exc}", style="bold red"))
        code = _KIT_ERROR
    except SystemExit as exc:
        # 2 is typer's code for a mistake in the command, and here it would say that the store is inconclusive.
        code = _KIT_ERROR if exc.code == _TYPER_MISTAKE else exc.code
    except Exception:  # noqa: BLE001 - 1 would say that the store does not conform
        traceback.print_exc()
        code = _KIT_ERROR
    sys.exit(flushed(code))


@contextmanager
def _watchdog(seconds: float) -> Iterator[None]:
    """End the program when the event loop stands still for ``seconds``: nothing else can stop what blocks it."""
    loop = asyncio.get_running_loop()
    finished = threading.Event()

    def watch() -> None:
        while not finished.wait(_HEARTBEAT):
            answered = threading.Event()
            loop.call_soon_threadsafe(answered.set)
            if not answered.wait(seconds) and not finished.is_set():
                sys.stderr.write(
                    f"dagonizer-conformance: the event loop has stood still for {seconds:g} s: a method of the store "
                    "blocks it, and cannot be ended. It does not conform.\n"
                )
                faulthandler.dump_traceback()
                os._exit(1)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()


def _ends(executor: ThreadPoolExecutor) -> bool:
    """Return whether the threads of ``executor`` end."""
    ending = threading.Thread(target=executor.shutdown, daemon=True)
    ending.start()
    ending.join(_SECONDS_TO_END)
    return not ending.is_alive()


def _report_file(text: str) -> tuple[str, Path]:
    kind, equals, file = text.partition("=")
    if not equals or not file or kind not in FORMATS:
        raise TargetError(f"--report {text}: write FORMAT=FILE, where FORMAT is one of {', '.join(FORMATS)}")
    if not Path(file).absolute().parent.is_dir():
        raise TargetError(f"--report {text}: there is no directory {Path(file).absolute().parent}")
    return kind, Path(file)


def _write(file: Path, page: str) -> None:
    try:
        file.write_text(page, encoding="utf-8")
    except OSError as exc:
        raise TargetError(f"cannot write {file}: {exc.strerror}") from exc


def _console(*, stderr: bool = False) -> Console:
    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _WIDTH_WHEN_PIPED
    return console


def _print_json(what: object) -> None:
    sys.stdout.write(json.dumps(what, indent=2) + "\n")


def _counts_for(case: Case) -> str:
    return str(case.level or case.capability)


def _print_matrix(matrix: Matrix, console: Console) -> None:
    table = Table(box=None, pad_edge=False)
    for heading in ("mutant", "must be caught by", "also caught by"):
        table.add_column(heading, overflow="fold")
    for trial in matrix.mutants:
        named = Text()
        for case in trial.named:
            missed = case in trial.missed_by
            named.append(f"{'MISSED' if missed else 'caught'}  {case}\n", style="bold red" if missed else "green")
        also = [case for case in trial.caught_by if case not in trial.named]
        table.add_row(Text(trial.mutant), named, Text(", ".join(also), style="dim"))
    console.print(table)
    for reference in matrix.references:
        for result in reference.failures:
            line = f"the reference store with seed {reference.seed}: {result.status} {result.id}: {result.detail}"
            console.print(Text(line, style="bold red"))
    for case_id in matrix.unguarded:
        console.print(Text(f"no mutant is for {case_id}", style="bold red"))
    caught = sum(not trial.missed_by for trial in matrix.mutants)
    clean = sum(not reference.failures for reference in matrix.references)
    console.print(
        Text(
            f"{caught} of {len(matrix.mutants)} mutants caught; the reference store passed with {clean} of "
            f"{len(matrix.references)} seeds; {matrix.seconds:.0f} s",
            style="bold green" if matrix.sound else "bold red",
        )
    )


def _matrix_as_json(matrix: Matrix) -> dict[str, object]:
    return {
        "sound": matrix.sound,
        "seconds": matrix.seconds,
        "mutants": [
            {
                "id": trial.mutant,
                "named": trial.named,
                "missed_by": trial.missed_by,
                "tries": trial.tries,
                "statuses": {result.id: result.status for result in trial.results},
            }
            for trial in matrix.mutants
        ],
        "reference": [
            {"seed": trial.seed, "failures": {result.id: result.detail for result in trial.failures}}
            for trial in matrix.references
        ],
        "cases_without_mutant": matrix.unguarded,
    }
