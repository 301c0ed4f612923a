"""Several hosts: one that fails is left for the next, and no write is made twice."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import time
from typing import TYPE_CHECKING, Any

import pytest

from dagonizer import open_store
from dagonizer.contracts import VersionedJson
from dagonizer.errors import StoreConflictError, StoreUnavailableError
from dagonizer_conformance.proxy import FaultProxy
from dagonizer_etcd import EtcdCheckpointStore, EtcdConfig
from dagonizer_etcd._errors import COMPACTED, NO_LEADER, Code, Failure
from dagonizer_etcd._transport import Cluster, Delete, Range, RangeReply, Txn, TxnReply
from dagonizer_test_servers.etcd import EtcdCluster
from dagonizer_test_servers.process import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from dagonizer import ClosableStore
    from dagonizer_test_servers.shared import Server

SCHEMES = ("etcd", "etcd+http")
LONG = "é" * 3000
CHANGE = Txn((), (Delete(b"k"),))


# Which request may be repeated where.


class Endpoint:
    """Fails as it is told, and counts."""

    def __init__(self, where: str, *failures: Failure | float) -> None:
        self.where = where
        self.failures = list(failures)
        self.calls = 0
        self.distrusted = 0

    async def answer(self) -> None:
        self.calls += 1
        if self.failures:
            failure = self.failures.pop(0)
            if not isinstance(failure, Failure):
                await asyncio.sleep(failure)
                raise AssertionError
            raise failure

    async def range(self, request: Range, token: str) -> RangeReply:
        await self.answer()
        return RangeReply([], more=False, revision=1)

    async def txn(self, request: Txn, token: str) -> TxnReply:
        await self.answer()
        return TxnReply(succeeded=True, revision=1)

    async def grant(self, seconds: int, token: str) -> int:
        await self.answer()
        return 1

    async def authenticate(self, username: str, password: str) -> str:
        return "token"

    async def distrust(self, seconds: float) -> None:
        self.distrusted += 1


REFUSED = ("refused", Failure(Code.UNAVAILABLE, "connection refused", "a", sent=False))
LEADERLESS = ("leaderless", Failure(Code.UNAVAILABLE, NO_LEADER, "a"))
BROKEN = ("broken", Failure(Code.UNAVAILABLE, "connection reset", "a"))
TIMED_OUT = ("timed out", Failure(Code.UNAVAILABLE, "etcdserver: request timed out", "a"))
SILENT = ("silent", 60.0)
DENIED = ("denied", Failure(Code.PERMISSION_DENIED, "etcdserver: permission denied", "a"))
GONE = ("gone", Failure(Code.OUT_OF_RANGE, COMPACTED, "a"))
FULL = ("full", Failure(Code.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded", "a"))


def named(kinds: list[tuple[str, Any]]) -> list[Any]:
    return [pytest.param(kind, id=name) for name, kind in kinds]


def cluster(*endpoints: Endpoint, timeout: float = 30.0) -> Cluster:
    return Cluster(endpoints, EtcdConfig(timeout=timeout))


READS: list[Callable[[Cluster], Awaitable[object]]] = [lambda c: c.range(Range(b"k")), lambda c: c.grant(1)]


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("failure", named([REFUSED, LEADERLESS, BROKEN, TIMED_OUT, SILENT]))
async def test_a_read_is_repeated_at_the_next_host_which_is_kept(
    failure: Failure | float, read: Callable[[Cluster], Awaitable[object]]
) -> None:
    a, b, c = Endpoint("a", failure, failure), Endpoint("b", failure), Endpoint("c")
    hosts = cluster(a, b, c, timeout=0.3)
    await read(hosts)
    assert (a.calls, b.calls, c.calls) == (1, 1, 1)
    await read(hosts)
    assert (a.calls, b.calls, c.calls) == (1, 1, 2)


@pytest.mark.parametrize("failure", named([REFUSED, LEADERLESS]))
async def test_a_write_is_repeated_if_it_is_certain_that_nobody_acted_on_it(failure: Failure) -> None:
    a, b = Endpoint("a", failure), Endpoint("b")
    await cluster(a, b).txn(CHANGE)
    assert (a.calls, b.calls) == (1, 1)


async def test_a_write_that_got_no_token_was_not_sent() -> None:
    class Locked(Endpoint):
        async def authenticate(self, username: str, password: str) -> str:
            raise Failure(Code.UNAVAILABLE, "connection reset", "a")

    a, b = Locked("a"), Endpoint("b")
    await Cluster([a, b], EtcdConfig(username="u", password="p")).txn(CHANGE)
    assert (a.calls, b.calls) == (0, 1)


@pytest.mark.parametrize("failure", named([BROKEN, TIMED_OUT, SILENT]))
async def test_no_other_write_is_repeated_and_the_next_request_goes_elsewhere(failure: Failure | float) -> None:
    a, b = Endpoint("a", failure), Endpoint("b")
    hosts = cluster(a, b, timeout=0.2)
    with pytest.raises(Failure) as caught:
        await hosts.txn(CHANGE)
    assert caught.value.is_unavailability
    assert (a.calls, b.calls) == (1, 0)
    await hosts.txn(CHANGE)
    assert (a.calls, b.calls) == (1, 1)


@pytest.mark.parametrize("failure", named([DENIED, FULL, GONE]))
async def test_a_refusal_is_final(failure: Failure) -> None:
    a, b = Endpoint("a", failure, failure), Endpoint("b")
    for call in (cluster(a, b).range(Range(b"k")), cluster(a, b).txn(CHANGE)):
        with pytest.raises(Failure):
            await call
    assert (a.calls, b.calls) == (2, 0)


@pytest.mark.parametrize(("failure", "writes"), [(BROKEN[1], 1), (REFUSED[1], 2)])
async def test_one_host_alone_is_asked_twice_at_most(failure: Failure, writes: int) -> None:
    a = Endpoint("a", failure)
    await cluster(a).range(Range(b"k"))
    assert a.calls == 2
    a = Endpoint("a", *[failure] * 5)
    for call, times in ((cluster(a).range(Range(b"k")), 2), (cluster(a).txn(CHANGE), writes)):
        a.calls = 0
        with pytest.raises(Failure):
            await call
        assert a.calls == times


# Real ones.


@pytest.fixture(scope="module")
def servers() -> Iterator[EtcdCluster]:
    with EtcdCluster() as servers:
        yield servers


@contextlib.asynccontextmanager
async def opened(url: str, scheme: str, parameters: str = "chunk_bytes=1024") -> AsyncIterator[ClosableStore]:
    async with open_store(f"{url.replace('etcd', scheme, 1)}/cluster?{parameters}") as store:
        yield store


async def until_done(call: Callable[[], Awaitable[Any]]) -> Any:
    """Repeat ``call`` while a leader is elected."""
    deadline = time.monotonic() + 20
    while True:
        try:
            return await call()
        except StoreUnavailableError:
            if time.monotonic() > deadline:
                raise
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_saves_go_on_when_the_leader_is_killed(servers: EtcdCluster, scheme: str) -> None:
    async with opened(servers.url, scheme) as store:
        acknowledged = {}
        await store.save("long", LONG)
        for number in range(30):
            if number == 10:
                leader = await asyncio.to_thread(servers.leader)
                await asyncio.to_thread(leader.down)
            await until_done(lambda number=number: store.save(f"{number}", f"{number}"))
            acknowledged[f"{number}"] = f"{number}"
            assert await until_done(lambda number=number: store.load(f"{number}")) == f"{number}"
        version = (await store.load_versioned("0")).version
        version = await store.save_if("0", "swapped", expected=version)
        await asyncio.to_thread(leader.up)
    # Each member by itself has all of it.
    for member in servers.members:
        async with opened(member.url, scheme) as store:
            assert await until_done(lambda store=store: store.load("long")) == LONG
            for key, text in acknowledged.items():
                assert await store.load(key) == ("swapped" if key == "0" else text)
            assert (await store.load_versioned("0")).version == version


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_a_member_without_a_majority_is_left_for_one_that_has_it(servers: EtcdCluster, scheme: str) -> None:
    a, b, c = servers.members
    async with opened(servers.url, scheme, "timeout=6") as store, opened(a.url, scheme, "timeout=6") as alone:
        await until_done(lambda: store.save("k", "1"))
        await asyncio.to_thread(b.down)
        await asyncio.to_thread(c.down)
        for call in (alone.load("k"), alone.save("k", "2"), store.load("k"), store.save("k", "2")):
            with pytest.raises(StoreUnavailableError):
                await call
        await asyncio.gather(asyncio.to_thread(b.up), asyncio.to_thread(c.up))
        await until_done(lambda: store.save("k", "3"))
        assert await until_done(lambda: alone.load("k")) == "3"


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_hosts_that_refuse_or_do_not_answer_are_passed_over(etcd_server: Server, scheme: str) -> None:
    for hosts in (f"127.0.0.1:{free_port()},nowhere.invalid", "nowhere.invalid"):
        async with opened(etcd_server.url.replace("://", f"://{hosts},"), scheme, "timeout=18") as store:
            await store.save("k", "1")
            assert await store.load("k") == "1"
            began = time.monotonic()
            await store.delete("k")
            # To connect may take three seconds at each.
            assert time.monotonic() - began < 2.5
    # The system accepts, and nobody ever reads. gRPC says hello first; over HTTP the save may have been read.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hosts = f"127.0.0.1:{silent.getsockname()[1]}"
        async with opened(etcd_server.url.replace("://", f"://{hosts},"), scheme, "timeout=6") as store:
            assert await store.load("k") is None
        async with opened(etcd_server.url.replace("://", f"://{hosts},"), scheme, "timeout=6") as store:
            if scheme == "etcd+http":
                with pytest.raises(StoreUnavailableError, match=f"at {hosts}: "):
                    await store.save("k", "1")
            await store.save("k", "1")
            await store.delete("k")


async def saved_anew(store: EtcdCheckpointStore, key: str) -> VersionedJson:
    """Return what is there, with a new version: a compare-and-swap that is still on its way comes too late."""
    while True:
        found = await store.load_versioned(key)
        assert found is not None
        with contextlib.suppress(StoreConflictError):
            return VersionedJson(found.json, await store.save_if(key, found.json, expected=found.version))


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_no_compare_and_swap_is_lost_or_made_twice_while_connections_break(
    etcd_server: Server, scheme: str
) -> None:
    host, port = etcd_server.url.removeprefix("etcd://").split(":")
    async with FaultProxy(host, int(port)) as one, FaultProxy(host, int(port)) as two:
        url = f"etcd://127.0.0.1:{one.port},127.0.0.1:{two.port}"
        async with opened(url, scheme, "timeout=6") as store, opened(etcd_server.url, scheme) as witness:
            await witness.delete("count")
            version = await until_done(lambda: store.save_if("count", "0", expected=None))
            count = 0
            for number in range(60):
                proxy = (one, two)[number % 2]
                await (proxy.reset() if number % 3 else proxy.cut_reply(1))
                try:
                    version = await store.save_if("count", f"{count + 1}", expected=version)
                except StoreUnavailableError:
                    await until_done(lambda: store.load("count"))
                    found = await saved_anew(witness, "count")
                    assert found.json in {f"{count}", f"{count + 1}"}
                    count, version = int(found.json), found.version
                except StoreConflictError as exc:
                    raise AssertionError("its own write was made twice") from exc
                else:
                    count += 1
                for each in (one, two):
                    await each.pass_through()
                assert await witness.load("count") == f"{count}"
            await witness.delete("count")


async def test_a_host_that_has_hung_is_noticed_by_keepalive(etcd_server: Server) -> None:
    host, port = etcd_server.url.removeprefix("etcd://").split(":")
    async with FaultProxy(host, int(port)) as proxy:
        url = f"etcd://127.0.0.1:{proxy.port}"
        async with opened(url, "etcd", "keepalive=1&timeout=20") as store:
            await store.load("k")
            await proxy.black_hole()
            began = time.monotonic()
            with pytest.raises(StoreUnavailableError):
                await store.load("k")
            assert time.monotonic() - began < 10
            await proxy.pass_through()
            assert await until_done(lambda: store.load("k")) is None


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_idle_connections_that_have_gone_silent_cost_one_operation(etcd_server: Server, scheme: str) -> None:
    host, port = etcd_server.url.removeprefix("etcd://").split(":")
    async with (
        FaultProxy(host, int(port)) as proxy,
        opened(f"etcd://127.0.0.1:{proxy.port}", scheme, "timeout=2") as store,
    ):
        await store.save("k", "v")
        for call in (store.load("k"), store.save("other", "v"), store.delete("other")):
            await asyncio.gather(*(store.load("k") for _ in range(5)))
            await proxy.half_open()
            with pytest.raises(StoreUnavailableError, match="no answer"):
                await call
            assert await asyncio.gather(*(store.load("k") for _ in range(5))) == ["v"] * 5
        await store.delete("k")


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_a_call_too_slow_for_its_timeout_ends_no_other(etcd_server: Server, scheme: str) -> None:
    host, port = etcd_server.url.removeprefix("etcd://").split(":")
    async with (
        FaultProxy(host, int(port)) as proxy,
        opened(f"etcd://127.0.0.1:{proxy.port}", scheme, "timeout=1") as store,
    ):
        await store.save("k", "v")
        accepted = proxy.accepted
        slow = asyncio.create_task(store._connections.read(lambda _: asyncio.sleep(60)))
        while not slow.done():
            assert await store.load("k") == "v"
        with pytest.raises(TimeoutError):
            await slow
        assert await store.load("k") == "v"
        assert proxy.accepted == accepted
        await store.delete("k")


async def test_a_host_that_does_not_answer_in_its_share_is_distrusted() -> None:
    a, b = Endpoint("a", 60.0), Endpoint("b")
    await cluster(a, b, timeout=0.3).range(Range(b"k"))
    assert (a.distrusted, b.distrusted) == (1, 0)


async def test_a_closed_store_has_no_connection_although_calls_have_failed(etcd_server: Server) -> None:
    host, port = etcd_server.url.removeprefix("etcd://").split(":")
    gc.collect()
    gc.disable()
    # Kept, as a caller may, with all that their tracebacks refer to.
    kept: list[StoreUnavailableError] = []
    try:
        async with FaultProxy(host, int(port)) as proxy:
            async with opened(f"etcd://127.0.0.1:{proxy.port}", "etcd", "timeout=2") as store:
                await store.save("k", "v")
                async with asyncio.timeout(20):
                    # gRPC also sends frames of its own, and now and then it is one of those that is cut.
                    while not kept:
                        await proxy.cut_reply(0)
                        try:
                            await store.save("k", "v")
                        except StoreUnavailableError as exc:
                            kept.append(exc)
                await until_done(lambda: store.load("k"))
                await proxy.half_open()
                with pytest.raises(StoreUnavailableError) as silent:
                    await store.save("k", "v")
                kept.append(silent.value)
                await store.delete("k")
            async with asyncio.timeout(5):
                while proxy.connections:
                    await asyncio.sleep(0.01)
    finally:
        gc.enable()


async def test_a_connection_that_lost_its_step_is_left(etcd_server: Server) -> None:
    host, port = etcd_server.url.removeprefix("etcd://").split(":")
    async with (
        FaultProxy(host, int(port)) as proxy,
        opened(f"etcd://127.0.0.1:{proxy.port}", "etcd", "timeout=1") as store,
    ):
        await store.save("k", "1")
        await proxy.black_hole()
        await asyncio.gather(*(store.load("k") for _ in range(3)), return_exceptions=True)
        # What was swallowed is missing in the middle of a connection that is still open.
        await proxy.pass_through()
        assert await until_done(lambda: store.load("k")) == "1"
        await store.delete("k")
