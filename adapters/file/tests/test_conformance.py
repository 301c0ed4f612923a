"""The conformance kit on the file store, with hooks for all that it can ask."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path
from urllib.parse import quote

from dagonizer_conformance import Harness, suite
from dagonizer_file import FileCheckpointStore


class FileHarness(Harness):
    """A temporary directory, in which each namespace has a directory of its own."""

    def __init__(self) -> None:
        self.root = Path()

    async def start(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="dgzconf-file-")) / "stores"
        self.root.mkdir()

    async def stop(self) -> None:
        left = list(self.root.rglob("ckpt-*"))
        shutil.rmtree(self.root.parent)
        assert left == []

    async def open(self, namespace: str) -> FileCheckpointStore:
        return FileCheckpointStore(self.directory(namespace))

    def address(self) -> str:
        return f"file://{self.root}/{{namespace}}"

    async def kill(self) -> None:
        """Do nothing: a directory has no process, and the kit itself kills the processes that use it."""

    async def down(self) -> None:
        self.root.rename(self._away)
        self.root.write_text("in the way")

    async def up(self) -> None:
        if self._away.exists():
            self.root.unlink()
            self._away.rename(self.root)

    async def peek(self, namespace: str, key: str) -> str | None:
        file = self._file(namespace, key)
        return None if file is None else _split(file)[1].decode(errors="surrogateescape")

    async def poke(self, namespace: str, key: str, text: str) -> None:
        file = self._file(namespace, key)
        assert file is not None, "there must be an entry to change"
        header, _ = _split(file)
        file.write_bytes(header + b"\n" + text.encode(errors="surrogateescape"))

    def describe_namespaces(self) -> str:
        return "directories"

    def directory(self, namespace: str) -> Path:
        return self.root / quote(namespace, safe="")

    @property
    def _away(self) -> Path:
        return self.root.with_name("away")

    def _file(self, namespace: str, key: str) -> Path | None:
        files = list(self.directory(namespace).glob(f"ckpt-*.{hashlib.sha256(key.encode()).hexdigest()}.json"))
        assert len(files) <= 1, files
        return files[0] if files else None


def _split(file: Path) -> tuple[bytes, bytes]:
    header, _, value = file.read_bytes().partition(b"\n")
    return header, value


TestFile = suite(FileHarness(), require="CRASH-SAFE", budget="smoke")
