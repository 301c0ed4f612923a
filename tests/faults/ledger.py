"""What clients have done, written down as it happens, and whether what was acknowledged is still there.

Every client has a file of its own and writes a line before each call and one after it, so that the file tells what was
acknowledged however the client ends. Values certify themselves, so a line names a value by its writer and number.
A client that takes the place of one that was killed goes on with its file.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter, defaultdict, deque
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from dagonizer import StoreError
from dagonizer_conformance.certificate import Certificate, certify, read_certificate
from dagonizer_conformance.linearizability import Event, check

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable, Iterator, Sequence
    from pathlib import Path

    from dagonizer import CheckpointStore

_NAMESPACE = "faults"
_END = ("value", "ended", "error", "damage")


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a store. ``value`` is what it wrote or read, ``error`` the class of what it raised.

    A call without ``ended`` was cut off with its client. A read of something else than a whole value of its key has
    ``damage``, which says why. Times are those of the machine's monotonic clock, in nanoseconds.
    """

    client: str
    name: str
    key: str
    value: str | None
    started: int
    ended: int | None = None
    error: str | None = None
    damage: str | None = None

    @property
    def acknowledged(self) -> bool:
        """Whether it returned."""
        return self.ended is not None and self.error is None


class Recorder:
    """A client of ``store`` that keeps a ledger in ``path``, and goes on when calls fail with errors of a store."""

    def __init__(self, store: CheckpointStore, path: Path) -> None:
        self._store = store
        self._client = path.stem
        path.touch(0o600)
        self._number = sum(1 for _ in calls_in(path))
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND)
        before = path.read_bytes()
        if before and not before.endswith(b"\n"):
            os.write(self._file, b"\n")

    async def save(self, key: str, size: int = 0) -> bool:
        """Save the next value of this client, of ``size`` bytes; return whether it was acknowledged."""
        certificate = Certificate(_NAMESPACE, key, self._client, self._number)
        text = certify(certificate, size)
        return await self._call("save", key, str(certificate), self._store.save(key, text))

    async def delete(self, key: str) -> bool:
        """Delete the entry; return whether that was acknowledged."""
        return await self._call("delete", key, None, self._store.delete(key))

    async def load(self, key: str) -> bool:
        """Load the entry; return whether there was an answer."""
        return await self._call("load", key, None, self._load(key))

    async def _load(self, key: str) -> tuple[str | None, str | None]:
        text = await self._store.load(key)
        return read(key, text)

    async def _call(
        self, name: str, key: str, value: str | None, call: Awaitable[tuple[str | None, str | None] | None]
    ) -> bool:
        self._number += 1
        self._write({"begin": [name, key, value, time.monotonic_ns()]})
        error = damage = None
        try:
            found = await call
        except StoreError as exc:
            error = type(exc).__name__
        else:
            if found is not None:
                value, damage = found
        self._write({"end": [value, time.monotonic_ns(), error, damage]})
        return error is None

    def _write(self, line: dict[str, list[str | int | None]]) -> None:
        os.write(self._file, json.dumps(line).encode() + b"\n")

    def close(self) -> None:
        """Close the ledger."""
        os.close(self._file)


def read(key: str, text: str | None) -> tuple[str | None, str | None]:
    """Return the name of the value that was found under ``key``, and what is wrong with it, if anything is."""
    if text is None:
        return None, None
    try:
        certificate = read_certificate(text)
    except ValueError as exc:
        return None, str(exc)
    return str(certificate), None if certificate.key == key else f"belongs under {certificate.key!r}"


def calls_in(path: Path, offset: int = 0) -> Iterator[Call]:
    """Yield the calls that one ledger tells of, behind ``offset`` bytes of it."""
    begun: Call | None = None
    with path.open("rb") as file:
        file.seek(offset)
        lines = file.read().splitlines()
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            # Half a line: it is being written, or its writer was killed meanwhile.
            entry = {}
        if begun is not None:
            yield replace(begun, **dict(zip(_END, entry["end"], strict=True))) if "end" in entry else begun
            begun = None
        if "begin" in entry:
            begun = Call(path.stem, *entry["begin"])
    if begun is not None:
        yield begun


@dataclass
class Judgement:
    """What a ledger shows."""

    acknowledged: int
    longest_wait: float
    errors: Counter[str]
    lost: list[str] = field(default_factory=list)
    torn: list[str] = field(default_factory=list)
    impossible: list[str] = field(default_factory=list)
    """Keys, with the smallest part of their history that no order explains."""

    def expect_nothing_lost(self) -> None:
        """Raise ``AssertionError`` if anything was lost, torn or read in an impossible order."""
        assert not self.torn, self.torn
        assert not self.lost, self.lost
        assert not self.impossible, "\n\n".join(self.impossible)


def judge(folder: Path, *, linearizable: bool = True) -> Judgement:
    """Judge the ledgers in ``folder``, which must begin with the first call on each key and end with a read of it.

    ``linearizable=False`` leaves out what a server does not promise that forgets, in a failover, what it had shown
    before it was acknowledged.
    """
    calls = sorted((call for path in folder.iterdir() for call in calls_in(path)), key=lambda call: call.started)
    by_key: defaultdict[str, list[Call]] = defaultdict(list)
    for call in calls:
        by_key[call.key].append(call)
    judgement = Judgement(
        acknowledged=sum(call.acknowledged for call in calls),
        longest_wait=max((call.ended - call.started for call in calls if call.ended is not None), default=0) / 1e9,
        errors=Counter(call.error for call in calls if call.error is not None),
        torn=[f"{call.client} read {call.key!r}: {call.damage}" for call in calls if call.damage],
    )
    for key, history in by_key.items():
        judgement.lost += lost(history)
        if linearizable:
            judgement.impossible += _impossible(key, history)
    return judgement


def lost(history: Sequence[Call]) -> list[str]:
    """Describe the reads that missed what was acknowledged, in the order of starts, under a key.

    A read must not find a write that was overridden before it began: by one that was acknowledged, and either began
    after the other had been acknowledged or is a later one of the same client. Nothing is a write before all others.
    """
    writes = [call for call in history if call.name != "load"]
    by_value: defaultdict[str | None, list[Call]] = defaultdict(list)
    for write in writes:
        by_value[write.value].append(write)
    ends = deque(sorted((write for write in writes if write.acknowledged), key=lambda write: write.ended))
    newest: Call | None = None
    newest_of: dict[str, int] = {}
    described = []
    for load in history:
        if load.name != "load" or not load.acknowledged or load.damage:
            continue
        while ends and ends[0].ended < load.started:
            write = ends.popleft()
            newest_of[write.client] = max(write.started, newest_of.get(write.client, 0))
            if newest is None or write.started > newest.started:
                newest = write
        if newest is None and load.value is None:
            continue
        # The later ones first, as one of them it mostly is; there may be many deletes.
        if not any(
            write.started < load.ended
            and newest_of.get(write.client, 0) <= write.started
            and (newest is None or not write.acknowledged or newest.started <= write.ended)
            for write in reversed(by_value[load.value])
        ):
            missed = f"{newest.value} was acknowledged" if newest else "it had not been written"
            # One that was given up has come late; one that was acknowledged had been there, and has come back.
            given_up = by_value[load.value] and not any(write.acknowledged for write in by_value[load.value])
            found = f"{load.value}{', which was not acknowledged,' if given_up else ''}"
            described.append(f"{load.client} found {found} under {load.key!r}, where {missed}")
    return described


def _impossible(key: str, history: Iterable[Call]) -> list[str]:
    events = list(filter(None, map(_event, history)))
    verdict = check(events)
    assert verdict.linearizable is not None, f"{len(events):,} events under {key!r} are too many to judge"
    return [] if verdict.linearizable else [f"{key!r}:\n" + "\n".join(map(str, verdict.counterexample))]


def _event(call: Call) -> Event | None:
    ended = call.ended if call.acknowledged else None
    if call.name != "load":
        return Event(call.client, "write", call.value, call.started, ended)
    return Event(call.client, "read", call.value, call.started, ended) if ended and not call.damage else None
