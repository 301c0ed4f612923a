"""Turns the recorded calls of a case into a history, and asks whether a register explains it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dagonizer import InvalidKeyError, InvalidValueError, StoreClosedError, StoreConflictError
from dagonizer_conformance.certificate import label
from dagonizer_conformance.client import shown_call
from dagonizer_conformance.linearizability import Event, check
from dagonizer_conformance.outcomes import HistoryViolation, Inconclusive, shown
from dagonizer_conformance.results import Operation

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dagonizer_conformance.client import Call

# Whoever gets one of these knows that nothing was changed.
_WITHOUT_EFFECT = (InvalidKeyError, InvalidValueError, StoreClosedError, StoreConflictError)


def expect_linearizable(calls: Sequence[Call]) -> None:
    """Raise ``HistoryViolation`` unless, for each key, some order of ``calls`` explains what they returned.

    The order must be that of a register in which each operation happens at one moment between its call and its return.
    A save or delete that raised may have happened at any time after its call, or never. Each key must begin without
    an entry, and all of ``calls`` on it must be given. Raises ``Inconclusive`` when the search takes too long.
    """
    for key in sorted({(call.namespace, call.key) for call in calls}):
        events = {event: call for call in calls if (call.namespace, call.key) == key for event in _events(call)}
        verdict = check(list(events))
        if verdict.linearizable is None:
            raise Inconclusive(f"the history of {shown(key[1])} has {len(events):,} operations, too many to judge")
        if not verdict.linearizable:
            culprits = [events[event] for event in verdict.counterexample]
            raise HistoryViolation(
                f"no order of these {len(culprits)} of {len(events):,} operations on {shown(key[1])} explains what "
                f"they returned:\n{_listed(culprits)}",
                _timeline(culprits),
            )


def _events(call: Call) -> Iterable[Event]:
    failed = call.ended is None or call.raised is not None
    ended = None if failed else call.ended
    if isinstance(call.raised, _WITHOUT_EFFECT):
        return
    match call.name:
        case "save" | "save_if":
            yield Event(call.client, "write", label(call.argument), call.started, ended)
        case "delete":
            yield Event(call.client, "write", None, call.started, ended)
        case "load" if not failed:
            value = None if call.returned is None else label(call.returned)
            yield Event(call.client, "read", value, call.started, ended)


def _timeline(calls: Iterable[Call]) -> tuple[Operation, ...]:
    calls = sorted(calls, key=lambda call: call.started)
    began = calls[0].started

    def seconds(moment: int) -> float:
        return (moment - began) / 1e9

    operations = []
    for call in calls:
        argument, outcome = shown_call(call)
        unknown = call.ended is None or (call.raised is not None and call.name != "load")
        operations.append(
            Operation(
                client=call.client,
                name=call.name,
                key=call.key,
                argument=argument,
                started=seconds(call.started),
                ended=None if unknown or call.ended is None else seconds(call.ended),
                outcome=outcome,
            )
        )
    return tuple(operations)


def _listed(calls: Iterable[Call]) -> str:
    lines = []
    for operation in _timeline(calls):
        given = "" if operation.argument is None else f"({operation.argument})"
        until = "?" if operation.ended is None else f"{operation.ended * 1000:.3f}"
        lines.append(
            f"  {operation.started * 1000:.3f} … {until} ms  {operation.client}: "
            f"{operation.name}{given} -> {operation.outcome}"
        )
    return "\n".join(lines)
