"""Bad networks: every call ends in time and tells the truth, and the same store works when the network does again."""

from __future__ import annotations

import asyncio
import math
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial

import pytest
from faults.clients import look
from faults.ledger import Recorder, judge
from faults.report import Row

from dagonizer import StoreURL, open_store
from dagonizer.registry import store_endpoints
from dagonizer_conformance.leaks import Holdings, expect_given_back
from dagonizer_conformance.proxy import FaultProxy

STORES = ("postgresql", "redis", "s3", "etcd", "etcd+http")
# Of calls that get no answer. Longer than what a busy machine is granted, so that one that waits twice fails.
TIMEOUT = 3.0
# Until a busy machine gets to what is due.
MARGIN = 2.0
# Of calls that get one, however busy the machine is: none may take it.
LONG_TIMEOUT = 15.0
LARGE = 300_000
HEAD = 60
PAUSE = 0.01
# Then something hangs.
PATIENCE = 120.0

every_store = pytest.mark.parametrize("store", STORES)


class Swapping:
    """Compares and swaps where it is asked to save: what it has loaded or saved last must still be there."""

    def __init__(self, store):
        self._store = store
        self._version = None

    async def load(self, key):
        entry = await self._store.load_versioned(key)
        self._version = None if entry is None else entry.version
        return None if entry is None else entry.json

    async def save(self, key, json):
        self._version = await self._store.save_if(key, json, expected=self._version)


class Listing:
    """Lists where it is asked to load, and must find ``there``."""

    def __init__(self, store, there):
        self._store = store
        self._there = there

    async def load(self, key):
        assert self._there in [found async for found in self._store.list_keys(key)]


class User:
    """A task's client of the store, with a ledger, and a key that only it writes, values of ``size``."""

    def __init__(self, store, key, ledger, size=0):
        self.key = key
        self._size = size
        self._recorder = Recorder(store, ledger)
        self.close = self._recorder.close

    def save(self):
        return self._recorder.save(self.key, self._size)

    def load(self):
        return self._recorder.load(self.key)

    def delete(self):
        return self._recorder.delete(self.key)


class Users:
    """Tasks that use one store, which is behind a proxy."""

    def __init__(self, store, proxy, folder, chance):
        def user(name, size=0, through=store):
            return User(through, f"{prefix}-{name}", folder / name, size)

        prefix = f"network-{chance.getrandbits(32):08x}"
        self.proxy = proxy
        self._chance = chance
        self.reader, self.large_reader = user("reader"), user("large-reader", LARGE)
        self.swapper = user("swapper", through=Swapping(store))
        self.writers = [user(f"writer{number}") for number in range(3)]
        self.large_writers = [user(f"large-writer{number}", LARGE) for number in range(2)]
        self.lister = User(Listing(store, self.reader.key), prefix, folder / "lister")
        self._savers = [self.reader, self.large_reader, self.swapper, *self.writers, *self.large_writers]
        self.all = [*self._savers, self.lister]

    async def begin(self):
        """Save what is to be loaded, and open a connection for each user."""
        assert all([await user.save() for user in self._savers])
        await self.recover()

    async def look(self):
        """Let each user load what it has, all at once; return whether there were answers."""
        return await asyncio.gather(*(user.load() for user in self.all))

    async def everything(self):
        """Make calls of every kind at once; return which were acknowledged."""
        one, other, third = self._chance.sample(self.writers, 3)
        large, other_large = self._chance.sample(self.large_writers, 2)
        calls = [user.load for user in (self.reader, self.large_reader, self.lister)]
        calls += [one.save, large.save, self.swapper.save, other.delete]
        calls += [self._chance.choice([user.save, user.load, user.delete]) for user in (third, other_large)]
        self._chance.shuffle(calls)
        return await asyncio.gather(*(call() for call in calls))

    async def recover(self):
        """Use the store until it works for all at once, as it must within its timeout; return how long that took."""
        began = time.monotonic()
        while not all(await self.look()):
            assert time.monotonic() - began < TIMEOUT + MARGIN, "the network is well, and the store is not"
            await asyncio.sleep(PAUSE)
        return time.monotonic() - began


@asynccontextmanager
async def users(store, server, folder, chance, *, timeout=TIMEOUT):
    """Give users of a store behind a proxy. In the end the server must have no connection of theirs."""
    folder.mkdir()
    url = server.url.replace("etcd:", f"{store}:", 1)
    (endpoint,) = store_endpoints(StoreURL.parse(url))
    async with FaultProxy(endpoint.name, endpoint.port) as proxy:
        behind = url.replace(f"{endpoint.name}:{endpoint.port}", f"{proxy.host}:{proxy.port}")
        opened = open_store(f"{behind}{'&' if '?' in behind else '?'}timeout={timeout:g}")
        try:
            theirs = Users(opened, proxy, folder, chance)
            await theirs.begin()
            yield theirs
            await proxy.pass_through()
            assert all(await theirs.look())
            # One for each call that there ever was at once, and with gRPC one in all.
            await until(lambda: proxy.connections <= (1 if store == "etcd" else len(theirs.all)))
        finally:
            async with asyncio.timeout(timeout + MARGIN):
                await opened.aclose()
        await until(lambda: proxy.connections == 0)
    for user in theirs.all:
        user.close()
    await look(url, [user.key for user in theirs.all], folder / "afterwards")


@asynccontextmanager
async def nothing_left(store):
    """Expect that the block leaves no task, thread or descriptor behind."""
    # The event loop keeps each thread that it has ever needed, so it gets all that it may have beforehand.
    threads = ThreadPoolExecutor()
    asyncio.get_running_loop().set_default_executor(threads)
    all_at_work = threading.Barrier(threads._max_workers)
    await asyncio.gather(*(asyncio.to_thread(all_at_work.wait) for _ in range(all_at_work.parties)))
    before = Holdings.now()
    yield
    await expect_given_back(before, f"{store} and a bad network", seconds=MARGIN)


async def until(condition):
    """Wait for what another thread does."""
    async with asyncio.timeout(MARGIN):
        while not condition():
            await asyncio.sleep(PAUSE)


async def together(*coroutines):
    async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as group:
        for coroutine in coroutines:
            group.create_task(coroutine)


def tell(faults, folder, fault, store, *, injected, notes="", recoveries=(), most=TIMEOUT + MARGIN):
    """Tell what the ledgers show, and expect that nothing was lost, and no call wrong.

    No call and none of ``recoveries`` may have taken longer than ``most``.
    """
    judgement = judge(folder)
    if recoveries:
        notes = ", ".join([*filter(None, [notes]), f"all worked again within {max(recoveries):.2f} s"])
    faults.tell(Row.of(judgement, fault, store, injected=injected, notes=notes))
    judgement.expect_nothing_lost()
    assert set(judgement.errors) <= {"StoreUnavailableError"}
    assert max([judgement.longest_wait, *recoveries]) < most
    return judgement


async def delays(those, chance):
    """Delay calls, then hold for a while whatever is under way."""
    await those.proxy.delay(chance.uniform(0.005, 0.05))
    await those.everything()
    await those.look()
    await those.proxy.delay(math.inf)
    held = asyncio.create_task(those.everything())
    await asyncio.sleep(chance.uniform(0, 0.2))
    await those.proxy.pass_through()
    await held
    await those.look()


async def drips(those, chance):
    """Let large values take a part of a second."""
    await those.proxy.drip(chance.uniform(1, 4) * LARGE)
    await those.everything()
    await those.look()


@every_store
async def test_a_network_that_is_slow_makes_calls_slow_and_nothing_else(store, server, faults, tmp_path):
    times = faults.scale(short=1, whole=8)

    async def try_it(fault, inject):
        chance = random.Random(f"{faults.seed} {fault}")
        async with users(store, server, tmp_path / fault, chance, timeout=LONG_TIMEOUT) as those:
            for _ in range(times):
                await inject(those, chance)
        judgement = tell(faults, tmp_path / fault, fault, store, injected=times, most=LONG_TIMEOUT)
        assert not judgement.errors

    async with nothing_left(store):
        await together(try_it("delay below the timeout", delays), try_it("fast drip", drips))


async def silence(those, _, *, begin, end):
    """Make calls that get no answer; return how long the store then took to work, and whether none got one."""
    await begin(those.proxy)
    answers = await those.everything()
    await end(those.proxy)
    return await those.recover(), not any(answers)


async def idle(those, chance):
    """Let all idle connections go silent, for a call; return how long all then took, and if one failed at most."""
    user = chance.choice(those.writers)
    await those.proxy.half_open()
    answer = await chance.choice([user.load, user.save, user.delete, those.swapper.save])()
    began = time.monotonic()
    answers = [answer, *await those.look()]
    return time.monotonic() - began, answers.count(False) <= 1


async def under_way(those, chance):
    """Let connections go silent that are in use; return how long the store then took to work."""
    calls = asyncio.create_task(those.everything())
    await asyncio.sleep(chance.uniform(0, 0.02))
    await those.proxy.half_open()
    await calls
    return await those.recover(), True


SILENCES = {
    "black hole": partial(silence, begin=FaultProxy.black_hole, end=FaultProxy.pass_through),
    "connection refused": partial(silence, begin=FaultProxy.refuse, end=FaultProxy.pass_through),
    # What the network holds at the end is lost, for if it came late it might come behind what was saved since.
    "delay above the timeout": partial(silence, begin=lambda proxy: proxy.delay(math.inf), end=FaultProxy.reset),
    "slow drip": partial(silence, begin=lambda proxy: proxy.drip(10), end=FaultProxy.reset),
    "half-open, idle": idle,
    "half-open, under way": under_way,
}


@every_store
async def test_silence_costs_no_call_more_than_one_timeout_and_dead_connections_one_call(
    store, server, faults, tmp_path
):
    times = faults.scale(short=1, whole=6)

    async def try_it(fault, inject):
        chance = random.Random(f"{faults.seed} {fault}")
        async with users(store, server, tmp_path / fault, chance) as those:
            seen = [await inject(those, chance) for _ in range(times)]
        recoveries, right = zip(*seen, strict=True)
        tell(faults, tmp_path / fault, fault, store, injected=times, recoveries=recoveries)
        assert all(right)

    async with nothing_left(store):
        # At once, for they wait most of the time.
        await together(*(try_it(fault, inject) for fault, inject in SILENCES.items()))


@every_store
async def test_a_connection_that_is_cut_ends_one_call_at_most(store, server, faults, tmp_path):
    times = faults.scale(short=1, whole=10)

    async def try_it(direction):
        fault = f"reset in mid-{direction}"
        chance = random.Random(f"{faults.seed} {fault}")
        tried = cut = answers = 0
        async with users(store, server, tmp_path / fault, chance, timeout=LONG_TIMEOUT) as those:
            proxy, writer, large_writer = those.proxy, those.writers[0], those.large_writers[0]
            small = [(writer, "save"), (writer, "load"), (writer, "delete"), (those.swapper, "save")]
            small += [(those.reader, "load"), (those.lister, "load")]
            large = [(large_writer, "save"), (large_writer, "delete"), (those.large_reader, "load")]
            for user, call in times * (small + large):
                sizes = LARGE if (user, call) in large else 2 * HEAD
                for after in (0, 1, chance.randrange(2, HEAD), chance.randrange(HEAD, sizes)):
                    broken = proxy.accepted - proxy.connections
                    await getattr(proxy, f"cut_{direction}")(after)
                    answered = await getattr(user, call)()
                    await proxy.pass_through()
                    tried += 1
                    if proxy.accepted - proxy.connections > broken:
                        cut += 1
                        answers += answered
                    assert await user.load()
                assert all(await those.look())
        notes = f"{answers:,} of the calls were answered all the same"
        # It does not wait for its timeout to see that.
        tell(faults, tmp_path / fault, fault, store, injected=cut, notes=notes, most=LONG_TIMEOUT)
        assert cut > tried / 2

    async with nothing_left(store):
        await together(try_it("request"), try_it("reply"))
