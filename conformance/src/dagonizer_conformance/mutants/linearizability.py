"""Stores that many clients make inconsistent."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING, ClassVar

from dagonizer import StoreConflictError, StoreError
from dagonizer_conformance.mutants.mutant import mutant
from dagonizer_conformance.mutants.reference import ReferenceStore

if TYPE_CHECKING:
    from dagonizer import VersionedJson


@mutant("reads-a-replica", "linearizability.clients")
class ReadsAReplica(ReferenceStore):
    """Reads from a replica that is a few milliseconds behind."""

    def __init__(self, host: str, port: int, namespace: str, *, timeout: float = 2.0) -> None:
        super().__init__(host, port, namespace, timeout=timeout)
        self._replica: dict[str, tuple[float, VersionedJson | None]] = {}

    async def load_versioned(self, key: str) -> VersionedJson | None:
        copied, entry = self._replica.get(key, (0.0, None))
        if time.monotonic() - copied > 0.01:  # noqa: PLR2004
            entry = await super().load_versioned(key)
            self._replica[key] = time.monotonic(), entry
        return entry


@mutant("trusts-clocks", "linearizability.clients")
class TrustsClocks(ReferenceStore):
    """Lets the save with the latest clock win, although the clocks of clients differ."""

    _stamps: ClassVar[dict[str, float]] = {}
    _clients: ClassVar[list[ReferenceStore]] = []

    def __init__(self, host: str, port: int, namespace: str, *, timeout: float = 2.0) -> None:
        super().__init__(host, port, namespace, timeout=timeout)
        self._clients.append(self)
        self._ahead = len(self._clients) % 3 / 10

    async def _save(self, key: str, json: str) -> None:
        now = time.monotonic() + self._ahead
        if now > self._stamps.get(key, 0):
            self._stamps[key] = now
            await super()._save(key, json)


@mutant("loses-the-order-of-saves", "linearizability.clients")
class LosesTheOrderOfSaves(ReferenceStore):
    """Collects saves for some milliseconds, acknowledges them, and writes them later."""

    _tasks: ClassVar[set[asyncio.Task[None]]] = set()

    async def _save(self, key: str, json: str) -> None:
        self._encode_value(json)
        task = asyncio.create_task(self._save_soon(key, json))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _save_soon(self, key: str, json: str) -> None:
        await asyncio.sleep(0.005)
        with suppress(StoreError):
            await super()._save(key, json)


@mutant("repairs-what-it-reads", "linearizability.deletes")
class RepairsWhatItReads(ReferenceStore):
    """Writes what it has read back where it is missing, and so brings back what was deleted meanwhile."""

    async def load(self, key: str) -> str | None:
        text = await super().load(key)
        if text is not None:
            await asyncio.sleep(0.002)
            try:
                await self._save_if(key, text, None)
            except StoreConflictError:
                return text
        return text


@mutant("deletes-what-it-saw", "linearizability.deletes")
class DeletesWhatItSaw(ReferenceStore):
    """Deletes by saving a mark, and removes marked entries later, with what was saved over the mark."""

    async def load(self, key: str) -> str | None:
        text = await super().load(key)
        return None if text == "deleted" else text

    async def _delete(self, key: str) -> None:
        await super()._save(key, "deleted")
        await asyncio.sleep(0.005)
        await super()._delete(key)


@mutant("keeps-the-key-in-the-store", "linearizability.tasks")
class KeepsTheKeyInTheStore(ReferenceStore):
    """Keeps the key of the operation in an attribute that its tasks share."""

    _key = ""

    async def load(self, key: str) -> str | None:
        self._key = key
        await asyncio.sleep(0)
        return await super().load(self._key)


@mutant("shares-a-connection", "linearizability.tasks")
class SharesAConnection(ReferenceStore):
    """Sends the requests of all tasks on one connection, and gives each whatever reply comes first."""

    async def _request(self, head: dict[str, object], body: bytes = b"") -> tuple[dict[str, object], bytes]:
        connection = self._idle[0] if self._idle else await self._connect()
        self._idle[:1] = [connection]
        async with asyncio.timeout(self._timeout):
            await connection.send({"id": 0, **head}, body)
            return await connection.receive()


@mutant("caches-in-its-process", "linearizability.processes")
class CachesInItsProcess(ReferenceStore):
    """Keeps what it has loaded in its process, where only the saves of that process renew it."""

    _cache: ClassVar[dict[str, tuple[float, str | None]]] = {}

    async def load(self, key: str) -> str | None:
        cached, text = self._cache.get(key, (0.0, None))
        if time.monotonic() - cached > 0.1:  # noqa: PLR2004
            text = await super().load(key)
            self._cache[key] = time.monotonic(), text
        return text

    async def _save(self, key: str, json: str) -> None:
        await super()._save(key, json)
        self._cache.pop(key, None)

    async def _delete(self, key: str) -> None:
        await super()._delete(key)
        self._cache.pop(key, None)


@mutant("compares-in-the-client", "linearizability.paused-process")
class ComparesInTheClient(ReferenceStore):
    """Compares the version, and then saves without looking again."""

    async def _save_if(self, key: str, json: str, expected: str | None) -> str:
        entry = await self.load_versioned(key)
        if (None if entry is None else entry.version) != expected:
            raise StoreConflictError("not as expected")
        # Long, so that a pause at a random moment falls into it.
        await asyncio.sleep(0.05)
        await self._save(key, json)
        entry = await self.load_versioned(key)
        return "" if entry is None else entry.version


@mutant("outlives-its-lease", "linearizability.paused-process")
class OutlivesItsLease(ReferenceStore):
    """Saves under a lease; when it has run out, the backend drops the save, and nobody reads that answer."""

    async def _save(self, key: str, json: str) -> None:
        # Longer than a busy machine keeps a save waiting, and no longer than the case pauses one.
        ends = time.monotonic() + 0.1
        await asyncio.sleep(0.03)
        if time.monotonic() < ends:
            await super()._save(key, json)
