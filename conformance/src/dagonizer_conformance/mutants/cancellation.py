"""Stores whose promises end where a cancellation begins."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from typing import TYPE_CHECKING, Any

from dagonizer.errors import StoreUnavailableError
from dagonizer_conformance.mutants.mutant import mutant
from dagonizer_conformance.mutants.reference import ReferenceStore

if TYPE_CHECKING:
    from dagonizer_conformance.mutants.reference import Connection


@mutant("cancellation-swallowed", "cancellation.propagates", "cancellation.timeout")
class CancellationSwallowed(ReferenceStore):
    """A cancelled save returns as if it were done."""

    async def _save(self, key: str, json: str) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await super()._save(key, json)


@mutant("cancelled-load-is-none", "cancellation.propagates")
class CancelledLoadIsNone(ReferenceStore):
    """A cancelled load returns None."""

    async def load(self, key: str) -> str | None:
        """Load, for whom one must not call again."""
        try:
            return await super().load(key)
        except asyncio.CancelledError:
            return None


@mutant("cancellation-translated", "cancellation.propagates", "cancellation.timeout")
class CancellationTranslated(ReferenceStore):
    """A cancellation is taken for a timeout of the backend and becomes the store's own error."""

    async def _request(self, head: dict[str, Any], body: bytes = b"") -> tuple[dict[str, Any], bytes]:
        try:
            return await super()._request(head, body)
        except asyncio.CancelledError as exc:
            raise StoreUnavailableError("the backend did not answer in time") from exc


@mutant("retried-when-cancelled", "cancellation.timeout")
class RetriedWhenCancelled(ReferenceStore):
    """A request that fails in any way, a cancellation included, is made once more."""

    async def _request(self, head: dict[str, Any], body: bytes = b"") -> tuple[dict[str, Any], bytes]:
        try:
            return await super()._request(head, body)
        except BaseException:  # noqa: BLE001 - the fault
            return await super()._request(head, body)


@mutant("stale-reply", "cancellation.usable-afterwards")
class StaleReply(ReferenceStore):
    """The connection of a cancelled request is used again, and its reply taken for that of the next request."""

    def _discard(self, connection: Connection) -> None:
        self._release(connection)

    def _is_stale(self, connection: Connection) -> bool:  # noqa: ARG002
        return False

    def _check_reply(self, request_id: int, reply: dict[str, Any]) -> None:
        """Check nothing."""


@mutant("slot-never-given-back", "cancellation.usable-afterwards")
class SlotNeverGivenBack(ReferenceStore):
    """A cancelled request keeps its place among the connections, until none is left."""

    def _discard(self, connection: Connection) -> None:
        connection.close()


@mutant("lock-never-released", "cancellation.usable-afterwards", "cancellation.timeout")
class LockNeverReleased(ReferenceStore):
    """Saves take turns by a lock that a cancelled one does not release."""

    _turn: asyncio.Lock | None = None

    async def _save(self, key: str, json: str) -> None:
        self._turn = self._turn or asyncio.Lock()
        await self._turn.acquire()
        await super()._save(key, json)
        self._turn.release()


@mutant("delete-then-put", "cancellation.old-or-new")
class DeleteThenPut(ReferenceStore):
    """A save deletes the old entry, then puts the new one."""

    async def _save(self, key: str, json: str) -> None:
        await self._delete(key)
        await super()._save(key, json)


@mutant("written-in-place", "cancellation.old-or-new")
class WrittenInPlace(ReferenceStore):
    """A save of a long text writes one half, then the whole."""

    async def _save(self, key: str, json: str) -> None:
        if len(json) > 100_000:  # noqa: PLR2004
            await super()._save(key, json[: len(json) // 2])
        await super()._save(key, json)


@mutant("delete-in-two-steps", "cancellation.old-or-new")
class DeleteInTwoSteps(ReferenceStore):
    """A deletion empties the entry before it removes it."""

    async def _delete(self, key: str) -> None:
        await self._save(key, "")
        await super()._delete(key)


@mutant("shielded-save", "cancellation.no-late-write")
class ShieldedSave(ReferenceStore):
    """A save waits its moment in a task that is shielded from cancellation, and goes on in it."""

    async def _save(self, key: str, json: str) -> None:
        await asyncio.shield(asyncio.ensure_future(self._save_soon(key, json)))

    async def _save_soon(self, key: str, json: str) -> None:
        await asyncio.sleep(0.01)
        await super()._save(key, json)


@mutant("shielded-delete", "cancellation.no-late-write")
class ShieldedDelete(ReferenceStore):
    """A deletion is shielded from cancellation, and happens later."""

    async def _delete(self, key: str) -> None:
        await asyncio.shield(asyncio.ensure_future(self._delete_soon(key)))

    async def _delete_soon(self, key: str) -> None:
        await asyncio.sleep(0.01)
        await super()._delete(key)


@mutant("no-order-of-writes", "cancellation.no-late-write", faults=("uneven",))
class NoOrderOfWrites(ReferenceStore):
    """The backend may apply a cancelled write after a later one that came on another connection."""

    def _write_order(self) -> dict[str, Any]:
        return {}


@mutant("thread-goes-on", "cancellation.no-late-write")
class ThreadGoesOn(ReferenceStore):
    """Saves happen in threads, which a cancellation does not stop, and each takes the time it takes."""

    async def _save(self, key: str, json: str) -> None:
        self._turn = (getattr(self, "_turn", 0) + 1) % 2
        loop, save, seconds = asyncio.get_running_loop(), super()._save, 0.02 * self._turn

        def work() -> None:
            time.sleep(seconds)
            asyncio.run_coroutine_threadsafe(save(key, json), loop).result()

        await asyncio.to_thread(work)


@mutant("connection-leaked", "cancellation.leaks-nothing")
class ConnectionLeaked(ReferenceStore):
    """The connection of a cancelled request is neither closed nor used again."""

    def _discard(self, connection: Connection) -> None:
        self._forgotten = [*getattr(self, "_forgotten", []), connection]
        self._slots().release()


@mutant("task-leaked", "cancellation.leaks-nothing")
class TaskLeaked(ReferenceStore):
    """A request has a watchdog in a task of its own, which a cancellation leaves behind."""

    async def _request(self, head: dict[str, Any], body: bytes = b"") -> tuple[dict[str, Any], bytes]:
        watchdog = asyncio.create_task(asyncio.sleep(3600))
        reply = await super()._request(head, body)
        watchdog.cancel()
        return reply


@mutant("thread-leaked", "cancellation.leaks-nothing")
class ThreadLeaked(ReferenceStore):
    """A request has a thread of its own, which waits for its end, and a cancellation leaves it waiting."""

    async def _request(self, head: dict[str, Any], body: bytes = b"") -> tuple[dict[str, Any], bytes]:
        done = threading.Event()
        threading.Thread(target=done.wait, daemon=True).start()
        reply = await super()._request(head, body)
        done.set()
        return reply


@mutant("file-leaked", "cancellation.leaks-nothing")
class FileLeaked(ReferenceStore):
    """A save has a file open until it is done, and a cancelled one leaves it so."""

    async def _save(self, key: str, json: str) -> None:
        spool = os.open(os.devnull, os.O_RDWR)
        await super()._save(key, json)
        os.close(spool)
