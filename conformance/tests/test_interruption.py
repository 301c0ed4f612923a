"""Operations that are bounded, and cancelled at each await, however they behave."""

from __future__ import annotations

import asyncio
import time

import pytest

from dagonizer_conformance.interruption import Steps, cancel_after, cancel_at, within
from dagonizer_conformance.outcomes import Violation


class Awaitable:
    """Not a coroutine: its iterator can do what ``iterator`` can."""

    def __init__(self, iterator):
        self.iterator = iterator

    def __await__(self):
        return self.iterator


class OnlyNext:
    """An iterator without ``send`` and ``throw``."""

    def __init__(self, *results):
        self.results = list(results)

    def __iter__(self):
        return self

    def __next__(self):
        if len(self.results) == 1:
            raise StopIteration(self.results[0])
        return self.results.pop(0)


async def three_awaits(log):
    for number in (1, 2, 3):
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            log.append(f"cancelled at {number}")
            raise
        log.append(number)
    return "done"


async def never_suspends():
    return "done"


def cut(step, operation):
    return asyncio.run(cancel_at(step, operation, seconds=5, what="it"))


@pytest.mark.parametrize(
    ("step", "expected"),
    [(1, ["cancelled at 1"]), (2, [1, "cancelled at 2"]), (3, [1, 2, "cancelled at 3"]), (4, [1, 2, 3])],
)
def test_it_cancels_at_exactly_the_await_that_was_asked_for(step, expected):
    log = []
    assert cut(step, lambda: three_awaits(log)) == (step < 4)
    assert log == expected


def test_an_operation_that_never_suspends_is_not_cancelled():
    assert cut(1, never_suspends) is False


def test_what_waits_for_a_future_is_cancelled_even_if_the_future_is_done_at_that_moment():
    async def operation():
        future = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(future.set_result, None)
        await future

    assert cut(1, operation)


def test_cleaning_up_may_await_too():
    log = []

    async def operation():
        try:
            await asyncio.sleep(60)
        finally:
            await three_awaits(log)

    assert cut(1, operation)
    assert log == [1, 2, 3]


async def swallows():
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        return "done"


async def translates():
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        raise OSError("something else") from None


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        (swallows, "it, cancelled at its await number 1, swallowed CancelledError and returned"),
        (
            translates,
            r"it, cancelled at its await number 1, swallowed CancelledError and raised OSError\('something else'",
        ),
    ],
)
def test_cancelled_error_must_come_out(operation, message):
    with pytest.raises(Violation, match=message):
        cut(1, operation)


def test_cancelled_error_must_come_out_at_a_random_moment_too():
    with pytest.raises(Violation, match=r"it, cancelled after 10\.00 ms, swallowed CancelledError and returned"):
        asyncio.run(cancel_after(0.01, swallows, seconds=5, what="it"))


async def raises_cancelled_error_by_itself():
    await asyncio.sleep(0)
    raise asyncio.CancelledError


def test_a_cancelled_error_that_nobody_asked_for_is_a_violation():
    with pytest.raises(Violation, match="it raised CancelledError, although nobody cancelled it"):
        asyncio.run(within(5, raises_cancelled_error_by_itself(), "it"))
    with pytest.raises(Violation, match="raised CancelledError before it was cancelled"):
        cut(9, raises_cancelled_error_by_itself)


def test_an_error_of_an_operation_that_was_not_cancelled_is_raised():
    async def operation():
        raise OSError("its own")

    with pytest.raises(OSError, match="its own"):
        cut(1, operation)
    with pytest.raises(OSError, match="its own"):
        asyncio.run(cancel_after(1, operation, seconds=5, what="it"))


class Endless:
    """Does not end when it is cancelled, but when it is released."""

    def __init__(self):
        self.released = asyncio.Event()

    async def operation(self):
        while not self.released.is_set():
            try:
                await self.released.wait()
            except asyncio.CancelledError:
                continue


@pytest.mark.parametrize(
    ("trial", "message"),
    [
        (
            lambda operation: within(0.01, operation(), "it"),
            "it did not return within 0.01 s, nor when it was cancelled",
        ),
        (lambda operation: cancel_at(1, operation, seconds=0.01, what="it"), "did not end within 0.01 s"),
        (lambda operation: cancel_after(0, operation, seconds=0.01, what="it"), "did not end within 0.01 s"),
    ],
)
def test_an_operation_that_never_ends_is_given_up(monkeypatch, trial, message):
    monkeypatch.setattr("dagonizer_conformance.interruption._GRACE", 0.01)

    async def main():
        endless = Endless()
        try:
            with pytest.raises(Violation, match=message):
                await trial(endless.operation)
        finally:
            endless.released.set()
            await asyncio.sleep(0.01)

    asyncio.run(main())


def test_an_operation_that_is_slow_is_cancelled():
    ended = []

    async def operation():
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(True)

    with pytest.raises(Violation, match=r"it did not return within 0\.01 s$"):
        asyncio.run(within(0.01, operation(), "it"))
    assert ended == [True]


@pytest.mark.parametrize("delay", [0.0, 0.0005, 0.01])
def test_it_cancels_after_that_time(delay):
    async def main():
        began = time.perf_counter()
        assert await cancel_after(delay, lambda: asyncio.sleep(60), seconds=5, what="it")
        assert delay <= time.perf_counter() - began

    asyncio.run(main())


def test_an_operation_that_was_quicker_is_not_cancelled():
    assert not asyncio.run(cancel_after(60, lambda: three_awaits([]), seconds=5, what="it"))


@pytest.mark.parametrize(
    "trial",
    [
        lambda operation: within(60, operation(), "it"),
        lambda operation: cancel_at(9, operation, seconds=60, what="it"),
        lambda operation: cancel_after(60, operation, seconds=60, what="it"),
    ],
)
def test_whoever_is_cancelled_takes_the_operation_along(trial):
    ended = []

    async def operation():
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(True)

    async def main():
        task = asyncio.create_task(trial(operation))
        await asyncio.sleep(0.005)
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()
        await asyncio.sleep(0)

    asyncio.run(main())
    assert ended == [True]


@pytest.mark.parametrize("make", [lambda: iter([None, None]), lambda: OnlyNext(None, None, "end")])
def test_awaitables_that_are_not_coroutines_are_counted_and_cancelled(make):
    async def count():
        steps = Steps(Awaitable(make()))
        await steps
        return steps.suspensions

    async def operation():
        await Awaitable(make())

    assert asyncio.run(count()) == 2
    assert cut(2, operation)
    assert not cut(3, operation)


def test_what_an_awaitable_returns_comes_back():
    async def main():
        async def value(awaitable):
            return await Steps(awaitable)

        loop = asyncio.get_running_loop()
        future = loop.create_future()
        loop.call_soon(future.set_result, "of a future")
        assert await value(future) == "of a future"
        assert await value(asyncio.create_task(never_suspends())) == "done"
        assert await value(Awaitable(OnlyNext(None, "of an iterator"))) == "of an iterator"
        assert await value(never_suspends()) == "done"

    asyncio.run(main())


def test_errors_go_into_the_operation_and_come_out_of_it():
    async def operation():
        try:
            async with asyncio.timeout(0):
                await asyncio.sleep(60)
        except TimeoutError:
            raise LookupError("after its own timeout") from None

    async def main():
        await Steps(operation())

    with pytest.raises(LookupError, match="after its own timeout"):
        asyncio.run(main())
