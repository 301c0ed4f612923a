"""Files written with aiofiles as its examples do it, where every call is a hop to a thread."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import aiofiles
import aiofiles.os
from worker import serve

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_fsync = aiofiles.os.wrap(os.fsync)


class AiofilesFile:
    """A file for each key, which must be a good file name."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def save(self, key: str, text: str) -> None:
        """Replace the file; the directory is not flushed."""
        path = self._directory / key
        temp = path.with_suffix(".tmp")
        async with aiofiles.open(temp, "w", encoding="utf-8") as file:
            await file.write(text)
            await file.flush()
            await _fsync(file.fileno())
        await aiofiles.os.replace(temp, path)

    async def load(self, key: str) -> str | None:
        """Read the file."""
        async with aiofiles.open(self._directory / key, encoding="utf-8") as file:
            text: str = await file.read()
        return text


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[AiofilesFile]:
    """Use the directory of ``file:///DIRECTORY``."""
    directory = Path(urlsplit(url).path) / "aiofiles"
    directory.mkdir(parents=True, exist_ok=True)
    yield AiofilesFile(directory)


if __name__ == "__main__":
    serve(opened)
