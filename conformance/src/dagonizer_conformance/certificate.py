"""Values that certify themselves: whatever a load returns says whose it is, and whether it is whole.

A certified value is a JSON document that names its namespace, key, writer and number, is filled up to a size with
characters of one to four UTF-8 bytes, and ends in the SHA-256 of all that stands before.
"""

from __future__ import annotations

import hashlib
import re
from typing import NamedTuple

import msgspec

CERTIFIED = '{"certificate":'
"""How a certified value begins."""

_TAIL = re.compile(r',"sha256":"([0-9a-f]{64})"\}\Z')
_TAIL_BYTES = len(',"sha256":"') + 64 + len('"}')
_PADDING = "padding é漢😀 ß€ "
_BLOCK = 64
_SHOWN = 24


class Certificate(NamedTuple):
    """What a certified value says of itself."""

    namespace: str
    key: str
    writer: str
    number: int

    def __str__(self) -> str:
        return f"{self.writer} #{self.number}"


class _Head(msgspec.Struct):
    certificate: Certificate
    padding: str
    sha256: str


def certify(certificate: Certificate, size: int = 0) -> str:
    """Return a certified value of ``size`` UTF-8 bytes, or of as few as it needs (about 250) if that is more."""
    head = f'{{"certificate":{msgspec.json.encode(certificate).decode()},"padding":"'
    missing = size - len(head.encode()) - 1 - _TAIL_BYTES
    body = f'{head}{_padding(missing, str(certificate))}"'
    return f'{body},"sha256":"{_digest(body)}"}}'


def read_certificate(text: str) -> Certificate:
    """Return what ``text`` says of itself. Raises ``ValueError``, whose message says how it is damaged."""
    tail = _TAIL.search(text)
    if not text.startswith(CERTIFIED):
        raise ValueError("is not a value of this run, or its beginning is missing")
    if tail is None:
        raise ValueError(f"is cut off or overwritten at its end ({_writer(text)}, {len(text):,} characters)")
    if tail[1] != _digest(text[: tail.start()]):
        raise ValueError(f"is torn or mixed: its checksum is not that of its text ({_writer(text)})")
    return msgspec.json.decode(text, type=_Head).certificate


def label(text: str | None) -> str:
    """Return a short name for what a load returned: ``writer 2 #17``, ``None``, or the beginning of the text."""
    if text is None:
        return "None"
    try:
        return str(read_certificate(text))
    except ValueError:
        beginning = ascii(text[:_SHOWN])
        return beginning if len(text) <= _SHOWN else f"{beginning}… {_digest(text)[:6]}"


def _padding(missing: int, seed: str) -> str:
    if missing <= 0:
        return ""
    # Each block tells its place, so that a value with two blocks exchanged is another text.
    blocks = missing // _BLOCK
    filled = "".join(f"{i:08x} {seed:.12}{_PADDING}" for i in range(blocks)) if blocks else ""
    encoded = filled.encode()[:missing]
    kept = encoded.decode(errors="ignore")
    return kept + "." * (missing - len(kept.encode()))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def _writer(text: str) -> str:
    match = re.match(r'\{"certificate":\["[^"]*","(?:[^"\\]|\\.)*","([^"]*)",([0-9]+)\]', text)
    return f"it begins as {match[1]} #{match[2]}" if match else "its beginning is damaged too"
