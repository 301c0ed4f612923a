"""Examines a store: through the contract, which every store keeps, and by what its plugin finds in the backend."""

from __future__ import annotations

import asyncio
import secrets
import statistics
import time
import traceback
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from pathlib import PurePath
from typing import TYPE_CHECKING, TypeVar

from dagonizer.contracts import SupportsClose, SupportsCompareAndSwap, SupportsListing
from dagonizer.diagnosis import CONNECTION, DURABILITY, LIMIT, Finding
from dagonizer.errors import StoreConflictError, StoreError, StoreUnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

    from dagonizer.contracts import CheckpointStore
    from dagonizer.diagnosis import Verdict

T = TypeVar("T")

PROBE_PREFIX = "dagonizer-doctor-"
"""What the key of the entry starts with that an examination saves and deletes."""

# What transcoding, trimming, normalising and templates change.
_TEXT = '\ufeff {"é": "e\u0301 ß \u212b", "%s": "$1 \\ \'"}\r\n\t\x01\x7f\u2028 漢字 😀\U0010ffff '
_DOCUMENT = '{"probe": "' + "x" * 1000 + '"}'

_ROUNDS = 5
# Seconds after which no further round begins.
_ROUNDS_LIMIT = 3.0
# Seconds that a save takes. A durable run waits for one after every node.
_SLOW = 0.1
_TOO_SLOW = 1.0
# Milliseconds below which their fractions tell something.
_FEW = 10
_LEAST = 0.01


async def examine_store(
    store: CheckpointStore,
    diagnose_backend: Callable[[], AsyncIterator[Finding] | None] | None = None,
    *,
    limit: float = LIMIT,
) -> AsyncGenerator[Finding, None]:
    """Yield what is found when ``store`` is examined, as it is found, and close the store.

    It saves, and in any case deletes, an entry of its own under a key that starts with ``PROBE_PREFIX``.
    ``diagnose_backend`` finds what the contract does not show, like the hook ``dagonizer_diagnose_store``. A check that
    takes more than ``limit`` seconds has failed. A failure is a finding, and nothing of the store's is raised. The last
    finding is that of ``DURABILITY``.
    """
    told: list[str] = []
    durability: Finding | None = None
    for part in (_through_the_contract(store, limit, told), _of_the_backend(diagnose_backend, limit, told)):
        async with aclosing(part) as findings:
            async for finding in findings:
                if finding.check == DURABILITY:
                    durability = finding
                else:
                    yield finding
    unknown = "unknown: nothing here tells which failures an acknowledged save outlives"
    yield durability or Finding(check=DURABILITY, verdict="note", message=unknown)


async def _through_the_contract(store: CheckpointStore, limit: float, told: list[str]) -> AsyncGenerator[Finding, None]:
    probe = _Probe(store, limit)
    steps = {
        CONNECTION: probe.connect,
        "text": probe.compare_text,
        "round-trip": probe.measure,
        "absence": probe.find_nothing,
        "compare-and-swap": probe.compare_and_swap,
        "listing": probe.list_keys,
    }
    try:
        while steps:
            check = next(iter(steps))
            step = steps.pop(check)
            try:
                yield await _bounded(step, limit)
            except _CheckFailedError as exc:
                told.append(exc.reason)
                yield exc.finding(check, not_examined=steps)
                break
    finally:
        # Also when this is cancelled or left.
        last = await probe.clean_up()
    for finding in last:
        yield finding


async def _of_the_backend(
    diagnose: Callable[[], AsyncIterator[Finding] | None] | None, limit: float, told: list[str]
) -> AsyncGenerator[Finding, None]:
    findings: AsyncIterator[Finding] | None = None

    async def begin() -> AsyncIterator[Finding] | None:
        return None if diagnose is None else diagnose()

    async def proceed() -> Finding | None:
        return None if findings is None else await anext(findings, None)

    try:
        findings = await _bounded(begin, limit)
        if findings is None:
            yield Finding(check="backend", verdict="note", message="its plugin examines nothing of its own")
        while (finding := await _bounded(proceed, limit)) is not None:
            yield finding
    except _CheckFailedError as exc:
        if exc.reason not in told:
            yield exc.finding("backend")
    finally:
        if isinstance(findings, AsyncGenerator):
            with suppress(_CheckFailedError):
                await _bounded(findings.aclose, limit)


class _Probe:
    """An entry that is saved, looked at, and deleted."""

    def __init__(self, store: CheckpointStore, limit: float) -> None:
        self._store = store
        self._limit = limit
        self._key = PROBE_PREFIX + secrets.token_hex(8)
        self._saved = False

    async def connect(self) -> Finding:
        started = time.perf_counter()
        await self._store.load(self._key)
        took = _milliseconds(time.perf_counter() - started)
        return _good(CONNECTION, f"the store has answered; connecting and a first load took {took}")

    async def compare_text(self) -> Finding:
        for text in ("", _TEXT):
            await self._save(text)
            loaded = await self._store.load(self._key)
            if loaded is None:
                return _bad("text", "a load after an acknowledged save returned None: what is saved is not there")
            if loaded != text:
                return _bad("text", f"what is saved comes back changed: {_difference(text, loaded)}")
        return _good("text", "what is saved comes back code point for code point")

    async def measure(self) -> Finding:
        started = time.perf_counter()
        saves: list[float] = []
        loads: list[float] = []
        deletions: list[float] = []
        while len(saves) < _ROUNDS and time.perf_counter() - started < _ROUNDS_LIMIT:
            saves.append(await _seconds(self._save(_DOCUMENT)))
            loads.append(await _seconds(self._store.load(self._key)))
            deletions.append(await _seconds(self._store.delete(self._key)))
        parts = {"saves": saves, "loads": loads, "deletions": deletions}
        medians = ", ".join(f"{name} {_milliseconds(statistics.median(times))}" for name, times in parts.items())
        worst = ", ".join(_milliseconds(max(times)) for times in parts.values())
        return _pace(statistics.median(saves), f"{medians}, in the median of {len(saves)}; at worst {worst}")

    async def find_nothing(self) -> Finding:
        # There is none any more, and to delete nothing is no error.
        await self._store.delete(self._key)
        loaded = await self._store.load(self._key)
        if loaded is not None:
            return _bad("absence", f"a load after an acknowledged deletion returned {len(loaded):,} characters")
        return _good("absence", "an entry that is not there is None")

    async def compare_and_swap(self) -> Finding:
        check = "compare-and-swap"
        if not isinstance(self._store, SupportsCompareAndSwap):
            without = "not supported: two workers under one key overwrite each other's checkpoints unnoticed"
            return Finding(check=check, verdict="note", message=without)
        self._saved = True
        first = await self._store.save_if(self._key, "first", expected=None)
        second = await self._store.save_if(self._key, "second", expected=first)
        for outdated, name in ((first, "an outdated version"), (None, "a version of no entry")):
            try:
                await self._store.save_if(self._key, "third", expected=outdated)
            except StoreConflictError:
                continue
            return _bad(
                check,
                f"{name} was accepted: of two workers under one key, each overwrites the other's checkpoints",
                "use a backend that has conditional writes, or see that no two workers ever run under one key",
            )
        found = await self._store.load_versioned(self._key)
        if found is None or (found.json, found.version) != ("second", second):
            return _bad(check, "what is loaded after a save is not the text and version that were saved")
        return _good(check, "an outdated version is refused")

    async def list_keys(self) -> Finding:
        check = "listing"
        if not isinstance(self._store, SupportsListing):
            without = "not supported: dagonizer ls, copy, verify and rm --prefix do not work"
            return Finding(check=check, verdict="note", message=without)
        await self._save(_DOCUMENT)
        # A store that is slow at this, for it holds many keys, is not dead.
        limit = self._limit / 2
        timer = asyncio.timeout(limit)
        try:
            async with timer:
                found = [key async for key in self._store.list_keys(self._key)]
        except TimeoutError:
            if not timer.expired():
                raise
            slow = f"the keys of one prefix were not listed within {limit:g} s: dagonizer ls and copy will take long"
            return Finding(check=check, verdict="note", message=slow)
        if found != [self._key]:
            return _bad(check, f"a key that was saved is listed {found.count(self._key)} times instead of once")
        return _good(check, "a key that was saved is listed")

    async def clean_up(self) -> list[Finding]:
        """Delete the entry, close the store, and return what is to be said about it."""
        found: list[Finding] = []
        try:
            if self._saved and (finding := await _bounded(self._delete, self._limit)):
                found.append(finding)
        except _CheckFailedError as exc:
            left = f"an entry may be left under {self._key}: {exc.reason}"
            found.append(Finding(check="clean-up", verdict="warning", message=left, remedy=f"dagonizer rm {self._key}"))
        try:
            if isinstance(self._store, SupportsClose):
                await _bounded(self._store.aclose, self._limit)
        except _CheckFailedError as exc:
            found.append(_bad("clean-up", f"the store does not close: {exc.reason}"))
        return found

    async def _delete(self) -> Finding | None:
        try:
            await self._store.delete(self._key)
        except StoreError:
            # Where nothing can be saved, nothing is to be deleted.
            if await self._store.load(self._key) is not None:
                raise
            return None
        if await self._store.load(self._key) is not None:
            return _bad("clean-up", f"an entry under {self._key} is still there after its deletion was acknowledged")
        return _good("clean-up", "nothing is left of the entry that was saved for this")

    async def _save(self, text: str) -> None:
        # Before: a save that fails may have saved.
        self._saved = True
        await self._store.save(self._key, text)


class _CheckFailedError(Exception):
    """A check has come to no end. The reason holds nothing secret."""

    def __init__(self, reason: str, remedy: str | None = None, *, unreachable: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self._remedy = remedy
        self._unreachable = unreachable

    def finding(self, check: str, *, not_examined: Iterable[str] = ()) -> Finding:
        """Return what is found by ``check`` so, and say what is ``not_examined`` for it."""
        where = "" if check == CONNECTION or not self._unreachable else f"in the examination of {check}, "
        left = ", ".join(not_examined)
        message = f"{where}{self.reason}" + (f" (not examined: {left})" if left else "")
        return Finding(
            check=CONNECTION if self._unreachable else check, verdict="bad", message=message, remedy=self._remedy
        )


async def _bounded(call: Callable[[], Awaitable[T]], limit: float) -> T:
    """Return what ``call`` returns. Raises ``_CheckFailedError`` if it raises, or takes more than ``limit`` seconds."""
    timer = asyncio.timeout(limit)
    try:
        async with timer:
            return await call()
    except StoreError as exc:
        reason = f"{type(exc).__name__}: {exc}"
        raise _CheckFailedError(reason, unreachable=isinstance(exc, StoreUnavailableError)) from exc
    except Exception as exc:  # a stranger's store can raise anything
        if isinstance(exc, TimeoutError) and timer.expired():
            reason = f"there was no answer within {limit:g} s"
            remedy = "see that the server runs, and that a firewall lets its port through"
            raise _CheckFailedError(reason, remedy, unreachable=True) from exc
        # Its message may hold anything, a password too.
        frame = traceback.extract_tb(exc.__traceback__)[-1]
        where = f"{PurePath(frame.filename).name}, line {frame.lineno}"
        reason = f"{type(exc).__name__} was raised ({where}), which is no StoreError: a bug of the store or its plugin"
        raise _CheckFailedError(reason, "dagonizer-conformance tests the whole contract, and shows the error") from exc


async def _seconds(call: Awaitable[object]) -> float:
    started = time.perf_counter()
    await call
    return time.perf_counter() - started


def _pace(save: float, message: str) -> Finding:
    verdict: Verdict = "good" if save < _SLOW else "note" if save < _TOO_SLOW else "warning"
    remedy = (
        None if verdict == "good" else "a durable run waits for a save after every node: run it nearer to the store"
    )
    return Finding(check="round-trip", verdict=verdict, message=message, remedy=remedy)


def _milliseconds(seconds: float) -> str:
    milliseconds = 1000 * seconds
    if milliseconds < _LEAST:
        return f"under {_LEAST} ms"
    return f"{milliseconds:.2f} ms" if milliseconds < _FEW else f"{milliseconds:,.0f} ms"


def _difference(saved: str, loaded: str) -> str:
    for index, (one, other) in enumerate(zip(saved, loaded, strict=False)):
        if one != other:
            return f"U+{ord(one):04X} at index {index} came back as U+{ord(other):04X}"
    return f"{len(saved)} characters came back as {len(loaded)}"


def _good(check: str, message: str) -> Finding:
    return Finding(check=check, verdict="good", message=message)


def _bad(check: str, message: str, remedy: str | None = None) -> Finding:
    return Finding(check=check, verdict="bad", message=message, remedy=remedy)
