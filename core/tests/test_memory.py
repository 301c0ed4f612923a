import asyncio
import threading

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from dagonizer import (
    CheckpointStore,
    InvalidKeyError,
    InvalidValueError,
    MemoryCheckpointStore,
    StoreClosedError,
    StoreConflictError,
    StoreCorruptedError,
    SupportsClose,
    SupportsCompareAndSwap,
    SupportsListing,
    VersionedJson,
)
from dagonizer.keys import value_text

BAD_KEYS = ["", "a\0b", "\ud800", "é" * 513, b"k", None]
BAD_VALUES = ["a\0b", "\udfff", b"{}", None, {}]


async def every_method(store, key):
    async def listed():
        return [found async for found in store.list_keys(key)]

    return [
        lambda: store.save(key, "v"),
        lambda: store.load(key),
        lambda: store.delete(key),
        lambda: store.load_versioned(key),
        lambda: store.save_if(key, "v", expected=None),
        listed,
    ]


def test_it_has_every_protocol():
    store = MemoryCheckpointStore()
    for protocol in (CheckpointStore, SupportsListing, SupportsCompareAndSwap, SupportsClose):
        assert isinstance(store, protocol)


@pytest.mark.parametrize("key", BAD_KEYS)
def test_an_illegal_key_is_refused_by_every_method(key):
    async def scenario():
        store = MemoryCheckpointStore()
        for call in await every_method(store, key):
            if key == "" and call.__name__ == "listed":
                continue  # the empty prefix is every key's
            with pytest.raises(InvalidKeyError):
                await call()
        assert store.size == 0

    asyncio.run(scenario())


@pytest.mark.parametrize("value", BAD_VALUES)
def test_an_illegal_value_is_refused_and_nothing_is_stored(value):
    async def scenario():
        store = MemoryCheckpointStore()
        with pytest.raises(InvalidValueError):
            await store.save("k", value)
        with pytest.raises(InvalidValueError):
            await store.save_if("k", value, expected=None)
        assert store.size == 0

    asyncio.run(scenario())


def test_after_close_every_method_raises():
    async def scenario():
        async with MemoryCheckpointStore() as store:
            await store.save("k", "v")
        await store.aclose()
        for call in await every_method(store, "k"):
            with pytest.raises(StoreClosedError):
                await call()

    asyncio.run(scenario())


def test_stores_of_one_name_share_their_entries():
    async def scenario():
        one, same, other = MemoryCheckpointStore("a"), MemoryCheckpointStore("a"), MemoryCheckpointStore()
        await one.save("k", "v")
        await one.aclose()
        assert await same.load("k") == "v"
        assert await other.load("k") is None

    asyncio.run(scenario())


def test_of_many_threads_one_wins_each_swap():
    store = MemoryCheckpointStore()
    wins = []

    def contend():
        async def add():
            for _ in range(200):
                entry = await store.load_versioned("n")
                try:
                    await store.save_if("n", str(int(entry.json) + 1 if entry else 1), expected=entry and entry.version)
                except StoreConflictError:
                    continue
                wins.append(1)

        asyncio.run(add())

    threads = [threading.Thread(target=contend) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert asyncio.run(store.load("n")) == str(len(wins))


@pytest.mark.parametrize("stored", [b"\xff", b"a\0b", b"\xed\xa0\x80"])
def test_bytes_that_no_value_has_are_corrupt(stored):
    with pytest.raises(StoreCorruptedError, match="'k'"):
        value_text(stored, key="k")


KEYS = st.sampled_from(["a", "A", "a:b", "a%", "a/../b", "é", "e\u0301", "%", "_"])


class AgainstADictionary(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.store = MemoryCheckpointStore()
        self.model = {}
        self.versions = {}

    @rule(key=KEYS, value=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
    def save(self, key, value):
        asyncio.run(self.store.save(key, value))
        self.model[key] = value

    @rule(key=KEYS)
    def delete(self, key):
        asyncio.run(self.store.delete(key))
        self.model.pop(key, None)

    @rule(key=KEYS)
    def remember(self, key):
        entry = asyncio.run(self.store.load_versioned(key))
        if entry is not None:
            self.versions[entry.version] = entry.json

    @rule(key=KEYS, value=st.text(max_size=2, alphabet="ab"), fresh=st.booleans())
    def swap(self, key, value, fresh):
        entry = asyncio.run(self.store.load_versioned(key))
        current = entry.version if entry else None
        old = [version for version in self.versions if version != current]
        expected = current if fresh or not old else old[0]
        try:
            version = asyncio.run(self.store.save_if(key, value, expected=expected))
        except StoreConflictError:
            assert expected != current
        else:
            assert expected == current
            self.model[key] = value
            assert asyncio.run(self.store.load_versioned(key)) == VersionedJson(value, version)

    @invariant()
    def it_holds_what_the_model_holds(self):
        async def listed(prefix):
            return sorted([key async for key in self.store.list_keys(prefix)])

        assert asyncio.run(listed("")) == sorted(self.model)
        assert asyncio.run(listed("a")) == sorted(key for key in self.model if key.startswith("a"))
        assert self.store.size == len(self.model)
        for key in self.model:
            assert asyncio.run(self.store.load(key)) == self.model[key]


AgainstADictionary.TestCase.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
TestAgainstADictionary = AgainstADictionary.TestCase
