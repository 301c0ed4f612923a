"""The conformance kit on a real server, with hooks for all that it can ask, and in short on a cluster and sentinels."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
from redis.asyncio import Redis

from dagonizer import open_store
from dagonizer_conformance import Capability, Harness, Level, run, suite
from dagonizer_test_servers import shared
from dagonizer_test_servers.harness import ServerHarness
from dagonizer_test_servers.redis import Cluster, Replicated

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class RedisHarness(ServerHarness):
    """The shared server, in which each namespace is a prefix."""

    kind = "redis"

    async def entries(self) -> list[bytes]:
        async with raw_client() as client:
            return [key async for key in client.scan_iter("dgzconf-*")]

    def address(self) -> str:
        return f"{self.server.url}?prefix={{namespace}}&timeout=5"

    async def peek(self, namespace: str, key: str) -> str | None:
        async with raw_client() as client:
            found = await client.get(name(namespace, key))
        return None if found is None else found.decode(errors="surrogateescape")

    async def poke(self, namespace: str, key: str, text: str) -> None:
        async with raw_client() as client:
            await client.set(name(namespace, key), text.encode(errors="surrogateescape"))

    def describe_namespaces(self) -> str:
        return "prefixes"


@asynccontextmanager
async def raw_client() -> AsyncIterator[Redis]:
    client = Redis.from_url(shared("redis").url)
    try:
        yield client
    finally:
        await client.aclose()


def name(namespace: str, key: str) -> str:
    return f"{namespace.replace(':', '%3A')}:{key}"


TestRedis = suite(RedisHarness(), require="CRASH-SAFE", budget="smoke")


class SeveralHarness(Harness):
    """Several servers that are one store. The kit cannot stand between it and them, nor are they killed here."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def open(self, namespace: str):
        return open_store(self.address().replace("{namespace}", quote(namespace, safe="")))

    def address(self) -> str:
        return f"{self._url}?prefix={{namespace}}&timeout=5"


@pytest.mark.parametrize("servers", [Cluster, Replicated])
def test_a_cluster_and_a_primary_behind_a_sentinel_earn_what_can_be_tried_on_them(servers):
    with servers() as several:
        report = asyncio.run(run(SeveralHarness(several.url), budget="smoke"))
    assert not [result for result in report.results if result.status not in {"PASS", "UNVERIFIED"}]
    assert report.levels == (Level.CORE, Level.CONCURRENT)
    assert report.chips == (Capability.CLOSE, Capability.LISTING, Capability.COMPARE_AND_SWAP)
