"""What a store is at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dagonizer_conformance.case import case
from dagonizer_conformance.outcomes import expect, expect_text, shown
from dagonizer_conformance.results import Level

if TYPE_CHECKING:
    from dagonizer_conformance.context import Context


@case("basic.round-trip", level=Level.CORE, oracle="the text that was saved")
async def round_trip(context: Context) -> None:
    """What was saved under a key is loaded from it."""
    client = await context.open()
    key = context.key()
    text = context.text(key)
    await client.save(key, text)
    expect_text(await client.load(key), text, "what was loaded")


@case("basic.absent-is-none", level=Level.CORE, oracle="the key was never saved")
async def absent_is_none(context: Context) -> None:
    """Loading a key that was never saved returns None."""
    client = await context.open()
    await client.save(context.key("another"), context.text(context.key("another")))
    expect(await client.load(context.key()) is None, "a key that was never saved was found")


@case("basic.overwrite", level=Level.CORE, oracle="the last of several saved texts")
async def overwrite(context: Context) -> None:
    """A save replaces what is there."""
    client = await context.open()
    key = context.key()
    for _ in range(5):
        text = context.text(key)
        await client.save(key, text)
        expect_text(await client.load(key), text, "what was loaded after an overwrite")


@case("basic.save-after-delete", level=Level.CORE, oracle="the text saved after the deletion")
async def save_after_delete(context: Context) -> None:
    """A deleted key is absent, and can be saved again."""
    client = await context.open()
    key = context.key()
    for _ in range(3):
        text = context.text(key)
        await client.save(key, text)
        expect_text(await client.load(key), text, "what was loaded after a deletion and a save")
        await client.delete(key)
        expect_text(await client.load(key), None, "what was loaded after a deletion")


@case("basic.delete-absent", level=Level.CORE, oracle="the key has no entry")
async def delete_absent(context: Context) -> None:
    """Deleting a key without an entry does nothing, and does not raise."""
    client = await context.open()
    key = context.key()
    await client.delete(key)
    await client.save(key, context.text(key))
    await client.delete(key)
    await client.delete(key)
    expect_text(await client.load(key), None, "what was loaded after three deletions")


@case("basic.returns-none", level=Level.CORE, oracle="the signatures of the contract")
async def returns_none(context: Context) -> None:
    """Save and delete return None."""
    client = await context.open()
    key = context.key()
    for name, returned in (
        ("save of a new key", await client.save(key, context.text(key))),
        ("save of an existing key", await client.save(key, context.text(key))),
        ("delete", await client.delete(key)),
        ("delete of an absent key", await client.delete(key)),
    ):
        expect(returned is None, f"{name} returned {shown(returned)}, not None")


@case("basic.neighbours-survive", level=Level.CORE, oracle="the texts saved under the other keys")
async def neighbours_survive(context: Context) -> None:
    """Deleting a key leaves every other key as it is."""
    client = await context.open()
    key = context.key("a")
    neighbours = {name: context.text(name) for name in (context.key(""), context.key("aa"), context.key("a/b"))}
    for name, text in neighbours.items():
        await client.save(name, text)
    await client.save(key, context.text(key))
    await client.delete(key)
    for name, text in neighbours.items():
        expect_text(await client.load(name), text, f"what was loaded from {shown(name)} after its neighbour's deletion")


@case("basic.repeated-load", level=Level.CORE, oracle="the text that was saved")
async def repeated_load(context: Context) -> None:
    """Loading changes nothing: the text is there as often as it is asked for."""
    client = await context.open()
    key = context.key()
    text = context.text(key)
    await client.save(key, text)
    for _ in range(5):
        expect_text(await client.load(key), text, "what was loaded again")


@case("basic.model", level=Level.CORE, oracle="a dictionary that gets the same calls", seconds=60)
async def model(context: Context) -> None:
    """Whatever two clients save, load and delete, closing and opening again, the store is like a dictionary."""
    from dagonizer_conformance.model import expect_like_dictionary  # noqa: PLC0415 - Hypothesis is slow to import

    await expect_like_dictionary(
        context,
        programs=context.scale(smoke=4, default=15, soak=500),
        steps=context.scale(smoke=20, default=40, soak=100),
    )
