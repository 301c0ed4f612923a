"""The DAG of ``dagonizer demo``, a survey of a tree of Python modules, and the worker process that runs it.

``python -m dagonizer.cli.survey`` reads its arguments as one JSON line from stdin, since a store URL may hold a
password and an argument vector is public, and prints one JSON event per line on stdout::

    {"event": "node", "name": "parse"}
    {"event": "progress", "node": "parse", "done": 20, "total": 1800}
    {"event": "result", "executed": ["read", …], "ran": ["measure", …], "report": {…}}
    {"event": "error", "message": "…"}
"""

from __future__ import annotations

import ast
import asyncio
import functools
import hashlib
import io
import json
import os
import sys
import tokenize
import warnings
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dagonizer import Dagonizer, NodeStateBase, durable, node, open_store
from dagonizer.errors import DAGError, DagonizerError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from dagonizer import NodeContext

NODES = ("read", "parse", "measure", "rank", "report")
"""The nodes of the survey in their order."""

HALTING_NODE = "measure"
"""The node in which a worker with ``stop_at`` halts."""

_TOP = 15
_PROGRESS_STEPS = 100
_SKIPPED_FOLDERS = frozenset({"site-packages", "__pycache__"})
_BRANCHES = (
    ast.If,
    ast.IfExp,
    ast.For,
    ast.AsyncFor,
    ast.While,
    ast.ExceptHandler,
    ast.BoolOp,
    ast.comprehension,
    ast.match_case,
    ast.Assert,
)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_LAYOUT_TOKENS = frozenset({
    tokenize.ENCODING, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER
})  # fmt: skip


@dataclass
class Module:
    """A file, as ``read`` finds it."""

    path: str
    bytes: int
    lines: int
    sha256: str


@dataclass
class Syntax:
    """What ``parse`` collects of a module."""

    functions: int
    classes: int
    branches: int
    longest_function: str
    longest_function_lines: int


@dataclass
class Measure:
    """What ``measure`` counts in a module; ``density`` is the complexity of 100 lines of code."""

    code: int
    comments: int
    blank: int
    complexity: int
    density: float


@dataclass
class SurveyState(NodeStateBase):
    """The survey so far. The dictionaries are by the module's path."""

    modules: list[Module] = field(default_factory=list)
    syntax: dict[str, Syntax] = field(default_factory=dict)
    measures: dict[str, Measure] = field(default_factory=dict)
    ranking: list[tuple[str, float]] = field(default_factory=list)
    totals: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class WorkerArguments:
    """What a worker reads from stdin. With ``stop_at`` it halts in ``measure`` after so many modules."""

    store: str
    key: str
    root: str
    stop_at: int | None = None


# Not in the state: they are of this process, and a checkpoint must not bring another worker's folder or halt along.
_arguments: ContextVar[WorkerArguments] = ContextVar("arguments")
_ran: list[str] = []


def find_modules(root: Path) -> list[str]:
    """Return the paths of all Python files under ``root``, relative to it and sorted, without installed packages."""
    found: list[str] = []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in _SKIPPED_FOLDERS]
        found += [Path(folder, name).relative_to(root).as_posix() for name in files if name.endswith(".py")]
    return sorted(found)


def _announced(
    function: Callable[[SurveyState, NodeContext], Awaitable[None]],
) -> Callable[[SurveyState, NodeContext], Awaitable[None]]:
    """Print an event when the node starts, and note in ``_ran`` when it has come to its end."""

    @functools.wraps(function)
    async def run(state: SurveyState, context: NodeContext) -> None:
        _emit({"event": "node", "name": function.__name__})
        await function(state, context)
        _ran.append(function.__name__)

    return run


@node(outputs=("success",))
@_announced
async def read(state: SurveyState, context: NodeContext) -> None:  # noqa: ARG001 - every node takes both
    """Find the modules: size, digest and number of lines of each."""
    root = Path(_arguments.get().root)
    paths = find_modules(root)
    state.modules = []
    for done, path in enumerate(paths, 1):
        try:
            source = (root / path).read_bytes()
        except OSError as exc:
            state.collect_warning("unreadable", f"{path}: {exc.strerror}", operation="read")
        else:
            lines = source.count(b"\n") + (not source.endswith(b"\n") and source != b"")
            state.modules.append(Module(path, len(source), lines, hashlib.sha256(source).hexdigest()))
        await _progress("read", done, len(paths))


@node(outputs=("success",))
@_announced
async def parse(state: SurveyState, context: NodeContext) -> None:  # noqa: ARG001 - every node takes both
    """Parse every module: functions, classes, branches, the longest function. Some test data is broken on purpose."""
    root = Path(_arguments.get().root)
    for done, module in enumerate(state.modules, 1):
        try:
            state.syntax[module.path] = _syntax_of((root / module.path).read_bytes())
        except SyntaxError as exc:
            state.collect_warning("not parsed", f"{module.path}:{exc.lineno or 0}: {exc.msg}", operation="parse")
        except (ValueError, RecursionError, MemoryError) as exc:
            state.collect_warning("not parsed", f"{module.path}: {exc or type(exc).__name__}", operation="parse")
        await _progress("parse", done, len(state.modules))


@node(outputs=("success",))
@_announced
async def measure(state: SurveyState, context: NodeContext) -> None:  # noqa: ARG001 - every node takes both
    """Tokenize every parsed module: lines of code, comment lines, blank lines, and its complexity."""
    root = Path(_arguments.get().root)
    for done, module in enumerate(state.modules, 1):
        if module.path in state.syntax:
            try:
                state.measures[module.path] = _measure_of(
                    (root / module.path).read_bytes(), module.lines, state.syntax[module.path]
                )
            except (tokenize.TokenError, SyntaxError) as exc:
                state.collect_warning("not tokenized", f"{module.path}: {exc}", operation="measure")
        await _progress("measure", done, len(state.modules))
        if done == _arguments.get().stop_at:
            await _halt()


@node(outputs=("success",))
@_announced
async def rank(state: SurveyState, context: NodeContext) -> None:  # noqa: ARG001 - every node takes both
    """Order the modules by complexity times density, so that neither large nor dense alone is enough."""
    scores = {path: round(measure.complexity * measure.density / 100, 1) for path, measure in state.measures.items()}
    state.ranking = sorted(scores.items(), key=lambda item: (-item[1], item[0]))


@node(outputs=("success",))
@_announced
async def report(state: SurveyState, context: NodeContext) -> None:  # noqa: ARG001 - every node takes both
    """Sum up."""
    tree = hashlib.sha256(
        "".join(f"{module.sha256}  {module.path}\n" for module in state.modules).encode(errors="surrogateescape")
    )
    state.totals = {
        "modules": len(state.modules),
        "bytes": sum(module.bytes for module in state.modules),
        "lines": sum(module.lines for module in state.modules),
        "code": sum(measured.code for measured in state.measures.values()),
        "comments": sum(measured.comments for measured in state.measures.values()),
        "blank": sum(measured.blank for measured in state.measures.values()),
        "functions": sum(syntax.functions for syntax in state.syntax.values()),
        "classes": sum(syntax.classes for syntax in state.syntax.values()),
        "branches": sum(syntax.branches for syntax in state.syntax.values()),
        "tree_sha256": tree.hexdigest(),
    }


def build_dispatcher() -> Dagonizer[SurveyState]:
    """Return a dispatcher that knows the DAG ``survey``."""
    dispatcher = Dagonizer[SurveyState]()
    for function in (read, parse, measure, rank, report):
        dispatcher.register_node(function)
    placements = [
        {"type": "single", "name": name, "node": name, "outputs": {"success": following}}
        for name, following in zip(NODES, (*NODES[1:], None), strict=True)
    ]
    dispatcher.register_dag({"name": "survey", "version": "1", "entrypoint": NODES[0], "nodes": placements})
    return dispatcher


def report_of(state: SurveyState) -> dict[str, Any]:
    """Return what the survey found, without anything that depends on where or when it ran."""
    syntax, measures = state.syntax, state.measures
    lines = {module.path: module.lines for module in state.modules}
    top = [
        {
            "module": path,
            "score": score,
            "lines": lines[path],
            "code": measures[path].code,
            "comments": measures[path].comments,
            "blank": measures[path].blank,
            "functions": syntax[path].functions,
            "classes": syntax[path].classes,
            "complexity": measures[path].complexity,
            "density": measures[path].density,
            "longest_function": syntax[path].longest_function,
            "longest_function_lines": syntax[path].longest_function_lines,
        }
        for path, score in state.ranking[:_TOP]
    ]
    return {"totals": state.totals, "top": top, "warnings": [warning["message"] for warning in state.warnings]}


def main() -> int:
    """Run one worker to its end; return the exit code."""
    try:
        _emit(asyncio.run(_work(WorkerArguments(**json.loads(sys.stdin.readline())))))
    except DagonizerError as exc:
        _emit({"event": "error", "message": str(exc)})
        return 1
    except (KeyboardInterrupt, BrokenPipeError):
        # The parent is gone, or both were interrupted from the keyboard: there is nobody to tell.
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115 - so that the flush at the exit does not fail again
        return 1
    return 0


async def _work(arguments: WorkerArguments) -> dict[str, Any]:
    _arguments.set(arguments)
    async with open_store(arguments.store) as store:
        result = await durable.run(
            build_dispatcher(),
            "survey",
            SurveyState,
            store=store,
            key=arguments.key,
            restore_state=SurveyState.restore,
        )
    if result.cursor is not None:
        lifecycle = result.state.lifecycle
        raise DAGError(f"node {result.cursor} {lifecycle.kind}: {lifecycle.reason or repr(lifecycle.error)}")
    executed = list(result.executed_nodes)
    return {"event": "result", "executed": executed, "ran": _ran, "report": report_of(result.state)}


def _emit(event: dict[str, Any]) -> None:
    print(json.dumps(event), flush=True)


async def _progress(name: str, done: int, total: int) -> None:
    if done % max(1, total // _PROGRESS_STEPS) == 0 or done in (total, _arguments.get().stop_at):
        _emit({"event": "progress", "node": name, "done": done, "total": total})
    await asyncio.sleep(0)


async def _halt() -> None:
    # Until somebody kills this process, or the parent has died and thereby closed the pipe.
    await asyncio.to_thread(sys.stdin.read)
    os._exit(1)


def _syntax_of(source: bytes) -> Syntax:
    with warnings.catch_warnings():
        # Of the surveyed code, not of ours.
        warnings.simplefilter("ignore")
        tree = ast.parse(source)
    found = Syntax(0, 0, 0, "", 0)
    for part in ast.walk(tree):
        if isinstance(part, _FUNCTIONS):
            found.functions += 1
            length = (part.end_lineno or part.lineno) - part.lineno + 1
            if length > found.longest_function_lines:
                found.longest_function, found.longest_function_lines = part.name, length
        elif isinstance(part, ast.ClassDef):
            found.classes += 1
        elif isinstance(part, _BRANCHES):
            found.branches += 1
    return found


def _measure_of(source: bytes, lines: int, syntax: Syntax) -> Measure:
    code: set[int] = set()
    comments: set[int] = set()
    for token in tokenize.tokenize(io.BytesIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments.add(token.start[0])
        elif token.type not in _LAYOUT_TOKENS:
            code.update(range(token.start[0], token.end[0] + 1))
    complexity = syntax.branches + max(1, syntax.functions)
    return Measure(
        code=len(code),
        comments=len(comments - code),
        blank=max(0, lines - len(code | comments)),
        complexity=complexity,
        density=round(100 * complexity / max(1, len(code)), 1),
    )


if __name__ == "__main__":
    sys.exit(main())
