"""redis-py, with the pool that it makes by itself."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from redis.asyncio import Redis
from worker import serve

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class RawRedis:
    """SET and GET."""

    def __init__(self, client: Redis) -> None:
        self._client = client

    async def save(self, key: str, text: str) -> None:
        """Set the string."""
        await self._client.set(key, text)

    async def load(self, key: str) -> str | None:
        """Get the string."""
        value: str | None = await self._client.get(key)
        return value


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[RawRedis]:
    """Connect to ``redis://HOST:PORT/DB``."""
    async with Redis.from_url(url, decode_responses=True, max_connections=64) as client:
        yield RawRedis(client)


if __name__ == "__main__":
    serve(opened)
