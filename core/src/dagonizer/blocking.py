"""The stores and the codec without ``await``, for scripts, threads and frameworks that have no event loop.

    from dagonizer.blocking import Checkpoint, open_store

    with open_store("redis://localhost") as store:
        Checkpoint.persist(store, "ckpt:process", data)

Everything runs on one event loop in a thread of its own, which the first call starts and which ends with the process.
Any number of threads may share a store. So may a process and those that it forks: each opens the store anew.

``durable.run`` has no form here: its nodes are coroutines, and one that computes for a while would hold up the stores
of all threads. A script gives a run an event loop of its own::

    async def main():
        async with dagonizer.open_store("redis://localhost") as store:
            return await durable.run(dispatcher, "dag", State, store=store, key="run-1", restore_state=State.restore)

    result = asyncio.run(main())
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import os
import threading
from collections.abc import AsyncGenerator
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from dagonizer import registry
from dagonizer.checkpoint import Checkpoint as _Checkpoint
from dagonizer.contracts import ClosableStore, SupportsCompareAndSwap, SupportsListing, VersionedJson
from dagonizer.errors import StoreClosedError, StoreError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
    from types import TracebackType
    from typing import Self

    from dagonizer.checkpoint import CheckpointData, RecalledCheckpoint
    from dagonizer.url import StoreURL

__all__ = ["BlockingStore", "Checkpoint", "open_store"]

S = TypeVar("S")
T = TypeVar("T")

# How many keys of a listing one call to the event loop fetches.
_PAGE = 256


def open_store(url: str | StoreURL) -> BlockingStore:
    """Open the store that ``url`` names, without connecting; the result also serves ``with``.

    Raises what ``dagonizer.open_store`` raises.
    """
    return BlockingStore(lambda: registry.open_store(url))


class BlockingStore:
    """A store whose methods return when they are done.

    ``opened`` makes the store, and is called at once, and again in a forked process that uses it: connections cannot be
    shared with the process that made them. Where the store lacks listing or compare-and-swap, those methods raise
    ``StoreError``. All others raise what the store's own raise.

    A KeyboardInterrupt cancels the call, as a cancellation does the store's own: its outcome is unknown.
    """

    def __init__(self, opened: Callable[[], ClosableStore]) -> None:
        self._opened = opened
        self._closed = False
        self._process = _process
        self._store = opened()
        # Of the processes that this one was forked from: what they hold is not this one's to close.
        self._inherited: list[ClosableStore] = []
        # Before any handler of the caller's that uses this store when the process ends, for such run in reverse.
        _watch_process()

    def save(self, key: str, json: str) -> None:
        """Put ``json`` under ``key``, replacing what is there atomically; see ``CheckpointStore.save``."""
        _run(self._mine().save(key, json))

    def load(self, key: str) -> str | None:
        """Return the text under ``key``, or None when there is no entry."""
        return _run(self._mine().load(key))

    def delete(self, key: str) -> None:
        """Remove the entry under ``key``. Without an entry this does nothing."""
        _run(self._mine().delete(key))

    def list_keys(self, prefix: str = "") -> Iterator[str]:
        """Yield every key that starts with ``prefix`` exactly once; see ``SupportsListing``."""
        store = self._mine()
        if not isinstance(store, SupportsListing):
            raise _lacks(store, "list keys")
        return self._listed(store.list_keys(prefix))

    def load_versioned(self, key: str) -> VersionedJson | None:
        """Return the text under ``key`` with its version, or None when there is no entry."""
        return _run(self._swapping().load_versioned(key))

    def save_if(self, key: str, json: str, *, expected: str | None) -> str:
        """Save if the entry has the version ``expected`` (None: if there is no entry), and return its new version.

        Raises ``StoreConflictError`` when the entry is not as expected.
        """
        return _run(self._swapping().save_if(key, json, expected=expected))

    def close(self) -> None:
        """Release what the store holds; later calls raise ``StoreClosedError``. Closing twice is allowed."""
        self._closed = True
        if self._process is _process:
            _run(self._store.aclose())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None, /
    ) -> None:
        self.close()

    def _mine(self) -> ClosableStore:
        """Return this process's store."""
        if self._closed:
            raise StoreClosedError("this BlockingStore is closed")
        with _lock:
            if self._process is not _process:
                self._inherited.append(self._store)
                self._store = self._opened()
                self._process = _process
            return self._store

    def _swapping(self) -> SupportsCompareAndSwap:
        store = self._mine()
        if not isinstance(store, SupportsCompareAndSwap):
            raise _lacks(store, "compare and swap")
        return store

    def _listed(self, keys: AsyncIterator[str]) -> Iterator[str]:
        listing = _Listing(keys)
        try:
            while page := _run(listing.page()):
                for key in page:
                    yield key
                    self._mine()
        finally:
            _run(listing.close())


class Checkpoint:
    """The codec, and its composition with a blocking store; see ``dagonizer.Checkpoint``."""

    from_result = staticmethod(_Checkpoint.from_result)
    to_json = staticmethod(_Checkpoint.to_json)
    restore = staticmethod(_Checkpoint.restore)

    @staticmethod
    def persist(store: BlockingStore, key: str, data: CheckpointData) -> None:
        """Save ``data`` under ``key``. Raises ``EncodeError`` before the store is touched, or a ``StoreError``."""
        store.save(key, _Checkpoint.to_json(data))

    @staticmethod
    def recall(
        store: BlockingStore, key: str, restore_state: Callable[[dict[str, Any]], S]
    ) -> RecalledCheckpoint[S] | None:
        """Load and restore what is under ``key``, or return None when there is no entry.

        Raises what ``restore`` raises, or a ``StoreError``.
        """
        json = store.load(key)
        return None if json is None else _Checkpoint.restore(json, restore_state)


class _Background:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self._ready = threading.Event()
        self.thread = threading.Thread(target=self._run, name="dagonizer", daemon=True)
        self.thread.start()
        self._ready.wait()

    def _run(self) -> None:
        # asyncio.run would wait for the executor's threads in one that it starts, which Python 3.12 refuses as it ends.
        with closing(asyncio.new_event_loop()) as loop:
            loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._ready.set()
        await self._stop.wait()
        if left := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in left:
                task.cancel()
            await asyncio.wait(left)
        await self.loop.shutdown_asyncgens()

    def stop(self) -> None:
        """End it, once what it does at the moment is done."""
        self.loop.call_soon_threadsafe(self._stop.set)
        self.thread.join()


class _Process:
    """What belongs to this process, and to none that it forks."""

    background: _Background | None = None


_process = _Process()
_lock = threading.Lock()


class _Call(Generic[T]):
    """Work on the background event loop that can be given up from the moment it is submitted."""

    def __init__(self, work: Coroutine[Any, Any, T]) -> None:
        self._work = work
        self._task: asyncio.Task[Any] | None = None
        self._given_up = False

    async def run(self) -> T:
        self._task = asyncio.current_task()
        if self._given_up:
            self._work.close()
            raise asyncio.CancelledError
        try:
            return await self._work
        finally:
            # It would refer to itself by what it raises.
            self._task = None

    def give_up(self) -> None:
        self._given_up = True
        if self._task is not None:
            self._task.cancel()


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Return what ``work`` returns on the background event loop."""
    background = _started()
    if threading.current_thread() is background.thread:
        work.close()
        raise RuntimeError("a blocking store was called on its own event loop, which would wait for itself; use await")
    call = _Call(work)
    try:
        return asyncio.run_coroutine_threadsafe(call.run(), background.loop).result()
    except BaseException:
        # Does nothing unless it was interrupted: while it waited, or before it came to that. A loop that is closed has
        # cancelled everything.
        with suppress(RuntimeError):
            background.loop.call_soon_threadsafe(call.give_up)
        raise


def _started() -> _Background:
    with _lock:
        if _process.background is None:
            _watch_process()
            _process.background = _Background()
        return _process.background


@functools.cache
def _watch_process() -> None:
    atexit.register(_stop)
    # Windows has no fork.
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_begin_anew)


def _stop() -> None:
    if _process.background is not None:
        _process.background.stop()


def _begin_anew() -> None:
    """Leave to the process that forked this one what is its own: it alone has the threads."""
    global _process, _lock  # noqa: PLW0603 - this is what they are for
    _process = _Process()
    # Another thread may have held it.
    _lock = threading.Lock()


class _Listing:
    """A listing on the background event loop, and the task that fetches a page of it."""

    def __init__(self, keys: AsyncIterator[str]) -> None:
        self._keys = keys
        self._fetching: asyncio.Task[Any] | None = None

    async def page(self) -> list[str]:
        """Return the next keys, none at the end."""
        self._fetching = asyncio.current_task()
        page: list[str] = []
        async for key in self._keys:
            page.append(key)
            if len(page) == _PAGE:
                break
        return page

    async def close(self) -> None:
        """End it."""
        # A call that was interrupted is cancelled, and may not have ended yet.
        if self._fetching is not None and not self._fetching.done():
            await asyncio.wait({self._fetching})
        if isinstance(self._keys, AsyncGenerator):
            await self._keys.aclose()


def _lacks(store: object, what: str) -> StoreError:
    return StoreError(f"{type(store).__name__} cannot {what}")
