"""Stores that end badly, or live in one event loop only."""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar

from dagonizer.errors import StoreClosedError
from dagonizer_conformance.mutants.mutant import mutant
from dagonizer_conformance.mutants.reference import Connection, ReferenceStore

if TYPE_CHECKING:
    from dagonizer.contracts import VersionedJson


@mutant("second-close-raises", "lifecycle.double-close")
class SecondCloseRaises(ReferenceStore):
    """Closing a closed store raises, as any other use of it."""

    async def aclose(self) -> None:
        """Close this store."""
        self._check_open()
        await super().aclose()


@mutant("usable-after-close", "lifecycle.use-after-close")
class UsableAfterClose(ReferenceStore):
    """A closed store opens again when it is used."""

    def _check_open(self) -> None:
        """Let everything pass."""


@mutant("closed-load-is-none", "lifecycle.use-after-close")
class ClosedLoadIsNone(ReferenceStore):
    """A closed store says that every entry is absent."""

    async def load(self, key: str) -> str | None:
        """Return the text under ``key``."""
        return None if self._closed else await super().load(key)


@mutant("delete-after-close", "lifecycle.use-after-close")
class DeleteAfterClose(ReferenceStore):
    """A closed store takes deletions and does nothing."""

    async def delete(self, key: str) -> None:
        """Remove the entry under ``key``."""
        with suppress(StoreClosedError):
            await super().delete(key)


@mutant("close-shuts-all", "lifecycle.close-spares-others")
class CloseShutsAll(ReferenceStore):
    """Closing one store shuts what all stores of the process share."""

    _all: weakref.WeakSet[ReferenceStore] = weakref.WeakSet()  # noqa: RUF012 - the fault

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **options)
        self._all.add(self)

    async def aclose(self) -> None:
        """Close the stores of the same data."""
        for store in self._all:
            store._closed |= store._namespace == self._namespace  # noqa: SLF001 - of its own class


@mutant("close-cuts-others", "lifecycle.close-spares-others")
class CloseCutsOthers(ReferenceStore):
    """Closing one store closes the connections of all, under their running requests too."""

    _everywhere: weakref.WeakSet[Connection] = weakref.WeakSet()  # noqa: RUF012 - the fault

    async def _connect(self) -> Connection:
        connection = await super()._connect()
        self._everywhere.add(connection)
        return connection

    def _is_stale(self, connection: Connection) -> bool:
        return connection not in self._everywhere

    async def aclose(self) -> None:
        """Close every connection that this process has."""
        await super().aclose()
        for connection in list(self._everywhere):
            # Closing a socket that is waited for would go unnoticed; one that is closed cannot be shut down.
            with suppress(OSError):
                connection._socket.shutdown(2)  # noqa: SLF001


@mutant("close-cancels-others", "lifecycle.close-spares-others")
class CloseCancelsOthers(ReferenceStore):
    """Closing one store cancels what is under way, whichever store of the process it belongs to."""

    _under_way: ClassVar[set[asyncio.Task[Any]]] = set()

    async def load(self, key: str) -> str | None:
        """Return the text under ``key``."""
        task = asyncio.current_task()
        self._under_way.update({task} if task is not None else ())
        try:
            return await super().load(key)
        finally:
            self._under_way.difference_update({task})

    async def aclose(self) -> None:
        """Close this store."""
        for task in list(self._under_way):
            task.cancel()
        await super().aclose()


@mutant("close-waits-for-ever", "lifecycle.close-during-save")
class CloseWaitsForEver(ReferenceStore):
    """Closing waits for the connection that a running request holds, which gives it to nobody."""

    def _release(self, connection: Connection) -> None:
        if self._closed:
            connection.close()
        else:
            super()._release(connection)

    async def aclose(self) -> None:
        """Close this store when nothing is under way."""
        self._closed = True
        for _ in range(self.max_connections):
            await self._slots().acquire()
        for _ in range(self.max_connections):
            self._slots().release()
        await super().aclose()


@mutant("close-drops-save", "lifecycle.close-during-save")
class CloseDropsSave(ReferenceStore):
    """A save that waits for its turn when the store is closed is forgotten, and reports success."""

    async def _save(self, key: str, json: str) -> None:
        await asyncio.sleep(0)
        if not self._closed:
            await super()._save(key, json)


@mutant("close-tears-save", "lifecycle.close-during-save")
class CloseTearsSave(ReferenceStore):
    """A save writes in two parts, and stops between them when the store is closed."""

    async def _save(self, key: str, json: str) -> None:
        await super()._save(key, json[: len(json) // 2])
        self._check_open()
        await super()._save(key, json)


@mutant("close-forgets-connections", "lifecycle.open-close-leaks-nothing")
class CloseForgetsConnections(ReferenceStore):
    """A closed store leaves its connections open."""

    _forgotten: list[Connection] = []  # noqa: RUF012 - the fault

    async def aclose(self) -> None:
        """Close this store."""
        self._closed = True
        self._forgotten.extend(self._idle)


@mutant("thread-for-each-store", "lifecycle.open-close-leaks-nothing")
class ThreadForEachStore(ReferenceStore):
    """Each store starts a thread, which closing does not end."""

    _working = False

    def _check_open(self) -> None:
        super()._check_open()
        if not self._working:
            self._working = True
            threading.Thread(target=threading.Event().wait, daemon=True).start()


@mutant("task-for-each-store", "lifecycle.open-close-leaks-nothing")
class TaskForEachStore(ReferenceStore):
    """Each store keeps its connection alive in a task, which closing does not end."""

    _heartbeat: asyncio.Task[None] | None = None

    async def _connect(self) -> Connection:
        self._heartbeat = self._heartbeat or asyncio.create_task(asyncio.sleep(3600))
        return await super()._connect()


@mutant("lock-file-for-each-store", "lifecycle.open-close-leaks-nothing")
class LockFileForEachStore(ReferenceStore):
    """Each store opens a file, which closing does not close."""

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **options)
        self._lock_file = os.open(os.devnull, os.O_RDONLY)


@mutant("lock-file-for-each-writer", "lifecycle.open-close-leaks-nothing")
class LockFileForEachWriter(ReferenceStore):
    """The first save of a store opens a file, which closing does not close."""

    _lock_file: int | None = None

    async def _save(self, key: str, json: str) -> None:
        if self._lock_file is None:
            self._lock_file = os.open(os.devnull, os.O_RDONLY)
        await super()._save(key, json)


@mutant("slots-of-first-loop", "lifecycle.second-event-loop")
class SlotsOfFirstLoop(ReferenceStore):
    """What its tasks wait for belongs to the event loop that first used the store."""

    _only: asyncio.Semaphore | None = None

    def _slots(self) -> asyncio.Semaphore:
        self._only = self._only or asyncio.Semaphore(self.max_connections)
        return self._only


@mutant("loop-remembered", "lifecycle.second-event-loop")
class LoopRemembered(ReferenceStore):
    """The event loop that first used the store does all its work, as long as it lives."""

    _loop: asyncio.AbstractEventLoop | None = None

    async def load_versioned(self, key: str) -> VersionedJson | None:
        """Return the text under ``key`` with its version."""
        self._loop = self._loop or asyncio.get_running_loop()
        work = super().load_versioned(key)
        try:
            return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))
        finally:
            work.close()
