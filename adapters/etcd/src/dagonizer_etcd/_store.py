"""The store: under each entry's own key its text, or where the chunks of it are.

Under the prefix and two slashes there are

``entry/KEY``               the text, or a frame in which it is compressed; or, after a NUL byte, with which neither
                            begins, the header of one that is in chunks
``chunk/GENERATION/INDEX``  a part of a text or frame, never changed
``unfinished/GENERATION``   for as long as no entry refers to the chunks of the generation
``writer/GENERATION``       the same, but attached to a lease, so that it goes away although its writer has died

A generation is one attempt to save, under a random name. Each of its chunks is put in a transaction that needs
``writer/``, and so is its header, which replaces ``unfinished/`` and ``writer/`` and the chunks of what was there.
Whoever saves in chunks deletes those generations first that have ``unfinished/`` but no ``writer/`` any more.
"""

from __future__ import annotations

import asyncio
import math
import re
import secrets
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import xxhash

from dagonizer.compression import compress_in_steps, expand
from dagonizer.connections import Connections
from dagonizer.contracts import VersionedJson
from dagonizer.errors import StoreConflictError, StoreCorruptedError, StoreUnavailableError, UnknownSchemeError
from dagonizer.keys import key_bytes, prefix_bytes, value_bytes, value_text
from dagonizer_etcd._config import EtcdConfig
from dagonizer_etcd._errors import COMPACTED, Failure, translated
from dagonizer_etcd._transport import Cluster, Condition, Delete, KeyValue, Put, Range, Txn, decoded

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from contextlib import AbstractAsyncContextManager, AbstractContextManager
    from types import TracebackType
    from typing import Self

    import grpc  # type: ignore[import-untyped]  # it has no types
    from etcd3.aio_client import AioClient  # type: ignore[import-untyped]  # the same

_VERSION = re.compile(r"[1-9][0-9]{0,17}", re.ASCII)
# No entry ever has it.
_NO_REVISION = -1
_HEADER = b"\0dagonizer-etcd/1 "
_PAGE = 1000
_IN_FLIGHT = 4
_AT_ONCE = 100
# Entries of which is remembered what was seen last, so that a save of theirs is one request.
_REMEMBERED = 10_000
_LOADS = 3
# A writer's lease lasts as long as its save may, and this, for the clocks of two machines need not run alike.
_LEASE_RESERVE = 10
_LONGEST_LEASE = 9_000_000_000


class _Header(msgspec.Struct, frozen=True):
    """What an entry holds instead of a text that is in chunks."""

    generation: str
    chunks: int
    # Of all the chunks, one after the other. It is for damage, not for malice.
    xxh3_128: str


class Names:
    """The keys under a prefix. ``roots`` are what all of them begin with."""

    def __init__(self, prefix: str) -> None:
        root = prefix.encode() + b"//"
        self.entry_root = root + b"entry/"
        self.unfinished_root = root + b"unfinished/"
        self._chunk_root = root + b"chunk/"
        self._writer_root = root + b"writer/"
        self.roots = (self.entry_root, self._chunk_root, self.unfinished_root, self._writer_root)

    def entry(self, key: bytes) -> bytes:
        return self.entry_root + key

    def key(self, entry: bytes) -> str:
        name = entry[len(self.entry_root) :]
        try:
            return name.decode()
        except UnicodeDecodeError as exc:
            raise StoreCorruptedError(f"a key of etcd, {entry!r}, is none of this store; delete it") from exc

    def unfinished(self, generation: bytes) -> bytes:
        return self.unfinished_root + generation

    def writer(self, generation: bytes) -> bytes:
        return self._writer_root + generation

    def chunk(self, generation: bytes, index: int) -> bytes:
        return self._chunk_root + b"%b/%08d" % (generation, index)

    def chunks(self, generation: bytes) -> Delete:
        """Return what deletes them all."""
        chunks = self._chunk_root + b"%b/" % generation
        return Delete(chunks, end_of(chunks))


class _Attempt(NamedTuple):
    """A generation that is being written, and what must be so for it to go on."""

    generation: bytes
    is_alive: Condition


class EtcdCheckpointStore:
    """A store in etcd, which any number of processes may share.

    ``config`` says where; without it, the etcd at 127.0.0.1:2379. ``client`` is a ``grpc.aio.Channel`` or an
    ``etcd3.AioClient`` of the caller, who closes it; it is used instead of the hosts in ``config``, and only in the
    event loop it belongs to. It keeps the whole contract, and lists keys and compares-and-swaps. A version is the
    revision of etcd in which the entry was changed last.

    Errors, besides those of ``dagonizer.keys``: ``StoreUnavailableError``, ``StoreAccessError``, ``StoreLimitError``,
    ``StoreConflictError``, ``StoreCorruptedError``, ``StoreClosedError``, and ``StoreError`` for a server that is not
    an etcd or too old, and for a compressed value where ``zstandard`` is not installed.
    """

    def __init__(self, config: EtcdConfig | None = None, *, client: grpc.aio.Channel | AioClient | None = None) -> None:
        self._config = config or EtcdConfig()
        self._where = self._config.where
        self._names = Names(self._config.prefix)
        self._seen: dict[str, KeyValue] = {}
        self._connections: Connections[Cluster] = Connections(
            connector(self._config, client),
            timeout=self._config.timeout,
            owner=type(self),
            distrust=Cluster.distrust,
        )

    async def save(self, key: str, json: str) -> None:
        """Put ``json`` under ``key``, replacing what is there, a corrupted entry too."""
        self._connections.check_open()
        await self._save(key, json, expected=None)

    async def load(self, key: str) -> str | None:
        """Return the text under ``key``, or None. Raises ``StoreCorruptedError`` if it is not what was saved."""
        entry = await self.load_versioned(key)
        return None if entry is None else entry.json

    async def delete(self, key: str) -> None:
        """Remove the entry under ``key``, if there is one, a corrupted one too."""
        self._connections.check_open()
        entry = self._names.entry(key_bytes(key))
        with self._translated(f"delete {key!r}", write=True):
            await self._connections.write(key, partial(self._replace, change=Delete(entry), key=key, expected=None))

    async def load_versioned(self, key: str) -> VersionedJson | None:
        """Return the text under ``key`` with its version, or None. Raises ``StoreCorruptedError`` like ``load``."""
        self._connections.check_open()
        entry = self._names.entry(key_bytes(key))
        with self._translated(f"load {key!r}"):
            return await self._connections.read(partial(self._load, key=key, entry=entry))

    async def save_if(self, key: str, json: str, *, expected: str | None) -> str:
        """Save if the entry has the version ``expected`` (None: no entry), and return its new version.

        Raises ``StoreConflictError``.
        """
        self._connections.check_open()
        return str(await self._save(key, json, expected=0 if expected is None else _revision(expected)))

    async def list_keys(self, prefix: str = "") -> AsyncIterator[str]:
        """Yield every key that starts with ``prefix``, in the order of their UTF-8 bytes, fetched 1,000 at a time."""
        self._connections.check_open()
        start = self._names.entry(prefix_bytes(prefix))
        end = end_of(start)
        more = True
        while more:
            page = Range(start, end, limit=_PAGE, keys_only=True)
            with self._translated("list keys"):
                reply = await self._connections.read(partial(Cluster.range, request=page))
            for found in reply.found:
                yield self._names.key(found.key)
                self._connections.check_open()
                # What follows this key, whatever is saved or deleted meanwhile.
                start = found.key + b"\0"
            more = reply.more

    async def aclose(self) -> None:
        """Wait for the operations that are under way, then disconnect. What the caller has made stays open."""
        await self._connections.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None, /
    ) -> None:
        await self.aclose()

    def _translated(self, action: str, *, write: bool = False) -> AbstractContextManager[None]:
        return translated(action, self._where, write=write)

    async def _save(self, key: str, json: str, *, expected: int | None) -> int:
        """Save, if the entry was last changed in the revision ``expected`` (0: is absent; None: whatever it is)."""
        entry = self._names.entry(key_bytes(key))
        value = value_bytes(json)
        save = partial(self._put, entry=entry, value=value, key=key, expected=expected)
        with self._translated(f"save {key!r}", write=True):
            return await self._connections.write(key, save)

    async def _put(self, cluster: Cluster, *, entry: bytes, value: bytes, key: str, expected: int | None) -> int:
        stored = await compress_in_steps(value, self._config.compression)
        if len(stored) <= self._config.chunk_bytes:
            return await self._replace(cluster, Put(entry, stored), key=key, expected=expected)
        return await self._put_in_chunks(cluster, entry=entry, stored=stored, key=key, expected=expected)

    async def _replace(
        self, cluster: Cluster, change: Put | Delete, *, key: str, expected: int | None, attempt: _Attempt | None = None
    ) -> int:
        """Make ``change``, to an entry, and return the revision of it.

        It deletes the chunks of the present entry, and makes those of ``attempt`` good.
        """
        # Always a comparison, for a change that was given up may come late, and must not undo a later one. One request
        # will do for an entry that nobody else has changed since this store last saw it.
        present = self._seen.get(key, KeyValue(change.key, b"", 0))
        if expected is not None and present.revision != expected:
            present = await self._present(cluster, change.key, key=key, expected=expected)
        send = cluster.txn if attempt is not None else cluster.change
        while True:
            conditions = [Condition(change.key, "MOD", "EQUAL", present.revision)]
            changes = [change, *self._without_chunks(present)]
            if attempt is not None:
                conditions.append(attempt.is_alive)
                changes += self._without_marks(attempt)
            reply = await send(Txn(tuple(conditions), tuple(changes)))
            if reply.succeeded:
                value, revision = (change.value, reply.revision) if isinstance(change, Put) else (b"", 0)
                self._remember(key, KeyValue(change.key, value, revision))
                return reply.revision
            if attempt is not None:
                await self._expect_alive(cluster, attempt)
            present = await self._present(cluster, change.key, key=key, expected=expected)
            send = cluster.txn

    def _remember(self, key: str, entry: KeyValue) -> None:
        """Remember the entry as it was seen last, without its value unless that is a header."""
        if len(self._seen) >= _REMEMBERED:
            self._seen.clear()
        self._seen[key] = entry if entry.value.startswith(_HEADER) else entry._replace(value=b"")

    async def _present(self, cluster: Cluster, entry: bytes, *, key: str, expected: int | None) -> KeyValue:
        """Return the entry, with revision 0 if it is absent. Raises ``StoreConflictError`` unless it is as expected."""
        reply = await cluster.range(Range(entry))
        present = reply.found[0] if reply.found else KeyValue(entry, b"", 0)
        self._remember(key, present)
        if expected is not None and present.revision != expected:
            raise StoreConflictError(f"the entry under {key!r} is not at the expected version; load it again")
        return present

    async def _put_in_chunks(
        self, cluster: Cluster, *, entry: bytes, stored: bytes, key: str, expected: int | None
    ) -> int:
        await self._collect(cluster)
        if expected is not None or key not in self._seen:
            # Early, for it would be a pity to find a conflict after all the chunks.
            await self._present(cluster, entry, key=key, expected=expected)
        attempt = await self._begin(cluster, entry)
        try:
            header = await self._put_chunks(cluster, attempt, stored)
            put = Put(entry, _HEADER + msgspec.json.encode(header))
            return await self._replace(cluster, put, key=key, expected=expected, attempt=attempt)
        except Exception:
            # Nothing happens to chunks that an entry refers to, for their writer is not alive any more.
            discard = Txn((attempt.is_alive,), (self._names.chunks(attempt.generation), *self._without_marks(attempt)))
            with suppress(Failure):
                await cluster.txn(discard)
            raise

    async def _collect(self, cluster: Cluster) -> None:
        """Delete the chunks of writers that have died."""
        root = self._names.unfinished_root
        reply = await cluster.range(Range(root, end_of(root), limit=_AT_ONCE, keys_only=True))
        for found in reply.found:
            generation = found.key[len(root) :]
            died = (
                Condition(found.key, "CREATE", "GREATER", 0),
                Condition(self._names.writer(generation), "CREATE", "EQUAL", 0),
            )
            await cluster.txn(Txn(died, (self._names.chunks(generation), Delete(found.key))))

    async def _begin(self, cluster: Cluster, entry: bytes) -> _Attempt:
        generation = secrets.token_hex(16).encode()
        writer = self._names.writer(generation)
        lease = await cluster.grant(min(math.ceil(self._config.timeout) + _LEASE_RESERVE, _LONGEST_LEASE))
        marks = Put(writer, b"", lease), Put(self._names.unfinished(generation), entry)
        await cluster.txn(Txn((), marks))
        return _Attempt(generation, Condition(writer, "CREATE", "GREATER", 0))

    async def _put_chunks(self, cluster: Cluster, attempt: _Attempt, stored: bytes) -> _Header:
        size = self._config.chunk_bytes
        count = math.ceil(len(stored) / size)

        async def put(index: int) -> None:
            chunk = Put(self._names.chunk(attempt.generation, index), stored[index * size : (index + 1) * size])
            if not (await cluster.txn(Txn((attempt.is_alive,), (chunk,)))).succeeded:
                raise _expired(self._where)

        await _all_of(map(put, range(count)))
        return _Header(attempt.generation.decode(), count, xxhash.xxh3_128_hexdigest(stored))

    async def _expect_alive(self, cluster: Cluster, attempt: _Attempt) -> None:
        writer = self._names.writer(attempt.generation)
        if not (await cluster.range(Range(writer, keys_only=True))).found:
            raise _expired(self._where)

    def _without_marks(self, attempt: _Attempt) -> tuple[Delete, Delete]:
        generation = attempt.generation
        return Delete(self._names.unfinished(generation)), Delete(self._names.writer(generation))

    def _without_chunks(self, entry: KeyValue) -> tuple[Delete, ...]:
        # Whatever else is there is to be replaced, and has no chunks that anybody knows of.
        with suppress(msgspec.DecodeError):
            if entry.value.startswith(_HEADER):
                return (self._names.chunks(_header(entry).generation.encode()),)
        return ()

    async def _load(self, cluster: Cluster, *, key: str, entry: bytes, attempts: int = _LOADS) -> VersionedJson | None:
        reply = await cluster.range(Range(entry))
        found = reply.found[0] if reply.found else KeyValue(entry, b"", 0)
        self._remember(key, found)
        if not reply.found:
            return None
        stored = found.value
        if stored.startswith(_HEADER):
            try:
                stored = await self._load_chunks(cluster, found, reply.revision, key=key)
            except Failure as failure:
                # That revision is gone; in the present one the entry may even be the same.
                if attempts == 1 or COMPACTED not in failure.details:
                    raise
                return await self._load(cluster, key=key, entry=entry, attempts=attempts - 1)
        return VersionedJson(value_text(expand(stored, key=key), key=key), str(found.revision))

    async def _load_chunks(self, cluster: Cluster, entry: KeyValue, revision: int, *, key: str) -> bytes:
        """Return the text whose header is in ``entry``, as it was at ``revision``, whatever has happened since."""
        try:
            header = _header(entry)
        except msgspec.DecodeError as exc:
            raise _corrupted(key, f"its header cannot be read ({exc})") from exc
        generation = header.generation.encode()
        parts: dict[int, bytes] = {}

        async def load(index: int) -> None:
            chunk = self._names.chunk(generation, index)
            reply = await cluster.range(Range(chunk, revision=revision))
            if not reply.found:
                raise _corrupted(key, f"chunk {index} of {header.chunks} is missing")
            parts[index] = reply.found[0].value

        await _all_of(map(load, range(header.chunks)))
        stored = b"".join(parts[index] for index in range(header.chunks))
        if xxhash.xxh3_128_hexdigest(stored) != header.xxh3_128:
            raise _corrupted(key, "its chunks are not those that were saved (XXH3 differs)")
        return stored


def connector(
    config: EtcdConfig, client: grpc.aio.Channel | AioClient | None = None
) -> Callable[[], AbstractAsyncContextManager[Cluster]]:
    """Return what connects as ``config`` says, or uses the caller's ``client``."""
    # Only the transport that is used is imported.
    theirs: Any = client
    gateway = config.gateway if theirs is None else hasattr(theirs, "call_rpc")
    if not gateway:
        from dagonizer_etcd import _grpc  # noqa: PLC0415

        return partial(_grpc.connect, config, theirs)
    try:
        from dagonizer_etcd import _gateway  # noqa: PLC0415
    except ModuleNotFoundError as exc:
        raise UnknownSchemeError(
            f"etcd's JSON gateway needs a package that is not installed ({exc.name}); "
            'run: pip install "dagonizer-etcd[gateway]"'
        ) from exc
    return partial(_gateway.connect, config, theirs)


def _revision(version: str) -> int:
    return int(version) if _VERSION.fullmatch(version) else _NO_REVISION


def end_of(prefix: bytes) -> bytes:
    """Return the end of the keys that start with ``prefix``, whose last byte, being UTF-8, is not the last there is."""
    return prefix[:-1] + bytes([prefix[-1] + 1])


def _header(entry: KeyValue) -> _Header:
    return decoded(entry.value[len(_HEADER) :], _Header)


async def _all_of(calls: Iterator[Awaitable[None]]) -> None:
    """Await all, some at a time. Raises the first failure, and then no call goes on."""

    async def work() -> None:
        for call in calls:
            await call

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(_IN_FLIGHT):
                group.create_task(work())
    except ExceptionGroup as failures:
        first = failures.exceptions[0]
    else:
        return
    raise first


def _expired(where: str) -> StoreUnavailableError:
    return StoreUnavailableError(f"a save in chunks at {where} took longer than its lease, and was given up; try again")


def _corrupted(key: str, reason: str) -> StoreCorruptedError:
    return StoreCorruptedError(
        f"what is stored under {key!r} is corrupted: {reason}; restore it from a backup, or save or delete the key"
    )
