"""``dagonizer copy`` and ``dagonizer verify``: all entries of a store, or those of a prefix, in another store."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from rich.filesize import decimal

from dagonizer import open_store
from dagonizer.cli.entries import counted, listed
from dagonizer.cli.outcome import FAILED, NO, YES, exit_code_of, printable, shown
from dagonizer.cli.terminal import EntryProgress, say
from dagonizer.contracts import SupportsCompareAndSwap
from dagonizer.errors import (
    InvalidKeyError,
    InvalidValueError,
    StoreConflictError,
    StoreCorruptedError,
    StoreError,
    StoreLimitError,
    ValidationError,
)
from dagonizer.validation import decode

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from dagonizer.contracts import CheckpointStore

T = TypeVar("T")

# What concerns one entry; the rest goes on. Any other error is the store's.
_ENTRY_ERRORS = (StoreCorruptedError, StoreLimitError, InvalidKeyError, InvalidValueError)

# How often a copy looks again at an entry that others change meanwhile.
_TRIES = 10

Copied = Literal["copied", "replaced", "equal", "kept", "gone"]
"""What became of an entry: ``gone`` was deleted from the source after it was listed."""

Replaced = Literal["none", "earlier", "all"]
"""Which entries of the target are replaced that differ: those that ``is_earlier`` is true of, or all."""

Compared = Literal["equal", "missing", "different", "extra", "gone"]


@dataclass
class CopyTally:
    """What a copy has done: the entries by what became of them, and the bytes that were written."""

    by_outcome: dict[Copied, int] = field(
        default_factory=lambda: {"copied": 0, "replaced": 0, "equal": 0, "kept": 0, "gone": 0}
    )
    bytes: int = 0
    planned: list[tuple[Copied, str]] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)
    seconds: float = 0


@dataclass(frozen=True)
class _Found:
    """What the destination holds under a key. ``corrupted`` is something that it cannot read."""

    text: str | None
    version: str | None = None
    corrupted: bool = False


def copy_entries(
    source_url: str, target_url: str, prefix: str, *, jobs: int, dry_run: bool, replaced: Replaced, as_json: bool
) -> int:
    """Copy the entries whose keys start with ``prefix``, ``jobs`` at a time, and print what became of them.

    ``replaced`` says which different entries of the target are.
    """
    tally, error = CopyTally(), None
    try:
        asyncio.run(_copy_all(source_url, target_url, prefix, jobs, tally, dry_run=dry_run, replaced=replaced))
    except StoreError as exc:
        # What was done until then is told too.
        error = exc
    if as_json:
        failures = [{"key": key, "error": message} for key, message in tally.failures]
        summary: dict[str, Any] = {
            **dict[str, Any](tally.by_outcome.items()),
            "failed": len(failures),
            "bytes": tally.bytes,
            "seconds": round(tally.seconds, 3),
            "dry_run": dry_run,
            "error": None if error is None else str(error),
            "kept_keys": tally.kept,
            "failures": failures,
        }
        if dry_run:
            summary["planned"] = [{"key": key, "outcome": outcome} for outcome, key in tally.planned]
        print(json.dumps(summary, indent=2))
    else:
        for outcome, key in tally.planned:
            print(f"{outcome:<8}  {shown(key)}")
        if error is None or any(tally.by_outcome.values()) or tally.failures:
            _say_copied(tally, dry_run=dry_run)
    if error is not None:
        say(f"error: {error}")
        return exit_code_of(error)
    return FAILED if tally.failures else NO if tally.kept else YES


def verify_entries(source_url: str, target_url: str, prefix: str, *, jobs: int, one_way: bool, as_json: bool) -> int:
    """Print which entries of the source the target lacks or has otherwise, and, unless ``one_way``, what else it has.

    ``jobs`` entries are compared at a time.
    """
    found: dict[Compared, list[str]] = {"missing": [], "different": [], "extra": [], "gone": []}
    failures: list[tuple[str, str]] = []
    equal = asyncio.run(_verify_all(source_url, target_url, prefix, found, failures, jobs=jobs, one_way=one_way))
    findings = {name: found[name] for name in ("missing", "different", "extra")}
    if as_json:
        shown_failures = [{"key": key, "error": message} for key, message in failures]
        print(
            json.dumps({"equal": equal, **findings, "gone": len(found["gone"]), "failures": shown_failures}, indent=2)
        )
    else:
        for name, keys in findings.items():
            for key in keys:
                print(f"{name:<9}  {shown(key)}")
        for key, message in failures:
            print(f"failed     {shown(key)}: {printable(message)}")
        counts = ", ".join(f"{len(keys):,} {name}" for name, keys in findings.items())
        say(f"{equal:,} equal, {counts}, {len(failures):,} failed")
    return FAILED if failures else NO if any(findings.values()) else YES


def is_earlier(text: str, other: str) -> bool:
    """Tell whether ``text`` may be an earlier checkpoint of the run of ``other``: it has executed fewer of the same.

    Another run of the same DAG looks the same, as a checkpoint does not tell which run it is of.
    """
    try:
        one, following = decode(text), decode(other)
    except ValidationError:
        return False
    done = one.executed_nodes
    return (
        one.dag_name == following.dag_name
        and len(done) < len(following.executed_nodes)
        and done == following.executed_nodes[: len(done)]
    )


async def copy_entry(
    source: CheckpointStore, target: CheckpointStore, key: str, *, dry_run: bool, replaced: Replaced
) -> tuple[Copied, int]:
    """Copy one entry, read it back, and return what became of it with the bytes that were written.

    Raises ``StoreConflictError`` if others change it all the time, ``StoreCorruptedError`` if another text is read
    than was saved, and what the stores raise.
    """
    for _ in range(_TRIES):
        text = await source.load(key)
        if text is None:
            return "gone", 0
        found = await _look(target, key, overwrite=replaced == "all")
        if found.text == text:
            return "equal", 0
        absent = found.text is None and not found.corrupted
        if not absent and not _is_replaced(found, text, replaced):
            return "kept", 0
        outcome: Copied = "copied" if absent else "replaced"
        if dry_run or await _written(target, key, text, found):
            return outcome, len(text.encode())
    raise StoreConflictError(f"others changed it {_TRIES} times while it was copied; it is as they left it")


def _is_replaced(found: _Found, text: str, replaced: Replaced) -> bool:
    earlier = found.text is not None and is_earlier(found.text, text)
    return replaced == "all" or (replaced == "earlier" and earlier)


async def _look(target: CheckpointStore, key: str, *, overwrite: bool) -> _Found:
    try:
        if not isinstance(target, SupportsCompareAndSwap):
            return _Found(await target.load(key))
        entry = await target.load_versioned(key)
    except StoreCorruptedError:
        if not overwrite:
            raise
        return _Found(None, corrupted=True)
    return _Found(None) if entry is None else _Found(entry.json, entry.version)


async def _written(target: CheckpointStore, key: str, text: str, found: _Found) -> bool:
    """Save ``text`` and read it back; return False if the entry is not as it was found.

    What others have made of it since it was saved is theirs.
    """
    if not isinstance(target, SupportsCompareAndSwap) or found.corrupted:
        await target.save(key, text)
        altered = await target.load(key) != text
    else:
        try:
            version = await target.save_if(key, text, expected=found.version)
        except StoreConflictError:
            return False
        entry = await target.load_versioned(key)
        altered = entry is not None and entry.version == version and entry.json != text
    if altered:
        raise StoreCorruptedError("what was read back is not what was saved")
    return True


async def _copy_all(
    source_url: str, target_url: str, prefix: str, jobs: int, tally: CopyTally, *, dry_run: bool, replaced: Replaced
) -> None:
    started = time.monotonic()

    async def copy(key: str) -> None:
        size = 0
        try:
            outcome, size = await copy_entry(source, target, key, dry_run=dry_run, replaced=replaced)
        except (*_ENTRY_ERRORS, StoreConflictError) as exc:
            tally.failures.append((key, str(exc)))
            progress.note(f"failed: {shown(key)}: {exc}")
        else:
            tally.by_outcome[outcome] += 1
            tally.bytes += size
            if outcome == "kept":
                tally.kept.append(key)
                progress.note(f"kept: {shown(key)}: the destination has another entry")
            if dry_run and outcome in {"copied", "replaced"}:
                tally.planned.append((outcome, key))
        progress.advance(size)

    try:
        async with open_store(source_url) as source, open_store(target_url) as target:
            # All keys first: the time left needs their number, and what is copied must not be listed again where the
            # destination lies within the source.
            async with contextlib.aclosing(listed(source, source_url, prefix)) as listing:
                keys = [key async for key in listing]
            with EntryProgress("looking" if dry_run else "copying") as progress:
                progress.expect(len(keys))
                await for_each(keys, copy, jobs)
    finally:
        tally.seconds = time.monotonic() - started


def _say_copied(tally: CopyTally, *, dry_run: bool) -> None:
    counts = [
        f"{number:,} {outcome}" for outcome, number in (*tally.by_outcome.items(), ("failed", len(tally.failures)))
    ]
    size, rate = decimal(tally.bytes), decimal(int(tally.bytes / max(tally.seconds, 1e-3)))
    say(
        f"{'dry run: ' if dry_run else ''}{', '.join(counts)}; {size}"
        + ("" if dry_run else f" in {tally.seconds:.1f} s, {rate}/s")
    )
    if tally.kept:
        say(f"{counted(len(tally.kept))} kept: --update replaces earlier checkpoints, --overwrite all that differs")


async def _verify_all(
    source_url: str,
    target_url: str,
    prefix: str,
    found: dict[Compared, list[str]],
    failures: list[tuple[str, str]],
    *,
    jobs: int,
    one_way: bool,
) -> int:
    """Compare all entries, put them into ``found`` and ``failures``, and return how many are equal."""
    equal = 0

    async def compare(key: str) -> None:
        nonlocal equal
        size = 0
        try:
            one, other = await asyncio.gather(source.load(key), target.load(key))
        except _ENTRY_ERRORS as exc:
            failures.append((key, str(exc)))
        else:
            size = len((one or other or "").encode())
            if one is not None and one == other:
                equal += 1
            elif one is None:
                found["gone" if other is None else "extra"].append(key)
            else:
                found["missing" if other is None else "different"].append(key)
        progress.advance(size)

    async with open_store(source_url) as source, open_store(target_url) as target:
        async with contextlib.aclosing(listed(source, source_url, prefix)) as listing:
            keys = {key: None async for key in listing}
        if not one_way:
            hint = "; --one-way looks only for what the source has"
            async with contextlib.aclosing(listed(target, target_url, prefix, hint)) as listing:
                keys |= {key: None async for key in listing}
        with EntryProgress("comparing") as progress:
            progress.expect(len(keys))
            await for_each(keys, compare, jobs)
    for names in found.values():
        names.sort()
    return equal


async def for_each(items: Iterable[T], work: Callable[[T], Awaitable[None]], jobs: int) -> None:
    """Await ``work`` on every item, ``jobs`` at a time. The first error ends it and cancels the others."""
    remaining = iter(items)

    async def go_on() -> None:
        for item in remaining:
            await work(item)

    tasks = [asyncio.create_task(go_on()) for _ in range(jobs)]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
