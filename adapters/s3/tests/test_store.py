"""What the store promises, looked at from both sides: through the store and in the bucket."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
import threading
import traceback
import uuid
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aioboto3
import boto3
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dagonizer import StoreURL, contracts, open_store
from dagonizer.errors import (
    InvalidKeyError,
    InvalidValueError,
    StoreAccessError,
    StoreClosedError,
    StoreConflictError,
    StoreCorruptedError,
    StoreError,
    StoreUnavailableError,
)
from dagonizer_conformance.proxy import FaultProxy
from dagonizer_s3 import S3CheckpointStore, S3Config, _client
from dagonizer_s3 import _names as names
from dagonizer_test_servers.s3 import BUCKET, SeaweedFS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from dagonizer_test_servers import Server

README = Path(__file__).parents[1] / "README.md"
KEYS = [
    "a", "A", "a ", " a", "a.", ".", "..", "../a", "/a", "a/", "a/b", "a//b", "a/./b", "a/b/c", "a\\b", "a:b", "%61", "a_b",
    "a__b", "_61", "a.json", "\u00e9", "e\u0301", "ß", "ss", "\u017f", "K", "k", "😀", "a\n", "\x01" * 1024, "x" * 1024, "x" * 1023,
    "é" * 512, "😀" * 256, "*", "?", "#", "&", "+", "=", "dagonizer.probe", "x" * 250, "x" * 251,
]  # fmt: skip
TEXTS = ["", "{}", "a\r\nb", "\ufeffbom", "e\u0301", "😀\U0010ffff", "not json", "x" * 3_000_000]
ALIKE = st.sampled_from("aA\u00e9E\u0301\u212bÅß./\\:%*?~_ \n\x7f😀\u200d")


@pytest.fixture
def config(s3_server: Server) -> S3Config:
    """A prefix of the shared server that nobody else uses."""
    url, _, query = s3_server.url.partition("?")
    return S3Config.from_url(StoreURL.parse(f"{url.removesuffix('/')}/test-{uuid.uuid4()}?{query}"))


def changed(config: S3Config, **changes: Any) -> S3Config:
    fields = {name: getattr(config, name) for name in config.__dataclass_fields__}
    return S3Config(**{**fields, **changes})


def raw(config: S3Config) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=config.endpoint_url,
        region_name=config.region,
        aws_access_key_id=config.access_key_id,
        aws_secret_access_key=config.secret_access_key,
    )


def boto_of(config: S3Config) -> Any:
    return aioboto3.Session(
        aws_access_key_id=config.access_key_id,
        aws_secret_access_key=config.secret_access_key,
        region_name=config.region,
    )


def objects(config: S3Config) -> list[str]:
    listing = raw(config).list_objects_v2(Bucket=config.bucket, Prefix=f"{config.prefix}/")
    return [entry["Key"].removeprefix(f"{config.prefix}/") for entry in listing.get("Contents", ())]


async def listed(store: Any, prefix: str = "") -> list[str]:
    return [key async for key in store.list_keys(prefix)]


def test_it_has_every_optional_protocol() -> None:
    store = S3CheckpointStore(S3Config(bucket="bucket"))
    for protocol in (contracts.ClosableStore, contracts.SupportsListing, contracts.SupportsCompareAndSwap):
        assert isinstance(store, protocol)


async def test_an_object_is_the_text_and_nothing_else(config: S3Config) -> None:
    long = "é" * 500
    async with S3CheckpointStore(config) as store:
        for text in TEXTS:
            for key in ("run-42", long):
                await store.save(key, text)
                assert await store.load(key) == text
                name = f"{config.prefix}/{names.segment_of(key.encode())}"
                found = raw(config).get_object(Bucket=config.bucket, Key=name)
                assert found["Body"].read() == text.encode()
                assert found["ContentType"] == "application/json"
                assert set(found["Metadata"]) == ({"key"} if key == long else set())
    assert sorted(objects(config))[1] == "run-42.json"


async def test_no_two_keys_meet_also_where_one_is_a_directory_of_the_other(config: S3Config) -> None:
    async with S3CheckpointStore(config) as store:
        for key in KEYS:
            await store.save(key, "of " + key)
        for key in KEYS:
            assert await store.load(key) == "of " + key
        assert sorted(await listed(store)) == sorted(KEYS)
        for prefix in ("a", "a/", "x" * 251, "\x01" * 30, "é" * 100, "é" * 512, "_", "%"):
            assert sorted(await listed(store, prefix)) == sorted(key for key in KEYS if key.startswith(prefix))
        for key in KEYS:
            await store.delete(key)
            assert await store.load(key) is None
    assert objects(config) == []


@settings(max_examples=25, deadline=None)
@given(entries=st.dictionaries(st.text(ALIKE, min_size=1, max_size=6), st.text(ALIKE, max_size=6), max_size=5))
def test_any_keys_with_any_values(s3_server: Server, entries: dict[str, str]) -> None:
    async def main() -> None:
        async with open_store(s3_server.url.replace("/?", f"/any-{uuid.uuid4()}?")) as store:
            for key, value in entries.items():
                await store.save(key, value)
            for key, value in entries.items():
                assert await store.load(key) == value
            assert sorted(await listed(store)) == sorted(entries)

    asyncio.run(main())


async def test_a_listing_of_more_than_a_page_passes_over_what_is_not_the_stores(config: S3Config) -> None:
    keys = [f"{'a%' if number % 2 else 'a_'}/{number}" for number in range(1_250)]
    foreign = ("README.txt", "x.JSON", "_41.json", "dagonizer.probe", "below/a.json")
    below = S3CheckpointStore(changed(config, prefix=f"{config.prefix}/below"))
    pages = 0

    def count(**_: object) -> None:
        nonlocal pages
        pages += 1

    async with _client.connected(config) as client, S3CheckpointStore(config, client=client) as store:
        client.meta.events.register("before-send.s3.ListObjectsV2", count)
        for name in foreign:
            await client.put_object(Bucket=config.bucket, Key=f"{config.prefix}/{name}", Body=b"")
        for start in range(0, len(keys), 50):
            await asyncio.gather(*(store.save(key, "v") for key in keys[start : start + 50]))
        assert sorted(await listed(store)) == sorted(keys)
        assert pages == 2
        assert sorted(await listed(store, "a%")) == sorted(key for key in keys if key.startswith("a%"))
        assert pages == 3, "the server filters"
        assert await listed(store, "b") == []
        assert await listed(below) == ["a"]
        # One page only is asked for before the first key.
        pages = 0
        listing = store.list_keys()
        await anext(listing)
        assert pages == 1
        await listing.aclose()
    await below.aclose()


async def test_a_long_key_whose_object_lost_its_metadata_is_told(config: S3Config) -> None:
    key = "long/" * 100
    async with S3CheckpointStore(config) as store:
        await store.save(key, "v")
        name = f"{config.prefix}/{names.segment_of(key.encode())}"
        raw(config).put_object(Bucket=config.bucket, Key=name, Body=b"v")
        with pytest.raises(StoreCorruptedError, match="save it again"):
            await listed(store)
        assert await store.load(key) == "v"
        await store.save(key, "w")
        assert await listed(store) == [key]


async def test_bytes_that_are_no_text_are_told(config: S3Config) -> None:
    async with S3CheckpointStore(config) as store:
        raw(config).put_object(Bucket=config.bucket, Key=f"{config.prefix}/k.json", Body=b"\xff")
        for load in (store.load, store.load_versioned):
            with pytest.raises(StoreCorruptedError):
                await load("k")


async def test_large_texts_are_compressed_and_loaded_by_every_store(config: S3Config) -> None:
    large, small = '{"step": 1}' * 10_000, '{"step": 1}'
    plain, compressing = S3CheckpointStore(config), S3CheckpointStore(changed(config, compression="zstd"))
    async with plain, compressing:
        for text, kind in ((large, "application/zstd"), (small, "application/json")):
            await compressing.save("k", text)
            found = raw(config).get_object(Bucket=config.bucket, Key=f"{config.prefix}/k.json")
            stored = found["Body"].read()
            assert found["ContentType"] == kind
            assert "ContentEncoding" not in found
            if text == large:
                assert stored.startswith(b"\x28\xb5\x2f\xfd")
                assert len(stored) < len(text) / 10
            else:
                assert stored == text.encode()
            for store in (plain, compressing):
                assert await store.load("k") == text


async def test_stores_that_compress_and_stores_that_do_not_swap_with_each_other(config: S3Config) -> None:
    first, second = ("1" * 10_000, "2" * 10_000)
    plain, compressing = S3CheckpointStore(config), S3CheckpointStore(changed(config, compression="zstd"))
    async with plain, compressing:
        for one, other in ((plain, compressing), (compressing, plain)):
            version = await one.save_if("k", first, expected=None)
            assert await other.load_versioned("k") == contracts.VersionedJson(first, version)
            changed_version = await other.save_if("k", second, expected=version)
            with pytest.raises(StoreConflictError):
                await one.save_if("k", first, expected=version)
            assert await one.load_versioned("k") == contracts.VersionedJson(second, changed_version)
            await one.delete("k")


async def test_a_damaged_frame_is_told(config: S3Config) -> None:
    async with S3CheckpointStore(changed(config, compression="zstd")) as store:
        await store.save("k", "v" * 10_000)
        place = {"Bucket": config.bucket, "Key": f"{config.prefix}/k.json"}
        frame = raw(config).get_object(**place)["Body"].read()
        for damaged in (frame[:-1], frame[:-1] + bytes([frame[-1] ^ 1]), frame[:4]):
            raw(config).put_object(**place, Body=damaged)
            for load in (store.load, store.load_versioned):
                with pytest.raises(StoreCorruptedError, match="Zstandard"):
                    await load("k")


async def test_compare_and_swap(config: S3Config) -> None:
    async with S3CheckpointStore(config) as store:
        first = await store.save_if("k", "1", expected=None)
        with pytest.raises(StoreConflictError):
            await store.save_if("k", "2", expected=None)
        second = await store.save_if("k", "2", expected=first)
        with pytest.raises(StoreConflictError):
            await store.save_if("k", "3", expected=first)
        current = await store.load_versioned("k")
        assert current == contracts.VersionedJson("2", second)
        await store.delete("k")
        with pytest.raises(StoreConflictError):
            await store.save_if("k", "3", expected=second)
        assert await store.load_versioned("k") is None
        assert objects(config) == []


class Withholding:
    """A proxy that can keep a request, receive it to its end, and deliver it when its sender has given it up."""

    def __init__(self, endpoint_url: str) -> None:
        host, _, port = endpoint_url.removeprefix("http://").partition(":")
        self._backend = host, int(port)
        self.withholds = False
        self._kept = bytearray()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        backend: asyncio.StreamWriter | None = None
        replies: asyncio.Task[None] | None = None
        try:
            while chunk := await reader.read(65_536):
                if self.withholds:
                    self._kept += chunk
                    continue
                if backend is None:
                    answers, backend = await asyncio.open_connection(*self._backend)
                    replies = asyncio.create_task(pump(answers, writer))
                backend.write(chunk)
        except ConnectionResetError:
            pass
        finally:
            if backend is not None and replies is not None:
                replies.cancel()
                backend.close()
            writer.close()

    async def deliver(self) -> int:
        """Send the request that was kept to the server, and return the status of its answer."""
        answers, backend = await asyncio.open_connection(*self._backend)
        backend.write(self._kept)
        status = int((await answers.readline()).split()[1])
        backend.close()
        self._kept.clear()
        return status


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(65_536):
        writer.write(chunk)


@asynccontextmanager
async def withholding(config: S3Config, timeout: float = 2) -> AsyncIterator[tuple[S3CheckpointStore, Withholding]]:
    assert config.endpoint_url is not None
    proxy = Withholding(config.endpoint_url)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1")
    port = server.sockets[0].getsockname()[1]
    store = S3CheckpointStore(changed(config, endpoint_url=f"http://127.0.0.1:{port}", timeout=timeout))
    async with server, store:
        yield store, proxy


async def expect_late_changes_undo_nothing(store: S3CheckpointStore, proxy: Withholding) -> None:
    for given_up in (partial(store.save, "k", "late"), partial(store.delete, "k")):
        for before in ("", "before"):
            await store.save("k", before)
            proxy.withholds = True
            with pytest.raises(StoreUnavailableError, match="timeout"):
                await given_up()
            proxy.withholds = False
            await store.save("k", "acknowledged")
            assert await proxy.deliver() == 412
            assert await store.load("k") == "acknowledged"


async def test_what_was_given_up_and_comes_late_undoes_nothing(config: S3Config) -> None:
    async with withholding(config) as (store, proxy):
        await expect_late_changes_undo_nothing(store, proxy)
        await store.delete("k")
        # What was absent when it was given up, too.
        proxy.withholds = True
        with pytest.raises(StoreUnavailableError, match="timeout"):
            await store.save("k", "late")
        proxy.withholds = False
        await store.save("k", "acknowledged")
        assert await proxy.deliver() == 412
        assert await store.load("k") == "acknowledged"


def contended(
    call: Callable[..., Awaitable[Any]],
    name: str,
    change: Callable[[], Awaitable[None]],
    change_back: Callable[[], Awaitable[None]],
) -> Callable[..., Awaitable[Any]]:
    """Return ``call``, but for another client that changes the object ``name`` before it, and after it back, 5 times.

    So whoever calls finds the object as it was, and yet is refused.
    """
    rounds = iter(range(5))

    async def contend(**parameters: Any) -> Any:
        if parameters["Key"] != name or next(rounds, None) is None:
            return await call(**parameters)
        await change()
        try:
            return await call(**parameters)
        finally:
            await change_back()

    return contend


async def test_what_others_change_as_well_says_nothing_of_the_server(config: S3Config) -> None:
    name = f"{config.prefix}/shared.json"
    async with withholding(config, timeout=30) as (store, proxy), S3CheckpointStore(config) as other:
        client: Any = await store._connections._of_this_loop().connection()
        save_theirs = partial(other.save, "shared", "theirs")
        # Absent before and after.
        client.put_object = contended(client.put_object, name, save_theirs, partial(other.delete, "shared"))
        await store.save("shared", "mine")
        # The same text before and after.
        client.delete_object = contended(client.delete_object, name, save_theirs, partial(other.save, "shared", "mine"))
        await store.delete("shared")
        store._connections._timeout = 2
        await expect_late_changes_undo_nothing(store, proxy)
        assert await store.load("shared") is None
        assert store._unconditional == other._unconditional == set()
        assert objects(config) == ["k.json"]


async def test_stores_that_change_one_entry_in_turn_see_each_other(config: S3Config) -> None:
    async with S3CheckpointStore(config) as one, S3CheckpointStore(config) as other:
        for text in ("1", "", "2"):
            await one.save("k", text)
            assert await other.load("k") == text
            await other.save("k", f"other {text}")
            await one.delete("k")
            assert await other.load("k") is None
            await other.delete("k")
            await other.save("k", "again")


async def test_bad_keys_and_values_never_reach_the_server() -> None:
    async with S3CheckpointStore(S3Config(bucket="bucket", endpoint_url="http://127.0.0.1:1")) as store:
        bad: Any
        for bad in ("", "a\0", "\ud800", "x" * 1025, 1):
            for operation in (
                store.save(bad, "v"),
                store.load(bad),
                store.delete(bad),
                store.load_versioned(bad),
                store.save_if(bad, "v", expected=None),
            ):
                with pytest.raises(InvalidKeyError):
                    await operation
            if bad != "":
                with pytest.raises(InvalidKeyError):
                    await anext(store.list_keys(bad))
        for bad in ("a\0", "\udfff", b"v"):
            for operation in (store.save("k", bad), store.save_if("k", bad, expected=None)):
                with pytest.raises(InvalidValueError):
                    await operation


async def test_after_close_every_call_raises(config: S3Config) -> None:
    async with S3CheckpointStore(config) as store:
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


def test_a_second_event_loop(config: S3Config) -> None:
    store = S3CheckpointStore(config)
    asyncio.run(store.save("k", "v"))
    assert asyncio.run(store.load("k")) == "v"


async def test_the_callers_client_is_used_and_never_closed(config: S3Config) -> None:
    async with _client.connected(config) as client:
        async with S3CheckpointStore(changed(config, endpoint_url="http://127.0.0.1:1"), client=client) as store:
            await store.save("k", "v")
        found = await client.get_object(Bucket=config.bucket, Key=f"{config.prefix}/k.json")
        assert await found["Body"].read() == b"v"


async def test_idle_connections_that_have_gone_silent_cost_one_operation(config: S3Config) -> None:
    port = int(config.endpoint_url.rpartition(":")[2])
    async with FaultProxy("127.0.0.1", port) as proxy:
        behind = changed(config, endpoint_url=f"http://127.0.0.1:{proxy.port}", timeout=2)
        async with S3CheckpointStore(behind) as store:
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


async def test_the_connections_of_the_callers_client_are_the_callers(config: S3Config) -> None:
    port = int(config.endpoint_url.rpartition(":")[2])
    async with FaultProxy("127.0.0.1", port) as proxy:
        session = boto_of(config)
        async with session.client("s3", endpoint_url=f"http://127.0.0.1:{proxy.port}") as client:
            store = S3CheckpointStore(changed(config, timeout=1), client=client)
            await asyncio.gather(*(store.load("k") for _ in range(3)))
            await proxy.half_open()
            for _ in range(2):
                with pytest.raises(StoreUnavailableError, match="no answer"):
                    await store.load("k")


async def test_one_client_for_an_event_loop_is_made_outside_its_thread(
    config: S3Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []
    real = _client._session

    def session(config: S3Config) -> Any:
        threads.append(threading.get_ident())
        return real(config)

    monkeypatch.setattr(_client, "_session", session)
    async with S3CheckpointStore(config) as store:
        await asyncio.gather(*(store.save(f"{number}", "v") for number in range(20)))
    assert len(threads) == 1
    assert threads[0] != threading.get_ident()


MEMORY = """
import asyncio, resource, sys
from dagonizer import open_store

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

async def main():
    async with open_store(sys.argv[1]) as store:
        await store.save("warm", "x")
        await store.load("warm")
        before = peak()
        if sys.argv[2] == "save":
            await store.save("large", "é" * (32 << 20))
        else:
            assert await store.load("large") == "é" * (32 << 20)
        print((peak() - before) / (64 << 20))

asyncio.run(main())
"""


def test_64_mib_take_at_most_five_times_their_memory(s3_server: Server) -> None:
    url = s3_server.url.replace("/?", f"/large-{uuid.uuid4()}?")
    for action in ("save", "load"):
        ran = subprocess.run(
            [sys.executable, "-c", MEMORY, url, action], capture_output=True, text=True, check=False, env=os.environ
        )
        assert ran.returncode == 0, ran.stderr
        assert float(ran.stdout) < 5
    asyncio.run(S3CheckpointStore(S3Config.from_url(StoreURL.parse(url))).delete("large"))


def test_the_example_of_the_readme_runs(s3_server: Server) -> None:
    example = README.read_text().split("```python")[1].split("```")[0]
    environment = {**os.environ, "CHECKPOINTS_URL": s3_server.url}
    subprocess.run([sys.executable, "-W", "error", "-c", example], check=True, env=environment)


@pytest.fixture(scope="module")
def restricted() -> Iterator[SeaweedFS]:
    """A server with users who may do no more than the README says, and less."""
    users = {
        "least": ["Read", "Write", "List"],
        "unlisted": ["Read", "Write"],
        "reader": ["Read", "List"],
        "policy": [],
    }
    identities = {user: [f"{action}:{BUCKET}" for action in actions] for user, actions in users.items()}
    with SeaweedFS(identities=identities) as server:
        yield server


async def use_everything(url: str) -> None:
    async with open_store(url) as store:
        assert isinstance(store, S3CheckpointStore)
        assert await store.load("k") is None
        version = await store.save_if("k", "1", expected=None)
        await store.save_if("k", "2", expected=version)
        await store.save("x" * 1000, "3")
        found = await store.load_versioned("k")
        assert found is not None
        assert found.json == "2"
        assert sorted(await listed(store)) == ["k", "x" * 1000]
        for key in ("k", "x" * 1000, "absent"):
            await store.delete(key)
        assert await listed(store) == []


async def test_the_actions_of_the_readme_are_enough(restricted: SeaweedFS) -> None:
    await use_everything(restricted.url_for("least", "least"))


async def test_the_policy_of_the_readme_is_enough(restricted: SeaweedFS) -> None:
    url = restricted.url_for("policy", "team")
    with pytest.raises(StoreAccessError, match="grant s3:GetObject, and s3:ListBucket"):
        await use_everything(url)
    policy = json.loads(README.read_text().split("```json")[1].split("```")[0].replace("my-checkpoints", BUCKET))
    for statement in policy["Statement"]:
        # A policy of the bucket needs what one of the user does not.
        statement["Principal"] = {"AWS": "arn:aws:iam::000000000000:user/policy"}
    client = restricted.client()
    client.put_bucket_policy(Bucket=BUCKET, Policy=json.dumps(policy))
    try:
        await use_everything(url)
    finally:
        client.delete_bucket_policy(Bucket=BUCKET)


async def test_a_missing_privilege_is_named(restricted: SeaweedFS) -> None:
    async with open_store(restricted.url_for("unlisted")) as store:
        assert isinstance(store, S3CheckpointStore)
        with pytest.raises(StoreAccessError, match="grant s3:ListBucket"):
            await listed(store)
    async with open_store(restricted.url_for("reader")) as store:
        with pytest.raises(StoreAccessError, match="grant s3:PutObject"):
            await store.save("k", "v")
        async with open_store(restricted.url_for("least")) as other:
            await other.save("k", "v")
            with pytest.raises(StoreAccessError, match="grant s3:DeleteObject"):
                await store.delete("k")
            await other.delete("k")


async def test_wrong_credentials_and_wrong_buckets_are_told_without_secrets(
    restricted: SeaweedFS, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    url = restricted.url_for("least")
    secret = "wrong-but-secret"
    told = []
    for wrong, advice in (
        (url.replace("least-secret", secret), "check the credentials"),
        (url.replace("least:least-secret", f"stranger:{secret}"), "check the credentials"),
        (restricted.url.replace(BUCKET, "another-bucket"), "check the bucket's name"),
    ):
        async with open_store(wrong) as store:
            assert isinstance(store, S3CheckpointStore)
            for operation in (
                store.save("k", "v"),
                store.load("k"),
                store.delete("k"),
                store.load_versioned("k"),
                store.save_if("k", "v", expected=None),
                anext(store.list_keys()),
            ):
                with pytest.raises(StoreAccessError, match=advice) as caught:
                    await operation
                told += traceback.format_exception(caught.value)
            told.append(repr(store))
    for text in (*told, caplog.text):
        assert secret not in text
        assert "least-secret" not in text
        assert "admin-secret" not in text


async def test_credentials_and_region_come_from_the_aws_configuration(
    restricted: SeaweedFS, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shared = tmp_path / "AWS_SHARED_CREDENTIALS_FILE"
    shared.write_text("[work]\naws_access_key_id = least\naws_secret_access_key = least-secret\n")
    url = f"s3://{BUCKET}/chain?endpoint_url={restricted.endpoint_url}"
    async with open_store(f"{url}&profile=work") as store:
        await store.save("k", "v")
    with pytest.raises(StoreAccessError, match="give credentials"):
        async with open_store(url) as store:
            await store.load("k")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "least")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "least-secret")
    async with open_store(url) as store:
        assert await store.load("k") == "v"


async def test_credentials_may_come_after_the_first_operation(
    restricted: SeaweedFS, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_store(f"s3://{BUCKET}/late?endpoint_url={restricted.endpoint_url}") as store:
        with pytest.raises(StoreAccessError, match="give credentials"):
            await store.save("k", "v")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "least")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "least-secret")
        await store.save("k", "v")
        assert await store.load("k") == "v"


async def test_a_server_that_is_gone_and_back(restricted: SeaweedFS) -> None:
    async with open_store(restricted.url_for("least", "gone", timeout="5")) as store:
        await store.save("k", "v")
        await asyncio.to_thread(restricted.down)
        try:
            for operation in (store.save("k", "w"), store.load("k"), store.delete("k")):
                with pytest.raises(StoreUnavailableError):
                    await operation
        finally:
            await asyncio.to_thread(restricted.up)
        assert await store.load("k") == "v"


async def test_tls_trusts_the_authority_that_is_named_and_no_other(encrypting: SeaweedFS, tmp_path: Path) -> None:
    assert encrypting.ca_bundle is not None
    async with open_store(encrypting.url_for("admin", "tls", ca_bundle=encrypting.ca_bundle)) as store:
        await store.save("k", "v")
        assert await store.load("k") == "v"
    empty = tmp_path / "empty.pem"
    empty.write_text("nothing")
    for parameters in ({}, {"ca_bundle": str(tmp_path / "missing.pem")}, {"ca_bundle": str(empty)}):
        async with open_store(encrypting.url_for("admin", "tls", **parameters)) as store:
            with pytest.raises(StoreAccessError, match="ca_bundle"):
                await store.load("k")


async def test_server_side_encryption_is_asked_for(encrypting: SeaweedFS) -> None:
    assert encrypting.ca_bundle is not None
    url = encrypting.url_for("admin", "sse", ca_bundle=encrypting.ca_bundle, sse="AES256")
    async with open_store(url) as store:
        assert isinstance(store, S3CheckpointStore)
        version = await store.save_if("k", "v", expected=None)
        await store.save_if("k", "w", expected=version)
        assert await store.load("k") == "w"
    head = await asyncio.to_thread(encrypting.client().head_object, Bucket=BUCKET, Key="sse/k.json")
    assert head["ServerSideEncryption"] == "AES256"


async def test_a_bucket_that_takes_encrypted_objects_only(encrypting: SeaweedFS) -> None:
    assert encrypting.ca_bundle is not None
    unencrypted = {
        "Effect": "Deny",
        "Principal": "*",
        "Action": "s3:PutObject",
        "Resource": f"arn:aws:s3:::{BUCKET}/*",
        "Condition": {"Null": {"s3:x-amz-server-side-encryption": "true"}},
    }
    client = encrypting.client()
    client.put_bucket_policy(Bucket=BUCKET, Policy=json.dumps({"Version": "2012-10-17", "Statement": [unencrypted]}))
    try:
        async with open_store(encrypting.url_for("admin", "only", ca_bundle=encrypting.ca_bundle)) as store:
            with pytest.raises(StoreAccessError, match="grant s3:PutObject"):
                await store.save("k", "v")
        await use_everything(encrypting.url_for("admin", "only", ca_bundle=encrypting.ca_bundle, sse="AES256"))
    finally:
        client.delete_bucket_policy(Bucket=BUCKET)


def test_kms_parameters_reach_the_request() -> None:
    config = S3Config(bucket="bucket", sse="aws:kms", sse_kms_key_id="alias/mine")
    parameters = S3CheckpointStore(config)._object("k", "v")
    assert parameters["ServerSideEncryption"] == "aws:kms"
    assert parameters["SSEKMSKeyId"] == "alias/mine"


async def test_every_error_is_a_store_error(config: S3Config) -> None:
    for wrong in ({"region": "not a region"}, {"profile": "none", "access_key_id": None, "secret_access_key": None}):
        async with S3CheckpointStore(changed(config, **wrong)) as store:
            with pytest.raises(StoreError):
                await store.load("k")
