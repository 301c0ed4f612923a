"""A store can be opened and closed at any time, and used from any event loop."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from dagonizer import StoreClosedError
from dagonizer_conformance.case import case
from dagonizer_conformance.context import all_of, in_thread
from dagonizer_conformance.interruption import within
from dagonizer_conformance.leaks import Holdings, expect_given_back
from dagonizer_conformance.outcomes import Inconclusive, Violation, expect, expect_text, shown
from dagonizer_conformance.refusal import every_method, expect_refusal
from dagonizer_conformance.results import Capability, Level

if TYPE_CHECKING:
    from dagonizer_conformance.client import Client
    from dagonizer_conformance.context import Context

_CROWD = 12
_MIB = 1 << 20


@case("lifecycle.double-close", capability=Capability.CLOSE, oracle="aclose, called again")
async def double_close(context: Context) -> None:
    """Closing a store that is closed does nothing, and does not raise."""
    key = context.key()
    for used in (False, True):
        client = await context.open()
        if used:
            await client.save(key, context.text(key))
        await client.aclose()
        await client.aclose()
        at_once = await context.open()
        if used:
            await at_once.load(key)
        await all_of(at_once.aclose(), at_once.aclose())


@case("lifecycle.use-after-close", capability=Capability.CLOSE, oracle="a client that stays open")
async def use_after_close(context: Context) -> None:
    """After aclose every method raises, and does nothing."""
    key = context.key()
    absent = context.key("absent")
    text = context.text(key)
    witness = await context.open()
    await witness.save(key, text)
    for used in (False, True):
        client = await context.open()
        if used:
            await client.load(key)
        await client.aclose()
        for place in (key, absent):
            for name, call in every_method(client, place, context.text(place)).items():
                await expect_refusal(call(), f"{name}({shown(place)}) of a closed store", StoreClosedError)
        expect_text(await witness.load(key), text, "what another client loaded after the use of a closed one")
        expect_text(await witness.load(absent), None, "what another client loaded after the use of a closed one")


@case("lifecycle.close-spares-others", capability=Capability.CLOSE, oracle="the text that was saved")
async def close_spares_others(context: Context) -> None:
    """Closing a store leaves the other stores of the same data as they are, also in the middle of their operations."""
    key = context.key()
    others = [await context.open() for _ in range(2)]
    text = context.text(key)
    await others[0].save(key, text)
    met = False
    for number in range(context.scale(smoke=4, default=20, soak=200)):
        client = await context.open()
        if number % 2:
            await client.load(key)
        before = len(context.record.calls)
        loads = [asyncio.ensure_future(other.load(key)) for other in others * 4]
        while len(context.record.calls) < before + len(loads):  # noqa: ASYNC110 - a client sets no event
            await asyncio.sleep(0)
        # The first times while they are at their first awaits, then anywhere.
        for _ in range(context.random.randrange(10) if number > 1 else 0):
            await asyncio.sleep(0)
        met = met or any(call.ended is None for call in context.record.calls[before:])
        await client.aclose()
        for loaded in await all_of(*loads):
            expect_text(loaded, text, "what another client loaded during a close")
        for other in others:
            expect_text(await other.load(key), text, "what another client loaded after a close")
        text = context.text(key)
        await others[number % 2].save(key, text)
    expect_text(await (await context.open()).load(key), text, "what a client loaded that was opened after a close")
    if not met and await context.gives_way():
        raise Inconclusive("no load was under way when a store was closed")


@case("lifecycle.close-during-save", capability=Capability.CLOSE, oracle="the texts before and after", seconds=60)
async def close_during_save(context: Context) -> None:
    """A close during a save ends, and so does the save: it is done, or raises and leaves the old or the new text."""
    witness = await context.open()
    for number in range(context.scale(smoke=6, default=40, soak=500)):
        key = context.key(f"{number}")
        old = context.text(key)
        await witness.save(key, old)
        client = await context.open()
        if number % 2:
            await client.load(key)
        new = context.text(key, size=_MIB if number % 6 == 0 else 0)
        saving = asyncio.ensure_future(client.save(key, new))
        # The first times while it is between its first awaits, then anywhere.
        for _ in range(number if number < 6 else context.random.randrange(50)):  # noqa: PLR2004
            await asyncio.sleep(0)
        closing = asyncio.ensure_future(client.aclose())
        saved, closed = await asyncio.gather(saving, closing, return_exceptions=True)
        for outcome in (closed, saved):
            if isinstance(outcome, Violation):
                raise outcome
        if isinstance(closed, BaseException):
            raise closed
        loaded = await witness.load(key)
        what = f"what was loaded from {shown(key)} after a close during its save"
        if not isinstance(saved, BaseException):
            expect_text(loaded, new, f"{what}, which reported success,")
        else:
            expect(loaded in (old, new), f"{what}, which raised {saved!r}, is {shown(loaded)}: neither old nor new")
        await context.close(client)


@case(
    "lifecycle.open-close-leaks-nothing",
    capability=Capability.CLOSE,
    oracle="counts of tasks, threads and file descriptors before and after",
    seconds=60,
)
async def open_close_leaks_nothing(context: Context) -> None:
    """A store that was opened, used and closed leaves no task, thread, connection or file behind."""
    key = context.key()

    async def cycle() -> None:
        client = await context.open()
        await client.save(key, context.text(key))
        await all_of(client.load(key), client.load(key))
        await client.delete(key)
        await client.aclose()
        await context.close(client)

    # What is made once and kept is no leak.
    for _ in range(5):
        await cycle()
    before = Holdings.now()
    cycles = context.scale(smoke=20, default=50, soak=500)
    for _ in range(cycles):
        await cycle()
    await expect_given_back(before, f"{cycles} stores, opened and closed,", seconds=context.patience / 2)


@case("lifecycle.second-event-loop", level=Level.CORE, oracle="the texts that were saved")
async def second_event_loop(context: Context) -> None:
    """A store that was used in one event loop works in another, while the first goes on and after it has ended."""

    async def use(client: Client, where: str) -> None:
        try:
            await _use(context, client, where)
        except Violation:
            raise
        except Exception as exc:
            raise Violation(f"in {where} the store raised {type(exc).__name__}: {exc}") from exc

    async def use_elsewhere(client: Client, where: str) -> None:
        # A multiple of the patience, for each operation in it is bounded already.
        await within(5 * context.patience, in_thread(use(client, where)), f"using the store in {where}")

    client = await context.open()
    await use(client, "the first event loop")
    await use_elsewhere(client, "a second event loop, in another thread")
    await use(client, "the first event loop after a second one")
    client = await context.open()
    await use_elsewhere(client, "an event loop in another thread")
    await use_elsewhere(client, "a second event loop, after the first had ended")
    await use(client, "a third event loop, after the first had ended")


async def _use(context: Context, client: Client, where: str) -> None:
    """Use ``client`` in many tasks at once, so that they wait for what they share."""
    key = context.key()
    text = context.text(key, writer=where)
    await client.save(key, text)
    for loaded in await all_of(*(client.load(key) for _ in range(_CROWD))):
        expect_text(loaded, text, f"what was loaded in {where}")
    await client.delete(key)
    expect_text(await client.load(key), None, f"what was loaded in {where} after a delete")
