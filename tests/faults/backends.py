"""What the backend of a store holds, looked at around the store."""

from __future__ import annotations

import asyncio
import json
from abc import abstractmethod
from collections import Counter
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

import asyncpg
import boto3
import grpc
from aetcd import rpc
from redis.asyncio import Redis

from dagonizer import StoreURL
from dagonizer_s3 import S3Config

TIMEOUT = 8
"""Of every store, in seconds."""


class Backend(Protocol):
    """Where the store at ``base`` keeps its entries, looked at around it. ``held`` counts what is there, by kind.

    ``url`` is that of a store which has the place that ``name`` says to itself.
    """

    url: str

    @abstractmethod
    def __init__(self, name: str, base: str) -> None: ...

    @abstractmethod
    async def held(self) -> Counter[str]:
        """Return how much there is: entries, and what should not be there for ever."""

    async def leases(self) -> set[int]:
        """Return what ends by itself some time after a client's death."""
        return set()

    async def end_leases(self) -> None:
        """Let it end now."""

    async def remove(self) -> None:
        """Remove what is left when all entries are deleted."""


class Files(Backend):
    """A directory."""

    def __init__(self, name: str, base: str) -> None:
        self.url = f"{base}/{name}?timeout={TIMEOUT}"
        self._root = Path(StoreURL.parse(self.url).path)

    async def held(self) -> Counter[str]:
        names = [path.name for path in self._root.iterdir()]
        return Counter("entries" if name.startswith("ckpt-") else "leftovers" for name in names if name != ".lock")


class Rows(Backend):
    """A table of PostgreSQL, and the connections of the clients."""

    def __init__(self, name: str, base: str) -> None:
        self._name = name
        self._server = base
        self.url = f"{self._server}?table={name}&application_name={name}&timeout={TIMEOUT}"

    async def held(self) -> Counter[str]:
        db = await asyncpg.connect(self._server)
        try:
            rows = await db.fetchval(f'SELECT count(*) FROM "{self._name}"')
            sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1"
            return Counter(entries=rows, connections=await db.fetchval(sql, self._name))
        finally:
            await db.close()

    async def remove(self) -> None:
        db = await asyncpg.connect(self._server)
        await db.execute(f'DROP TABLE IF EXISTS "{self._name}"')
        await db.close()


class Strings(Backend):
    """What there is in a Redis server under a prefix, and the connections of a user who has that name, too."""

    def __init__(self, name: str, base: str) -> None:
        self._name = name
        self._server = base
        (host,) = StoreURL.parse(base).hosts
        self.url = f"redis://{name}:{name}@{host.name}:{host.port}?prefix={name}&timeout={TIMEOUT}"
        asyncio.run(self._add_user())

    async def held(self) -> Counter[str]:
        async with Redis.from_url(self._server) as client:
            keys = [key async for key in client.scan_iter(match=f"{self._name}:*")]
            connections = [one for one in await client.client_list() if one["user"] == self._name]
        return Counter(entries=len(keys), connections=len(connections))

    async def remove(self) -> None:
        async with Redis.from_url(self._server) as client:
            await client.acl_deluser(self._name)

    async def _add_user(self) -> None:
        async with Redis.from_url(self._server) as client:
            await client.acl_setuser(
                self._name, enabled=True, passwords=[f"+{self._name}"], keys=["*"], commands=["+@all"]
            )


class Objects(Backend):
    """The objects under a prefix, and uploads of several parts."""

    def __init__(self, name: str, base: str) -> None:
        url, _, query = base.partition("?")
        self.url = f"{url.removesuffix('/')}/{quote(name)}?{query}&timeout={TIMEOUT}"
        self._config = S3Config.from_url(StoreURL.parse(self.url))

    async def held(self) -> Counter[str]:
        return await asyncio.to_thread(self._held)

    def _held(self) -> Counter[str]:
        config = self._config
        client = boto3.client(
            "s3",
            endpoint_url=config.endpoint_url,
            region_name=config.region,
            aws_access_key_id=config.access_key_id,
            aws_secret_access_key=config.secret_access_key,
        )
        here = {"Bucket": config.bucket, "Prefix": config.prefix}
        pages = client.get_paginator("list_objects_v2").paginate(**here)
        objects = [found for page in pages for found in page.get("Contents", ())]
        uploads = client.list_multipart_uploads(**here).get("Uploads", ())
        client.close()
        return Counter(entries=len(objects), uploads=len(uploads))


class Pairs(Backend):
    """What etcd holds under a prefix; of the chunks only those that no entry refers to."""

    def __init__(self, name: str, base: str) -> None:
        url = StoreURL.parse(base)
        (host,) = url.hosts
        self._authority = f"{host.name}:{host.port}"
        self._prefix = f"/{name}//".encode()
        self.url = f"{url.scheme}://{self._authority}/{name}?timeout={TIMEOUT}"
        self._before = asyncio.run(self._leases())

    async def held(self) -> Counter[str]:
        everything = await self._range(b"", keys_only=True)
        kinds = Counter(pair.key.removeprefix(self._prefix).partition(b"/")[0].decode() for pair in everything)
        kinds["chunk"] -= sum(_chunks(pair.value) for pair in await self._range(b"entry/"))
        return Counter(entries=kinds.pop("entry", 0), **kinds)

    async def leases(self) -> set[int]:
        return await self._leases() - self._before

    async def end_leases(self) -> None:
        async with self._channel() as channel:
            for lease in await self.leases():
                await rpc.LeaseStub(channel).LeaseRevoke(rpc.LeaseRevokeRequest(ID=lease))

    async def _range(self, name: bytes, **options: bool) -> Any:
        start = self._prefix + name
        async with self._channel() as channel:
            request = rpc.RangeRequest(key=start, range_end=start[:-1] + b"0", **options)
            return (await rpc.KVStub(channel).Range(request)).kvs

    async def _leases(self) -> set[int]:
        async with self._channel() as channel:
            reply = await rpc.LeaseStub(channel).LeaseLeases(rpc.LeaseLeasesRequest())
        return {lease.ID for lease in reply.leases}

    def _channel(self) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(self._authority, [("grpc.max_receive_message_length", -1)])


def _chunks(value: bytes) -> int:
    """Return how many chunks an entry has, by its header if it has one."""
    head, _, header = value.partition(b" ")
    return json.loads(header)["chunks"] if head == b"\0dagonizer-etcd/1" else 0


BACKENDS = {
    "file": Files,
    "postgresql": Rows,
    "redis": Strings,
    "s3": Objects,
    "etcd": Pairs,
    "etcd+http": Pairs,
}
