"""Characters that a report cannot hold, or that nobody would see in it."""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec

S = TypeVar("S", bound=msgspec.Struct)

# Controls but for tab and line feed, the marks that turn the direction of what follows, lone surrogates and
# the two noncharacters that XML forbids. A terminal would obey some, XML refuses some, UTF-8 cannot encode some.
_HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


def visible(text: str) -> str:
    r"""Return ``text`` with each character that some reader hides or forbids written as ``\x00`` or ``\ud800``."""
    return _HIDDEN.sub(_escaped, text)


def on_one_line(text: str) -> str:
    r"""Return ``text`` with its line feeds and tabs written as ``\n`` and ``\t``."""
    return text.replace("\n", "\\n").replace("\t", "\\t")


def made_visible(struct: S) -> S:
    """Return ``struct`` with ``visible`` applied to every string in it, at any depth.

    It is done once, before a report is written, so that no part of a renderer can forget it.
    """
    return msgspec.convert(_in_all_strings(msgspec.to_builtins(struct)), type(struct))


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code <= 0xFF else f"\\u{code:04x}"  # noqa: PLR2004 - what two hex digits can say


def _in_all_strings(value: Any) -> Any:  # noqa: ANN401 - any value that msgspec makes of a struct
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, list | tuple):
        return [_in_all_strings(item) for item in value]
    if isinstance(value, dict):
        return {key: _in_all_strings(item) for key, item in value.items()}
    return value
