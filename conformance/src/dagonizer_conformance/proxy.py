"""A TCP proxy that makes a network fail on demand."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

_CHUNK = 256 * 1024
_BACKLOG = 128
_DROP_SECONDS = 0.02

_Direction = Literal["request", "reply"]


@dataclass(frozen=True, slots=True)
class _Cut:
    direction: _Direction
    after: int
    then_delay: float


@dataclass(frozen=True, slots=True)
class _Mode:
    refuses: bool = False
    swallows: bool = False
    delay: float = 0.0
    rate: float | None = None
    cut: _Cut | None = None


class FaultProxy:
    """A proxy on loopback, in front of the backend at ``host`` and ``port``.

    At first it passes everything through: bytes, the end of one direction, a broken connection. Each of the methods
    from ``pass_through`` on replaces what was set before, and has taken effect when it returns. Only connections that
    ``half_open`` has silenced stay so.

    The proxy has a thread and an event loop of its own. So it goes on while the loop of its user is blocked, and all
    methods can be called from any loop. ``host`` and ``port`` are where it listens, once started.
    """

    host = "127.0.0.1"
    port = 0

    def __init__(self, host: str, port: int) -> None:
        self._backend = (host, port)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._accepted = 0
        self._silent = 0
        self._mode = _Mode()
        self._changed = asyncio.Event()

    @property
    def connections(self) -> int:
        """How many connections from clients are open."""
        return len(self._connections)

    @property
    def accepted(self) -> int:
        """How many connections from clients there have been."""
        return self._accepted

    async def start(self) -> None:
        """Listen on a free port. Whether the backend answers does not matter yet."""
        if self._loop is not None:
            raise RuntimeError("the proxy is already running")
        self._addresses = await asyncio.get_running_loop().getaddrinfo(*self._backend, type=socket.SOCK_STREAM)
        # Nothing below waits, so a cancelled start leaves nothing behind.
        self._listener = _bound(0)
        self.port = self._listener.getsockname()[1]
        self._mode = _Mode()
        self._stopping = asyncio.Event()
        self._stopped: Future[None] = Future()
        # A future that is running cannot be cancelled by who awaits it.
        self._stopped.set_running_or_notify_cancel()
        # Named, since the default may be one of another library, or on Windows one without add_reader.
        self._loop = asyncio.SelectorEventLoop()
        self._listen(self._loop)
        self._thread = threading.Thread(target=self._run, args=(self._loop,), name="fault-proxy", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """Reset all connections, and free the port and the thread. Nothing happens if the proxy is not running."""
        loop, self._loop = self._loop, None
        if loop is not None:
            loop.call_soon_threadsafe(self._stopping.set)
            await asyncio.wrap_future(self._stopped)
            self._thread.join()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None, /
    ) -> None:
        await self.stop()

    async def pass_through(self) -> None:
        """Be an ordinary proxy, for new and open connections."""
        await self._set(_Mode())

    async def refuse(self) -> None:
        """Reset all connections and refuse new ones, on the same port."""
        await self._set(_Mode(refuses=True), reset=True)

    async def black_hole(self) -> None:
        """Accept and keep connections, and swallow all that comes, in both directions."""
        await self._set(_Mode(swallows=True))

    async def half_open(self) -> None:
        """Swallow for ever, in both directions, all that comes over open connections, and pass new ones through.

        No end and no reset gets through either, as when a firewall has forgotten them. The client can close them.
        """
        await self._set(_Mode(), silence=True)

    async def reset(self) -> None:
        """Reset all connections, and pass new ones through."""
        await self._set(_Mode(), reset=True)

    async def delay(self, seconds: float) -> None:
        """Hold each chunk for that long, in both directions. A chunk is what has come when the last one is gone.

        With ``math.inf`` everything stands still, and what a sender has no room for waits with it.
        """
        if seconds < 0:
            raise ValueError(f"seconds must not be negative, not {seconds}")
        await self._set(_Mode(delay=seconds))

    async def drip(self, bytes_per_second: float) -> None:
        """Pass so many bytes a second over each connection, in each direction."""
        if bytes_per_second <= 0:
            raise ValueError(f"bytes_per_second must be positive, not {bytes_per_second}")
        await self._set(_Mode(rate=bytes_per_second))

    async def cut_reply(self, after: int, *, then_delay: float = 0.0) -> None:
        """Pass ``after`` bytes of the next reply and reset its connection; then pass everything, after ``then_delay``.

        The first connection, open or new, on which the backend has sent that many bytes from now on is cut, but not
        before one byte has come. Of a long part, what the client's system has no room for is lost as well.
        """
        await self._cut("reply", after, then_delay)

    async def cut_request(self, after: int) -> None:
        """Pass ``after`` bytes of the next request, to the backend, and reset its connection, as ``cut_reply`` does."""
        await self._cut("request", after)

    async def _cut(self, direction: _Direction, after: int, then_delay: float = 0.0) -> None:
        if after < 0:
            raise ValueError(f"after must not be negative, not {after}")
        await self._set(_Mode(cut=_Cut(direction, after, then_delay)))

    async def _set(self, mode: _Mode, *, reset: bool = False, silence: bool = False) -> None:
        if self._loop is None:
            raise RuntimeError("the proxy is not running")
        applied = self._apply(mode, reset=reset, silence=silence)
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(applied, self._loop))

    # What follows runs in the proxy's thread.

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: loop) as runner:
                runner.run(self._main(loop))
        finally:
            self._stopped.set_result(None)

    async def _main(self, loop: asyncio.AbstractEventLoop) -> None:
        await self._stopping.wait()
        loop.remove_reader(self._listener)
        self._listener.close()
        # The runner cancels the connections, which resets them.

    async def _apply(self, mode: _Mode, *, reset: bool, silence: bool) -> None:
        loop = asyncio.get_running_loop()
        before = self._mode
        if silence:
            self._silent = self._accepted
        self._change(mode)
        if mode.refuses and not before.refuses:
            loop.remove_reader(self._listener)
            self._listener.close()
            # Bound but not listening, it refuses, and keeps the port from others.
            self._listener = _bound(self.port)
        elif before.refuses and not mode.refuses:
            self._listen(loop)
        if reset:
            await self._reset()

    def _change(self, mode: _Mode) -> None:
        self._mode = mode
        self._changed.set()
        self._changed = asyncio.Event()

    async def _reset(self) -> None:
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _listen(self, loop: asyncio.AbstractEventLoop) -> None:
        self._listener.listen(_BACKLOG)
        loop.add_reader(self._listener, self._accept, loop)

    def _accept(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            client, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            # The client has left again.
            return
        client.setblocking(False)
        # Whatever ends it resets the connection, except an orderly end.
        _linger(client, on=True)
        self._accepted += 1
        connection = loop.create_task(self._serve(client, self._accepted))
        self._connections.add(connection)
        # Not in the task: one that is cancelled before it has begun runs nothing.
        connection.add_done_callback(lambda _: client.close())
        connection.add_done_callback(self._connections.discard)

    async def _serve(self, client: socket.socket, number: int) -> None:
        try:
            with await self._connect(number) as backend:
                for peer in (client, backend):
                    # Else the second part of a message would wait until the first is acknowledged.
                    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                async with asyncio.TaskGroup() as directions:
                    directions.create_task(self._pump(client, backend, "request", number))
                    directions.create_task(self._pump(backend, client, "reply", number))
            _linger(client, on=False)
        except* OSError:
            # Passed on: closing the client's socket resets its connection.
            pass

    async def _connect(self, number: int) -> socket.socket:
        """Connect to the backend at the first of its addresses that answers."""
        loop = asyncio.get_running_loop()
        errors = []
        for family, kind, protocol, _, address in self._addresses:
            backend = socket.socket(family, kind, protocol)
            backend.setblocking(False)
            try:
                await loop.sock_connect(backend, address)
            except OSError as exc:
                backend.close()
                errors.append(exc)
            except BaseException:
                backend.close()
                raise
            else:
                return backend
        await self._until_answering(number)
        raise errors[0]

    async def _pump(self, source: socket.socket, sink: socket.socket, direction: _Direction, number: int) -> None:
        loop = asyncio.get_running_loop()
        cut: _Cut | None = None
        left = 0
        while True:
            chunk = await self._receive(source, direction, number)
            if not chunk:
                sink.shutdown(socket.SHUT_WR)
                return
            if self._mode.cut is not cut:
                cut = self._mode.cut
                left = cut.after if cut is not None else 0
            if cut is not None and cut.direction == direction:
                if len(chunk) >= left:
                    # Before anything is awaited, so that no other connection is cut as well.
                    self._change(_Mode(delay=cut.then_delay))
                    await loop.sock_sendall(sink, chunk[:left])
                    raise ConnectionResetError("cut")
                left -= len(chunk)
            await self._pass_on(chunk, sink, number)

    async def _pass_on(self, chunk: bytes, sink: socket.socket, number: int) -> None:
        """Send ``chunk``, in drops if it must be slow, unless it is to be swallowed meanwhile."""
        loop = asyncio.get_running_loop()
        rest = memoryview(chunk)
        while rest and not self._swallows(number):
            mode, length = self._mode, len(rest)
            if mode.rate is not None:
                length = max(1, int(mode.rate * _DROP_SECONDS))
                with suppress(TimeoutError):
                    async with asyncio.timeout(len(rest[:length]) / mode.rate):
                        await self._changed.wait()
                if self._mode is not mode:
                    continue
            await loop.sock_sendall(sink, rest[:length])
            rest = rest[length:]

    async def _receive(self, source: socket.socket, direction: _Direction, number: int) -> bytes:
        """Return the next chunk that is to be passed on, when its time has come; an empty one is the end."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                chunk = await loop.sock_recv(source, _CHUNK)
            except OSError:
                if direction == "reply":
                    await self._until_answering(number)
                raise
            await self._until_due(loop.time())
            if not self._swallows(number):
                return chunk
            if not chunk:
                if direction == "request":
                    # Most likely the client is gone, not only done with asking. There will be no answer in any case.
                    raise ConnectionAbortedError("the client has left the black hole")
                await self._until_answering(number)
                return chunk

    async def _until_due(self, came: float) -> None:
        loop = asyncio.get_running_loop()
        while (rest := came + self._mode.delay - loop.time()) > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(rest):
                    await self._changed.wait()

    def _swallows(self, number: int) -> bool:
        """Return whether what comes over this connection, counted from 1, is swallowed."""
        return self._mode.swallows or number <= self._silent

    async def _until_answering(self, number: int) -> None:
        """Wait, for where all is swallowed a client does not learn what becomes of the backend either."""
        while self._swallows(number):
            await self._changed.wait()


def _bound(port: int) -> socket.socket:
    listener = socket.socket()
    listener.setblocking(False)
    # Connections that were there a moment ago must not keep the port from being bound again.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((FaultProxy.host, port))
    except BaseException:
        listener.close()
        raise
    return listener


def _linger(client: socket.socket, *, on: bool) -> None:
    """Let closing the socket reset the connection, or end it in order."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", on, 0))
