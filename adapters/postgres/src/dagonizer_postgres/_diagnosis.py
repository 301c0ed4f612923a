"""What ``dagonizer doctor`` finds in a PostgreSQL server: settings, the table, rights, and what a save outlives.

Everything is asked by ``SELECT``, so nothing is changed, and a standby can be asked as well.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import asyncpg  # type: ignore[import-untyped]  # it has no types

from dagonizer.connections import Connections
from dagonizer.diagnosis import DURABILITY, Finding
from dagonizer.errors import StoreAccessError, StoreError
from dagonizer_postgres._config import quoted
from dagonizer_postgres._errors import translated
from dagonizer_postgres._pool import borrowed, drop_idle, open_pool
from dagonizer_postgres._store import PostgresCheckpointStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
    from typing import Self, TypeAlias

    from dagonizer_postgres._config import PostgresConfig
    from dagonizer_postgres._pool import Connection

    # asyncpg has no types.
    Row: TypeAlias = Mapping[str, Any]

T = TypeVar("T")

# For gen_random_uuid().
_OLDEST = 130_000
_WITH_COMPRESSION = 140_000
_TYPES = {"key": "text", "json": "text", "revision": "uuid", "saved_at": "timestamp with time zone"}
_ADDED = {
    "revision": "revision uuid NOT NULL DEFAULT gen_random_uuid()",
    "saved_at": "saved_at timestamptz NOT NULL DEFAULT now()",
}
# Which columns each needs; a deletion is of the whole row.
_GRANTS = {
    "SELECT": ("key", "json", "revision"),
    "INSERT": ("key", "json", "revision", "saved_at"),
    "UPDATE": ("json", "revision", "saved_at"),
}
_KINDS = {
    "v": "a view",
    "m": "a materialized view",
    "f": "a foreign table",
    "i": "an index",
    "I": "an index",
    "S": "a sequence",
    "c": "a type",
}
# What each setting of synchronous_commit waits for at the standbys that synchronous_standby_names names.
_REACHED = {
    "remote_write": "has been received by",
    "on": "is flushed to the disk of",
    "remote_apply": "is flushed and visible on",
}
# ``FIRST 2 (a, b)``, ``ANY 2 (a, b)``, ``2 (a, b)``; a list alone is for one.
_MANY = re.compile(r"\s*(?:FIRST\s+|ANY\s+)?(\d+)\s*\(", re.IGNORECASE)

_WHO = """SELECT pg_catalog.pg_backend_pid() AS pid,
    pg_catalog.current_setting('server_version') AS version,
    pg_catalog.current_setting('server_version_num')::int4 AS number,
    pg_catalog.pg_is_in_recovery() AS standby,
    pg_catalog.current_setting('default_transaction_read_only') = 'on' AS read_only,
    (SELECT source FROM pg_catalog.pg_settings WHERE name = 'default_transaction_read_only') AS source,
    (SELECT 'lz4' = ANY (enumvals) FROM pg_catalog.pg_settings WHERE name = 'default_toast_compression') AS lz4,
    pg_catalog.pg_postmaster_start_time() AS started,
    pg_catalog.quote_ident(current_user) AS role,
    pg_catalog.quote_ident(pg_catalog.current_database()) AS database"""
_PID = "SELECT pg_catalog.pg_backend_pid()"
_TABLE = """SELECT c.oid, c.relkind::text AS kind, c.relpersistence::text AS persistence,
    ARRAY(SELECT pg_catalog.quote_ident(w.rulename) FROM pg_catalog.pg_rewrite w WHERE w.ev_class = c.oid) AS rules,
    pg_catalog.row_security_active(c.oid) AS row_security,
    pg_catalog.has_schema_privilege(n.oid, 'USAGE') AS usage,
    pg_catalog.has_schema_privilege(n.oid, 'CREATE') AS creation
    FROM pg_catalog.pg_namespace n LEFT JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = $2::name
    WHERE n.nspname = $1::name"""
_DATABASE = """SELECT pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE') AS creation"""
_COLUMNS = """SELECT a.attname::text AS name, pg_catalog.format_type(a.atttypid, a.atttypmod) AS type,
    a.attnotnull AND NOT a.atthasdef AND a.attidentity = '' AS demanded,
    o.collname::text AS collation, coalesce(o.collisdeterministic, true) AS deterministic,
    EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = a.attrelid AND i.indisunique AND i.indisvalid
        AND i.indimmediate AND i.indpred IS NULL AND i.indnkeyatts = 1 AND i.indkey[0] = a.attnum) AS unique,
    pg_catalog.has_column_privilege(a.attrelid, a.attnum, 'SELECT') AS select,
    pg_catalog.has_column_privilege(a.attrelid, a.attnum, 'INSERT') AS insert,
    pg_catalog.has_column_privilege(a.attrelid, a.attnum, 'UPDATE') AS update,
    pg_catalog.has_table_privilege(a.attrelid, 'DELETE') AS delete
    FROM pg_catalog.pg_attribute a LEFT JOIN pg_catalog.pg_collation o ON o.oid = a.attcollation
    WHERE a.attrelid = $1::oid AND a.attnum > 0 AND NOT a.attisdropped"""
_COMPRESSION = """SELECT a.attcompression::text AS method,
    pg_catalog.current_setting('default_toast_compression') AS usual
    FROM pg_catalog.pg_attribute a WHERE a.attrelid = $1::oid AND a.attname = 'json'"""
_SPACE = """SELECT pg_catalog.pg_size_pretty(pg_catalog.pg_total_relation_size(c.oid)) AS size,
    coalesce(t.spcname, (SELECT s.spcname FROM pg_catalog.pg_tablespace s JOIN pg_catalog.pg_database d
        ON d.dattablespace = s.oid AND d.datname = pg_catalog.current_database()))::text AS tablespace
    FROM pg_catalog.pg_class c LEFT JOIN pg_catalog.pg_tablespace t ON t.oid = c.reltablespace
    WHERE c.oid = $1::oid"""
# Who puts a storage of its own below PostgreSQL. The list of libraries is shown to pg_read_all_settings only.
_SETTINGS = """SELECT pg_catalog.current_setting('fsync') AS fsync,
    pg_catalog.current_setting('full_page_writes') AS full_page_writes,
    pg_catalog.current_setting('synchronous_commit') AS synchronous_commit,
    (SELECT source FROM pg_catalog.pg_settings WHERE name = 'synchronous_commit') AS source,
    pg_catalog.current_setting('synchronous_standby_names') AS names,
    CASE WHEN coalesce(pg_catalog.current_setting('neon.timeline_id', true), '') <> '' OR EXISTS (
            SELECT FROM pg_catalog.pg_settings WHERE name = 'shared_preload_libraries'
            AND 'neon' = ANY (pg_catalog.string_to_array(pg_catalog.replace(setting, ' ', ''), ','))) THEN 'Neon'
        WHEN EXISTS (SELECT FROM pg_catalog.pg_proc WHERE proname = 'aurora_version'
            AND pronamespace = 'pg_catalog'::pg_catalog.regnamespace) THEN 'Aurora' END AS provider"""
# Nothing but physical standbys: a logical subscriber is no copy of the server. To others than the role's own the state
# is shown by pg_read_all_stats only.
_STANDBYS = """SELECT count(*) AS attached, count(*) FILTER (WHERE r.sync_state IN ('sync', 'quorum')) AS synchronous,
    coalesce(bool_and(r.sync_state IS NOT NULL), true) AS visible
    FROM pg_catalog.pg_stat_replication r WHERE coalesce(r.state, 'streaming') = 'streaming' AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_replication_slots s WHERE s.active_pid = r.pid AND s.slot_type = 'logical')"""
_CONNECTIONS = """SELECT pg_catalog.current_setting('max_connections')::int4 AS most,
    CASE WHEN r.rolsuper THEN 0 ELSE pg_catalog.current_setting('superuser_reserved_connections')::int4
        + coalesce(pg_catalog.current_setting('reserved_connections', true)::int4, 0) END AS reserved,
    (SELECT sum(numbackends)::int4 FROM pg_catalog.pg_stat_database) AS used,
    CASE WHEN r.rolsuper THEN -1 ELSE r.rolconnlimit END AS of_role,
    CASE WHEN r.rolsuper THEN -1 ELSE d.datconnlimit END AS of_database
    FROM pg_catalog.pg_roles r, pg_catalog.pg_database d
    WHERE r.rolname = current_user AND d.datname = pg_catalog.current_database()"""


async def diagnose(config: PostgresConfig) -> AsyncIterator[Finding]:
    """Yield what is found at the hosts of ``config``, and of its table where the store would use it."""
    # Whatever it is told to keep, no statement is kept behind a pooler, for this must get through to say so.
    asking = replace(config, statement_cache_size=None, pool_size=2)
    async with AsyncExitStack() as stack:
        servers = [_Server(replace(asking, hosts=(host,))) for host in config.hosts]
        for server in servers:
            await stack.enter_async_context(server)
        await asyncio.gather(*(server.meet() for server in servers))
        chosen = next((s for kind in (_is_primary, _is_reached) for s in servers if kind(s)), None)
        for server in servers:
            if server is not chosen and len(servers) > 1:
                # Without a chosen one, each has a failure of its own to tell.
                yield _another_host(server, chosen or server)
        if chosen is None:
            raise _worst(servers)
        async for finding in _Examination(config, chosen).findings():
            yield finding


class _Server:
    """One host, asked over the store's own kind of connection, but that it may be a standby."""

    def __init__(self, config: PostgresConfig) -> None:
        self.config = config
        self.address = config.address
        self.who: Row = {}
        self.pooled = False
        self.failure: StoreError | None = None
        self._connections: Connections[asyncpg.Pool] = Connections(
            partial(open_pool, config, writable=False),
            timeout=config.timeout,
            owner=PostgresCheckpointStore,
            distrust=drop_idle,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._connections.aclose()

    async def meet(self) -> None:
        """Learn who it is, or why it cannot be asked."""

        async def meet(db: Connection) -> tuple[Row, bool]:
            who = await db.fetchrow(_WHO)
            return who, who["pid"] != db.get_server_pid()

        try:
            self.who, self.pooled = await self.ask(meet)
        except StoreError as exc:
            self.failure = exc

    async def rows(self, sql: str, *arguments: object) -> list[Row]:
        """Return what ``sql`` selects."""
        rows: list[Row] = await self.ask(lambda db: db.fetch(sql, *arguments))
        return rows

    async def row(self, sql: str, *arguments: object) -> Row | None:
        """Return the first row that ``sql`` selects."""
        return next(iter(await self.rows(sql, *arguments)), None)

    async def row_if_permitted(self, sql: str) -> Row | None:
        """Return the row that ``sql`` selects, or None if the role may not see it."""
        try:
            return await self.row(sql)
        except StoreAccessError as exc:
            if isinstance(exc.__cause__, asyncpg.InsufficientPrivilegeError):
                return None
            raise

    async def ask(self, question: Callable[[Connection], Awaitable[T]]) -> T:
        """Return the answer over one connection."""

        async def ask(pool: asyncpg.Pool) -> T:
            async with borrowed(pool, writable=False) as db:
                return await question(db)

        return await self._translated(ask)

    async def pids(self) -> list[int]:
        """Return in which sessions of the server two clients have two statements each."""

        async def ask(pool: asyncpg.Pool) -> list[int]:
            async with borrowed(pool, writable=False) as one, borrowed(pool, writable=False) as other:
                return [await db.fetchval(_PID) for db in (one, one, other, other)]

        return await self._translated(ask)

    async def _translated(self, ask: Callable[[asyncpg.Pool], Awaitable[T]]) -> T:
        with translated("look around", self.config, self.address):
            return await self._connections.read(ask)


class _Examination:
    """What is found at the server that the store would use, check by check."""

    def __init__(self, config: PostgresConfig, server: _Server) -> None:
        self._config = config
        self._server = server
        self._who = server.who
        self._table: Row = {}
        self._ddl = config.ddl if server.who["lz4"] else config.ddl_without_lz4

    async def findings(self) -> AsyncIterator[Finding]:
        """Yield them all. The last says what a save outlives."""
        yield self._version()
        yield self._primary()
        yield self._read_only()
        yield await self._pooler()
        self._table = await self._server.row(_TABLE, self._config.schema, self._config.table) or {}
        for finding in await self._table_findings():
            yield finding
        yield await self._room()
        settings = await self._server.row(_SETTINGS) or {}
        standbys = await self._server.row_if_permitted(_STANDBYS)
        yield _fsync(settings)
        yield _full_page_writes(settings)
        yield _synchronous_commit(settings, self._who)
        if not self._who["standby"]:
            yield _standbys(settings, standbys, self._who)
        yield self._durability(settings, standbys)

    def _version(self) -> Finding:
        return version_finding(self._server.address, self._who["version"], self._who["number"])

    def _primary(self) -> Finding:
        if self._who["standby"]:
            return Finding(
                "primary",
                "bad",
                f"{self._server.address} is a standby (pg_is_in_recovery() is true): it accepts no saves",
                "name the primary in the URL, with the standbys after it: postgresql://primary,standby/database; if "
                "there is none any more, SELECT pg_promote() on the standby",
            )
        return Finding("primary", "good", f"{self._server.address} is the primary")

    def _read_only(self) -> Finding:
        if not self._who["read_only"]:
            return Finding("read-only", "good", "default_transaction_read_only is off")
        source = self._who["source"]
        return Finding(
            "read-only",
            "bad",
            f"default_transaction_read_only is on, by the settings of the {source}: saves are refused",
            _set("default_transaction_read_only", "off", source, self._who),
        )

    async def _pooler(self) -> Finding:
        if not self._server.pooled:
            return Finding("pooler", "good", "no pooler is between: every connection has a session of its own")
        one, again, other, last = await self._server.pids()
        told = self._config.statement_cache_size
        if one == again != other == last:
            kept = f"statement_cache_size={told}" if told else "no prepared statements are kept"
            return Finding("pooler", "good", f"a pooler in session mode is between; {kept}")
        between = "a pooler is between that gives each transaction any session of the server (transaction mode)"
        if not told:
            return Finding("pooler", "good", f"{between}; no prepared statements are kept, as it needs")
        return Finding(
            "pooler",
            "warning",
            f"{between}, and statement_cache_size={told} keeps prepared statements: unless the pooler follows them, "
            "saves and loads fail with SQLSTATE 26000 or 42P05",
            "take statement_cache_size out of the URL, or have PgBouncer 1.21 or later follow them by "
            "max_prepared_statements",
        )

    async def _table_findings(self) -> list[Finding]:
        if not self._is_there():
            return [await self._absent()]
        if self._table["kind"] not in {"r", "p"}:
            return [self._not_a_table()]
        oid = self._table["oid"]
        columns = {column["name"]: column for column in await self._server.rows(_COLUMNS, oid)}
        findings = [*self._columns(columns), self._grants(columns), self._persistence(), self._row_security()]
        # It may have been dropped since.
        if self._who["number"] >= _WITH_COMPRESSION and (compression := await self._server.row(_COMPRESSION, oid)):
            findings.append(self._compression(compression))
        if space := await self._server.row(_SPACE, oid):
            findings.append(_space(self._config.qualified_table, space))
        return findings

    async def _absent(self) -> Finding:
        table, role = self._config.qualified_table, self._who["role"]
        ddl = self._ddl if self._table else f"{self._config.schema_ddl}; {self._ddl}"
        if self._config.create == "never":
            return Finding(
                "table", "bad", f"{table} is not there, and create=never", f"write ?create=auto, or create it: {ddl}"
            )
        if self._table:
            allowed, place = self._table["usage"] and self._table["creation"], f"SCHEMA {quoted(self._config.schema)}"
            missing = f"GRANT USAGE, CREATE ON {place} TO {role}"
        else:
            answer = await self._server.row(_DATABASE) or {}
            allowed, place = answer["creation"], f"DATABASE {self._who['database']}"
            missing = f"GRANT CREATE ON {place} TO {role}"
        if allowed:
            return Finding("table", "good", f"{table} is not there yet; the first operation creates it (create=auto)")
        return Finding(
            "table",
            "bad",
            f"{table} is not there, and {role} may not create it (create=auto): it lacks CREATE on {place}",
            f"{missing}; or create it as another role: {ddl}",
        )

    def _not_a_table(self) -> Finding:
        kind = self._table["kind"]
        return Finding(
            "table",
            # What is behind it decides.
            "warning" if kind == "v" else "bad",
            f"{self._config.qualified_table} is {_KINDS.get(kind, f'of the kind {kind}')}, and no table",
            f"name another one by ?table=, or in its place create the table: {self._ddl}",
        )

    def _columns(self, columns: Mapping[str, Row]) -> list[Finding]:
        table = self._config.qualified_table
        problems = [*_column_problems(table, columns)]
        if self._table["rules"]:
            problems.append(
                Finding(
                    "table",
                    "bad",
                    f"{table} has rules, which let statements do something else",
                    "; ".join(f"DROP RULE {rule} ON {table}" for rule in self._table["rules"]),
                )
            )
        return problems or [Finding("table", "good", f"{table} is as the store makes it")]

    def _grants(self, columns: Mapping[str, Row]) -> Finding:
        table, schema, role = self._config.qualified_table, quoted(self._config.schema), self._who["role"]
        missing = [
            grant
            for grant, names in _GRANTS.items()
            if not all(columns[name][grant.lower()] for name in names if name in columns)
        ]
        if not all(column["delete"] for column in columns.values()):
            missing.append("DELETE")
        remedies, lacking = [], missing.copy()
        if not self._table["usage"]:
            remedies.append(f"GRANT USAGE ON SCHEMA {schema} TO {role}")
            lacking.insert(0, "USAGE on the schema")
        if missing:
            remedies.append(f"GRANT {', '.join(missing)} ON {table} TO {role}")
        if not lacking:
            return Finding("grants", "good", f"{role} may SELECT, INSERT, UPDATE and DELETE on {table}")
        return Finding("grants", "bad", f"{role} lacks {', '.join(lacking)} for {table}", "; ".join(remedies))

    def _persistence(self) -> Finding:
        table = self._config.qualified_table
        if self._is_logged():
            return Finding("persistence", "good", f"{table} is in the server's log, and so crash-safe")
        if self._table["persistence"] == "t":
            return Finding(
                "persistence",
                "bad",
                f"{table} is temporary: it ends with the session that made it",
                "name another schema by ?schema=",
            )
        return Finding(
            "persistence",
            "bad",
            f"{table} is UNLOGGED: the server empties it after a crash, and standbys do not have it",
            f"ALTER TABLE {table} SET LOGGED",
        )

    def _is_logged(self) -> bool:
        return not self._is_there() or self._table["persistence"] == "p"

    def _is_there(self) -> bool:
        # Where there is no schema there is no row.
        return bool(self._table) and self._table["oid"] is not None

    def _row_security(self) -> Finding:
        table, role = self._config.qualified_table, self._who["role"]
        if not self._table["row_security"]:
            return Finding("row-security", "good", f"no row of {table} is hidden from {role}")
        return Finding(
            "row-security",
            "warning",
            f"row-level security is on for {role} on {table}: an entry that the policies hide is absent to the store",
            f"CREATE POLICY dagonizer ON {table} TO {role} USING (true) WITH CHECK (true)",
        )

    def _compression(self, compression: Row) -> Finding:
        table = self._config.qualified_table
        method = {"l": "lz4", "p": "pglz"}.get(compression["method"], compression["usual"])
        if method == "lz4":
            return Finding("compression", "good", f"texts in {table} are compressed by LZ4")
        if not self._who["lz4"]:
            return Finding("compression", "good", f"texts in {table} are compressed by {method}; the server has no LZ4")
        return Finding(
            "compression",
            "note",
            f"texts in {table} are compressed by {method}, which makes saves slower than LZ4 does",
            f"ALTER TABLE {table} ALTER COLUMN json SET COMPRESSION lz4",
        )

    async def _room(self) -> Finding:
        room = await self._server.row_if_permitted(_CONNECTIONS)
        if room is None:
            return _unseen("connections", "pg_stat_database, pg_database, pg_roles", self._who)
        most, reserved, used = room["most"], room["reserved"], room["used"]
        said = f"max_connections is {most}, of which {reserved} are reserved for others and {used} are in use"
        if self._server.pooled:
            return Finding("connections", "good", f"{said}; the pooler has limits of its own")
        wanted = self._config.pool_size
        # One of those in use is this one.
        places = {"the server": most - reserved - used + 1}
        limits = {
            f"ROLE {self._who['role']}": room["of_role"],
            f"DATABASE {self._who['database']}": room["of_database"],
        }
        places |= {place: limit for place, limit in limits.items() if limit >= 0}
        place, free = min(places.items(), key=lambda item: item[1])
        if free >= wanted:
            return Finding("connections", "good", f"{said}; pool_size={wanted} fits")
        if place == "the server":
            remedy = "ALTER SYSTEM SET max_connections to more and restart the server, or put a pooler before it"
        else:
            said += f"; CONNECTION LIMIT of {place} is {free}"
            remedy = f"ALTER {place} CONNECTION LIMIT -1"
        return Finding(
            "connections",
            "warning",
            f"{said}: that leaves {free} to this store, whose pool_size is {wanted} for each process and event loop, "
            "so saves may find none",
            f"{remedy}, or lower ?pool_size=",
        )

    def _durability(self, settings: Row, standbys: Row | None) -> Finding:
        if self._who["standby"] or self._who["read_only"]:
            return Finding(
                DURABILITY,
                "bad",
                "no save is acknowledged: the server accepts none",
                "see primary and read-only above",
            )
        if not self._is_logged():
            return Finding(
                DURABILITY,
                "bad",
                "an acknowledged save outlives its client, but no crash of the server, for the table is not logged",
                "see persistence above",
            )
        return durability(settings, standbys)


def version_finding(address: str, version: str, number: int) -> Finding:
    """Judge the version of the server at ``address``, which calls itself ``version``."""
    if number < _OLDEST:
        return Finding(
            "version",
            "bad",
            f"PostgreSQL {version} answers at {address}, which is too old: the store needs 13 or later",
            "upgrade the server",
        )
    return Finding("version", "good", f"PostgreSQL {version} answers at {address}")


def durability(settings: Row, standbys: Row | None) -> Finding:
    """Say what an acknowledged save in a logged table of a primary outlives."""
    if settings["provider"] is not None:
        return _durability_of(settings["provider"], settings)
    if settings["fsync"] == "off":
        return Finding(
            DURABILITY,
            "bad",
            "an acknowledged save outlives its client and a killed server, but not a failure of the machine, which may "
            "damage the whole database: fsync is off",
            "see fsync above",
        )
    survives = "an acknowledged save is flushed to the primary's disk: it outlives its client, a killed server"
    if settings["full_page_writes"] == "off":
        return Finding(
            DURABILITY,
            "warning",
            f"{survives}, and a failure of the machine only if the file system never writes half a page: "
            "full_page_writes is off",
            "see full-page-writes above",
        )
    survives += " and a failure of the machine"
    needed, level = _awaited(settings), _level(settings)
    if needed:
        return Finding(
            DURABILITY,
            "good" if level != "remote_write" else "note",
            f"{survives}; and it {_REACHED[level]} {needed} of the standbys, so that it outlives the loss of the "
            "primary and a failover to such a one",
        )
    if standbys is None:
        return Finding(
            DURABILITY, "note", f"{survives}; whether there are standbys, to which a failover loses it, is not seen"
        )
    if standbys["attached"]:
        return Finding(
            DURABILITY,
            "warning",
            f"{survives}; but a failover loses what had not reached the standby: {_counted(standbys['attached'])} "
            "connected, and no save waits for any",
            "see synchronous-commit above"
            if settings["names"]
            else "ALTER SYSTEM SET synchronous_standby_names = 'ANY 1 (*)'; SELECT pg_reload_conf(); best with two "
            "standbys or more, for saves wait while there is none",
        )
    return Finding(DURABILITY, "good", f"{survives}; not the loss of its disk, for no standby is connected")


def _durability_of(provider: str, settings: Row) -> Finding:
    if settings["names"] and not _awaited(settings):
        return Finding(
            DURABILITY,
            "warning",
            f"an acknowledged save outlives its client, but maybe not its server: it does not wait for "
            f"{settings['names']}, which brings it to the storage of {provider}",
            "see synchronous-commit above",
        )
    return Finding(
        DURABILITY,
        "note",
        f"an acknowledged save outlives what the storage of {provider} is made for, and no setting of PostgreSQL says",
        f"see there how many copies {provider} keeps before it acknowledges, and where",
    )


def _is_reached(server: _Server) -> bool:
    return server.failure is None


def _is_primary(server: _Server) -> bool:
    return _is_reached(server) and not server.who["standby"] and not server.who["read_only"]


def _another_host(server: _Server, chosen: _Server) -> Finding:
    """Say what a host is that the store would not use now."""
    if server.failure is not None:
        return Finding(
            "hosts",
            "warning",
            f"a host of the URL cannot be used: {server.failure}",
            "mend it, or take it out of the URL",
        )
    if server.who["standby"]:
        return Finding("hosts", "good", f"{server.address} is a standby, to which a failover is followed")
    if server.who["read_only"]:
        return Finding(
            "hosts",
            "warning",
            f"{server.address} is no standby, and accepts no writes: default_transaction_read_only is on",
            "ALTER SYSTEM RESET default_transaction_read_only there, or take it out of the URL",
        )
    if server.who["started"] == chosen.who["started"]:
        return Finding("hosts", "note", f"{server.address} is the same server as {chosen.address}")
    return Finding(
        "hosts",
        "bad",
        f"{server.address} accepts writes, as {chosen.address} does: clients that reach different ones of them do not "
        "see each other's checkpoints",
        "make all but one of them standbys of it, or leave one host in the URL",
    )


def _worst(servers: list[_Server]) -> StoreError:
    failures = [server.failure for server in servers if server.failure is not None]
    return next((failure for failure in failures if isinstance(failure, StoreAccessError)), failures[0])


def _column_problems(table: str, columns: Mapping[str, Row]) -> Iterator[Finding]:
    for name, expected in _TYPES.items():
        if name not in columns:
            added = _ADDED.get(name)
            yield Finding(
                "table",
                "bad",
                f"{table} has no column {name}",
                "name another table by ?table=" if added is None else f"ALTER TABLE {table} ADD COLUMN {added}",
            )
        elif columns[name]["type"] != expected:
            found = columns[name]["type"]
            yield Finding(
                "table",
                # It holds any text, up to its length.
                "warning" if expected == "text" and found.startswith("character varying") else "bad",
                f"the column {name} of {table} is {found}, not {expected}",
                f"ALTER TABLE {table} ALTER COLUMN {name} TYPE {expected}",
            )
    if "key" in columns:
        yield from _key_problems(table, columns["key"])
    for name, column in columns.items():
        if name not in _TYPES and column["demanded"]:
            yield Finding(
                "table",
                "bad",
                f"the column {name} of {table} is NOT NULL without a default, and no save fills it",
                f"ALTER TABLE {table} ALTER COLUMN {quoted(name)} DROP NOT NULL",
            )


def _key_problems(table: str, key: Row) -> Iterator[Finding]:
    if not key["unique"]:
        yield Finding(
            "table",
            "bad",
            f"{table} has no unique index on key alone, so a save does not find what to replace",
            f"ALTER TABLE {table} ADD UNIQUE (key)",
        )
    collated = f'ALTER TABLE {table} ALTER COLUMN key TYPE text COLLATE "C"'
    if not key["deterministic"]:
        yield Finding(
            "table",
            "bad",
            f"the collation {key['collation']} of key in {table} takes different keys for equal",
            collated,
        )
    elif key["collation"] not in {"C", None}:
        yield Finding(
            "table",
            "note",
            f"the collation of key in {table} is {key['collation']}, not C: each page of a listing sorts "
            "the whole table",
            collated,
        )


def _space(table: str, space: Row) -> Finding:
    return Finding(
        "space",
        "note",
        f"{table} takes {space['size']} of the tablespace {space['tablespace']}; how much is free there, PostgreSQL "
        "does not tell",
    )


def _fsync(settings: Row) -> Finding:
    if settings["fsync"] == "on":
        return Finding("fsync", "good", "fsync is on")
    if settings["provider"] is not None:
        return _storage_of(settings["provider"], "fsync")
    return Finding(
        "fsync",
        "bad",
        "fsync is off: a failure of the machine loses acknowledged saves, and may damage the whole database",
        "ALTER SYSTEM SET fsync = on; SELECT pg_reload_conf()",
    )


def _full_page_writes(settings: Row) -> Finding:
    if settings["full_page_writes"] == "on":
        return Finding("full-page-writes", "good", "full_page_writes is on")
    if settings["provider"] is not None:
        return _storage_of(settings["provider"], "full_page_writes")
    return Finding(
        "full-page-writes",
        "warning",
        "full_page_writes is off: a failure of the machine damages pages that were half written, unless the file "
        "system prevents it, as ZFS does",
        "ALTER SYSTEM SET full_page_writes = on; SELECT pg_reload_conf()",
    )


def _storage_of(provider: str, name: str) -> Finding:
    return Finding(
        name.replace("_", "-"),
        "note",
        f"{name} is off, as {provider} has it: it is the provider's storage that keeps what was saved",
    )


def _synchronous_commit(settings: Row, who: Row) -> Finding:
    level, names = settings["synchronous_commit"], settings["names"]
    if level == "off":
        return Finding(
            "synchronous-commit",
            "good",
            "synchronous_commit is off here, and the store turns it on for each of its saves",
        )
    if level == "local" and names:
        return Finding(
            "synchronous-commit",
            "warning",
            f"synchronous_commit is local here: saves do not wait for the standbys that synchronous_standby_names "
            f"names ({names})",
            _set("synchronous_commit", "on", settings["source"], who),
        )
    return Finding("synchronous-commit", "good", f"synchronous_commit is {level} here")


def _standbys(settings: Row, standbys: Row | None, who: Row) -> Finding:
    if standbys is None:
        return _unseen("standbys", "pg_stat_replication, pg_replication_slots", who)
    names, attached, synchronous = settings["names"], standbys["attached"], standbys["synchronous"]
    needed = _awaited(settings)
    if not needed:
        return Finding(
            "standbys", "note" if attached else "good", f"{_counted(attached)} connected; no save waits for any"
        )
    if settings["provider"] is not None:
        # They are part of its storage.
        said = f"synchronous_standby_names is {names}, as {settings['provider']} has it: every save waits for them"
        return Finding("standbys", "good", said)
    said = f"synchronous_standby_names is {names}: every save waits for {needed} of them"
    if attached < needed or (standbys["visible"] and synchronous < needed):
        count = _counted(synchronous if standbys["visible"] else attached)
        return Finding(
            "standbys",
            "bad",
            f"{said}, but {count} connected as such: saves wait until they time out",
            "start the standbys, with such a name as application_name in primary_conninfo; or name those that there "
            "are",
        )
    if not standbys["visible"]:
        return Finding(
            "standbys",
            "note",
            f"{said}; {_counted(attached)} connected, but {who['role']} may not see whether they are synchronous",
            f"GRANT pg_read_all_stats TO {who['role']}",
        )
    if attached > needed:
        return Finding("standbys", "good", f"{said}, and {_counted(attached)} connected")
    return Finding(
        "standbys", "note", f"{said}, and no other is connected: when one fails, saves wait until they time out"
    )


def _level(settings: Row) -> str:
    """Return what synchronous_commit is for a save."""
    level: str = settings["synchronous_commit"]
    return "on" if level == "off" else level


def _awaited(settings: Row) -> int:
    """Return how many standbys a save waits for."""
    if not settings["names"] or _level(settings) == "local":
        return 0
    many = _MANY.match(settings["names"])
    return int(many[1]) if many else 1


def _counted(standbys: int) -> str:
    if standbys == 1:
        return "1 standby is"
    return f"{standbys or 'no'} standbys are"


def _unseen(check: str, views: str, who: Row) -> Finding:
    role = who["role"]
    return Finding(
        check, "note", f"this cannot be seen, for {role} may not look at {views}", f"GRANT SELECT ON {views} TO {role}"
    )


def _set(setting: str, value: str, source: str, who: Row) -> str:
    """Return what makes ``setting`` to be ``value``, where it was set by ``source``."""
    role, database = who["role"], who["database"]
    where = {
        "user": f"ROLE {role}",
        "database": f"DATABASE {database}",
        "database user": f"ROLE {role} IN DATABASE {database}",
    }.get(source)
    if where is not None:
        return f"ALTER {where} SET {setting} = {value}"
    return f"ALTER SYSTEM SET {setting} = {value}; SELECT pg_reload_conf()"
