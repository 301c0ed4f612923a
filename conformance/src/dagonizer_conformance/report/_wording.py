"""What every format says in the same words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dagonizer_conformance.results import Capability, Level, Status

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dagonizer_conformance.results import Report, Result

SYMBOLS = {
    Status.PASS: "✓",
    Status.FAIL: "✗",
    Status.XFAIL: "×",  # noqa: RUF001 - the sign is meant
    Status.UNSUPPORTED: "–",  # noqa: RUF001 - the dash is meant
    Status.UNVERIFIED: "?",
    Status.INCONCLUSIVE: "~",
    Status.ERROR: "!",
}
"""One character for each status, for those who do not see its colour."""

STATUS_MEANINGS = {
    Status.PASS: "The store does what the case asks.",
    Status.FAIL: "The store does not do it.",
    Status.XFAIL: "The store does not do it, and its harness says so, with a reason and a date until which it is "
    "tolerated.",
    Status.UNSUPPORTED: "The store does not offer the capability, and that it is absent was checked.",
    Status.UNVERIFIED: "Nobody knows: the harness has no hook for what the case needs, so it was not tried. "
    "The store may or may not do it.",
    Status.INCONCLUSIVE: "Nobody knows: the case was tried, but its time was up, or the overlap or cancellation "
    "it is about never happened. Another run may tell, unless the store makes all its clients wait for each other.",
    Status.ERROR: "The kit or the harness is at fault; this says nothing of the store.",
}
"""What each status means, and what it does not."""

LEVEL_MEANINGS = {
    Level.CORE: "keeps what it is given",
    Level.CONCURRENT: "with many clients at once",
    Level.CRASH_SAFE: "even when it is killed",
}
"""What each level is about, in a few words."""

NO_LEVEL_WITHOUT_ALL = "Only a selection of the cases was run, which earns no level."

_SECONDS_PER_MINUTE = 60


def verdict(report: Report) -> str:
    """Return in one sentence what the run says of the store; it agrees with ``report.exit_code``."""
    counts, total = report.counts(), len(report.results)
    passed = counts.get(Status.PASS, 0)
    if not total:
        return "No case was run, which says nothing of the store."
    if error := counts.get(Status.ERROR):
        also = f", and {of_cases(counts[Status.FAIL], total)} failed" if Status.FAIL in counts else ""
        return f"The kit or the harness was at fault in {of_cases(error, total)}{also}."
    if failed := counts.get(Status.FAIL):
        return f"Does not conform: {of_cases(failed, total)} failed."
    if inconclusive := counts.get(Status.INCONCLUSIVE):
        return f"Inconclusive: {of_cases(inconclusive, total)} could not tell."
    if not passed:
        return f"Inconclusive: none of {total} cases passed."
    if passed == total:
        return "Conforms: the only case passed." if total == 1 else f"Conforms: all {total} cases passed."
    rest = ", ".join(f"{n} {status}" for status, n in counts.items() if status != Status.PASS)
    if Status.XFAIL in counts:
        return f"Deviates where its harness says so: {of_cases(passed, total)} passed, {rest}."
    return f"Conforms as far as it could be checked: {of_cases(passed, total)} passed, {rest}."


def level_standing(report: Report, level: Level) -> str:
    """Return ``earned``, or why ``level`` is not."""
    if level in report.levels:
        return "earned"
    missing = _missing(report, [result for result in report.results if result.level == level])
    return missing or f"not earned: {list(Level)[len(report.levels)]} comes first"


def capability_standing(report: Report, capability: Capability) -> str:
    """Return ``earned``, or why ``capability`` is not."""
    of_capability = [result for result in report.results if result.capability == capability]
    if of_capability and all(result.status == Status.UNSUPPORTED for result in of_capability):
        return "not offered"
    return _missing(report, of_capability) or "earned"


def _missing(report: Report, results: list[Result]) -> str:
    if not report.complete:
        return "not judged"
    if not results:
        return "not judged: none of its cases was run"
    statuses = [result.status for result in results]
    kinds = [f"{n} {status}" for status in Status if status != Status.PASS and (n := statuses.count(status))]
    return f"not earned: {', '.join(kinds)} of {len(results)}" if kinds else ""


def by_group(results: Iterable[Result]) -> dict[str, list[Result]]:
    """Return the results of each group, in the order in which the groups were met."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result.group, []).append(result)
    return groups


def failures(report: Report) -> list[Result]:
    """Return the results that somebody has to look into: those of the store, then those of the kit."""
    return [result for status in (Status.FAIL, Status.ERROR) for result in report.results if result.status == status]


def counts_for(result: Result) -> str:
    """Return the level or capability that ``result`` counts for."""
    return str(result.level or result.capability or "")


def of_cases(n: int, total: int) -> str:
    """Return such as ``3 of 92 cases``."""
    return f"{n} of {total} case{'' if total == 1 else 's'}"


def duration(seconds: float) -> str:
    """Return such as ``< 1 ms``, ``12 ms``, ``1.24 s`` or ``2 min 5 s``; a dash for nothing at all."""
    if not seconds:
        return "–"  # noqa: RUF001 - the dash is meant
    if seconds < 0.001:  # noqa: PLR2004 - a millisecond
        return "< 1 ms"
    if seconds < 0.9995:  # noqa: PLR2004 - what is not rounded to 1,000 ms
        return f"{seconds * 1000:.0f} ms"
    if round(seconds, 1) < _SECONDS_PER_MINUTE:
        return f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:.1f} s"  # noqa: PLR2004 - three digits
    minutes, rest = divmod(round(seconds), _SECONDS_PER_MINUTE)
    return f"{minutes} min {rest} s"
