"""What tests of the doctor expect of its findings."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dagonizer.diagnosis import Finding


def expect(found: dict[str, Finding], check: str, verdict: str, *said: str) -> str:
    """Return the remedy of a finding that is as it should be."""
    finding = found[check]
    assert finding.verdict == verdict, finding
    for text in said:
        assert text in finding.message, finding
    assert (finding.remedy is None) == (verdict == "good") or verdict == "note", finding
    return finding.remedy or ""


def trouble(found: dict[str, Finding]) -> dict[str, Finding]:
    """Return the findings that are warnings or worse."""
    return {check: finding for check, finding in found.items() if finding.verdict in {"warning", "bad"}}
