"""The conformance kit through ``dagonizer.blocking``, by threads that stand in for the tasks of the kit."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import pytest

from dagonizer.blocking import open_store
from dagonizer_conformance import Capability, Harness, Level, run

THREADS = ThreadPoolExecutor(64, thread_name_prefix="blocked")


class Awaited:
    """A blocking store whose calls are awaited, each in a thread."""

    def __init__(self, url):
        self._store = open_store(url)

    async def save(self, key, json):
        await self._call(self._store.save, key, json)

    async def load(self, key):
        return await self._call(self._store.load, key)

    async def delete(self, key):
        await self._call(self._store.delete, key)

    async def load_versioned(self, key):
        return await self._call(self._store.load_versioned, key)

    async def save_if(self, key, json, *, expected):
        return await self._call(lambda: self._store.save_if(key, json, expected=expected))

    async def list_keys(self, prefix=""):
        for key in await self._call(lambda: list(self._store.list_keys(prefix))):
            yield key

    async def aclose(self):
        await self._call(self._store.close)

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        await self.aclose()

    async def _call(self, method, *arguments):
        done = asyncio.get_running_loop().run_in_executor(THREADS, method, *arguments)
        try:
            return await asyncio.shield(done)
        except asyncio.CancelledError:
            # A thread cannot be cancelled, so the call is over when it is done.
            await asyncio.wait({done})
            raise


class BlockingHarness(Harness):
    """The store at a URL with ``{namespace}``. The kit stands between it and no server, nor is one killed here."""

    def __init__(self, url):
        self._url = url

    async def open(self, namespace):
        return Awaited(self._url.replace("{namespace}", quote(namespace, safe="")))


@pytest.mark.parametrize(
    ("scheme", "namespace"),
    [("file", "/{namespace}"), ("redis", "?prefix={namespace}"), ("etcd", "/{namespace}")],
)
def test_a_blocking_store_keeps_the_contract(scheme, namespace, store_urls):
    report = asyncio.run(run(BlockingHarness(store_urls[scheme] + namespace), budget="smoke"))
    failed = [result for result in report.results if result.status not in {"PASS", "UNVERIFIED"}]
    assert not failed
    assert report.levels == (Level.CORE, Level.CONCURRENT)
    assert report.chips == (Capability.CLOSE, Capability.LISTING, Capability.COMPARE_AND_SWAP)
