"""What a store over a network holds: a connection for each event loop that uses it.

Drivers bind their connections to one event loop, and a call of theirs that is cancelled goes on in the server. What
follows from both is the same for every backend, and stands here once, for the stores of this project and of others.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
import struct
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar
from weakref import WeakValueDictionary

from dagonizer.errors import StoreClosedError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

C = TypeVar("C")
P = ParamSpec("P")
T = TypeVar("T")

_NO_ORDER: AbstractAsyncContextManager[None] = nullcontext()
# A C structure: on, for 0 seconds.
_NO_LINGERING = struct.pack("HH" if os.name == "nt" else "ii", 1, 0)


class Connections(Generic[C]):
    """One connection, client or pool for each event loop, made when it is first needed.

    ``connect`` returns an async context manager of a connection: best a function under ``asynccontextmanager``, for an
    event loop that ends closes the async generators that were begun in it, and with them connections that nobody
    closed. ``timeout``, in seconds, bounds every operation, connecting included. ``owner`` is the store's class, for
    the message of ``StoreClosedError``.

    ``distrust``, if there is one, is called with the connection when an operation has taken too long. A pool leaves
    its idle connections then: they may have gone silent as well, and each would cost an operation its timeout. It
    must not wait for the network, and must not raise.

    ``limit`` is how many operations of one event loop may be under way, where 0 and None are no limit; others wait in
    the order in which they came.
    It is for pools that give a connection to whoever asks first after it was given back, and not to who waits longest.
    """

    def __init__(
        self,
        connect: Callable[[], AbstractAsyncContextManager[C]],
        *,
        timeout: float,
        owner: type[object],
        distrust: Callable[[C], Awaitable[None]] | None = None,
        limit: int | None = None,
    ) -> None:
        self._connect = connect
        self._limit = limit
        self._distrust = distrust
        self._timeout = timeout
        self._owner = owner
        self._by_loop: dict[asyncio.AbstractEventLoop, _LoopConnection[C]] = {}
        self._closed = False

    def check_open(self) -> None:
        """Raise ``StoreClosedError`` after ``aclose``."""
        if self._closed:
            raise StoreClosedError(f"this {self._owner.__name__} is closed")

    async def read(self, operation: Callable[[C], Awaitable[T]]) -> T:
        """Return what ``operation`` makes of this event loop's connection. A cancellation cancels it.

        Raises ``StoreClosedError`` after ``aclose``, ``TimeoutError`` after the timeout, and what ``operation`` raises.
        """
        mine = self._of_this_loop()
        mine.begin()
        try:
            return await self._bounded(mine, operation)
        finally:
            mine.end()

    async def write(self, key: str, operation: Callable[[C], Awaitable[T]]) -> T:
        """Do the same for an operation that changes the entry under ``key``, and finish it once it has begun.

        A caller that is cancelled gets its ``CancelledError`` at once, and its operation is done to its end, or not at
        all if it still waits. The writes under ``key`` by this store and event loop are done one after the other, in
        the order in which they came. So none that was cancelled can take effect after a later one, and of many none is
        overtaken for ever, as it could be by a compare-and-swap. The timeout of each begins when it is called, so one
        that takes too long may take those with it that came at the same time.
        """
        mine = self._of_this_loop()
        mine.begin()
        loop = asyncio.get_running_loop()
        # What is awaited is cancelled with the caller, so it is not the task.
        outcome: asyncio.Future[T] = loop.create_future()
        begun = False

        async def begin(connection: C) -> T:
            nonlocal begun
            begun = True
            return await operation(connection)

        task = loop.create_task(self._settle(outcome, mine, begin, mine.order(key)))
        task.add_done_callback(partial(mine.end, outcome))
        try:
            return await outcome
        except asyncio.CancelledError:
            # Nothing was sent, and what is sent from now on could undo what another event loop saves meanwhile.
            if not begun:
                task.cancel()
            raise
        finally:
            # Else what it raises would refer to itself by its traceback, and keep whatever the operation has used.
            del outcome

    async def aclose(self) -> None:
        """Wait for the operations that are under way, then close the connections of all event loops that still run."""
        self._closed = True
        for loop, connection in list(self._by_loop.items()):
            if loop is asyncio.get_running_loop():
                await connection.close(self._timeout)
            elif loop.is_running():
                await self._close_elsewhere(loop, connection)

    async def _close_elsewhere(self, loop: asyncio.AbstractEventLoop, connection: _LoopConnection[C]) -> None:
        closing = connection.close(self._timeout)
        try:
            closed = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(closing, loop))
        except RuntimeError:
            # The loop has ended meanwhile, and has closed the connection itself.
            closing.close()
            return
        # It may also end before it gets to it; then nobody ever answers.
        await asyncio.wait({closed}, timeout=2 * self._timeout)
        if closed.done() and not closed.cancelled():
            closed.result()

    async def _settle(
        self,
        outcome: asyncio.Future[T],
        mine: _LoopConnection[C],
        operation: Callable[[C], Awaitable[T]],
        order: AbstractAsyncContextManager[None],
    ) -> None:
        """Do an operation, and tell its caller, who may have been cancelled."""
        try:
            result = await self._bounded(mine, operation, order)
            if not outcome.cancelled():
                outcome.set_result(result)
        except Exception as exc:  # noqa: BLE001 - the caller raises it
            if not outcome.cancelled():
                outcome.set_exception(exc)
        finally:
            # As in write.
            del outcome

    async def _bounded(
        self,
        mine: _LoopConnection[C],
        operation: Callable[[C], Awaitable[T]],
        order: AbstractAsyncContextManager[None] = _NO_ORDER,
    ) -> T:
        waited_for_others = True
        try:
            async with asyncio.timeout(self._timeout):
                async with order, mine.turn:
                    waited_for_others = False
                    return await operation(await mine.connection())
        except TimeoutError as exc:
            if self._distrust is not None and mine.is_connected and not waited_for_others:
                await self._distrust(await mine.connection())
            # Without asyncio's own part, which refers to the task, and so the task's exception to itself.
            raise exc.with_traceback(None)  # noqa: B904 - it is the same

    def _of_this_loop(self) -> _LoopConnection[C]:
        self.check_open()
        loop = asyncio.get_running_loop()
        connection = self._by_loop.get(loop)
        if connection is None:
            for ended in [other for other in list(self._by_loop) if other.is_closed()]:
                self._by_loop.pop(ended, None)
            connection = self._by_loop[loop] = _LoopConnection(self._connect, self._limit)
            # Another thread may have closed the store meanwhile, and not have seen this connection.
            self.check_open()
        return connection


class _LoopConnection(Generic[C]):
    """The connection of one event loop, and what uses it."""

    def __init__(self, connect: Callable[[], AbstractAsyncContextManager[C]], limit: int | None) -> None:
        self.turn = asyncio.Semaphore(limit) if limit else nullcontext()
        # Each as long as a write uses it.
        self._orders: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._connect = connect
        self._entered: tuple[AbstractAsyncContextManager[C], C] | None = None
        self._lock = asyncio.Lock()
        self._users = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def begin(self) -> None:
        """Count one more user."""
        self._users += 1
        self._idle.clear()

    def end(self, outcome: asyncio.Future[Any] | None = None, _task: object = None) -> None:
        """Count one less. Without an outcome its task was cancelled, maybe before it began."""
        if outcome is not None:
            outcome.cancel()
        self._users -= 1
        if not self._users:
            self._idle.set()

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection."""
        return self._entered is not None

    async def connection(self) -> C:
        """Connect, once."""
        if self._entered is None:
            async with self._lock:
                if self._entered is None:
                    context = self._connect()
                    self._entered = (context, await context.__aenter__())
        return self._entered[1]

    def order(self, key: str) -> asyncio.Lock:
        """Return what the writes under ``key`` take one after the other."""
        return self._orders.setdefault(key, asyncio.Lock())

    async def close(self, patience: float) -> None:
        """Disconnect, once nobody uses the connection or ``patience`` seconds are over."""
        with suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await self._idle.wait()
        async with self._lock:
            if self._entered is not None:
                context, _ = self._entered
                self._entered = None
                # To its end, although the caller may be cancelled: nobody else closes it.
                await asyncio.shield(asyncio.ensure_future(context.__aexit__(None, None, None)))


async def in_thread(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Return what ``function`` returns, in another thread, and do not end before it, however often this is cancelled.

    A thread cannot be cancelled. ``asyncio.to_thread`` leaves it behind when it is, or when a timeout is over, and
    what it writes then takes effect after what was saved since. Here the ``CancelledError`` waits for the thread. So
    ``function`` should end by itself: give what it calls a timeout of its own. Raises what ``function`` raises.
    """
    context = copy_context()
    # No task, which would be cancelled with all others when the event loop ends, and would leave the thread.
    work = asyncio.get_running_loop().run_in_executor(None, partial(context.run, function, *args, **kwargs))
    try:
        await _end_of(work)
        return work.result()
    finally:
        # As in Connections.write.
        del work


async def _end_of(work: asyncio.Future[T]) -> None:
    """Wait until ``work`` is done. Whoever is cancelled meanwhile does not learn what it raises."""
    try:
        await asyncio.wait({work})
    except asyncio.CancelledError:
        while not work.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait({work})
        if not work.cancelled():
            # Taken note of, or the event loop would complain of it.
            work.exception()
        raise


def is_stale(transport: asyncio.BaseTransport | None) -> bool:
    """Return whether an idle connection has ended, or something has come over it that nobody asked for.

    This asks the operating system, for an event loop that was busy may not know yet. Who asks before sending can take
    another connection, where after sending nobody knows what was done.
    """
    sock = None if transport is None or transport.is_closing() else transport.get_extra_info("socket")
    return sock is None or sock.fileno() < 0 or _is_readable(sock.fileno())


def reset(transport: asyncio.WriteTransport) -> None:
    """Close a connection at once and take back what was not sent yet, which might take effect after a later write."""
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.family in {socket.AF_INET, socket.AF_INET6}:
        # Closed already, it has nothing to take back.
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGERING)
    transport.abort()


def _is_readable(descriptor: int) -> bool:
    # Windows has no poll; elsewhere select knows only the first 1,024 descriptors.
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(0))
    return bool(select.select([descriptor], [], [], 0)[0])
