"""The conformance kit on the etcd store, over both transports, with hooks for all that it can ask."""

from __future__ import annotations

import grpc
from aetcd import rpc

from dagonizer import StoreURL
from dagonizer_conformance import suite
from dagonizer_test_servers.harness import ServerHarness


class EtcdHarness(ServerHarness):
    """The shared server, in which each namespace has a prefix of its own."""

    kind = "etcd"
    scheme = "etcd"

    async def entries(self) -> list[bytes]:
        # The chunks of a writer that was killed are collected when their lease has ended.
        request = rpc.RangeRequest(key=b"/dgzconf-", range_end=b"/dgzconf.", keys_only=True)
        async with self.channel() as channel:
            found = (await rpc.KVStub(channel).Range(request)).kvs
        return [entry.key for entry in found if b"//entry/" in entry.key]

    def address(self) -> str:
        authority = self.server.url.removeprefix("etcd://").partition("/")[0]
        return f"{self.scheme}://{authority}/{{namespace}}?timeout=8"

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

    def channel(self) -> grpc.aio.Channel:
        (host,) = StoreURL.parse(self.server.url).hosts
        return grpc.aio.insecure_channel(f"{host.name}:{host.port}")


class EtcdGatewayHarness(EtcdHarness):
    """The same etcd, over its JSON gateway."""

    scheme = "etcd+http"


def _entry(namespace: str, key: str) -> bytes:
    return f"/{namespace}//entry/{key}".encode()


TestEtcd = suite(EtcdHarness(), require="CRASH-SAFE", budget="smoke")
TestEtcdGateway = suite(EtcdGatewayHarness(), require="CRASH-SAFE", budget="smoke")
