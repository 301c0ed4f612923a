"""A client in another process: it calls the same store, can be killed and paused, and leaves nothing behind."""

import asyncio
import contextlib
import gc
import subprocess
import threading
import time
from pathlib import Path

import pytest

from dagonizer import InvalidKeyError, InvalidValueError, StoreConflictError, StoreUnavailableError, VersionedJson
from dagonizer_conformance.mutants.reference import ReferenceHarness
from dagonizer_conformance.outcomes import TargetError
from dagonizer_conformance.process import ClientProcess, ProcessLost

NAMESPACE = "dgzconf-test"

STORES = """
import asyncio, os, sys
from dagonizer import MemoryCheckpointStore, StoreUnavailableError
from neighbour import WORD

class Odd(MemoryCheckpointStore):
    async def save(self, key, text):
        print("to standard output")
        await super().save(key, text)

    async def load(self, key):
        match key:
            case "namespace": return self.namespace
            case "mine": raise AcmeError("mine")
            case "wrong": raise LookupError(f"wrong {WORD}")
            case "cancelled": raise asyncio.CancelledError
            case "bytes": return b"bytes"
            case "surrogate": return "\\ud800"
            case "never": await asyncio.Event().wait()
            case "exit": print("last words", file=sys.stderr, flush=True); os._exit(7)
        return await super().load(key)

    async def aclose(self):
        if self.namespace == "hangs":
            await asyncio.Event().wait()
        print("closed", file=open(self.path, "w"))

class AcmeError(StoreUnavailableError):
    pass

def odd(namespace):
    store = Odd()
    store.namespace = namespace
    store.path = __file__ + ".closed"
    return store

def broken(namespace):
    print("a hint", file=sys.stderr)
    raise LookupError("no such thing")

class Three:
    async def save(self, key, json): ...
    async def load(self, key): ...
    async def delete(self, key): ...

def three(namespace):
    return Three()
"""


@pytest.fixture
def stores(tmp_path, monkeypatch):
    (tmp_path / "stores.py").write_text(STORES)
    (tmp_path / "neighbour.py").write_text("WORD = 'word'")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / "stores.py"


@contextlib.asynccontextmanager
async def started(target, namespace=NAMESPACE):
    client = await ClientProcess.start(str(target), namespace)
    try:
        yield client
    finally:
        await client.stop()


@contextlib.asynccontextmanager
async def reference(**options):
    harness = ReferenceHarness(**options)
    await harness.start()
    try:
        async with started(harness.address()) as client, await harness.open(NAMESPACE) as store:
            yield harness, client, store
    finally:
        await harness.stop()


async def pause(client):
    """Pause the process, and wait until the kernel says that it stands."""
    client.pause()
    while not state_of(client._process.pid).startswith("T"):
        await asyncio.sleep(0)


def state_of(pid):
    stat = Path(f"/proc/{pid}/stat")
    if stat.exists():
        return stat.read_text().rpartition(")")[2].strip()
    return subprocess.run(["ps", "-o", "state=", "-p", str(pid)], capture_output=True, text=True, check=True).stdout


def test_calls_the_same_store():
    async def main():
        async with reference() as (_, client, store):
            text = "é漢😀\n" * 1000
            assert await client.load("key") is None
            assert await client.load_versioned("key") is None
            assert await client.save("key", text) is None
            assert await store.load("key") == text
            assert await client.load("key") == text
            version = await client.save_if("key", "2", expected=(await store.load_versioned("key")).version)
            assert await client.load_versioned("key") == VersionedJson("2", version)
            with pytest.raises(StoreConflictError, match="'key' is not at version None"):
                await client.save_if("key", "3", expected=None)
            assert await client.delete("key") is None
            assert await store.load("key") is None

    asyncio.run(main())


def test_what_is_no_text_reaches_the_store():
    async def main():
        async with reference() as (_, client, _):
            with pytest.raises(InvalidValueError, match="lone surrogate"):
                await client.save("key", "\ud800")
            for key in ("\ud800", "\0", ""):
                with pytest.raises(InvalidKeyError):
                    await client.load(key)

    asyncio.run(main())


def test_calls_overlap():
    async def main():
        async with reference() as (_, client, store):
            await asyncio.gather(*(client.save(f"key {i}", str(i)) for i in range(50)))
            assert await asyncio.gather(*(store.load(f"key {i}") for i in range(50))) == [str(i) for i in range(50)]

    asyncio.run(main())


def test_a_reply_is_not_held_up_by_a_call_that_waits(stores):
    async def main():
        async with started(f"{stores}:odd") as client:
            waiting = asyncio.create_task(client.load("never"))
            await client.save("key", "text")
            assert await client.load("key") == "text"
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert await client.load("key") == "text"

    asyncio.run(main())


def test_a_large_value_goes_both_ways():
    async def main():
        async with reference(timeout=30) as (_, client, store):
            text = "0123456789abcdef" * 2**20
            await client.save("key", text)
            assert await store.load("key") == text
            assert await client.load("key") == text

    asyncio.run(main())


def test_errors_keep_their_class(stores):
    async def main():
        async with started(f"{stores}:odd") as client:
            with pytest.raises(StoreUnavailableError, match="mine"):
                await client.load("mine")
            with pytest.raises(RuntimeError, match=r"^LookupError: wrong word\nTraceback") as caught:
                await client.load("wrong")
            assert "stores.py" in str(caught.value)
            with pytest.raises(RuntimeError, match="CancelledError"):
                await client.load("cancelled")
            with pytest.raises(RuntimeError, match="TypeError"):
                await client.load("bytes")
            assert await client.load("surrogate") == "\ud800"
            assert await client.load("namespace") == NAMESPACE

    asyncio.run(main())


def test_a_method_that_the_store_lacks(stores):
    async def main():
        async with started(f"{stores}:three") as client:
            assert await client.load("key") is None
            with pytest.raises(RuntimeError, match="AttributeError"):
                await client.load_versioned("key")

    asyncio.run(main())


def test_what_a_store_prints_is_no_reply(stores):
    async def main():
        async with started(f"{stores}:odd") as client:
            await client.save("key", "text")
            assert await client.load("key") == "text"

    asyncio.run(main())


def test_a_module_is_found_where_the_parent_finds_it(stores):
    async def main():
        async with started("stores:odd") as client:
            assert await client.load("namespace") == NAMESPACE

    asyncio.run(main())


def test_stop_closes_the_store(stores):
    async def main():
        async with started(f"{stores}:odd") as client:
            waiting = asyncio.create_task(client.load("never"))
            await client.save("key", "text")
            await client.stop()
            await client.stop()
            with pytest.raises(RuntimeError, match="CancelledError"):
                await waiting
            with pytest.raises(ProcessLost, match="ended with status 0"):
                await client.load("key")
            assert client._process.returncode == 0

    asyncio.run(main())
    assert stores.with_name("stores.py.closed").read_text() == "closed\n"


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("{stores}:broken", r"LookupError: no such thing\na hint\nTraceback"),
        ("{stores}:absent", "TargetError: cannot find 'absent'"),
        ("no-such-scheme://host/", "TargetError: unknown scheme 'no-such-scheme'"),
    ],
)
def test_a_store_that_cannot_be_opened_is_told(stores, target, says):
    async def main():
        with pytest.raises(TargetError, match=f"in another process cannot open the store: {says}"):
            await ClientProcess.start(target.format(stores=stores), NAMESPACE)

    asyncio.run(main())


def test_a_child_that_cannot_start_is_told(stores, monkeypatch):
    monkeypatch.setattr("dagonizer_conformance.process.__name__", "no_such_module")

    async def main():
        with pytest.raises(TargetError, match=r"ended with status 1\nTraceback(.|\n)*no_such_module"):
            await ClientProcess.start(f"{stores}:odd", NAMESPACE)

    asyncio.run(main())


def test_a_killed_process_is_lost():
    async def main():
        async with reference(faults=["slow"]) as (_, client, store):
            await client.save("key", "old")
            await pause(client)
            # Larger than a pipe holds, so that the first is killed in the middle of being sent.
            calls = [asyncio.create_task(client.save("key", "new" * 2**20)) for _ in range(5)]
            await asyncio.sleep(0)
            client.kill()
            for end in await asyncio.gather(*calls, return_exceptions=True):
                assert isinstance(end, ProcessLost)
                assert "was killed by signal 9" in str(end)
            with pytest.raises(ProcessLost):
                await client.load("key")
            await client.stop()
            assert await store.load("key") == "old"

    asyncio.run(main())


def test_a_process_that_ends_by_itself_says_its_last_words(stores):
    async def main():
        async with started(f"{stores}:odd") as client:
            with pytest.raises(ProcessLost, match="ended with status 7\nlast words"):
                await client.load("exit")

    asyncio.run(main())


def test_a_paused_process_goes_on_when_resumed():
    async def main():
        async with reference() as (_, client, store):
            await pause(client)
            # Larger than a pipe holds, so that writing it blocks, which must not block this loop.
            save = asyncio.create_task(client.save("key", "x" * 2**20))
            await store.save("other", "text")
            assert not save.done()
            assert await store.load("key") is None
            client.resume()
            await save
            assert await store.load("key") == "x" * 2**20

    asyncio.run(main())


def test_a_paused_process_can_be_stopped_and_killed():
    async def main():
        async with reference() as (_, client, _):
            await pause(client)
            save = asyncio.create_task(client.save("key", "x" * 2**20))
            await asyncio.sleep(0)
            await client.stop()
            assert client._process.returncode == 0
            await asyncio.gather(save, return_exceptions=True)
        async with reference() as (_, client, _):
            await pause(client)
            client.kill()
            await client.stop()
            assert client._process.returncode == -9

    asyncio.run(main())


def test_a_store_that_does_not_close_is_killed(stores, monkeypatch):
    monkeypatch.setattr("dagonizer_conformance.process._PATIENCE", 0.1)

    async def main():
        client = await ClientProcess.start(f"{stores}:odd", "hangs")
        await client.stop()
        assert client._process.returncode == -9

    asyncio.run(main())


def test_serves_several_loops():
    async def main():
        async with reference() as (_, client, _):

            async def call(i):
                await client.save(f"key {i}", "text")
                assert await client.load(f"key {i}") == "text"

            await asyncio.gather(*(asyncio.to_thread(asyncio.run, call(i)) for i in range(4)))

    asyncio.run(main())


def held():
    # On Linux; elsewhere there are none to be seen.
    children = {pid for file in Path("/proc/self/task").glob("*/children") for pid in file.read_text().split()}
    return threading.active_count(), sum(1 for _ in Path("/dev/fd").iterdir()), children


def test_leaves_nothing_behind(stores):
    async def main():
        # What other tests have left may go meanwhile.
        gc.collect()
        before = held()
        for end in ("stop", "kill", "fail", "cancel"):
            for _ in range(3):
                match end:
                    case "fail":
                        with pytest.raises(TargetError):
                            await ClientProcess.start(f"{stores}:broken", NAMESPACE)
                    case "cancel":
                        with pytest.raises(TimeoutError):
                            async with asyncio.timeout(0.01):
                                await ClientProcess.start(f"{stores}:odd", NAMESPACE)
                    case _:
                        async with started(f"{stores}:odd") as client:
                            if end == "kill":
                                client.kill()
        deadline = time.monotonic() + 5
        while held() != before and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        assert held() == before

    asyncio.run(main())


def test_secrets_are_not_among_the_arguments(stores):
    async def main():
        async with started(f"{stores}:odd") as client:
            assert str(stores) not in " ".join(client._process.args)

    asyncio.run(main())


def test_little_is_imported(stores):
    stores.write_text("import sys\n" + STORES.replace("return self.namespace", "return ' '.join(sys.modules)"))

    async def main():
        async with started(f"{stores}:odd") as client:
            return set((await client.load("namespace")).split())

    assert not asyncio.run(main()) & {"hypothesis", "rich", "typer", "pytest"}
