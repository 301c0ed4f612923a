"""No key leaves its namespace."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from dagonizer_conformance.case import case
from dagonizer_conformance.interruption import within
from dagonizer_conformance.outcomes import TargetError, Unverified, expect, expect_text, shown
from dagonizer_conformance.process import ClientProcess
from dagonizer_conformance.results import Level

if TYPE_CHECKING:
    from dagonizer_conformance.client import Client
    from dagonizer_conformance.context import Context

_TO_SPREAD = 2.0


@case("namespace.same-key", level=Level.CORE, oracle="the namespace that each text names")
async def same_key(context: Context) -> None:
    """One key in two namespaces is two entries: neither a save nor a deletion in one shows in the other."""
    here, there = await context.open(), await context.open(context.other_namespace("there"))
    for length in (0, *_lengths(here, there)):
        key = context.key().ljust(length, "k")
        ours, theirs = context.text(key), context.text(key, namespace=there.namespace)
        await here.save(key, ours)
        loaded = await there.load(key)
        expect_text(loaded, None, "what was loaded from a key that was saved in another namespace only")
        await there.save(key, theirs)
        expect_text(await here.load(key), ours, "what was loaded after a save in another namespace")
        await here.delete(key)
        expect_text(await there.load(key), theirs, "what was loaded after a deletion in another namespace")
        expect_text(await here.load(key), None, "what was loaded after a deletion")
        await here.save(key, ours)
        await there.delete(key)
        expect_text(await here.load(key), ours, "what was loaded after a deletion in another namespace")


@case("namespace.joined-names", level=Level.CORE, oracle="the namespace and the key that each text names")
async def joined_names(context: Context) -> None:
    """A namespace and a key that, joined, read like another namespace and key are another entry."""
    clients = [await context.open(context.other_namespace(name)) for name in ("a", "a:b", "a-b", "ab")]
    keys = ("c", "b:c", "b-c", "bc", "../a/c")
    places = [(client, key) for client in clients for key in keys]
    # Long ones, too, for some stores hash those.
    for length in _lengths(*clients):
        places += zip(clients[:2], ("b:c".ljust(length, "k"), "c".ljust(length - 2, "k")), strict=True)
    texts: dict[tuple[Client, str], str | None] = {
        (client, key): context.text(key, namespace=client.namespace) for client, key in places
    }
    for client, key in places:
        await client.save(key, texts[client, key] or "")
    gone, deleted = context.random.choice(places)
    await gone.delete(deleted)
    texts[gone, deleted] = None
    for client, key in places:
        what = f"what was loaded from {shown(key)} in the namespace {client.namespace}"
        expect_text(await client.load(key), texts[client, key], what)


@case("namespace.bystander-untouched", level=Level.CORE, oracle="an entry that was saved before the first case")
async def bystander_untouched(context: Context) -> None:
    """An entry of another namespace is as it was, whatever happened in this one, and no process sees it late."""
    bystander = context.bystander
    client = await context.open()
    for key in (bystander.key, context.key()):
        await client.save(key, context.text(key))
        await client.delete(key)
    await context.close(client)
    other = await context.open(bystander.namespace)
    expect_text(await other.load(bystander.key), bystander.text, "what was loaded from another namespace")
    if (address := context.harness.address()) is not None and await _is_private(context):
        await asyncio.sleep(bystander.saved + _TO_SPREAD - time.monotonic())
        process = await ClientProcess.start(address, bystander.namespace)
        try:
            found = await within(context.patience, process.load(bystander.key), "a load in another process")
        finally:
            await process.stop()
        expect(
            found is None,
            "another process found nothing of what had just been saved, but finds what was saved when the run began: "
            "saves become visible to other processes some time after they are acknowledged",
        )


async def _is_private(context: Context) -> bool:
    """Return whether another process has found nothing of the data."""
    if context.shared is None:
        # No other case has looked, or they have told already why they could not.
        with suppress(Unverified, TargetError):
            await context.process()
    return context.shared is False


def _lengths(*clients: Client) -> tuple[int, int]:
    """Return the lengths of keys that are long for ``clients``, the last as long as can be."""
    return 600, min(client.max_key_bytes for client in clients)
