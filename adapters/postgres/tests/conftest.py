"""A database of its own for each test that wants one, on the shared server, and poolers before it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import secrets
import shutil
import struct
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from dagonizer_test_servers.postgres import Postgres
from dagonizer_test_servers.process import Process, answers, free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from typing import Self

    from dagonizer_test_servers.shared import Server


class Database:
    """A database that was created for one test. ``url`` is its superuser's."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.name = f"t_{secrets.token_hex(6)}"
        self.url = f"{server.url.rpartition('/')[0]}/{self.name}"

    def url_of(self, role: str, password: str) -> str:
        """Return the URL for another role."""
        return f"postgresql://{role}:{password}@{self.url.rpartition('@')[2]}"

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Any]:
        """Connect, around the store."""
        db = await asyncpg.connect(self.url)
        try:
            yield db
        finally:
            await db.close()

    async def execute(self, *statements: str) -> None:
        async with self.connection() as db:
            for statement in statements:
                await db.execute(statement)

    async def has_lz4(self) -> bool:
        """Return whether the server can compress values by LZ4."""
        known = "SELECT 'lz4' = ANY (enumvals) FROM pg_settings WHERE name = 'default_toast_compression'"
        return bool(await self.fetchval(known))

    async def fetchval(self, query: str, *args: object) -> Any:
        async with self.connection() as db:
            return await db.fetchval(query, *args)


async def _on_server(server: Server, *statements: str) -> None:
    db = await asyncpg.connect(server.url)
    try:
        for statement in statements:
            await db.execute(statement)
    finally:
        await db.close()


@pytest.fixture
def database(postgres_server: Server) -> Iterator[Database]:
    made = Database(postgres_server)
    asyncio.run(_on_server(postgres_server, f"CREATE DATABASE {made.name}"))
    yield made
    asyncio.run(
        _on_server(
            postgres_server,
            f"DROP DATABASE {made.name} WITH (FORCE)",
            # Roles belong to the server; tests name theirs after the database.
            f"""DO $$ DECLARE r text; BEGIN FOR r IN SELECT rolname FROM pg_roles WHERE rolname ~ '^{made.name}' LOOP
            EXECUTE format('DROP ROLE %I', r); END LOOP; END $$""",
        )
    )


class Pooler:
    """Does what a pooler in transaction mode does: every transaction may run in another session of the server.

    It gives each to the session that has been idle for longest, and tells clients a process id of its own. In session
    mode every client keeps its session.
    """

    def __init__(self, port: int, mode: str = "transaction") -> None:
        self._backend = port
        self._shares = mode == "transaction"
        self._sessions: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
        self._pids = itertools.count(1_000_000_000)
        self._writers: list[asyncio.StreamWriter] = []
        self._clients: set[asyncio.Task[None]] = set()
        self.port = 0

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._listener.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listener.close()
        for client in self._clients:
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        for writer in self._writers:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients.add(task)
        self._writers.append(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await self._serve(reader, writer)
        writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        startup = await self._startup(reader)
        if startup is None:
            # No TLS.
            writer.write(b"N")
            return
        backend = await asyncio.open_connection("127.0.0.1", self._backend)
        self._writers.append(backend[1])
        backend[1].write(startup)
        answering = asyncio.create_task(self._answer(backend[0], writer))
        while not answering.done():
            message = asyncio.create_task(self._message(reader))
            await asyncio.wait({message, answering}, return_when=asyncio.FIRST_COMPLETED)
            if not message.done():
                break
            backend[1].write(b"".join(await message))
        await answering
        sessions = self._sessions if self._shares else asyncio.Queue()
        sessions.put_nowait(backend)
        kind, body = await message
        while kind != b"X":
            session = await sessions.get()
            session[1].write(kind + body)
            answering = asyncio.create_task(self._answer(session[0], writer))
            message = asyncio.create_task(self._message(reader))
            while True:
                await asyncio.wait({message, answering}, return_when=asyncio.FIRST_COMPLETED)
                if answering.done():
                    break
                session[1].write(b"".join(await message))
                message = asyncio.create_task(self._message(reader))
            await answering
            sessions.put_nowait(session)
            kind, body = await message

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass the server's messages on until it is ready for a new transaction."""
        while True:
            kind, body = await self._message(reader)
            if kind == b"K":
                body = body[:4] + struct.pack("!I", next(self._pids)) + body[8:]
            writer.write(kind + body)
            if kind == b"Z" and body.endswith(b"I"):
                return

    @staticmethod
    async def _startup(reader: asyncio.StreamReader) -> bytes | None:
        head = await reader.readexactly(8)
        length, code = struct.unpack("!II", head)
        return None if code == 80877103 else head + await reader.readexactly(length - 8)

    @staticmethod
    async def _message(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
        head = await reader.readexactly(5)
        (length,) = struct.unpack("!I", head[1:])
        return head[:1], head[1:] + await reader.readexactly(length - 4)


class Withholding:
    """A proxy that can keep what clients send over the connections that they have, and deliver it when they are gone."""

    def __init__(self, database: Database) -> None:
        self._url = database.url
        self._backend = int(database.url.rpartition(":")[2].partition("/")[0])
        self._connections = self._withheld = 0
        self._kept: asyncio.Queue[tuple[bytes, asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        """Stand before the server, and return the URL that leads here."""
        async with await asyncio.start_server(self._serve, "127.0.0.1") as listener:
            port = listener.sockets[0].getsockname()[1]
            yield self._url.replace(f":{self._backend}/", f":{port}/")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = self._connections = self._connections + 1
        replies, backend = await asyncio.open_connection("127.0.0.1", self._backend)
        replying = asyncio.create_task(self._pump(replies, writer))
        kept = b""
        with contextlib.suppress(ConnectionError):
            while chunk := await reader.read(65_536):
                if number <= self._withheld:
                    kept += chunk
                else:
                    backend.write(chunk)
        replying.cancel()
        await asyncio.wait({replying})
        writer.close()
        if kept:
            self._kept.put_nowait((kept, replies, backend))
        else:
            backend.close()

    def withhold(self) -> None:
        """Keep what comes over the connections that there are. Those that are made later work."""
        self._withheld = self._connections

    async def deliver(self) -> None:
        """Send the server what was kept of a connection that is gone, and wait until it has done all of it."""
        async with asyncio.timeout(30):
            kept, replies, backend = await self._kept.get()
            backend.write(kept + b"X" + struct.pack("!I", 4))
            await replies.read()
            backend.close()

    @staticmethod
    async def _pump(replies: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while chunk := await replies.read(65_536):
                writer.write(chunk)
        writer.close()


@pytest.fixture
def withholding(database: Database) -> Withholding:
    return Withholding(database)


class PgBouncer:
    """The real one, with two connections to the server."""

    def __init__(self, server: Postgres, mode: str) -> None:
        self.port = free_port()
        self._directory = Path(tempfile.mkdtemp(prefix="dgz-pgbouncer-"))
        (self._directory / "users").write_text(f'"{server.user}" "{server.password}"\n')
        (self._directory / "ini").write_text(
            f"[databases]\n* = host=127.0.0.1 port={server.port}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n"
            f"listen_port = {self.port}\nunix_socket_dir =\nauth_type = scram-sha-256\n"
            f"auth_file = {self._directory}/users\npool_mode = {mode}\ndefault_pool_size = 2\n"
        )
        user = 65534 if os.geteuid() == 0 else None
        for path in (self._directory, *self._directory.iterdir()):
            path.chmod(0o755)
        self._process = Process(
            [str(shutil.which("pgbouncer", path=_PROGRAMS)), str(self._directory / "ini")],
            log=self._directory / "log",
            ready=lambda: answers(self.port),
            user=user,
        )

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self._process.start)
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self._process.kill)
        shutil.rmtree(self._directory)


# Debian has it where only root looks.
_PROGRAMS = f"{os.environ.get('PATH', '')}:/usr/sbin"
_POOLERS = ["like pgbouncer", *(["pgbouncer"] if shutil.which("pgbouncer", path=_PROGRAMS) else [])]


@asynccontextmanager
async def _pooled(kind: str, database: Database, mode: str) -> AsyncIterator[str]:
    port = int(database.url.rpartition(":")[2].partition("/")[0])
    pooler: Any = Pooler(port, mode)
    if kind == "pgbouncer":
        assert isinstance(database.server, Postgres)
        pooler = PgBouncer(database.server, mode)
    async with pooler:
        yield database.url.replace(f":{port}/", f":{pooler.port}/")


@pytest.fixture(params=_POOLERS)
async def pooler_url(request: pytest.FixtureRequest, database: Database) -> AsyncIterator[str]:
    """The database behind a pooler in transaction mode."""
    async with _pooled(request.param, database, "transaction") as url:
        yield url


@pytest.fixture(params=_POOLERS)
async def session_pooler_url(request: pytest.FixtureRequest, database: Database) -> AsyncIterator[str]:
    """The database behind a pooler in session mode."""
    async with _pooled(request.param, database, "session") as url:
        yield url


@pytest.fixture
async def simple_pooler_url(database: Database) -> AsyncIterator[str]:
    """The database behind a pooler in transaction mode that knows nothing of prepared statements."""
    async with _pooled("like pgbouncer", database, "transaction") as url:
        yield url


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Let nothing of the machine decide a test."""
    for name in os.environ:
        if name.startswith("PG"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
