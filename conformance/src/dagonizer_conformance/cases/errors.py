"""When something fails, the store says so: absent is None, and everything else raises."""

from __future__ import annotations

import asyncio
import itertools
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from dagonizer import StoreAccessError, StoreCorruptedError, StoreUnavailableError
from dagonizer_conformance.case import case
from dagonizer_conformance.context import all_of
from dagonizer_conformance.history import expect_linearizable
from dagonizer_conformance.interruption import cancel_after, within
from dagonizer_conformance.outcomes import Violation, expect, expect_text, shown
from dagonizer_conformance.refusal import every_method, expect_refusal
from dagonizer_conformance.results import Capability, Level

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import TypeVar

    from dagonizer_conformance.client import Client
    from dagonizer_conformance.context import Context

    T = TypeVar("T")

_OUTAGE = (StoreUnavailableError, StoreAccessError)
_PAUSE = 0.02
_MOMENT = 0.002
_TO_REPLAY = 0.1
_TO_ARRIVE = 0.5
_MANY = 64 * 1024
_LARGE = 200_000
_CROWD = 16
_AT_ONCE = 50
_TO_MEET = 0.02


@case(
    "errors.backend-down",
    level=Level.CRASH_SAFE,
    oracle="the backend was taken away, so that nobody can know",
    seconds=120,
)
async def backend_down(context: Context) -> None:
    """While the backend does not answer every method raises; none returns None, none reports success."""
    kept = context.key("kept")
    touched = context.key("touched")
    text = context.text(kept)
    await (await context.open()).save(kept, text)
    async with context.outage() as (client, outage):
        for used in (False, True):
            if used:
                await _retried(context, partial(client.load, kept))
                await _retried(context, partial(client.save, touched, context.text(touched)))
            await outage.down()
            calls = every_method(client, touched, context.text(touched))
            calls["load of an entry"] = partial(client.load, kept)
            began = time.monotonic()
            for number in range(1, context.scale(smoke=4, default=6, soak=20) + 1):
                for name, call in calls.items():
                    await expect_refusal(call(), f"{name}, call number {number} with the backend down,", *_OUTAGE)
                if time.monotonic() - began > context.patience / 2:
                    break
            await outage.up()


@case(
    "errors.recovery",
    level=Level.CRASH_SAFE,
    oracle="the texts that were saved before and after the outage",
    seconds=120,
)
async def recovery(context: Context) -> None:
    """When the backend is back the same client works again, and no save that it refused replaces a later one."""
    key, refused = context.key(), context.key("refused")
    witness = await context.open()
    async with context.outage() as (client, outage):
        for _ in range(context.scale(smoke=1, default=3, soak=30)):
            text = context.text(key)
            await _retried(context, partial(client.save, key, text))
            await all_of(*(client.load(key) for _ in range(4)))
            await outage.down()
            # Some clients only learn from a call that their connection is gone.
            await asyncio.gather(*(client.load(key) for _ in range(4)), return_exceptions=True)
            saving = client.save(refused, context.text(refused, writer="refused"))
            await expect_refusal(saving, "save, with the backend down,", *_OUTAGE)
            await outage.up()
            # Before all else, for what was refused may come behind the first success.
            accepted = context.text(refused)
            await _retried(context, partial(client.save, refused, accepted))
            expect_text(await _retried(context, partial(client.load, key)), text, "what was loaded after an outage")
            text = context.text(key)
            await _retried(context, partial(client.save, key, text))
            loaded = await _retried(context, partial(client.load, key))
            expect_text(loaded, text, "what was loaded after an outage and a save")
            await asyncio.sleep(_TO_REPLAY)
            for reader in (client, witness):
                loaded = await _retried(context, partial(reader.load, refused))
                expect_text(loaded, accepted, "what was loaded after a save that came later than one that was refused")


@case("errors.misses", level=Level.CORE, oracle="the keys were never saved")
async def misses(context: Context) -> None:
    """However often an absent key is loaded or deleted, one after the other or at once, the store works on."""
    client = await context.open()
    absent = context.key("absent")
    times = context.scale(smoke=50, default=200, soak=5_000)
    for number in range(times):
        if number % 5:
            expect_text(await client.load(absent), None, "what was loaded from an absent key")
        else:
            await client.delete(absent)
    for loaded in await all_of(*(client.load(f"{absent} {number}") for number in range(_AT_ONCE))):
        expect_text(loaded, None, "what was loaded from an absent key")
    key = context.key()
    text = context.text(key)
    await client.save(key, text)
    expect_text(await client.load(key), text, f"what was loaded after {times + _AT_ONCE} misses")


@case("errors.corrupt", level=Level.CRASH_SAFE, oracle="bytes that are not UTF-8, put there around the store")
async def corrupt(context: Context) -> None:
    """Loading an entry whose stored bytes are no text raises; it is neither absent nor read some other way."""
    context.require("poke")
    client = await context.open()
    for name, kept, damage in (
        ("no text", 0, b"\xff\xfe\xfa"),
        ("cut in a character", 100, b"\xc3"),
        ("encoded surrogate", 50, b"\xed\xa0\x80"),
        ("another encoding", 0, b'{"caf\xe9":1}'),
    ):
        key = context.key(name)
        text = context.text(key)
        await client.save(key, text)
        damaged = text.encode()[:kept] + damage
        await context.harness.poke(context.namespace, key, damaged.decode(errors="surrogateescape"))
        for method in ("load", "load_versioned"):
            if hasattr(client.store, method):
                what = f"{method} of an entry that holds bytes that are not UTF-8, {shown(damaged)},"
                # Not through the client, which would have something else to say of a text that it does not know.
                loading = within(context.patience, getattr(client.store, method)(key), what)
                await expect_refusal(loading, what, StoreCorruptedError)


@case("errors.black-hole", capability=Capability.NETWORK, oracle="a proxy that swallows all that is sent", seconds=120)
async def black_hole(context: Context) -> None:
    """When the network swallows everything, each method raises in bounded time, and works again later."""
    client, proxy = await context.through_proxy()
    key = context.key()
    touched = context.key("touched")
    text = context.text(key)
    await client.save(key, text)
    await proxy.black_hole()
    calls = every_method(client, touched, context.text(touched))
    calls["load of an entry"] = partial(client.load, key)
    outcomes = await asyncio.gather(
        *(expect_refusal(call(), f"{name}, with no answer coming,", *_OUTAGE) for name, call in calls.items()),
        return_exceptions=True,
    )
    for outcome in outcomes:
        if outcome is not None:
            raise outcome
    await proxy.pass_through()
    expect_text(await _retried(context, partial(client.load, key)), text, "what was loaded when the network was back")


@case(
    "errors.half-open",
    capability=Capability.NETWORK,
    oracle="the texts that were saved, and a network that only new connections get through",
    seconds=120,
)
async def half_open(context: Context) -> None:
    """When idle connections have gone silent for good the store leaves them, and does not try one after another."""
    client, proxy = await context.through_proxy()
    key, touched = context.key(), context.key("touched")
    text = context.text(key)
    await client.save(key, text)
    for _ in range(context.scale(smoke=1, default=1, soak=10)):
        # Slow, so that they meet, and each needs a connection of its own.
        await proxy.delay(_TO_MEET)
        await _retried(context, lambda: all_of(*(client.load(key) for _ in range(_AT_ONCE))))
        await proxy.half_open()
        began = time.monotonic()
        loading, saving = client.load(key), client.save(touched, context.text(touched))
        loaded, saved = await asyncio.gather(_outcome(loading), _outcome(saving))
        _expect_truth(loaded, text, "a load over a connection that had gone silent")
        for outcome in (loaded, saved):
            if isinstance(outcome, Exception) and not isinstance(outcome, _OUTAGE):
                raise Violation(f"a call over a connection that had gone silent raised {outcome!r}") from outcome
        expect_text(await _retried(context, partial(client.load, key), began), text, "what was loaded over a new one")
        accepted = context.text(touched)
        await _retried(context, partial(client.save, touched, accepted))
        expect_text(await _retried(context, partial(client.load, touched)), accepted, "what was loaded after a save")


@case(
    "errors.connection-reset",
    capability=Capability.NETWORK,
    oracle="the texts that were saved, and the network without the proxy",
    seconds=120,
)
async def connection_reset(context: Context) -> None:
    """When connections break, during operations or between them, each operation is done or raises."""
    client, proxy = await context.through_proxy()
    witness = await context.open()
    kept = context.key("kept")
    text = context.text(kept)
    await client.save(kept, text)
    for number in range(context.scale(smoke=9, default=60, soak=1_000)):
        key = context.key(f"{number}")
        old, new = context.text(key), context.text(key, size=_MANY)
        await witness.save(key, old)
        # Several, so that several connections are there to break.
        await _retried(context, lambda: all_of(*(client.load(kept) for _ in range(3))))
        between, held = number % 3 == 0, number % 3 == 1
        if between:
            await proxy.reset()
        if held:
            # Nothing arrives before the reset, so that it finds every operation under way.
            await proxy.delay(context.patience)
        operations = [asyncio.ensure_future(call) for call in (client.save(key, new), client.load(kept))]
        if not between:
            await asyncio.sleep(_MOMENT if held else _MOMENT * context.random.random())
            await proxy.reset()
        saved, loaded = await asyncio.gather(*operations, return_exceptions=True)
        _expect_truth(loaded, text, "a load during which connections were reset")
        _expect_outcome(saved, "a save during which connections were reset", old, new, await witness.load(key))
    expect_text(await _retried(context, partial(client.load, kept)), text, "what was loaded after all resets")


@case("errors.half-reply", capability=Capability.NETWORK, oracle="the text that was saved", seconds=120)
async def half_reply(context: Context) -> None:
    """When the connection breaks in the middle of a reply, a load raises or returns the whole text all the same."""
    client, proxy = await context.through_proxy()
    key = context.key()
    text = context.text(key, size=_MANY)
    await client.save(key, text)
    for number in range(context.scale(smoke=12, default=80, soak=1_000)):
        expect_text(await _retried(context, partial(client.load, key)), text, "what was loaded after half a reply")
        await proxy.cut_reply((1, 8, 30, 200)[number % 4] if number % 3 else context.random.randrange(1, _MANY))
        loaded = await _outcome(client.load(key))
        _expect_truth(loaded, text, "a load whose reply was cut")
        await proxy.pass_through()


@case(
    "errors.cut-off-crowd",
    capability=Capability.NETWORK,
    oracle="the texts that were saved, and another client, which the network lets through",
    seconds=120,
)
async def cut_off_crowd(context: Context) -> None:
    """When the network cuts off a client that loads a lot at once, the backend serves the others as before."""
    client, proxy = await context.through_proxy()
    witness = await context.open()
    texts = {key: context.text(key, size=_LARGE) for key in (context.key(f"{number}") for number in range(_CROWD))}
    await all_of(*(witness.save(key, text) for key, text in texts.items()))

    async def crowd() -> dict[str, object]:
        loads = await asyncio.gather(*(_outcome(client.load(key)) for key in texts))
        return dict(zip(texts, loads, strict=True))

    # So that the time of the next ones is not that of connecting.
    await crowd()
    began = time.perf_counter()
    await crowd()
    duration = time.perf_counter() - began
    for _ in range(context.scale(smoke=10, default=200, soak=2_000)):
        loading = asyncio.create_task(crowd())
        # The backend is to be in the middle of them.
        await asyncio.sleep(duration * context.random.random())
        await proxy.reset()
        for key, loaded in (await loading).items():
            _expect_truth(loaded, texts[key], "a load that was cut off among others")
        key = context.random.choice(list(texts))
        what = "what another client loaded after one that loaded a lot was cut off"
        try:
            expect_text(await witness.load(key), texts[key], what)
        except _OUTAGE as exc:
            raise Violation(f"{what} was not there to be loaded: {type(exc).__name__}: {exc}") from exc


@case(
    "errors.half-request",
    capability=Capability.NETWORK,
    oracle="the texts before and after, and the network without the proxy",
    seconds=120,
)
async def half_request(context: Context) -> None:
    """When the connection breaks in the middle of a save, the old or the new text is there, whole."""
    client, proxy = await context.through_proxy()
    witness = await context.open()
    for number in range(context.scale(smoke=12, default=80, soak=1_000)):
        key = context.key(f"{number}")
        old, new = context.text(key), context.text(key, size=_MANY)
        await _retried(context, partial(client.save, key, old))
        await proxy.cut_request(context.random.randrange(1, 2 * _MANY))
        saved = await _outcome(client.save(key, new))
        _expect_outcome(saved, "a save whose request was cut", old, new, await witness.load(key))
        await proxy.pass_through()


@case(
    "errors.lost-acknowledgement",
    capability=Capability.NETWORK,
    oracle="a search for an order of the recorded operations that one register explains",
    seconds=120,
)
async def lost_acknowledgement(context: Context) -> None:
    """A save whose acknowledgement was lost is never repeated over what somebody else has saved since."""
    client, proxy = await context.through_proxy()
    other = await context.open()
    before = len(context.record.calls)
    keys = [context.key(f"{number}") for number in range(context.scale(smoke=3, default=15, soak=200))]
    warm = context.key("warm")
    # What is acknowledged may come after an answer to something else, such as HTTP's "100 Continue".
    for key, after in zip(keys, itertools.cycle((1, 26, 60)), strict=False):
        await _retried(context, partial(client.load, warm))
        # Then nothing gets through, so that a repetition comes after what the other client saves.
        await proxy.cut_reply(after, then_delay=context.patience)
        saving = asyncio.ensure_future(client.save(key, context.text(key, writer="interrupted")))
        # One that was cut before the save will make it only when it gets through.
        with suppress(TimeoutError):
            async with asyncio.timeout(_TO_ARRIVE):
                while not saving.done() and await other.load(key) is None:  # noqa: ASYNC110 - the store sets no event
                    await asyncio.sleep(0)
        await other.save(key, context.text(key, writer="other"))
        await other.load(key)
        await proxy.pass_through()
        await _outcome(saving)
        await other.load(key)
    expect_linearizable([call for call in context.record.calls[before:] if call.key in keys])


@case(
    "errors.slow-network",
    capability=Capability.NETWORK,
    oracle="the texts that were saved, and the network without the proxy",
    seconds=120,
)
async def slow_network(context: Context) -> None:
    """A slow network makes the store slow, never wrong, also when operations are cancelled."""
    client, proxy = await context.through_proxy()
    witness = await context.open()
    keys = [context.key(f"{number}") for number in range(4)]
    texts = {key: context.text(key, size=_MANY) for key in keys}
    await all_of(*(client.save(key, text) for key, text in texts.items()))
    delay = 0.01
    await proxy.delay(delay)

    async def expect_all(client: Client) -> None:
        for key, loaded in zip(keys, await all_of(*map(client.load, keys)), strict=True):
            expect_text(loaded, texts[key], f"what {client.name} loaded from {shown(key)} over a slow network")

    await expect_all(client)
    for _ in range(context.scale(smoke=3, default=15, soak=200)):
        cut = partial(cancel_after, 3 * delay * context.random.random(), seconds=context.patience)
        await cut(partial(client.unbounded().load, keys[0]), what=f"load({shown(keys[0])})")
        await cut(partial(client.unbounded().save, keys[0], context.text(keys[0])), what=f"save({shown(keys[0])})")
        texts[keys[0]] = context.text(keys[0])
        await client.save(keys[0], texts[keys[0]])
        await expect_all(client)
    await expect_all(witness)


async def _retried(context: Context, operation: Callable[[], Awaitable[T]], began: float | None = None) -> T:
    """Repeat ``operation`` until it raises nothing, or raise ``Violation`` when the store has had time enough.

    That begins now, or began at ``began``.
    """
    deadline = (time.monotonic() if began is None else began) + context.patience
    while True:
        try:
            return await operation()
        except Violation:
            raise
        except Exception as exc:
            if time.monotonic() > deadline:
                raise Violation(
                    f"{context.patience:g} s after the backend could be reached again the store still raised "
                    f"{type(exc).__name__}: {exc}"
                ) from exc
        await asyncio.sleep(_PAUSE)


async def _outcome(operation: Awaitable[object]) -> object:
    """Return what ``operation`` returns, or what it raises unless that is a ``Violation``."""
    try:
        return await operation
    except Violation:
        raise
    except Exception as exc:  # noqa: BLE001 - a stranger's store fails with whatever it has
        return exc


def _expect_truth(loaded: object, text: str, what: str) -> None:
    if isinstance(loaded, Violation):
        raise loaded
    if not isinstance(loaded, BaseException):
        expect(loaded is not None, f"{what} returned None, although there is an entry")
        expect_text(loaded, text, f"what was returned by {what}")


def _expect_outcome(saved: object, what: str, old: str, new: str, loaded: str | None) -> None:
    """Expect the new text if the save reported success, the old or the new one if it raised."""
    if isinstance(saved, Violation):
        raise saved
    if not isinstance(saved, BaseException):
        expect_text(loaded, new, f"what was loaded after {what}, and which reported success,")
    else:
        expect(loaded in (old, new), f"after {what}, which raised {saved!r}, {shown(loaded)} was there")
