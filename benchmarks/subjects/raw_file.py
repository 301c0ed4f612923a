"""Files written by one function in a thread: new file, fsync, rename, fsync of the directory."""

from __future__ import annotations

import asyncio
import os
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from worker import serve

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class RawFile:
    """A file for each key, which must be a good file name."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def save(self, key: str, text: str) -> None:
        """Replace the file, durably."""
        await asyncio.to_thread(self._write, key, text)

    async def load(self, key: str) -> str | None:
        """Read the file."""
        return await asyncio.to_thread((self._directory / key).read_text, encoding="utf-8")

    def _write(self, key: str, text: str) -> None:
        path = self._directory / key
        temp = path.with_suffix(".tmp")
        with temp.open("wb") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        temp.replace(path)
        fd = os.open(self._directory, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[RawFile]:
    """Use the directory of ``file:///DIRECTORY``."""
    directory = Path(urlsplit(url).path) / "raw"
    directory.mkdir(parents=True, exist_ok=True)
    yield RawFile(directory)


if __name__ == "__main__":
    serve(opened)
