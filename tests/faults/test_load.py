"""A thousand tasks on one instance, and 32 processes on one server, at the same time, on every store."""

from __future__ import annotations

import subprocess
import time
from collections import defaultdict
from contextlib import ExitStack, asynccontextmanager
from itertools import chain
from statistics import median
from typing import TYPE_CHECKING

import pytest
from faults.child import Child
from faults.clients import SIZES, look, store_url
from faults.crowd import History, Rememberer, Tally
from faults.ledger import judge
from faults.report import Row

from dagonizer import MemoryCheckpointStore, StoreURL
from dagonizer.registry import store_endpoints
from dagonizer_conformance.proxy import FaultProxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence
    from pathlib import Path

TASKS = 1_000
# In a quarter of the time.
_SAMPLES = 10
_SLACK = 10
_PAUSE = 0.5
# Connections at most, by default.
POOLS = {"file": 0, "postgresql": 10, "redis": 32, "s3": 50, "etcd": 1, "etcd+http": 30}


class Crowd(Child):
    """A process whose tasks use one instance of a store. Each task has the keys ``own[n]``, and all ``shared`` ones."""

    def __init__(self, url: str, *, own, shared, seed: str, checked: str | None = None, ledger: Path | None = None):
        plan = {
            "url": url,
            "own": own,
            "shared": shared,
            "sizes": SIZES,
            "seed": seed,
            # So many processes would leave no processor to the one with the tasks.
            "pause": 0.0 if ledger is None else _PAUSE,
            "checked": checked,
            "ledger": ledger and str(ledger),
        }
        super().__init__("faults.crowd", plan)


def all_go_on(crowds: Iterable[Crowd]) -> list[dict]:
    """Let each go on to the next thing that it tells, and return that."""
    for crowd in crowds:
        crowd.tell("go on")
    return [crowd.told() for crowd in crowds]


def grown(pids: Sequence[int], seconds: float) -> list[float]:
    """Watch the processes for that long; return what each has in memory at the end, over what it had after a quarter.

    It is the median of a quarter of the samples each time, for what is under way comes and goes.
    """
    samples = []
    for _ in range(4 * _SAMPLES):
        time.sleep(seconds / (4 * _SAMPLES))
        samples.append(resident(pids))
    return [median(own[-_SAMPLES:]) / median(own[_SAMPLES : 2 * _SAMPLES]) for own in zip(*samples, strict=True)]


def resident(pids: Sequence[int]) -> list[int]:
    """Return how much of the memory each process has, in KiB."""
    command = ["ps", "-o", "pid=,rss=", "-p", ",".join(map(str, pids))]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    sizes = dict(map(str.split, listed.splitlines()))
    return [int(sizes[str(pid)]) for pid in pids]


@asynccontextmanager
async def through_proxy(url: str) -> AsyncIterator[tuple[str, FaultProxy | None]]:
    """Yield the URL with a proxy between, which counts connections, for a store that has any."""
    endpoints = store_endpoints(StoreURL.parse(url))
    if not endpoints:
        yield url, None
        return
    (endpoint,) = endpoints
    async with FaultProxy(endpoint.name, endpoint.port) as proxy:
        yield url.replace(f"{endpoint.name}:{endpoint.port}", f"{proxy.host}:{proxy.port}"), proxy


@pytest.fixture
def url(store, tmp_path, request):
    # A thousand on few processors wait for each other, and for no fault.
    url = store_url(store, tmp_path, request)
    return f"{url}{'&' if '?' in url else '?'}timeout=60"


@pytest.mark.parametrize("store", ["file", "postgresql", "redis", "s3", "etcd", "etcd+http"])
async def test_under_load_nothing_fails_leaks_or_grows(store, url, faults, tmp_path):
    number, seconds = faults.scale(short=(8, 2.0), whole=(32, 60.0))
    most_growth = faults.scale(short=1.1, whole=1.05)
    prefix = f"load-{faults.random.getrandbits(32):08x}"
    own = [[f"{prefix}-{n}-{m}" for m in range(3)] for n in range(number)]
    shared = [f"{prefix}-shared-{n}" for n in range(4)]
    ledgers = tmp_path / "ledgers"
    ledgers.mkdir()
    with ExitStack() as stack:
        async with through_proxy(url) as (behind, proxy):
            tasks = stack.enter_context(
                Crowd(
                    behind,
                    own=[[f"{prefix}-task-{n}"] for n in range(TASKS)],
                    shared=[f"{prefix}-tasks-{n}" for n in range(TASKS // 4)],
                    seed=faults.seed,
                    checked=url,
                )
            )
            processes = [
                stack.enter_context(
                    Crowd(url, own=[keys], shared=shared, seed=f"{faults.seed} {n}", ledger=ledgers / f"process{n}")
                )
                for n, keys in enumerate(own)
            ]
            crowds = (tasks, *processes)
            for crowd in crowds:
                crowd.told()
            all_go_on([tasks])
            all_go_on(processes)
            growth = grown([crowd.pid for crowd in crowds], seconds)
            idle = [told["idle"] for told in all_go_on(crowds)]
            connections = proxy.connections if proxy else 0
            ended = all_go_on(crowds)
            left = proxy.connections if proxy else 0
    await look(url, [*chain(*own), *shared], ledgers / "afterwards")
    judgement = judge(ledgers)
    mine = ended[0]
    faults.tell(
        Row(
            fault=f"{TASKS:,} tasks on one instance",
            store=store,
            injected=TASKS,
            acknowledged=mine["acknowledged"],
            lost=len(mine["lost"]),
            torn=len(mine["torn"]),
            longest_wait=mine["longest_wait"],
            errors=mine["errors"],
            notes=f"memory grew {growth[0]:.3f}-fold; open connections: {connections}",
        )
    )
    fault = f"{number} processes on one {'directory' if store == 'file' else 'server'}"
    notes = f"memory grew {max(growth[1:]):.3f}-fold at most"
    faults.tell(Row.of(judgement, fault, store, injected=number, notes=notes))
    assert not mine["errors"]
    assert not judgement.errors
    assert not mine["lost"], mine["lost"]
    assert not mine["torn"], mine["torn"]
    judgement.expect_nothing_lost()
    assert [told["leaked"] for told in ended] == [None] * len(crowds)
    assert connections <= POOLS[store]
    assert not left
    for (unfinished, _, descriptors), opened in zip(idle, [connections, *[1] * number], strict=True):
        assert unfinished <= _SLACK
        assert descriptors <= opened + _SLACK
    assert max(growth) <= most_growth


async def test_a_write_that_is_lost_under_a_key_of_many_tasks_is_found():
    class Forgetful(MemoryCheckpointStore):
        async def save(self, key, json):
            await super().save(key, json)
            await self.delete(key)

    tally, histories = Tally(), defaultdict(History)
    one, other = (Rememberer(Forgetful(), name, [], histories, tally) for name in ("one", "other"))
    await one.save("key", 0)
    await other.load("key")
    assert tally.lost == ["other found None under 'key', which was overridden"]
