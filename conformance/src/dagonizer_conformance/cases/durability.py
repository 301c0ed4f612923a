"""What was acknowledged stays, whatever happens to clients, processes and the backend."""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import TYPE_CHECKING

from dagonizer_conformance.case import case
from dagonizer_conformance.certificate import read_certificate
from dagonizer_conformance.context import all_of
from dagonizer_conformance.many import for_each, save_many
from dagonizer_conformance.outcomes import Inconclusive, Unverified, Violation, expect, expect_text, shown
from dagonizer_conformance.results import Level

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from dagonizer_conformance.client import Client
    from dagonizer_conformance.context import Context

_MIXED = (0, 0, 3_000, 60_000)
_SMALL = (0, 0, 300, 300, 1_000, 3_000, 10_000, 20_000)
_LARGE = (300_000, 1_000_000)


@case("durability.reopen-after-close", level=Level.CORE, oracle="what the first client saved and deleted")
async def reopen_after_close(context: Context) -> None:
    """A new client finds what a client left that was closed."""
    first = await context.open()
    left = await _leave(context, first)
    await context.close(first)
    await _expect_found(await context.open(), left, "after a close")


@case("durability.reopen-without-close", level=Level.CORE, oracle="what the first client saved and deleted")
async def reopen_without_close(context: Context) -> None:
    """A new client finds what another one did that is still open."""
    left = await _leave(context, await context.open())
    await _expect_found(await context.open(), left, "while the first client is open")


@case("durability.many-keys", level=Level.CORE, oracle="the texts that were saved", seconds=120)
async def many_keys(context: Context) -> None:
    """However many keys were saved, each has its text."""
    many = context.scale(smoke=1_100, default=1_100, soak=20_000)
    texts = await save_many(context, await context.open(), many=many, few=40)
    client = await context.open()

    async def check(item: tuple[str, str]) -> None:
        key, text = item
        expect_text(await client.load(key), text, f"what was loaded from {shown(key)}, one of {len(texts):,} keys,")

    await for_each(texts.items(), check)


@case("durability.nothing-expires", level=Level.CORE, oracle="texts saved at the start of the run and of the case")
async def nothing_expires(context: Context) -> None:
    """An entry stays until it is deleted, however long it is left alone."""
    client = await context.open()
    key = context.key()
    text = context.text(key)
    await client.save(key, text)
    old = context.bystander
    age = context.scale(smoke=1_500, default=5_000, soak=120_000) / 1000
    await asyncio.sleep(old.saved + age - time.monotonic())
    finder = await context.open(old.namespace)
    expect_text(await finder.load(old.key), old.text, f"an entry that was left alone for {age:g} s")
    expect_text(await client.load(key), text, "an entry that was left alone")


@case(
    "durability.backend-kill",
    level=Level.CRASH_SAFE,
    oracle="the numbers in the texts, against those that were acknowledged",
    seconds=120,
)
async def backend_kill(context: Context) -> None:
    """When the backend is killed in the middle of saves, everything that it had acknowledged is there afterwards."""
    context.require("kill")
    left = await _leave(context, await context.open())
    writers: list[_Writer] = []
    for number in range(context.scale(smoke=1, default=6, soak=60)):
        clients = [await context.open(), await context.open(), await _process_if_possible(context)]
        killed = [_Writer(context, client, f"{number}/{n}") for n, client in enumerate(clients)]
        await _kill_during_saves(context, killed, context.kill)
        writers += killed
        client = await context.open()
        for writer in writers:
            await writer.check(client)
        await _expect_found(client, left, "after the backend was killed")


@case(
    "durability.client-kill",
    level=Level.CRASH_SAFE,
    oracle="the certificates in the texts, and the numbers that were acknowledged",
    seconds=120,
)
async def client_kill(context: Context) -> None:
    """A process that is killed in the middle of saves leaves old or new texts, whole, and holds up no other client."""
    other = await context.open()
    cut_off = 0
    for number in range(context.scale(smoke=2, default=4, soak=40)):
        # Apart, for making the large ones and sending them to the process leaves no time for the small ones.
        for sizes, process in zip((_SMALL, _LARGE), await all_of(context.process(), context.process()), strict=True):
            names = [f"{process.name}, {number}/{n}" for n in range(len(sizes))]
            writers = [_Writer(context, process, name, (size,)) for name, size in zip(names, sizes, strict=True)]

            async def kill(process: Client = process) -> None:
                process.store.kill()

            await _kill_during_saves(context, writers, kill)
            cut_off += sum(writer.was_cut_off for writer in writers)
            for writer in writers:
                await writer.check(other)
                await other.save(writer.key, context.text(writer.key, writer="other"))
                await other.delete(writer.key)
    if not cut_off:
        raise Inconclusive("no client was killed in the middle of a save")


@case("durability.in-the-backend", level=Level.CRASH_SAFE, oracle="what is read from the backend, around the store")
async def in_the_backend(context: Context) -> None:
    """What a save has acknowledged is in the backend, and what a delete has acknowledged is not."""
    context.require("peek")
    client = await context.open()
    for name, size in (("small", 0), ("large", 300_000)):
        key = context.key(name)
        for _ in range(2):
            text = context.text(key, size=size)
            await client.save(key, text)
            found = await context.harness.peek(context.namespace, key)
            expect_text(found, text, f"what the backend holds under {shown(key)}, which was saved,")
        await client.delete(key)
        found = await context.harness.peek(context.namespace, key)
        expect_text(found, None, f"what the backend holds under {shown(key)}, which was deleted,")


async def _leave(context: Context, client: Client) -> dict[str, str | None]:
    """Save, overwrite and delete; return what must be found afterwards."""
    left: dict[str, str | None] = {}
    for name, saves, deleted in (("saved", 1, False), ("overwritten", 3, False), ("deleted", 2, True)):
        key = context.key(name)
        for _ in range(saves):
            text = context.text(key)
            await client.save(key, text)
            left[key] = text
        if deleted:
            left[key] = None
            await client.delete(key)
    return left


async def _expect_found(client: Client, left: Mapping[str, str | None], when: str) -> None:
    for key, text in left.items():
        expect_text(await client.load(key), text, f"what another client loaded from {shown(key)} {when}")


class _Writer:
    """Saves numbered texts under a key of its own, one after another, until it is stopped or a save fails."""

    def __init__(self, context: Context, client: Client, name: str, sizes: tuple[int, ...] = _MIXED) -> None:
        self.key = context.key(name)
        self._context = context
        self._client = client
        self._sizes = itertools.cycle(sizes)
        self._sent = 0
        self._acknowledged = 0
        self._stopped = False

    @property
    def was_cut_off(self) -> bool:
        """Whether its last save was not acknowledged."""
        return self._sent > self._acknowledged

    async def save(self) -> None:
        """Save the next text."""
        self._sent += 1
        await self._client.save(self.key, self._context.text(self.key, writer=self.key, size=next(self._sizes)))
        self._acknowledged = self._sent

    async def run(self) -> None:
        """Save until stopped."""
        # Not all in step, or a kill finds all of them at the same point.
        await asyncio.sleep(self._context.random.random() / 100)
        while not self._stopped:
            await self.save()
            # For a store that does not.
            await asyncio.sleep(0)

    def stop(self) -> None:
        """Begin no other save."""
        self._stopped = True

    async def check(self, client: Client) -> None:
        """Raise ``Violation`` unless the key has the last acknowledged text or a later one."""
        text = await client.load(self.key)
        number = 0 if text is None else read_certificate(text).number
        expect(
            number >= self._acknowledged,
            f"after the kill {shown(self.key)} has {'no text' if text is None else f'text #{number}'}, "
            f"though #{self._acknowledged} was acknowledged (#{self._sent} was sent last)",
        )


async def _kill_during_saves(context: Context, writers: list[_Writer], kill: Callable[[], Awaitable[None]]) -> None:
    for writer in writers:
        await writer.save()
    saving = [asyncio.create_task(writer.run()) for writer in writers]
    try:
        await asyncio.sleep(0.02 + context.random.random() * 0.03)
        for task in saving:
            # A failure, for nobody was stopped yet.
            if task.done():
                await task
        await kill()
    finally:
        for writer in writers:
            writer.stop()
        outcomes = await asyncio.gather(*saving, return_exceptions=True)
    # Any other error means that the outcome of a save is unknown.
    for outcome in outcomes:
        if isinstance(outcome, Violation):
            raise outcome


async def _process_if_possible(context: Context) -> Client:
    try:
        return await context.process()
    except Unverified:
        return await context.open()
