"""The names of objects: which key is where, and back.

A name is the prefix and one segment without a ``/``, out of characters that no server, proxy or file system treats
specially:

    <key>.json                    ordinary
    <beginning>.<SHA-256>.json    a key whose segment would be longer than a file name may be; its metadata tell the key

ASCII letters, digits and ``-`` stand for themselves, ``_`` is written ``__``, and each other byte of the key's UTF-8
``_hh``. No code is the beginning of another, so the code of a text is the beginning of another's only if the text is:
that is what lets the server do the listing by prefix. ``.`` is never among them, so the two forms never meet.

Apart from the store, for that this is right can be tried without one.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import secrets
from typing import TYPE_CHECKING

from dagonizer.errors import InvalidKeyError
from dagonizer.keys import key_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_NAME_BYTES = 1024
"""The longest name of an object in S3."""

MAX_SEGMENT = 255
"""The longest segment: servers that keep objects as files allow no more."""

PROBE = "dagonizer.probe"
"""A segment that no key has."""

_SUFFIX = ".json"
_MAX_CODE = MAX_SEGMENT - len(_SUFFIX)
_MAX_BEGINNING = _MAX_CODE - len(".") - hashlib.sha256().digest_size * 2

_ORDINARY = re.compile(r"([A-Za-z0-9_-]+)\.json")
_LONG = re.compile(r"[A-Za-z0-9_-]+\.[0-9a-f]{64}\.json")
_CODES = re.compile(r"[A-Za-z0-9-]|_(?:_|[0-9a-f]{2})")

_CODE = [f"_{byte:02x}" for byte in range(256)]
for _safe in b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-":
    _CODE[_safe] = chr(_safe)
_CODE[ord("_")] = "__"
_BYTE = {code: byte for byte, code in enumerate(_CODE)}

_METADATA = "key"


def new_probe() -> str:
    """Return a segment that no key has, and that nobody else knows."""
    return f"{PROBE}.{secrets.token_hex(8)}"


def segment_of(key: bytes) -> str:
    """Return the segment of the object that holds the UTF-8 ``key``."""
    code = _encoded(key)
    if len(code) <= _MAX_CODE:
        return code + _SUFFIX
    return f"{_beginning(code)}.{hashlib.sha256(key).hexdigest()}{_SUFFIX}"


def metadata_of(key: bytes) -> dict[str, str]:
    """Return the metadata that the object of ``key`` needs so that listings can tell the key."""
    if len(_encoded(key)) <= _MAX_CODE:
        return {}
    return {_METADATA: base64.urlsafe_b64encode(key).decode()}


def beginning_of(prefix: bytes) -> str:
    """Return the beginning that the segments of all keys that start with ``prefix`` have.

    Others may have it too, if ``prefix`` is so long that its code does not fit.
    """
    return _beginning(_encoded(prefix))


def key_in(segment: str) -> str | None:
    """Return the key whose ordinary segment this is, or None."""
    match = _ORDINARY.fullmatch(segment)
    if match is None:
        return None
    codes = _CODES.findall(match[1])
    if "".join(codes) != match[1] or any(code not in _BYTE for code in codes):
        return None
    return _key(bytes(_BYTE[code] for code in codes), segment)


def is_long(segment: str) -> bool:
    """Return whether this is the segment of a long key, which only the object's metadata tells."""
    return _LONG.fullmatch(segment) is not None


def key_of_long(segment: str, metadata: Mapping[str, str]) -> str | None:
    """Return the key of a long segment, or None if ``metadata`` does not tell it."""
    try:
        return _key(base64.b64decode(metadata.get(_METADATA, ""), altchars=b"-_", validate=True), segment)
    except binascii.Error:
        return None


def _key(encoded: bytes, segment: str) -> str | None:
    """Return the key if it is legal and really belongs to ``segment``."""
    try:
        key = encoded.decode()
        return key if segment_of(key_bytes(key)) == segment else None
    except (UnicodeDecodeError, InvalidKeyError):
        return None


def _encoded(text: bytes) -> str:
    return "".join(map(_CODE.__getitem__, text))


def _beginning(code: str) -> str:
    """Return the longest part of ``code`` that fits and does not end within the code of a byte."""
    if len(code) <= _MAX_BEGINNING:
        return code
    end = 0
    for match in _CODES.finditer(code):
        if match.end() > _MAX_BEGINNING:
            break
        end = match.end()
    return code[:end]
