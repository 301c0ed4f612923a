"""Compare-and-swap: nobody overwrites what he has not seen."""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from dagonizer.errors import StoreConflictError, StoreError
from dagonizer_conformance.case import case
from dagonizer_conformance.context import all_of, overlapped
from dagonizer_conformance.outcomes import Inconclusive, Unverified, Violation, expect, expect_text, shown
from dagonizer_conformance.results import Capability

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dagonizer_conformance.client import Call, Client
    from dagonizer_conformance.context import Context

_CLIENTS = 4
_ATTEMPTS = 5
_ENOUGH_MET = 3

# Among them what means "any", "none" or nothing at all to some backend.
_BOGUS = ("", " ", "*", "0", "-1", "1", "None", "null", "bogus", "'", "%", "versi\u00f3n 😀", "9" * 40, "9" * 10_000)


@case("compare-and-swap.stale-version", capability=Capability.COMPARE_AND_SWAP, oracle="who saved last")
async def stale_version(context: Context) -> None:
    """A save_if with the version of an older text raises StoreConflictError and changes nothing."""
    client, other = await context.open(), await context.open()
    for name, change in (("saved", "save"), ("swapped", "save_if"), ("deleted", "delete")):
        key = context.key(name)
        old = await client.save_if(key, context.text(key), expected=None)
        text: str | None = context.text(key, writer="other")
        match change:
            case "save":
                await other.save(key, str(text))
            case "save_if":
                await other.save_if(key, str(text), expected=old)
            case _:
                await other.delete(key)
                text = None
        for loser in (client, other):
            await _expect_conflict(context, loser, key, old, f"a version from before the entry was {name}")
            expect_text(await client.load(key), text, "what was loaded after a save_if that was refused")


@case("compare-and-swap.absent", capability=Capability.COMPARE_AND_SWAP, oracle="whether there is an entry")
async def absent(context: Context) -> None:
    """Without an entry there is no version, and a save_if that expects none saves only then."""
    client = await context.open()
    key = context.key()
    for _ in range(2):
        expect(await client.load_versioned(key) is None, "load_versioned found an entry where there is none")
        text = context.text(key)
        version = await client.save_if(key, text, expected=None)
        expect_text(await client.load(key), text, "what was loaded after a save_if where no entry was")
        await _expect_conflict(context, client, key, None, "expected=None where there is an entry")
        expect_text(await client.load(key), text, "what was loaded after a save_if that was refused")
        await client.delete(key)
        await _expect_conflict(context, client, key, version, "the version of an entry that was deleted")
        expect_text(await client.load(key), None, "what was loaded after a save_if of an absent key was refused")


@case(
    "compare-and-swap.bogus-version", capability=Capability.COMPARE_AND_SWAP, oracle="no load ever returned the version"
)
async def bogus_version(context: Context) -> None:
    """A version that the store never gave for this entry is refused with a StoreError, and nothing changes."""
    client = await context.open()
    key, missing, neighbour = context.key(), context.key("missing"), context.key("neighbour")
    text = context.text(key)
    # Not the first save, for the neighbour's version may be a number that is counted for each key.
    await client.save(key, context.text(key))
    version = await client.save_if(key, text, expected=await _version(client, key))
    of_neighbour = await client.save_if(neighbour, context.text(neighbour), expected=None)
    for bogus in (*_BOGUS, f"{version}0", of_neighbour):
        for target, present in ((key, text), (missing, None)):
            if target == key and bogus == version:
                continue
            try:
                await client.save_if(target, context.text(target), expected=bogus)
            except StoreError:
                expect_text(await client.load(target), present, f"what was loaded after a save_if with {shown(bogus)}")
            else:
                raise Violation(
                    f"save_if({shown(target)}) accepted the version {shown(bogus)}, "
                    + ("though there is no entry" if present is None else f"though it is {shown(version)}")
                )
    await client.save_if(key, context.text(key), expected=version)


@case("compare-and-swap.version-moves", capability=Capability.COMPARE_AND_SWAP, oracle="whether the text changed")
async def version_moves(context: Context) -> None:
    """Whatever changes the text changes the version: save, save_if, and deletion with re-creation."""
    client, other = await context.open(), await context.open()
    key = context.key()
    await client.save(key, context.text(key))
    for name in ("a save", "a save_if", "a deletion and a save", "a deletion and a save_if"):
        before = await _version(client, key)
        expected: str | None = before
        text = context.text(key)
        if "deletion" in name:
            await other.delete(key)
            expected = None
        if "save_if" in name:
            await other.save_if(key, text, expected=expected)
        else:
            await other.save(key, text)
        expect(await _version(client, key) != before, f"{name} changed the text but left the version {shown(before)}")
        await _expect_conflict(context, client, key, before, f"a version from before {name}")
        expect_text(await client.load(key), text, "what was loaded after a save_if that was refused")


@case("compare-and-swap.returned-version", capability=Capability.COMPARE_AND_SWAP, oracle="nobody else saves")
async def returned_version(context: Context) -> None:
    """The version that save_if returns is that of the text it saved, and the next save_if can use it."""
    client, other = await context.open(), await context.open()
    key = context.key()
    version: str | None = None
    for _ in range(4):
        text = context.text(key)
        version = await client.save_if(key, text, expected=version)
        for reader in (client, other):
            found = await reader.load_versioned(key)
            expect_text(found and found.json, text, f"what {reader.name} loaded after a save_if")
            found_version = found and found.version
            expect(
                found_version == version,
                f"save_if returned the version {shown(version)}, but {reader.name} loads {shown(found_version)}",
            )


@case("compare-and-swap.unchanged-entry", capability=Capability.COMPARE_AND_SWAP, oracle="nobody changes the entry")
async def unchanged_entry(context: Context) -> None:
    """While an entry is unchanged its version stays valid, whatever happens to other keys."""
    client, other = await context.open(), await context.open()
    key, neighbour = context.key(), context.key("neighbour")
    version = await client.save_if(key, context.text(key), expected=None)
    await other.save(neighbour, context.text(neighbour))
    await other.save_if(neighbour, context.text(neighbour), expected=await _version(other, neighbour))
    await other.delete(neighbour)
    await _expect_conflict(context, other, key, None, "expected=None where there is an entry")
    await other.load(key)
    found = await _version(other, key)
    expect(
        found == version, f"the version went from {shown(version)} to {shown(found)} though nobody changed the entry"
    )
    try:
        await client.save_if(key, context.text(key), expected=version)
    except StoreConflictError as exc:
        raise Violation("save_if was refused though only other keys had been changed meanwhile") from exc


@case("compare-and-swap.aba", capability=Capability.COMPARE_AND_SWAP, oracle="which text each version was loaded with")
async def aba(context: Context) -> None:
    """A version is never valid for a different text, also when the entry was deleted and created again."""
    client = await context.open()
    key = context.key()
    # Of one length and with one beginning.
    beginning = context.text(key, size=3_000)
    a, b, c = (f"{beginning}{end}" for end in "abc")
    # They differ in the middle, at the beginning, and in their length.
    half = "." * 200
    alike = [f"{half}a{half}", f"{half}b{half}", f"b{half}{half}", f"{half}aa{half}"]
    steps = [a, b, a, None, b, None, c, a, b, None, a, c, *alike]
    steps += context.random.choices([a, b, c, None, *alike], k=context.scale(smoke=0, default=30, soak=1_000))
    texts: dict[str, str] = {}
    for number, text in enumerate(steps):
        if text is None:
            await client.delete(key)
        elif number % 2:
            await client.save(key, text)
        else:
            found = await client.load_versioned(key)
            await client.save_if(key, text, expected=None if found is None else found.version)
        if text is not None:
            version = await _version(client, key)
            expect(
                texts.setdefault(version, text) == text,
                f"the version {shown(version)} stands for two different texts, {number + 1} changes after the first",
            )
        for old in [old for old, its_text in texts.items() if its_text != text][-2:]:
            await _expect_conflict(context, client, key, old, "the version of a text that was there before")
        expect_text(await client.load(key), text, "what was loaded after a save_if that was refused")


@case(
    "compare-and-swap.counter",
    capability=Capability.COMPARE_AND_SWAP,
    oracle="how often it was incremented",
    seconds=60,
)
async def counter(context: Context) -> None:
    """When several clients increment a counter by compare-and-swap, none of their increments is lost."""
    count = _Counter(context.key(), await context.open(), context.scale(smoke=6, default=30, soak=500))
    await count.start()
    for _ in range(_ATTEMPTS):
        calls = await context.concurrently(*[count.increment] * _CLIENTS, overlap=False)
        await count.check()
        if overlapped(calls) and _have_met(calls):
            return
    raise Inconclusive("clients that increment a counter at once never met")


@case(
    "compare-and-swap.processes",
    capability=Capability.COMPARE_AND_SWAP,
    oracle="how often it was incremented",
    seconds=60,
)
async def processes(context: Context) -> None:
    """When clients in several processes increment a counter by compare-and-swap, none of their increments is lost."""
    try:
        remote = await all_of(context.process(), context.process())
    except Unverified as exc:
        # Where no other process can change anything, this one is all there is.
        context.note = str(exc)
        return
    everyone = [*remote, await context.open(), await context.open()]
    count = _Counter(context.key(), await context.open(), context.scale(smoke=5, default=20, soak=300))
    await count.start()
    for _ in range(_ATTEMPTS):
        before = len(context.record.calls)
        await all_of(*map(count.increment, everyone))
        await count.check()
        if _have_met(context.record.calls[before:], *(client.name for client in remote)):
            return
    raise Inconclusive("processes that increment a counter at once never met")


@case(
    "compare-and-swap.create-race",
    capability=Capability.COMPARE_AND_SWAP,
    oracle="who was told that it won",
    seconds=60,
)
async def create_race(context: Context) -> None:
    """When several clients create one key at once, exactly one of them wins, and its text is there."""
    for attempt in range(_ATTEMPTS):
        names = [f"{attempt}/{number}" for number in range(context.scale(smoke=8, default=40, soak=500))]
        if overlapped(await _race(context, [context.key(name) for name in names])):
            return
    raise Inconclusive("clients that create keys at once never met")


@case(
    "compare-and-swap.unconditional",
    capability=Capability.COMPARE_AND_SWAP,
    oracle="what was saved or deleted at the same time without a condition",
    seconds=60,
)
async def unconditional(context: Context) -> None:
    """A save or delete that meets a save_if is not undone by it, whichever of the two comes first."""
    met = 0
    for attempt in range(_ATTEMPTS):
        names = [f"{attempt}/{number}" for number in range(context.scale(smoke=24, default=80, soak=800))]
        met += _met(await _meet(context, [context.key(name) for name in names]))
        if met >= _ENOUGH_MET:
            return
    raise Inconclusive(f"a save_if and a save or delete met only {met} times")


class _Counter:
    """A number under a key, and what clients that increment it were told."""

    def __init__(self, key: str, witness: Client, increments: int) -> None:
        self._key = key
        self._witness = witness
        self._increments = increments
        self._swaps: list[tuple[str, str, int]] = []

    async def start(self) -> None:
        """Begin at 0."""
        await self._witness.save(self._key, "0 by nobody")

    async def increment(self, client: Client) -> None:
        """Increment it some times."""
        done = 0
        while done < self._increments:
            found = await client.load_versioned(self._key)
            if found is None:
                raise Violation("a counter that is only incremented was absent")
            number = _count(found.json) + 1
            try:
                version = await client.save_if(self._key, f"{number} by {client.name}", expected=found.version)
            except StoreConflictError:
                continue
            self._swaps.append((found.version, version, number))
            done += 1

    async def check(self) -> None:
        """Expect every increment to count, and each to follow from one other."""
        counted = _count(await self._witness.load(self._key) or "0")
        expect(counted == len(self._swaps), f"{len(self._swaps)} increments of a counter have made it {counted}")
        numbers = {version: number for _, version, number in self._swaps}
        followed: set[str] = set()
        for expected, version, number in self._swaps:
            expect(expected not in followed, f"two save_ifs that expected {shown(expected)} reported success")
            followed.add(expected)
            expect(
                numbers.get(expected, number - 1) == number - 1 and numbers[version] == number,
                f"save_if went from the version {shown(expected)} to {shown(version)}, which are not those of "
                f"{number - 1} and {number}",
            )


def _have_met(calls: Sequence[Call], *names: str) -> bool:
    """Return whether two clients, one of them of ``names`` if there are any, tried to set a counter to one number."""
    clients: dict[int, set[str]] = {}
    for call in calls:
        if call.name == "save_if":
            clients.setdefault(_count(call.argument or "0"), set()).add(call.client)
    return any(len(rivals) > 1 and (not names or rivals.intersection(names)) for rivals in clients.values())


async def _race(context: Context, keys: Sequence[str]) -> Sequence[Call]:
    wins: dict[str, list[tuple[str, str]]] = {key: [] for key in keys}

    async def create(client: Client) -> None:
        for key in keys:
            text = context.text(key, writer=client.name, size=2_000)
            try:
                version = await client.save_if(key, text, expected=None)
            except StoreConflictError:
                expect(
                    await client.load_versioned(key) is not None,
                    f"{shown(key)} is absent though it could not be created",
                )
            else:
                wins[key].append((text, version))

    calls = await context.concurrently(*[create] * _CLIENTS, overlap=False)
    client = await context.open()
    for key, winners in wins.items():
        expect(len(winners) == 1, f"{len(winners)} of {_CLIENTS} clients were told that they created {shown(key)}")
        text, version = winners[0]
        found = await client.load_versioned(key)
        expect_text(found and found.json, text, f"what was loaded from {shown(key)} after one client won")
        expect(found and found.version == version, f"the winner of {shown(key)} got another version than the entry has")
    return calls


async def _meet(context: Context, keys: Sequence[str]) -> Sequence[Call]:
    meet = await context.meeting(2)
    chance = random.Random(context.random.getrandbits(64))  # noqa: S311 - chance that a seed repeats
    # By how much of its duration the save_if begins before the other one, or after it. Threads take too long to change
    # places for a store in memory to be met at a chosen moment.
    leads = [chance.uniform(-1, 1) if await context.gives_way() else 0.0 for _ in keys]
    left: dict[str, str | None] = {}
    duration = 0.0

    async def swap(client: Client) -> None:
        nonlocal duration
        for key, lead in zip(keys, leads, strict=True):
            await client.save(key, context.text(key, writer="before"))
            version = await _version(client, key)
            await meet()
            await _pause(-lead * duration)
            began = time.perf_counter()
            with suppress(StoreConflictError):
                await client.save_if(key, context.text(key, writer="swap"), expected=version)
            duration = time.perf_counter() - began
            await meet()

    async def change(client: Client) -> None:
        for number, (key, lead) in enumerate(zip(keys, leads, strict=True)):
            text = None if number % 3 == 0 else context.text(key, writer="change")
            await meet()
            await _pause(lead * duration)
            if text is None:
                await client.delete(key)
            else:
                await client.save(key, text)
            left[key] = text
            await meet()

    calls = await context.concurrently(swap, change, overlap=False)
    client = await context.open()
    for key, text in left.items():
        what = "saved" if text else "deleted"
        expect_text(await client.load(key), text, f"what was loaded after {shown(key)} was {what} during a save_if")
    return calls


def _met(calls: Sequence[Call]) -> int:
    """Return on how many keys a save or a delete was under way together with the save_if."""
    swaps = {call.key: call for call in calls if call.name == "save_if"}
    return sum(
        call.name in {"save", "delete"} and _overlap(call, swaps[call.key]) for call in calls if call.key in swaps
    )


def _overlap(one: Call, other: Call) -> bool:
    return one.started < (other.ended or 0) and other.started < (one.ended or 0)


async def _pause(seconds: float) -> None:
    """Wait, to the microsecond."""
    due = time.perf_counter() + seconds
    while time.perf_counter() < due:  # noqa: ASYNC110 - no event says that time has passed
        await asyncio.sleep(0)


async def _expect_conflict(context: Context, client: Client, key: str, expected: str | None, what: str) -> None:
    try:
        await client.save_if(key, context.text(key, writer="loser"), expected=expected)
    except StoreConflictError:
        return
    except StoreError as exc:
        raise Violation(f"save_if with {what} raised {type(exc).__name__}, not StoreConflictError") from exc
    raise Violation(f"save_if with {what} was accepted: {shown(key)}, expected={shown(expected)}")


async def _version(client: Client, key: str) -> str:
    found = await client.load_versioned(key)
    if found is None:
        raise Violation(f"load_versioned({shown(key)}) of {client.name} returned None though there is an entry")
    return found.version


def _count(text: str) -> int:
    return int(text.split(maxsplit=1)[0])
