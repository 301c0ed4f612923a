"""The store: a Redis string for each key, which holds the value's UTF-8 bytes, or a Zstandard frame of them.

The string's own name is the prefix with ``%`` and ``:`` percent-encoded, a colon, and the key as it is. So the first
colon ends the prefix, and no two pairs of prefix and key make the same name.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from dagonizer.compression import compress_in_steps, expand
from dagonizer.connections import Connections
from dagonizer.contracts import VersionedJson
from dagonizer.errors import InvalidKeyError, StoreConflictError, StoreUnavailableError
from dagonizer.keys import key_bytes, prefix_bytes, value_bytes, value_text
from dagonizer_redis._config import RedisConfig
from dagonizer_redis._errors import is_access, translated
from dagonizer_redis._topology import BorrowedLinks, Link, OneServer, Topology, topology

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from types import TracebackType
    from typing import Self

    from dagonizer.compression import Compression
    from dagonizer_redis._topology import Links

T = TypeVar("T")

_PATTERN_CHARACTERS = re.compile(rb"[*?\[\]\\^-]")
_RUN_ID = re.compile(rb"^run_id:(\w+)", re.MULTILINE)
_SCANNED_AT_ONCE = 500
# To hash more than this at once would hold up the event loop.
_HASHED_AT_ONCE = 1 << 18
# Of the timeout, so that the number of replicas is known before it is over.
_WAIT_SHARE = 0.75


class RedisCheckpointStore:
    """A store in a database of Redis or Valkey.

    ``server`` is a ``RedisConfig``, or the caller's own ``redis.asyncio.Redis``, whose connections are used then, in
    its event loop, and which the caller closes. ``prefix``, ``wait``, ``timeout`` and ``compression`` are those of
    ``RedisConfig``, and replace what it says. Making a store does no I/O.

    Errors, besides those of ``dagonizer.keys``: ``StoreUnavailableError``, ``StoreAccessError``, ``StoreLimitError``,
    ``StoreConflictError``, ``StoreCorruptedError``, ``StoreClosedError``, and ``StoreError`` for a compressed value
    where ``zstandard`` is not installed.
    """

    def __init__(
        self,
        server: RedisConfig | Redis,
        *,
        prefix: str | None = None,
        wait: int | None = None,
        timeout: float | None = None,
        compression: Compression | None = None,
    ) -> None:
        config = server if isinstance(server, RedisConfig) else RedisConfig()
        config = replace(
            config,
            prefix=config.prefix if prefix is None else prefix,
            wait=config.wait if wait is None else wait,
            timeout=config.timeout if timeout is None else timeout,
            compression=config.compression if compression is None else compression,
        )
        if isinstance(server, RedisConfig):
            self._where = config.where
        elif isinstance(server, Redis):
            self._where = _where(server)
        else:
            raise TypeError(f"server must be a RedisConfig or a redis.asyncio.Redis, not {type(server).__name__}")

        lent = OneServer(BorrowedLinks(server.connection_pool)) if isinstance(server, Redis) else None

        @asynccontextmanager
        async def connect() -> AsyncIterator[Topology]:
            if lent is not None:
                yield lent
                return
            there = topology(config)
            try:
                yield there
            finally:
                await there.aclose()

        self._config = config
        self._beginning = config.beginning
        self._connections = Connections(
            connect, timeout=config.timeout, owner=type(self), distrust=lambda there: there.disconnect()
        )

    async def save(self, key: str, json: str) -> None:
        """Put ``json`` under ``key``, replacing whatever is there, and any expiry of it."""
        self._connections.check_open()
        name, value = self._name(key), await compress_in_steps(value_bytes(json), self._config.compression)
        await self._write("save", key, name, lambda link: link.run((b"SET", name, value)))

    async def load(self, key: str) -> str | None:
        """Return the text under ``key``, or None. Raises ``StoreCorruptedError`` if it is no text."""
        stored = await self._load(key)
        return None if stored is None else _text(stored, key)

    async def delete(self, key: str) -> None:
        """Remove whatever is under ``key``."""
        self._connections.check_open()
        name = self._name(key)

        async def delete(link: Link) -> bool:
            (removed,) = await link.run((b"DEL", name))
            if not removed and self._config.wait:
                # Whoever has removed it may not have waited for the replicas to know, and WAIT waits for nothing but
                # what this link has changed.
                await link.run_atomically((b"SET", name, b""), (b"DEL", name))
            return True

        await self._write("delete", key, name, delete)

    async def load_versioned(self, key: str) -> VersionedJson | None:
        """Return the text under ``key`` with its version, or None. Raises like ``load``."""
        stored = await self._load(key)
        return None if stored is None else VersionedJson(_text(stored, key), await _version(stored))

    async def save_if(self, key: str, json: str, *, expected: str | None) -> str:
        """Save if the entry has the version ``expected`` (None: no entry), and return its new version.

        Raises ``StoreConflictError``, or ``StoreCorruptedError`` if what is there is no string.
        """
        self._connections.check_open()
        name, value = self._name(key), await compress_in_steps(value_bytes(json), self._config.compression)

        async def swap(link: Link) -> bool:
            return await (_create(link, name, value) if expected is None else _swap(link, name, value, expected))

        version = await _version(value)
        if not await self._write("save_if", key, name, swap):
            raise StoreConflictError(f"the entry under {key!r} is not at version {expected!r}; load it again")
        return version

    async def list_keys(self, prefix: str = "") -> AsyncIterator[str]:
        """Yield every key that starts with ``prefix``, remembering each so that none is yielded twice.

        Names in the database that are no key of a store are passed over.
        """
        self._connections.check_open()
        beginning = self._beginning + prefix_bytes(prefix)
        seen: set[bytes] = set()
        for server in await self._read("list keys", lambda there: there.servers()):
            async for names in self._scan(server, beginning):
                for name in names:
                    key = self._key(name) if name.startswith(beginning) and name not in seen else None
                    if key is not None:
                        seen.add(name)
                        yield key
                        self._connections.check_open()

    async def aclose(self) -> None:
        """Close the connections, but not those of a client that the caller has given."""
        await self._connections.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None, /
    ) -> None:
        await self.aclose()

    def _name(self, key: str) -> bytes:
        return self._beginning + key_bytes(key)

    def _key(self, name: bytes) -> str | None:
        try:
            key = name.removeprefix(self._beginning).decode()
            key_bytes(key)
        except (UnicodeDecodeError, InvalidKeyError):
            return None
        return key

    async def _load(self, key: str) -> bytes | None:
        self._connections.check_open()
        name = self._name(key)

        async def get(link: Link) -> bytes | None:
            (stored,) = await link.run((b"GET", name))
            return stored  # type: ignore[no-any-return]  # a reply to GET is bytes or None

        return await self._read("load", lambda there: there.perform(name, get))

    async def _scan(self, server: Links, beginning: bytes) -> AsyncIterator[list[bytes]]:
        """Yield all names that begin so, in pages, some perhaps more than once."""
        pattern = _PATTERN_CHARACTERS.sub(rb"\\\g<0>", beginning) + b"*"
        cursor, run_id = b"0", None

        async def page(_there: Topology) -> tuple[str, list[Any]]:
            async with server.link() as link:
                info, reply = await link.run(
                    (b"INFO", b"server"), (b"SCAN", cursor, b"MATCH", pattern, b"COUNT", _SCANNED_AT_ONCE)
                )
            return _run_id(info), reply

        while True:
            found_in, (next_cursor, names) = await self._read("list keys", page)
            if cursor != b"0" and found_in != run_id:
                # The cursor meant nothing to a server that has been started since it was given.
                cursor = b"0"
                continue
            yield names
            cursor, run_id = next_cursor, found_in
            if cursor == b"0":
                return

    async def _read(self, action: str, operation: Callable[[Topology], Awaitable[T]]) -> T:
        async def read(there: Topology) -> T:
            try:
                return await operation(there)
            except RedisConnectionError as exc:
                if is_access(exc):
                    raise
            # Once more, for the connection may have broken. What only reads may be repeated.
            return await operation(there)

        with translated(action, self._where):
            return await self._connections.read(read)

    async def _write(self, action: str, key: str, name: bytes, operation: Callable[[Link], Awaitable[T]]) -> T:
        sent = False

        async def write(link: Link) -> T:
            nonlocal sent
            sent = True
            done = await operation(link)
            if done and self._config.wait:
                await self._wait(link)
            return done

        with translated(action, self._where, sent=lambda: sent):
            return await self._connections.write(key, lambda there: there.perform(name, write))

    async def _wait(self, link: Link) -> None:
        """Wait for the replicas to acknowledge what was written through ``link``."""
        wanted, milliseconds = self._config.wait, max(1, int(self._config.timeout * 1000 * _WAIT_SHARE))
        (acknowledged,) = await link.run((b"WAIT", wanted, milliseconds))
        if acknowledged < wanted:
            raise StoreUnavailableError(
                f"the primary of {self._where} has done it, but only {acknowledged} of {wanted} replicas have "
                "acknowledged it in time; check the replicas, then do it again"
            )


async def _create(link: Link, name: bytes, value: bytes) -> bool:
    (reply,) = await link.run((b"SET", name, value, b"NX"))
    return reply is not None


async def _swap(link: Link, name: bytes, value: bytes, expected: str) -> bool:
    # A script could compare no more than SHA-1, for which different texts of one hash can be made, or else the whole
    # text, which then had to be sent back to it. Whoever watches sees every change since.
    while True:
        _, stored = await link.run((b"WATCH", name), (b"GET", name))
        if stored is None or await _version(stored) != expected:
            await link.run((b"UNWATCH",))
            return False
        del stored
        if await link.run_atomically((b"SET", name, value)):
            return True


def _text(stored: bytes, key: str) -> str:
    return value_text(expand(stored, key=key), key=key)


async def _version(value: bytes) -> str:
    # Not in a thread, of which the caller may have none free.
    digest, view = hashlib.sha256(), memoryview(value)
    for start in range(0, len(value), _HASHED_AT_ONCE):
        if start:
            await asyncio.sleep(0)
        digest.update(view[start : start + _HASHED_AT_ONCE])
    return digest.hexdigest()


def _run_id(info: bytes) -> str:
    match = _RUN_ID.search(info)
    return "" if match is None else match[1].decode()


def _where(client: Redis) -> str:
    options = client.connection_pool.connection_kwargs
    return str(options["path"]) if "path" in options else f"{options.get('host')}:{options.get('port')}"
