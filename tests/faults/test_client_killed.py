"""A client is killed in the middle of a save; the next one finds everything whole, works at once, and tidies up."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any

import pytest
from faults.backends import BACKENDS, TIMEOUT
from faults.child import Child
from faults.clients import look, store_url
from faults.ledger import Recorder, judge
from faults.report import Row

from dagonizer import open_store

KEYS = 3
# The last one is in two chunks in etcd.
LARGE = 1_300_000
SIZES = (0, 0, 3_000, 60_000, 60_000, 400_000, LARGE)
PROMPT = TIMEOUT / 2
_PATIENCE = 60.0
_PATIENCE_PER_KILL = 10.0
_PAUSE = 0.05


class Saver(Child):
    """The process that starts the clients and kills them, until the context ends. Its client ends when it does."""

    def __init__(self, plan: dict[str, Any]) -> None:
        super().__init__("faults.saver", plan)

    def kill(self, number: int) -> dict[str, float]:
        """Kill ``number`` clients in the middle of a save, and return what was seen."""
        self.tell(number)
        return self.told(patience=_PATIENCE + number * _PATIENCE_PER_KILL)


@pytest.fixture
def backend(store, faults, tmp_path, request):
    name = f"clientkilled_{faults.random.getrandbits(32):08x}"
    backend = BACKENDS[store](name, store_url(store, tmp_path, request))
    yield backend
    asyncio.run(backend.remove())


@pytest.mark.parametrize("store", BACKENDS)
def test_a_client_that_is_killed_in_a_save_tears_nothing_and_leaves_nothing(backend, store, faults, tmp_path):
    kills = faults.scale(short=8, whole=200)
    keys = [f"key-{number}" for number in range(KEYS)]
    ledgers = tmp_path / "ledgers"
    ledgers.mkdir()
    ledger = ledgers / "client"
    plan = {"url": backend.url, "ledger": str(ledger), "keys": keys, "sizes": SIZES, "seed": faults.seed}
    with Saver(plan) as saver:
        few = saver.kill(kills // 3)
        left_by_few = asyncio.run(left_to_the_next(backend, keys, ledger, wait=False))
        more = saver.kill(kills - kills // 3)
        left_by_all = asyncio.run(left_to_the_next(backend, keys, ledger, wait=faults.scale(short=False, whole=True)))
    asyncio.run(look(backend.url, keys, ledgers / "afterwards"))
    left_in_the_end = asyncio.run(left(backend, Counter()))
    judgement = judge(ledgers)
    killed, clients = (few[what] + more[what] for what in ("killed", "clients"))
    slowest = max(few["slowest"], more["slowest"])
    leftovers = " and ".join(str(found.total()) for found in (left_by_few, left_by_all))
    notes = (
        f"{clients:,} clients, each with {KEYS} keys loaded {slowest:.2f} s after its start; "
        f"{leftovers} leftovers after {few['killed']} and {killed} kills"
    )
    faults.tell(Row.of(judgement, "client killed in a save (SIGKILL)", store, injected=killed, notes=notes))
    judgement.expect_nothing_lost()
    assert not judgement.errors
    assert killed == kills
    assert slowest < PROMPT
    assert judgement.longest_wait < PROMPT
    assert not left_by_few
    assert not left_by_all
    assert not left_in_the_end


async def left_to_the_next(backend, keys, ledger, *, wait):
    """Let one more client load and save all, once leases have ended, and return what there is beside the entries."""
    if not wait:
        await backend.end_leases()
    deadline = time.monotonic() + _PATIENCE
    while await backend.leases():
        assert time.monotonic() < deadline, "the leases of clients that were killed do not end"
        await asyncio.sleep(_PAUSE)
    async with open_store(backend.url) as store:
        recorder = Recorder(store, ledger)
        for key in keys:
            await recorder.load(key)
            await recorder.save(key, LARGE)
        recorder.close()
    return await left(backend, Counter(entries=KEYS))


async def left(backend, expected):
    """Return what the backend holds beside what is expected, once the server has seen that the clients are gone."""
    deadline = time.monotonic() + PROMPT
    while (held := await backend.held()) != expected and time.monotonic() < deadline:
        await asyncio.sleep(_PAUSE)
    held.subtract(expected)
    return Counter({kind: number for kind, number in held.items() if number})
