"""The report as Markdown, for pull requests and wikis."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from dagonizer_conformance.report._timeline import history_lines
from dagonizer_conformance.report._wording import (
    NO_LEVEL_WITHOUT_ALL,
    STATUS_MEANINGS,
    SYMBOLS,
    by_group,
    capability_standing,
    counts_for,
    duration,
    failures,
    level_standing,
    of_cases,
    verdict,
)
from dagonizer_conformance.results import Capability, Level, Status

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dagonizer_conformance.results import Report, Result

_MARKUP = re.compile(r"[\\`*_\[\]<>|~&$]")


def render_markdown(report: Report) -> str:
    """Return ``report`` as GitHub Flavored Markdown."""
    parts = [
        f"# Conformance of {_plain(report.store)}",
        f"**{_plain(verdict(report))}**",
        _badges(report),
        *([] if report.complete else [NO_LEVEL_WITHOUT_ALL]),
        _summary(report),
    ]
    if wrong := failures(report):
        parts.append("## What failed")
        parts += [part for result in wrong for part in _failure(result)]
    if report.results:
        parts.append("## All cases")
        parts += [_matrix(group, results) for group, results in by_group(report.results).items()]
        parts += ["## What the words mean", _legend(report)]
    return "\n\n".join(parts) + "\n"


def _badges(report: Report) -> str:
    levels = [
        f"**{level} ✓**" if level in report.levels else f"{level} ({level_standing(report, level)})" for level in Level
    ]
    chips = [
        f"**{capability} ✓**"
        if capability in report.chips
        else f"{capability} ({capability_standing(report, capability)})"
        for capability in Capability
        if any(result.capability == capability for result in report.results)
    ]
    lines = [f"Levels: {' · '.join(levels)}"]
    if chips:
        lines.append(f"Chips: {' · '.join(chips)}")
    return "  \n".join(lines)


def _summary(report: Report) -> str:
    counts = " · ".join(f"{n} {status}" for status, n in report.counts().items())
    rows = {
        "cases": f"{len(report.results)}: {counts}" if counts else "0",
        "keys kept apart": _plain(report.namespaces),
        "seed": str(report.seed),
        "budget": _plain(report.budget),
        "started": _plain(report.started),
        "took": duration(report.seconds),
        "kit": _plain(report.kit_version),
        "Python": _plain(report.python),
    }
    return _table(("store", _plain(report.store)), list(rows.items()))


def _failure(result: Result) -> list[str]:
    parts = [f"### {SYMBOLS[result.status]} {_plain(result.id)}", f"{result.status}: {_plain(result.sentence)}"]
    if result.detail:
        parts.append(_fenced(result.detail, "text"))
    if result.timeline:
        parts += ["The shortest part of the history that nothing explains:"]
        parts.append(_fenced("\n".join(history_lines(result.timeline)), "text"))
    if result.reproduction is not None:
        parts += ["Reproduce:", _fenced(result.reproduction, "sh")]
    return parts


def _matrix(group: str, results: list[Result]) -> str:
    passed = sum(result.status == Status.PASS for result in results)
    rows = [
        (
            f"{SYMBOLS[result.status]} {result.status}",
            _plain(result.id),
            _says(result),
            counts_for(result),
            _plain(duration(result.seconds)),
        )
        for result in results
    ]
    heading = f"### {_plain(group)}: {of_cases(passed, len(results))} passed"
    return f"{heading}\n\n{_table(('status', 'case', 'what a store must do', 'counts for', 'time'), rows)}"


def _says(result: Result) -> str:
    # A failure has its own section.
    if not result.detail or result.status in {Status.FAIL, Status.ERROR}:
        return _plain(result.sentence)
    return f"{_plain(result.sentence)}<br>{_plain(result.detail)}"


def _legend(report: Report) -> str:
    return "\n".join(f"- {SYMBOLS[status]} {status}: {STATUS_MEANINGS[status]}" for status in report.counts())


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(text: str) -> str:
    """Return Markdown for the plain ``text``, on one line."""
    return _MARKUP.sub(r"\\\g<0>", " ".join(text.split()))


def _fenced(text: str, language: str) -> str:
    # A fence ends at the first run of backticks that is at least as long.
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
