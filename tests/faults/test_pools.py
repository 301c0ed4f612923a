"""Connections that are dead or cannot be had: a restart is not noticed, and a server's limit is told."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from contextlib import AsyncExitStack

import asyncpg
import pytest
import redis.asyncio
from faults.refusals import CALLS, trial
from faults.report import Row

from dagonizer import StoreUnavailableError, open_store
from dagonizer_test_servers.postgres import Postgres
from dagonizer_test_servers.redis import Valkey

AT_ONCE = 8
STORES = ("postgresql", "redis", "s3", "etcd", "etcd+http")


async def save(store, key):
    await store.save(key, "new")


async def save_if(store, key):
    await store.save_if(f"{key}-absent", "new", expected=None)


async def load(store, key):
    assert await store.load(key) == "old"


async def load_versioned(store, key):
    assert (await store.load_versioned(key)).json == "old"


async def list_keys(store, key):
    assert [found async for found in store.list_keys(key)] == [key]


async def delete(store, key):
    await store.delete(key)


KINDS = (save, save_if, load, load_versioned, list_keys, delete)


@pytest.mark.parametrize("store", STORES)
async def test_connections_from_before_a_restart_are_not_used(store, server, faults):
    url = server.url.replace("etcd://", f"{store}://", 1)
    prefix = f"stale-{faults.random.getrandbits(32):08x}"
    restarts = faults.scale(short=1, whole=3)
    said, acknowledged, longest = [], 0, 0.0
    async with AsyncExitStack() as stack:
        # A store for each kind of calls, so that each is the first to use the connections from before.
        stores = [await stack.enter_async_context(open_store(url)) for _ in KINDS]
        for restart in range(restarts):
            for kind, one in zip(KINDS, stores, strict=True):
                keys = keys_of(prefix, kind)
                await asyncio.gather(*(one.save(key, "old") for key in keys))
                await asyncio.gather(*(one.delete(f"{key}-absent") for key in keys))
            if restart % 2:
                await asyncio.to_thread(restarted, server)
            else:
                # The event loop cannot look at its sockets meanwhile.
                restarted(server)
            started = time.monotonic()
            calls = [kind(one, key) for kind, one in zip(KINDS, stores, strict=True) for key in keys_of(prefix, kind)]
            answers = await asyncio.gather(*calls, return_exceptions=True)
            longest = max(longest, time.monotonic() - started)
            acknowledged += answers.count(None)
            said += [answer for answer in answers if answer is not None]
        keys = [key async for key in stores[0].list_keys(prefix)]
        await asyncio.gather(*(stores[0].delete(key) for key in keys))
    faults.tell(
        Row(
            fault="server restarted while clients were idle",
            store=store,
            injected=restarts,
            acknowledged=acknowledged,
            longest_wait=longest,
            errors=dict(Counter(type(answer).__name__ for answer in said)),
        )
    )
    assert not said, "\n".join(map(str, said))


def keys_of(prefix, kind):
    return [f"{prefix}-{kind.__name__}-{number}" for number in range(AT_ONCE)]


def restarted(server):
    server.down()
    server.up()


async def test_a_postgres_without_a_free_connection(faults):
    with Postgres("max_connections = 10") as server:
        async with trial(faults, "max_connections reached", "postgresql", server.url) as at:
            for _ in range(faults.scale(short=1, whole=5)):
                await at.intact()
                async with open_store(server.url) as late, AsyncExitStack() as others:
                    with pytest.raises(asyncpg.TooManyConnectionsError):
                        await take_all_connections(server, others)
                    # A class that says that it is worth trying again.
                    await at.refused(StoreUnavailableError, "raise max_connections", *CALLS, by=late)
                    # Who has one goes on.
                    await at.intact()
                    await at.done(*CALLS)
                    await others.aclose()
                    await at.recovered()
                    await recovery(late, at.old)


async def take_all_connections(server, stack):
    while True:
        connection = await asyncpg.connect(server.url)
        stack.push_async_callback(connection.close)


async def test_a_redis_without_a_free_connection(faults):
    with Valkey() as server:
        async with (
            redis.asyncio.Redis(port=server.port, single_connection_client=True) as administrator,
            trial(faults, "maxclients reached", "redis", server.url) as at,
        ):
            for _ in range(faults.scale(short=1, whole=5)):
                await at.intact()
                async with open_store(server.url) as late:
                    await administrator.config_set("maxclients", 3)
                    # A class that says that it is worth trying again.
                    await at.refused(StoreUnavailableError, "try again", *CALLS, by=late)
                    # Who has one goes on.
                    await at.intact()
                    await at.done(*CALLS)
                    await administrator.config_set("maxclients", 100)
                    await at.recovered()
                    await recovery(late, at.old)


async def recovery(store, key):
    """Return once the store is served, for a server counts a connection until it has seen its end."""
    async with asyncio.timeout(30):
        while True:
            try:
                return await store.load(key)
            except StoreUnavailableError:
                await asyncio.sleep(0.01)
