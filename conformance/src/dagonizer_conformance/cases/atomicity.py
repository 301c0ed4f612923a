"""A save happens at one moment, for everyone, or not at all."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

from dagonizer import InvalidValueError
from dagonizer_conformance.case import case
from dagonizer_conformance.certificate import read_certificate
from dagonizer_conformance.context import expect_overlap, overlapped
from dagonizer_conformance.outcomes import expect, expect_text, shown
from dagonizer_conformance.refusal import is_refused
from dagonizer_conformance.results import Level

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from dagonizer_conformance.client import Call, Client
    from dagonizer_conformance.context import Context, Script

_READERS = 3
_WRITERS = 6
_LOOKS = 5
_SIZES = (300, 70_000, 1_000, 300_000)


@case("atomicity.readers-during-overwrites", level=Level.CONCURRENT, oracle="the certificates in the texts", seconds=60)
async def readers_during_overwrites(context: Context) -> None:
    """Whoever loads while a key is overwritten sees the old or the new text whole, never a mixture, never None."""
    key = context.key()
    first = await context.open()
    await first.save(key, context.text(key, writer="first"))
    finished = asyncio.Event() if await context.gives_way() else threading.Event()
    overwrites = context.scale(smoke=15, default=120, soak=2_000)

    async def write(client: Client) -> None:
        try:
            for number in context.until_overlapped(overwrites):
                await client.save(key, context.text(key, size=_SIZES[number % len(_SIZES)]))
        finally:
            finished.set()

    async def read(client: Client) -> None:
        while not finished.is_set():
            expect(await client.load(key) is not None, "a key that is only overwritten was absent")

    await context.concurrently(write, *[read] * _READERS)


@case("atomicity.visible-at-once", level=Level.CONCURRENT, oracle="the text that was saved last")
async def visible_at_once(context: Context) -> None:
    """An acknowledged save or delete is seen by every other client at once."""
    clients = [await context.open() for _ in range(3)]
    key = context.key()
    for client in clients:
        # Whoever has looked before must look again.
        expect_text(await client.load(key), None, "what was loaded before the first save")
    for number in range(context.scale(smoke=6, default=30, soak=300)):
        writer, *readers = clients[number % 3 :] + clients[: number % 3]
        text = context.text(key)
        await writer.save(key, text)
        for reader in readers:
            expect_text(await reader.load(key), text, f"what {reader.name} loaded after {writer.name} saved")
        if number % 3 == 2:  # noqa: PLR2004
            await writer.delete(key)
            for reader in readers:
                expect_text(await reader.load(key), None, f"what {reader.name} loaded after {writer.name} deleted")


@case("atomicity.first-save-race", level=Level.CONCURRENT, oracle="the certificates in the texts", seconds=60)
async def first_save_race(context: Context) -> None:
    """When many clients save a new key at once, one of their texts is there afterwards, whole."""
    calls: list[Call] = []
    limit = 10
    while not calls or (not overlapped(calls) and limit):
        keys = [context.key(f"{limit}/{number}") for number in range(context.scale(smoke=4, default=30, soak=300))]
        meet = await context.meeting(_WRITERS)
        scripts = [_race(context, keys, meet, number) for number in range(_WRITERS)]
        calls += await context.concurrently(*scripts, overlap=False)
        client = await context.open()
        for key in keys:
            text = await client.load(key)
            expect(text is not None and read_certificate(text).key == key, f"{shown(key)} has no winner")
        limit -= 1
    expect_overlap(calls)


def _race(context: Context, keys: Sequence[str], meet: Callable[[], Awaitable[None]], number: int) -> Script:
    async def save_all(client: Client) -> None:
        for key in keys:
            text = context.text(key, writer=f"writer {number}", size=_SIZES[number % len(_SIZES)])
            await client.load(key)
            await meet()
            if number == 0:
                # What is there before anyone is done is seen by those who only look.
                for _ in range(_LOOKS):
                    await client.load(key)
            await client.save(key, text)
            expect(await client.load(key) is not None, f"{shown(key)} was absent after it was saved")

    return save_all


@case("atomicity.failed-save", level=Level.CONCURRENT, oracle="the text that was there before")
async def failed_save(context: Context) -> None:
    """A save that fails half-way leaves the text that was there."""
    client = await context.open()
    key = context.key()
    old = context.text(key)
    await client.save(key, old)
    for size in (1_000, 70_000, 1_000_000):
        # Most of it can be written before what cannot comes in sight.
        new = context.text(key, size=size) + "\ud800"
        if await is_refused(client.save(key, new), f"save of {shown(new)}", InvalidValueError):
            expect_text(await client.load(key), old, "what was loaded after a save that failed")
        else:
            expect_text(await client.load(key), new, "what was loaded after a save of a lone surrogate")
            await client.save(key, old)
