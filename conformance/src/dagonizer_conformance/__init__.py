"""A conformance kit: it tells whether a checkpoint store keeps the contract."""

from dagonizer_conformance.case import Case, case
from dagonizer_conformance.harness import Deviation, Harness
from dagonizer_conformance.hookspecs import hookimpl
from dagonizer_conformance.outcomes import Inconclusive, TargetError, Unverified, Violation, expect, expect_text
from dagonizer_conformance.pytest_suite import suite
from dagonizer_conformance.results import Capability, Level, Report, Result, Status
from dagonizer_conformance.runner import run

__all__ = [
    "Capability",
    "Case",
    "Deviation",
    "Harness",
    "Inconclusive",
    "Level",
    "Report",
    "Result",
    "Status",
    "TargetError",
    "Unverified",
    "Violation",
    "case",
    "expect",
    "expect_text",
    "hookimpl",
    "run",
    "suite",
]
