"""Several reports in one table: a column for each store, a row for each level, capability and case."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from dagonizer_conformance.report._html import page
from dagonizer_conformance.report._visible import made_visible
from dagonizer_conformance.report._wording import (
    SYMBOLS,
    by_group,
    capability_standing,
    duration,
    level_standing,
    verdict,
)
from dagonizer_conformance.report.terminal import STATUS_STYLES, VERDICT_STYLES
from dagonizer_conformance.results import Capability, Level, Status

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console

    from dagonizer_conformance.results import Report, Result

# The worst first: a kit that failed says nothing, a store that fails is worse than one of which nobody knows.
_SEVERITY = (3, 1, 2, 0)


def worst_exit_code(reports: Mapping[str, Report]) -> int:
    """Return the exit code of the worst of ``reports``."""
    return min((report.exit_code for report in reports.values()), key=_SEVERITY.index)


def print_comparison(reports: Mapping[str, Report], console: Console) -> None:
    """Print a table with a column for each of ``reports``, by name, and then the verdict of each."""
    reports = {name: made_visible(report) for name, report in reports.items()}
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False, header_style="bold")
    table.add_column("")
    for name in reports:
        table.add_column(Text(name), overflow="fold")
    for heading, standings in _standings(reports).items():
        cells = [Text("✓ earned", style="bold green") if s == "earned" else Text(s, style="dim") for s in standings]
        table.add_row(Text(heading, style="bold"), *cells)
    table.add_row("")
    for group, results in _groups(reports).items():
        table.add_row(Text(group), *(_counted(of_store) for of_store in results))
    table.add_row("")
    table.add_row(Text("time", style="dim"), *(Text(duration(r.seconds), style="dim") for r in reports.values()))
    console.print(table)
    console.print()
    for name, report in reports.items():
        line = Text.assemble((f"{name}: ", "bold"), (verdict(report), VERDICT_STYLES[report.exit_code]))
        console.print(line)


def render_comparison(reports: Mapping[str, Report], pages: Mapping[str, str]) -> str:
    """Return the table as one self-contained page; ``pages`` are addresses of the reports' own pages, by name."""
    reports = {name: made_visible(report) for name, report in reports.items()}
    heads = "".join(f'<th scope="col">{_linked(name, pages)}</th>' for name in reports)
    head = (
        f'<table style="--stores:{len(reports)}"><thead><tr><th scope="col" aria-label="Case"></th>{heads}</tr></thead>'
    )
    standings = "".join(
        _row(f'<th scope="row">{heading}</th>', [_standing(standing) for standing in of_stores])
        for heading, of_stores in _standings(reports).items()
    )
    groups = "".join(_group(name, of_stores, head) for name, of_stores in _groups(reports).items())
    facts = "".join(
        f'<li><b>{_linked(name, pages)}</b> <span class="id quiet">{escape(report.store)}</span>'
        f"<div>{escape(verdict(report))}</div><span class=quiet>Seed {report.seed}, budget {escape(report.budget)}, "
        f"{escape(duration(report.seconds))}, started {escape(report.started)}, kit {escape(report.kit_version)}, "
        f"Python {escape(report.python)}.</span></li>"
        for name, report in reports.items()
    )
    stores = "1 store" if len(reports) == 1 else f"{len(reports)} stores"
    return page(
        f"{stores}: conformance",
        f'<header>\n<p class="eyebrow">Dagonizer store conformance</p>\n<h1>{stores} compared</h1>\n</header>\n'
        f'<div class="card compared">{head}<tbody>{standings}</tbody></table></div>\n'
        f"<section>\n<h2>All cases</h2>\n{groups}</section>\n"
        f'<section>\n<h2>The runs</h2>\n<ul class="runs">{facts}</ul>\n</section>',
    )


def _standings(reports: Mapping[str, Report]) -> dict[str, list[str]]:
    of_levels = {str(level): [level_standing(report, level) for report in reports.values()] for level in Level}
    of_capabilities = {
        str(capability): [capability_standing(report, capability) for report in reports.values()]
        for capability in Capability
    }
    return of_levels | of_capabilities


def _groups(reports: Mapping[str, Report]) -> dict[str, list[list[Result]]]:
    """Return for each group the results of each report."""
    grouped = [by_group(report.results) for report in reports.values()]
    names = dict.fromkeys(name for groups in grouped for name in groups)
    return {name: [groups.get(name, []) for groups in grouped] for name in names}


def _counted(results: list[Result]) -> Text:
    statuses = [result.status for result in results]
    counts = [(status, statuses.count(status)) for status in Status if status in statuses]
    return Text("  ").join(Text(f"{SYMBOLS[status]} {n}", style=STATUS_STYLES[status]) for status, n in counts)


def _group(name: str, of_stores: list[list[Result]], head: str) -> str:
    by_id = [{result.id: result for result in results} for results in of_stores]
    cases = {result.id: result for results in of_stores for result in results}
    rows = "".join(
        _row(
            f'<th scope="row">{escape(case.sentence)}<div class="id">{escape(case_id)}</div></th>',
            [_cell(results.get(case_id)) for results in by_id],
        )
        for case_id, case in cases.items()
    )
    return (
        f'<details class="card group compared" open><summary><h3>{escape(name)}</h3></summary>'
        f"{head}<tbody>{rows}</tbody></table></details>\n"
    )


def _row(head: str, cells: list[str]) -> str:
    return f"<tr>{head}{''.join(cells)}</tr>"


def _standing(standing: str) -> str:
    if standing == "earned":
        return '<td class="pass"><b>✓ earned</b></td>'
    return f'<td class="quiet">{escape(standing)}</td>'


def _cell(result: Result | None) -> str:
    if result is None:
        return '<td class="quiet">not run</td>'
    why = f'<div class="why">{escape(result.detail)}</div>' if result.status != Status.PASS and result.detail else ""
    name = "" if result.status == Status.PASS else f" {result.status}"
    return (
        f'<td class="{result.status.lower()}" title="{result.status}: {escape(result.detail)}">'
        f'<b>{SYMBOLS[result.status]}{name}</b> <span class="quiet">{escape(duration(result.seconds))}</span>{why}</td>'
    )


def _linked(name: str, pages: Mapping[str, str]) -> str:
    return f'<a href="{escape(pages[name])}">{escape(name)}</a>' if name in pages else escape(name)
