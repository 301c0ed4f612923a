"""A small file system in memory, which can be full or read-only."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from errno import ENOSPC
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from dagonizer_test_servers import NoServerError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

_NOBODY = 65534
_IS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0
_PIECE = 4096


class Volume:
    """A tmpfs that everybody may write to. ``options`` are its own, such as ``size=1m``.

    Raises ``NoServerError`` where this process may not mount one.
    """

    def __init__(self, options: str) -> None:
        self._options = options
        self.path = Path(tempfile.mkdtemp(prefix="dgz-volume-"))
        try:
            _mount("-t", "tmpfs", "-o", f"nosuid,nodev,mode=1777,{options}", "none", str(self.path))
        except BaseException:
            self.path.rmdir()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # Lazily, for a server that failed to stop may still have a file open.
        subprocess.run(["umount", "--lazy", str(self.path)], check=True)
        self.path.rmdir()

    @contextmanager
    def full(self, *, leave: int = 0) -> Iterator[None]:
        """Leave ``leave`` bytes free, in whole pages."""
        filler = self.path / "filler"
        try:
            with filler.open("wb", buffering=0) as file:
                with no_space():
                    while True:
                        file.write(bytes(_PIECE))
                file.truncate(max(0, file.tell() - leave))
            yield
        finally:
            filler.unlink(missing_ok=True)

    @contextmanager
    def without_inodes(self) -> Iterator[None]:
        """Let no file more be made."""
        folder = self.path / "fillers"
        folder.mkdir()
        number = 0
        try:
            with no_space():
                while True:
                    (folder / str(number)).touch()
                    number += 1
            yield
        finally:
            shutil.rmtree(folder)

    @contextmanager
    def read_only(self) -> Iterator[None]:
        """Let nothing be written."""
        self._remount("ro")
        try:
            yield
        finally:
            self._remount("rw")

    def _remount(self, how: str) -> None:
        _mount("-o", f"remount,nosuid,nodev,{how},{self._options}", str(self.path))


def _mount(*arguments: str) -> None:
    program = shutil.which("mount")
    if not _IS_ROOT or program is None:
        raise NoServerError("only root can mount a small file system, with the command mount")
    done = subprocess.run([program, *arguments], check=False, capture_output=True, text=True)
    if done.returncode:
        raise NoServerError(f"a small file system cannot be mounted: {done.stderr.strip()}")


@contextmanager
def small_volume(options: str) -> Iterator[Volume]:
    """Give a ``Volume``; where none can be had the test is skipped, and fails in CI."""
    try:
        volume = Volume(options)
    except NoServerError as exc:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"{exc}; set CI=true to make this a failure")
    with volume:
        yield volume


@contextmanager
def no_space() -> Iterator[None]:
    """Go on when there is no space."""
    try:
        yield
    except OSError as exc:
        if exc.errno != ENOSPC:
            raise


@contextmanager
def account_without_privileges() -> Iterator[None]:
    """Be somebody for whom modes of files hold, in all threads of this process."""
    if not _IS_ROOT:
        yield
        return
    os.seteuid(_NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def give_away(path: Path) -> None:
    """Give ``path`` to the account without privileges."""
    if _IS_ROOT:
        os.chown(path, _NOBODY, _NOBODY)
