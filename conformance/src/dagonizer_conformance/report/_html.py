"""The report as one page, for people: nothing is loaded from anywhere, and no script is needed."""

from __future__ import annotations

import re
from html import escape
from typing import TYPE_CHECKING

from dagonizer_conformance.report._style import style
from dagonizer_conformance.report._timeline import history_lines, history_svg
from dagonizer_conformance.report._wording import (
    LEVEL_MEANINGS,
    NO_LEVEL_WITHOUT_ALL,
    STATUS_MEANINGS,
    SYMBOLS,
    by_group,
    capability_standing,
    counts_for,
    duration,
    failures,
    level_standing,
    verdict,
)
from dagonizer_conformance.results import Capability, Level, Status

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dagonizer_conformance.results import Report, Result

_STATUS_OF_EXIT = {0: Status.PASS, 1: Status.FAIL, 2: Status.INCONCLUSIVE, 3: Status.ERROR}

_HISTORY_CAPTION = (
    '<p class="keys"><span><svg width="16" height="12"><rect class="bar writes" x=".5" y=".5" width="15" height="11" '
    'rx="3"/></svg>changes the entry</span><span><svg width="16" height="12"><rect class="bar reads" x=".5" y=".5" '
    'width="15" height="11" rx="3"/></svg>reads it</span><span><svg width="16" height="12">'
    '<path class="bar writes open" d="M16 .5H.5V11.5H16"/></svg>never returned</span></p>'
)


def render_html(report: Report) -> str:
    """Return ``report`` as one self-contained page, for wide and narrow, light and dark screens."""
    return page(
        f"{report.store}: conformance",
        f"{_header(report)}\n{_overview(report)}\n{_failures(report)}\n{_matrix(report)}\n{_legend()}",
    )


def page(title: str, body: str) -> str:
    """Return a page of the HTML ``body`` that needs nothing beside itself."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        # What a store said is shown and never obeyed, even if an escape were forgotten somewhere.
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>{style()}</style>\n</head>\n<body>\n<main>\n{body}\n"
        "</main>\n</body>\n</html>\n"
    )


def _header(report: Report) -> str:
    status = _STATUS_OF_EXIT[report.exit_code]
    partial = "" if report.complete else f'<p class="quiet">{NO_LEVEL_WITHOUT_ALL}</p>'
    levels = "".join(_level(report, level) for level in Level)
    chips = "".join(
        _chip(report, capability)
        for capability in Capability
        if any(result.capability == capability for result in report.results)
    )
    if chips:
        chips = f'<ul class="chips" aria-label="Capabilities">{chips}</ul>\n'
    facts = "".join(
        f"<div{' class=wide' if wide else ''}><dt>{name}</dt><dd>{escape(value)}</dd></div>"
        for name, value, wide in (
            ("Started", report.started, True),
            ("Took", duration(report.seconds), False),
            ("Seed", str(report.seed), False),
            ("Budget", report.budget, False),
            ("Kit", report.kit_version, False),
            ("Python", report.python, False),
            ("Keys kept apart by", report.namespaces, True),
        )
    )
    return (
        f'<header>\n<p class="eyebrow">Dagonizer store conformance</p>\n<h1>{escape(report.store)}</h1>\n'
        f'<p class="verdict {status.lower()}"><i aria-hidden="true">{SYMBOLS[status]}</i>'
        f"{escape(verdict(report))}</p>\n"
        f'{partial}<ul class="levels" aria-label="Levels">{levels}</ul>\n'
        f'{chips}<dl class="facts">{facts}</dl>\n</header>'
    )


def _level(report: Report, level: Level) -> str:
    kind, mark = ("earned pass", "✓") if level in report.levels else ("missing", "")
    standing = level_standing(report, level)
    return (
        f'<li class="level {kind}"><strong>{level}<i aria-hidden="true">{mark}</i></strong>'
        f'<span class="quiet">{LEVEL_MEANINGS[level]}</span><span class="standing">{_capitalized(standing)}</span></li>'
    )


def _chip(report: Report, capability: Capability) -> str:
    if capability in report.chips:
        return f'<li class="chip earned pass">✓ <b>{capability}</b></li>'
    return f'<li class="chip"><b>{capability}</b> {capability_standing(report, capability)}</li>'


def _overview(report: Report) -> str:
    if not report.results:
        return ""
    counts = "".join(
        f'<li class="{status.lower()}"><b>{n}</b><i aria-hidden="true">{SYMBOLS[status]}</i>{status}</li>'
        for status, n in report.counts().items()
    )
    share = "".join(f'<span class="{status.lower()}" style="flex:{n}"></span>' for status, n in report.counts().items())
    groups = "".join(
        f'<li><a href="#group-{number}">{escape(group)}</a>{_cells(results)}</li>'
        for number, (group, results) in enumerate(by_group(report.results).items())
    )
    return (
        f'<section>\n<h2>{_cases(len(report.results))} in {_groups(report)}</h2>\n<div class="card overview">'
        f'<ul class="counts">{counts}</ul><div class="share" aria-hidden="true">{share}</div>'
        f'<ul class="map">{groups}</ul></div>\n</section>'
    )


def _cells(results: list[Result]) -> str:
    cells = "".join(
        f'<i class="{result.status.lower()}" title="{escape(result.id)}: {result.status}">{SYMBOLS[result.status]}</i>'
        for result in results
    )
    return f'<span class="cells" role="img" aria-label="{_tally(results)}">{cells}</span>'


def _failures(report: Report) -> str:
    wrong = failures(report)
    if not wrong:
        return ""
    return f"<section>\n<h2>What failed</h2>\n{''.join(_failure(result, report) for result in wrong)}</section>"


def _failure(result: Result, report: Report) -> str:
    # More than one line may be in columns.
    tag = "pre" if "\n" in result.detail else "p"
    detail = f'<{tag} class="detail">{escape(result.detail)}</{tag}>' if result.detail else ""
    history = _history(result) if result.timeline else ""
    reproduction = (
        f"<h4>Reproduce</h4><pre>{_unbroken(result.reproduction)}</pre>" if result.reproduction is not None else ""
    )
    return (
        f'<article class="card failure {result.status.lower()}" id="{_anchor(result, report)}"><header>'
        f'{_pill(result.status)}<span class="id quiet">{escape(result.id)}</span></header>'
        f"<h3>{escape(result.sentence)}</h3>{detail}{history}{reproduction}</article>\n"
    )


def _unbroken(command: str) -> str:
    # A browser would end a line after the first hyphen of an option.
    return re.sub(r"(?<!\S)-\S+", r'<span class="option">\g<0></span>', escape(command))


def _anchor(result: Result, report: Report) -> str:
    # The number, as the id of a case may hold anything.
    return f"failure-{report.results.index(result)}"


def _history(result: Result) -> str:
    keys = sorted({operation.key for operation in result.timeline})
    of_key = f' of <span class="id">{escape(keys[0])}</span>' if len(keys) == 1 else ""
    text = escape("\n".join(history_lines(result.timeline)))
    return (
        f"<h4>The shortest part of the history{of_key} that no order of its operations explains</h4>"
        f"{history_svg(result.timeline)}{_HISTORY_CAPTION}"
        f'<details class="more"><summary>The same as text</summary><pre>{text}</pre></details>'
    )


def _matrix(report: Report) -> str:
    if not report.results:
        return ""
    groups = []
    for number, (group, results) in enumerate(by_group(report.results).items()):
        rows = "".join(_row(result, report) for result in results)
        groups.append(
            f'<details class="card group" id="group-{number}" open><summary><h3>{escape(group)}</h3>'
            f'<span class="tally">{_tally(results)}</span></summary><table><thead><tr><th scope="col">Status</th>'
            f'<th scope="col">Case</th><th scope="col">Time</th></tr></thead><tbody>{rows}</tbody></table></details>\n'
        )
    return f"<section>\n<h2>All cases</h2>\n{''.join(groups)}</section>"


def _row(result: Result, report: Report) -> str:
    why = ""
    if result.status in {Status.FAIL, Status.ERROR}:
        why = f'<div class="why {result.status.lower()}"><a href="#{_anchor(result, report)}">What happened</a></div>'
    elif result.detail:
        kind = "" if result.status == Status.PASS else f" {result.status.lower()}"
        why = f'<div class="why{kind}">{escape(result.detail)}</div>'
    return (
        f"<tr><td>{_pill(result.status)}</td><td>{escape(result.sentence)}"
        f'<div class="id">{escape(result.id)} · {counts_for(result)}</div>{why}</td>'
        f"<td>{escape(duration(result.seconds))}</td></tr>"
    )


def _legend() -> str:
    meanings = "".join(f"<dt>{_pill(status)}</dt><dd>{meaning}</dd>" for status, meaning in STATUS_MEANINGS.items())
    return (
        f'<section>\n<h2>What the words mean</h2>\n<dl class="legend">{meanings}</dl>\n'
        '<p class="note quiet">A level is earned only if every one of its cases, and of the levels before it, is PASS. '
        "A capability is earned only if every one of its cases is.</p>\n</section>"
    )


def _pill(status: Status) -> str:
    return f'<span class="pill {status.lower()}"><i aria-hidden="true">{SYMBOLS[status]}</i>{status}</span>'


def _tally(results: Iterable[Result]) -> str:
    statuses = [result.status for result in results]
    if all(status == Status.PASS for status in statuses):
        return f"all {len(statuses)} passed" if len(statuses) > 1 else "passed"
    return ", ".join(f"{n} {status}" for status in Status if (n := statuses.count(status)))


def _cases(n: int) -> str:
    return "1 case" if n == 1 else f"{n} cases"


def _groups(report: Report) -> str:
    n = len(by_group(report.results))
    return "1 group" if n == 1 else f"{n} groups"


def _capitalized(text: str) -> str:
    return text[:1].upper() + text[1:]
