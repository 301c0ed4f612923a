"""Connections to PostgreSQL: how they are made, lent out, and given up.

A module of its own, since it knows servers and connections but no table, and serves the caller's pool as well.
"""

from __future__ import annotations

import asyncio
import getpass
import os
import ssl
from contextlib import asynccontextmanager, contextmanager, suppress
from math import inf
from typing import TYPE_CHECKING, Any, Literal, TypeAlias
from weakref import WeakKeyDictionary

import asyncpg  # type: ignore[import-untyped]  # it has no types

from dagonizer.connections import is_stale, reset
from dagonizer.errors import StoreAccessError, StoreUnavailableError
from dagonizer_postgres._errors import DRIVER_ERRORS, kind_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from dagonizer.url import Host
    from dagonizer_postgres._config import PostgresConfig

_PORT = 5432
_STATEMENTS = 100
_GOODBYE = 1.0

# Unnamed, for behind a pooler a name may be another client's.
_WHO = "SELECT pg_catalog.pg_backend_pid(), pg_catalog.current_setting('transaction_read_only') = 'on'"

# The next host may do what this one does not.
_NOT_HERE = (OSError, asyncpg.CannotConnectNowError, asyncpg.ConnectionDoesNotExistError)

# The function of the server that warns of a commit which has not waited for its synchronous standbys to the end.
_GAVE_UP = "SyncRepWaitForLSN"

CLOCK = "pg_catalog.date_part('epoch', pg_catalog.clock_timestamp())"
"""The server's clock, in seconds since 1970."""
# Within a minute the server's clock and ours drift apart by milliseconds at most.
_CLOCK_SECONDS = 60.0

# asyncpg has no types.
Connection: TypeAlias = Any
_Tls: TypeAlias = ssl.SSLContext | Literal[False]


@asynccontextmanager
async def open_pool(config: PostgresConfig, *, writable: bool = True) -> AsyncIterator[asyncpg.Pool]:
    """Return a pool for the running event loop. It connects when it must, and is closed in bounded time.

    With ``writable`` only a server will do that accepts writes.
    """
    connector = _Connector(config, writable=writable)
    pool = asyncpg.create_pool(
        min_size=0,
        max_size=config.pool_size,
        connect=connector.connect,
        reset=_leave_as_it_is,
    )
    await pool
    try:
        yield pool
    finally:
        # A server that does not answer is not waited for; the pool then drops its connections.
        with suppress(*DRIVER_ERRORS):
            async with asyncio.timeout(_GOODBYE):
                await pool.close()
        await connector.close()


@asynccontextmanager
async def lend_pool(pool: asyncpg.Pool) -> AsyncIterator[asyncpg.Pool]:
    """Return the caller's pool, which the caller closes, if the running event loop is the pool's."""
    if pool._loop is not asyncio.get_running_loop():  # noqa: SLF001 - asyncpg would fail in the middle of a statement
        raise StoreUnavailableError(
            "the pool belongs to another event loop; make one in this loop, or give the store a PostgresConfig, which "
            "serves all loops"
        )
    yield pool


@asynccontextmanager
async def borrowed(pool: asyncpg.Pool, *, writable: bool = True) -> AsyncIterator[Connection]:
    """Lend a connection of ``pool`` that was alive a moment ago. It goes back only if it is in step with its server.

    With ``writable`` only a server will do that is no standby.
    """
    try:
        connection = await _acquire(pool)
    except UnicodeDecodeError as exc:
        # Until it knows the client's encoding the server speaks in its own.
        raise ConnectionError("the server answered a new connection with something that is not UTF-8 text") from exc
    try:
        _check_server(connection, writable=writable)
        try:
            yield connection
        except TimeoutError:
            # The driver has asked the server to cancel the statement, which may take effect until that is done.
            with suppress(*DRIVER_ERRORS):
                await connection.execute("SELECT 1")
            raise
    except (asyncpg.PostgresError, UnicodeDecodeError, StoreAccessError):
        raise
    except BaseException:
        _drop(connection)
        raise
    finally:
        await _release(pool, connection)


async def _acquire(pool: asyncpg.Pool) -> Connection:
    for _ in range(pool.get_max_size()):
        connection = await pool.acquire()
        if not is_stale(_transport(connection)):
            return connection
        _drop(connection)
        await pool.release(connection)
    return await pool.acquire()


async def _release(pool: asyncpg.Pool, connection: Connection) -> None:
    try:
        await pool.release(connection)
    except BaseException:
        _drop(connection)
        raise


@contextmanager
def standbys_expected(connection: Connection) -> Iterator[None]:
    """Raise ``ConnectionError`` if somebody cancels the block's wait for synchronous standbys, after the commit.

    The server then says that the statement has succeeded, and only warns that the standbys may not have it.
    """
    warnings: list[object] = []

    def listen(_connection: object, message: object) -> None:
        # The text is in the language of the server.
        if getattr(message, "server_source_function", None) == _GAVE_UP:
            warnings.append(message)

    connection.add_log_listener(listen)
    try:
        yield
    finally:
        # Else it has been closed and given back.
        with suppress(asyncpg.InterfaceError):
            connection.remove_log_listener(listen)
    if warnings:
        raise ConnectionError("the wait for the synchronous standbys was cancelled, after the commit here")


class ServerClocks:
    """What the clock of a connection's server shows, by what it showed at most a minute ago."""

    def __init__(self) -> None:
        # By connection: when it was asked, by the event loop's clock, and what it said.
        self._told: WeakKeyDictionary[Connection, tuple[float, float]] = WeakKeyDictionary()

    async def at(self, moment: float, connection: Connection) -> float:
        """Return what the server's clock shows at ``moment`` of the event loop's, or a little before."""
        clock = asyncio.get_running_loop().time
        asked, told = self._told.get(connection._con, (-inf, 0.0))  # noqa: SLF001 - what is lent is another object each time
        if clock() - asked > _CLOCK_SECONDS:
            told = await self.now(connection, moment - clock())
            # What it said was so before its answer came.
            asked = clock()
            self._told[connection._con] = asked, told  # noqa: SLF001 - as above
        return told + (moment - asked)

    @staticmethod
    async def now(connection: Connection, seconds: float) -> float:
        """Ask the server, which has so many seconds to answer."""
        # The caller's pool may decode numbers in its own way.
        return float(await connection.fetchval(f"SELECT {CLOCK}", timeout=seconds))

    def forget(self, connection: Connection) -> None:
        """Have the server asked again."""
        self._told.pop(connection._con, None)  # noqa: SLF001 - as above


async def expire(pool: asyncpg.Pool) -> None:
    """Close the connections that nobody uses, and the others when they come back."""
    # asyncpg would say goodbye to the first when they are wanted again, in the background, and for as long as it takes.
    await drop_idle(pool)
    await pool.expire_connections()


async def drop_idle(pool: asyncpg.Pool) -> None:
    """Close the connections that nobody uses, without a word."""
    for holder in pool._holders:  # noqa: SLF001 - no public way
        # One that has a proxy is being lent to somebody, by the ``setup`` of the caller's pool.
        if holder.is_connected() and holder.is_idle() and holder._proxy is None:  # noqa: SLF001 - as above
            _drop(holder._con)  # noqa: SLF001 - as above


def _drop(connection: Connection) -> None:
    """Close the connection without a word."""
    # Else it has been closed and given back.
    with suppress(asyncpg.InterfaceError):
        transport = _transport(connection)
        if transport is not None:
            reset(transport)
        connection.terminate()


def _transport(connection: Connection) -> asyncio.WriteTransport | None:
    transport: asyncio.WriteTransport | None = getattr(connection, "_transport", None)
    return transport


def _check_server(connection: Connection, *, writable: bool) -> None:
    # Not every pooler and every version passes these on.
    settings = connection.get_settings()
    if writable and getattr(settings, "in_hot_standby", "off") == "on":
        raise StoreUnavailableError(
            "the given pool has connected to a standby, which may lag behind; make the pool with "
            "target_session_attrs='read-write' and the hosts that can be the primary"
        )
    encoding = getattr(settings, "server_encoding", "UTF8")
    if encoding != "UTF8":
        raise StoreAccessError(
            f"the database has the encoding {encoding}, which cannot hold every text; use one that was made by "
            "CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0"
        )


async def _leave_as_it_is(_connection: object) -> None:
    """Do without asyncpg's reset, a round trip for each operation: none of ours leaves anything behind."""


class _Connector:
    """Makes connections to the host that accepts writes, or to any host if it need not be ``writable``."""

    def __init__(self, config: PostgresConfig, *, writable: bool) -> None:
        self._config = config
        self._writable = writable
        self._hosts = list(config.hosts)
        self._statements = _STATEMENTS if config.statement_cache_size is None else config.statement_cache_size
        self._tls: tuple[_Tls, ...] | None = None
        self._abandoned: set[asyncio.Task[Connection]] = set()

    async def connect(self, _dsn: None, **driver: object) -> Connection:
        """Return a connection, for a pool.

        When the caller is cancelled the attempt goes on to its end, and what it has opened is closed: asyncpg leaves a
        handshake that was cancelled with an error that asyncio logs, for nobody asks for it.
        """
        attempt = asyncio.create_task(self._connect(driver))
        try:
            return await asyncio.shield(attempt)
        except asyncio.CancelledError:
            self._abandoned.add(attempt)
            attempt.add_done_callback(self._give_up)
            raise

    async def close(self) -> None:
        """Cancel the attempts that nobody waits for."""
        abandoned = tuple(self._abandoned)
        for attempt in abandoned:
            attempt.cancel()
        await asyncio.gather(*abandoned, return_exceptions=True)

    def _give_up(self, attempt: asyncio.Task[Connection]) -> None:
        self._abandoned.discard(attempt)
        if not attempt.cancelled() and attempt.exception() is None:
            attempt.result().terminate()

    async def _connect(self, driver: dict[str, object]) -> Connection:
        async with asyncio.timeout(self._config.timeout):
            return await self._connect_to_one(driver)

    async def _connect_to_one(self, driver: dict[str, object]) -> Connection:
        """Connect to the first host that accepts writes; the one found last time is tried first.

        Where there are several, none may take all the time that the operation has.
        """
        several = len(self._hosts) > 1
        share = self._config.timeout / (len(self._hosts) + 1) if several else None
        failures: list[tuple[Host, Exception]] = []
        for host in tuple(self._hosts):
            try:
                async with asyncio.timeout(share):
                    connection = await self._connect_to(host, driver)
            except ssl.SSLCertVerificationError:
                raise
            except _NOT_HERE as exc:
                failures.append((host, exc))
            else:
                self._hosts.sort(key=lambda other: other != host)
                return connection
        if not several:
            raise failures[0][1]
        told = "; ".join(f"{host.name}:{host.port or _PORT}: {exc or type(exc).__name__}" for host, exc in failures)
        for _, failure in failures:
            error, advice = kind_of(failure)
            if error is StoreAccessError:
                raise StoreAccessError(f"no host accepts writes: {told}; {advice}") from failure
        raise ConnectionError(f"no host accepts writes: {told}") from failures[-1][1]

    async def _connect_to(self, host: Host, driver: dict[str, object]) -> Connection:
        statements = self._statements
        connection = await self._connect_with_tls(host, {**driver, "statement_cache_size": statements})
        try:
            statement = await connection.prepare(_WHO, name="")
            pid, read_only = await statement.fetchrow()
        except BaseException:
            connection.terminate()
            raise
        if statements and pid != connection.get_server_pid() and self._config.statement_cache_size is None:
            # A pooler is between. Behind it a statement's name may be gone, or stand for another client's statement.
            connection.terminate()
            self._statements = 0
            return await self._connect_to(host, driver)
        if read_only and self._writable:
            connection.terminate()
            raise ConnectionError("it accepts no writes: it is a standby, or default_transaction_read_only is on")
        return connection

    async def _connect_with_tls(self, host: Host, driver: dict[str, object]) -> Connection:
        if self._tls is None:
            self._tls = _tls_of(self._config)
        *others, last = self._tls if not host.name.startswith("/") else (False,)
        for tls in others:
            try:
                return await self._connect_once(host, tls, driver)
            except asyncpg.InvalidPasswordError:
                raise
            except (ConnectionError, ssl.SSLError, asyncpg.InvalidAuthorizationSpecificationError):
                continue
        return await self._connect_once(host, last, driver)

    async def _connect_once(self, host: Host, tls: _Tls, driver: dict[str, object]) -> Connection:
        # All that asyncpg would look for elsewhere, but for the password.
        options: dict[str, Any] = {
            **driver,
            "host": [host.name],
            "port": [host.port or _PORT],
            "user": self._config.user or _system_user(),
            "password": self._config.password,
            "database": self._config.database,
            "ssl": tls,
            "direct_tls": False,
            "target_session_attrs": "any",
            "krbsrvname": "postgres",
            "gsslib": "sspi" if os.name == "nt" else "gssapi",
            "timeout": self._config.timeout,
            "server_settings": {"application_name": self._config.application_name},
        }
        return await asyncpg.connect(**options)


def _tls_of(config: PostgresConfig) -> tuple[_Tls, ...]:
    """Return how to connect, in the order of trying: with a TLS context, or False for without TLS."""
    match config.sslmode:
        case "disable":
            return (False,)
        case "allow":
            return (False, _context(config))
        case "prefer":
            return (_context(config), False)
        case _:
            return (_context(config),)


def _context(config: PostgresConfig) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = config.sslmode == "verify-full"
    name, file = "sslrootcert", config.sslrootcert
    try:
        if config.sslrootcert is None:
            context.verify_mode = ssl.CERT_NONE
        elif config.sslrootcert == "system":
            context.load_default_certs()
        else:
            context.load_verify_locations(config.sslrootcert)
        if config.sslcert is not None:
            name, file = "sslcert", config.sslcert
            # Without a function OpenSSL would ask at the terminal.
            context.load_cert_chain(config.sslcert, config.sslkey, lambda: config.sslpassword or "")
    except (OSError, ValueError) as exc:
        raise StoreAccessError(
            f"cannot use {name}={file}: {getattr(exc, 'strerror', None) or exc}; it must be a readable PEM file, and "
            "sslkey and sslpassword must fit it"
        ) from exc
    return context


def _system_user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError) as exc:
        raise StoreAccessError("the operating system knows no name for this user; put one into the URL") from exc
