"""What is in the database, and what only a real server, a broken connection or a caller's client shows."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

import pytest
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from dagonizer.errors import (
    InvalidKeyError,
    InvalidValueError,
    StoreAccessError,
    StoreClosedError,
    StoreConflictError,
    StoreCorruptedError,
    StoreUnavailableError,
)
from dagonizer.url import Host, StoreURL
from dagonizer_conformance import Harness, run
from dagonizer_conformance.proxy import FaultProxy
from dagonizer_redis import RedisCheckpointStore, RedisConfig
from dagonizer_redis._store import _version
from dagonizer_redis._topology import Connector, OwnLinks
from dagonizer_test_servers.redis import Valkey

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


MIB = 1 << 20


@pytest.fixture(scope="module")
def redis_server() -> Iterator[Valkey]:
    """A server of this module's own: its databases are emptied, so it must not be one that the environment names."""
    with Valkey() as server:
        yield server


@pytest.fixture
async def client(redis_server: Valkey) -> AsyncIterator[Redis]:
    client = Redis.from_url(redis_server.url)
    await client.flushall()
    yield client
    await client.aclose()


@pytest.fixture
async def store(redis_server: Valkey, client: Redis) -> AsyncIterator[RedisCheckpointStore]:
    async with opened(redis_server.url) as store:
        yield store


@pytest.fixture
def server() -> Iterator[Valkey]:
    with Valkey() as server:
        yield server


def opened(url: str) -> RedisCheckpointStore:
    return RedisCheckpointStore(RedisConfig.from_url(StoreURL.parse(url)))


async def listed(store: RedisCheckpointStore, prefix: str = "") -> list[str]:
    return sorted([key async for key in store.list_keys(prefix)])


def test_the_example_of_the_readme_runs(readme: str, redis_server: Valkey) -> None:
    (source,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert "redis://localhost:6379" in source
    source = source.replace("redis://localhost:6379", redis_server.url)
    subprocess.run([sys.executable, "-W", "error", "-c", source], check=True)


# What is in the database.


async def test_a_plain_get_shows_the_json(store: RedisCheckpointStore, client: Redis) -> None:
    await store.save("run 1:é", '{"a": "é"}')
    assert await client.get("dagonizer:run 1:é") == '{"a": "é"}'.encode()
    assert await client.keys("*") == ["dagonizer:run 1:é".encode()], "nothing beside the data"


async def test_a_save_takes_away_an_expiry(store: RedisCheckpointStore, client: Redis) -> None:
    await client.set("dagonizer:k", "v", ex=100)
    await store.save("k", "w")
    assert await client.ttl("dagonizer:k") == -1
    await client.expire("dagonizer:k", 100)
    found = await store.load_versioned("k")
    assert found is not None
    await store.save_if("k", "x", expected=found.version)
    assert await client.ttl("dagonizer:k") == -1


async def test_no_two_pairs_of_prefix_and_key_meet(redis_server: Valkey, client: Redis) -> None:
    prefixes = ["", ":", "a", "a:", "a:b", "a%3Ab", "a%b", "A", "a*", "[a]", "é", "a\\", "a^-?", " "]
    keys = ["c", "b:c", ":c", "a:b:c", "3Ab:c", "%3Ab:c"]
    stores = {
        prefix: RedisCheckpointStore(RedisConfig.from_url(StoreURL.parse(redis_server.url)), prefix=prefix)
        for prefix in prefixes
    }
    for prefix, store in stores.items():
        for key in keys:
            await store.save(key, f"{prefix} {key}")
    assert await client.dbsize() == len(prefixes) * len(keys)
    for prefix, store in stores.items():
        assert [await store.load(key) for key in keys] == [f"{prefix} {key}" for key in keys]
        assert await listed(store) == sorted(keys)
        assert await listed(store, "b:") == ["b:c"]
        await store.aclose()


async def test_compare_and_swap(store: RedisCheckpointStore) -> None:
    with pytest.raises(StoreConflictError):
        await store.save_if("k", "0", expected="x")
    first = await store.save_if("k", "1", expected=None)
    assert first == hashlib.sha256(b"1").hexdigest()
    with pytest.raises(StoreConflictError):
        await store.save_if("k", "2", expected=None)
    second = await store.save_if("k", "2", expected=first)
    with pytest.raises(StoreConflictError):
        await store.save_if("k", "3", expected=first)
    await store.delete("k")
    with pytest.raises(StoreConflictError):
        await store.save_if("k", "3", expected=second)
    await store.save("k", "other")
    with pytest.raises(StoreConflictError):
        await store.save_if("k", "3", expected=second)
    assert await store.load("k") == "other"


async def test_a_large_value_is_stored_as_a_frame_and_loads_without_the_setting(
    redis_server: Valkey, store: RedisCheckpointStore, client: Redis
) -> None:
    text = '{"päth": "x"}' * 20_000
    async with opened(f"{redis_server.url}?compression=zstd") as compressing:
        for key, save in (("k", compressing.save), ("l", partial(compressing.save_if, expected=None))):
            await save(key, text)
            frame = await client.get(f"dagonizer:{key}")
            assert frame.startswith(b"\x28\xb5\x2f\xfd")
            assert len(frame) < len(text.encode()) / 10
            assert await store.load(key) == await compressing.load(key) == text
        await compressing.save("small", "{}")
        assert await client.get("dagonizer:small") == b"{}"
    await client.set("dagonizer:k", frame[:-1] + bytes([frame[-1] ^ 1]))
    for load in (store.load, store.load_versioned):
        with pytest.raises(StoreCorruptedError, match="frame is damaged"):
            await load("k")


async def test_compare_and_swap_between_clients_of_which_one_compresses(
    redis_server: Valkey, store: RedisCheckpointStore, client: Redis
) -> None:
    one, other, texts = store, RedisCheckpointStore(client, compression="zstd"), ["a" * 5_000, "b" * 5_000]
    version = await one.save_if("k", texts[0], expected=None)
    for _ in range(4):
        found = await other.load_versioned("k")
        assert found is not None
        assert (found.json, found.version) == (texts[0], version)
        stale, version = version, await other.save_if("k", texts[1], expected=version)
        with pytest.raises(StoreConflictError):
            await one.save_if("k", texts[0], expected=stale)
        assert await one.load("k") == texts[1]
        one, other, texts = other, one, texts[::-1]


async def test_a_swap_sees_a_change_between_its_look_and_its_save(
    redis_server: Valkey, store: RedisCheckpointStore, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = await store.save_if("k", "old", expected=None)
    looked = asyncio.Event()
    go_on = asyncio.Event()

    async def slow(value: bytes) -> str:
        if value == b"old":
            looked.set()
            await go_on.wait()
        return hashlib.sha256(value).hexdigest()

    monkeypatch.setattr("dagonizer_redis._store._version", slow)
    for change in ("other", "old"):
        saving = asyncio.create_task(store.save_if("k", f"after {change}", expected=version))
        await looked.wait()
        await client.set("dagonizer:k", change)
        go_on.set()
        if change == "other":
            with pytest.raises(StoreConflictError):
                await saving
            await client.set("dagonizer:k", "old")
        else:
            await saving
            assert await store.load("k") == "after old"
        looked.clear()
        go_on.clear()


async def test_hashing_needs_no_thread_and_leaves_others_their_turn(store: RedisCheckpointStore) -> None:
    executor, release = ThreadPoolExecutor(1), threading.Event()
    loop = asyncio.get_running_loop()
    loop.set_default_executor(executor)
    busy = executor.submit(release.wait)
    text, turns = "x" * (16 * MIB), 0

    async def take_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    try:
        async with asyncio.timeout(20):
            version = await store.save_if("k", text, expected=None)
            found = await store.load_versioned("k")
            assert found is not None
            assert found.version == version == hashlib.sha256(text.encode()).hexdigest()
            await store.save_if("k", "y", expected=version)
        others = asyncio.create_task(take_turns())
        assert await _version(text.encode()) == version
        others.cancel()
        assert turns > 50
        assert await _version(b"") == hashlib.sha256(b"").hexdigest()
    finally:
        release.set()
        busy.result()


async def test_a_listing_passes_over_what_is_no_key(store: RedisCheckpointStore, client: Redis) -> None:
    await store.save("k", "v")
    for name in (
        b"dagonizer:",
        b"dagonizer:\xff",
        b"dagonizer:a\0",
        b"dagonizer:" + b"x" * 1025,
        b"dagonizer",
        b"other",
    ):
        await client.set(name, "v")
    assert await listed(store) == ["k"]


async def test_a_listing_is_complete_and_exact_while_the_table_of_the_server_is_resized(
    store: RedisCheckpointStore, client: Redis
) -> None:
    keys = {f"{number}" for number in range(3_000)}
    await client.mset({f"dagonizer:{key}": "v" for key in keys})
    seen = []
    async for key in store.list_keys():
        if len(seen) % 600 == 0:
            await client.mset({f"dagonizer:new {len(seen)} {number}": "v" for number in range(3_000)})
        if len(seen) == 2_000:
            await client.delete(*[f"dagonizer:new 0 {number}" for number in range(3_000)])
        seen.append(key)
    assert len(seen) == len(set(seen))
    assert keys <= set(seen)


async def test_a_listing_goes_on_after_the_server_was_started_again(server: Valkey) -> None:
    async with opened(server.url) as store, Redis(port=server.port) as client:
        keys = {f"{number}" for number in range(3_000)}
        await client.mset({f"dagonizer:{key}": "v" for key in keys})
        seen = []
        async for key in store.list_keys():
            if len(seen) in {700, 1_900}:
                server.down()
                server.up()
            seen.append(key)
        assert sorted(seen) == sorted(keys)


async def test_every_method_refuses_bad_keys_and_then_bad_values(store: RedisCheckpointStore) -> None:
    for key in ("", "a\0", "\ud800", "x" * 1025, 1):
        for operation in (
            store.save(key, "v"),
            store.load(key),
            store.delete(key),
            store.load_versioned(key),
            store.save_if(key, "v", expected=None),
        ):
            with pytest.raises(InvalidKeyError):
                await operation
    for value in ("a\0", "\udfff", b"v"):
        with pytest.raises(InvalidValueError):
            await store.save("k", value)
        with pytest.raises(InvalidValueError):
            await store.save_if("k", value, expected=None)
    assert await store.load("k") is None


async def test_after_close_every_call_raises(redis_server: Valkey) -> None:
    async with opened(redis_server.url) as store:
        await store.save("a", "1")
        await store.save("b", "1")
        listing = store.list_keys()
        await anext(listing)
    await store.aclose()
    for operation in (
        store.save("", "v"),
        store.load(""),
        store.delete(""),
        store.load_versioned(""),
        store.save_if("", "v", expected=None),
        anext(store.list_keys("\0")),
        anext(listing),
    ):
        with pytest.raises(StoreClosedError):
            await operation


# Connections.


@contextlib.asynccontextmanager
async def opened_later(proxy: FaultProxy) -> AsyncIterator[RedisCheckpointStore]:
    """Open a store through a proxy that has only just got its port."""
    async with opened(f"redis://{proxy.host}:{proxy.port}?timeout=5") as store:
        yield store


async def test_the_first_operation_after_a_restart_connects_again(server: Valkey) -> None:
    async with opened(server.url) as store:
        for number in range(10):
            await asyncio.gather(*(store.load("k") for _ in range(5)))
            server.down()
            server.up()
            # A write, of which nothing may be sent twice.
            await store.save("k", f"{number}")
            assert await store.load("k") == f"{number}"


async def test_a_save_that_timed_out_never_comes_late(server: Valkey) -> None:
    async with opened(f"{server.url}?timeout=0.5") as store:
        await store.save("k", "old")
        os.kill(server.pid, signal.SIGSTOP)
        with pytest.raises(StoreUnavailableError, match="no answer within"):
            await store.save("k", "x" * (64 * MIB))
        os.kill(server.pid, signal.SIGCONT)
        await store.save("k", "new")
        for _ in range(20):
            assert await store.load("k") == "new"
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("size", [500_000, 1_000_000, 20_000_000])
async def test_of_a_save_that_timed_out_nothing_more_is_sent(size: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        # Too small for all of it, which so waits with the client.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        async with opened(f"redis://127.0.0.1:{listener.getsockname()[1]}?timeout=0.2") as store:
            with pytest.raises(StoreUnavailableError, match="no answer within"):
                await store.save("k", "x" * size)
            received = 0
            connection, _ = listener.accept()
            with connection, contextlib.suppress(ConnectionResetError):
                while data := await asyncio.to_thread(connection.recv, 1 << 20):
                    received += len(data)
        assert received < size / 2


async def test_what_was_cancelled_never_answers_the_next_operation(redis_server: Valkey, client: Redis) -> None:
    async with opened(f"{redis_server.url}?max_connections=1") as store:
        for number in range(200):
            await store.save(f"{number % 7}", f"text {number % 7}")
            cancelled = asyncio.create_task(store.load(f"{number % 7}"))
            for _ in range(number % 11):
                await asyncio.sleep(0)
            cancelled.cancel()
            await asyncio.gather(cancelled, return_exceptions=True)
            assert await store.load("0") == "text 0"


async def test_connections_are_no_more_than_allowed_and_are_given_back(server: Valkey) -> None:
    async with opened(f"{server.url}?max_connections=3") as store, Redis(port=server.port) as client:
        await asyncio.gather(*(store.save(f"{number}", "v") for number in range(100)))
        assert len(await client.client_list()) == 4
        with pytest.raises(StoreConflictError):
            await store.save_if("1", "v", expected=None)
        assert len(await client.client_list()) == 4
    async with Redis(port=server.port) as client:
        assert len(await client.client_list()) == 1


async def test_a_close_that_cannot_wait_longer_ends_what_is_under_way_later(server: Valkey) -> None:
    store = opened(f"{server.url}?timeout=0.3")
    await store.save("k", "v")
    os.kill(server.pid, signal.SIGSTOP)
    operations = [asyncio.create_task(store.load("k")) for _ in range(3)]
    await asyncio.sleep(0.1)
    await store.aclose()
    os.kill(server.pid, signal.SIGCONT)
    for outcome in await asyncio.gather(*operations, return_exceptions=True):
        assert outcome == "v" or isinstance(outcome, StoreUnavailableError)
    async with Redis(port=server.port) as client:
        assert len(await client.client_list()) == 1


async def test_a_disconnection_that_is_cancelled_leaves_no_connection(server: Valkey) -> None:
    connect = Connector(RedisConfig(hosts=(Host("127.0.0.1", server.port),)))
    links = OwnLinks(lambda: connect(Host("127.0.0.1", server.port)), 5)
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(5):
            await stack.enter_async_context(links.link())
    closing = asyncio.create_task(links.aclose())
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.gather(closing, return_exceptions=True)
    async with Redis(port=server.port) as client:
        assert len(await client.client_list()) == 1


def test_a_second_event_loop(redis_server: Valkey) -> None:
    store = opened(redis_server.url)
    asyncio.run(store.save("k", "v"))
    assert asyncio.run(store.load("k")) == "v"


async def test_a_load_is_repeated_once_and_a_save_never(redis_server: Valkey, client: Redis) -> None:
    async def calls(command: str) -> int:
        return (await client.info("commandstats")).get(f"cmdstat_{command}", {"calls": 0})["calls"]

    url = StoreURL.parse(redis_server.url)
    async with (
        FaultProxy(url.hosts[0].name, url.hosts[0].port or 0) as proxy,
        opened_later(proxy) as store,
    ):
        await store.save("k", "old")
        await client.config_resetstat()
        await proxy.cut_reply(1)
        assert await store.load("k") == "old"
        assert await calls("get") == 2
        version = hashlib.sha256(b"new").hexdigest()
        # The replies to the last one before its save have 19 bytes, and are not what is cut.
        for number, (after, operation) in enumerate(
            (
                (1, lambda: store.save("k", "new")),
                (1, lambda: store.save_if("other", "new", expected=None)),
                (20, lambda: store.save_if("k", "newer", expected=version)),
            ),
            1,
        ):
            await proxy.cut_reply(after)
            with pytest.raises(StoreUnavailableError, match="may have happened"):
                await operation()
            assert await calls("set") == number
        await proxy.cut_reply(1)
        with pytest.raises(StoreUnavailableError):
            await store.delete("other")
        assert await calls("del") == 1
        assert await store.load("k") == "newer"


@pytest.mark.parametrize("operation", ["save", "load", "create", "save_if", "load_versioned"])
async def test_64_mib_take_at_most_five_times_their_size(
    store: RedisCheckpointStore, client: Redis, operation: str
) -> None:
    size = 64 * MIB
    old, new = "o" * size, "n" * size
    version = hashlib.sha256(old.encode()).hexdigest()
    if operation != "create":
        await store.save("k", old)
    if operation in {"load", "load_versioned"}:
        del old, new
    else:
        del old
    tracemalloc.start()
    try:
        if operation == "save":
            await store.save("k", new)
        elif operation == "create":
            await store.save_if("k", new, expected=None)
        elif operation == "save_if":
            await store.save_if("k", new, expected=version)
        else:
            assert await getattr(store, operation)("k") is not None
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # The document itself was made before the measurement.
    document = 0 if operation in {"load", "load_versioned"} else size
    assert document + peak <= 5 * size
    if document:
        assert await store.load("k") == new
    await client.flushall()


# Other ways to a server.


async def exercise(store: RedisCheckpointStore) -> None:
    """Do everything once."""
    await store.save("a", "1")
    version = await store.save_if("b", "1", expected=None)
    await store.save_if("b", "2", expected=version)
    with pytest.raises(StoreConflictError):
        await store.save_if("b", "3", expected=version)
    found = await store.load_versioned("b")
    assert found is not None
    assert found.json == "2"
    assert await store.load("a") == "1"
    assert await store.load("c") is None
    assert await listed(store) == ["a", "b"]
    await store.delete("a")
    await store.delete("c")
    assert await listed(store) == ["b"]


async def test_a_unix_socket_and_another_database() -> None:
    with Valkey("--unixsocket", "here.sock") as server:
        path = server.directory / "here.sock"
        async with opened(f"redis+unix://{path}?db=3") as store:
            await exercise(store)
        async with Redis(port=server.port, db=3) as client:
            assert await client.dbsize() == 1
        async with opened(f"redis://127.0.0.1:{server.port}/3") as store:
            assert await listed(store) == ["b"]
        server.down()
        async with opened(f"redis+unix://{path}") as store:
            with pytest.raises(StoreUnavailableError, match=r"here\.sock"):
                await store.load("b")


async def test_the_least_privileges_of_the_readme_are_enough_for_every_operation(grants: dict[str, str]) -> None:
    commands = f"{grants['always']} {grants['to list keys']} {grants['with another database than 0']}".split()
    with Valkey("--user", "dagonizer", "on", ">pw", "resetchannels", "~dagonizer:*", *commands) as server:
        url = f"redis://dagonizer:pw@127.0.0.1:{server.port}"
        for database in ("", "/1"):
            async with opened(url + database) as store:
                await exercise(store)
        assert server.ask("ACL", "LOG") == "*0\r\n", "nothing was refused"
        async with opened(f"{url}?prefix=other") as store:
            with pytest.raises(StoreAccessError):
                await store.save("k", "v")


async def test_none_of_the_least_privileges_can_be_left_out(grants: dict[str, str]) -> None:
    commands = f"{grants['always']} {grants['to list keys']}".split()
    with Valkey() as server:
        for command in commands:
            kept = [other for other in commands if other != command]
            server.ask("ACL", "SETUSER", "dagonizer", "reset", "on", ">pw", "~dagonizer:*", *kept)
            server.ask("FLUSHALL")
            async with opened(f"redis://dagonizer:pw@127.0.0.1:{server.port}") as store:
                with pytest.raises(StoreAccessError, match="README"):
                    await exercise(store)
            if command in {"+watch", "+multi", "+exec"}:
                assert server.ask("GET", "dagonizer:b") == "$1\r\n1\r\n", "what was refused was not half done"


@pytest.mark.skipif(shutil.which("redis-server") is None, reason="Redis is not installed; the other tests use Valkey")
async def test_redis_itself() -> None:
    with Valkey(program=shutil.which("redis-server")) as server:
        async with opened(server.url) as store, Redis(port=server.port) as client:
            assert "redis_version" in await client.info("server")
            assert "valkey_version" not in await client.info("server")
            await exercise(store)


# The caller's own client.


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"decode_responses": True},
        {"protocol": 2},
        {"protocol": 3},
        {"encoding": "latin-1", "decode_responses": True},
    ],
)
async def test_a_clients_settings_do_not_matter_to_what_is_stored(
    redis_server: Valkey, client: Redis, options: dict[str, object]
) -> None:
    own = Redis.from_url(redis_server.url, **options)
    async with RedisCheckpointStore(own, prefix="own") as store:
        await exercise(store)
        await store.save("k", "é😀")
        assert await store.load("k") == "é😀"
    assert await client.get("own:k") == "é😀".encode()
    with pytest.raises(StoreClosedError):
        await store.load("k")
    assert await own.ping(), "the caller closes the client"
    await own.aclose()


async def test_a_client_with_one_connection_serves_many_tasks(redis_server: Valkey, client: Redis) -> None:
    own = Redis(connection_pool=BlockingConnectionPool.from_url(redis_server.url, max_connections=1, timeout=None))
    async with RedisCheckpointStore(own) as store:
        tasks = [asyncio.create_task(store.save(f"{number}", "v")) for number in range(50)]
        tasks += [asyncio.create_task(store.load(f"{number}")) for number in range(50)]
        await asyncio.sleep(0.001)
        for task in tasks[::3]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert await store.load("1") == "v"
    await own.connection_pool.aclose()


async def test_a_clients_dead_connections_are_replaced_before_anything_is_sent(server: Valkey) -> None:
    own = Redis(port=server.port)
    async with RedisCheckpointStore(own) as store:
        for number in range(10):
            await asyncio.gather(*(store.load("k") for _ in range(5)))
            server.down()
            server.up()
            await store.save("k", f"{number}")
            assert await store.load("k") == f"{number}"
        await own.connection_pool.disconnect()
        assert await store.load("k") == "9"
    await own.aclose()


async def test_a_clients_own_retries_repeat_no_write(redis_server: Valkey, client: Redis) -> None:
    url = StoreURL.parse(redis_server.url)
    async with FaultProxy(url.hosts[0].name, url.hosts[0].port or 0) as proxy:
        own = Redis(host=proxy.host, port=proxy.port, retry=Retry(NoBackoff(), 5), retry_on_error=[RedisError])
        async with RedisCheckpointStore(own, timeout=5) as store:
            await store.save("k", "old")
            await client.config_resetstat()
            await proxy.cut_reply(1)
            with pytest.raises(StoreUnavailableError):
                await store.save("k", "new")
            assert (await client.info("commandstats"))["cmdstat_set"]["calls"] == 1
        await own.aclose()


@pytest.mark.parametrize("made_by", ["store", "caller"])
async def test_idle_connections_that_have_gone_silent_cost_one_operation(
    redis_server: Valkey, client: Redis, made_by: str
) -> None:
    url = StoreURL.parse(redis_server.url)
    async with FaultProxy(url.hosts[0].name, url.hosts[0].port or 0) as proxy:
        own = Redis(host=proxy.host, port=proxy.port)
        config = RedisConfig(hosts=(Host(proxy.host, proxy.port),))
        async with RedisCheckpointStore(own if made_by == "caller" else config, timeout=2) as store:
            await store.save("k", "v")
            for call in (store.load("k"), store.save("other", "v"), store.delete("other")):
                await asyncio.gather(*(store.load("k") for _ in range(5)))
                # It counts in a thread of its own.
                async with asyncio.timeout(10):
                    while proxy.connections != 5:
                        await asyncio.sleep(0.01)
                await proxy.half_open()
                with pytest.raises(StoreUnavailableError, match="no answer"):
                    await call
                assert await asyncio.gather(*(store.load("k") for _ in range(5))) == ["v"] * 5
        await own.aclose()


def test_a_client_is_refused_in_a_second_event_loop(redis_server: Valkey) -> None:
    own = Redis.from_url(redis_server.url)
    store = RedisCheckpointStore(own)
    with asyncio.Runner() as first, asyncio.Runner() as second:
        first.run(store.save("k", "v"))
        for operation in (lambda: store.load("k"), lambda: store.save("k", "w")):
            with pytest.raises(StoreUnavailableError, match="belongs to another event loop"):
                second.run(operation())
        assert first.run(store.load("k")) == "v"
        first.run(own.aclose())


class ClientHarness(Harness):
    """A store over a client with the driver's default settings, its timeouts among them."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._clients: dict[RedisCheckpointStore, Redis] = {}

    async def open(self, namespace: str) -> RedisCheckpointStore:
        own = Redis.from_url(self._url)
        store = RedisCheckpointStore(own, prefix=namespace, timeout=5)
        self._clients[store] = own
        return store

    async def close(self, store: RedisCheckpointStore) -> None:
        await store.aclose()
        if (own := self._clients.pop(store, None)) is not None:
            await own.aclose()


async def test_a_clients_connections_survive_cancellations(redis_server: Valkey) -> None:
    report = await run(ClientHarness(redis_server.url), only="cancellation", budget="smoke")
    assert {result.status for result in report.results} == {"PASS"}, report.results
    assert len(report.results) == 6
