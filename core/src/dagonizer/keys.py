"""The rules for keys and values, in one place for all stores.

Each function returns the UTF-8 form that most backends want, so that checking and encoding are one pass.
"""

from __future__ import annotations

from dagonizer.errors import InvalidKeyError, InvalidValueError, StoreCorruptedError

MAX_KEY_BYTES = 1024
"""The longest key, in UTF-8 bytes: the most that S3 allows for an object's name."""

_SHOWN_CHARACTERS = 60


def key_bytes(key: str) -> bytes:
    """Return ``key`` as UTF-8.

    Raises ``InvalidKeyError`` if it is not a string, empty, longer than ``MAX_KEY_BYTES``, or contains U+0000 or a
    lone surrogate.
    """
    if not isinstance(key, str):
        raise InvalidKeyError(f"a key must be a str, not {type(key).__name__}")
    if not key:
        raise InvalidKeyError("a key must not be empty")
    try:
        encoded = key.encode()
    except UnicodeEncodeError as exc:
        raise InvalidKeyError(f"key {_shown(key)} has a lone surrogate at index {exc.start}") from exc
    if len(encoded) > MAX_KEY_BYTES:
        raise InvalidKeyError(f"key {_shown(key)} has {len(encoded)} UTF-8 bytes, more than {MAX_KEY_BYTES}")
    if 0 in encoded:
        raise InvalidKeyError(f"key {_shown(key)} has U+0000 at index {key.index(chr(0))}")
    return encoded


def prefix_bytes(prefix: str) -> bytes:
    """Return the ``prefix`` of a listing as UTF-8. It may be empty; else the rules of ``key_bytes`` hold."""
    return b"" if prefix == "" else key_bytes(prefix)


def value_bytes(json: str) -> bytes:
    """Return the value ``json`` as UTF-8.

    Raises ``InvalidValueError`` if it is not a string, or contains U+0000 or a lone surrogate.
    """
    if not isinstance(json, str):
        raise InvalidValueError(f"a value must be a str, not {type(json).__name__}")
    if "\0" in json:
        raise InvalidValueError(f"the value has U+0000 at index {json.index(chr(0))}")
    try:
        return json.encode()
    except UnicodeEncodeError as exc:
        raise InvalidValueError(f"the value has a lone surrogate at index {exc.start}") from exc


def value_text(stored: bytes, *, key: str) -> str:
    """Return the bytes ``stored`` under ``key`` as the text that was saved.

    Raises ``StoreCorruptedError`` if no legal value can have been stored so.
    """
    if 0 in stored:
        raise StoreCorruptedError(f"what is stored under {_shown(key)} has a NUL byte at offset {stored.index(0)}")
    try:
        return stored.decode()
    except UnicodeDecodeError as exc:
        raise StoreCorruptedError(
            f"what is stored under {_shown(key)} is not UTF-8 text: {exc.reason} at byte {exc.start} of {len(stored)}"
        ) from exc


def _shown(key: str) -> str:
    return repr(key if len(key) <= _SHOWN_CHARACTERS else key[:_SHOWN_CHARACTERS] + "…")
