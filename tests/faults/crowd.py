"""A process with one instance of a store, which a number of tasks use at the same time until they are told to stop.

The first line of its input is the plan, as JSON. Then it tells with a line when it is ready, when each task has had an
answer, when all tasks have stopped, and when the store is closed, and between these waits for a line. A plan with a
``ledger`` is for one task, which keeps it; else the process remembers what may be under each of the keys.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import sys
import time
from collections import Counter, defaultdict
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from pathlib import Path

from faults.ledger import Recorder, read

from dagonizer import StoreError, open_store
from dagonizer_conformance.certificate import Certificate, certify
from dagonizer_conformance.leaks import Holdings, expect_given_back
from dagonizer_conformance.outcomes import Violation

_PATIENCE = 10.0
_AT_ONCE = 50


class Tally:
    """What the tasks of a process have seen."""

    def __init__(self) -> None:
        self.acknowledged = 0
        self.longest_wait = 0.0
        self.errors: Counter[str] = Counter()
        self.lost: list[str] = []
        self.torn: list[str] = []


@dataclass(slots=True)
class Write:
    """A write of ``value``, None for a deletion. Its end is known when it was acknowledged."""

    value: str | None
    ended: float = inf
    # When the first write was acknowledged that had begun after this one's end.
    overridden: float = inf


class History:
    """What may be found under one key, however many tasks use it. Times are those of ``clock``, which counts."""

    clock = itertools.count(1)

    def __init__(self) -> None:
        self._writes = [Write(None, ended=0)]
        # When those began that are under way.
        self._loads: set[int] = set()

    @contextmanager
    def loading(self):
        """Yield a function that returns whether a load, begun now, may find a value."""
        began = next(self.clock)
        self._loads.add(began)
        try:
            yield lambda value: any(write.value == value and write.overridden > began for write in self._writes)
        finally:
            self._loads.remove(began)

    @contextmanager
    def writing(self, value):
        """Write ``value`` within the context. If that raises, it may have been written, then or later."""
        write = Write(value)
        self._writes.append(write)
        began = next(self.clock)
        yield
        write.ended = next(self.clock)
        for earlier in self._writes:
            if earlier.ended < began:
                earlier.overridden = min(earlier.overridden, write.ended)
        # What no load may find any more need not be remembered.
        oldest = min(self._loads, default=inf)
        self._writes = [one for one in self._writes if one.overridden > min(oldest, write.ended)]


class Rememberer:
    """A client of ``store`` that compares what it loads with the ``histories`` of the keys, which it goes on with."""

    def __init__(self, store, name, own, histories, tally):
        self.store = store
        self.own = own
        self._name = name
        self._histories = histories
        self._tally = tally
        self._number = 0

    async def save(self, key, size):
        self._number += 1
        certificate = Certificate("faults", key, self._name, self._number)
        await self._write(key, str(certificate), self.store.save(key, certify(certificate, size)))

    async def delete(self, key):
        await self._write(key, None, self.store.delete(key))

    async def load(self, key):
        with self._counted(), self._histories[key].loading() as may_find:
            value, damage = read(key, await self.store.load(key))
            if damage:
                self._tally.torn.append(f"{self._name} read {key!r}: {damage}")
            elif not may_find(value):
                self._tally.lost.append(f"{self._name} found {value} under {key!r}, which was overridden")

    async def _write(self, key, value, call):
        with self._counted(), self._histories[key].writing(value):
            await call

    @contextmanager
    def _counted(self):
        """Count a call, and go on if the store fails."""
        began = time.monotonic()
        try:
            yield
        except StoreError as exc:
            self._tally.errors[type(exc).__name__] += 1
        else:
            self._tally.acknowledged += 1
        finally:
            self._tally.longest_wait = max(self._tally.longest_wait, time.monotonic() - began)


async def use(client, own, plan, chance, *, stopped, answered):
    """Save, load and delete until ``stopped``."""
    while not stopped.is_set():
        key = chance.choice(own if chance.random() < 0.9 else plan["shared"])
        match chance.random():
            case x if x < 0.5:
                await client.save(key, chance.choice(plan["sizes"]))
            case x if x < 0.6:
                await client.delete(key)
            case _:
                await client.load(key)
        answered.set()
        await asyncio.sleep(plan["pause"] * chance.random())


async def check(url, clients, shared):
    """Load what each has under its own keys, and what is under the ``shared`` ones, with another store; remove it."""
    few = asyncio.Semaphore(_AT_ONCE)

    async def check_one(client, key):
        async with few:
            await client.load(key)
            await client.delete(key)

    async with open_store(url) as store:
        for client in clients:
            client.store = store
        everything = [(client, key) for client in clients for key in client.own]
        everything += [(clients[0], key) for key in shared]
        await asyncio.gather(*(check_one(client, key) for client, key in everything))


async def leaked(before):
    """Describe what is not given back."""
    # Its threads are the event loop's.
    await asyncio.get_running_loop().shutdown_default_executor()
    try:
        await expect_given_back(before, "the store", seconds=_PATIENCE)
    except Violation as exc:
        return str(exc)
    return None


def tell(**what: object) -> None:
    """Tell the test something."""
    sys.stdout.write(f"{json.dumps(what)}\n")
    sys.stdout.flush()


async def turn(**what: object) -> None:
    """Tell the test something, and wait until it answers."""
    tell(**what)
    await asyncio.to_thread(sys.stdin.readline)


async def main() -> None:
    """Be the process."""
    plan = json.loads(sys.stdin.readline())
    await turn()
    before = Holdings.now()
    tally, stopped = Tally(), asyncio.Event()
    async with open_store(plan["url"]) as store:
        if plan["ledger"]:
            clients = [Recorder(store, Path(plan["ledger"]))]
        else:
            histories = defaultdict(History)
            clients = [Rememberer(store, f"task{n}", own, histories, tally) for n, own in enumerate(plan["own"])]
        answered = [asyncio.Event() for _ in clients]
        async with asyncio.TaskGroup() as tasks:
            for n, (client, own) in enumerate(zip(clients, plan["own"], strict=True)):
                chance = random.Random(f"{plan['seed']} {n}")
                tasks.create_task(use(client, own, plan, chance, stopped=stopped, answered=answered[n]))
            for event in answered:
                await event.wait()
            await turn()
            stopped.set()
        await turn(idle=[b - a for a, b in zip(before, Holdings.now(), strict=True)])
    if plan["ledger"]:
        clients[0].close()
    else:
        await check(plan["checked"], clients, plan["shared"])
    tell(leaked=await leaked(before), **vars(tally))


if __name__ == "__main__":
    asyncio.run(main())
