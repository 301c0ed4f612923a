"""``dagonizer show``, ``validate``, ``diff`` and ``watch``: what is in checkpoints."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import os.path
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NoReturn

from rich.text import Text
from rich.tree import Tree

from dagonizer import open_store
from dagonizer.cli.entries import STDIN, load_entry, read_text, say_absent
from dagonizer.cli.outcome import FAILED, NO, YES, UsageError, quoted, shown, typed
from dagonizer.cli.terminal import NARROW, measured, open_console, say
from dagonizer.errors import InvalidValueError, StoreCorruptedError, ValidationError, ValidationIssue
from dagonizer.validation import decode, json_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from dagonizer.validation import CheckpointData

# What people are shown of a value, unless they ask for all of it.
_SHOWN_ITEMS = 20
_SHOWN_CHARACTERS = 200
# Deeper, a tree is wider than a terminal.
_SHOWN_DEPTH = 12

_MISSING = object()


def show_checkpoint(url: str, key: str, *, everything: bool, mermaid: bool, as_json: bool) -> int:
    """Print the checkpoint under ``key``: as a tree, as a Mermaid flowchart or as JSON."""
    text = asyncio.run(load_entry(url, key))
    if text is None:
        say_absent(key)
        if as_json:
            print(json.dumps({"key": key, "checkpoint": None, "issues": []}))
        return NO
    try:
        data = decode(text)
    except ValidationError as exc:
        say(f"the entry under {shown(key)} is not a checkpoint:")
        for issue in exc.issues:
            say(f"  {issue}")
        if as_json:
            issues = [issue._asdict() for issue in exc.issues]
            print(json.dumps({"key": key, "checkpoint": None, "issues": issues}))
        return NO
    if as_json:
        print(json.dumps(_checkpoint_json(key, text, data), indent=2))
    elif mermaid:
        print("\n".join(mermaid_lines(data)))
    else:
        console, tree = open_console(), _checkpoint_tree(key, text, data, everything=everything)
        console.width = max(console.width, min(NARROW, measured(console, tree).minimum))
        console.print(tree)
    return YES


def validate_documents(url: str | None, names: Sequence[str], *, as_json: bool) -> int:
    """Print everything that is wrong with each file, stdin for ``-``, or entry that ``names`` name."""
    # Files first: stdin is read without a running loop, so that it can be interrupted.
    names = list(dict.fromkeys(names))
    files = {name: _file_issues(name) for name in names if _is_file(name)}
    keys = [name for name in names if name not in files]
    if keys and url is None:
        raise UsageError(f"{typed(keys[0])} is not a file; to validate an entry, name its store by --store")
    found = {**files, **(asyncio.run(_entry_issues(url, keys)) if keys and url is not None else {})}
    if as_json:
        documents = [
            {
                "name": name,
                "kind": "file" if name in files else "key",
                "valid": not found[name][1],
                "issues": [issue._asdict() for issue in found[name][1]],
            }
            for name in names
        ]
        print(json.dumps(documents, indent=2))
    else:
        for name in names:
            for issue in found[name][1]:
                print(f"{typed(name)}: {shown(str(issue))}")
            if not found[name][1]:
                print(f"{shown(name)}: valid")
    return max(code for code, _ in found.values())


def diff_entries(url: str, key: str, other_url: str, other_key: str, *, as_json: bool) -> int:
    """Print the paths at which two entries differ as JSON."""
    left, right = asyncio.run(_load_both(url, key, other_url, other_key))
    if left is None or right is None:
        for text, name in ((left, key), (right, other_key)):
            if text is None:
                say_absent(name)
        if as_json:
            absent = [name for text, name in ((left, key), (right, other_key)) if text is None]
            print(json.dumps({"equal": False, "absent": absent, "differences": []}))
        return NO
    try:
        differences = list(find_differences(_parsed(left), _parsed(right)))
    except (ValueError, RecursionError):
        # What is not JSON differs as text.
        differences = [] if left == right else [("$", left, right)]
    if as_json:
        print(json.dumps({"equal": not differences, "absent": [], "differences": _differences_json(differences)}))
        return NO if differences else YES
    for path, one, other in differences:
        if one is not _MISSING:
            print(f"- {_value_line(path, one)}")
        if other is not _MISSING:
            print(f"+ {_value_line(path, other)}")
    return NO if differences else YES


def _parsed(text: str) -> Any:  # noqa: ANN401 - JSON
    """Return what ``text`` says; numbers that no float is are no JSON here."""
    return json.loads(text, parse_constant=_refuse, parse_float=_finite)


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON value")


def _finite(digits: str) -> float:
    number = float(digits)
    return number if math.isfinite(number) else _refuse(digits)


def watch_entry(url: str, key: str, *, interval: float, count: int | None, as_json: bool) -> int:
    """Print a line for what is under ``key`` now and for each change, until ``count`` changes were seen."""
    asyncio.run(_watch(url, key, interval, count, as_json=as_json))
    return YES


def mermaid_lines(data: CheckpointData) -> Iterator[str]:
    """Yield a Mermaid flowchart: the executed nodes in their order, then the cursor; beside them the skipped ones."""
    path = [f"n{number}" for number in range(len(data.executed_nodes))]
    skipped = [f"s{number}" for number in range(len(data.skipped_nodes))]
    yield "flowchart LR"
    yield from (f'    {box}["{_label(name)}"]' for box, name in zip(path, data.executed_nodes, strict=True))
    yield '    cursor((("complete")))' if data.cursor is None else f'    cursor(["{_label(data.cursor)}"])'
    yield from (f'    {box}["{_label(name)}"]' for box, name in zip(skipped, data.skipped_nodes, strict=True))
    yield from (f"    {one} --> {following}" for one, following in itertools.pairwise([*path, "cursor"]))
    yield "    classDef executed fill:#d9f2d9,stroke:#2d7a2d,color:#000"
    yield "    classDef next fill:#fff3c4,stroke:#b8860b,stroke-width:3px,color:#000"
    yield "    classDef skipped fill:#f4f4f4,stroke:#888,stroke-dasharray:5 5,color:#555"
    if path:
        yield f"    class {','.join(path)} executed"
    yield "    class cursor next"
    if skipped:
        yield f"    class {','.join(skipped)} skipped"


def find_differences(left: Any, right: Any) -> Iterator[tuple[str, Any, Any]]:  # noqa: ANN401 - any JSON value
    """Yield the paths at which two JSON values differ, with both values; one may be missing.

    Numbers are equal as numbers. However deep the values are, this does not recurse.
    """
    pending = [("$", left, right)]
    while pending:
        path, one, other = pending.pop()
        if isinstance(one, dict) and isinstance(other, dict):
            below: Iterable[tuple[Any, Any, Any]] = [
                (name, one.get(name, _MISSING), other.get(name, _MISSING)) for name in dict.fromkeys((*one, *other))
            ]
        elif isinstance(one, list) and isinstance(other, list):
            below = [
                (index, one[index] if index < len(one) else _MISSING, other[index] if index < len(other) else _MISSING)
                for index in range(max(len(one), len(other)))
            ]
        else:
            if not _equal(one, other):
                yield path, one, other
            continue
        pending += [(json_path(path, step), a, b) for step, a, b in reversed(list(below))]


def _equal(one: object, other: object) -> bool:
    # To Python, True is 1.
    return isinstance(one, bool) == isinstance(other, bool) and one == other


def _is_file(name: str) -> bool:
    # A pipe is a file. And to pathlib a key of a thousand characters is an error.
    return name == STDIN or (os.path.exists(name) and not os.path.isdir(name))  # noqa: PTH110, PTH112


def _file_issues(name: str) -> tuple[int, tuple[ValidationIssue, ...]]:
    try:
        return _issues_of(read_text(name))
    except InvalidValueError as exc:
        return NO, (ValidationIssue("$", str(exc)),)


async def _entry_issues(url: str, keys: Sequence[str]) -> dict[str, tuple[int, tuple[ValidationIssue, ...]]]:
    async def issues_under(key: str) -> tuple[int, tuple[ValidationIssue, ...]]:
        try:
            text = await store.load(key)
        except StoreCorruptedError as exc:
            return FAILED, (ValidationIssue("$", str(exc)),)
        return (
            _issues_of(text) if text is not None else (NO, (ValidationIssue("$", "no such entry, and no such file"),))
        )

    async with open_store(url) as store:
        return {key: await issues_under(key) for key in keys}


def _issues_of(text: str) -> tuple[int, tuple[ValidationIssue, ...]]:
    try:
        decode(text)
    except ValidationError as exc:
        return NO, exc.issues
    return YES, ()


async def _load_both(url: str, key: str, other_url: str, other_key: str) -> tuple[str | None, str | None]:
    left, right = await asyncio.gather(load_entry(url, key), load_entry(other_url, other_key))
    return left, right


def _differences_json(differences: Iterable[tuple[str, Any, Any]]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for path, one, other in differences:
        sides = {"left": one, "right": other}
        rows.append({"path": path, **{side: value for side, value in sides.items() if value is not _MISSING}})
    return rows


def _value_line(path: str, value: Any) -> str:  # noqa: ANN401 - any JSON value
    text = quoted(value) if isinstance(value, str) else json.dumps(value)
    if len(text) > _SHOWN_CHARACTERS:
        text = f"{text[:_SHOWN_CHARACTERS]}… {len(text):,} characters; --json shows all"
    return f"{shown(path)}: {text}"


async def _watch(url: str, key: str, interval: float, count: int | None, *, as_json: bool) -> None:
    async with open_store(url) as store:
        text = await store.load(key)
        _print_event("absent" if text is None else "present", key, text, as_json=as_json)
        seen = 0
        while count is None or seen < count:
            await asyncio.sleep(interval)
            before, text = text, await store.load(key)
            if text != before:
                event = "created" if before is None else "deleted" if text is None else "changed"
                _print_event(event, key, text, as_json=as_json)
                seen += 1


def _print_event(event: str, key: str, text: str | None, *, as_json: bool) -> None:
    now = datetime.now(UTC)
    row: dict[str, Any] = {"time": now.isoformat(), "event": event, "key": key}
    about = ""
    if text is not None:
        size = len(text.encode())
        row["bytes"] = size
        about = f"{size:,} bytes"
        try:
            data = decode(text)
        except ValidationError:
            about += ", not a checkpoint"
        else:
            row |= {"dag": data.dag_name, "cursor": data.cursor, "executed": len(data.executed_nodes)}
            cursor = "complete" if data.cursor is None else f"next is {shown(data.cursor)}"
            about += f", {shown(data.dag_name)}: {len(data.executed_nodes)} executed, {cursor}"
    line = json.dumps(row) if as_json else f"{now.astimezone():%H:%M:%S.%f}"[:-3] + f"  {event:<8} {about}".rstrip()
    # Whoever reads a pipe is to see it now.
    print(line, flush=True)


def _checkpoint_json(key: str, text: str, data: CheckpointData) -> dict[str, Any]:
    return {
        "key": key,
        "bytes": len(text.encode()),
        "checkpoint": {
            "version": data.version,
            "dagName": data.dag_name,
            "cursor": data.cursor,
            "state": data.state,
            "executedNodes": data.executed_nodes,
            "skippedNodes": data.skipped_nodes,
        },
        "issues": [],
    }


def _checkpoint_tree(key: str, text: str, data: CheckpointData, *, everything: bool) -> Tree:
    tree = Tree(Text.assemble((shown(key), "bold"), (f"  {len(text.encode()):,} bytes", "dim")))
    tree.add(_named("dag", shown(data.dag_name)))
    tree.add(_named("cursor", "none: the run is complete" if data.cursor is None else shown(data.cursor)))
    tree.add(_named("executed", " → ".join(map(shown, data.executed_nodes)) or "none"))
    tree.add(_named("skipped", ", ".join(map(shown, data.skipped_nodes)) or "none"))
    _add_value(tree, "state", data.state, everything=everything, depth=0)
    return tree


def _named(name: str, value: str) -> Text:
    return Text.assemble((name, "cyan"), " ", value, overflow="fold")


def _add_value(tree: Tree, name: str, value: Any, *, everything: bool, depth: int) -> None:  # noqa: ANN401 - any JSON value
    match value:
        case dict() if value:
            branch = tree.add(Text.assemble((name, "cyan"), (f" {_of(len(value), 'field')}", "dim")))
            items = [(shown(key), item) for key, item in value.items()]
        case list() if value:
            branch = tree.add(Text.assemble((name, "cyan"), (f" {_of(len(value), 'item')}", "dim")))
            items = [(f"[{index}]", item) for index, item in enumerate(value)]
        case _:
            tree.add(_named(name, _scalar(value, everything=everything)))
            return
    if depth == _SHOWN_DEPTH:
        branch.add(Text("… deeper; --json shows it", style="dim"))
        return
    kept = len(items) if everything else _SHOWN_ITEMS
    for key, item in items[:kept]:
        _add_value(branch, key, item, everything=everything, depth=depth + 1)
    if len(items) > kept:
        branch.add(Text(f"… {len(items) - kept:,} more; --all shows them", style="dim"))


def _scalar(value: Any, *, everything: bool) -> str:  # noqa: ANN401 - any JSON value
    if not isinstance(value, str):
        return json.dumps(value)
    if everything or len(value) <= _SHOWN_CHARACTERS:
        return quoted(value)
    return f"{quoted(value[:_SHOWN_CHARACTERS])}… {len(value):,} characters"


def _of(number: int, noun: str) -> str:
    return f"({number:,} {noun}{'' if number == 1 else 's'})"


def _label(name: str) -> str:
    """Return a name inside a quoted Mermaid label: what could mean something to Mermaid becomes its entity."""
    return "".join(c if c.isalnum() or c in " _" else f"#{ord(c)};" for c in name) or " "
