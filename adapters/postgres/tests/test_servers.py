"""Servers of other kinds: with TLS, on a Unix socket, several of which one is the primary, behind a pooler."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import struct
import time
import traceback
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import asyncpg
import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from dagonizer import open_store
from dagonizer.errors import StoreAccessError, StoreError, StoreUnavailableError
from dagonizer.url import StoreURL
from dagonizer_conformance.proxy import FaultProxy
from dagonizer_postgres import PostgresCheckpointStore, PostgresConfig
from dagonizer_test_servers.postgres import Postgres
from dagonizer_test_servers.process import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path
    from typing import Self

    from conftest import Database
    from dagonizer_test_servers.shared import Server

_PATIENCE = 20.0


def opened(url: str, **parameters: object) -> PostgresCheckpointStore:
    query = "&".join(f"{name}={quote(str(value), safe='')}" for name, value in parameters.items())
    store = open_store(f"{url}?{query}" if query else url)
    assert isinstance(store, PostgresCheckpointStore)
    return store


async def until_done(operation: Callable[[], Awaitable[Any]]) -> Any:
    """Repeat ``operation`` while the store says that it is unavailable."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            return await operation()
        except StoreUnavailableError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.02)


async def fetchval(server: Postgres, query: str) -> Any:
    db = await asyncpg.connect(server.url)
    try:
        return await db.fetchval(query)
    finally:
        await db.close()


# TLS.


class Certificates:
    """Those of a server, of a client, and of another authority, as files."""

    def __init__(self, directory: Path) -> None:
        authority = trustme.CA()
        self.server = authority.issue_cert("localhost")
        client = authority.issue_cert("client@example.org")
        self.trusted = directory / "trusted.pem"
        authority.cert_pem.write_to_path(self.trusted)
        self.other = directory / "other.pem"
        trustme.CA().cert_pem.write_to_path(self.other)
        self.cert = directory / "client.pem"
        self.cert.write_bytes(b"".join(pem.bytes() for pem in client.cert_chain_pems))
        self.key = directory / "client.key"
        client.private_key_pem.write_to_path(self.key)
        self.both = directory / "both.pem"
        self.both.write_bytes(self.key.read_bytes() + self.cert.read_bytes())
        self.encrypted = directory / "encrypted.key"
        key = serialization.load_pem_private_key(self.key.read_bytes(), None)
        self.encrypted.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.BestAvailableEncryption(b"opensesame"),
            )
        )


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


class TlsServer:
    """The shared server, by TLS only. The wheel's build has no TLS, so this ends it, and speaks for the server there.

    The database ``strict`` is for clients that show a certificate.
    """

    def __init__(self, server: Server, certificates: Certificates) -> None:
        self._account, _, place = server.url.rpartition("@")
        self._backend = int(place.rpartition(":")[2].partition("/")[0])
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificates.server.configure_cert(self._context)
        self._context.load_verify_locations(certificates.trusted)
        self._context.verify_mode = ssl.CERT_OPTIONAL
        self._relays: set[asyncio.Task[None]] = set()
        self.accepted = 0

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self._port = self._listener.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listener.close()
        await self.drop()

    def url(self, host: str = "127.0.0.1", database: str = "postgres") -> str:
        return f"{self._account}@{host}:{self._port}/{database}"

    async def drop(self) -> None:
        """Close all connections."""
        for relay in self._relays:
            relay.cancel()
        await asyncio.gather(*self._relays, return_exceptions=True)
        # The event loop closes the sockets a turn later.
        await asyncio.sleep(0)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._relays.add(task)
        task.add_done_callback(self._relays.discard)
        # Not cancelled to asyncio, which would log it.
        with contextlib.suppress(asyncio.IncompleteReadError, OSError, asyncio.CancelledError):
            await self._serve(reader, writer)
        if task.cancelling():
            writer.transport.abort()
        else:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        length, code = struct.unpack("!II", await reader.readexactly(8))
        encrypted = code == 80877103
        if encrypted:
            writer.write(b"S")
            await writer.start_tls(self._context)
            length, code = struct.unpack("!II", await reader.readexactly(8))
        startup = await reader.readexactly(length - 8)
        if not encrypted:
            self._refuse(writer, "no pg_hba.conf entry for this host, no encryption")
        elif b"\0strict\0" in startup and not writer.get_extra_info("peercert"):
            self._refuse(writer, "connection requires a valid client certificate")
        else:
            self.accepted += 1
            backend_reader, backend_writer = await asyncio.open_connection("127.0.0.1", self._backend)
            startup = startup.replace(b"\0strict\0", b"\0postgres\0")
            backend_writer.write(struct.pack("!II", 8 + len(startup), code) + startup)
            try:
                async with asyncio.TaskGroup() as relay:
                    relay.create_task(self._relay(reader, backend_writer))
                    relay.create_task(self._relay(backend_reader, writer))
            except* ConnectionError:
                pass
            finally:
                backend_writer.close()

    @staticmethod
    def _refuse(writer: asyncio.StreamWriter, message: str) -> None:
        fields = f"SFATAL\0VFATAL\0C28000\0M{message}\0\0".encode()
        writer.write(b"E" + struct.pack("!I", 4 + len(fields)) + fields)

    @staticmethod
    async def _relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        raise ConnectionAbortedError("one side has left")


@pytest.fixture
async def tls_server(postgres_server: Server, certificates: Certificates) -> AsyncIterator[TlsServer]:
    async with TlsServer(postgres_server, certificates) as server:
        yield server


async def test_every_sslmode_does_as_in_libpq(tls_server: TlsServer, certificates: Certificates) -> None:
    trusted, other = certificates.trusted, certificates.other
    address, name = tls_server.url(), tls_server.url("localhost")
    for url, parameters, problem in (
        (address, {}, None),
        (address, {"sslmode": "prefer"}, None),
        (address, {"sslmode": "allow"}, None),
        (address, {"sslmode": "require"}, None),
        (address, {"sslmode": "require", "sslrootcert": trusted}, None),
        (address, {"sslmode": "verify-ca", "sslrootcert": trusted}, None),
        (name, {"sslmode": "verify-full", "sslrootcert": trusted}, None),
        (address, {"sslmode": "disable"}, "no pg_hba.conf entry"),
        (address, {"sslmode": "require", "sslrootcert": other}, "CERTIFICATE_VERIFY_FAILED"),
        (address, {"sslmode": "verify-ca", "sslrootcert": other}, "CERTIFICATE_VERIFY_FAILED"),
        (address, {"sslmode": "verify-full", "sslrootcert": trusted}, "IP address mismatch|certificate is not valid"),
        (name, {"sslmode": "verify-full", "sslrootcert": "system"}, "CERTIFICATE_VERIFY_FAILED"),
        (name, {"sslmode": "verify-full", "sslrootcert": "/no/such.pem"}, "sslrootcert=/no/such.pem: No such file"),
    ):
        async with opened(url, **parameters) as store:
            if problem is None:
                await store.save("k", f"{parameters}")
                assert await store.load("k") == f"{parameters}"
            else:
                with pytest.raises(StoreAccessError, match=problem):
                    await store.save("k", "v")


async def test_a_connection_with_tls_is_used_again_and_its_end_noticed(
    tls_server: TlsServer, certificates: Certificates
) -> None:
    url = tls_server.url("localhost")
    async with opened(url, sslmode="verify-full", sslrootcert=certificates.trusted, pool_size=1) as store:
        await store.save("k", "v")
        for _ in range(20):
            assert await store.load("k") == "v"
        assert tls_server.accepted == 1
        await tls_server.drop()
        await store.save("k", "w")
        assert tls_server.accepted == 2


async def test_a_large_text_goes_over_tls(tls_server: TlsServer) -> None:
    async with opened(tls_server.url(), sslmode="require") as store:
        text = "😀" * 2_000_000
        await store.save("large", text)
        assert await store.load("large") == text
        await store.delete("large")


async def test_a_client_certificate_is_shown_to_the_server(tls_server: TlsServer, certificates: Certificates) -> None:
    url = tls_server.url(database="strict")
    cert, key, encrypted = certificates.cert, certificates.key, certificates.encrypted
    for parameters in (
        {"sslcert": cert, "sslkey": key},
        {"sslcert": certificates.both},
        {"sslcert": cert, "sslkey": encrypted, "sslpassword": "opensesame"},
    ):
        async with opened(url, sslmode="require", **parameters) as store:
            await store.save("k", "v")
    for parameters, problem in (
        ({}, "requires a valid client certificate"),
        ({"sslcert": cert}, f"cannot use sslcert={cert}"),
        ({"sslcert": "/no/such.pem"}, "cannot use sslcert=/no/such.pem: No such file"),
        ({"sslcert": cert, "sslkey": encrypted}, "sslpassword must fit"),
        ({"sslcert": cert, "sslkey": encrypted, "sslpassword": "guessed"}, "sslpassword must fit"),
    ):
        async with opened(url, sslmode="require", **parameters) as store:
            with pytest.raises(StoreAccessError, match=problem):
                await store.save("k", "v")


async def test_a_wrong_password_is_not_tried_again_without_tls(tls_server: TlsServer) -> None:
    account, _, place = tls_server.url().rpartition("@")
    async with opened(f"{account}x@{place}") as store:
        with pytest.raises(StoreAccessError, match="password authentication failed"):
            await store.load("k")
        assert tls_server.accepted == 1


async def test_a_server_without_tls(postgres_server: Server, certificates: Certificates) -> None:
    for mode in ("disable", "allow", "prefer"):
        async with opened(postgres_server.url, sslmode=mode) as store:
            assert await store.load("absent") is None
    for parameters in ({"sslmode": "require"}, {"sslmode": "verify-full", "sslrootcert": certificates.trusted}):
        async with opened(postgres_server.url, **parameters) as store:
            with pytest.raises(StoreUnavailableError, match="rejected SSL upgrade"):
                await store.load("k")


# A Unix socket.


async def test_a_unix_socket(postgres_server: Server) -> None:
    if not isinstance(postgres_server, Postgres):
        pytest.skip("the socket of a server that the environment names is not known")
    here = f"{quote(str(postgres_server.directory), safe='')}:{postgres_server.port}"
    async with opened(postgres_server.url.replace(f"127.0.0.1:{postgres_server.port}", here)) as store:
        await store.save("socket", "v")
        assert await store.load("socket") == "v"
        assert await fetchval(
            postgres_server, "SELECT client_addr IS NULL FROM pg_stat_activity WHERE application_name = 'dagonizer'"
        )
        # Dead connections are noticed on it, too.
        await fetchval(
            postgres_server,
            "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity WHERE application_name = 'dagonizer'",
        )
        await store.delete("socket")
    async with opened("postgresql://u:p@%2Fno%2Fsuch/d") as store:
        with pytest.raises(StoreUnavailableError, match="at /no/such/d"):
            await store.load("k")


# Several hosts.


def hosts_of(*ports: int, url: str) -> str:
    account, _, place = url.rpartition("@")
    return f"{account}@{','.join(f'127.0.0.1:{port}' for port in ports)}/{place.partition('/')[2]}"


async def test_the_primary_is_found_and_its_successor_after_a_failover() -> None:
    with Postgres() as first, Postgres(primary=first) as second:
        async with opened(hosts_of(second.port, first.port, url=first.url), timeout=10) as store:
            await asyncio.gather(*(store.save(f"{n}", "before") for n in range(20)))
            assert await fetchval(first, "SELECT count(*) FROM checkpoints") == 20
            behind = await fetchval(first, "SELECT pg_current_wal_flush_lsn()::text")
            while not await fetchval(second, f"SELECT pg_last_wal_replay_lsn() >= '{behind}'"):
                await asyncio.sleep(0.01)
            await asyncio.to_thread(first.down)
            for call in (store.save("k", "v"), store.load("1")):
                with pytest.raises(StoreUnavailableError, match=r"no host accepts writes: .*standby"):
                    await call
            await asyncio.to_thread(second.promote)
            await store.save("0", "after")
            assert await store.load("0") == "after"
            assert await store.load("1") == "before"
            assert await fetchval(second, "SELECT json FROM checkpoints WHERE key = '0'") == "after"
            await asyncio.to_thread(second.down)
            with pytest.raises(StoreUnavailableError) as caught:
                await store.load("1")
            for port in (first.port, second.port):
                assert f"127.0.0.1:{port}: [Errno" in str(caught.value)
            await asyncio.to_thread(second.up)
            assert await until_done(lambda: store.load("1")) == "before"


@pytest.mark.parametrize("level", ["notice", "error"])
async def test_a_change_that_has_not_reached_the_synchronous_standby_is_not_acknowledged(level: str) -> None:
    settings = ("synchronous_standby_names = 'walreceiver'", f"client_min_messages = {level}")
    with Postgres(*settings) as primary, Postgres(primary=primary) as standby:
        async with (
            opened(primary.url) as store,
            asyncpg.create_pool(primary.url, min_size=1, max_size=1) as pool,
            asyncpg.create_pool(primary.url, min_size=1, max_size=1) as db,
        ):
            version = await store.save_if("k", "1", expected=None)
            given = PostgresCheckpointStore(pool)
            await asyncio.to_thread(standby.down)
            for call in (
                store.save_if("k", "2", expected=version),
                store.save("k", "3"),
                given.save("k", "4"),
                store.delete("k"),
                # It is gone here, but the standby still has it.
                store.delete("k"),
            ):
                task = asyncio.create_task(call)
                waiting = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
                while (pid := await db.fetchval(waiting)) is None:
                    assert not task.done(), "it did not wait"
                    await asyncio.sleep(0.01)
                # It is committed, and the server says so to whoever has asked for it, with no more than a warning.
                assert await db.fetchval("SELECT pg_cancel_backend($1)", pid)
                with pytest.raises(
                    StoreUnavailableError, match=r"synchronous standbys was cancelled.*may have happened"
                ):
                    await task
            assert await store.load("k") is None
            await asyncio.to_thread(standby.up)
            await store.save("k", "5")
            await given.save("k", "6")


async def test_a_standby_alone_is_no_place_to_save() -> None:
    with Postgres() as first, Postgres(primary=first) as second:
        async with opened(first.url) as store:
            await store.save("k", "v")
        while await fetchval(second, "SELECT to_regclass('checkpoints')") is None:
            await asyncio.sleep(0.01)
        async with opened(second.url) as store, asyncpg.create_pool(second.url, min_size=1, max_size=2) as pool:
            with pytest.raises(StoreUnavailableError, match="it is a standby"):
                await store.save("k", "v")
            given = PostgresCheckpointStore(pool)
            for call in (given.save("k", "v"), given.load("k")):
                with pytest.raises(StoreUnavailableError, match="pool has connected to a standby, which may lag"):
                    await call
            # What the connections say of the server is of the time when they were made.
            await pool.fetch("SELECT 1")
            await asyncio.to_thread(second.promote)
            assert await until_done(lambda: given.load("k")) == "v"


async def test_a_server_that_has_become_read_only_is_left_at_once() -> None:
    async def set_read_only(server: Postgres, value: str) -> None:
        db = await asyncpg.connect(server.url)
        await db.execute(f"ALTER SYSTEM SET default_transaction_read_only = {value}")
        await db.execute("SELECT pg_reload_conf()")
        await db.close()
        while await fetchval(server, "SHOW default_transaction_read_only") != value:
            await asyncio.sleep(0.01)

    with Postgres() as first, Postgres() as second:
        # A second server with the same accounts, so that one URL fits both.
        db = await asyncpg.connect(second.url)
        await db.execute(f"ALTER ROLE postgres PASSWORD '{first.password}'")
        await db.close()
        second.password = first.password
        async with (
            opened(hosts_of(first.port, second.port, url=first.url)) as store,
            asyncpg.create_pool(first.url, min_size=1, max_size=2) as pool,
        ):
            await asyncio.gather(*(store.save(f"{n}", "v") for n in range(10)))
            assert await fetchval(first, "SELECT count(*) FROM checkpoints") == 10
            # Its connections stay, and the store's know nothing of it.
            await set_read_only(first, "on")
            await store.save("k", "moved")
            assert await fetchval(second, "SELECT json FROM checkpoints WHERE key = 'k'") == "moved"
            left = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'dagonizer'"
            async with asyncio.timeout(_PATIENCE):
                while await fetchval(first, left):
                    await asyncio.sleep(0.01)
            await asyncio.gather(*(store.save(f"{n}", "moved") for n in range(10)))
            assert await fetchval(second, "SELECT count(*) FROM checkpoints WHERE json = 'moved'") == 11
            given = PostgresCheckpointStore(pool)
            with pytest.raises(StoreUnavailableError, match=r"read-only transaction.*can be the primary"):
                await given.save("k", "v")
            await set_read_only(first, "off")
            await given.save("k", "v")


async def test_a_host_that_swallows_everything_does_not_keep_the_others_from_being_tried(
    database: Database,
) -> None:
    port = int(database.url.rpartition(":")[2].partition("/")[0])
    async with FaultProxy("127.0.0.1", port) as hole:
        await hole.black_hole()
        async with opened(hosts_of(hole.port, port, url=database.url), timeout=12, pool_size=5) as store:
            began = time.monotonic()
            await store.save("k", "v")
            assert 3.9 < time.monotonic() - began < 10
            # The host that served is the first to be tried from now on.
            began = time.monotonic()
            await asyncio.gather(*(store.save(f"{n}", "v") for n in range(20)))
            assert time.monotonic() - began < 3.9


async def test_a_tls_refusal_is_one_with_several_hosts_too() -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(8)
        writer.write(b"S")
        await reader.read(65536)
        # The fatal alert "handshake_failure" of TLS 1.2, which asyncio's own servers do not send before they hang up.
        writer.write(bytes.fromhex("15 0303 0002 0228"))
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as listener:
        port = listener.sockets[0].getsockname()[1]
        for ports in ([port], [port, port], [port, free_port()], [free_port(), port]):
            async with opened(hosts_of(*ports, url="postgresql://u:p@h/d"), sslmode="require") as store:
                with pytest.raises(StoreAccessError, match=rf"127\.0\.0\.1:{port}.*(?i:handshake).*; check sslmode"):
                    await store.load("k")


# Poolers.


async def _use(url: str, **parameters: object) -> None:
    """Let two clients do all that a store does, at once."""

    async def use(store: PostgresCheckpointStore, who: str) -> None:
        for n in range(30):
            await store.save(f"{who} {n}", f"{n}")
            assert await store.load(f"{who} {n}") == f"{n}"
            version = await store.save_if(f"{who} {n} new", "1", expected=None)
            await store.save_if(f"{who} {n} new", "2", expected=version)
            await store.delete(f"{who} {n}")
            assert await store.load(f"{who} {n}") is None
        assert len([key async for key in store.list_keys(who)]) == 30

    stores = [opened(url, **parameters) for _ in range(2)]
    try:
        await asyncio.gather(*(use(store, f"{m} {n}") for n, store in enumerate(stores) for m in range(3)))
    finally:
        await asyncio.gather(*(store.aclose() for store in stores))


@pytest.mark.parametrize("parameters", [{}, {"statement_cache_size": 0}], ids=["by itself", "as told"])
async def test_behind_a_pooler_in_transaction_mode(pooler_url: str, parameters: dict[str, object]) -> None:
    await _use(pooler_url, **parameters)


async def test_behind_a_pooler_durability_does_not_depend_on_the_session(database: Database, pooler_url: str) -> None:
    await database.execute(f"ALTER DATABASE {database.name} SET synchronous_commit = off")
    async with opened(pooler_url) as store, database.connection() as db:
        flushed = 0
        for n in range(20):
            await store.save("k", f"{n}")
            flushed += await db.fetchval("SELECT pg_current_wal_insert_lsn() <= pg_current_wal_flush_lsn()")
        # All, but now and then the server has just written to its log what nobody waits for.
        assert flushed > 15


async def test_fifty_clients_create_the_table_behind_a_pooler(pooler_url: str) -> None:
    stores = [opened(pooler_url, schema="new", pool_size=1) for _ in range(50)]
    await asyncio.gather(*(store.save(f"{n}", "v") for n, store in enumerate(stores)))
    assert len([key async for key in stores[0].list_keys()]) == 50
    await asyncio.gather(*(store.aclose() for store in stores))


async def test_statements_kept_behind_a_pooler_fail_with_the_remedy(simple_pooler_url: str) -> None:
    # Else the test above proves nothing.
    with pytest.raises(StoreUnavailableError, match=r"26000|42P05") as caught:
        await _use(simple_pooler_url, statement_cache_size=100)
    assert "add ?statement_cache_size=0" in str(caught.value)


async def test_statements_are_kept_without_a_pooler(database: Database) -> None:
    async with opened(database.url, pool_size=1) as store:
        prepares = 0
        await store.save("k", "v")
        async with store._connections._of_this_loop()._entered[1].acquire() as connection:  # type: ignore[index]
            prepares = await connection.fetchval("SELECT count(*) FROM pg_prepared_statements")
    assert prepares > 1


# Secrets.


def everything_said_by(exc: BaseException) -> str:
    """Return the error, those behind it, and what a log would show of them."""
    said = ["".join(traceback.format_exception(exc))]
    while exc is not None:
        said += [str(exc), repr(exc), repr(exc.args), repr(vars(exc))]
        exc = exc.__cause__ or exc.__context__  # type: ignore[assignment]
    return "\n".join(said)


async def test_no_secret_is_told_by_anything(
    caplog: pytest.LogCaptureFixture,
    database: Database,
    tls_server: TlsServer,
    certificates: Certificates,
) -> None:
    caplog.set_level(logging.DEBUG)
    asyncio.get_running_loop().set_debug(True)
    secret, encoded = "hunter/2 &top", "hunter%2F2%20%26top"
    role = f"{database.name}_r"
    await database.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{secret}'")
    good = database.url_of(role, encoded)
    port = int(good.rpartition(":")[2].partition("/")[0])
    said: list[str] = []

    async def provoke(url: str, expected: type[StoreError] | None = StoreError) -> None:
        store = opened(url)
        said.append(f"{store!r} {vars(store)!r} {PostgresConfig.from_url(StoreURL.parse(url))!r}")
        for call in (lambda: store.save("k", "v"), lambda: store.load("k"), lambda: anext(store.list_keys())):
            try:
                await call()
            except StoreError as exc:
                said.append(everything_said_by(exc))
                assert expected is not None
        await store.aclose()

    async with FaultProxy("127.0.0.1", port) as proxy:
        through = good.replace(f":{port}/", f":{proxy.port}/")
        await proxy.black_hole()
        await provoke(f"{through}?timeout=0.3")
        await proxy.refuse()
        await provoke(through)
        await proxy.cut_reply(20)
        await provoke(through)
    await provoke(good)
    await provoke(f"{good}?create=never")
    await provoke(good.replace(encoded, f"{encoded}x"))
    await provoke(good.replace(database.name, f"{database.name}x"))
    await provoke(good.replace("127.0.0.1", "no-such-host.invalid"))
    await provoke(good.replace("127.0.0.1", "127.0.0.1:1,127.0.0.1"))
    await provoke(f"{good}?sslmode=require")
    for parameters in (
        "sslmode=disable",
        f"sslmode=verify-ca&sslrootcert={certificates.other}",
        f"sslmode=require&sslcert={certificates.cert}&sslkey={certificates.encrypted}&sslpassword={encoded}",
    ):
        await provoke(
            f"{tls_server.url().replace(tls_server.url().partition('@')[0], f'postgresql://postgres:{encoded}')}?{parameters}"
        )
    for url in (f"postgresql://u:{encoded}@h", f"postgresql://u:{encoded}@h/d?sslpassword={encoded}&table="):
        with pytest.raises(StoreError) as caught:
            open_store(url)
        said.append(everything_said_by(caught.value))
    assert len(said) > 40
    for text in (*said, caplog.text):
        assert "hunter" not in text, text
