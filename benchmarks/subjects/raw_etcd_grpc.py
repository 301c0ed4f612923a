"""etcd's own stubs, as aetcd ships them, over a channel of gRPC.

A request of etcd's has 1.5 MiB at most, so a longer text goes in parts, four at a time, with their number under the
key: the least that can be done, although it is neither atomic nor ever cleaned up.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
from aetcd import rpc
from worker import serve

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_PART = 1 << 20


class RawEtcd:
    """Put and range."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._kv: Any = rpc.KVStub(channel)
        self._parts = asyncio.Semaphore(4)

    async def save(self, key: str, text: str) -> None:
        """Put the text, or its parts and their number."""
        value = text.encode()
        if len(value) <= _PART:
            await self._kv.Put(rpc.PutRequest(key=key.encode(), value=b"." + value))
            return
        count = -(-len(value) // _PART)
        await asyncio.gather(*(self._put_part(key, index, value) for index in range(count)))
        await self._kv.Put(rpc.PutRequest(key=key.encode(), value=b"%d" % count))

    async def load(self, key: str) -> str | None:
        """Get the text, or its parts."""
        value = await self._get(key)
        if value.startswith(b"."):
            return value[1:].decode()
        parts = await asyncio.gather(*(self._get_part(key, index) for index in range(int(value))))
        return b"".join(parts).decode()

    async def _get(self, key: str) -> bytes:
        reply = await self._kv.Range(rpc.RangeRequest(key=key.encode()))
        value: bytes = reply.kvs[0].value
        return value

    async def _put_part(self, key: str, index: int, value: bytes) -> None:
        async with self._parts:
            part = value[index * _PART : (index + 1) * _PART]
            await self._kv.Put(rpc.PutRequest(key=f"{key}/{index}".encode(), value=part))

    async def _get_part(self, key: str, index: int) -> bytes:
        async with self._parts:
            return await self._get(f"{key}/{index}")


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[RawEtcd]:
    """Connect to ``HOST:PORT``."""
    async with grpc.aio.insecure_channel(url, [("grpc.max_receive_message_length", -1)]) as channel:
        yield RawEtcd(channel)


if __name__ == "__main__":
    serve(opened)
