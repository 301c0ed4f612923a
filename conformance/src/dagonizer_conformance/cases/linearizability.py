"""A store under many clients behaves like one register for each key."""

from __future__ import annotations

import asyncio
import random
import statistics
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from dagonizer import StoreConflictError
from dagonizer_conformance.case import case
from dagonizer_conformance.context import all_of, expect_overlap, overlapped
from dagonizer_conformance.history import expect_linearizable
from dagonizer_conformance.interruption import wait_precisely
from dagonizer_conformance.outcomes import Inconclusive, Violation, expect, expect_text
from dagonizer_conformance.results import Capability, Level

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from dagonizer_conformance.client import Client
    from dagonizer_conformance.context import Context, Script

_WAIT_FOR_OTHER = 0.1
_SAVING = ("save", "load")
_LOADING = ("load",)
_DELETING = ("delete", "load")
_MOST = 8

_ORACLE = "a search for an order of the recorded operations that one register explains"


@case("linearizability.clients", level=Level.CONCURRENT, oracle=_ORACLE, seconds=60)
async def clients(context: Context) -> None:
    """Saves and loads of several clients happen in one order, each at one moment between its call and its return."""
    expect_linearizable(await context.concurrently(*_crowd(context, [_SAVING] * 5)))


@case("linearizability.deletes", level=Level.CONCURRENT, oracle=_ORACLE, seconds=60)
async def deletes(context: Context) -> None:
    """Saves, loads and deletes of several clients happen in one order; nothing that was deleted comes back."""
    expect_linearizable(await context.concurrently(*_crowd(context, [_DELETING, _SAVING, _SAVING, _LOADING, _LOADING])))


@case("linearizability.tasks", level=Level.CONCURRENT, oracle=_ORACLE, seconds=60)
async def tasks(context: Context) -> None:
    """Many tasks that share one store do not disturb each other."""
    client = await context.open()
    scripts = _crowd(context, [_DELETING, *[_SAVING] * 23], operations=4)
    expect_linearizable(await context.together(client, *scripts))


@case("linearizability.processes", level=Level.CRASH_SAFE, oracle=_ORACLE, seconds=60)
async def processes(context: Context) -> None:
    """Saves, loads and deletes of clients in several processes happen in one order."""
    everyone = await all_of(context.process(), context.process(), context.open(), context.open())
    scripts = _crowd(context, [_DELETING, *[_SAVING] * 3])
    before = len(context.record.calls)
    await all_of(*(script(client) for script, client in zip(scripts, everyone, strict=True)))
    calls = context.record.calls[before:]
    expect_overlap(calls)
    expect_linearizable(calls)


@case("linearizability.paused-process", level=Level.CRASH_SAFE, oracle=_ORACLE, seconds=120)
async def paused_process(context: Context) -> None:
    """A process that is stopped in the middle of a save, and goes on later, reports no success that it did not have."""
    paused = await context.process()
    other = await context.open()
    duration = await _typical_duration(context, paused)
    attempts = context.scale(smoke=20, default=60, soak=400)
    enough = context.scale(smoke=3, default=20, soak=200)
    landed = 0
    for attempt in range(attempts):
        if landed == enough:
            break
        key = context.key(f"paused {attempt}")
        await other.save(key, context.text(key, writer="before"))
        saving = asyncio.create_task(paused.save(key, context.text(key, writer="paused")))
        meanwhile: list[Callable[[], Coroutine[object, object, object]]] = [
            partial(other.load, key),
            partial(other.save, key, context.text(key, writer="other")),
        ]
        landed += await _pause(context, paused, saving, duration, meanwhile[attempt % 2])
        await other.load(key)
        await paused.load(key)
    expect_linearizable([call for call in context.record.calls if "/paused " in call.key])
    if other.has(Capability.COMPARE_AND_SWAP):
        swaps = 0
        for attempt in range(attempts):
            if swaps == enough:
                break
            swaps += await _pause_in_compare_and_swap(context, paused, other, context.key(f"swapped {attempt}"))
    if not landed:
        raise Inconclusive(f"none of {attempts} pauses fell into a save")


async def _pause_in_compare_and_swap(context: Context, paused: Client, other: Client, key: str) -> bool:
    """Let both swap from one version, ``paused`` with a pause; return whether that one was cut in two by it."""
    began = time.monotonic()
    version = await paused.save_if(key, context.text(key), expected=None)
    duration = time.monotonic() - began
    texts = {client: context.text(key, writer=client.name) for client in (paused, other)}
    won: dict[Client, bool | None] = {}

    async def swap(client: Client) -> None:
        won[client] = None
        try:
            await client.save_if(key, texts[client], expected=version)
            won[client] = True
        except StoreConflictError:
            won[client] = False

    swapping = asyncio.create_task(swap(paused))
    landed = await _pause(context, paused, swapping, duration, partial(swap, other))
    winners = [client for client in won if won[client]]
    expect(len(winners) < 2, "two compare-and-swaps from one version reported success, one of them after a pause")  # noqa: PLR2004
    expect(winners or None in won.values(), "two compare-and-swaps from one version were both refused")
    if winners and None not in won.values():
        expect_text(await other.load(key), texts[winners[0]], "what was loaded after a compare-and-swap that won")
    return landed


async def _pause(
    context: Context,
    process: Client,
    operation: asyncio.Task[Any],
    duration: float,
    meanwhile: Callable[[], Coroutine[object, object, object]],
) -> bool:
    """Stop ``process`` somewhere in its operation, do something else meanwhile, and let it go on.

    Returns whether the operation was cut in two by that.
    """
    # What a client holds for a limited time must be able to run out. Longer, should it make the other one wait.
    pause = context.scale(smoke=100, default=100, soak=1_000) / 1000
    await wait_precisely(operation, duration * context.random.random())
    process.store.pause()
    # A store that blocks the event loop until the process goes on would wait for ever.
    resuming = threading.Timer(pause + _WAIT_FOR_OTHER, process.store.resume)
    resuming.start()
    try:
        # A reply that was sent before the pause arrives.
        await asyncio.wait({operation}, timeout=pause / 2)
        landed = not operation.done()
        acting = asyncio.create_task(meanwhile())
        await asyncio.sleep(pause / 2)
        await asyncio.wait({acting}, timeout=_WAIT_FOR_OTHER)
    finally:
        resuming.cancel()
        resuming.join()
        process.store.resume()
    for outcome in await asyncio.gather(acting, operation, return_exceptions=True):
        # Whoever gets an error does not know what became of its operation, and the history says so.
        if isinstance(outcome, Violation):
            raise outcome
    return landed


async def _typical_duration(context: Context, client: Client) -> float:
    """Return how long a save of ``client`` takes, in seconds."""
    key = context.key("duration")
    durations = []
    for _ in range(5):
        began = time.monotonic()
        await client.save(key, context.text(key))
        durations.append(time.monotonic() - began)
    return statistics.median(durations)


def _crowd(context: Context, roles: Sequence[Sequence[str]], *, operations: int = 0) -> Sequence[Script]:
    """Return a script of random operations for each of ``roles``, which says what it does, on a few keys.

    Few should delete, for with many at once hardly any absence lacks an explanation. Each goes on until all have done
    their share, so that slow operations meet with as many others as fast ones.
    """
    operations = operations or context.scale(smoke=24, default=100, soak=400)
    keys = [context.key(name) for name in ("one", "one", "one", "two")]
    done = [0] * len(roles)

    def is_unfinished() -> bool:
        shares, rest = divmod(min(done), operations)
        return not shares or rest > 0 or (shares < _MOST and not overlapped(context.record.calls))

    def script(number: int, kinds: Sequence[str]) -> Script:
        chance = random.Random(context.random.getrandbits(64))  # noqa: S311 - chance that a seed repeats

        async def act(client: Client) -> None:
            while is_unfinished() and done[number] < _MOST * operations:
                done[number] += 1
                key = chance.choice(keys)
                match chance.choice(kinds):
                    case "save":
                        size = chance.choice((0, 0, 4_000, 60_000))
                        await client.save(key, context.text(key, writer=client.name, size=size))
                    case "load":
                        await client.load(key)
                    case "delete":
                        await client.delete(key)

        return act

    return [script(number, kinds) for number, kinds in enumerate(roles)]
