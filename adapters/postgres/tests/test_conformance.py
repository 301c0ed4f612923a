"""The conformance kit on the PostgreSQL store, with hooks for all that it can ask."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import asyncpg

from dagonizer_conformance import suite
from dagonizer_test_servers.harness import ServerHarness

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class PostgresHarness(ServerHarness):
    """The shared server, in which each namespace is a schema."""

    kind = "postgres"

    async def start(self) -> None:
        await super().start()
        async with self.connection() as db:
            # To write bytes that are not text.
            await db.execute(
                "DO $$ BEGIN CREATE CAST (bytea AS text) WITHOUT FUNCTION; EXCEPTION WHEN duplicate_object THEN END $$"
            )

    async def stop(self) -> None:
        await super().stop()
        async with self.connection() as db:
            for schema in await schemas(db):
                await db.execute(f'DROP SCHEMA "{schema}" CASCADE')

    async def entries(self) -> list[str]:
        async with self.connection() as db:
            return [
                key for schema in await schemas(db) for (key,) in await db.fetch(f"SELECT key FROM {_table(schema)}")
            ]

    def address(self) -> str:
        return f"{self.server.url}?schema={{namespace}}&timeout=8"

    async def peek(self, namespace: str, key: str) -> str | None:
        async with self.connection() as db:
            found = await db.fetchval(f"SELECT convert_to(json, 'UTF8') FROM {_table(namespace)} WHERE key = $1", key)
        return None if found is None else found.decode(errors="surrogateescape")

    async def poke(self, namespace: str, key: str, text: str) -> None:
        value = text.encode(errors="surrogateescape")
        async with self.connection() as db:
            changed = await db.execute(
                f"UPDATE {_table(namespace)} SET json = $2::bytea::text WHERE key = $1", key, value
            )
        assert changed == "UPDATE 1", changed

    def describe_namespaces(self) -> str:
        return "schemas"

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Any]:
        db = await asyncpg.connect(self.server.url)
        try:
            yield db
        finally:
            await db.close()


async def schemas(db: Any) -> list[str]:
    return [name for (name,) in await db.fetch("SELECT nspname FROM pg_namespace WHERE nspname ~ '^dgzconf-'")]


def _table(namespace: str) -> str:
    return f'"{namespace}".checkpoints'


TestPostgres = suite(PostgresHarness(), require="CRASH-SAFE", budget="smoke")
