"""Large values as Zstandard frames, for stores that hold bytes (RFC 8878).

A frame begins with bytes that no UTF-8 text begins with, so a store recognises it whatever its own configuration is,
and needs no mark of its own. ``zstandard`` is imported only when there is something to compress or to expand.
"""

from __future__ import annotations

import asyncio
from typing import Literal

from dagonizer.errors import StoreCorruptedError, StoreError

Compression = Literal["none", "zstd"]
"""Which values a store compresses: none, or all that are large."""

SUMMARY = 'none, or zstd for values from 4 KiB on (needs "dagonizer[zstd]")'
"""What a store's parameter of this type is described by."""

_MAGIC = b"\x28\xb5\x2f\xfd"
# Less is not worth it.
_LEAST_BYTES = 4096
# A text is allocated at once, as long as its frame says, and a damaged one may say anything.
_MOST_BYTES = 1 << 30
# Level 3, the library's default, takes half as long again, and JSON is no shorter for it.
_LEVEL = 1
# More would hold up the event loop for longer than a thread takes to start.
_LEAST_IN_THREAD = 1 << 17


def check_compression(compression: Compression) -> None:
    """Raise ``ValueError`` unless values can be compressed so."""
    if compression not in {"none", "zstd"}:
        raise ValueError(f"compression must be 'none' or 'zstd', not {compression!r}")
    if compression == "zstd":
        try:
            import zstandard  # noqa: F401, PLC0415 - see the module
        except ModuleNotFoundError as exc:
            raise ValueError(
                'compression=zstd needs a package that is not installed; run: pip install "dagonizer[zstd]"'
            ) from exc


def compress(value: bytes, compression: Compression) -> bytes:
    """Return ``value``, compressed if it is large enough and shorter so. ``value`` must be UTF-8."""
    if compression == "none" or not _LEAST_BYTES <= len(value) <= _MOST_BYTES:
        return value
    import zstandard  # noqa: PLC0415 - see the module

    frame = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).compress(value)
    return min(value, frame, key=len)


def expand(stored: bytes, *, key: str) -> bytes:
    """Return what was compressed as ``stored``, or ``stored`` itself if it is no frame.

    Raises ``StoreCorruptedError`` if the frame is damaged, and ``StoreError`` if ``zstandard`` is not installed.
    """
    return stored if _text_bytes(stored, key) is None else _expanded(stored, key)


async def compress_aside(value: bytes, compression: Compression) -> bytes:
    """Do as ``compress``, without holding up the event loop for large values."""
    if compression == "none" or len(value) < _LEAST_IN_THREAD:
        return compress(value, compression)
    return await asyncio.to_thread(compress, value, compression)


async def expand_aside(stored: bytes, *, key: str) -> bytes:
    """Do as ``expand``, without holding up the event loop for large values."""
    size = _text_bytes(stored, key)
    if size is None or size < _LEAST_IN_THREAD:
        return expand(stored, key=key)
    return await asyncio.to_thread(_expanded, stored, key)


def _text_bytes(stored: bytes, key: str) -> int | None:
    """Return how long the text of a frame is, or None if ``stored`` is no frame."""
    if not stored.startswith(_MAGIC):
        return None
    try:
        import zstandard  # noqa: PLC0415 - see the module
    except ModuleNotFoundError as exc:
        raise StoreError(
            f"what is stored under {key!r} is compressed, which needs a package that is not installed; "
            'run: pip install "dagonizer[zstd]"'
        ) from exc
    try:
        # Unknown is -1; what was compressed here says it.
        size = zstandard.frame_content_size(stored)
    except zstandard.ZstdError as exc:
        raise _damaged(key, str(exc)) from exc
    if not 0 <= size <= _MOST_BYTES:
        raise _damaged(key, f"its text is said to have {size} bytes")
    return size


def _expanded(frame: bytes, key: str) -> bytes:
    import zstandard  # noqa: PLC0415 - see the module

    try:
        return zstandard.ZstdDecompressor().decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as exc:
        raise _damaged(key, str(exc)) from exc


def _damaged(key: str, reason: str) -> StoreCorruptedError:
    return StoreCorruptedError(
        f"what is stored under {key!r} is corrupted: its Zstandard frame is damaged ({reason}); restore it from a "
        "backup, or save or delete the key"
    )
