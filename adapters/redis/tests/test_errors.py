"""Every error of the driver and every refusal of a server has its meaning, and none shows a secret."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import ssl
from typing import TYPE_CHECKING

import pytest
import redis.asyncio.cluster
import redis.asyncio.sentinel
import redis.exceptions
from redis.asyncio import Redis

from dagonizer import open_store
from dagonizer.errors import (
    StoreAccessError,
    StoreConflictError,
    StoreCorruptedError,
    StoreError,
    StoreLimitError,
    StoreUnavailableError,
)
from dagonizer_redis import RedisCheckpointStore
from dagonizer_redis._errors import BY_CLASS, translated
from dagonizer_test_servers import free_port
from dagonizer_test_servers.redis import Cluster, Replicated, Valkey, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path

SECRET = "Tr0ub4dor&3"
# Defined in other modules of the driver than its exceptions; all of them are ConnectionErrors.
ELSEWHERE = {"MasterNotFoundError", "SlaveNotFoundError"}


def of_the_driver() -> Iterator[type[Exception]]:
    todo: list[type[Exception]] = [redis.exceptions.RedisError, redis.exceptions.RedisClusterException]
    while todo:
        cls = todo.pop()
        todo += cls.__subclasses__()
        yield cls


def test_the_table_names_every_exception_of_the_driver() -> None:
    declared = {cls for _, cls in inspect.getmembers(redis.exceptions, inspect.isclass) if issubclass(cls, Exception)}
    assert declared - set(BY_CLASS) == set()
    unnamed = {cls for cls in of_the_driver() if cls.__module__.startswith("redis.") and cls not in BY_CLASS}
    assert {cls.__name__ for cls in unnamed} <= ELSEWHERE
    assert all(issubclass(cls, redis.exceptions.ConnectionError) for cls in unnamed)


@pytest.mark.parametrize("cls", BY_CLASS, ids=lambda cls: cls.__name__)
def test_every_exception_becomes_what_the_table_says(cls: type[Exception]) -> None:
    arguments = ("1 h:1",) if issubclass(cls, redis.exceptions.AskError) else ("why",)
    exc = cls(*arguments)
    expected, advice = BY_CLASS[cls]
    with pytest.raises(expected) as caught, translated("load", "h:1"):
        raise exc
    assert caught.value.__cause__ is exc
    assert str(caught.value).startswith("could not load at h:1: ")
    assert str(caught.value).endswith(advice)


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("WRONGTYPE Operation against a key holding the wrong kind of value", StoreCorruptedError),
        ("MISCONF Valkey is configured to save RDB snapshots", StoreLimitError),
        ("Protocol error: invalid bulk length", StoreLimitError),
        ("NOREPLICAS Not enough good replicas to write.", StoreUnavailableError),
        ("BUSY Valkey is busy running a script.", StoreUnavailableError),
        ("UNKILLABLE Sorry", StoreUnavailableError),
        ("DENIED Redis is running in protected mode", StoreAccessError),
        ("DB index is out of range", StoreAccessError),
        ("unknown command 'GET'", StoreAccessError),
        ("This instance has cluster support disabled", StoreAccessError),
        ("Protocol error: unauthenticated bulk length", StoreAccessError),
        ("Transaction discarded because of: NOPERM no", StoreAccessError),
        ("Transaction discarded because of: OOM command not allowed", StoreLimitError),
        ("Transaction discarded because of: READONLY You can't write", StoreAccessError),
        ("Transaction discarded because of previous errors.", StoreUnavailableError),
        ("something new", StoreUnavailableError),
    ],
)
def test_replies_without_a_class_are_told_apart_by_how_they_begin(reply: str, expected: type[StoreError]) -> None:
    with pytest.raises(expected), translated("load", "h:1"):
        raise redis.exceptions.ResponseError(reply)


def test_a_bad_certificate_is_no_outage_but_a_broken_connection_is() -> None:
    for cause, expected in (
        (ssl.SSLCertVerificationError("self-signed"), StoreAccessError),
        (ssl.SSLEOFError("EOF"), StoreUnavailableError),
    ):
        exc = redis.exceptions.ConnectionError("no")
        exc.__context__ = cause
        with pytest.raises(expected), translated("load", "h:1"):
            raise exc


# Provoked at real servers.


def operations(url: str) -> dict[str, Callable[[], Awaitable[object]]]:
    """Return every operation of a store, each in a store of its own."""

    def of(name: str, *arguments: str, **keywords: str | None) -> Callable[[], Awaitable[object]]:
        async def operation() -> object:
            async with open_store(url) as store:
                return await getattr(store, name)(*arguments, **keywords)

        return operation

    async def list_keys() -> object:
        async with open_store(url) as store:
            return [key async for key in store.list_keys()]

    return {
        "save": of("save", "k", "v"),
        "load": of("load", "k"),
        "delete": of("delete", "k"),
        "load_versioned": of("load_versioned", "k"),
        "create": of("save_if", "k", "v", expected=None),
        "save_if": of("save_if", "k", "v", expected="x"),
        "list_keys": list_keys,
    }


WRITES = ("save", "delete", "create")
LOADS = ("load", "load_versioned")


async def expect(expected: type[StoreError], url: str, *names: str, match: str = ".") -> None:
    """Expect that the operations, or all, fail like this, and say where."""
    calls = operations(url)
    for name in names or calls:
        with pytest.raises(expected, match=match) as caught:
            await calls[name]()
        assert type(caught.value) is expected, name
        assert isinstance(caught.value.__cause__, (redis.exceptions.RedisError, OSError)), name
        assert "127.0.0.1" in str(caught.value) or "localhost" in str(caught.value) or ".invalid" in str(caught.value)


@contextlib.asynccontextmanager
async def raw(server: Valkey, **options: object) -> AsyncIterator[Redis]:
    client = Redis(port=server.port, **options)  # type: ignore[arg-type]
    try:
        yield client
    finally:
        await client.aclose()


async def test_only_a_change_that_was_sent_may_have_happened() -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1") as server:
        there = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        for url in (there, f"redis://127.0.0.1:{free_port()}"):
            for name, operation in operations(url).items():
                with pytest.raises(StoreUnavailableError) as caught:
                    await operation()
                assert ("may have" in str(caught.value)) == (url == there and name in {*WRITES, "save_if"}), name


async def test_nobody_there() -> None:
    await expect(StoreUnavailableError, f"redis://127.0.0.1:{free_port()}", match="connect")
    await expect(StoreUnavailableError, "redis://nowhere.invalid", match="connect")
    await expect(StoreUnavailableError, f"redis+cluster://127.0.0.1:{free_port()}", match="no node of the cluster")
    await expect(StoreUnavailableError, f"redis+sentinel://127.0.0.1:{free_port()}/s", match="no sentinel leads")


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"$x\r\n", b"+" + b"x" * 3_000_000 + b"\r\n", b""]
)
async def test_something_else_there(answer: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(answer)
        with contextlib.suppress(OSError):
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1") as server:
        port = server.sockets[0].getsockname()[1]
        await expect(StoreUnavailableError, f"redis://127.0.0.1:{port}", *LOADS, "save", "save_if", "list_keys")


async def test_wrong_credentials_are_neither_an_outage_nor_absence() -> None:
    with Valkey("--requirepass", SECRET) as server:
        where = f"127.0.0.1:{server.port}"
        await expect(StoreAccessError, f"redis://{where}", match="Authentication required")
        async with open_store(f"redis://{where}") as store:
            with pytest.raises(StoreAccessError, match="password"):
                await store.save("k", "x" * 2_000_000)
        await expect(StoreAccessError, f"redis://:wrong@{where}", match="user name and the password")
        await expect(StoreAccessError, f"redis://nobody:{SECRET}@{where}", match="user name and the password")
        await expect(StoreAccessError, f"redis+cluster://:wrong@{where}", match="user name and the password")
    with Valkey() as server:
        await expect(StoreAccessError, f"redis://:{SECRET}@127.0.0.1:{server.port}", match="password")


async def test_missing_permissions() -> None:
    with Valkey("--user", "few", "on", ">pw", "~dagonizer:*", "+get") as server:
        where = f"127.0.0.1:{server.port}"
        await expect(StoreAccessError, f"redis://few:pw@{where}", *WRITES, "save_if", "list_keys", match="README")
        await expect(StoreAccessError, f"redis://few:pw@{where}?prefix=other", *LOADS, match="README")
        await expect(StoreAccessError, f"redis://few:pw@{where}/1", "save", match="README")
        assert await operations(f"redis://few:pw@{where}")["load"]() is None


async def test_memory_is_full() -> None:
    with Valkey("--maxmemory", "4mb") as server:
        async with open_store(server.url) as store:
            await store.save("k", "old")
            version = (await store.load_versioned("k")).version
            async with raw(server) as client:
                await client.config_set("maxmemory", "1mb")
            for save in (
                store.save("k", "new"),
                store.save_if("new", "new", expected=None),
                store.save_if("k", "new", expected=version),
            ):
                with pytest.raises(StoreLimitError, match="maxmemory"):
                    await save
            assert await store.load("k") == "old"
            await store.delete("k")
            assert await store.load("k") is None


async def test_a_value_is_too_large() -> None:
    with Valkey("--proto-max-bulk-len", "1mb") as server:
        async with open_store(server.url) as store:
            await store.save("k", "old")
            for size in (1_100_000, 20_000_000):
                with pytest.raises(StoreLimitError, match="proto-max-bulk-len"):
                    await store.save("k", "x" * size)
                assert await store.load("k") == "old"


async def test_the_disk_is_full() -> None:
    with Valkey() as server:
        # A directory in its place: the snapshot fails like on a full disk, also for root.
        (server.directory / "dump.rdb").mkdir()
        async with raw(server) as client:
            await client.config_set("save", "3600 1")
            await client.bgsave()
        until(lambda: "rdb_last_bgsave_status:err" in server.ask("INFO", "persistence"))
        await expect(StoreLimitError, server.url, *WRITES, match="free space")


async def test_a_replica_refuses_writes_and_without_its_primary_everything() -> None:
    with Replicated("--replica-serve-stale-data", "no", sentinels=0) as servers:
        replica = servers.replicas[0]
        await expect(StoreAccessError, replica.url, *WRITES, match="name the primary")
        servers.primary.down()
        until(lambda: "master_link_status:down" in replica.ask("INFO", "replication"))
        await expect(StoreUnavailableError, replica.url, *LOADS, match="try again later")


async def test_too_few_replicas_for_the_primary() -> None:
    with Valkey("--min-replicas-to-write", "1") as server:
        await expect(StoreUnavailableError, server.url, *WRITES, match="NOREPLICAS.*nothing was changed")


async def test_a_busy_server() -> None:
    with Valkey("--busy-reply-threshold", "1") as server:
        script = asyncio.create_task(asyncio.to_thread(server.ask, "EVAL", "while true do end", "0"))
        await asyncio.to_thread(until, lambda: server.ask("PING").startswith("-BUSY"))
        await expect(StoreUnavailableError, server.url, match="BUSY.*nothing was changed")
        server.ask("SCRIPT", "KILL")
        assert "killed" in await script


async def test_a_server_that_loads_its_data() -> None:
    # It looks at its clients after every 1,024 commands that it has loaded.
    with Valkey("--key-load-delay", "200") as server:
        server.ask("EVAL", "for n = 1, 10000 do redis.call('SET', 'dagonizer:' .. n, 'v') end", "0")
        server.down()
        starting = asyncio.create_task(asyncio.to_thread(server.up))
        refusals = []
        async with open_store(server.url) as store:
            while not starting.done():
                try:
                    await store.load("1")
                except StoreUnavailableError as exc:
                    refusals.append(str(exc))
                await asyncio.sleep(0.01)
            await starting
            assert any("loading" in refusal for refusal in refusals)
            assert await store.load("10000") == "v"


async def test_too_many_clients() -> None:
    with Valkey("--maxclients", "1") as server:
        async with raw(server) as client:
            await client.ping()
            await expect(StoreUnavailableError, server.url, "save", "load")


async def test_a_command_that_the_server_does_not_offer() -> None:
    with Valkey("--rename-command", "GET", "") as server:
        await expect(StoreAccessError, server.url, *LOADS, "save_if", match="does not offer")


async def test_a_server_that_repeats_the_password_in_its_refusal(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    quoted = SECRET.replace("&", "%26")
    with Valkey("--rename-command", "AUTH", "", "--rename-command", "HELLO", "") as server:
        said = []
        for scheme, path in (("redis", ""), ("redis+cluster", ""), ("redis+sentinel", "/s")):
            url = f"{scheme}://user:{quoted}@127.0.0.1:{server.port}{path}?sentinel_password={quoted}"
            for operation in operations(url if path else url.partition("?")[0]).values():
                with pytest.raises(StoreAccessError, match="unknown command 'AUTH'") as caught:
                    await operation()
                said += chain(caught.value)
        for protocol in (2, 3):
            async with raw(server, password=SECRET, protocol=protocol) as client, RedisCheckpointStore(client) as store:
                with pytest.raises(StoreAccessError, match="unknown command") as caught:
                    await store.load("k")
                said += chain(caught.value)
    assert SECRET not in "".join((*said, caplog.text))


async def test_a_refusal_does_not_repeat_the_value() -> None:
    with Valkey("--rename-command", "SET", "") as server:
        async with open_store(server.url) as store:
            with pytest.raises(StoreAccessError, match="unknown command 'SET'; ") as caught:
                await store.save("k", SECRET)
    assert SECRET not in "".join(chain(caught.value))


@contextlib.contextmanager
def closed_to_us(directory: Path) -> Iterator[None]:
    """Take away the right to enter ``directory``, from root too."""
    user = os.geteuid()
    directory.chmod(0)
    try:
        if user == 0:
            os.seteuid(65_534)
        yield
    finally:
        os.seteuid(user)
        directory.chmod(0o700)


async def test_a_socket_that_may_not_be_used() -> None:
    with Valkey("--unixsocket", "here.sock") as server:
        url = f"redis+unix://{server.directory}/here.sock"
        assert await operations(url)["load"]() is None
        for name, operation in operations(url).items():
            with closed_to_us(server.directory), pytest.raises(StoreAccessError, match="mode of the socket") as caught:
                await operation()
            assert "here.sock" in str(caught.value), name


@pytest.mark.parametrize("parameter", ["tls_ca", "tls_cert", "tls_key"])
@pytest.mark.parametrize("scheme", ["rediss", "redis+cluster", "redis+sentinel"])
async def test_a_file_that_cannot_be_read(scheme: str, parameter: str, tmp_path: Path) -> None:
    there = tmp_path / "there.pem"
    there.touch()
    for path in (tmp_path, tmp_path / "none.pem"):
        files = {"tls_cert": there, parameter: path} if parameter == "tls_key" else {parameter: path}
        query = "&".join(f"{name}={file}" for name, file in files.items())
        url = f"{scheme}://127.0.0.1:1/{'s' if 'sentinel' in scheme else ''}?{query}"
        await expect(
            StoreAccessError, url if scheme == "rediss" else f"{url}&tls=true", match=f"{parameter} is '{path}'"
        )


async def test_a_database_that_is_not_there() -> None:
    with Valkey("--databases", "2") as server:
        await expect(StoreAccessError, f"{server.url}/2", match="name a database")


async def test_a_cluster_that_is_none_and_a_server_that_is_part_of_one() -> None:
    with Cluster() as cluster:
        calls = [operations(node.url)["load"]() for node in cluster.nodes]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        refusals = [outcome for outcome in outcomes if outcome is not None]
        assert len(refusals) == 2
        assert all(isinstance(refusal, StoreAccessError) and "redis+cluster:" in str(refusal) for refusal in refusals)
    with Valkey() as server:
        await expect(StoreAccessError, f"redis+cluster://127.0.0.1:{server.port}", match="no cluster; write redis:")
        await expect(
            StoreAccessError, f"redis+sentinel://127.0.0.1:{server.port}/s", match="unknown command 'SENTINEL'"
        )


async def test_something_else_under_the_key() -> None:
    with Valkey() as server:
        async with raw(server) as client, open_store(server.url) as store:
            for _ in range(2):
                await client.delete("dagonizer:k")
                await client.rpush("dagonizer:k", "x")
                await expect(StoreCorruptedError, server.url, *LOADS, "save_if", match="other than a string")
                with pytest.raises(StoreConflictError):
                    await store.save_if("k", "v", expected=None)
                await store.save("k", "v")
                assert await store.load("k") == "v"
            await client.delete("dagonizer:k")
            await client.rpush("dagonizer:k", "x")
            await store.delete("k")
            assert await store.load("k") is None


async def test_no_secret_is_in_an_error_or_a_log(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    caplog.set_level("DEBUG")
    with Valkey("--requirepass", "another") as server:
        where = f"127.0.0.1:{server.port}"
        quoted = SECRET.replace("&", "%26")
        said = []
        for url in (
            f"redis://:{quoted}@{where}",
            f"redis://{quoted}:{quoted}@{where}",
            f"redis://:{quoted}@{where}/x",
            f"redis://{quoted}@{where}",
            f"redis://:{quoted}@127.0.0.1:{free_port()}",
            f"redis://:{quoted}@nowhere.invalid",
            f"rediss://:{quoted}@{where}?timeout=0.5",
            f"rediss://:{quoted}@{where}?tls_ca={tmp_path}/none",
            f"redis+cluster://:{quoted}@{where}",
            f"redis+sentinel://:{quoted}@{where}/s?sentinel_username={quoted}&sentinel_password={quoted}",
            f"redis+sentinel://:{quoted}@127.0.0.1:{free_port()}/s?sentinel_password={quoted}",
            f"redis+unix://:{quoted}@{tmp_path}/none",
            f"redis+unix://:{quoted}@{where}/none",
        ):
            for name in (*WRITES, *LOADS, "save_if", "list_keys"):
                with pytest.raises(StoreError) as caught:
                    await operations(url)[name]()
                said += chain(caught.value)
        said += [repr(open_store(f"redis://:{quoted}@{where}")), caplog.text]
    assert len(said) > 200
    for text in said:
        assert SECRET not in text
        assert quoted not in text


def chain(exc: BaseException | None) -> Iterator[str]:
    while exc is not None:
        yield from (str(exc), repr(exc), *map(str, exc.args))
        exc = exc.__cause__ or exc.__context__
