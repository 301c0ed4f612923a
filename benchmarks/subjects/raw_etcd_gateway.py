"""etcd3-py, with its own put and range. A longer text goes in parts, as in ``raw_etcd_grpc``."""

from __future__ import annotations

import asyncio
import warnings
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from etcd3 import AioClient
from worker import serve

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_PART = 1 << 20


class RawEtcdGateway:
    """Put and range."""

    def __init__(self, client: AioClient) -> None:
        self._client = client
        self._parts = asyncio.Semaphore(4)

    async def save(self, key: str, text: str) -> None:
        """Put the text, or its parts and their number."""
        value = text.encode()
        if len(value) <= _PART:
            await self._client.put(key, b"." + value)
            return
        count = -(-len(value) // _PART)
        await asyncio.gather(*(self._put_part(key, index, value) for index in range(count)))
        await self._client.put(key, b"%d" % count)

    async def load(self, key: str) -> str | None:
        """Get the text, or its parts."""
        value = await self._get(key)
        if value.startswith(b"."):
            return value[1:].decode()
        parts = await asyncio.gather(*(self._get_part(key, index) for index in range(int(value))))
        return b"".join(parts).decode()

    async def _get(self, key: str) -> bytes:
        reply = await self._client.range(key)
        value: bytes = reply.kvs[0].value
        return value

    async def _put_part(self, key: str, index: int, value: bytes) -> None:
        async with self._parts:
            await self._client.put(f"{key}/{index}", value[index * _PART : (index + 1) * _PART])

    async def _get_part(self, key: str, index: int) -> bytes:
        async with self._parts:
            return await self._get(f"{key}/{index}")


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[RawEtcdGateway]:
    """Connect to ``HOST:PORT``."""
    # aiohttp warns of large bodies.
    warnings.simplefilter("ignore")
    host, port = url.split(":")
    async with AioClient(host, int(port)) as client:
        yield RawEtcdGateway(client)


if __name__ == "__main__":
    serve(opened)
