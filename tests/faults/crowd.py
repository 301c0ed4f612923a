"""A process with one instance of a store, which a number of tasks use at the same time until they are told to stop.

The first line of its input is the plan, as JSON. Then it tells with a line when it is ready, when each task has had an
answer, when all tasks have stopped, and when the store is closed, and between these waits for a line. A plan with a
``ledger`` is for one task, which keeps it; else each task remembers what must be under its own keys.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections import Counter
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


class Rememberer:
    """A client of ``store`` that remembers what it has saved under ``own`` keys, and compares what it loads."""

    def __init__(self, store, name, own, tally):
        self.store = store
        self._name = name
        self._tally = tally
        self._number = 0
        # What may be there: the last that was acknowledged, and what was not acknowledged since.
        self.own = {key: {None} for key in own}

    async def save(self, key, size):
        self._number += 1
        certificate = Certificate("faults", key, self._name, self._number)
        await self._write(key, str(certificate), self.store.save(key, certify(certificate, size)))

    async def delete(self, key):
        await self._write(key, None, self.store.delete(key))

    async def load(self, key):
        answered, text = await self._call(self.store.load(key))
        if answered:
            value, damage = read(key, text)
            if damage:
                self._tally.torn.append(f"{self._name} read {key!r}: {damage}")
            elif value not in self.own.get(key, {value}):
                self._tally.lost.append(f"{self._name} found {value} under {key!r}, not {self.own[key]}")

    async def _write(self, key, value, call):
        answered, _ = await self._call(call)
        if key in self.own:
            self.own[key] = {value} if answered else self.own[key] | {value}

    async def _call(self, call):
        began = time.monotonic()
        try:
            answer = await call
        except StoreError as exc:
            self._tally.errors[type(exc).__name__] += 1
            return False, None
        self._tally.acknowledged += 1
        self._tally.longest_wait = max(self._tally.longest_wait, time.monotonic() - began)
        return True, answer


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


async def check(url, clients):
    """Load what each has under its own keys, with another store, and remove it."""
    few = asyncio.Semaphore(_AT_ONCE)

    async def check_one(client, store):
        client.store = store
        async with few:
            for key in client.own:
                await client.load(key)
                await client.delete(key)

    async with open_store(url) as store:
        await asyncio.gather(*(check_one(client, store) for client in clients))


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
            clients = [Rememberer(store, f"task{n}", keys, tally) for n, keys in enumerate(plan["own"])]
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
        await check(plan["checked"], clients)
    tell(leaked=await leaked(before), **vars(tally))


if __name__ == "__main__":
    asyncio.run(main())
