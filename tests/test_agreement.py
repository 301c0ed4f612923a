"""All stores at once: whatever one of them is asked, it answers as every other one does."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import AsyncExitStack

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from dagonizer import StoreConflictError, open_store

# Neither U+0000 nor surrogates; the rest in one form or another is in every range.
CHARACTERS = st.characters(min_codepoint=1, exclude_categories=["Cs"])
KEYS = st.one_of(
    st.sampled_from(
        ["a", "A", "a/b", "a/../b", "../a", "a//b", "/", ".", "..", "a%2Fb", "a%", "é", "e\u0301", "*", "a:b", " "]
    ),
    st.text(CHARACTERS, min_size=1, max_size=40),
)
TEXTS = st.one_of(
    st.sampled_from(["", "{}", "null", "\ufeff{}", "\r\n", " ", "\U0001f600"]),
    st.text(CHARACTERS, max_size=200),
    st.builds(lambda text, times: text * times, st.text(CHARACTERS, min_size=1, max_size=20), st.integers(1, 3_000)),
)
SCHEMES = ("memory", "file", "postgresql", "redis", "s3", "etcd", "etcd+http")
STORES = st.sampled_from(SCHEMES)

namespaces = itertools.count(1)


class Agreement(RuleBasedStateMachine):
    """A dictionary, and every store, of which each entry has its own version."""

    keys = Bundle("keys")

    def __init__(self, runner, stores):
        super().__init__()
        self.runner = runner
        self.stores = stores
        self.expected = {}
        self.old_versions = {}
        self.prefix = ""

    def all(self, ask):
        """Ask every store, and return the answers by scheme."""

        async def ask_all():
            return await asyncio.gather(*(ask(scheme, store) for scheme, store in self.stores.items()))

        return dict(zip(self.stores, self.runner.run(ask_all()), strict=True))

    def expect(self, answers, expected):
        assert answers == dict.fromkeys(self.stores, expected)

    @initialize()
    def begin(self):
        self.prefix = f"agreement {next(namespaces)}/"

    @rule(target=keys, key=KEYS)
    def name_a_key(self, key):
        return self.prefix + key

    @rule(key=keys, text=TEXTS)
    def save(self, key, text):
        self.expect(self.all(lambda _, store: store.save(key, text)), None)
        self.expected[key] = text

    @rule(key=keys)
    def load(self, key):
        self.expect(self.all(lambda _, store: store.load(key)), self.expected.get(key))

    @rule(key=keys)
    def delete(self, key):
        self.expect(self.all(lambda _, store: store.delete(key)), None)
        self.expected.pop(key, None)

    @rule(source=STORES, target_store=STORES, key=keys, other=keys)
    def copy(self, source, target_store, key, other):
        async def copy_one():
            text = await self.stores[source].load(key)
            assert text == self.expected.get(key)
            if text is not None:
                await self.stores[target_store].save(other, text)
                assert await self.stores[target_store].load(other) == text
            return text

        text = self.runner.run(copy_one())
        if text is not None:
            # The others follow, so that all agree again.
            self.save(other, text)

    @rule(key=keys, text=TEXTS, stale=st.booleans())
    def compare_and_swap(self, key, text, stale):
        async def swap(scheme, store):
            entry = await store.load_versioned(key)
            present = None if entry is None else entry.version
            assert (None if entry is None else entry.json) == self.expected.get(key)
            if stale:
                wrong = self.old_versions.get((scheme, key), "never a version") if entry is None else None
                with pytest.raises(StoreConflictError):
                    await store.save_if(key, text, expected=wrong)
                return True
            self.old_versions[scheme, key] = version = await store.save_if(key, text, expected=present)
            after = await store.load_versioned(key)
            return (after.json, after.version) == (text, version)

        self.expect(self.all(swap), True)
        if not stale:
            self.expected[key] = text

    @rule(key=keys, length=st.integers(0, 30))
    def list_keys(self, key, length):
        prefix = self.prefix + key.removeprefix(self.prefix)[:length]

        async def listed(_, store):
            return sorted([found async for found in store.list_keys(prefix)])

        self.expect(self.all(listed), sorted(found for found in self.expected if found.startswith(prefix)))

    def teardown(self):
        for key in list(self.expected):
            self.delete(key)


def test_all_stores_agree_on_every_answer(store_urls):
    urls = {"memory": "memory://agreement", **store_urls}
    assert set(urls) == set(SCHEMES)
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()

        async def open_all():
            return {scheme: await stack.enter_async_context(open_store(url)) for scheme, url in urls.items()}

        stores = runner.run(open_all())
        try:
            run_state_machine_as_test(
                lambda: Agreement(runner, stores),
                settings=settings(
                    max_examples=25,
                    stateful_step_count=25,
                    deadline=None,
                    suppress_health_check=list(HealthCheck),
                    phases=[Phase.generate, Phase.shrink],
                    derandomize=True,
                ),
            )
        finally:
            runner.run(stack.aclose())
