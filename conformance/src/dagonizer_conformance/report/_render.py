"""Which function writes which format."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dagonizer_conformance.report._html import render_html
from dagonizer_conformance.report._json import render_json
from dagonizer_conformance.report._junit import render_junit
from dagonizer_conformance.report._markdown import render_markdown
from dagonizer_conformance.report._visible import made_visible

if TYPE_CHECKING:
    from collections.abc import Callable

    from dagonizer_conformance.results import Report

_RENDERERS: dict[str, Callable[[Report], str]] = {
    "json": render_json,
    "junit": render_junit,
    "markdown": render_markdown,
    "html": render_html,
}

FORMATS = tuple(_RENDERERS)
"""The formats that ``render`` knows."""


def render(report: Report, format: str) -> str:  # noqa: A002 - what the option of the command is called
    r"""Return ``report`` as the text of one file, in one of ``FORMATS``.

    The text can always be encoded as UTF-8: what a file of text cannot hold or hides, such as U+0000
    and lone surrogates, is written as ``\x00`` and ``\ud800``.

    Raises ``ValueError`` if ``format`` is not one of ``FORMATS``.
    """
    if format not in _RENDERERS:
        raise ValueError(f"no report format {format!r}; there are {', '.join(FORMATS)}")
    return _RENDERERS[format](made_visible(report))
