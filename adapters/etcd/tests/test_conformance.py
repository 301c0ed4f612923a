"""The conformance kit on the etcd store, over both transports, with hooks for all that it can ask."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from urllib.parse import quote

import grpc
import pytest
from aetcd import rpc

from dagonizer import StoreURL
from dagonizer_conformance import Capability, Harness, Level, run
from dagonizer_conformance.outcomes import Unverified
from dagonizer_conformance.pytest_suite import suite
from dagonizer_etcd import EtcdCheckpointStore, EtcdConfig
from dagonizer_test_servers.shared import NoServerError, shared

if TYPE_CHECKING:
    from dagonizer_test_servers.shared import Server

# Below the patience of the kit, which is 10 seconds.
_TIMEOUT = 8


class EtcdHarness(Harness):
    """The etcd of this process, in which each namespace has a prefix of its own."""

    scheme = "etcd"

    async def start(self) -> None:
        await asyncio.to_thread(shared, "etcd")

    async def open(self, namespace: str) -> EtcdCheckpointStore:
        url = self.address().replace("{namespace}", quote(namespace, safe=""))
        return EtcdCheckpointStore(EtcdConfig.from_url(StoreURL.parse(url)))

    def address(self) -> str:
        authority = self.server.url.removeprefix("etcd://").partition("/")[0]
        return f"{self.scheme}://{authority}/{{namespace}}?timeout={_TIMEOUT}"

    async def kill(self) -> None:
        await self.down()
        await self.up()

    async def down(self) -> None:
        try:
            await asyncio.to_thread(self.server.down)
        except NoServerError as exc:
            raise Unverified(str(exc)) from exc

    async def up(self) -> None:
        await asyncio.to_thread(self.server.up)

    async def peek(self, namespace: str, key: str) -> str | None:
        async with self.channel() as channel:
            reply = await rpc.KVStub(channel).Range(rpc.RangeRequest(key=_entry(namespace, key)))
        return reply.kvs[0].value.decode(errors="surrogateescape") if reply.kvs else None

    async def poke(self, namespace: str, key: str, text: str) -> None:
        async with self.channel() as channel:
            value = text.encode(errors="surrogateescape")
            await rpc.KVStub(channel).Put(rpc.PutRequest(key=_entry(namespace, key), value=value))

    def describe_namespaces(self) -> str:
        return "prefixes"

    @property
    def server(self) -> Server:
        return shared("etcd")

    def channel(self) -> grpc.aio.Channel:
        (host,) = StoreURL.parse(self.server.url).hosts
        return grpc.aio.insecure_channel(f"{host.name}:{host.port}")


class EtcdGatewayHarness(EtcdHarness):
    """The same etcd, over its JSON gateway."""

    scheme = "etcd+http"


def _entry(namespace: str, key: str) -> bytes:
    return f"/{namespace}//entry/{key}".encode()


TestEtcd = suite(EtcdHarness())
TestEtcdGateway = suite(EtcdGatewayHarness())


async def _left_by_the_kit(harness: EtcdHarness) -> list[bytes]:
    async with harness.channel() as channel:
        request = rpc.RangeRequest(key=b"/dgzconf-", range_end=b"/dgzconf.", keys_only=True)
        return [found.key for found in (await rpc.KVStub(channel).Range(request)).kvs]


@pytest.mark.parametrize("harness", [EtcdHarness(), EtcdGatewayHarness()], ids=["grpc", "gateway"])
def test_a_run_earns_every_level_and_chip_and_leaves_nothing_behind(harness: EtcdHarness):
    before = asyncio.run(_left_by_the_kit(harness))
    report = asyncio.run(run(harness, budget="smoke"))
    assert report.levels == tuple(Level), [result for result in report.results if result.status != "PASS"]
    assert report.chips == tuple(Capability)
    assert asyncio.run(_left_by_the_kit(harness)) == before
