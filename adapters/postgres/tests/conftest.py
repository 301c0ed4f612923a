"""A database of its own for each test that wants one, on the shared server."""

from __future__ import annotations

import asyncio
import os
import secrets
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

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


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Let nothing of the machine decide a test."""
    for name in os.environ:
        if name.startswith("PG"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
