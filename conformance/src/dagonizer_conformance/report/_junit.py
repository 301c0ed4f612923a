"""The report as JUnit XML, for build servers."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from dagonizer_conformance.report._timeline import history_lines
from dagonizer_conformance.results import Status

if TYPE_CHECKING:
    from dagonizer_conformance.results import Report, Result


def render_junit(report: Report) -> str:
    """Return ``report`` as an XML document of one test suite.

    FAIL is a failure, ERROR and INCONCLUSIVE are errors, for the run does not end well with them. Whatever else did
    not pass is skipped: it never counts as passed.
    """
    counts = report.counts()
    failed = counts.get(Status.FAIL, 0)
    errors = counts.get(Status.ERROR, 0) + counts.get(Status.INCONCLUSIVE, 0)
    skipped = len(report.results) - counts.get(Status.PASS, 0) - failed - errors
    numbers = {
        "tests": str(len(report.results)),
        "failures": str(failed),
        "errors": str(errors),
        "skipped": str(skipped),
        "time": f"{report.seconds:.3f}",
    }
    root = Element("testsuites", numbers)
    suite = SubElement(root, "testsuite", {"name": "dagonizer-conformance", **numbers, "timestamp": report.started})
    properties = SubElement(suite, "properties")
    for name, value in _properties(report).items():
        SubElement(properties, "property", {"name": name, "value": value})
    for result in report.results:
        _add_case(suite, result)
    indent(root)
    # tostring would name the encoding of the locale in a declaration of its own.
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{tostring(root, encoding="unicode")}\n'


def _properties(report: Report) -> dict[str, str]:
    return {
        "store": report.store,
        "namespaces": report.namespaces,
        "levels": ", ".join(report.levels),
        "chips": ", ".join(report.chips),
        "conforms": str(report.conforms).lower(),
        "complete": str(report.complete).lower(),
        "seed": str(report.seed),
        "budget": report.budget,
        "kit": report.kit_version,
        "python": report.python,
    }


def _add_case(suite: Element, result: Result) -> None:
    case = SubElement(
        suite,
        "testcase",
        {"classname": result.group, "name": result.id, "time": f"{result.seconds:.3f}"},
    )
    if result.status == Status.PASS:
        return
    if result.status in {Status.FAIL, Status.ERROR, Status.INCONCLUSIVE}:
        tag = "failure" if result.status == Status.FAIL else "error"
        # The whole detail is in the text; the message is what build servers show in a list.
        first_line = result.detail.strip().partition("\n")[0]
        verdict = SubElement(case, tag, {"message": first_line or result.sentence, "type": str(result.status)})
        verdict.text = _explanation(result)
    else:
        SubElement(case, "skipped", {"message": f"{result.status}: {result.detail or result.sentence}"})


def _explanation(result: Result) -> str:
    parts = [result.sentence, result.detail]
    if result.timeline:
        parts.append("\n".join(history_lines(result.timeline)))
    if result.reproduction is not None:
        parts.append(f"Reproduce:\n{result.reproduction}")
    return "\n\n".join(part for part in parts if part)
