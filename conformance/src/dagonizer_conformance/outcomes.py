"""How a case ends when it does not pass, and how it asks its questions."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dagonizer_conformance.results import Operation


class Violation(AssertionError):  # noqa: N818 - what a store does, not what goes wrong in the kit
    """The store breaks the contract; the message says how."""


class HistoryViolation(Violation):
    """No order of the recorded operations explains what they returned."""

    def __init__(self, message: str, timeline: tuple[Operation, ...]) -> None:
        super().__init__(message)
        self.timeline = timeline


class Unverified(Exception):  # noqa: N818 - an outcome
    """What a case needs is missing: a hook of the harness, another process, a port to put the fault proxy before."""


class Inconclusive(Exception):  # noqa: N818 - an outcome
    """The case could not tell."""


class TargetError(Exception):
    """What was to be tested, or how, is not usable: no such harness, a deviation without a reason, a remote host."""


_SHOWN = 60


def expect(condition: object, message: str) -> None:
    """Raise ``Violation`` with ``message`` unless ``condition`` holds."""
    if not condition:
        raise Violation(message)


def expect_text(actual: object, expected: str | None, what: str) -> None:
    """Raise ``Violation``, saying where they differ, unless the text ``actual`` is exactly ``expected``."""
    if actual == expected and type(actual) is type(expected):
        return
    if not isinstance(actual, str) or not isinstance(expected, str):
        raise Violation(f"{what} is {shown(actual)}, not {shown(expected)}")
    at = next(
        (i for i, (a, b) in enumerate(zip(actual, expected, strict=False)) if a != b), min(len(actual), len(expected))
    )
    raise Violation(
        f"{what} differs from what was saved at index {at}: "
        f"{shown(actual[at : at + 20])} instead of {shown(expected[at : at + 20])} "
        f"({len(actual):,} characters instead of {len(expected):,})"
    )


def shown(value: object) -> str:
    """Return ``value`` as a short ASCII literal, safe to print and to compare by eye."""
    text = ascii(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}… ({len(text):,} characters)"
