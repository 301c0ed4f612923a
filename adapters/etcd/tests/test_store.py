"""What the store promises, over both transports, looked at from both sides: through the store and in etcd."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import secrets
import socket
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import msgspec
import pytest
import xxhash
from aetcd import rpc
from etcd3.aio_client import AioClient

from dagonizer import open_store
from dagonizer.errors import (
    InvalidKeyError,
    InvalidValueError,
    StoreClosedError,
    StoreConflictError,
    StoreCorruptedError,
    StoreError,
    StoreLimitError,
    StoreUnavailableError,
)
from dagonizer.url import StoreURL
from dagonizer_etcd import EtcdCheckpointStore, EtcdConfig
from dagonizer_etcd._errors import COMPACTED, Code, Failure
from dagonizer_etcd._transport import Cluster, Put, Range, RangeReply, Txn

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from dagonizer_test_servers.shared import Server

CHUNK = 1024
# Six chunks, the last of one byte, and characters that lie across the edges of others.
LONG = "." + "é漢😀" * 568 + "." * 8
OTHER = LONG.replace("é", "ü")
HEADER = b"\0dagonizer-etcd/1 "
TEXTS = [
    "",
    "{}",
    '{"a":1}',
    "a\r\nb\nc\r",
    "\ufeffbom",
    "\u00e9",
    "e\u0301",
    "😀\U0010ffff",
    "\x01",
    "\x7f",
    "not json",
]
KEYS = [
    "a", "A", "a ", " a", ".", "..", "../a", "/a", "//a", "a/", "a//b", "a/b", "a\\b", "%61", "entry/a", "chunk/",
    "\u00e9", "e\u0301", "😀", "a\n", "\x01" * 1024, "x" * 1024, "😀" * 256, "*", "?",
]  # fmt: skip


@pytest.fixture(params=["etcd", "etcd+http"])
def scheme(request: pytest.FixtureRequest) -> str:
    scheme: str = request.param
    return scheme


@pytest.fixture
def prefix() -> str:
    return f"/test-{secrets.token_hex(8)}"


@pytest.fixture
def url(scheme: str, etcd_server: Server, prefix: str) -> str:
    return f"{etcd_server.url.replace('etcd', scheme, 1)}{prefix}?chunk_bytes={CHUNK}"


@pytest.fixture
async def store(url: str) -> AsyncIterator[EtcdCheckpointStore]:
    async with EtcdCheckpointStore(EtcdConfig.from_url(StoreURL.parse(url))) as store:
        yield store


class Raw:
    """What is in etcd under the prefix, around the store."""

    def __init__(self, channel: grpc.aio.Channel, prefix: str) -> None:
        self.root = f"{prefix}//".encode()
        self.kv: Any = rpc.KVStub(channel)
        self.lease: Any = rpc.LeaseStub(channel)

    async def all(self) -> dict[str, bytes]:
        reply = await self.kv.Range(rpc.RangeRequest(key=self.root, range_end=self.root[:-1] + b"0"))
        return {found.key[len(self.root) :].decode(): found.value for found in reply.kvs}

    async def kinds(self) -> dict[str, int]:
        names = [name.partition("/")[0] for name in await self.all()]
        return {name: names.count(name) for name in names}

    async def put(self, name: str, value: bytes) -> None:
        await self.kv.Put(rpc.PutRequest(key=self.root + name.encode(), value=value))

    async def delete(self, name: str) -> None:
        reply = await self.kv.DeleteRange(rpc.DeleteRangeRequest(key=self.root + name.encode()))
        assert reply.deleted == 1

    async def lease_of(self, name: str) -> int:
        reply = await self.kv.Range(rpc.RangeRequest(key=self.root + name.encode()))
        lease: int = reply.kvs[0].lease
        return lease


@pytest.fixture
async def raw(etcd_server: Server, prefix: str) -> AsyncIterator[Raw]:
    async with grpc.aio.insecure_channel(etcd_server.url.removeprefix("etcd://")) as channel:
        yield Raw(channel, prefix)


class Meddler:
    """Stands in for the methods of ``Cluster``, and lets a test act before or after chosen requests."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.before: Callable[[Range | Txn], Any] | None = None
        self.after: Callable[[Range | Txn], Any] | None = None
        self.requests: list[Range | Txn] = []
        txn, range_ = Cluster.txn, Cluster.range

        async def meddled(original: Callable[..., Any], cluster: Cluster, request: Range | Txn) -> Any:
            self.requests.append(request)
            for act in (self.before, original, self.after):
                if act is original:
                    reply = await original(cluster, request)
                elif act is not None and (acting := act(request)) is not None:
                    await acting
            return reply

        monkeypatch.setattr(Cluster, "txn", lambda cluster, request: meddled(txn, cluster, request))
        monkeypatch.setattr(Cluster, "range", lambda cluster, request: meddled(range_, cluster, request))

    def once(self, wanted: Callable[[Range | Txn], bool], act: Callable[[], Any]) -> Callable[[Range | Txn], Any]:
        done = False

        def meddle(request: Range | Txn) -> Any:
            nonlocal done
            if done or not wanted(request):
                return None
            done = True
            return act()

        return meddle


@pytest.fixture
def meddler(monkeypatch: pytest.MonkeyPatch) -> Meddler:
    return Meddler(monkeypatch)


def puts(request: Range | Txn, name: bytes) -> bool:
    return isinstance(request, Txn) and any(isinstance(change, Put) and name in change.key for change in request.then)


def is_switch(request: Range | Txn) -> bool:
    return puts(request, b"//entry/")


async def test_the_example_in_the_readme_runs(etcd_server: Server) -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    (source,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    source = source.replace("etcd://127.0.0.1:2379", etcd_server.url)
    assert etcd_server.url in source
    await asyncio.to_thread(subprocess.run, [sys.executable, "-W", "error", "-c", source], check=True)


# Layout.


@pytest.mark.parametrize("text", TEXTS)
async def test_a_text_is_kept_as_it_is_under_its_own_key(store: EtcdCheckpointStore, raw: Raw, text: str) -> None:
    await store.save("k", text)
    assert await store.load("k") == text
    assert await raw.all() == {"entry/k": text.encode()}


async def test_no_two_keys_meet_and_none_leaves_the_prefix(store: EtcdCheckpointStore, raw: Raw) -> None:
    for key in KEYS:
        await store.save(key, "of " + key[:100])
    for key in KEYS:
        assert await store.load(key) == "of " + key[:100]
    assert [key async for key in store.list_keys()] == sorted(KEYS, key=str.encode)
    assert await raw.all() == {f"entry/{key}": f"of {key[:100]}".encode() for key in KEYS}
    for key in KEYS:
        await store.delete(key)
    assert await raw.all() == {}


async def test_prefixes_share_nothing(url: str, prefix: str) -> None:
    urls = [url.replace(prefix, prefix + rest) for rest in ("", "/entry", "/a", "x", "/a%20b")]
    async with contextlib.AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(open_store(url)) for url in urls]
        for number, store in enumerate(stores):
            for key in ("k", "/entry/k", "a/k"):
                await store.save(key, f"{number}")
        for number, store in enumerate(stores):
            assert [key async for key in store.list_keys()] == ["/entry/k", "a/k", "k"]
            assert await store.load("k") == f"{number}"
            await store.delete("k")


async def test_both_transports_see_the_same(store: EtcdCheckpointStore, url: str, scheme: str) -> None:
    other = "etcd" if scheme == "etcd+http" else "etcd+http"
    async with open_store(url.replace(scheme, other, 1)) as same:
        for text in (*TEXTS, LONG):
            await store.save("k", text)
            assert await same.load("k") == text
        await same.delete("k")
    assert await store.load("k") is None


# Chunks.


async def test_a_long_text_is_in_chunks_with_a_header(store: EtcdCheckpointStore, raw: Raw) -> None:
    await store.save("k", LONG)
    assert await store.load("k") == LONG
    found = await raw.all()
    header = msgspec.json.decode(found.pop("entry/k").removeprefix(HEADER))
    assert header == {
        "generation": header["generation"],
        "chunks": 6,
        "xxh3_128": xxhash.xxh3_128_hexdigest(LONG.encode()),
    }
    assert list(found) == [f"chunk/{header['generation']}/{index:08d}" for index in range(6)]
    assert b"".join(found.values()) == LONG.encode()
    assert {len(part) for part in found.values()} == {CHUNK, 1}
    for name in found:
        assert await raw.lease_of(name) == 0


@pytest.mark.parametrize("size", [CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 1])
async def test_chunks_begin_where_one_request_ends(store: EtcdCheckpointStore, raw: Raw, size: int) -> None:
    await store.save("k", "x" * size)
    assert await store.load("k") == "x" * size
    assert (await raw.kinds()).get("chunk", 0) == (0 if size <= CHUNK else -(-size // CHUNK))


async def test_a_new_text_takes_the_place_of_all_chunks_of_the_old_one(store: EtcdCheckpointStore, raw: Raw) -> None:
    for text in (LONG, OTHER, "short", LONG, "", LONG):
        await store.save("k", text)
        assert await store.load("k") == text
        assert (await raw.kinds()) == ({"entry": 1, "chunk": 6} if len(text) > CHUNK else {"entry": 1})
    await store.delete("k")
    assert await raw.all() == {}


async def test_compare_and_swap_goes_between_short_and_long(store: EtcdCheckpointStore, raw: Raw) -> None:
    version = None
    for text in (LONG, OTHER, "short", "", LONG, ""):
        stale, version = version, await store.save_if("k", text, expected=version)
        assert await store.load_versioned("k") == msgspec.structs.replace(
            await store.load_versioned("k"), json=text, version=version
        )
        for other in ("new", LONG):
            for wrong in {stale, None, "1", "0", "-1", "x", "", " 5", "٣", "9" * 19, "9" * 40} - {version}:
                with pytest.raises(StoreConflictError, match="load it again"):
                    await store.save_if("k", other, expected=wrong)
        assert (await raw.kinds()) == ({"entry": 1, "chunk": 6} if len(text) > CHUNK else {"entry": 1})
    await store.delete("k")
    for text in ("new", LONG):
        with pytest.raises(StoreConflictError):
            await store.save_if("k", text, expected=version)
    assert await raw.all() == {}


async def test_a_small_save_is_one_request(store: EtcdCheckpointStore, meddler: Meddler) -> None:
    await store.save("k", "1")
    await store.save("k", "2")
    version = await store.save_if("new", "1", expected=None)
    await store.save_if("new", "2", expected=version)
    await store.delete("k")
    await store.delete("k")
    await store.load("new")
    assert len(meddler.requests) == 7


async def test_an_entry_in_chunks_that_was_seen_is_not_looked_at_again(
    store: EtcdCheckpointStore, raw: Raw, meddler: Meddler
) -> None:
    async def requests_of(change: Awaitable[object]) -> int:
        meddler.requests.clear()
        await change
        return len(meddler.requests)

    # What others have left, the entry as it is if that is not known, the writer's marks, the chunks and the switch.
    assert await requests_of(store.save("k", LONG)) == 1 + 1 + 1 + 6 + 1
    assert await requests_of(store.save("k", OTHER)) == 1 + 1 + 6 + 1
    assert await requests_of(store.save("k", "short")) == 1
    assert await raw.kinds() == {"entry": 1}
    await store.save("k", LONG)
    assert await requests_of(store.delete("k")) == 1
    assert await raw.kinds() == {}


async def test_by_default_a_text_of_one_megabyte_is_one_request(
    scheme: str, etcd_server: Server, prefix: str, raw: Raw, meddler: Meddler
) -> None:
    # The longest keys, for etcd counts them as well.
    prefix += "/" + "p" * (1024 - len(prefix) - 1)
    raw.root = f"{prefix}//".encode()
    keys = [f"{number}{'k' * 1023}" for number in range(2)]
    async with open_store(f"{etcd_server.url.replace('etcd', scheme, 1)}{prefix}") as store:
        for text in ("x" * (1400 << 10), "y" * (1400 << 10)):
            meddler.requests.clear()
            for key in keys:
                await store.save(key, text)
            assert len(meddler.requests) == 2
            assert await asyncio.gather(*map(store.load, keys)) == [text] * 2
        assert await raw.kinds() == {"entry": 2}
        await store.save(keys[0], "z" * (1400 << 10) + "z")
        assert await raw.kinds() == {"entry": 2, "chunk": 2}


@pytest.mark.parametrize("before", [None, "before", LONG])
@pytest.mark.parametrize("change", ["save", "delete"])
async def test_a_change_that_was_given_up_and_comes_late_undoes_nothing(
    store: EtcdCheckpointStore, meddler: Meddler, before: str | None, change: str
) -> None:
    if before is not None:
        await store.save("k", before)

    def give_up() -> None:
        raise TimeoutError

    meddler.before = meddler.once(lambda request: isinstance(request, Txn), give_up)
    with pytest.raises(StoreUnavailableError):
        await (store.save("k", "given up") if change == "save" else store.delete("k"))
    late = meddler.requests[-1]
    await store.save("k", "later")
    await store._connections.read(lambda cluster: cluster.txn(late))
    assert await store.load("k") == "later"


async def test_only_so_many_entries_are_remembered(
    store: EtcdCheckpointStore, meddler: Meddler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dagonizer_etcd._store._REMEMBERED", 2)
    for key in ("a", "b", "c", "a"):
        await store.save(key, key)
        assert len(store._seen) <= 2
    assert len(meddler.requests) == 6, "one that was forgotten is looked up"
    assert [await store.load(key) for key in "abc"] == ["a", "b", "c"]


async def test_writers_that_meet_leave_one_whole_text(store: EtcdCheckpointStore, raw: Raw) -> None:
    texts = [*(f"{number}{LONG}" for number in range(8)), *"abcd"]
    for _ in range(5):
        outcomes = await asyncio.gather(
            *(store.save("k", text) for text in texts), *(store.load("k") for _ in range(20)), store.delete("k")
        )
        assert set(outcomes) <= {None, *texts}
        last = await store.load("k")
        assert last is None or last in texts
        kinds = await raw.kinds()
        assert kinds == {} if last is None else kinds == ({"entry": 1} if len(last) == 1 else {"entry": 1, "chunk": 6})


async def test_an_entry_that_changes_before_the_switch_is_looked_at_again(
    store: EtcdCheckpointStore, url: str, raw: Raw, meddler: Meddler
) -> None:
    async with open_store(url) as other:
        for theirs in ("short", OTHER):
            await store.save("k", LONG)
            meddler.before = meddler.once(is_switch, lambda theirs=theirs: other.save("k", theirs))
            await store.save("k", LONG)
            assert await store.load("k") == LONG
            assert await raw.kinds() == {"entry": 1, "chunk": 6}
            version = (await store.load_versioned("k")).version
            meddler.before = meddler.once(is_switch, lambda theirs=theirs: other.save("k", theirs))
            with pytest.raises(StoreConflictError):
                await store.save_if("k", LONG, expected=version)
            assert await store.load("k") == theirs
            assert await raw.kinds() == ({"entry": 1, "chunk": 6} if theirs == OTHER else {"entry": 1})


async def test_a_conflict_is_found_before_chunks_are_written(store: EtcdCheckpointStore, meddler: Meddler) -> None:
    await store.save("k", "1")
    with pytest.raises(StoreConflictError):
        await store.save_if("k", LONG, expected=None)
    assert not any(puts(request, b"//chunk/") for request in meddler.requests)


async def test_a_load_is_not_torn_by_a_switch(
    store: EtcdCheckpointStore, url: str, scheme: str, meddler: Meddler
) -> None:
    async with open_store(url) as other:
        for theirs in (OTHER, "short", None):
            await store.save("k", LONG)
            change = other.delete("k") if theirs is None else other.save("k", theirs)
            meddler.before = meddler.once(
                lambda request: isinstance(request, Range) and b"//chunk/" in request.key, lambda change=change: change
            )
            assert await store.load("k") == LONG
            assert await store.load("k") == theirs


async def test_a_load_survives_a_compaction(
    store: EtcdCheckpointStore, etcd_server: Server, url: str, meddler: Meddler
) -> None:
    async with (
        grpc.aio.insecure_channel(etcd_server.url.removeprefix("etcd://")) as channel,
        open_store(url) as other,
    ):

        async def compact() -> None:
            await other.save("k", OTHER)
            found = await other.load_versioned("k")
            await rpc.KVStub(channel).Compact(rpc.CompactionRequest(revision=int(found.version)))

        await store.save("k", LONG)
        meddler.before = meddler.once(lambda request: isinstance(request, Range) and request.revision > 0, compact)
        assert await store.load("k") == OTHER


async def test_a_load_that_compactions_always_overtake_is_an_outage(
    store: EtcdCheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.save("k", LONG)
    original = Cluster.range

    async def compacted(cluster: Cluster, request: Range) -> RangeReply:
        if request.revision:
            raise Failure(Code.OUT_OF_RANGE, COMPACTED, "h:1")
        return await original(cluster, request)

    monkeypatch.setattr(Cluster, "range", compacted)
    with pytest.raises(StoreUnavailableError, match=r"could not load 'k' at h:1: .*compacted during a load; try again"):
        await store.load("k")


# Compression.

MAGIC = b"\x28\xb5\x2f\xfd"
# Its frame is one value; that of the other, in which nothing repeats, is in chunks.
ALIKE = '{"a":1},' * 4096
VARIED = "".join(map("{:x}".format, random.Random(1).choices(range(1 << 32), k=1024)))


@pytest.fixture
async def compressing(url: str) -> AsyncIterator[EtcdCheckpointStore]:
    async with EtcdCheckpointStore(EtcdConfig.from_url(StoreURL.parse(f"{url}&compression=zstd"))) as store:
        yield store


async def test_a_large_text_is_compressed_and_loads_through_any_store(
    compressing: EtcdCheckpointStore, store: EtcdCheckpointStore, raw: Raw
) -> None:
    await compressing.save("k", ALIKE)
    stored = (await raw.all())["entry/k"]
    assert stored.startswith(MAGIC)
    assert len(stored) < CHUNK < len(ALIKE)
    await compressing.save("in chunks", VARIED)
    found = await raw.all()
    frame = b"".join(value for name, value in found.items() if name.startswith("chunk/"))
    assert frame.startswith(MAGIC)
    assert CHUNK < len(frame) < len(VARIED)
    await compressing.save("small", ALIKE[:CHUNK])
    assert (await raw.all())["entry/small"] == ALIKE[:CHUNK].encode()
    for reader in (compressing, store):
        assert await reader.load("k") == ALIKE
        assert await reader.load("in chunks") == VARIED
        assert await reader.load("small") == ALIKE[:CHUNK]


async def test_compare_and_swap_goes_between_compressed_and_not(
    compressing: EtcdCheckpointStore, store: EtcdCheckpointStore, raw: Raw
) -> None:
    version = None
    for text in (ALIKE, VARIED, ALIKE, "short", VARIED):
        for writer, other in ((compressing, store), (store, compressing)):
            stale, version = version, await writer.save_if("k", text, expected=version)
            found = await other.load_versioned("k")
            assert (found.json, found.version) == (text, version)
            with pytest.raises(StoreConflictError):
                await other.save_if("k", "new", expected=stale)
    await compressing.delete("k")
    assert await raw.all() == {}


async def test_a_damaged_frame_is_told(compressing: EtcdCheckpointStore, raw: Raw) -> None:
    await compressing.save("k", ALIKE)
    stored = (await raw.all())["entry/k"]
    for damaged in (stored[:-1], stored[:-1] + bytes([stored[-1] ^ 1]), MAGIC, stored + b"x"):
        await raw.put("entry/k", damaged)
        with pytest.raises(StoreCorruptedError, match="under 'k' is corrupted: its Zstandard frame is damaged"):
            await compressing.load("k")
    await compressing.save("k", ALIKE)
    assert await compressing.load("k") == ALIKE


# Writers that die.


class DiedError(Exception):
    """A writer has died."""


async def die_after(chunks: int, store: EtcdCheckpointStore, meddler: Meddler) -> None:
    """Let a save end after some chunks, as if its process had been killed: nothing else is sent."""
    sent = 0

    def die(request: Range | Txn) -> None:
        nonlocal sent
        sent += puts(request, b"//chunk/")
        if sent > chunks or is_switch(request):
            sent = chunks + 1
            raise DiedError

    meddler.before = die
    with pytest.raises(DiedError):
        await store.save("k", LONG)
    meddler.before = None


@pytest.mark.parametrize("chunks", [0, 1, 6])
async def test_a_writer_that_dies_shows_nothing_and_its_chunks_are_collected(
    store: EtcdCheckpointStore, raw: Raw, meddler: Meddler, chunks: int
) -> None:
    await store.save("k", "old")
    await die_after(chunks, store, meddler)
    assert await store.load("k") == "old"
    assert [key async for key in store.list_keys()] == ["k"]
    left = await raw.kinds()
    assert left["unfinished"] == left["writer"] == 1
    # While it may live, its chunks stay.
    await store.save("another", LONG)
    assert (await raw.kinds()) == {**left, "entry": 2, "chunk": left.get("chunk", 0) + 6}
    (writer,) = (name for name in await raw.all() if name.startswith("writer/"))
    lease = await raw.lease_of(writer)
    remaining = await raw.lease.LeaseTimeToLive(rpc.LeaseTimeToLiveRequest(ID=lease))
    assert 30 <= remaining.grantedTTL <= 60
    # This is how etcd ends a lease when its time is over.
    await raw.lease.LeaseRevoke(rpc.LeaseRevokeRequest(ID=lease))
    await store.save("another", "short")
    assert (await raw.kinds())["unfinished"] == 1
    await store.save("third", LONG)
    assert await raw.kinds() == {"entry": 3, "chunk": 6}
    assert await store.load("k") == "old"


@pytest.mark.parametrize("at", [b"//chunk/", b"//entry/"])
async def test_a_writer_that_was_taken_for_dead_writes_nothing_any_more(
    store: EtcdCheckpointStore, url: str, raw: Raw, meddler: Meddler, at: bytes
) -> None:
    await store.save("k", "old")
    expiring = []
    async with open_store(url) as other:

        async def expire() -> None:
            (writer,) = (name for name in await raw.all() if name.startswith("writer/"))
            await raw.lease.LeaseRevoke(rpc.LeaseRevokeRequest(ID=await raw.lease_of(writer)))
            await other.save("another", LONG)

        async def expire_to_the_end() -> None:
            # The put of another chunk may be the first to find out, and then this one is cancelled.
            expiring.append(asyncio.create_task(expire()))
            await asyncio.shield(expiring[0])

        meddler.before = meddler.once(lambda request: puts(request, at), expire_to_the_end)
        with pytest.raises(StoreUnavailableError, match="took longer than its lease, and was given up"):
            await store.save("k", OTHER)
        await expiring[0]
    assert await store.load("k") == "old"
    assert await store.load("another") == LONG
    assert await raw.kinds() == {"entry": 2, "chunk": 6}


async def test_an_acknowledgement_that_is_lost_costs_no_chunk(
    store: EtcdCheckpointStore, raw: Raw, meddler: Meddler
) -> None:
    def lose() -> None:
        raise Failure(Code.UNAVAILABLE, "connection reset", "h:1")

    meddler.after = meddler.once(is_switch, lose)
    with pytest.raises(
        StoreUnavailableError, match=r"could not save 'k' at h:1: connection reset \(UNAVAILABLE\); whether it"
    ):
        await store.save("k", LONG)
    assert await store.load("k") == LONG
    assert await raw.kinds() == {"entry": 1, "chunk": 6}


async def test_a_save_that_fails_takes_its_chunks_away(store: EtcdCheckpointStore, raw: Raw, meddler: Meddler) -> None:
    def fail() -> None:
        raise Failure(Code.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded", "h:1")

    for wanted in (is_switch, lambda request: puts(request, b"/00000003")):
        meddler.before = meddler.once(wanted, fail)
        with pytest.raises(StoreLimitError, match="compact and defragment"):
            await store.save("k", LONG)
        assert await raw.all() == {}


async def test_a_cancelled_save_in_chunks_comes_to_its_end(store: EtcdCheckpointStore, raw: Raw) -> None:
    for turns in range(0, 60, 5):
        task = asyncio.ensure_future(store.save("k", f"{turns}{LONG}"))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        # It waits for the one that was cancelled.
        await store.save("k", OTHER)
        assert await store.load("k") == OTHER
    assert await raw.kinds() == {"entry": 1, "chunk": 6}


# Corruption.


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda header: b"", "its header cannot be read"),
        (lambda header: b"{}", "its header cannot be read"),
        (lambda header: b"\xff", "its header cannot be read"),
        (lambda header: b'{"generation":"\xff"}', "its header cannot be read"),
        (lambda header: b'{"other":' + b"[" * 100_000, "its header cannot be read"),
        (lambda header: header.replace(b'"chunks":6', b'"chunks":7'), "chunk 6 of 7 is missing"),
        (lambda header: header.replace(b'"chunks":6', b'"chunks":-1'), "its chunks are not .* differs"),
        (
            lambda header: header.replace(b'"chunks":6', b'"chunks":1000000000000'),
            r"chunk \d+ of 1000000000000 is missing",
        ),
        (lambda header: header.replace(b'"xxh3_128":"', b'"xxh3_128":"0'), "its chunks are not .* differs"),
        (lambda header: header.replace(b'"generation":"', b'"generation":"0'), r"chunk \d of 6 is missing"),
    ],
)
async def test_a_damaged_header_is_told_and_can_be_replaced(
    store: EtcdCheckpointStore, raw: Raw, damage: Callable[[bytes], bytes], message: str
) -> None:
    for mend in (store.save("k", "new"), store.save("k", LONG), store.delete("k")):
        await store.save("k", LONG)
        header = (await raw.all())["entry/k"].removeprefix(HEADER)
        await raw.put("entry/k", HEADER + damage(header))
        for load in (store.load, store.load_versioned):
            with pytest.raises(StoreCorruptedError, match=f"under 'k' is corrupted: {message}"):
                await load("k")
        assert [key async for key in store.list_keys()] == ["k"]
        await mend
    assert await store.load("k") is None


async def test_a_damaged_or_missing_chunk_is_told(store: EtcdCheckpointStore, raw: Raw) -> None:
    await store.save("k", LONG)
    chunk = next(name for name in await raw.all() if name.endswith("/00000003"))
    await raw.put(chunk, (await raw.all())[chunk].replace("😀".encode(), "😁".encode(), 1))
    with pytest.raises(StoreCorruptedError, match="XXH3 differs"):
        await store.load("k")
    await raw.delete(chunk)
    with pytest.raises(StoreCorruptedError, match="chunk 3 of 6 is missing; restore it from a backup"):
        await store.load("k")
    await store.save("k", "new")
    assert await raw.all() == {"entry/k": b"new"}


@pytest.mark.parametrize("stored", [b"\xff", b"\0", b"\0dagonizer-etcd/2 {}", b"a\0b", b"caf\xe9"])
async def test_what_no_text_can_have_left_is_told(store: EtcdCheckpointStore, raw: Raw, stored: bytes) -> None:
    for mend in (store.save("k", "new"), store.delete("k")):
        await raw.put("entry/k", stored)
        with pytest.raises(StoreCorruptedError):
            await store.load("k")
        await mend
    assert await raw.all() == {}


# Listing.


async def test_a_listing_comes_in_pages_and_shows_whole_entries_only(
    store: EtcdCheckpointStore, raw: Raw, meddler: Meddler
) -> None:
    keys = [f"{number:05d}" for number in range(2_500)]

    async def put(some: list[str]) -> None:
        for key in some:
            await raw.put(f"entry/{key}", b"{}")

    await asyncio.gather(*(put(keys[start::20]) for start in range(20)))
    await store.save("long", LONG)
    assert [key async for key in store.list_keys()] == [*keys, "long"]
    assert len(meddler.requests) - 15 <= 3
    assert [key async for key in store.list_keys("0000")] == keys[:10]
    assert [key async for key in store.list_keys("x")] == []
    assert [key async for key in store.list_keys("02499")] == ["02499"]


async def test_a_prefix_of_a_listing_is_text(store: EtcdCheckpointStore) -> None:
    keys = ["a", "a%", "a*", "a/", "a0", "aÿ", "a\U0010ffff", "b", "\x7f", "\U0010ffff", "\U0010ffff😀"]
    for key in keys:
        await store.save(key, "")
    for prefix in ("", "a", "a%", "a*", "aÿ", "a\U0010ffff", "\x7f", "\U0010ffff"):
        assert {key async for key in store.list_keys(prefix)} == {key for key in keys if key.startswith(prefix)}


async def test_a_key_in_etcd_that_is_no_text_is_told(store: EtcdCheckpointStore, raw: Raw) -> None:
    await raw.kv.Put(rpc.PutRequest(key=raw.root + b"entry/\xff", value=b""))
    with pytest.raises(StoreCorruptedError, match=r"entry/\\xff', is none of this store; delete it"):
        await anext(store.list_keys())


async def test_a_listing_ends_with_its_store(store: EtcdCheckpointStore) -> None:
    for key in "abc":
        await store.save(key, "")
    listing = store.list_keys()
    assert await anext(listing) == "a"
    await store.aclose()
    with pytest.raises(StoreClosedError):
        await anext(listing)


# Use.


async def test_keys_and_values_are_checked_before_anything_is_sent() -> None:
    store = EtcdCheckpointStore()
    for key in ("", "\0", "\ud800", "x" * 1025):
        for call in (
            store.load(key),
            store.save(key, ""),
            store.delete(key),
            store.load_versioned(key),
            store.save_if(key, "", expected=None),
        ):
            with pytest.raises(InvalidKeyError):
                await call
    for value in ("\0", "\ud800"):
        for call in (store.save("k", value), store.save_if("k", value, expected="x")):
            with pytest.raises(InvalidValueError):
                await call


async def test_the_callers_channel_or_client_is_used_and_not_closed(etcd_server: Server, prefix: str) -> None:
    address = etcd_server.url.removeprefix("etcd://")
    config = EtcdConfig(prefix=prefix, chunk_bytes=CHUNK)
    channel = grpc.aio.insecure_channel(address)
    # Its constructor blocks, and needs a loop all the same.
    client = AioClient("127.0.0.1", int(address.rpartition(":")[2]))
    for theirs in (channel, client):
        async with EtcdCheckpointStore(config, client=theirs) as store:
            for text in ("short", LONG):
                await store.save("k", text)
                assert await store.load("k") == text
        with pytest.raises(StoreClosedError):
            await store.load("k")
    await rpc.KVStub(channel).Range(rpc.RangeRequest(key=b"k"))
    assert (await client.range("k")).kvs is None
    await channel.close()
    await client.close()
    for theirs in (channel, client):
        store = EtcdCheckpointStore(config, client=theirs)
        for call in (store.load("k"), store.save("k", "")):
            with pytest.raises(StoreUnavailableError, match="closed"):
                await call


async def test_a_store_serves_loops_of_several_threads_at_once(
    store: EtcdCheckpointStore, capfd: pytest.CaptureFixture[str]
) -> None:
    async def use(name: str) -> None:
        for number in range(20):
            await asyncio.gather(*(store.save(f"{name} {key}", f"{number}") for key in range(5)))
            assert await asyncio.gather(*(store.load(f"{name} {key}") for key in range(5))) == [f"{number}"] * 5
        await store.save(name, LONG)
        assert await store.load(name) == LONG

    threads = [asyncio.to_thread(asyncio.run, use(f"thread {number}")) for number in range(3)]
    await asyncio.gather(use("main"), *threads)
    assert capfd.readouterr().err == ""


async def test_a_timeout_bounds_an_operation() -> None:
    # The system accepts, and nobody ever reads.
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for scheme in ("etcd", "etcd+http"):
            async with open_store(f"{scheme}://127.0.0.1:{port}?timeout=0.3") as store:
                for call in (store.load("k"), store.save("k", ""), anext(store.list_keys())):
                    async with asyncio.timeout(5):
                        with pytest.raises(StoreUnavailableError, match=f"at 127.0.0.1:{port}: "):
                            await call


async def test_a_save_that_timed_out_is_taken_back() -> None:
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        server.bind(("127.0.0.1", 0))
        server.listen()
        text = "x" * 700_000

        def received() -> int:
            connection, _ = server.accept()
            count = 0
            with connection, contextlib.suppress(ConnectionResetError):
                connection.settimeout(10)
                while part := connection.recv(1 << 16):
                    count += len(part)
            return count

        async with open_store(f"etcd+http://127.0.0.1:{server.getsockname()[1]}?timeout=0.5") as store:
            with pytest.raises(StoreUnavailableError):
                await store.save("k", text)
            # Only now does anybody read.
            assert await asyncio.to_thread(received) < len(text)


async def test_a_host_is_no_kind_of_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    connections = []
    async with (
        await asyncio.start_unix_server(lambda *connection: connections.append(connection), "2379"),
        open_store("etcd://unix:2379?timeout=3") as store,
    ):
        with pytest.raises(StoreUnavailableError):
            await store.load("k")
    assert connections == []


async def test_a_request_larger_than_the_server_takes_is_a_limit(scheme: str, etcd_server: Server, prefix: str) -> None:
    url = f"{etcd_server.url.replace('etcd', scheme, 1)}{prefix}?chunk_bytes=4000000"
    async with open_store(url) as store:
        await store.save("k", "old")
        for text in ("x" * 1_700_000, "x" * 5_000_000):
            with pytest.raises(StoreError, match=r"too large|larger than") as caught:
                await store.save("k", text)
            assert type(caught.value) is StoreLimitError
        assert await store.load("k") == "old"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
def test_a_forked_process_uses_the_gateway_and_is_told_why_not_grpc(scheme: str, url: str) -> None:
    program = textwrap.dedent("""
        import multiprocessing, sys
        from dagonizer.blocking import open_store

        store = open_store(sys.argv[1])
        store.save("k", "of the parent")

        def child():
            try:
                print(store.load("k"), flush=True)
            except Exception as exc:
                print(f"{type(exc).__name__}: {exc}", flush=True)

        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        process.join()
        assert store.load("k") == "of the parent"
        sys.exit(process.exitcode)
    """)
    ran = subprocess.run([sys.executable, "-c", program, url], capture_output=True, text=True, check=False, timeout=60)
    assert ran.returncode == 0, ran.stderr
    if scheme == "etcd":
        assert ran.stdout.startswith("StoreError: could not load 'k' at 127.0.0.1:")
        assert "gRPC cannot be used in a process that was forked" in ran.stdout
        assert "use etcd+http:" in ran.stdout
    else:
        assert ran.stdout == "of the parent\n"
