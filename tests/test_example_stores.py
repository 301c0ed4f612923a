"""The stores of SQLite that the pages write: what they raise, and what cancelling them leaves."""

import asyncio
import sqlite3
import threading
from contextlib import closing
from types import ModuleType

import pytest
from pages import blocks

from dagonizer.errors import (
    StoreAccessError,
    StoreCorruptedError,
    StoreError,
    StoreLimitError,
    StoreUnavailableError,
)


def example(page, title):
    """Return the module that the page has in the end under that title."""
    source = [block.body for block in blocks(page) if block.title == title][-1]
    module = ModuleType(title.removesuffix(".py"))
    exec(source, module.__dict__)
    return module


def sqlite_store(file):
    return example("docs/how-to/write-a-store.md", "sqlite_store.py").SqliteStore(file)


def acme_store(file):
    return example("docs/test-your-own-store.md", "acme_store.py").AcmeStore(file)


@pytest.fixture
async def store(tmp_path):
    """One that has its table."""
    store = sqlite_store(tmp_path / "checkpoints.db")
    await store.save("key", "text")
    return store


def around(store, sql):
    with closing(sqlite3.connect(store.file, isolation_level=None)) as connection:
        connection.execute(sql)


def connected(monkeypatch, prepare):
    """Let every connection be prepared when it is made."""
    connect = sqlite3.connect

    def prepared(*args, **kwargs):
        connection = connect(*args, **kwargs)
        prepare(connection)
        return connection

    monkeypatch.setattr(sqlite3, "connect", prepared)


def refuse_insertions(action, *_):
    return sqlite3.SQLITE_DENY if action == sqlite3.SQLITE_INSERT else sqlite3.SQLITE_OK


@pytest.mark.parametrize(
    ("prepare", "error"),
    [
        (lambda connection: connection.execute("PRAGMA max_page_count = 3"), StoreLimitError),
        (lambda connection: connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 10_000), StoreLimitError),
        (lambda connection: connection.execute("PRAGMA query_only = TRUE"), StoreAccessError),
        (lambda connection: connection.set_authorizer(refuse_insertions), StoreAccessError),
    ],
    ids=["full", "too big", "read-only", "not authorised"],
)
async def test_what_a_save_is_refused_for_is_told_by_the_class(store, monkeypatch, prepare, error):
    connected(monkeypatch, prepare)
    with pytest.raises(StoreError) as caught:
        await store.save("key", "x" * 100_000)
    assert type(caught.value) is error
    assert isinstance(caught.value.__cause__, sqlite3.Error)
    monkeypatch.undo()
    assert await store.load("key") == "text"


@pytest.mark.parametrize(
    ("offset", "damage", "error"),
    [
        (0, b"no database, ", StoreCorruptedError),
        (4096, b"\xff" * 4096, StoreCorruptedError),
        (18, b"\3", StoreAccessError),
    ],
    ids=["no database", "a damaged page", "of a later version, which this one only reads"],
)
async def test_what_the_file_is_no_good_for_is_told_by_the_class(store, offset, damage, error):
    with store.file.open("r+b") as file:
        file.seek(offset)
        file.write(damage)
    with pytest.raises(StoreError) as caught:
        await store.save("key", "another")
    assert type(caught.value) is error


async def test_a_file_that_cannot_be_opened_or_is_locked_is_unavailable(store, monkeypatch):
    with pytest.raises(StoreUnavailableError):
        await sqlite_store(store.file.parent / "missing" / "checkpoints.db").load("key")
    connected(monkeypatch, lambda connection: connection.execute("PRAGMA busy_timeout = 0"))
    with closing(sqlite3.connect(store.file, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreUnavailableError):
            await store.save("key", "another")


async def test_a_fault_of_the_store_itself_is_neither_corruption_nor_unavailability(store):
    around(store, "CREATE TRIGGER never BEFORE INSERT ON checkpoints BEGIN SELECT RAISE(ABORT, 'never'); END")
    for sql in ("SELEC", "SELECT ?, ?", "INSERT INTO checkpoints VALUES (1, 2, 3)"):
        with pytest.raises(StoreError) as caught:
            await store.execute(sql)
        assert type(caught.value) is StoreError


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("make", [sqlite_store, acme_store])
async def test_a_save_that_was_cancelled_does_not_come_after_the_next(tmp_path, make, times):
    store = make(tmp_path / "checkpoints.db")
    begun, go_on = threading.Event(), threading.Event()
    execute_now = store.execute_now

    def late(sql, values):
        begun.set()
        assert go_on.wait(10)
        return execute_now(sql, values)

    store.execute_now = late
    first = asyncio.create_task(store.save("key", "first"))
    await asyncio.to_thread(begun.wait)
    for _ in range(times):
        first.cancel()
        await asyncio.wait({first}, timeout=0.01)
        assert not first.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await first
    await store.save("key", "second")
    assert await store.load("key") == "second"
