"""The report as JSON, for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from dagonizer_conformance.outcomes import TargetError
from dagonizer_conformance.results import Report

if TYPE_CHECKING:
    from pathlib import Path

FORMAT = "dagonizer-conformance/1"
"""Marks the shape of the document; the number rises when a reader of the old one would break."""


def render_json(report: Report) -> str:
    """Return ``report`` and all that follows from it as one JSON object, indented, members in a fixed order."""
    document = {
        "format": FORMAT,
        "conforms": report.conforms,
        "exit_code": report.exit_code,
        "levels": report.levels,
        "chips": report.chips,
        "counts": {str(status): n for status, n in report.counts().items()},
        **msgspec.to_builtins(report),
    }
    return msgspec.json.format(msgspec.json.encode(document), indent=2).decode() + "\n"


def read_json(file: Path) -> Report:
    """Return the report that ``render_json`` has written to ``file``. Raises ``TargetError`` if it holds none."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=Report)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise TargetError(f"{file} is not a report of --report json=FILE: {exc}") from exc
