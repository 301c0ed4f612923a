"""What a store answers while a fault keeps its backend from doing what it is asked, for one row of the report."""

from __future__ import annotations

import re
import time
from collections import Counter
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeVar

from faults.ledger import read
from faults.report import Row

from dagonizer import StoreError, open_store
from dagonizer_conformance.certificate import Certificate, certify

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from faults.conftest import Faults

    from dagonizer import CheckpointStore

T = TypeVar("T")

SAVES = ("save", "save new", "save_if", "save_if new")
CHANGES = (*SAVES, "delete")
LOADS = ("load", "load_versioned")
READS = (*LOADS, "list_keys")
CALLS = (*CHANGES, *READS)
_NAMESPACE = "refusals"
_MOST_FILLERS = 200
_WHERE = re.compile(r"127\.0\.0\.1:\d+|(?<=file://).+")


class Trial:
    """One store object, with an old entry and an absent one, and another client that looks at them.

    ``size`` is that of the values in bytes, ``where`` what every message must name. What is not as it should be is
    collected in ``wrong``, since the row is told first. The fault is there from ``begin`` until ``recovered``: what
    succeeds meanwhile is counted.
    """

    def __init__(
        self,
        store: CheckpointStore,
        witness: CheckpointStore,
        *,
        prefix: str,
        where: str,
        size: int,
        secrets: tuple[str, ...],
    ) -> None:
        self.store = store
        self.witness = witness
        self.prefix = prefix
        self.old, self.new = f"{prefix}-old", f"{prefix}-new"
        # Not under the prefix, for what a test wants to have beside them.
        self.filler = f"filler-{prefix}"
        self.injected = self.acknowledged = self.lost = self.torn = 0
        self.longest_wait = 0.0
        self.errors: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.notes: list[str] = []
        self._where = where
        self._size = size
        self._secrets = secrets
        self._number = 0
        self._is_there = False

    def text(self, key: str, size: int | None = None) -> str:
        """Return the next value."""
        self._number += 1
        return certify(Certificate(_NAMESPACE, key, "writer", self._number), self._size if size is None else size)

    async def prepare(self) -> None:
        """Save the old entry."""
        self._saved = self.text(self.old)
        await self.store.save(self.old, self._saved)
        self._version = (await self.store.load_versioned(self.old)).version

    def begin(self) -> None:
        """Say that the fault is there. ``fill`` and ``refused`` know that themselves."""
        self._is_there = True

    async def fill(self, size: int, error: type[StoreError], match: str) -> None:
        """Save a filler again and again, with ``size`` bytes, until that is refused, as ``refused`` expects it."""
        for _ in range(_MOST_FILLERS):
            try:
                await self.store.save(self.filler, self.text(self.filler, size))
            except StoreError as exc:
                self.begin()
                self._judge("filling", exc, error, match)
                return
        raise AssertionError(f"{_MOST_FILLERS} saves did not fill it")

    async def make_room(self) -> None:
        """Delete the filler."""
        await self._succeed(self.store.delete(self.filler))

    async def refused(
        self, error: type[StoreError], match: str, *names: str, by: CheckpointStore | None = None
    ) -> None:
        """Make the calls, each of which must raise just ``error`` with ``match`` in a message that helps.

        ``by`` is a store to make them with instead of the one on trial.
        """
        self.begin()
        calls = self._calls(by or self.store)
        for name in names:
            try:
                await self._succeed(calls[name]())
            except StoreError as exc:
                self._judge(name, exc, error, match)
            else:
                self.wrong.append(f"{name} was done")

    async def done(self, *names: str) -> None:
        """Make the calls, each of which must succeed, and put back what they changed."""
        for name in names:
            await self._succeed(self._calls(self.store)[name]())
            if name not in READS:
                await self.store.delete(self.new)
                await self.prepare()

    async def intact(self, *, listing: bool = True) -> None:
        """Look at everything, with both clients."""
        for client in (self.store, self.witness):
            await self.look(client, listing=listing)

    async def look(self, client: CheckpointStore, *, listing: bool = True) -> None:
        """See with ``client`` that the old entry is as it was, and that there is no other."""
        for key, expected in ((self.old, self._saved), (self.new, None)):
            text = await self._succeed(client.load(key))
            _, damage = read(key, text)
            if damage:
                self.torn += 1
                self.wrong.append(f"{key!r}: {damage}")
            elif text != expected:
                self.lost += 1
                self.wrong.append(f"{key!r} is another than before")
        if listing:
            keys = await self._succeed(_listed(client, self.prefix))
            if keys != [self.old]:
                self.lost += 1
                self.wrong.append(f"{keys} are listed")

    async def recovered(self) -> None:
        """Show that the fault is over for the same store: all was as before, and every call is done."""
        self.injected += 1
        self._is_there = False
        await self.intact()
        await self.done(*CALLS)
        await self.intact()

    async def _succeed(self, call: Awaitable[T]) -> T:
        """Make a call, and count it if it succeeds while the fault is there."""
        started = time.monotonic()
        try:
            answer = await call
        finally:
            self.longest_wait = max(self.longest_wait, time.monotonic() - started)
        self.acknowledged += self._is_there
        return answer

    def _calls(self, store: CheckpointStore) -> dict[str, Callable[[], Awaitable[object]]]:
        """Return every call, of which only those with "new" are about the absent entry."""
        old, new = self.old, self.new
        return {
            "save": lambda: store.save(old, self.text(old)),
            "save new": lambda: store.save(new, self.text(new)),
            "save_if": lambda: store.save_if(old, self.text(old), expected=self._version),
            "save_if new": lambda: store.save_if(new, self.text(new), expected=None),
            "delete": lambda: store.delete(old),
            "load": lambda: store.load(old),
            "load_versioned": lambda: store.load_versioned(old),
            "list_keys": lambda: _listed(store, self.prefix),
        }

    def row(self, fault: str, store: str) -> Row:
        """Return the row."""
        return Row(
            fault=fault,
            store=store,
            injected=self.injected,
            acknowledged=self.acknowledged,
            longest_wait=self.longest_wait,
            lost=self.lost,
            torn=self.torn,
            errors=dict(self.errors),
            notes="; ".join(self.notes),
        )

    def _judge(self, name: str, exc: StoreError, error: type[StoreError], match: str) -> None:
        self.errors[type(exc).__name__] += 1
        said = str(exc)
        if type(exc) is not error:
            self.wrong.append(f"{name} raised {type(exc).__name__}, not {error.__name__}: {said}")
        # What could not be done, where, why, and what to do about it.
        if not (said.startswith("could not ") and self._where in said and match in said and "; " in said):
            self.wrong.append(f"{name} said {said!r}, without {self._where!r} or {match!r}")
        if exc.__cause__ is None:
            self.wrong.append(f"{name} hides its cause")
        cause: BaseException | None = exc
        while cause is not None:
            shown = (str(cause), repr(cause))
            if any(secret in text for secret in self._secrets for text in shown):
                self.wrong.append(f"{name} shows a secret in {type(cause).__name__}")
            cause = cause.__cause__ or cause.__context__


async def _listed(store: CheckpointStore, prefix: str) -> list[str]:
    return [key async for key in store.list_keys(prefix)]


@asynccontextmanager
async def trial(
    faults: Faults,
    fault: str,
    name: str,
    url: str,
    *,
    witness: str | None = None,
    size: int = 0,
    secrets: tuple[str, ...] = (),
) -> AsyncIterator[Trial]:
    """Open a store and another client of its entries, save the old one, and in the end tell the row and judge.

    ``name`` is that of the store in the row, and ``witness`` the URL of the other client where it is another.
    """
    prefix = f"refused-{faults.random.getrandbits(32):08x}"
    async with open_store(url) as store, open_store(witness or url) as other:
        made = Trial(store, other, prefix=prefix, where=_WHERE.search(url)[0], size=size, secrets=secrets)
        await made.prepare()
        try:
            yield made
        finally:
            faults.tell(made.row(fault, name))
        assert not made.wrong, "\n".join(made.wrong)
        await other.delete(made.old)
