"""Tell whether one register explains a recorded history.

A history is linearizable if each of its operations can be put at one instant between its start and its end, so that
every read returns what was written last. This is the search of Wing and Gong with the memory of Lowe: grow an order
from the front, and never go on twice from the same set of operations.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

_LIMIT = 2_000_000

# Of one attempt at leaving events out. There are many attempts, and one that is given up only keeps its events.
_SHRINK_LIMIT = 20_000


@dataclass(frozen=True, slots=True)
class Event:
    """One operation on the register. A delete is a write of None.

    Times are of one monotonic clock. An operation without an end has an unknown outcome: it may have taken effect at
    any time after its start, or never. Operations that touch (one ends when the other starts) count as concurrent.
    """

    client: str
    kind: Literal["read", "write"]
    value: str | None
    started: int
    ended: int | None

    def __post_init__(self) -> None:
        if self.ended is not None and self.ended < self.started:
            raise ValueError(f"ended ({self.ended}) must not be before started ({self.started})")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What ``check`` found. ``linearizable`` is None if it gave up.

    ``counterexample`` is empty unless ``linearizable`` is False, and then as ``shrink`` describes it.
    """

    linearizable: bool | None
    counterexample: tuple[Event, ...] = ()


def check(events: Sequence[Event], *, initial: str | None = None, limit: int = _LIMIT) -> Verdict:
    """Tell whether a register that held ``initial`` explains ``events``, in at most ``limit`` steps of the search."""
    linearizable = _is_linearizable(events, initial, limit)
    if linearizable is False:
        return Verdict(linearizable, _shrink(events, initial))
    return Verdict(linearizable)


def shrink(events: Sequence[Event], *, initial: str | None = None) -> tuple[Event, ...]:
    """Return a part of ``events``, in the order of their starts, that is as impossible but has no event to spare.

    The part explains the whole, because an event is left out only in a way that keeps a possible history possible. A
    read can always be left out. A write can be left out together with every read that might have returned it: in an
    order that explains the history, only those can be between the write and the next, so all others still follow the
    write that they followed. So if the part is impossible, the whole was too. Other writes of an equal value, such as
    other deletes, do not spare those reads, for in that order they may be in another place.

    The last write of a value is kept as long as a read of that value is: without it, the read would seem to be of a
    value that was never written.

    Raises ``ValueError`` if ``events`` are possible, or not shown to be impossible within the limit of ``check``.
    """
    if _is_linearizable(events, initial, _LIMIT) is not False:
        raise ValueError("events must not be linearizable")
    return _shrink(events, initial)


def _is_linearizable(events: Sequence[Event], initial: str | None, limit: int) -> bool | None:
    history = _History(events)
    seen: set[int] = set()
    stack: list[tuple[int, str | None]] = [(0, initial)]
    for _ in range(limit):
        done, value = stack.pop()
        done = history.with_reads(done, value)
        if history.is_complete(done):
            return True
        # The value need not be remembered: no read can be next, so the next is a write, whatever the value is.
        if done not in seen:
            seen.add(done)
            stack.extend((done | bit, written) for bit, written in history.next_writes(done, value))
        if not stack:
            return False
    return None


class _History:
    """Events as bits of an integer, so that a set of them is one integer.

    The completed ones come first, in the order of their starts: what precedes an operation is before it, and what can
    be next is in one stretch at the front. Unknown reads say nothing and are left out.
    """

    def __init__(self, events: Sequence[Event]) -> None:
        self._completed = sorted((event for event in events if event.ended is not None), key=_by_start)
        unknown = sorted((event for event in events if event.ended is None and event.kind == "write"), key=_by_start)
        self._all_completed = (1 << len(self._completed)) - 1
        self._reads: defaultdict[str | None, int] = defaultdict(int)
        self._writes: defaultdict[str | None, int] = defaultdict(int)
        self._unknown_writes: defaultdict[str | None, list[tuple[int, int]]] = defaultdict(list)
        for position, event in enumerate(self._completed + unknown):
            of_kind = self._reads if event.kind == "read" else self._writes
            of_kind[event.value] |= 1 << position
            if event.ended is None:
                self._unknown_writes[event.value].append((1 << position, event.started))

    def is_complete(self, done: int) -> bool:
        return done & self._all_completed == self._all_completed

    def is_read_later(self, done: int, value: str | None) -> bool:
        return self._reads[value] & ~done != 0

    def with_reads(self, done: int, value: str | None) -> int:
        """Return ``done`` and all reads of the present ``value`` that can follow.

        They are taken at once, without loss: in any order that goes on from ``done``, a read that can be next and
        returns ``value`` can be moved to the front. Nothing has to precede it, and it changes nothing for the others.
        """
        while True:
            reads = 0
            for bit, event in self._next(done):
                if event.kind == "read" and event.value == value:
                    reads |= bit
            if not reads:
                return done
            done |= reads

    def next_writes(self, done: int, value: str | None) -> list[tuple[int, str | None]]:
        """Return the writes, with their values, that can be next where no read can. The last is the best guess."""
        # Nothing may bury a value that is still to be read and that no other write will bring back.
        if self.is_read_later(done, value) and not self._writes[value] & ~done:
            return []

        following = self._next(done)
        first_end = min((_end(event) for _, event in following), default=inf)

        # An unknown write is worth taking only if a read that can be next returns it, so one that is never read is
        # never taken. Where the next in an order is not such a read, the write can be left out: nobody sees it, and it
        # may never have happened. And the read can be next already, since a write without an end precedes nothing. Of
        # those of one value the earliest will do: it can stand where a later one stands, and that one in its place.
        writes: list[tuple[int, str | None]] = []
        for wanted in {event.value for _, event in following if event.kind == "read"}:
            left = [(bit, started) for bit, started in self._unknown_writes[wanted] if not done & bit]
            if left and left[0][1] <= first_end:
                writes.append((left[0][0], wanted))

        completed = [(bit, event) for bit, event in following if event.kind == "write"]
        for bit, event in completed:
            # A write that no read is left to return is taken at once, without loss: in any order that goes on from
            # here, it can be moved to the front. What follows it there is a write, and where it was, nobody saw it.
            if not self.is_read_later(done, event.value):
                return [(bit, event.value)]

        # The write that ended first was mostly also the first to take effect.
        completed.sort(key=lambda write: _end(write[1]), reverse=True)
        writes.extend((bit, event.value) for bit, event in completed)
        return writes

    def _next(self, done: int) -> list[tuple[int, Event]]:
        """Return the completed operations that can be next: those that no operation left precedes."""
        following: list[tuple[int, Event]] = []
        first_end = inf
        position = (~done & (done + 1)).bit_length() - 1
        while position < len(self._completed):
            event = self._completed[position]
            if event.started > first_end:
                break
            if not done >> position & 1:
                first_end = min(first_end, _end(event))
                following.append((1 << position, event))
            position += 1
        return following


def _shrink(events: Sequence[Event], initial: str | None) -> tuple[Event, ...]:
    kept = sorted(events, key=_by_start)
    size = len(kept) // 2
    while size:
        removed_any = False
        start = 0
        while start < len(kept):
            rest = _without(kept, range(start, min(start + size, len(kept))), initial)
            if _is_linearizable(rest, initial, _SHRINK_LIMIT) is False:
                kept = rest
                removed_any = True
            else:
                start += size
        if size > 1 or not removed_any:
            size //= 2
    return tuple(kept)


def _without(events: Sequence[Event], positions: Collection[int], initial: str | None) -> list[Event]:
    """Leave out the events at ``positions``, and the reads that cannot stay without them."""
    removed = set(positions)
    for position in positions:
        write = events[position]
        if write.kind == "write":
            overwritten = _overwritten(write, events)
            last = write.value != initial and not any(
                other.kind == "write" and other.value == write.value and index not in removed
                for index, other in enumerate(events)
            )
            removed.update(
                index
                for index, read in enumerate(events)
                if read.kind == "read"
                and read.value == write.value
                and (last or (write.started <= _end(read) and read.started <= overwritten))
            )
    return [event for position, event in enumerate(events) if position not in removed]


def _overwritten(write: Event, events: Sequence[Event]) -> float:
    """Return when ``write`` was certainly overwritten: a write that started after its end has ended."""
    return min(
        (_end(later) for later in events if later.kind == "write" and _end(write) < later.started),
        default=inf,
    )


def _end(event: Event) -> float:
    return inf if event.ended is None else event.ended


def _by_start(event: Event) -> int:
    return event.started
