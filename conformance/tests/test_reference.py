"""The reference store and its backend: correct without a fault, and wrong in the way that each fault says."""

import asyncio
import contextlib
import subprocess
import sys
import threading
import types
from pathlib import Path

import pytest

from dagonizer import (
    InvalidKeyError,
    InvalidValueError,
    StoreClosedError,
    StoreConflictError,
    StoreCorruptedError,
    StoreUnavailableError,
    StoreURLError,
    SupportsClose,
    SupportsCompareAndSwap,
    SupportsListing,
    VersionedJson,
    open_store,
)
from dagonizer.registry import store_endpoints
from dagonizer_conformance.harness import URLHarness
from dagonizer_conformance.mutants.reference import Connection, ReferenceHarness, ReferenceStore
from dagonizer_conformance.mutants.server import FAULTS

NAMESPACE = "dgzconf-test"


@contextlib.asynccontextmanager
async def running(store=ReferenceStore, **options):
    harness = ReferenceHarness(store, **options)
    await harness.start()
    try:
        yield harness
    finally:
        await harness.stop()


@contextlib.asynccontextmanager
async def opened(store=ReferenceStore, **options):
    async with running(store, **options) as harness, await harness.open(NAMESPACE) as client:
        yield harness, client


@contextlib.asynccontextmanager
async def silent_backend():
    """A backend that never answers: its port, and events for the first connection and for the end of the first."""
    connected, ended = asyncio.Event(), asyncio.Event()
    served = []

    async def swallow(reader, writer):
        served.append(asyncio.current_task())
        connected.set()
        with contextlib.closing(writer):
            while await reader.read(65536):
                pass
        ended.set()

    server = await asyncio.start_server(swallow, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], connected, ended
    finally:
        server.close()
        await server.wait_closed()
        await asyncio.gather(*served)


def descriptors():
    return sum(1 for _ in Path("/dev/fd").iterdir())


class TestContract:
    def test_round_trips(self):
        async def main():
            async with opened() as (_, store):
                assert await store.load("key") is None
                assert await store.load_versioned("key") is None
                assert await store.save("key", "text") is None
                assert await store.load("key") == "text"
                await store.save("key", "")
                assert await store.load("key") == ""
                assert await store.delete("key") is None
                assert await store.load("key") is None
                await store.delete("key")

        asyncio.run(main())

    @pytest.mark.parametrize("text", ["é漢😀", " \r\n\ufeff\x1f", '{"id": 1', "%s {} '; --"])
    @pytest.mark.parametrize("key", ["é漢😀", "e\u0301", "../a\\b%00\n", "k" * 1024])
    def test_text_and_key_are_opaque(self, key, text):
        async def main():
            async with opened() as (harness, store), await harness.open(NAMESPACE) as other:
                await store.save(key, text)
                assert await other.load(key) == text
                assert [name async for name in other.list_keys()] == [key]

        asyncio.run(main())

    def test_has_every_optional_protocol(self):
        store = ReferenceStore("127.0.0.1", 1, NAMESPACE)
        for protocol in (SupportsListing, SupportsCompareAndSwap, SupportsClose):
            assert isinstance(store, protocol)

    def test_illegal_keys_and_values_are_refused_by_all_methods(self):
        async def main():
            async with opened() as (_, store):
                for key in ("", "\0", "\ud800", "k" * 1025, 7):
                    for call in (
                        store.save(key, "text"),
                        store.load(key),
                        store.delete(key),
                        store.load_versioned(key),
                        store.save_if(key, "text", expected=None),
                    ):
                        with pytest.raises(InvalidKeyError):
                            await call
                for value in ("\0", "\ud800", b"bytes"):
                    for call in (store.save("key", value), store.save_if("key", value, expected=None)):
                        with pytest.raises(InvalidValueError):
                            await call
                with pytest.raises(InvalidKeyError):
                    [key async for key in store.list_keys("\0")]
                assert await store.load("key") is None

        asyncio.run(main())

    def test_namespaces_do_not_meet(self):
        async def main():
            async with running() as harness, await harness.open("a") as first, await harness.open("a:b") as second:
                await first.save("b:c", "first")
                await second.save("c", "second")
                assert await first.load("b:c") == "first"
                assert await second.load("c") == "second"
                assert [key async for key in first.list_keys()] == ["b:c"]

        asyncio.run(main())

    def test_64_mib(self):
        async def main():
            async with opened(timeout=30) as (_, store):
                text = "0123456789abcdé" * (64 * 2**20 // 16)
                await store.save("key", text)
                assert await store.load("key") == text

        asyncio.run(main())

    def test_listing_has_pages_and_a_literal_prefix(self):
        async def main():
            async with opened() as (_, store):
                keys = [f"a%_*/{i}" for i in range(600)]
                await asyncio.gather(*(store.save(key, "") for key in (*keys, "b", "a")))
                assert sorted([key async for key in store.list_keys("a%_*")]) == sorted(keys)
                assert sorted([key async for key in store.list_keys()]) == sorted((*keys, "a", "b"))
                assert [key async for key in store.list_keys("%")] == []

        asyncio.run(main())

    def test_undecodable_bytes_are_corruption(self):
        async def main():
            async with opened() as (harness, store):
                await harness.poke(NAMESPACE, "key", "text\udcff")
                assert await harness.peek(NAMESPACE, "key") == "text\udcff"
                assert await harness.peek(NAMESPACE, "other") is None
                with pytest.raises(StoreCorruptedError):
                    await store.load("key")
                await store.save("key", "text")
                assert await store.load("key") == "text"

        asyncio.run(main())


class TestCompareAndSwap:
    def test_only_the_expected_version_is_replaced(self):
        async def main():
            async with opened() as (_, store):
                first = await store.save_if("key", "1", expected=None)
                assert await store.load_versioned("key") == await store.load_versioned("key")
                second = await store.save_if("key", "2", expected=first)
                for stale in (None, first, "bogus"):
                    with pytest.raises(StoreConflictError):
                        await store.save_if("key", "3", expected=stale)
                await store.save("key", "2")
                with pytest.raises(StoreConflictError):
                    await store.save_if("key", "3", expected=second)
                assert await store.load("key") == "2"

        asyncio.run(main())

    def test_versions_are_never_used_again(self):
        async def main():
            async with opened() as (harness, store):
                versions = [await store.save_if("key", "1", expected=None)]
                await store.delete("key")
                versions.append(await store.save_if("key", "2", expected=None))
                await harness.kill()
                assert (await store.load_versioned("key")).version == versions[-1]
                await store.delete("key")
                await harness.kill()
                versions.append(await store.save_if("key", "3", expected=None))
                assert len(set(versions)) == 3

        asyncio.run(main())

    @pytest.mark.parametrize("faults", [(), ("uneven",)])
    def test_a_counter_under_contention_counts_each(self, faults):
        async def count(store, rounds):
            while rounds:
                entry = await store.load_versioned("key")
                with contextlib.suppress(StoreConflictError):
                    await store.save_if(
                        "key",
                        str(int(entry.json) + 1) if entry else "1",
                        expected=entry.version if entry else None,
                    )
                    rounds -= 1

        async def main():
            async with opened(faults=faults, timeout=10) as (harness, store), await harness.open(NAMESPACE) as other:
                await asyncio.gather(*(count(client, 5) for client in (store, store, other)))
                assert await store.load("key") == "15"

        asyncio.run(main())


class TestCrash:
    def test_acknowledged_values_survive_sigkill(self):
        async def main():
            async with opened() as (harness, store):
                await asyncio.gather(*(store.save(f"key {i}", f"text {i}") for i in range(100)))
                await store.delete("key 7")
                await harness.kill()
                loaded = await asyncio.gather(*(store.load(f"key {i}") for i in range(100)))
                assert loaded == [None if i == 7 else f"text {i}" for i in range(100)]

        asyncio.run(main())

    def test_a_torn_record_is_cut_off(self):
        async def main():
            async with opened() as (harness, store):
                await store.save("key", "whole")
                journal = Path(harness._directory, "journal")
                whole = journal.read_bytes()
                await store.save("key", "torn")
                await harness.down()
                journal.write_bytes(journal.read_bytes()[:-1])
                await harness.up()
                assert await store.load("key") == "whole"
                assert journal.read_bytes() == whole
                await store.save("key", "after")
                await harness.kill()
                assert await store.load("key") == "after"

        asyncio.run(main())

    def test_down_makes_every_method_raise_and_up_recovers(self):
        async def main():
            async with opened() as (harness, store):
                await store.save("key", "text")
                await harness.down()
                for call in (
                    store.save("key", "text"),
                    store.load("key"),
                    store.delete("key"),
                    store.load_versioned("key"),
                    store.save_if("key", "text", expected=None),
                    anext(store.list_keys()),
                ):
                    with pytest.raises(StoreUnavailableError) as caught:
                        await call
                    assert isinstance(caught.value.__cause__, OSError)
                await harness.up()
                await harness.up()
                assert await store.load("key") == "text"

        asyncio.run(main())

    def test_idle_connections_of_a_killed_backend_are_not_used(self):
        async def main():
            async with opened() as (harness, store):
                await asyncio.gather(*(store.load("key") for _ in range(8)))
                assert len(store._idle) > 1
                await harness.kill()
                # A save is never sent twice, so it must not be sent on a dead connection.
                await store.save("key", "text")
                assert len(store._idle) == 1

        asyncio.run(main())

    def test_the_backend_ends_with_its_parent(self, tmp_path):
        server = Path(sys.modules[ReferenceStore.__module__].__file__).with_name("server.py")
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", server, "--directory", tmp_path, "--port", "0", "--faults", ""],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        with process:
            assert int(process.stdout.readline())
            process.stdin.close()
            assert process.wait(10) == 0

    def test_a_backend_that_cannot_start_is_told(self, capfd):
        async def main():
            harness = ReferenceHarness(faults=["no-such-fault"])
            with pytest.raises(RuntimeError, match="did not start"):
                await harness.start()
            await harness.stop()

        asyncio.run(main())
        assert "no-such-fault" in capfd.readouterr().err


class TestCancellation:
    def test_drops_the_connection(self):
        async def main():
            async with silent_backend() as (port, connected, ended):
                store = ReferenceStore("127.0.0.1", port, NAMESPACE)
                task = asyncio.create_task(store.save("key", "text"))
                await connected.wait()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert store._idle == []
                await asyncio.wait_for(ended.wait(), 10)
                await store.aclose()

        asyncio.run(main())

    def test_the_bytes_of_a_cancelled_save_do_not_land_after_a_later_save(self):
        async def main(store_class):
            late = 0
            async with opened(store_class, faults=["uneven"]) as (_, store):
                for i in range(12):
                    await asyncio.gather(store.load("a"), store.load("b"))
                    task = asyncio.create_task(store.save("key", f"cancelled {i}"))
                    # It is sent at its first step, and then waits for the reply.
                    await asyncio.sleep(0)
                    task.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await task
                    await store.save("key", f"later {i}")
                    # Longer than the fault delays any command.
                    await asyncio.sleep(0.03)
                    late += await store.load("key") != f"later {i}"
            return late

        class Unordered(ReferenceStore):
            def _write_order(self):
                return {}

        assert asyncio.run(main(ReferenceStore)) == 0
        assert asyncio.run(main(Unordered)) > 0

    def test_leaks_neither_slots_nor_descriptors(self):
        async def main():
            async with opened() as (_, store):
                await store.load("key")
                before = descriptors()
                for i in range(200):
                    task = asyncio.create_task(store.save("key", f"text {i}"))
                    for _ in range(i % 9):
                        await asyncio.sleep(0)
                    task.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await task
                assert descriptors() <= before + 1
                assert store._slots()._value == store.max_connections
                await store.save("key", "last")
                assert await store.load("key") == "last"

        asyncio.run(main())

    def test_the_backend_minds_no_client_that_is_gone(self, capfd):
        async def main():
            async with opened() as (_, store):
                await store.save("key", "x" * 2**22)
                for _ in range(5):
                    connection = await Connection.open(store._host, store._port)
                    await connection.send({"id": 0, "command": "get", **store.place("key")}, b"")
                    await connection._receive(1)
                    connection.close()
                    await store.load("key")

        asyncio.run(main())
        assert capfd.readouterr().err == ""

    def test_a_reply_to_another_request_is_refused(self):
        async def main():
            async with opened() as (_, store):
                connection = await Connection.open(store._host, store._port)
                await connection.send({"id": 0, "command": "get", "namespace": NAMESPACE, "key": "other"}, b"")
                store._idle.append(connection)
                store._is_stale = lambda _connection: False
                with pytest.raises(StoreUnavailableError, match="the reply to request 0 came"):
                    await store.load("key")
                assert store._idle == []
                assert await store.load("key") is None

        asyncio.run(main())


class TestConnections:
    def test_silence_ends_at_the_timeout(self):
        async def main():
            async with silent_backend() as (port, _, _), ReferenceStore("127.0.0.1", port, "n", timeout=0.05) as store:
                with pytest.raises(StoreUnavailableError, match="did not answer") as caught:
                    await store.load("key")
                assert isinstance(caught.value.__cause__, TimeoutError)
                # The one that waits for a slot ends too.
                ends = await asyncio.gather(*(store.load("key") for _ in range(20)), return_exceptions=True)
                assert {type(end) for end in ends} == {StoreUnavailableError}
                assert store._slots()._value == store.max_connections

        asyncio.run(main())

    def test_are_bounded_and_kept(self):
        async def main():
            async with opened(faults=["slow"]) as (_, store):
                before = descriptors()
                await asyncio.gather(*(store.load(f"key {i}") for i in range(60)))
                assert len(store._idle) == store.max_connections
                assert descriptors() == before + store.max_connections
                await store.aclose()
                assert descriptors() == before

        asyncio.run(main())

    def test_a_second_event_loop_works(self):
        harness = ReferenceHarness()
        asyncio.run(harness.start())
        store = asyncio.run(harness.open(NAMESPACE))
        asyncio.run(store.save("key", "text"))
        assert asyncio.run(store.load("key")) == "text"

        async def many():
            await asyncio.gather(*(store.save(f"key {i}", "text") for i in range(50)))

        threads = [threading.Thread(target=asyncio.run, args=(many(),)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(store._slots_by_loop) <= 4
        asyncio.run(store.aclose())
        assert store._idle == []
        asyncio.run(harness.stop())

    def test_closed_means_closed(self):
        async def main():
            async with opened() as (harness, store):
                await store.aclose()
                await store.aclose()
                for call in (
                    store.save("", "text"),
                    store.load("key"),
                    store.delete("key"),
                    store.load_versioned("key"),
                    store.save_if("key", "text", expected=None),
                    anext(store.list_keys()),
                ):
                    with pytest.raises(StoreClosedError):
                        await call
                async with await harness.open(NAMESPACE) as other:
                    assert await other.load("key") is None

        asyncio.run(main())

    def test_closing_ends_a_listing(self):
        async def main():
            async with opened() as (_, store):
                await asyncio.gather(*(store.save(key, "") for key in "abc"))
                keys = store.list_keys()
                assert await anext(keys) == "a"
                await store.aclose()
                with pytest.raises(StoreClosedError):
                    await anext(keys)

        asyncio.run(main())

    def test_closing_during_saves_is_safe(self):
        async def main():
            async with opened(faults=["slow"]) as (harness, store):
                before = descriptors()
                saves = [asyncio.create_task(store.save(f"key {i}", "text")) for i in range(20)]
                while len(store._slots_by_loop) == 0 or not store._slots().locked():
                    await asyncio.sleep(0)
                await store.aclose()
                ends = await asyncio.gather(*saves, return_exceptions=True)
                assert {type(end) for end in ends} == {type(None), StoreClosedError}
                assert descriptors() == before
                async with await harness.open(NAMESPACE) as other:
                    for i, end in enumerate(ends):
                        assert await other.load(f"key {i}") == ("text" if end is None else None)

        asyncio.run(main())


class TestAddress:
    def test_opens_the_same_data(self):
        async def main():
            async with opened(timeout=3.5) as (harness, store):
                by_url = URLHarness(harness.address())
                async with await by_url.open(NAMESPACE) as other, await by_url.open("dgzconf-2:x") as stranger:
                    assert type(other) is ReferenceStore
                    assert other._timeout == 3.5
                    await store.save("key", "text")
                    assert await other.load("key") == "text"
                    assert await stranger.load("key") is None
                (endpoint,) = store_endpoints(harness.address())
                assert endpoint == ("127.0.0.1", store._port)

        asyncio.run(main())

    def test_names_a_store_of_the_catalogue(self, monkeypatch):
        class Mutant(ReferenceStore):
            pass

        class Unknown(ReferenceStore):
            pass

        catalogue = types.SimpleNamespace(STORES={Mutant.__qualname__: Mutant})
        monkeypatch.setitem(sys.modules, "dagonizer_conformance.mutants.catalogue", catalogue)
        assert type(open_store(ReferenceHarness(Mutant).address())) is Mutant
        assert ReferenceHarness(Unknown).address() is None
        with pytest.raises(StoreURLError, match="the catalogue has no store"):
            open_store("dgzconf-reference://127.0.0.1:1/n?store=Unknown")

    @pytest.mark.parametrize(
        "url", ["//127.0.0.1/n", "//127.0.0.1:1/", "//a:1,b:1/n", "//u@a:1/n", "//a:1/n?timeout=0"]
    )
    def test_refuses_what_is_no_reference_url(self, url):
        with pytest.raises(StoreURLError):
            open_store(f"dgzconf-reference:{url}")

    def test_the_report_tells_store_and_faults(self):
        harness = ReferenceHarness(faults=["slow"])
        assert harness.describe() == "ReferenceStore + slow"
        assert harness.describe_namespaces()


class TestFaults:
    def test_each_is_tested_here(self):
        tested = {name.removeprefix("test_").replace("_", "-") for name in dir(type(self)) if name.startswith("test_")}
        assert set(FAULTS) <= tested

    def test_slow(self):
        async def main():
            async with opened(faults=["slow"]) as (_, store):
                loop = asyncio.get_running_loop()
                started = loop.time()
                await store.load("key")
                assert loop.time() - started >= 0.005

        asyncio.run(main())

    def test_uneven(self):
        async def main():
            async with opened(faults=["uneven"]) as (_, store):
                order = []

                async def load(i):
                    await store.load("key")
                    order.append(i)

                await asyncio.gather(*(load(i) for i in range(8)))
                assert order != sorted(order)

        asyncio.run(main())

    def test_ends_if_cut_off(self):
        async def load_and_give_up(store):
            # Again and again, for on a busy machine a load may be given up before it was sent.
            while await store.load("key") == "text":
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.002):
                        await store.load("key")

        async def main():
            async with opened(faults=["slow", "ends-if-cut-off"]) as (_, store), asyncio.timeout(30):
                await store.save("key", "text")
                assert await store.load("key") == "text"
                with pytest.raises(StoreUnavailableError):
                    await load_and_give_up(store)

        asyncio.run(main())

    def test_acknowledge_before_write(self):
        async def main():
            async with opened(faults=["acknowledge-before-write"]) as (harness, store):
                unseen = lost = 0
                # Several times, for a busy machine may take longer than the fault.
                for i in range(10):
                    await store.save("key", f"text {i}")
                    unseen += await store.load("key") != f"text {i}"
                    while await store.load("key") != f"text {i}":
                        await asyncio.sleep(0.001)
                    await store.save("key", f"lost {i}")
                    await harness.kill()
                    lost += await store.load("key") == f"text {i}"
                assert unseen
                assert lost

        asyncio.run(main())

    def test_no_journal(self):
        async def main():
            async with opened(faults=["no-journal"]) as (harness, store):
                await store.save("key", "text")
                assert await store.load("key") == "text"
                await harness.kill()
                assert await store.load("key") is None

        asyncio.run(main())

    def test_list_capped(self):
        async def main():
            async with opened(faults=["list-capped"]) as (_, store):
                await asyncio.gather(*(store.save(f"key {i}", "") for i in range(1003)))
                assert len([key async for key in store.list_keys()]) == 1000
                assert await store.load("key 999") == ""

        asyncio.run(main())

    def test_evict_after_1000(self):
        async def main():
            async with opened(faults=["evict-after-1000"]) as (_, store):
                for i in range(1001):
                    await store.save(f"key {i}", "")
                assert await store.load("key 0") is None
                assert len([key async for key in store.list_keys()]) == 1000

        asyncio.run(main())

    def test_expire(self):
        async def main():
            async with opened(faults=["expire"]) as (_, store):
                await store.save("key", "text")
                assert await store.load("key") == "text"
                async with asyncio.timeout(10):
                    while await store.load("key") is not None:
                        await asyncio.sleep(0.01)

        asyncio.run(main())

    def test_faults_combine(self):
        async def main():
            async with opened(faults=["no-journal", "list-capped"]) as (harness, store):
                await asyncio.gather(*(store.save(f"key {i}", "") for i in range(1001)))
                assert len([key async for key in store.list_keys()]) == 1000
                await harness.kill()
                assert [key async for key in store.list_keys()] == []

        asyncio.run(main())

    def test_save_keeps_version(self):
        async def main():
            async with opened(faults=["save-keeps-version"]) as (_, store):
                version = await store.save_if("key", "one", expected=None)
                await store.save("key", "two")
                assert await store.load_versioned("key") == VersionedJson("two", version)

        asyncio.run(main())

    def test_versions_restart(self):
        async def main():
            async with opened(faults=["versions-restart"]) as (_, store):
                versions = []
                for text in ("one", "two"):
                    versions.append(await store.save_if("key", text, expected=None))
                    await store.delete("key")
                assert versions[0] == versions[1]

        asyncio.run(main())

    def test_version_of_backend(self):
        async def main():
            async with opened(faults=["version-of-backend"]) as (_, store):
                version = await store.save_if("key", "one", expected=None)
                await store.save("another", "text")
                assert await store.load_versioned("key") != VersionedJson("one", version)

        asyncio.run(main())

    def test_version_is_second(self):
        async def main():
            async with opened(faults=["version-is-second"]) as (_, store):
                versions = {await store.save_if(f"key {n}", "text", expected=None) for n in range(20)}
                assert len(versions) < 20

        asyncio.run(main())
