"""No key leaves its namespace."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dagonizer_conformance.case import case
from dagonizer_conformance.outcomes import expect_text, shown
from dagonizer_conformance.results import Level

if TYPE_CHECKING:
    from dagonizer_conformance.context import Context


@case("namespace.same-key", level=Level.CORE, oracle="the namespace that each text names")
async def same_key(context: Context) -> None:
    """One key in two namespaces is two entries: neither a save nor a deletion in one shows in the other."""
    here, there = await context.open(), await context.open(context.other_namespace("there"))
    key = context.key()
    ours, theirs = context.text(key), context.text(key, namespace=there.namespace)
    await here.save(key, ours)
    expect_text(await there.load(key), None, "what was loaded from a key that was saved in another namespace only")
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
    texts: dict[tuple[str, str], str | None] = {
        (client.namespace, key): context.text(key, namespace=client.namespace) for client in clients for key in keys
    }
    for client in clients:
        for key in keys:
            await client.save(key, texts[client.namespace, key] or "")
    gone, deleted = context.random.choice(clients), context.random.choice(keys)
    await gone.delete(deleted)
    texts[gone.namespace, deleted] = None
    for client in clients:
        for key in keys:
            what = f"what was loaded from {shown(key)} in the namespace {client.namespace}"
            expect_text(await client.load(key), texts[client.namespace, key], what)


@case("namespace.bystander-untouched", level=Level.CORE, oracle="an entry that was saved before the first case")
async def bystander_untouched(context: Context) -> None:
    """An entry of another namespace is as it was, whatever was saved, deleted and closed in this one."""
    bystander = context.bystander
    client = await context.open()
    for key in (bystander.key, context.key()):
        await client.save(key, context.text(key))
        await client.delete(key)
    await context.close(client)
    other = await context.open(bystander.namespace)
    expect_text(await other.load(bystander.key), bystander.text, "what was loaded from another namespace")
