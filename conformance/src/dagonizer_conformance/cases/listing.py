"""Listing: every key with a prefix, exactly once."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any, TypeVar

from dagonizer_conformance.case import case
from dagonizer_conformance.interruption import within
from dagonizer_conformance.many import save_all, save_many
from dagonizer_conformance.outcomes import Violation, expect, expect_text, shown
from dagonizer_conformance.results import Capability

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable

    from dagonizer_conformance.client import Client
    from dagonizer_conformance.context import Context

T = TypeVar("T")

_ORACLE = "the keys that were saved and not deleted"

# What means something to LIKE, GLOB, KEYS, regular expressions and paths, what case folding and Unicode forms confuse,
# and what lies behind every key of an earlier plane.
_NAMES = (
    "a", "ab", "abc", "AB", "aB", "axb", "a%b", "a_b", "a*b", "a?b", "a[b]c", "a[x", "a\\b", "a\\\\b", "a\\%b", "a^b",
    "a.b", "a$b", "a(b", "a+b", "a{b}", "a|b", "a'b", 'a"b', "a b", "a\nb", "a:b", "a/b", "a//b", "a/b/c", "a/",
    "b", "a\u00e9", "ae\u0301", "\u00e0", "a\uffff", "a\U0010ffff", "a😀b",
)  # fmt: skip
_PREFIXES = (
    "", "a", "ab", "A", "aB", "ax", "a%", "a_", "a*", "a?", "a[", "a[b]", "a\\", "a\\\\", "a\\%", "a^", "a.", "a$",
    "a(", "a+", "a{", "a|", "a'", 'a"', "a ", "a\n", "a:", "a/", "a//", "a/b", "a\u00e9", "ae", "a\uffff", "a😀",
    "%", "*", "c", "abcd",
)  # fmt: skip

_ABANDONED = 20
_LONG = 4


@case("listing.literal-prefix", capability=Capability.LISTING, oracle="str.startswith over the keys that were saved")
async def literal_prefix(context: Context) -> None:
    """A prefix is literal text: listed are the keys that start with it, character for character, and no others."""
    client = await context.open()
    keys = [context.key(name) for name in _NAMES]
    await save_all(client, {key: context.text(key) for key in keys})
    for prefix in ("", *(context.key(name) for name in _PREFIXES)):
        await _expect_listed(client, [key for key in keys if key.startswith(prefix)], prefix)


@case("listing.after-deletes", capability=Capability.LISTING, oracle=_ORACLE)
async def after_deletes(context: Context) -> None:
    """Deleted keys are not listed, and overwritten and re-created ones once."""
    client = await context.open()
    keys = [context.key(name) for name in "abcdef"]
    for key in keys:
        await client.save(key, context.text(key))
        await client.save(key, context.text(key))
    await _expect_listed(client, keys)
    for key in keys[::2]:
        await client.delete(key)
    await _expect_listed(client, keys[1::2])
    await client.save(keys[0], context.text(keys[0]))
    await _expect_listed(client, [keys[0], *keys[1::2]])
    for key in keys:
        await client.delete(key)
    await _expect_listed(client, [])


@case("listing.many", capability=Capability.LISTING, oracle=_ORACLE, seconds=120)
async def many(context: Context) -> None:
    """However many keys there are, each is listed exactly once."""
    client = await context.open()
    # More than a page of many stores even where it takes a while.
    keys = await save_many(context, client, many=1_003, few=130)
    await _expect_listed(client, keys)
    first = context.key("0")
    await _expect_listed(client, [key for key in keys if key.startswith(first)], first)


@case(
    "listing.while-changing", capability=Capability.LISTING, oracle="the keys that were there throughout, and all keys"
)
async def while_changing(context: Context) -> None:
    """While others are saved and deleted, a key that is there throughout is listed exactly once, and none twice."""
    client, other = await context.open(), await context.open()
    numbers = range(context.scale(smoke=15, default=150, soak=2_000))
    stays = {context.key(f"{number:04} stays") for number in numbers}
    goes = {context.key(f"{number:04} goes") for number in numbers}
    came = set()
    await save_all(client, {key: context.text(key) for key in (*stays, *goes)})

    async def shrink(key: str) -> None:
        if key in goes:
            await client.delete(key)
        else:
            await other.save(key, context.text(key))

    async def grow(key: str) -> None:
        if key in stays:
            # In front of the key that came last, in the order of many stores.
            came.add(new := key.replace("stays", "comes"))
            await other.save(new, context.text(new))

    for change in (shrink, grow):
        listed = await _within(context, _list_with_changes(client, change), "a listing while keys changed")
        _expect_once(listed)
        if missing := stays.difference(listed):
            raise Violation(f"a listing left out {_some(missing)}, there all the time while other keys changed")
        if unknown := set(listed).difference(stays, goes, came):
            raise Violation(f"a listing yielded {_some(unknown)}, never saved")


@case("listing.own-namespace", capability=Capability.LISTING, oracle=_ORACLE)
async def own_namespace(context: Context) -> None:
    """A listing shows neither keys of other namespaces nor what the store keeps for itself, such as locks and parts."""
    client = await context.open()
    # Each one's name begins with that of the one before.
    others = [await context.open(context.other_namespace(suffix)) for suffix in ("a", "a-b")]
    keys = [context.key("small"), context.key("large")]
    keys_by_client = {owner: [*keys, f"{owner.name}/key"] for owner in (client, *others)}
    for owner, own in keys_by_client.items():
        for key, size in zip(own, (0, 500_000, 0), strict=True):
            await owner.save(key, context.text(key, size=size, namespace=owner.namespace))
    for owner, own in keys_by_client.items():
        await _expect_listed(owner, own)
    saving = asyncio.create_task(client.save(keys[1], context.text(keys[1], size=500_000)))
    try:
        while not saving.done():
            await _expect_listed(client, keys_by_client[client])
            # For a store that does not give way.
            await asyncio.sleep(0)
    finally:
        await saving


@case("listing.other-client", capability=Capability.LISTING, oracle=_ORACLE)
async def other_client(context: Context) -> None:
    """What another client saves or deletes shows in the next listing."""
    client, other = await context.open(), await context.open()
    keys = [context.key(name) for name in "abc"]
    for number, key in enumerate(keys, 1):
        await other.save(key, context.text(key))
        await _expect_listed(client, keys[:number])
        await _expect_listed(other, keys[:number])
    for number, key in enumerate(keys, 1):
        await other.delete(key)
        await _expect_listed(client, keys[number:])


@case("listing.abandoned", capability=Capability.LISTING, oracle=_ORACLE)
async def abandoned(context: Context) -> None:
    """A listing that is abandoned half-way leaves its store usable, however often it happens."""
    client = await context.open()
    keys = [context.key(f"{number}") for number in range(8)]
    for key in keys:
        await client.save(key, context.text(key))
    for number in range(_ABANDONED):
        await _within(context, _first_key(client, closing=number % 2 == 0), f"the start of listing {number + 1}")
        # What was not closed is finalized by the event loop.
        await asyncio.sleep(0)
    key = context.key("0")
    await client.save(key, text := context.text(key))
    expect_text(await client.load(key), text, "what was loaded after listings that were abandoned")
    await _expect_listed(client, keys)


async def _within(context: Context, listing: Awaitable[T], what: str) -> T:
    """Await what uses a store directly, and report what it raises as the store's fault."""
    try:
        return await within(_LONG * context.patience, listing, what)
    except Violation:
        raise
    except Exception as exc:
        raise Violation(f"{what} raised {type(exc).__name__}: {exc}") from exc


async def _list_with_changes(client: Client, change: Callable[[str], Coroutine[Any, Any, None]]) -> list[str]:
    """List all keys in one task, as users do, and after each key make a change."""
    listed = []
    changing = asyncio.create_task(asyncio.sleep(0))
    try:
        async for key in client.store.list_keys():
            listed.append(key)
            await changing
            changing = asyncio.create_task(change(key))
            # Every other change happens while the next key is fetched.
            if len(listed) % 2:
                await changing
    finally:
        await changing
    return listed


async def _first_key(client: Client, *, closing: bool) -> None:
    listing: Any = client.store.list_keys()
    async for _ in listing:
        break
    if closing and hasattr(listing, "aclose"):
        await listing.aclose()


async def _expect_listed(client: Client, expected: Collection[str], prefix: str = "") -> None:
    listed = await client.list_keys(prefix)
    what = f"list_keys({shown(prefix)}) of {client.name}"
    _expect_once(listed)
    if missing := set(expected).difference(listed):
        raise Violation(f"{what} left out {_some(missing)} of {len(expected):,} keys")
    if foreign := set(listed).difference(expected):
        raise Violation(
            f"{what} yielded {_some(foreign)}, not among the keys with this prefix that were saved and not deleted"
        )


def _expect_once(listed: Iterable[str]) -> None:
    twice = {key for key, count in Counter(listed).items() if count > 1}
    expect(not twice, f"a listing yielded {_some(twice)} more than once")


def _some(keys: Collection[str]) -> str:
    """Return the first of ``keys``, and how many more there are."""
    first = shown(min(keys, default=""))
    return first if len(keys) == 1 else f"{first} and {len(keys) - 1:,} more"
