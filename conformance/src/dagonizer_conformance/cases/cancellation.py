"""An operation can be cancelled at any moment, and nothing but its own outcome is in doubt."""

from __future__ import annotations

import asyncio
import itertools
import time
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from dagonizer_conformance.case import case
from dagonizer_conformance.context import all_of
from dagonizer_conformance.interruption import cancel_after, cancel_at, within
from dagonizer_conformance.leaks import Holdings, expect_given_back
from dagonizer_conformance.outcomes import Inconclusive, Violation, expect, expect_text, shown
from dagonizer_conformance.refusal import every_method
from dagonizer_conformance.results import Level

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine

    from dagonizer_conformance.client import Client
    from dagonizer_conformance.context import Context

    Operation = Callable[[], Coroutine[Any, Any, object]]
    # Runs an operation, described by the text, and cancels it somewhere. Returns whether it got that far.
    Cut = Callable[[Operation, str], Awaitable[bool]]
    # Sets up, has one operation cut, checks what must hold afterwards, and returns what the cut returned.
    Attempt = Callable[[Cut], Awaitable[bool]]

_MIB = 1 << 20
_MOST_STEPS = 100
_CROWD = 6
_MANY = 32
# What is late by more is not worth waiting for, in a case of half a second.
_LATE = 0.05
_LATEST = 1.0


class _Cancellations:
    """Cancels operations in many places, and counts how often that came in time."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.landed = 0
        self.duration = 0.0
        """How long the last operation took that was not cancelled, in seconds."""

    async def everywhere(self, attempt: Attempt, *, at_random: int) -> None:
        """Make attempts with a cancellation at each await in turn, then ``at_random`` more at random moments."""
        for step in range(1, _MOST_STEPS):
            # Twice, for an operation may be over sooner than another of its kind.
            if not (await self.once(attempt, step=step) or await self.once(attempt, step=step)):
                break
        for _ in range(at_random):
            await self.once(attempt)

    async def once(self, attempt: Attempt, *, step: int | None = None) -> bool:
        """Make one attempt with a cancellation at await number ``step``, or at random."""
        landed = await attempt(partial(self._cut, step))
        self.landed += landed
        return landed

    async def expect_some(self) -> None:
        """Raise ``Inconclusive`` if none came in time although the store can be cancelled."""
        if self.landed:
            return
        if await self._context.gives_way():
            raise Inconclusive("no cancellation came while an operation was under way")
        self._context.note = "its operations never give way to the event loop, so that nothing can cancel them"

    async def _cut(self, step: int | None, operation: Operation, what: str) -> bool:
        patience = self._context.patience
        if step is None:
            delay = self.duration * self._context.random.random()
            return await cancel_after(delay, operation, seconds=patience, what=what)
        began = time.perf_counter()
        landed = await cancel_at(step, operation, seconds=patience, what=what)
        if not landed:
            self.duration = time.perf_counter() - began
        return landed


@case("cancellation.propagates", level=Level.CONCURRENT, oracle="what comes out of the cancelled task")
async def propagates(context: Context) -> None:
    """A cancelled operation ends in CancelledError, soon and with nothing else, wherever it is cancelled."""
    client = (await context.open()).unbounded()
    cancellations = _Cancellations(context)
    key = context.key()

    async def attempt(name: str, cut: Cut) -> bool:
        if name == "save_if":
            await client.delete(key)
        return await cut(every_method(client, key, context.text(key))[name], f"{name}({shown(key)})")

    for name in every_method(client, key, ""):
        await client.save(key, context.text(key))
        await cancellations.everywhere(partial(attempt, name), at_random=context.scale(smoke=3, default=20, soak=500))
    await cancellations.expect_some()


@case("cancellation.usable-afterwards", level=Level.CONCURRENT, oracle="the certificates in the texts")
async def usable_afterwards(context: Context) -> None:
    """After a cancellation the next operations of the same client do what they are asked, at once."""
    client = await context.open()
    texts = {key: context.text(key) for key in (context.key(f"{n}") for n in range(_CROWD))}
    for key, text in texts.items():
        await client.save(key, text)
    cancellations = _Cancellations(context)
    first, second, *_ = texts

    async def expect_right(client: Client, key: str, after: str) -> None:
        expect_text(await client.load(key), texts[key], f"what was loaded from {shown(key)} after a cancelled {after}")

    async def load(cut: Cut) -> bool:
        landed = await cut(lambda: client.unbounded().load(first), f"load({shown(first)})")
        await expect_right(client, second, "load of another key")
        return landed

    async def save(cut: Cut) -> bool:
        landed = await cut(lambda: client.unbounded().save(first, texts[first]), f"save({shown(first)})")
        await expect_right(client, second, "save of another key")
        await expect_right(client, first, "save of the same text")
        return landed

    async def delete(cut: Cut) -> bool:
        landed = await cut(lambda: client.unbounded().delete(first), f"delete({shown(first)})")
        await client.save(first, texts[first])
        await expect_right(client, first, "delete and a save")
        return landed

    async def crowd(cut: Cut) -> bool:
        landed = await all_of(
            *(cut(partial(client.unbounded().load, key), f"load({shown(key)}), one of {_CROWD}") for key in texts)
        )
        await all_of(*(expect_right(client, key, "load among others") for key in reversed(texts)))
        return any(landed)

    async def unused(cut: Cut) -> bool:
        client = await context.open()
        landed = await cut(lambda: client.unbounded().load(first), f"the first load of {client.name}")
        await expect_right(client, second, "first load")
        await context.close(client)
        return landed

    for attempt in (load, save, delete, crowd, unused):
        await cancellations.everywhere(attempt, at_random=context.scale(smoke=2, default=40, soak=1_000))
    await cancellations.expect_some()


@case(
    "cancellation.old-or-new",
    level=Level.CONCURRENT,
    oracle="the texts before and after, and their certificates",
    seconds=60,
)
async def old_or_new(context: Context) -> None:
    """A cancelled save leaves the old text or the new one, whole; a cancelled delete leaves the text or none."""
    client = await context.open()
    other = await context.open()
    cancellations = _Cancellations(context)

    async def save(key: str, old: str | None, new: str, cut: Cut) -> bool:
        if old is None:
            await client.delete(key)
        else:
            await client.save(key, old)
        landed = await cut(partial(client.unbounded().save, key, new), f"save({shown(key)})")
        await _expect_either(key, old, new, f"a cancelled save of {len(new):,} characters", client, other)
        return landed

    async def delete(key: str, text: str, cut: Cut) -> bool:
        await client.save(key, text)
        landed = await cut(partial(client.unbounded().delete, key), f"delete({shown(key)})")
        await _expect_either(key, text, None, "a cancelled delete", client, other)
        return landed

    few = context.scale(smoke=1, default=15, soak=300)
    large = context.scale(smoke=_MIB // 4, default=_MIB, soak=_MIB)
    for name, old_size, new_size in (("same", 0, 0), ("grows", 0, large), ("shrinks", large, 0), ("new", None, large)):
        key = context.key(name)
        old = None if old_size is None else context.text(key, size=old_size)
        attempt = partial(save, key, old, context.text(key, size=new_size))
        await cancellations.everywhere(attempt, at_random=few)
    key = context.key("deleted")
    await cancellations.everywhere(partial(delete, key, context.text(key)), at_random=2 * few)
    await cancellations.expect_some()


async def _expect_either(key: str, old: str | None, new: str | None, after: str, *clients: Client) -> None:
    """Expect the one or the other, and never the old one again once the new one was seen."""
    seen_new = False
    for client in (*clients, *clients):
        loaded = await client.load(key)
        what = f"what {client.name} loaded from {shown(key)} after {after}"
        if loaded == new:
            seen_new = True
        elif loaded == old:
            expect(not seen_new, f"{what} is what was there before, although the change had been seen")
        elif old is None or new is None:
            expect_text(loaded, old if new is None else new, what)
        else:
            expect(loaded is not None, f"{what} is None, neither the old text nor the new one")
            raise Violation(f"{what} is {shown(loaded)}, neither the old text nor the new one")


@case(
    "cancellation.no-late-write",
    level=Level.CONCURRENT,
    oracle="the last acknowledged save or delete of each key",
    seconds=60,
)
async def no_late_write(context: Context) -> None:
    """What was cancelled never takes effect after a later acknowledged save or delete by the same client."""
    client = await context.open()
    cancellations = _Cancellations(context)
    numbers = itertools.count()
    expected: dict[str, str | None] = {}

    async def expect_last(client: Client, key: str) -> None:
        what = f"what {client.name} loaded from {shown(key)} after a cancelled operation and an acknowledged one"
        expect_text(await client.load(key), expected[key], what)

    async def save_save(cut: Cut) -> bool:
        key = context.key(f"save, save {next(numbers)}")
        landed = await cut(
            partial(client.unbounded().save, key, context.text(key, writer="cancelled")), f"save({shown(key)})"
        )
        expected[key] = text = context.text(key, writer="acknowledged")
        await client.save(key, text)
        await expect_last(client, key)
        return landed

    async def delete_save(cut: Cut) -> bool:
        key = context.key(f"delete, save {next(numbers)}")
        await client.save(key, context.text(key))
        landed = await cut(partial(client.unbounded().delete, key), f"delete({shown(key)})")
        expected[key] = text = context.text(key, writer="acknowledged")
        await client.save(key, text)
        await expect_last(client, key)
        return landed

    async def save_delete(cut: Cut) -> bool:
        key = context.key(f"save, delete {next(numbers)}")
        landed = await cut(
            partial(client.unbounded().save, key, context.text(key, writer="cancelled")), f"save({shown(key)})"
        )
        expected[key] = None
        await client.delete(key)
        await expect_last(client, key)
        return landed

    # Whoever must wait for others is more easily overtaken.
    async with _company(context):
        for attempt in (save_save, delete_save, save_delete):
            await cancellations.everywhere(attempt, at_random=context.scale(smoke=1, default=40, soak=1_000))
    # There is no event to wait for: a thread that goes on tells nobody.
    await asyncio.sleep(min(_LATE + 3 * cancellations.duration, _LATEST))
    other = await context.open()
    for key in expected:
        await expect_last(client, key)
        await expect_last(other, key)
    await cancellations.expect_some()


@asynccontextmanager
async def _company(context: Context) -> AsyncIterator[None]:
    """Let other clients save other keys meanwhile."""
    leave = asyncio.Event()

    async def save(client: Client, key: str) -> None:
        while not leave.is_set():
            await client.save(key, context.text(key, writer=client.name))

    others = [asyncio.create_task(save(await context.open(), context.key(f"other {n}"))) for n in range(3)]
    try:
        yield
    finally:
        leave.set()
        await all_of(*others)


@case(
    "cancellation.leaks-nothing",
    level=Level.CONCURRENT,
    oracle="counts of tasks, threads and file descriptors before and after",
    seconds=60,
)
async def leaks_nothing(context: Context) -> None:
    """Cancelled operations leave no task, thread, connection or file behind."""
    client = await context.open()
    key = context.key()
    await client.save(key, context.text(key))
    cancellations = _Cancellations(context)
    kinds: list[Operation] = [
        lambda: client.unbounded().save(key, context.text(key)),
        lambda: client.unbounded().load(key),
        lambda: client.unbounded().save(key, context.text(key)),
        lambda: client.unbounded().delete(key),
    ]

    async def attempt(operation: Operation, cut: Cut) -> bool:
        # So that there is an open connection for it.
        await client.load(key)
        return await cut(operation, "an operation")

    async def fill_pools() -> None:
        await all_of(*(client.load(key) for _ in range(_MANY)))

    async def cancel(times: int) -> None:
        steps = [1] * len(kinds)
        enough = cancellations.landed + times
        for number in range(5 * times):
            kind = number % len(kinds)
            landed = await cancellations.once(partial(attempt, kinds[kind]), step=steps[kind])
            steps[kind] = steps[kind] + 1 if landed else 1
            if cancellations.landed >= enough:
                break

    await fill_pools()
    await cancel(20)
    await fill_pools()
    before = Holdings.now()
    times = context.scale(smoke=60, default=60, soak=600)
    await cancel(times)
    await fill_pools()
    await expect_given_back(before, f"{times} cancelled operations", seconds=context.patience / 2)
    await cancellations.expect_some()


@case("cancellation.timeout", level=Level.CONCURRENT, oracle="asyncio.timeout, and the texts before and after")
async def timeout(context: Context) -> None:
    """An operation that asyncio.timeout ends raises TimeoutError, and the store keeps its promises afterwards."""
    client = await context.open()
    key = context.key()
    began = time.perf_counter()
    text = context.text(key)
    await client.save(key, text)
    duration = time.perf_counter() - began
    timed_out = 0
    for number in range(context.scale(smoke=8, default=60, soak=1_000)):
        # None at all ends it at its first await.
        seconds = duration * context.random.random() if number % 2 else 0.0
        old, new = text, context.text(key)
        timed_out += await _times_out(context, seconds, partial(client.unbounded().save, key, new), "save")
        await _expect_either(key, old, new, "a save that timed out", client)
        timed_out += await _times_out(context, seconds, partial(client.unbounded().load, key), "load")
        text = context.text(key)
        await client.save(key, text)
        expect_text(await client.load(key), text, "what was loaded after operations that timed out and a save")
    if not timed_out and await context.gives_way():
        raise Inconclusive("no operation took long enough to time out")
    if not timed_out:
        context.note = "its operations never give way to the event loop, so that nothing can time them out"


async def _times_out(context: Context, seconds: float, operation: Operation, name: str) -> bool:
    """Run ``operation`` under ``asyncio.timeout``. Return whether it timed out."""
    deadline = asyncio.timeout(seconds)

    async def timed() -> None:
        async with deadline:
            await operation()

    what = f"a {name} under asyncio.timeout"
    try:
        await within(context.patience, timed(), what)
    except Violation:
        raise
    except Exception as exc:
        if not deadline.expired():
            raise
        expect(type(exc) is TimeoutError, f"{what}, which had expired, raised {exc!r} instead of TimeoutError")
        return True
    expect(not deadline.expired(), f"{what}, which had expired, returned instead of raising TimeoutError")
    return False
