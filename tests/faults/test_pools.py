"""Connections that are dead or cannot be had: a restart is not noticed, and a server's limit is told."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from contextlib import AsyncExitStack
from itertools import chain

import asyncpg
import pytest
import redis.asyncio
from faults.ledger import read
from faults.refusals import CALLS, trial
from faults.report import Row

from dagonizer import StoreUnavailableError, open_store
from dagonizer_conformance.certificate import Certificate, certify
from dagonizer_test_servers.postgres import Postgres
from dagonizer_test_servers.redis import Valkey

AT_ONCE = 8
STORES = ("postgresql", "redis", "s3", "etcd", "etcd+http")


class Entry:
    """What ``kind`` does to an entry in one round: ``old`` is there before, and ``new`` what some of them save."""

    def __init__(self, prefix, kind, number, restart):
        self.key = f"{prefix}-{kind.__name__}-{number}"
        self.absent = f"{self.key}-absent"
        self.old = certify(Certificate("pools", self.key, "old", restart))
        key = self.absent if kind is save_if else self.key
        self.new = certify(Certificate("pools", key, "new", restart))
        self._kind = kind

    def before(self):
        """Return what is there at first."""
        return {self.key: self.old, self.absent: None}

    def after(self):
        """Return what must be there once the call is acknowledged."""
        changes = {save: {self.key: self.new}, save_if: {self.absent: self.new}, delete: {self.key: None}}
        return self.before() | changes.get(self._kind, {})

    async def call(self, store):
        """Make the call, and return what it found, if it is one that looks."""
        return await self._kind(store, self)


async def save(store, entry):
    await store.save(entry.key, entry.new)


async def save_if(store, entry):
    await store.save_if(entry.absent, entry.new, expected=None)


async def load(store, entry):
    return {entry.key: await store.load(entry.key)}


async def load_versioned(store, entry):
    found = await store.load_versioned(entry.key)
    return {entry.key: None if found is None else found.json}


async def list_keys(store, entry):
    keys = [key async for key in store.list_keys(entry.key)]
    # No value but that it is there.
    return {entry.key: entry.old if keys == [entry.key] else None}


async def delete(store, entry):
    await store.delete(entry.key)


KINDS = (save, save_if, load, load_versioned, list_keys, delete)


class Findings:
    """What was found that is not what was acknowledged."""

    def __init__(self):
        self.lost = []
        self.torn = []

    def compare(self, found, *allowed):
        """Compare what was found under keys with what may be there, each of ``allowed``."""
        for key, text in found.items():
            _, damage = read(key, text)
            if damage:
                self.torn.append(f"{key!r}: {damage}")
            elif text not in [state[key] for state in allowed]:
                self.lost.append(f"{key!r} is another than was acknowledged")


@pytest.mark.parametrize("store", STORES)
async def test_connections_from_before_a_restart_are_not_used(store, killable_server, faults):
    server = killable_server
    url = server.url.replace("etcd://", f"{store}://", 1)
    prefix = f"stale-{faults.random.getrandbits(32):08x}"
    restarts = faults.scale(short=1, whole=3)
    findings, said, acknowledged, longest = Findings(), [], 0, 0.0

    async def timed(call):
        nonlocal longest
        started = time.monotonic()
        try:
            return await call
        finally:
            longest = max(longest, time.monotonic() - started)

    async with AsyncExitStack() as stack:
        # A store for each kind of calls, so that each is the first to use the connections from before.
        stores = [await stack.enter_async_context(open_store(url)) for _ in KINDS]
        for restart in range(restarts):
            entries = [[Entry(prefix, kind, number, restart) for number in range(AT_ONCE)] for kind in KINDS]
            for of_kind, one in zip(entries, stores, strict=True):
                await asyncio.gather(*(one.save(entry.key, entry.old) for entry in of_kind))
                await asyncio.gather(*(one.delete(entry.absent) for entry in of_kind))
            if restart % 2:
                await asyncio.to_thread(restarted, server)
            else:
                # The event loop cannot look at its sockets meanwhile.
                restarted(server)
            calls = [timed(entry.call(one)) for of_kind, one in zip(entries, stores, strict=True) for entry in of_kind]
            answers = await asyncio.gather(*calls, return_exceptions=True)
            async with open_store(url) as fresh:
                for entry, answer in zip(chain(*entries), answers, strict=True):
                    found = {key: await fresh.load(key) for key in entry.before()}
                    if isinstance(answer, BaseException):
                        said.append(answer)
                        findings.compare(found, entry.before(), entry.after())
                    else:
                        acknowledged += 1
                        findings.compare(found, entry.after())
                        findings.compare(answer or {}, entry.before())
        async with open_store(url) as fresh:
            for key in [key async for key in fresh.list_keys(prefix)]:
                await fresh.delete(key)
    faults.tell(
        Row(
            fault="server restarted while clients were idle",
            store=store,
            injected=restarts,
            acknowledged=acknowledged,
            longest_wait=longest,
            lost=len(findings.lost),
            torn=len(findings.torn),
            errors=dict(Counter(type(answer).__name__ for answer in said)),
        )
    )
    assert not findings.lost, "\n".join(findings.lost)
    assert not findings.torn, "\n".join(findings.torn)
    assert not said, "\n".join(map(str, said))


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
