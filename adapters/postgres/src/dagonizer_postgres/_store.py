"""The store: a table, one row a key.

Each operation is one statement, and so its own transaction, which a pooler in transaction mode leaves whole. A save
stores a new random revision with its text, so that no version is ever valid for another text, be it after a deletion,
a failover that lost a transaction, or a restored backup; the numbers of a sequence would come again.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload
from uuid import UUID, uuid4

import asyncpg  # type: ignore[import-untyped]  # it has no types

from dagonizer.connections import Connections
from dagonizer.contracts import VersionedJson
from dagonizer.errors import (
    StoreAccessError,
    StoreConflictError,
    StoreCorruptedError,
    StoreLimitError,
    StoreUnavailableError,
)
from dagonizer.keys import key_bytes, prefix_bytes, value_bytes
from dagonizer_postgres._config import PostgresConfig, TableConfig
from dagonizer_postgres._errors import translated
from dagonizer_postgres._pool import (
    CLOCK,
    ServerClocks,
    borrowed,
    drop_idle,
    expire,
    lend_pool,
    open_pool,
    standbys_expected,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from types import TracebackType
    from typing import Self

    from dagonizer_postgres._pool import Connection

T = TypeVar("T")

_PAGE = 500
# A gigabyte is as much as a message to the server may have, or a value in it, with some bytes beside the text.
_MAX_VALUE_BYTES = 0x3FFFFFFF - 4096
# What is left of the timeout after a statement's share is for the server to say that it has cancelled it.
_SHARE = 0.9

# Acknowledged means durable, whatever the default of the server, the database or the role. Said inside of the
# statement, for a setting of the session would be lost behind a pooler, and a statement before it costs a round trip.
# That a wait for synchronous standbys was cancelled is told by a warning. In RETURNING this costs a third of what it
# does in FROM.
_DURABLY = """pg_catalog.set_config('synchronous_commit', CASE pg_catalog.current_setting('synchronous_commit')
    WHEN 'off' THEN 'on' ELSE pg_catalog.current_setting('synchronous_commit') END, true) AS durable,
    pg_catalog.set_config('client_min_messages', CASE pg_catalog.current_setting('client_min_messages')
    WHEN 'error' THEN 'warning' ELSE pg_catalog.current_setting('client_min_messages') END, true) AS warned"""

# A statement that a server without time for it, or a proxy, has kept back until its caller gave it up must not be
# carried out after a later one. A request to cancel it does not help: a server that has not read it yet has nothing to
# cancel. So each begins before its time is over, by the server's clock, or does nothing.
_IN_TIME = f"{CLOCK} < $2::float8"
_INSERT = """INSERT INTO {table} (key, json, revision, saved_at)
    SELECT $1::text, $3::text, $4::uuid, now() WHERE {in_time} ON CONFLICT (key) """
# The second time after it may have waited for the row.
_SAVE = f"""{_INSERT} DO UPDATE SET json = excluded.json, revision = excluded.revision, saved_at = excluded.saved_at
    WHERE {{in_time}} RETURNING {{durably}}"""
_SAVE_NEW = f"{_INSERT} DO NOTHING RETURNING {{durably}}"
_SAVE_OVER = """UPDATE {table} SET json = $3::text, revision = $4::uuid, saved_at = now()
    WHERE key = $1::text AND revision = $5::uuid AND {in_time} RETURNING {durably}"""
# Whoever has deleted the row may not have waited for the synchronous standbys to know, for which a transaction waits
# only if it writes to the log. This message there is of no interest to anybody.
_DELETE = """WITH deleted AS (DELETE FROM {table} WHERE key = $1::text AND {in_time} RETURNING {durably})
    SELECT (SELECT pg_catalog.pg_logical_emit_message(true, 'dagonizer', '')::text FROM {durably}
        WHERE pg_catalog.current_setting('synchronous_standby_names') <> '' AND NOT EXISTS (SELECT FROM deleted))
    WHERE EXISTS (SELECT FROM deleted) OR {in_time}"""
_LOAD = "SELECT json, revision FROM {table} WHERE key = $1::text"
_LIST_FROM = """SELECT key FROM {table} WHERE key COLLATE "C" >= $1::text ORDER BY key COLLATE "C" LIMIT $2::int8"""
_LIST_AFTER = """SELECT key FROM {table} WHERE key COLLATE "C" > $1::text ORDER BY key COLLATE "C" LIMIT $2::int8"""

# The table or schema is there, and a moment ago it was not: somebody else has created it.
_CREATED_BY_ANOTHER = (
    asyncpg.UniqueViolationError,
    asyncpg.DuplicateTableError,
    asyncpg.DuplicateObjectError,
    asyncpg.DuplicateSchemaError,
)
# What PostgreSQL says of COMPRESSION lz4 that was built without it, and before PostgreSQL 14.
_NO_LZ4 = (asyncpg.FeatureNotSupportedError, asyncpg.PostgresSyntaxError)
# These say that the transaction was rolled back, and what they met is over.
_ROLLED_BACK = (asyncpg.SerializationError, asyncpg.DeadlockDetectedError)
_BROKEN = (
    ConnectionError,
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.InterfaceError,
)


class PostgresCheckpointStore:
    """A store in a PostgreSQL table.

    ``source`` is a ``PostgresConfig``, or the caller's ``asyncpg.Pool``, which the caller closes and which serves its
    own event loop only; ``table``, ``schema``, ``create`` and ``timeout`` are for a pool, with the defaults of the
    config. The store keeps the whole contract, and lists keys and compares-and-swaps. Making it does no I/O; the table
    is created by the first operation that misses it, unless ``create`` is ``"never"``.

    Errors, besides those of ``dagonizer.keys``: ``StoreUnavailableError``, ``StoreAccessError``, ``StoreLimitError``,
    ``StoreConflictError``, ``StoreCorruptedError``, ``StoreClosedError``.
    """

    @overload
    def __init__(self, source: PostgresConfig) -> None: ...

    @overload
    def __init__(
        self,
        source: asyncpg.Pool,
        table: str = ...,
        *,
        schema: str = ...,
        create: Literal["auto", "never"] = ...,
        timeout: float = ...,
    ) -> None: ...

    def __init__(
        self,
        source: PostgresConfig | asyncpg.Pool,
        table: str | None = None,
        *,
        schema: str | None = None,
        create: Literal["auto", "never"] | None = None,
        timeout: float | None = None,
    ) -> None:
        options = {"table": table, "schema": schema, "create": create, "timeout": timeout}
        given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
        if isinstance(source, PostgresConfig):
            if given:
                raise TypeError(f"a PostgresConfig says itself what {', '.join(given)} is")
            self._config: TableConfig = source
            self._address = source.address
            connect, limit = partial(open_pool, source), source.pool_size
        elif isinstance(source, asyncpg.Pool):
            self._config = TableConfig(**given)
            self._address = "the given pool's server"
            connect, limit = partial(lend_pool, source), source.get_max_size()
        else:
            raise TypeError(f"a PostgresConfig or an asyncpg.Pool is needed, not {type(source).__name__}")
        self._connections: Connections[asyncpg.Pool] = Connections(
            connect, timeout=self._config.timeout, owner=type(self), distrust=drop_idle, limit=limit
        )
        self._clocks = ServerClocks()

    @property
    def ddl(self) -> str:
        """The SQL statement that creates the table, for ``create="never"``."""
        return self._config.ddl

    async def save(self, key: str, json: str) -> None:
        """Put ``json`` under ``key``, replacing what is there, a corrupted entry too."""
        saved = await self._save(_SAVE, key, json, uuid4())
        if not saved:
            raise StoreAccessError(
                f"could not save {key!r} in {self._config.qualified_table} at {self._address}: a trigger or rule of "
                "the table lets nothing be stored"
            )

    async def load(self, key: str) -> str | None:
        """Return the text under ``key``, or None. Raises ``StoreCorruptedError`` if it is damaged."""
        entry = await self.load_versioned(key)
        return None if entry is None else entry.json

    async def delete(self, key: str) -> None:
        """Remove the entry under ``key``, if there is one, a corrupted one too."""
        self._connections.check_open()
        key_bytes(key)
        sql = self._sql(_DELETE)
        if not await self._write(key, f"delete {key!r}", sql):
            raise StoreUnavailableError(
                f"could not delete {key!r} from {self._config.qualified_table} at {self._address}: the server's clock "
                "has been put back meanwhile; try again"
            )

    async def load_versioned(self, key: str) -> VersionedJson | None:
        """Return the text under ``key`` with its version, or None. Raises ``StoreCorruptedError`` like ``load``."""
        self._connections.check_open()
        key_bytes(key)
        sql = self._sql(_LOAD)
        row = await self._read(f"load {key!r}", lambda db: db.fetchrow(sql, key))
        if row is None:
            return None
        json, revision = row
        if not isinstance(json, str) or "\0" in json or revision is None:
            raise StoreCorruptedError(
                f"what is stored under {key!r} in {self._config.qualified_table} at {self._address} is no text with a "
                "revision: it has NULL or U+0000, or the column another type; restore it from a backup, or save or "
                "delete its key to be rid of it"
            )
        return VersionedJson(json, str(revision))

    async def save_if(self, key: str, json: str, *, expected: str | None) -> str:
        """Save if the entry has the version ``expected`` (None: no entry), and return its new version.

        Raises ``StoreConflictError`` if it is not so.
        """
        revision = uuid4()
        if expected is None:
            saved = await self._save(_SAVE_NEW, key, json, revision)
        else:
            saved = await self._save(_SAVE_OVER, key, json, revision, _revision(expected))
        if not saved:
            raise StoreConflictError(f"the entry under {key!r} is not at version {expected!r}; load it again")
        return str(revision)

    async def list_keys(self, prefix: str = "") -> AsyncIterator[str]:
        """Yield every key that starts with ``prefix``, by code points, fetched in pages of 500."""
        self._connections.check_open()
        prefix_bytes(prefix)
        statement, start = _LIST_FROM, prefix
        while True:
            page = await self._page(statement, start)
            for key in page:
                # In this order the keys that start with a prefix come one after another, beginning at the prefix.
                if not key.startswith(prefix):
                    return
                yield key
                self._connections.check_open()
            if len(page) < _PAGE:
                return
            statement, start = _LIST_AFTER, page[-1]

    async def aclose(self) -> None:
        """Close this store's connections. A pool that was given to it stays open."""
        await self._connections.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None, /
    ) -> None:
        await self.aclose()

    def _sql(self, statement: str) -> str:
        return statement.format(table=self._config.qualified_table, durably=_DURABLY, in_time=_IN_TIME)

    async def _save(self, statement: str, key: str, json: str, *revisions: UUID) -> bool:
        """Return whether a row was written."""
        self._connections.check_open()
        key_bytes(key)
        if len(value_bytes(json)) > _MAX_VALUE_BYTES:
            raise StoreLimitError(f"the value under {key!r} has more than {_MAX_VALUE_BYTES:,} UTF-8 bytes")
        sql = self._sql(statement)
        return await self._write(key, f"save {key!r}", sql, json, *revisions)

    async def _page(self, statement: str, start: str) -> list[str]:
        sql = self._sql(statement)
        return [key for (key,) in await self._read("list keys", lambda db: db.fetch(sql, start, _PAGE))]

    async def _read(self, action: str, statement: Callable[[Connection], Awaitable[T]]) -> T:
        """Run ``statement``, and again if the connection broke."""

        async def read(pool: asyncpg.Pool) -> T:
            try:
                return await self._run(pool, statement)
            except _BROKEN:
                return await self._run(pool, statement)

        with translated(action, self._config, self._address):
            return await self._connections.read(read)

    async def _write(self, key: str, action: str, sql: str, *values: object) -> bool:
        """Run a statement, and again only if the server says that it has done nothing. Return whether it has a row."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + _SHARE * self._config.timeout

        async def commit(db: Connection) -> bool:
            while True:
                until = await self._clocks.at(deadline, db)
                with standbys_expected(db):
                    row = await db.fetchrow(sql, key, until, *values, timeout=deadline - clock())
                if row is not None:
                    return True
                if await self._clocks.now(db, deadline - clock()) < until:
                    return False
                # It was too late by the server's clock and not by ours: that one was put forward.
                self._clocks.forget(db)

        async def write(pool: asyncpg.Pool) -> bool:
            demoted = False
            while True:
                try:
                    return await self._run(pool, commit)
                except _ROLLED_BACK:
                    continue
                except asyncpg.ReadOnlySQLTransactionError:
                    if demoted:
                        raise
                    demoted = True
                    # Each connection of the pool was made while the server was the primary.
                    await expire(pool)

        with translated(action, self._config, self._address, changes=True):
            return await self._connections.write(key, write)

    async def _run(self, pool: asyncpg.Pool, statement: Callable[[Connection], Awaitable[T]]) -> T:
        try:
            async with borrowed(pool) as db:
                return await statement(db)
        except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError):
            if self._config.create == "never":
                raise
        async with borrowed(pool) as db:
            await self._create(db)
            return await statement(db)

    async def _create(self, db: Connection) -> None:
        with suppress(*_CREATED_BY_ANOTHER):
            try:
                await self._create_table(db)
            except asyncpg.InvalidSchemaNameError:
                with suppress(*_CREATED_BY_ANOTHER):
                    await db.execute(self._config.schema_ddl)
                await self._create_table(db)

    async def _create_table(self, db: Connection) -> None:
        try:
            await db.execute(self._config.ddl)
        except _NO_LZ4:
            await db.execute(self._config.ddl_without_lz4)


def _revision(version: str) -> UUID:
    """Return the revision that ``version`` names; for what names none, one that no entry has."""
    try:
        revision = UUID(version)
    except ValueError:
        return uuid4()
    # A version is opaque, and this one was written in another way.
    return revision if str(revision) == version else uuid4()
