"""Requests that come while others are under way go to etcd as one, for a request costs more than what is in it."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar, cast

from dagonizer_etcd._errors import Failure

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

Q = TypeVar("Q")
A = TypeVar("A")

# Those on the way, besides one that found nothing under way and went alone.
_REQUESTS = 2


class _Queued(NamedTuple, Generic[Q, A]):
    """A request that waits to be sent, and where its answer is awaited: None if it has to go alone after all."""

    request: Q
    answer: asyncio.Future[A | Failure | None]


class Batch(Generic[Q, A]):
    """Requests of one kind, in one event loop.

    ``alone`` carries out one of them. ``together`` carries out several, all or nothing, and returns the answer to each,
    or None if it did nothing because of some of them: then each goes alone. Together are at most so many that the sum
    of their ``size`` is ``most``. They are given up after ``timeout`` seconds, which is as long as anybody waits.
    """

    def __init__(
        self,
        alone: Callable[[Q], Awaitable[A]],
        together: Callable[[Sequence[Q]], Awaitable[Sequence[A] | None]],
        *,
        size: Callable[[Q], int],
        most: int,
        timeout: float,
    ) -> None:
        self._alone = alone
        self._together = together
        self._size = size
        self._most = most
        self._timeout = timeout
        self._under_way = 0
        self._queue: deque[_Queued[Q, A]] = deque()
        self._senders: set[asyncio.Task[None]] = set()

    async def send(self, request: Q) -> A:
        """Return the answer to ``request``. Raises ``Failure``."""
        self._under_way += 1
        try:
            if self._under_way > 1:
                answer = await self._queued(request)
                if isinstance(answer, Failure):
                    raise answer.again() from answer.__cause__
                if answer is not None:
                    return answer
            return await self._alone(request)
        finally:
            self._under_way -= 1

    def _queued(self, request: Q) -> asyncio.Future[A | Failure | None]:
        queued: _Queued[Q, A] = _Queued(request, asyncio.get_running_loop().create_future())
        self._queue.append(queued)
        if len(self._senders) < _REQUESTS:
            # As a task it begins after all that come at the same moment.
            sender = asyncio.create_task(self._send_queued())
            self._senders.add(sender)
            # For one that is cancelled before it begins.
            sender.add_done_callback(self._senders.discard)
        return queued.answer

    async def _send_queued(self) -> None:
        try:
            while batch := self._next():
                await self._send(batch)
        finally:
            # At once: what comes before the task is done is not for a sender that has already looked.
            self._senders.discard(cast("asyncio.Task[None]", asyncio.current_task()))

    async def _send(self, batch: Sequence[_Queued[Q, A]]) -> None:
        answers: Sequence[A | Failure | None] = [None] * len(batch)
        try:
            answers = await self._answers([queued.request for queued in batch])
        finally:
            for queued, answer in zip(batch, answers, strict=True):
                if not queued.answer.done():
                    queued.answer.set_result(answer)

    def _next(self) -> list[_Queued[Q, A]]:
        """Take from the queue what goes together, without those for which nobody waits any more."""
        batch: list[_Queued[Q, A]] = []
        size = 0
        while self._queue:
            size += self._size(self._queue[0].request)
            if batch and size > self._most:
                break
            queued = self._queue.popleft()
            if not queued.answer.done():
                batch.append(queued)
        return batch

    async def _answers(self, requests: Sequence[Q]) -> Sequence[A | Failure | None]:
        nothing = [None] * len(requests)
        if len(requests) == 1:
            return nothing
        try:
            async with asyncio.timeout(self._timeout):
                return await self._together(requests) or nothing
        except TimeoutError:
            return nothing
        except Failure as failure:
            return [failure] * len(requests)
