import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

import dagonizer
from dagonizer import (
    CheckpointData,
    Dagonizer,
    InvalidKeyError,
    MemoryCheckpointStore,
    NodeStateBase,
    StoreClosedError,
    StoreConflictError,
    StoreError,
    StoreURLError,
    ValidationError,
    blocking,
    durable,
    node,
)
from dagonizer.blocking import BlockingStore, Checkpoint, open_store

DATA = CheckpointData(dag_name="process", cursor="load", state={"n": 1}, executed_nodes=("extract",), skipped_nodes=())


class Bare:
    """Three methods, and an end."""

    async def save(self, key, json): ...

    async def load(self, key): ...

    async def delete(self, key): ...

    async def aclose(self): ...

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_): ...


@pytest.fixture
def store():
    with BlockingStore(MemoryCheckpointStore) as store:
        yield store


def test_a_store_is_opened_by_url_and_used_without_await():
    with open_store("memory://blocking") as store, open_store("memory://blocking") as another:
        store.save("k", "text")
        assert another.load("k") == "text"
        assert another.load("absent") is None
        store.delete("k")
        assert another.load("k") is None


def test_a_checkpoint_is_persisted_and_recalled(store):
    Checkpoint.persist(store, "k", DATA)
    recalled = Checkpoint.recall(store, "k", dict)
    assert (recalled.dag_name, recalled.cursor, recalled.state) == ("process", "load", {"n": 1})
    assert Checkpoint.recall(store, "absent", dict) is None
    store.save("k", "{}")
    with pytest.raises(ValidationError):
        Checkpoint.recall(store, "k", dict)


def test_the_codec_is_the_same():
    for name in ("from_result", "to_json", "restore"):
        assert getattr(Checkpoint, name) is getattr(dagonizer.Checkpoint, name)


def test_compare_and_swap(store):
    version = store.save_if("k", "a", expected=None)
    assert store.load_versioned("k").version == version
    store.save_if("k", "b", expected=version)
    with pytest.raises(StoreConflictError):
        store.save_if("k", "c", expected=version)
    assert store.load_versioned("absent") is None


@pytest.mark.parametrize("count", [0, 1, 255, 256, 257, 1000])
def test_a_listing_yields_every_key_once_however_many_pages_it_has(store, count):
    for number in range(count):
        store.save(f"k{number}", "")
    store.save("another", "")
    assert sorted(store.list_keys("k")) == sorted(f"k{number}" for number in range(count))


def test_a_listing_that_is_left_ends_the_stores_own():
    ended = threading.Event()

    class Listing(Bare):
        async def list_keys(self, prefix=""):
            try:
                while True:
                    yield "k"
            finally:
                ended.set()

    keys = BlockingStore(Listing).list_keys()
    assert next(keys) == "k"
    keys.close()
    assert ended.is_set()


def test_what_the_store_raises_is_raised(store):
    with pytest.raises(InvalidKeyError):
        store.save("", "text")
    with pytest.raises(InvalidKeyError):
        list(store.list_keys("\0"))
    with pytest.raises(StoreURLError):
        open_store("memory://name?unknown=1")


def test_a_store_without_a_method_says_so():
    store = BlockingStore(Bare)
    for call in (
        store.list_keys,
        lambda: store.load_versioned("k"),
        lambda: store.save_if("k", "", expected=None),
    ):
        with pytest.raises(StoreError, match="Bare cannot"):
            call()


def test_after_close_every_method_raises_and_closing_again_does_not(store):
    store.save("k", "")
    listing = store.list_keys()
    assert next(listing) == "k"
    store.close()
    store.close()
    for call in (
        lambda: store.save("k", ""),
        lambda: store.load("k"),
        lambda: store.delete("k"),
        store.list_keys,
        lambda: store.load_versioned("k"),
        lambda: store.save_if("k", "", expected=None),
        lambda: next(listing),
    ):
        with pytest.raises(StoreClosedError):
            call()


def test_many_threads_share_a_store(store):
    def count(_):
        for _ in range(20):
            while True:
                found = store.load_versioned("count")
                text, version = (found.json, found.version) if found else ("0", None)
                try:
                    store.save_if("count", str(int(text) + 1), expected=version)
                except StoreConflictError:
                    continue
                break

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(count, range(16)))
    assert store.load("count") == "320"
    assert len([thread for thread in threading.enumerate() if thread.name == "dagonizer"]) == 1


async def test_it_can_be_used_where_an_event_loop_runs(store):
    store.save("k", "text")
    assert await asyncio.to_thread(store.load, "k") == "text"


def test_a_call_from_its_own_event_loop_is_refused_for_it_would_never_end(store):
    class Nested(Bare):
        async def load(self, key):
            return store.load(key)

    with pytest.raises(RuntimeError, match="use await"):
        BlockingStore(Nested).load("k")


@pytest.mark.parametrize("begun", [False, True])
def test_a_call_that_is_interrupted_before_it_waits_is_cancelled(monkeypatch, begun):
    entered, cancelled = threading.Event(), threading.Event()

    class Endless(Bare):
        async def save(self, key, json):
            entered.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.set()
                raise

    submit = asyncio.run_coroutine_threadsafe

    def submit_and_be_interrupted(work, loop):
        if begun:
            submit(work, loop)
            assert entered.wait(30)
        else:
            # In one turn of the event loop, so that it is given up before it has begun.
            turn = threading.Event()
            loop.call_soon_threadsafe(turn.wait)
            submit(work, loop)
            loop_is_free.append(turn)
        raise KeyboardInterrupt

    loop_is_free = []
    store = BlockingStore(Endless)
    monkeypatch.setattr(asyncio, "run_coroutine_threadsafe", submit_and_be_interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.save("k", "")
    monkeypatch.undo()
    for turn in loop_is_free:
        turn.set()
    # Whatever was to be done before it is done.
    store.load("k")
    assert cancelled.wait(30) if begun else not entered.is_set()


def test_an_interrupted_call_is_cancelled():
    program = textwrap.dedent("""
        import asyncio, threading
        from dagonizer.blocking import BlockingStore

        class Store:
            async def save(self, key, json):
                print("entered", flush=True)
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    cancelled.set()
                    raise

        cancelled = threading.Event()
        try:
            BlockingStore(Store).save("k", "")
        except KeyboardInterrupt:
            # The end of the process would cancel it as well.
            print("interrupted", cancelled.wait(30), flush=True)
    """)
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "entered\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.read() == "interrupted True\n"
    assert process.returncode == 0


def test_an_interrupted_listing_ends_with_nothing_else():
    program = textwrap.dedent("""
        import asyncio
        from dagonizer.blocking import BlockingStore

        class Store:
            async def list_keys(self, prefix=""):
                try:
                    print("entered", flush=True)
                    await asyncio.Event().wait()
                    yield "k"
                finally:
                    await asyncio.sleep(0.05)
                    print("ended", flush=True)

        try:
            list(BlockingStore(Store).list_keys())
        except KeyboardInterrupt:
            print("interrupted", flush=True)
    """)
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "entered\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.read() == "ended\ninterrupted\n"
    assert process.returncode == 0


def test_a_store_can_be_used_and_closed_when_the_process_ends():
    program = textwrap.dedent("""
        import atexit
        from dagonizer.blocking import open_store

        store = open_store("memory://x")
        atexit.register(store.close)
        atexit.register(lambda: print(store.load("k")))
        store.save("k", "v")
    """)
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert (ran.stdout, ran.stderr) == ("v\n", "")


def test_the_process_ends_although_nobody_has_closed_the_store():
    program = textwrap.dedent("""
        import asyncio
        from dagonizer import MemoryCheckpointStore
        from dagonizer.blocking import BlockingStore

        class Threaded(MemoryCheckpointStore):
            # In the executor of the event loop, as many a store does.
            async def load(self, key):
                return await asyncio.to_thread(asyncio.run, super().load(key))

        store = BlockingStore(Threaded)
        store.save("k", "v")
        print(store.load("k"))
    """)
    ran = subprocess.run(
        [sys.executable, "-X", "dev", "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert (ran.stdout, ran.stderr) == ("v\n", "")


def test_what_waits_when_the_process_ends_is_cancelled():
    program = textwrap.dedent("""
        import asyncio, threading
        from dagonizer import MemoryCheckpointStore
        from dagonizer.blocking import BlockingStore

        entered = threading.Event()

        class Waiting(MemoryCheckpointStore):
            async def load(self, key):
                entered.set()
                try:
                    await asyncio.Event().wait()
                finally:
                    print("ended", flush=True)

        threading.Thread(target=BlockingStore(Waiting).load, args=("k",), daemon=True).start()
        entered.wait()
    """)
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout == "ended\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
def test_a_forked_process_opens_the_store_anew():
    # In a process of its own, as this one has other threads.
    program = textwrap.dedent("""
        import multiprocessing, os, threading
        from dagonizer import MemoryCheckpointStore
        from dagonizer.blocking import BlockingStore

        opened = []

        class Counting(MemoryCheckpointStore):
            def __init__(self):
                super().__init__()
                opened.append(os.getpid())

        forked = BlockingStore(Counting)
        forked.save("k", "of the parent")

        def child():
            # In memory, it begins empty.
            print(forked.load("k"), opened[-1] == os.getpid(), threading.active_count())
            forked.close()

        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        process.join(60)
        print(process.exitcode, forked.load("k"))
    """)
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert ran.stdout == "None True 2\n0 of the parent\n"


def test_nothing_is_kept_of_what_was_raised():
    # In a process of its own, as this one has other futures.
    program = textwrap.dedent("""
        import concurrent.futures, contextlib, gc
        from dagonizer import InvalidKeyError, MemoryCheckpointStore
        from dagonizer.blocking import BlockingStore

        def futures():
            return sum(isinstance(found, concurrent.futures.Future) for found in gc.get_objects())

        with BlockingStore(MemoryCheckpointStore) as store:
            store.save("k", "text")
            gc.collect()
            gc.disable()
            before = futures()
            for _ in range(10):
                with contextlib.suppress(InvalidKeyError):
                    store.save("", "text")
            print(futures() - before)
    """)
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert int(ran.stdout) <= 1


def test_importing_starts_no_thread():
    program = "import threading, dagonizer.blocking; print(threading.active_count())"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout == "1\n"
    assert blocking.__all__ == ["BlockingStore", "Checkpoint", "open_store"]


def test_a_script_runs_a_dag_as_the_docstring_says_and_reads_its_checkpoint_without_await():
    dispatcher = Dagonizer()

    @node()
    async def work(state, context):
        # Not the event loop of the blocking stores, so a node may use one.
        with open_store("memory://blocking") as store:
            assert Checkpoint.recall(store, "run-1", dict).cursor == "work"
        state.set_metadata("worked", True)

    dispatcher.register_node(work)
    only = {"type": "single", "name": "work", "node": "work", "outputs": {"success": None}}
    dispatcher.register_dag({"name": "dag", "version": "1", "entrypoint": "work", "nodes": [only]})
    _, example = blocking.__doc__.split("loop of its own::\n")
    example = textwrap.dedent(example).replace("redis://localhost", "memory://blocking")
    names = {
        "asyncio": asyncio,
        "dagonizer": dagonizer,
        "durable": durable,
        "dispatcher": dispatcher,
        "State": NodeStateBase,
    }
    exec(example, names)
    assert names["result"].state.get_metadata("worked") is True
    with open_store("memory://blocking") as store:
        assert list(store.list_keys()) == []
