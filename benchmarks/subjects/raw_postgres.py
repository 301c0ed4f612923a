"""asyncpg's pool, with its default of ten connections, and a table of two columns."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import asyncpg
from worker import serve

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_SAVE = "INSERT INTO raw (key, json) VALUES ($1, $2) ON CONFLICT (key) DO UPDATE SET json = excluded.json"


class RawPostgres:
    """An upsert, and a select."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def save(self, key: str, text: str) -> None:
        """Upsert the row, and commit."""
        await self._pool.execute(_SAVE, key, text)

    async def load(self, key: str) -> str | None:
        """Select the row."""
        value: str | None = await self._pool.fetchval("SELECT json FROM raw WHERE key = $1", key)
        return value


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[RawPostgres]:
    """Connect to ``postgresql://USER:PASSWORD@HOST:PORT/DATABASE``."""
    async with asyncpg.create_pool(url) as pool:
        await pool.execute("CREATE TABLE IF NOT EXISTS raw (key text PRIMARY KEY, json text NOT NULL)")
        yield RawPostgres(pool)


if __name__ == "__main__":
    serve(opened)
