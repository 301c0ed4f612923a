"""Replicas, sentinels, clusters and TLS, with real servers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import ssl
import time
from typing import TYPE_CHECKING

import pytest
import trustme
from redis.asyncio import Redis
from redis.asyncio.sentinel import Sentinel as SentinelClient
from redis.crc import key_slot

from dagonizer.errors import StoreAccessError, StoreConflictError, StoreError, StoreUnavailableError
from dagonizer.url import Host, StoreURL
from dagonizer_redis import RedisCheckpointStore, RedisConfig
from dagonizer_redis._topology import Connector, OwnLinks
from dagonizer_test_servers import free_port
from dagonizer_test_servers.redis import Cluster, Replicated, Sentinel, Valkey, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path

    from dagonizer_test_servers.redis import Node


def opened(url: str) -> RedisCheckpointStore:
    return RedisCheckpointStore(RedisConfig.from_url(StoreURL.parse(url)))


async def exercise(store: RedisCheckpointStore) -> None:
    """Do everything with some keys, which are in every part of a cluster."""
    keys = [f"{number}" for number in range(30)]
    versions = {key: await store.save_if(key, "1", expected=None) for key in keys}
    for key in keys:
        await store.save_if(key, "2", expected=versions[key])
        with pytest.raises(StoreConflictError):
            await store.save_if(key, "3", expected=versions[key])
        await store.save(f"{key} too", key)
    for key in keys:
        found = await store.load_versioned(key)
        assert found is not None
        assert found.json == "2"
        assert await store.load(f"{key} too") == key
    assert sorted([key async for key in store.list_keys()]) == sorted(keys + [f"{key} too" for key in keys])
    for key in keys:
        await store.delete(key)
    assert sorted([key async for key in store.list_keys()]) == sorted(f"{key} too" for key in keys)


async def eventually(operation: Callable[[], Awaitable[object]]) -> None:
    """Repeat what the store says is unavailable, and nothing else."""
    deadline = time.monotonic() + 20
    while True:
        try:
            await operation()
        except StoreUnavailableError:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
        else:
            return


# Replicas that must acknowledge.


def writes(store: RedisCheckpointStore) -> dict[str, Callable[[], Awaitable[object]]]:
    return {
        "save": lambda: store.save("k", "new"),
        "create": lambda: store.save_if("other", "new", expected=None),
        "delete": lambda: store.delete("k"),
    }


async def test_a_write_waits_for_replicas_and_raises_when_too_few_acknowledge() -> None:
    with Replicated(sentinels=0) as servers:
        replica = servers.replicas[0]
        async with opened(f"{servers.primary.url}?wait=1") as store:
            await exercise(store)
            await store.save("k", "old")
            assert replica.ask("GET", "dagonizer:k") == "$3\r\nold\r\n"
            version = await store.save_if("cas", "old", expected=None)
            os.kill(replica.pid, signal.SIGSTOP)
            async with opened(f"{servers.primary.url}?wait=1&timeout=2") as hasty:
                for write in (*writes(hasty).values(), lambda: hasty.save_if("cas", "new", expected=version)):
                    with pytest.raises(StoreUnavailableError, match="only 0 of 1 replicas"):
                        await write()
                # It is gone here, but the replica still has it.
                with pytest.raises(StoreUnavailableError, match="only 0 of 1 replicas"):
                    await hasty.delete("k")
                with pytest.raises(StoreConflictError):
                    await hasty.save_if("cas", "newer", expected=version)
                assert await hasty.load("cas") == "new", "the primary has it nevertheless"
            os.kill(replica.pid, signal.SIGCONT)
            await store.save("k", "newer")
            assert replica.ask("GET", "dagonizer:k") == "$5\r\nnewer\r\n"
            for _ in range(2):
                await store.delete("k")
                assert await store.load("k") is None
                assert replica.ask("GET", "dagonizer:k") == "$-1\r\n"
            await store.save("k", "newest")
        async with opened(f"{servers.primary.url}?wait=2&timeout=1") as store:
            with pytest.raises(StoreUnavailableError, match="only 1 of 2 replicas"):
                await store.save("k", "newest")


async def test_the_least_privileges_to_wait(grants: dict[str, str]) -> None:
    commands = f"{grants['always']} {grants['to list keys']} {grants['with `wait`']}"
    user = ("--user", "dagonizer", "on", ">pw", "resetchannels", "~dagonizer:*", *commands.split())
    with Replicated(*user, sentinels=0) as servers:
        async with opened(f"redis://dagonizer:pw@127.0.0.1:{servers.primary.port}?wait=1") as store:
            await exercise(store)
        assert servers.primary.ask("ACL", "LOG") == "*0\r\n"


# Sentinels.


async def test_a_failover_is_followed_and_loses_nothing_that_replicas_acknowledged() -> None:
    with Replicated(replicas=2, sentinels=3) as servers:
        async with opened(f"{servers.url}?wait=1&timeout=5") as store:
            await exercise(store)
            await asyncio.gather(*(store.save(f"{number}", "kept") for number in range(20)))
            old = servers.primary
            await asyncio.to_thread(old.down)
            with pytest.raises(StoreUnavailableError):
                await store.save("k", "while nobody is primary")
            await eventually(lambda: store.save("k", "afterwards"))
            assert servers.named() != old.port
            for number in range(20):
                assert await store.load(f"{number}") == "kept"
            # Until all of them know it, a sentinel may name the old one, and a replica follow it.
            await asyncio.to_thread(until, lambda: agree(servers))
            # When it comes back it believes to be a primary, until the sentinels have seen it.
            await asyncio.to_thread(old.up)
            for number in range(20):
                await store.save(f"{number}", "new")
                async with opened(servers.url) as other:
                    assert await other.load(f"{number}") == "new"
            assert old.ask("GET", "dagonizer:1") == "$4\r\nkept\r\n"


def agree(servers: Replicated) -> bool:
    named = {server.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", servers.service) for server in servers.sentinels}
    roles = [server.ask("INFO", "replication") for server in servers.replicas]
    return len(named) == 1 and sum(f"master_port:{servers.named()}" in role for role in roles) == 1


async def test_a_refusal_as_read_only_asks_the_sentinels_again() -> None:
    with Replicated(sentinels=1) as servers:
        async with opened(f"{servers.url}?timeout=5") as store:
            await store.save("k", "old")
            # By hand, so that its clients are not disconnected.
            assert servers.primary.ask("REPLICAOF", "127.0.0.1", str(servers.replicas[0].port)) == "+OK\r\n"
            with pytest.raises(StoreUnavailableError, match="is not a primary"):
                await store.save("k", "new")
            assert servers.primary.ask("REPLICAOF", "NO", "ONE") == "+OK\r\n"
            await eventually(lambda: store.save("k", "new"))
            assert await store.load("k") == "new"


async def test_sentinels_that_are_gone_hang_or_know_nothing_are_passed_over() -> None:
    with Replicated(sentinels=1) as servers, socket.socket() as silent, Valkey() as other:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        hosts = f"127.0.0.1:{free_port()},127.0.0.1:{silent.getsockname()[1]},127.0.0.1:{other.port},{servers.hosts}"
        async with opened(f"redis+sentinel://{hosts}/{servers.service}?timeout=10") as store:
            await store.save("k", "v")
            started = time.monotonic()
            await asyncio.gather(*(store.load("k") for _ in range(10)))
            # To ask the silent one takes two seconds.
            assert time.monotonic() - started < 1.8, "the one that answered is asked first from then on"
        async with opened(f"{servers.url}x") as store:
            with pytest.raises(StoreUnavailableError, match="knows no service 'checkpointsx'"):
                await store.load("k")


async def test_credentials_of_sentinels_and_the_least_privileges_with_them(grants: dict[str, str]) -> None:
    commands = f"{grants['always']} {grants['to list keys']} {grants['with sentinels']}"
    user = ("--user", "dagonizer", "on", ">pw", "resetchannels", "~dagonizer:*", *commands.split())
    watcher = f"user watcher on >sentinelpw resetchannels {grants['at the sentinels themselves']}"
    with Replicated(*user, sentinel_options=(watcher,)) as servers:
        url = f"redis+sentinel://dagonizer:pw@{servers.hosts}/{servers.service}?sentinel_username=watcher"
        async with opened(f"{url}&sentinel_password=sentinelpw") as store:
            await exercise(store)
        async with opened(f"{url}&sentinel_password=wrong") as store:
            with pytest.raises(StoreAccessError, match="password"):
                await store.load("k")
        assert servers.primary.ask("ACL", "LOG") == "*0\r\n"


async def test_a_client_of_the_drivers_own_sentinel() -> None:
    with Replicated() as servers:
        sentinel = SentinelClient([("127.0.0.1", server.port) for server in servers.sentinels])
        client = sentinel.master_for(servers.service)
        async with RedisCheckpointStore(client) as store:
            await exercise(store)
        await client.aclose()
        for known in sentinel.sentinels:
            await known.aclose()


# Clusters.


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster() as cluster:
        yield cluster


async def test_keys_are_in_all_parts_of_a_cluster(cluster: Cluster, grants: dict[str, str]) -> None:
    commands = f"{grants['always']} {grants['to list keys']} {grants['in a cluster']}"
    for node in cluster.nodes:
        node.ask("FLUSHALL")
        node.ask("ACL", "LOG", "RESET")
        node.ask("ACL", "SETUSER", "dagonizer", "on", ">pw", "resetchannels", "~dagonizer:*", *commands.split())
    async with opened(f"redis+cluster://dagonizer:pw@127.0.0.1:{cluster.nodes[0].port}") as store:
        await exercise(store)
    for node in cluster.nodes:
        assert int(node.ask("DBSIZE")[1:]) > 0
        assert node.ask("ACL", "LOG") == "*0\r\n"


async def test_a_key_is_found_while_its_slot_moves_and_after(cluster: Cluster) -> None:
    for node in cluster.nodes:
        node.ask("FLUSHALL")
    key = "moving"
    slot = str(key_slot(f"dagonizer:{key}".encode()))
    source, target = owner(cluster, slot), next(node for node in cluster.nodes if node is not owner(cluster, slot))
    ids = {node: node.ask("CLUSTER", "MYID").split("\r\n")[1] for node in cluster.nodes}
    async with opened(f"{cluster.url}?timeout=10") as store:
        await store.save(key, "old")
        assert target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source]) == "+OK\r\n"
        assert source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[target]) == "+OK\r\n"
        assert await store.load(key) == "old", "it is still at its source"
        name = f"dagonizer:{key}"
        assert source.ask("MIGRATE", "127.0.0.1", str(target.port), name, "0", "5000") == "+OK\r\n"
        found = await store.load_versioned(key)
        assert found is not None
        version = await store.save_if(key, "new", expected=found.version)
        with pytest.raises(StoreConflictError):
            await store.save_if(key, "newer", expected=found.version)
        await store.save_if(key, "newer", expected=version)
        assert source.ask("EXISTS", name).startswith("-ASK")
        await store.delete(key)
        await store.save_if(key, "again", expected=None)
        assert [listed async for listed in store.list_keys()] == [key]
        for node in (target, source, *cluster.nodes):
            assert node.ask("CLUSTER", "SETSLOT", slot, "NODE", ids[target]) == "+OK\r\n"
        assert source.ask("EXISTS", name).startswith("-MOVED")
        assert await store.load(key) == "again"
        await store.save(key, "moved")
        assert target.ask("GET", name) == "$5\r\nmoved\r\n"
        assert [listed async for listed in store.list_keys()] == [key]


async def test_a_cluster_without_all_slots_and_then_with_them() -> None:
    with Valkey("--cluster-enabled", "yes", "--cluster-port", str(free_port())) as alone:
        async with opened(f"redis+cluster://127.0.0.1:{alone.port}") as store:
            with pytest.raises(StoreUnavailableError, match="no node serves the hash slot"):
                await store.save("k", "v")
            with pytest.raises(StoreUnavailableError, match="no node serves 16384 of the hash slots"):
                await anext(store.list_keys())
            alone.ask("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
            await eventually(lambda: store.save("k", "v"))
            assert await store.load("k") == "v"


async def test_a_node_that_knows_no_slots_is_passed_over() -> None:
    options = ("--cluster-enabled", "yes", "--cluster-port")
    with Valkey(*options, str(free_port())) as empty, Valkey(*options, str(free_port())) as full:
        full.ask("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
        hosts = f"127.0.0.1:{empty.port},127.0.0.1:{full.port}"
        async with opened(f"redis+cluster://{hosts}") as store:
            await eventually(lambda: store.save("k", "v"))
            assert await store.load("k") == "v"
            assert [key async for key in store.list_keys()] == ["k"]
            # Of those that do not know all, the one that knows most is believed.
            full.ask("CLUSTER", "DELSLOTS", "0")
            full.ask("CONFIG", "SET", "cluster-require-full-coverage", "no")
            async with opened(f"redis+cluster://{hosts}") as other:
                await eventually(lambda: loaded(other, "k", "v"))
                with pytest.raises(StoreUnavailableError, match="no node serves 1 of the hash slots"):
                    await anext(other.list_keys())


async def test_nodes_that_left_the_cluster_are_forgotten() -> None:
    options = ("--cluster-enabled", "yes", "--cluster-port")
    with Valkey(*options, str(free_port())) as seed, Valkey(*options, str(free_port())) as later:
        seed.ask("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
        async with opened(f"redis+cluster://127.0.0.1:{seed.port}") as store:
            await eventually(lambda: store.save("k", "v"))
            links = await store._connections.read(lambda there: asyncio.sleep(0, there._links))
            assert set(links) == {Host("127.0.0.1", seed.port)}
            links[Host("127.0.0.1", later.port)] = gone = OwnLinks(
                lambda: Connector(RedisConfig())(Host("127.0.0.1", later.port)), 1
            )
            async with gone.link():
                pass
            assert "cmd=client" in later.ask("CLIENT", "LIST")
            assert [key async for key in store.list_keys()] == ["k"]
            assert set(links) == {Host("127.0.0.1", seed.port)}
            await asyncio.to_thread(until, lambda: len(later.ask("CLIENT", "LIST").split("id=")) == 2)


async def test_nodes_that_do_not_answer_are_passed_over(cluster: Cluster) -> None:
    hosts = f"127.0.0.1:{free_port()},127.0.0.1:{cluster.nodes[2].port}"
    async with opened(f"redis+cluster://{hosts}") as store:
        await store.save("k", "v")
        assert await store.load("k") == "v"


async def test_a_failover_in_a_cluster_is_followed_and_replicas_are_waited_for() -> None:
    with Cluster(replicas=1) as cluster:
        async with opened(f"{cluster.url}?wait=1&timeout=5") as store:
            await exercise(store)
            slot = str(key_slot(b"dagonizer:k"))
            await store.save("k", "old")
            old = owner(cluster, slot)
            await asyncio.to_thread(old.down)
            with pytest.raises(StoreUnavailableError):
                await store.save("k", "new")
            async with opened(f"{cluster.url}?timeout=5") as other:
                # No replica is left to wait for.
                await eventually(lambda: other.save("k", "new"))
                assert await other.load("k") == "new"
            await eventually(lambda: loaded(store, "k", "new"))


async def loaded(store: RedisCheckpointStore, key: str, expected: str) -> None:
    assert await store.load(key) == expected


def owner(cluster: Cluster, slot: str) -> Node:
    """Return the node that answers for ``slot``."""
    for node in cluster.nodes:
        if not node.ask("CLUSTER", "COUNTKEYSINSLOT", slot).startswith("-") and is_owner(node, int(slot)):
            return node
    raise AssertionError(slot)


def is_owner(node: Node, slot: int) -> bool:
    mine = next(line for line in node.ask("CLUSTER", "NODES").splitlines() if "myself" in line)
    ranges = [word.split("-") for word in mine.split()[8:] if word[0].isdigit()]
    return any(int(bounds[0]) <= slot <= int(bounds[-1]) for bounds in ranges)


# TLS.


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@contextlib.asynccontextmanager
async def front(
    backend: int, authority: trustme.CA, name: str = "127.0.0.1", *, demanding: bool = False
) -> AsyncIterator[int]:
    """Listen for TLS in front of ``backend``, whose own server was built without, and let plain connections pass.

    Yield the port.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(name).configure_cert(context)
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED if demanding else ssl.CERT_NONE
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", backend)
            await asyncio.gather(pump(reader, there_writer), pump(there_reader, writer))

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def accept(connection: socket.socket) -> None:
        await readable(connection)
        is_tls = connection.recv(1, socket.MSG_PEEK) == b"\x16"

        def protocol() -> asyncio.StreamReaderProtocol:
            return asyncio.StreamReaderProtocol(asyncio.StreamReader(), serve)

        with contextlib.suppress(OSError):
            await loop.connect_accepted_socket(protocol, connection, ssl=context if is_tls else None)

    async def readable(connection: socket.socket) -> None:
        ready = asyncio.Event()
        loop.add_reader(connection, ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_reader(connection)

    async def listen() -> None:
        while True:
            connection, _ = await loop.sock_accept(listener)
            connection.setblocking(False)
            task = asyncio.create_task(accept(connection))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        listening = asyncio.create_task(listen())
        try:
            yield listener.getsockname()[1]
        finally:
            for task in (listening, *tasks):
                task.cancel()
            await asyncio.gather(listening, *tasks, return_exceptions=True)
            # What is connected ends with the store that was closed before.
            await asyncio.sleep(0.05)


@pytest.fixture
def files(authority: trustme.CA, tmp_path: Path) -> Path:
    client = authority.issue_cert("client.invalid")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    trustme.CA().cert_pem.write_to_path(tmp_path / "other-ca.pem")
    client.private_key_pem.write_to_path(tmp_path / "key.pem")
    client.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    client.private_key_and_cert_chain_pem.write_to_path(tmp_path / "both.pem")
    return tmp_path


async def test_tls(authority: trustme.CA, files: Path) -> None:
    with Valkey("--requirepass", "pw") as server:
        async with front(server.port, authority) as port:
            async with opened(f"rediss://:pw@127.0.0.1:{port}?tls_ca={files}/ca.pem") as store:
                await exercise(store)
                large = "x" * 5_000_000
                await store.save("large", large)
                assert await store.load("large") == large
            for wrong in (f"tls_ca={files}/other-ca.pem", "tls_verify=full", f"tls_ca={files}/none.pem"):
                async with opened(f"rediss://:pw@127.0.0.1:{port}?{wrong}&timeout=5") as store:
                    with pytest.raises(StoreAccessError, match=r"check tls_ca|tls_ca is .* cannot be read"):
                        await store.load("large")
            async with opened(f"rediss://:pw@127.0.0.1:{port}?tls_verify=none") as store:
                assert await store.load("large") == large


async def test_the_name_in_the_certificate(authority: trustme.CA, files: Path) -> None:
    with Valkey() as server:
        async with front(server.port, authority, "other.invalid") as port:
            url = f"rediss://127.0.0.1:{port}?tls_ca={files}/ca.pem"
            async with opened(url) as store:
                with pytest.raises(StoreAccessError, match="check tls_ca"):
                    await store.save("k", "v")
            async with opened(f"{url}&tls_verify=ca") as store:
                await store.save("k", "v")


async def test_a_clients_certificate(authority: trustme.CA, files: Path) -> None:
    with Valkey() as server:
        async with front(server.port, authority, demanding=True) as port:
            url = f"rediss://127.0.0.1:{port}?tls_ca={files}/ca.pem"
            for certificate in (f"&tls_cert={files}/cert.pem&tls_key={files}/key.pem", f"&tls_cert={files}/both.pem"):
                async with opened(url + certificate) as store:
                    await exercise(store)
                    await asyncio.gather(*(store.delete(key) for key in [key async for key in store.list_keys()]))
            async with opened(url) as store:
                with pytest.raises(StoreError, match="could not load"):
                    await store.load("k")


async def test_a_cluster_over_tls(authority: trustme.CA, files: Path, cluster: Cluster) -> None:
    async with contextlib.AsyncExitStack() as stack:
        ports = [await stack.enter_async_context(front(node.port, authority)) for node in cluster.nodes]
        for node, port in zip(cluster.nodes, ports, strict=True):
            node.ask("FLUSHALL")
            node.ask("CONFIG", "SET", "cluster-announce-port", str(port))
        known = [f":{port}@" for port in ports]
        for node in cluster.nodes:
            await asyncio.to_thread(until, lambda node=node: all(k in node.ask("CLUSTER", "NODES") for k in known))
        try:
            async with opened(f"redis+cluster://127.0.0.1:{ports[0]}?tls=true&tls_ca={files}/ca.pem") as store:
                await exercise(store)
        finally:
            for node in cluster.nodes:
                node.ask("CONFIG", "SET", "cluster-announce-port", "0")


async def test_sentinels_over_tls(authority: trustme.CA, files: Path) -> None:
    with Valkey() as server:
        async with front(server.port, authority) as port:
            sentinel = await asyncio.to_thread(Sentinel, port, 1, "s", ())
            with sentinel:
                async with front(sentinel.port, authority) as sentinel_port:
                    url = f"redis+sentinel://127.0.0.1:{sentinel_port}/s?tls=true&tls_ca={files}/ca.pem"
                    async with opened(url) as store:
                        await exercise(store)


async def test_a_caller_may_give_a_client_with_tls(authority: trustme.CA, files: Path) -> None:
    with Valkey() as server:
        async with front(server.port, authority) as port:
            client = Redis(port=port, host="127.0.0.1", ssl=True, ssl_ca_certs=f"{files}/ca.pem")
            async with RedisCheckpointStore(client) as store:
                await exercise(store)
            await client.aclose()
