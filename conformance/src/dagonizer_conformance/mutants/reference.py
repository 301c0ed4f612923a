"""The reference: a correct store over TCP, made so that a mutant is a subclass of a few lines, and its harness."""

from __future__ import annotations

import asyncio
import importlib
import itertools
import json
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from dagonizer.contracts import VersionedJson
from dagonizer.errors import StoreClosedError, StoreConflictError, StoreUnavailableError
from dagonizer.keys import key_bytes, prefix_bytes, value_bytes, value_text
from dagonizer_conformance.harness import Harness
from dagonizer_conformance.mutants.server import LENGTHS, frame

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from types import TracebackType
    from typing import Self

SCHEME = "dgzconf-reference"
"""The scheme of the URLs by which another process finds the reference or a mutant."""

_SERVER = Path(__file__).with_name("server.py")


class Connection:
    """A connection to the backend, for one request at a time. It belongs to no event loop."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    @classmethod
    async def open(cls, host: str, port: int) -> Self:
        """Connect."""
        sock = socket.socket()
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await asyncio.get_running_loop().sock_connect(sock, (host, port))
        except BaseException:
            sock.close()
            raise
        return cls(sock)

    async def send(self, head: dict[str, Any], body: bytes) -> None:
        """Send a request."""
        await asyncio.get_running_loop().sock_sendall(self._socket, frame(head, body))

    async def receive(self) -> tuple[dict[str, Any], bytes]:
        """Receive a reply."""
        # A reply that is there already is read without giving way, and no cancellation would ever find its moment.
        await asyncio.sleep(0)
        head_length, body_length = LENGTHS.unpack(await self._receive(LENGTHS.size))
        head = await self._receive(head_length)
        return json.loads(head), bytes(await self._receive(body_length))

    def is_stale(self) -> bool:
        """Return whether there is something to read: the end, an error, or a reply that nobody waits for."""
        try:
            self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True

    def close(self) -> None:
        """Disconnect."""
        self._socket.close()

    async def _receive(self, length: int) -> bytearray:
        loop = asyncio.get_running_loop()
        received = bytearray(length)
        rest = memoryview(received)
        while rest:
            count = await loop.sock_recv_into(self._socket, rest)
            if count == 0:
                raise ConnectionResetError("the backend closed the connection")
            rest = rest[count:]
        return received


class ReferenceStore:
    """A store that keeps the whole contract, and lists keys and compares-and-swaps.

    ``timeout`` bounds each exchange with the backend, in seconds, connecting included. Making a store does no I/O. Up
    to ``max_connections`` connections are kept for each event loop that uses the store.
    """

    max_connections = 8

    def __init__(self, host: str, port: int, namespace: str, *, timeout: float = 2.0) -> None:
        self._host = host
        self._port = port
        self._namespace = namespace
        self._timeout = timeout
        self._closed = False
        self._idle: list[Connection] = []
        self._slots_by_loop: dict[asyncio.AbstractEventLoop, asyncio.Semaphore] = {}
        self._client = secrets.token_hex(8)
        self._ids = itertools.count(1)
        self._sequences = itertools.count(1)

    async def save(self, key: str, json: str) -> None:
        """Put ``json`` under ``key``."""
        self._check_open()
        await self._save(key, json)

    async def load(self, key: str) -> str | None:
        """Return the text under ``key``, or None."""
        entry = await self.load_versioned(key)
        return None if entry is None else entry.json

    async def delete(self, key: str) -> None:
        """Remove the entry under ``key``, if there is one."""
        self._check_open()
        await self._delete(key)

    async def load_versioned(self, key: str) -> VersionedJson | None:
        """Return the text under ``key`` with its version, or None."""
        self._check_open()
        reply, body = await self._request({"command": "get", **self.place(key)})
        if reply["version"] is None:
            return None
        return VersionedJson(self._decode_value(key, body), reply["version"])

    async def save_if(self, key: str, json: str, *, expected: str | None) -> str:
        """Save if the entry has the version ``expected`` (None: no entry), else raise ``StoreConflictError``."""
        self._check_open()
        return await self._save_if(key, json, expected)

    async def list_keys(self, prefix: str = "") -> AsyncIterator[str]:
        """Yield every key that starts with ``prefix``."""
        self._check_open()
        prefix_bytes(prefix)
        after, more = "", True
        while more:
            keys, more = await self._list_page(prefix, after)
            for key in keys:
                yield self._decode_key(key)
                self._check_open()
                after = key

    async def aclose(self) -> None:
        """Close this store. A request that is under way ends first, and its connection with it."""
        self._closed = True
        self._close_idle()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None, /
    ) -> None:
        await self.aclose()

    def place(self, key: str) -> dict[str, str]:
        """Return the fields of a request that say which entry it is about."""
        return {"namespace": self._namespace_for(key), "key": self._encode_key(key)}

    def _check_open(self) -> None:
        if self._closed:
            raise StoreClosedError(f"this {type(self).__name__} is closed")

    def _namespace_for(self, key: str) -> str:  # noqa: ARG002 - for mutants
        return self._namespace

    def _encode_key(self, key: str) -> str:
        """Check ``key`` and return what it is called at the backend."""
        key_bytes(key)
        return key

    def _decode_key(self, key: str) -> str:
        """Return the key that is called ``key`` at the backend."""
        return key

    def _encode_value(self, json: str) -> bytes:
        """Check ``json`` and return the bytes to store."""
        return value_bytes(json)

    def _decode_value(self, key: str, stored: bytes) -> str:
        """Return the text that is stored as ``stored``, or raise ``StoreCorruptedError``."""
        return value_text(stored, key=key)

    async def _save(self, key: str, json: str) -> None:
        await self._write({"command": "put", **self.place(key)}, self._encode_value(json))

    async def _delete(self, key: str) -> None:
        await self._write({"command": "delete", **self.place(key)})

    async def _save_if(self, key: str, json: str, expected: str | None) -> str:
        head = {"command": "put-if", **self.place(key), "expected": expected}
        reply = await self._write(head, self._encode_value(json))
        if "conflict" in reply:
            raise StoreConflictError(f"the entry under {key!r} is not at version {expected!r}")
        version: str = reply["version"]
        return version

    async def _list_page(self, prefix: str, after: str) -> tuple[list[str], bool]:
        """Return the first keys behind ``after`` that start with ``prefix``, and whether there are more."""
        head = {"command": "list", "namespace": self._namespace_for(prefix), "prefix": prefix, "after": after}
        reply, _ = await self._request(head)
        return reply["keys"], reply["more"]

    async def _write(self, head: dict[str, Any], body: bytes = b"") -> dict[str, Any]:
        """Request a change and return the reply.

        A cancelled write may reach the backend after a later one on another connection. The backend passes over it,
        for its place in this client's order tells. One that was overtaken but not cancelled tries again.
        """
        while True:
            reply, _ = await self._request({**head, **self._write_order()}, body)
            if "superseded" not in reply:
                return reply

    def _write_order(self) -> dict[str, Any]:
        """Return the fields that say which of this client's writes comes later. Without them none is passed over."""
        return {"client": self._client, "sequence": next(self._sequences)}

    async def _request(self, head: dict[str, Any], body: bytes = b"") -> tuple[dict[str, Any], bytes]:
        """Send a request on a free connection and return the reply, or raise ``StoreUnavailableError``."""
        try:
            async with asyncio.timeout(self._timeout):
                connection = await self._acquire()
                try:
                    reply = await self._exchange(connection, head, body)
                except BaseException:
                    self._discard(connection)
                    raise
                self._release(connection)
                return reply
        except TimeoutError as exc:
            self._distrust()
            raise StoreUnavailableError(f"{self._host}:{self._port} did not answer in {self._timeout:g} s") from exc
        except OSError as exc:
            raise StoreUnavailableError(f"{self._host}:{self._port}: {exc}") from exc

    async def _exchange(
        self, connection: Connection, head: dict[str, Any], body: bytes
    ) -> tuple[dict[str, Any], bytes]:
        """Send a request on ``connection`` and return the reply."""
        request_id = next(self._ids)
        await connection.send({"id": request_id, **head}, body)
        reply, reply_body = await connection.receive()
        self._check_reply(request_id, reply)
        return reply, reply_body

    def _check_reply(self, request_id: int, reply: dict[str, Any]) -> None:
        """Raise ``ConnectionError`` if ``reply`` answers another request."""
        if reply["id"] != request_id:
            raise ConnectionError(f"the reply to request {reply['id']} came for request {request_id}")

    async def _acquire(self) -> Connection:
        """Return a free connection or a new one, waiting for one of ``max_connections`` slots in turn."""
        slots = self._slots()
        await slots.acquire()
        try:
            # It may have been closed meanwhile.
            self._check_open()
            return self._idle_connection() or await self._connect()
        except BaseException:
            slots.release()
            raise

    def _release(self, connection: Connection) -> None:
        """Keep ``connection`` for later, and free its slot."""
        self._idle.append(connection)
        self._slots().release()
        if self._closed:
            self._close_idle()

    def _discard(self, connection: Connection) -> None:
        """Close ``connection``, whose next reply may belong to no one, and free its slot."""
        connection.close()
        self._slots().release()

    async def _connect(self) -> Connection:
        return await Connection.open(self._host, self._port)

    def _slots(self) -> asyncio.Semaphore:
        """Return the slots of the running event loop."""
        loop = asyncio.get_running_loop()
        if loop not in self._slots_by_loop:
            # A copy, for another thread may add its loop.
            for ended in [other for other in list(self._slots_by_loop) if other.is_closed()]:
                self._slots_by_loop.pop(ended, None)
            self._slots_by_loop[loop] = asyncio.Semaphore(self.max_connections)
        return self._slots_by_loop[loop]

    def _idle_connection(self) -> Connection | None:
        """Take an idle connection that still works."""
        # Another thread may take the last one.
        with suppress(IndexError):
            while True:
                connection = self._idle.pop()
                if not self._is_stale(connection):
                    return connection
                connection.close()
        return None

    def _is_stale(self, connection: Connection) -> bool:
        """Return whether an idle connection no longer works, as after a restart of the backend."""
        return connection.is_stale()

    def _distrust(self) -> None:
        """Leave the idle connections, which may be as silent as one on which a request has waited in vain."""
        self._close_idle()

    def _close_idle(self) -> None:
        with suppress(IndexError):
            while True:
                self._idle.pop().close()


class ReferenceHarness(Harness):
    """A backend of its own, and ``store``, the reference or a mutant, as its client.

    ``faults`` are names out of ``server.FAULTS``; ``timeout`` is that of the stores.
    """

    def __init__(
        self, store: type[ReferenceStore] = ReferenceStore, *, faults: Sequence[str] = (), timeout: float = 2.0
    ) -> None:
        self._store = store
        self._faults = tuple(faults)
        self._timeout = timeout
        self._directory: str | None = None
        self._server: subprocess.Popen[bytes] | None = None
        self._port = 0

    async def start(self) -> None:
        """Start the backend."""
        self._directory = tempfile.mkdtemp(prefix="dgzconf-reference-")
        await self.up()

    async def stop(self) -> None:
        """End the backend and remove its data."""
        await self.down()
        if self._directory is not None:
            await asyncio.to_thread(shutil.rmtree, self._directory)
            self._directory = None

    async def open(self, namespace: str) -> ReferenceStore:
        """Return a new client."""
        return self._client(namespace)

    def address(self) -> str | None:
        """Return a URL of the plugin beside this module, unless the store's class is not in the catalogue."""
        url = f"{SCHEME}://127.0.0.1:{self._port}/{{namespace}}?timeout={self._timeout:g}"
        if self._store is ReferenceStore:
            return url
        name = self._store.__qualname__
        return f"{url}&store={quote(name)}" if registered_stores().get(name) is self._store else None

    async def kill(self) -> None:
        """Kill the backend and start it again, on its port and with its data."""
        await self.down()
        await self.up()

    async def down(self) -> None:
        """Kill the backend."""
        server, self._server = self._server, None
        if server is not None:
            server.kill()
            await asyncio.to_thread(server.communicate)

    async def up(self) -> None:
        """Start the backend, on the port that it had before, unless it runs."""
        if self._server is not None:
            return
        options = ("--directory", str(self._directory), "--port", str(self._port), "--faults", ",".join(self._faults))
        self._server = subprocess.Popen(  # noqa: S603, ASYNC220 - takes a millisecond, and outlives the event loop
            [sys.executable, "-I", "-S", str(_SERVER), *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        line = await asyncio.to_thread(_first_line, self._server)
        if not line:
            await self.down()
            raise RuntimeError("the reference backend did not start; its standard error says why")
        self._port = int(line)

    async def peek(self, namespace: str, key: str) -> str | None:
        """Read from the backend, where the store would."""
        reply, body = await self._exchange({"command": "get", **self._client(namespace).place(key)})
        return None if reply["version"] is None else body.decode(errors="surrogateescape")

    async def poke(self, namespace: str, key: str, text: str) -> None:
        """Write to the backend, where the store would."""
        head = {"command": "put", **self._client(namespace).place(key)}
        await self._exchange(head, text.encode(errors="surrogateescape"))

    def describe(self) -> str:
        """Return the store's name and the backend's faults."""
        return " + ".join((self._store.__qualname__, *self._faults))

    def reference(self) -> str | None:
        """Return where the reference is; a mutant has no name of its own for the command line."""
        return super().reference() if self._store is ReferenceStore and not self._faults else None

    def describe_namespaces(self) -> str:
        """Say that the store does it."""
        return "a field of every request"

    def _client(self, namespace: str) -> ReferenceStore:
        return self._store("127.0.0.1", self._port, namespace, timeout=self._timeout)

    async def _exchange(self, head: dict[str, Any], body: bytes = b"") -> tuple[dict[str, Any], bytes]:
        connection = await Connection.open("127.0.0.1", self._port)
        try:
            await connection.send({"id": 0, **head}, body)
            return await connection.receive()
        finally:
            connection.close()


def registered_stores() -> dict[str, type[ReferenceStore]]:
    """Return the classes, by qualified name, that a URL may name: ``STORES`` of the catalogue."""
    # Not at the top, for the catalogue is made of subclasses of what is here.
    stores: dict[str, type[ReferenceStore]] = importlib.import_module("dagonizer_conformance.mutants.catalogue").STORES
    return stores


def _first_line(process: subprocess.Popen[bytes]) -> bytes:
    return process.stdout.readline() if process.stdout is not None else b""
