"""The conformance kit on the PostgreSQL store, with hooks for all that it can ask."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import asyncpg

from dagonizer import open_store
from dagonizer_conformance import Capability, Harness, Level, run
from dagonizer_conformance.outcomes import Unverified
from dagonizer_conformance.pytest_suite import suite
from dagonizer_test_servers.shared import NoServerError, shared

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

# Below the patience of the kit, ten seconds.
_TIMEOUT = 8


class PostgresHarness(Harness):
    """The shared server, in which each namespace is a schema."""

    async def start(self) -> None:
        self._server = await asyncio.to_thread(shared, "postgres")
        async with self.connection() as db:
            # To write bytes that are not text.
            await db.execute(
                "DO $$ BEGIN CREATE CAST (bytea AS text) WITHOUT FUNCTION; EXCEPTION WHEN duplicate_object THEN END $$"
            )

    async def stop(self) -> None:
        async with self.connection() as db:
            for schema in await self.schemas(db):
                await db.execute(f'DROP SCHEMA "{schema}" CASCADE')

    async def open(self, namespace: str) -> Any:
        return open_store(self.address().replace("{namespace}", quote(namespace, safe="")))

    def address(self) -> str:
        return f"{self._server.url}?schema={{namespace}}&timeout={_TIMEOUT}"

    async def kill(self) -> None:
        await self.down()
        await self.up()

    async def down(self) -> None:
        try:
            await asyncio.to_thread(self._server.down)
        except NoServerError as exc:
            raise Unverified(str(exc)) from exc

    async def up(self) -> None:
        await asyncio.to_thread(self._server.up)

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
        db = await asyncpg.connect(self._server.url)
        try:
            yield db
        finally:
            await db.close()

    @staticmethod
    async def schemas(db: Any) -> list[str]:
        return [name for (name,) in await db.fetch("SELECT nspname FROM pg_namespace WHERE nspname ~ '^dgzconf-'")]


def _table(namespace: str) -> str:
    return f'"{namespace}".checkpoints'


TestPostgres = suite(PostgresHarness())


class WatchedHarness(PostgresHarness):
    """Looks at what entries are left when a run is over."""

    def __init__(self) -> None:
        self.left: list[str] = []

    async def stop(self) -> None:
        async with self.connection() as db:
            for schema in await self.schemas(db):
                self.left += [key for (key,) in await db.fetch(f"SELECT key FROM {_table(schema)}")]
        await super().stop()


def test_a_run_earns_every_level_and_chip_and_leaves_no_entry_behind():
    harness = WatchedHarness()
    report = asyncio.run(run(harness, budget="smoke"))
    assert report.levels == tuple(Level), [result for result in report.results if result.status != "PASS"]
    assert report.chips == (
        Capability.CLOSE,
        Capability.LISTING,
        Capability.COMPARE_AND_SWAP,
        Capability.NETWORK,
    )
    assert harness.left == []
