"""Runs an operation in a bounded time, or cancels it at a chosen await or moment."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from dagonizer_conformance.outcomes import Violation

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable, Coroutine, Generator

T = TypeVar("T")

_GRACE = 1.0
# An event loop wakes up to a millisecond late.
_COARSE = 0.002
_TURNS = (0, 0, 1, 2, 7)

abandoned: list[asyncio.Task[Any]] = []
"""Tasks that did not end when they were cancelled; kept, since what they run need not end when it is destroyed."""


class Steps:
    """Awaits ``operation`` in its place, counting how often it suspends.

    Cancels its task at suspension ``cancel_at``. With ``chance``, it lets other tasks run a random number of times
    whenever the operation could go on. ``suspensions`` tells how often it has suspended, ``cancelled`` whether it was
    cancelled.
    """

    def __init__(
        self, operation: Awaitable[object], *, cancel_at: int = 0, chance: random.Random | None = None
    ) -> None:
        self._operation = operation
        self._cancel_at = cancel_at
        self._chance = chance
        self.suspensions = 0
        self.cancelled = False

    def __await__(self) -> Generator[Any, Any, Any]:
        """Pass everything through between the operation and the event loop."""
        inner: Any = self._operation.__await__()
        resume: Callable[[], Any] = partial(next, inner)
        while True:
            try:
                waits_for = resume()
            except StopIteration as finished:
                return finished.value
            self.suspensions += 1
            if self.suspensions == self._cancel_at:
                # What it waits for cannot be cancelled before this task waits for it.
                asyncio.get_running_loop().call_soon(self._cancel, asyncio.current_task())
            try:
                value = yield waits_for
                for _ in range(0 if self._chance is None else self._chance.choice(_TURNS)):
                    yield
            except BaseException as exc:
                # An iterator need not have more than __next__, as for ``yield from``.
                if not hasattr(inner, "throw"):
                    raise
                resume = partial(inner.throw, exc)
            else:
                resume = partial(next, inner) if value is None else partial(inner.send, value)

    def _cancel(self, task: asyncio.Task[Any] | None) -> None:
        if task is not None and not task.done():
            self.cancelled = True
            task.cancel()


async def within(seconds: float, operation: Awaitable[T], what: str) -> T:
    """Return what ``operation`` returns.

    Raises ``Violation`` when it takes longer, or raises ``CancelledError`` by itself.
    """
    task = asyncio.ensure_future(operation)
    try:
        await asyncio.wait({task}, timeout=seconds)
    except asyncio.CancelledError:
        await _end(task)
        raise
    if not task.done():
        ended = await _end(task)
        raise Violation(
            f"{what} did not return within {seconds:g} s" + ("" if ended else ", nor when it was cancelled")
        )
    # Raised again, it would cancel whoever awaits this.
    if task.cancelled():
        raise Violation(f"{what} raised CancelledError, although nobody cancelled it")
    return task.result()


async def cancel_at(
    step: int, operation: Callable[[], Coroutine[Any, Any, object]], *, seconds: float, what: str
) -> bool:
    """Run ``operation`` and cancel it at its suspension number ``step``. Return whether it got that far.

    Raises ``Violation`` unless ``CancelledError`` comes out within ``seconds``.
    """
    steps = Steps(operation(), cancel_at=step)

    async def drive() -> object:
        return await steps

    task = asyncio.create_task(drive())
    ended = await _ends(task, seconds)
    _check(task, f"{what}, cancelled at its await number {step},", seconds, ended=ended, cancelled=steps.cancelled)
    return steps.cancelled


async def cancel_after(
    delay: float, operation: Callable[[], Coroutine[Any, Any, object]], *, seconds: float, what: str
) -> bool:
    """Run ``operation`` and cancel it after ``delay`` seconds. Return whether it was still running.

    Raises ``Violation`` unless ``CancelledError`` comes out within ``seconds``.
    """
    task = asyncio.create_task(operation())
    try:
        await wait_precisely(task, delay)
    finally:
        cancelled = task.cancel()
    ended = await _ends(task, seconds)
    _check(task, f"{what}, cancelled after {delay * 1000:.2f} ms,", seconds, ended=ended, cancelled=cancelled)
    return cancelled


async def wait_precisely(task: asyncio.Task[object], seconds: float) -> None:
    """Wait for the end of ``task``, but no longer than ``seconds``, to the microsecond."""
    due = time.perf_counter() + seconds
    if seconds > _COARSE:
        await asyncio.wait({task}, timeout=seconds - _COARSE)
    await asyncio.sleep(0)
    while not task.done() and time.perf_counter() < due:  # noqa: ASYNC110 - see _COARSE
        await asyncio.sleep(0)


async def _ends(task: asyncio.Task[object], seconds: float) -> bool:
    """Return whether ``task`` ends within ``seconds``; cancel it if not."""
    try:
        await asyncio.wait({task}, timeout=seconds)
    except asyncio.CancelledError:
        await _end(task)
        raise
    ended = task.done()
    if not ended:
        await _end(task)
    return ended


def _check(task: asyncio.Task[object], what: str, seconds: float, *, ended: bool, cancelled: bool) -> None:
    """Raise unless ``task`` ended in ``CancelledError`` when, and only when, it was ``cancelled``."""
    if not ended:
        raise Violation(f"{what} did not end within {seconds:g} s")
    if task.cancelled():
        if not cancelled:
            raise Violation(f"{what} raised CancelledError before it was cancelled")
        return
    exc = task.exception()
    if cancelled:
        raise Violation(f"{what} swallowed CancelledError and " + (f"raised {exc!r}" if exc else "returned")) from exc
    if exc is not None:
        raise exc


async def _end(task: asyncio.Task[Any]) -> bool:
    """Cancel ``task``, give it a moment, and return whether it has ended."""
    task.cancel()
    await asyncio.wait({task}, timeout=_GRACE)
    if not task.done():
        # At its end an event loop waits for all tasks that it knows of, and would wait for ever.
        asyncio._unregister_task(task)  # noqa: SLF001 - documented, for those who make tasks
        abandoned.append(task)
    elif not task.cancelled():
        # Looked at, else asyncio reports it as never retrieved.
        task.exception()
    return task.done()
