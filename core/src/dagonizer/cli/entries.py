"""``dagonizer ls``, ``get``, ``put`` and ``rm``: the entries of any store."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any

from dagonizer import open_store
from dagonizer.cli.outcome import FAILED, NO, YES, UsageError, shown, typed
from dagonizer.contracts import SupportsListing
from dagonizer.errors import InvalidValueError, StoreCorruptedError, StoreLimitError, ValidationError
from dagonizer.keys import key_bytes
from dagonizer.url import StoreURL
from dagonizer.validation import decode

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from dagonizer.contracts import CheckpointStore

STDIN = "-"
"""The name of standard input among files."""

_AT_A_TIME = 64
_LONG = "{:>12}  {:>8}  {:<18}  {:<18}  {}"
_SHOWN_NAME = 18


def list_entries(url: str, prefix: str, *, long: bool, null: bool, as_json: bool) -> int:
    """Print the keys that start with ``prefix`` as the store yields them, with ``long`` what is under them."""
    return asyncio.run(_list_entries(url, prefix, long=long, null=null, as_json=as_json))


def get_entry(url: str, key: str, *, as_json: bool) -> int:
    """Write the text under ``key`` to stdout, its UTF-8 bytes and nothing else."""
    text = asyncio.run(load_entry(url, key))
    if as_json:
        print(json.dumps({"key": key, "value": text}))
    elif text is not None:
        sys.stdout.flush()
        sys.stdout.buffer.write(text.encode())
        sys.stdout.buffer.flush()
    else:
        say_absent(key)
    return NO if text is None else YES


def put_entry(url: str, key: str, file: str, *, validate: bool, as_json: bool) -> int:
    """Save what ``file`` holds under ``key``; with ``validate`` only a checkpoint."""
    key_bytes(key)
    StoreURL.parse(url)
    text = read_text(file)
    if validate:
        try:
            decode(text)
        except ValidationError as exc:
            if as_json:
                print(json.dumps({"key": key, "saved": False, "issues": [issue._asdict() for issue in exc.issues]}))
            for issue in exc.issues:
                print(f"{shown(file)}: {shown(str(issue))}", file=sys.stderr)
            print("nothing was saved", file=sys.stderr)
            return NO
    asyncio.run(_save(url, key, text))
    if as_json:
        print(json.dumps({"key": key, "saved": True, "bytes": len(text.encode())}))
    return YES


def remove_entries(url: str, keys: Sequence[str], *, as_json: bool) -> int:
    """Delete the entries under ``keys``, and name those that did not exist."""
    for key in keys:
        # Before any other is deleted.
        key_bytes(key)
    absent = asyncio.run(_remove(url, keys))
    for key in absent:
        say_absent(key)
    if as_json:
        print(json.dumps({"deleted": [key for key in dict.fromkeys(keys) if key not in absent], "absent": absent}))
    return NO if absent else YES


def remove_prefix(url: str, prefix: str, *, yes: bool, as_json: bool) -> int:
    """Delete every entry whose key starts with ``prefix``; without ``yes`` say how many, and ask."""
    keys = asyncio.run(find_keys(url, prefix))
    if keys and not yes and not _confirmed(url, prefix, len(keys)):
        print("nothing was deleted", file=sys.stderr)
        if as_json:
            print(json.dumps({"deleted": [], "absent": []}))
        return NO
    absent = set(asyncio.run(_remove(url, keys)))
    deleted = [key for key in keys if key not in absent]
    if as_json:
        print(json.dumps({"deleted": deleted, "absent": []}))
    else:
        print(f"{counted(len(deleted))} deleted", file=sys.stderr)
    return YES


async def load_entry(url: str, key: str) -> str | None:
    """Return the text under ``key`` in the store of ``url``, or None."""
    async with open_store(url) as store:
        return await store.load(key)


async def find_keys(url: str, prefix: str) -> list[str]:
    """Return every key that starts with ``prefix``."""
    async with open_store(url) as store, contextlib.aclosing(listed(store, url, prefix)) as keys:
        return [key async for key in keys]


def listed(store: CheckpointStore, url: str, prefix: str, hint: str = "") -> AsyncGenerator[str, None]:
    """Yield the keys that start with ``prefix``. Raises ``UsageError``, with ``hint``, if the store cannot list."""
    if not isinstance(store, SupportsListing):
        raise UsageError(f"{StoreURL.parse(url)} cannot list its keys, and this command needs that{hint}")
    return _closed(store.list_keys(prefix))


def read_text(file: str) -> str:
    """Return the text of ``file``, or of stdin for ``-``."""
    try:
        if file == STDIN:
            raw = sys.stdin.buffer.read()
        else:
            with open(file, "rb") as opened:  # noqa: PTH123 - a Path would change the name that the error shows
                raw = opened.read()
    except (OSError, ValueError) as exc:
        # ValueError: a name with U+0000.
        raise UsageError(f"cannot read {typed(file)}: {getattr(exc, 'strerror', None) or exc}") from exc
    try:
        return raw.decode()
    except UnicodeDecodeError as exc:
        raise InvalidValueError(f"{shown(file)} is not UTF-8 text: {exc.reason} at byte {exc.start}") from exc


def counted(number: int) -> str:
    """Return ``1 entry``, ``2 entries``, ``1,000 entries``."""
    return f"{number:,} {'entry' if number == 1 else 'entries'}"


def say_absent(key: str) -> None:
    """Say on stderr that there is nothing under ``key``."""
    print(f"no entry under {typed(key)}", file=sys.stderr)


async def _closed(keys: AsyncIterator[str]) -> AsyncGenerator[str, None]:
    """Yield ``keys``, and end their listing, whatever kind of iterator it is, when this one is closed."""
    try:
        async for key in keys:
            yield key
    finally:
        if isinstance(keys, AsyncGenerator):
            await keys.aclose()


async def _save(url: str, key: str, text: str) -> None:
    async with open_store(url) as store:
        await store.save(key, text)


async def _list_entries(url: str, prefix: str, *, long: bool, null: bool, as_json: bool) -> int:
    corrupted = began = False
    try:
        async with open_store(url) as store, contextlib.aclosing(listed(store, url, prefix)) as keys:
            if long and not as_json:
                print(_LONG.format("bytes", "executed", "dag", "cursor", "key"))
            async for page in _pages(keys):
                rows = await asyncio.gather(*(_describe(store, key) for key in page)) if long else page
                for row in rows:
                    if row is None:
                        continue
                    if as_json:
                        print(",\n" if began else "[\n", json.dumps(row), sep="", end="")
                        began = True
                    elif isinstance(row, str) and null:
                        # Bytes, for the encoding of stdout is not the keys'.
                        sys.stdout.buffer.write(row.encode() + b"\0")
                    elif isinstance(row, str):
                        print(shown(row))
                    else:
                        print(_long_line(row))
                    corrupted = corrupted or (isinstance(row, dict) and row["error"] is not None)
    finally:
        # What was listed before a failure is a document too.
        if began:
            print("\n]")
    if as_json and not began:
        print("[]")
    return FAILED if corrupted else YES


async def _pages(keys: AsyncIterator[str]) -> AsyncIterator[list[str]]:
    page: list[str] = []
    async for key in keys:
        page.append(key)
        if len(page) == _AT_A_TIME:
            yield page
            page = []
    yield page


async def _describe(store: CheckpointStore, key: str) -> dict[str, Any] | None:
    """Return what ``ls --long`` tells of an entry, None if it has been deleted."""
    row: dict[str, Any] = {"key": key, "dag": None, "cursor": None, "executed": None, "bytes": None, "error": None}
    try:
        text = await store.load(key)
    except (StoreCorruptedError, StoreLimitError) as exc:
        return {**row, "error": str(exc)}
    if text is None:
        return None
    row["bytes"] = len(text.encode())
    with contextlib.suppress(ValidationError):
        data = decode(text)
        row |= {"dag": data.dag_name, "cursor": data.cursor, "executed": len(data.executed_nodes)}
    return row


def _long_line(row: dict[str, Any]) -> str:
    if row["error"] is not None:
        return _LONG.format("unreadable", "-", "-", "-", shown(row["key"]))
    if row["dag"] is None:
        return _LONG.format(f"{row['bytes']:,}", "-", "-", "-", shown(row["key"]))
    cursor = "(complete)" if row["cursor"] is None else _short(row["cursor"])
    return _LONG.format(f"{row['bytes']:,}", row["executed"], _short(row["dag"]), cursor, shown(row["key"]))


def _short(name: str) -> str:
    name = shown(name)
    return name if len(name) <= _SHOWN_NAME else name[: _SHOWN_NAME - 1] + "…"


async def _remove(url: str, keys: Sequence[str]) -> list[str]:
    """Delete the entries under ``keys``; return the keys that had none."""
    absent: list[str] = []

    async def remove(store: CheckpointStore, key: str) -> None:
        # One that cannot be read is one too.
        with contextlib.suppress(StoreCorruptedError, StoreLimitError):
            if await store.load(key) is None:
                absent.append(key)
                return
        await store.delete(key)

    unique = list(dict.fromkeys(keys))
    async with open_store(url) as store:
        for start in range(0, len(unique), _AT_A_TIME):
            await asyncio.gather(*(remove(store, key) for key in unique[start : start + _AT_A_TIME]))
    return absent


def _confirmed(url: str, prefix: str, number: int) -> bool:
    which = f"whose keys start with {shown(prefix)}" if prefix else "that it holds"
    if not sys.stdin.isatty():
        raise UsageError(
            f"{counted(number)} of {StoreURL.parse(url)} {which} would be deleted; without a terminal to ask, say --yes"
        )
    print(f"delete {counted(number)} of {StoreURL.parse(url)} {which}? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in {"y", "yes"}
