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
# To compress more at once would hold up the event loop.
_STEP = 1 << 20


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
    """Return ``value``, compressed if it has 4 KiB to 1 GiB and is shorter so. ``value`` must be UTF-8.

    Raises ``ModuleNotFoundError`` where ``zstandard`` is not installed, which ``check_compression`` tells before.
    """
    if compression == "none" or not _LEAST_BYTES <= len(value) <= _MOST_BYTES:
        return value
    import zstandard  # noqa: PLC0415 - see the module

    return _shorter(value, zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).compress(value))


async def compress_in_steps(value: bytes, compression: Compression) -> bytes:
    """Do as ``compress``, and let other tasks of the event loop go on meanwhile.

    Not in a thread, of which the caller may have none free.
    """
    if compression == "none" or not _STEP < len(value) <= _MOST_BYTES:
        return compress(value, compression)
    import zstandard  # noqa: PLC0415 - see the module

    compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).compressobj(size=len(value))
    view, parts = memoryview(value), []
    for start in range(0, len(value), _STEP):
        parts.append(compressor.compress(view[start : start + _STEP]))
        await asyncio.sleep(0)
    return _shorter(value, b"".join([*parts, compressor.flush()]))


def expand(stored: bytes, *, key: str) -> bytes:
    """Return what was compressed as ``stored``, or ``stored`` itself if it is no frame.

    Raises ``StoreCorruptedError`` if the frame is damaged, and ``StoreError`` if ``zstandard`` is not installed.
    """
    if not stored.startswith(_MAGIC):
        return stored
    try:
        import zstandard  # noqa: PLC0415 - see the module
    except ModuleNotFoundError as exc:
        raise StoreError(
            f"what is stored under {key!r} is compressed, which needs a package that is not installed; "
            'run: pip install "dagonizer[zstd]"'
        ) from exc
    try:
        # Unknown is -1; what was compressed here says it. And for 0 the library looks at nothing else.
        size = zstandard.frame_content_size(stored)
        if not _LEAST_BYTES <= size <= _MOST_BYTES:
            raise _damaged(key, f"its text is said to have {size} bytes")
        return zstandard.ZstdDecompressor().decompress(stored, allow_extra_data=False)
    except zstandard.ZstdError as exc:
        raise _damaged(key, str(exc)) from exc


def _shorter(value: bytes, frame: bytes) -> bytes:
    return min(value, frame, key=len)


def _damaged(key: str, reason: str) -> StoreCorruptedError:
    return StoreCorruptedError(
        f"what is stored under {key!r} is corrupted: its Zstandard frame is damaged ({reason}); restore it from a "
        "backup, or save or delete the key"
    )
