"""The store: a directory, one file a key.

A file holds one line of JSON that says whose value it is, and then the value's UTF-8 bytes, untouched. Writers put a
new file beside the old one and rename it over, under a lock of the directory, which saves and deletions share, for each
is a single step, and comparing or listing excludes; readers need none. The new file is itself locked for as long as its
save goes on, so that a later save can tell, and remove, those of processes that died.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import stat
import sys
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from errno import ENOTDIR
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import aiofiles.os
import filelock
import msgspec
import xxhash

from dagonizer.contracts import VersionedJson
from dagonizer.errors import (
    InvalidKeyError,
    StoreClosedError,
    StoreConflictError,
    StoreCorruptedError,
    StoreUnavailableError,
)
from dagonizer.keys import key_bytes, prefix_bytes, value_bytes, value_text
from dagonizer_file._config import FileConfig
from dagonizer_file._errors import translated

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator
    from types import TracebackType
    from typing import Self

_LOCK_NAME = ".lock"
_ENTRY_NAME = re.compile(r"ckpt-[a-z0-9_-]{1,40}\.([0-9a-f]{64})\.json")
_TEMP_NAME = re.compile(r"\.[0-9a-f]{64}\.[0-9a-f]{16}\.tmp")
_UNSAFE = re.compile(r"[^a-z0-9_-]", re.DOTALL)
_SLUG_CHARACTERS = 40

# The longest header is a key of 1,024 control characters, each six bytes as JSON, and some 200 bytes beside it.
_MAX_HEADER_BYTES = 8192
# What is read or written with the header; more would be copied once more for it.
_AT_ONCE = 65536
_PAGE = 256

# A store's first save sweeps, and then one an hour: it looks at every name in the directory.
_SWEEP_INTERVAL = 3600.0
# Where files cannot be locked, a save is taken for dead once its file is so old.
_LEFTOVER_AGE = 3600.0

_FLAGS = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)


class _Header(msgspec.Struct, frozen=True):
    """The first line of a file."""

    format: Literal["dagonizer-file/1"]
    key: str
    revision: str
    xxh3_128: str


class _Permit:
    """Leave for one thread to make one visible change, until its awaiting task withdraws it.

    A cancelled task cannot stop its thread. Without this, the thread could rename its file over one that a later save
    has put there.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._withdrawn = False

    def withdraw(self) -> None:
        with self._lock:
            self._withdrawn = True

    def is_withdrawn(self) -> bool:
        return self._withdrawn

    def use(self, change: Callable[[], object]) -> None:
        with self._lock:
            if self._withdrawn:
                raise StoreUnavailableError("cancelled before anything was changed")
            change()


class FileCheckpointStore:
    """A store in a directory, which any number of processes on one machine may share.

    ``config`` is a ``FileConfig``, or just the directory. It keeps the whole contract, and lists keys and
    compares-and-swaps. Making a store does no I/O; the directory is made on the first save. Each operation is one call
    in the event loop's default executor, a listing one and one more for every 256 files.

    Errors, besides those of ``dagonizer.keys``: ``StoreAccessError``, ``StoreLimitError``, ``StoreUnavailableError``,
    ``StoreCorruptedError``, ``StoreClosedError``.
    """

    def __init__(self, config: FileConfig | str | os.PathLike[str]) -> None:
        if not isinstance(config, FileConfig):
            if not os.fspath(config):
                raise ValueError("the directory must not be empty; write '.' for the current one")
            config = FileConfig(root=Path(config))
        self._config = config
        # A later chdir must not move the store.
        self._root = config.root.absolute()
        self._closed = False
        self._next_sweep = float("-inf")

    async def save(self, key: str, json: str) -> None:
        """Put ``json`` under ``key``, replacing what is there, a corrupted entry too."""
        self._check_open()
        await self._save(key, json, None)

    async def load(self, key: str) -> str | None:
        """Return the text under ``key``, or None. Raises ``StoreCorruptedError`` if it is not what was saved."""
        entry = await self.load_versioned(key)
        return None if entry is None else entry.json

    async def delete(self, key: str) -> None:
        """Remove the entry under ``key``, if there is one, a corrupted one too."""
        self._check_open()
        name = _entry_name(key)
        permit = _Permit()
        try:
            await aiofiles.os.wrap(self._delete_now)(name, permit)
        finally:
            permit.withdraw()

    async def load_versioned(self, key: str) -> VersionedJson | None:
        """Return the text under ``key`` with its version, or None. Raises ``StoreCorruptedError`` like ``load``."""
        self._check_open()
        name = _entry_name(key)
        entry: VersionedJson | None = await aiofiles.os.wrap(self._load_now)(key, name)
        return entry

    async def save_if(self, key: str, json: str, *, expected: str | None) -> str:
        """Save if the entry has the version ``expected`` (None: no entry), and return its new version.

        Raises ``StoreConflictError``, or ``StoreCorruptedError`` if the present entry does not tell its version.
        """
        self._check_open()

        def compare(path: Path) -> None:
            current = _read_header(path)
            if (None if current is None else current.revision) != expected:
                raise StoreConflictError(f"the entry under {key!r} is not at version {expected!r}; load it again")

        return await self._save(key, json, compare)

    async def list_keys(self, prefix: str = "") -> AsyncIterator[str]:
        """Yield every key that starts with ``prefix``.

        Files that are not the store's are passed over. Raises ``StoreCorruptedError`` at a file of the store's whose
        key cannot be read.
        """
        self._check_open()
        prefix_bytes(prefix)
        permit = _Permit()
        try:
            names: list[str] = await aiofiles.os.wrap(self._names_now)(permit)
        finally:
            permit.withdraw()
        for start in range(0, len(names), _PAGE):
            keys: list[str] = await aiofiles.os.wrap(self._keys_now)(names[start : start + _PAGE])
            for key in keys:
                if key.startswith(prefix):
                    yield key
                    self._check_open()

    async def aclose(self) -> None:
        """Close this store. Nothing is held open between calls, so this only makes later calls raise."""
        self._closed = True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None, /
    ) -> None:
        await self.aclose()

    def _check_open(self) -> None:
        if self._closed:
            raise StoreClosedError("this FileCheckpointStore is closed")

    async def _save(self, key: str, json: str, compare: Callable[[Path], None] | None) -> str:
        name = _entry_name(key)
        permit = _Permit()
        try:
            revision: str = await aiofiles.os.wrap(self._save_now)(key, name, json, compare, permit)
        finally:
            permit.withdraw()
        return revision

    # What follows runs in a thread.

    def _save_now(self, key: str, name: str, json: str, compare: Callable[[Path], None] | None, permit: _Permit) -> str:
        # Here and not in the coroutine: encoding and hashing 64 MiB would hold up the event loop.
        value = value_bytes(json)
        header = _Header("dagonizer-file/1", key, secrets.token_hex(16), xxhash.xxh3_128_hexdigest(value))
        path = self._root / name
        with translated(f"save {name}", self._root):
            with (
                self._written(name, msgspec.json.encode(header) + b"\n", value) as temp,
                self._locked(permit, shared=compare is None),
            ):
                if compare is not None:
                    compare(path)
                permit.use(lambda: temp.replace(path))
            self._sync_directory(self._root)
        return header.revision

    def _delete_now(self, name: str, permit: _Permit) -> None:
        path = self._root / name
        with translated(f"delete {name}", self._root):
            if not self._exists():
                return

            with self._locked(permit, shared=True):
                permit.use(lambda: path.unlink(missing_ok=True))
            # Even when there was nothing: an earlier deletion, cancelled, may have left before this.
            self._sync_directory(self._root)

    def _load_now(self, key: str, name: str) -> VersionedJson | None:
        path = self._root / name
        with translated(f"load {name}", self._root):
            parts = _read(path)
            if parts is None:
                return None
            line, value = parts
            header = _parse_header(line, path)
        if xxhash.xxh3_128_hexdigest(value) != header.xxh3_128:
            raise _corrupted(path, "its value is not the one that was saved (XXH3 differs)")
        return VersionedJson(value_text(value, key=key), header.revision)

    def _names_now(self, permit: _Permit) -> list[str]:
        with translated("list keys", self._root):
            if not self._exists():
                return []
            # A rename in the middle of a listing could show an entry twice or not at all.
            with self._locked(permit, shared=False):
                names = [path.name for path in self._root.iterdir()]
        return [name for name in names if _ENTRY_NAME.fullmatch(name)]

    def _keys_now(self, names: Iterable[str]) -> list[str]:
        with translated("list keys", self._root):
            headers = [_read_header(self._root / name) for name in names]
        return [header.key for header in headers if header is not None]

    @contextmanager
    def _written(self, name: str, header: bytes, value: bytes) -> Iterator[Path]:
        """Yield a new file with ``header`` and ``value``, which no sweep takes before the block ends, which renames it.

        If the block fails, the file is removed.
        """
        temp, fd = self._create(name)
        with ExitStack() as claim:
            claim.callback(os.close, fd)
            try:
                self._sweep(temp)
                for part in (header + value,) if len(value) < _AT_ONCE else (header, value):
                    _write(fd, part)
                if self._config.fsync:
                    os.fsync(fd)
                if sys.platform == "win32":
                    # There a file that is open can be neither renamed nor locked.
                    claim.close()
                elif not self._config.fsync:
                    # What was not flushed is seen by other hosts, on NFS, once it is closed. A copy keeps the lock.
                    copy = os.dup(fd)
                    claim.close()
                    claim.callback(os.close, copy)
                yield temp
            except BaseException:
                # Also gone when the sweep of another store took it; the first error is the one to tell.
                with suppress(OSError):
                    temp.unlink()
                raise

    def _create(self, name: str) -> tuple[Path, int]:
        while True:
            temp = self._root / f".{name.split('.')[1]}.{secrets.token_hex(8)}.tmp"
            fd = self._open_new(temp)
            # A sweep may have come before the lock.
            if _lock(fd) is not False and os.fstat(fd).st_nlink:
                return temp, fd
            os.close(fd)
            temp.unlink(missing_ok=True)

    def _open_new(self, temp: Path) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS
        try:
            return os.open(temp, flags, 0o600)
        except FileNotFoundError:
            self._make_root()
            return os.open(temp, flags, 0o600)

    def _make_root(self) -> None:
        missing = []
        directory = self._root
        while not directory.exists():
            missing.append(directory)
            directory = directory.parent
        for directory in reversed(missing):
            directory.mkdir(0o700, exist_ok=True)
            # Also when another process made it: that one may not have got this far.
            self._sync_directory(directory.parent)

    def _exists(self) -> bool:
        try:
            mode = self._root.stat().st_mode
        except FileNotFoundError:
            return False
        if not stat.S_ISDIR(mode):
            raise NotADirectoryError(ENOTDIR, os.strerror(ENOTDIR), str(self._root))
        return True

    @contextmanager
    def _locked(self, permit: _Permit, *, shared: bool) -> Iterator[None]:
        fd = self._locked_at_once(shared=shared)
        if fd is not None:
            try:
                yield
            finally:
                os.close(fd)
            return
        # A new lock each time, for one instance does not exclude the threads that share it. Never a soft lock: a
        # process that dies would hold it for ever.
        lock = filelock.FileLock(
            self._root / _LOCK_NAME,
            timeout=self._config.timeout,
            mode=0o600,
            poll_interval=0.001,
            fallback_to_soft=False,
        )
        with lock.acquire(cancel_check=permit.is_withdrawn):
            yield

    def _locked_at_once(self, *, shared: bool) -> int | None:
        """Return the open lock file, locked as filelock locks it, or None: then it is for filelock to wait or fail."""
        if sys.platform == "win32":
            return None
        try:
            fd = os.open(self._root / _LOCK_NAME, os.O_RDWR | os.O_CREAT | _FLAGS, 0o600)
        except OSError:
            return None
        if _lock(fd, shared=shared):
            return fd
        os.close(fd)
        return None

    def _sync_directory(self, directory: Path) -> None:
        # Windows cannot open a directory.
        if not self._config.fsync or os.name == "nt":
            return
        fd = os.open(directory, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def _sweep(self, mine: Path) -> None:
        """Remove the temporary files of saves that died. ``mine`` is a new one, and knows the file system's time."""
        if time.monotonic() < self._next_sweep:
            return
        self._next_sweep = time.monotonic() + _SWEEP_INTERVAL
        now = mine.lstat().st_mtime
        with os.scandir(self._root) as entries:
            for entry in entries:
                if _TEMP_NAME.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                    # Its own save or another sweep was quicker, or it is another user's, or whatever else is the matter
                    # with a file that nobody needs: no reason to fail this save.
                    with suppress(OSError):
                        _remove_if_dead(Path(entry.path), now)


def _entry_name(key: str) -> str:
    # ASCII lower case only, since some file systems fold case or Unicode forms. The slug is for people; the hash tells
    # keys apart. The prefix is there because Windows keeps names such as con.json for devices.
    digest = hashlib.sha256(key_bytes(key)).hexdigest()
    return f"ckpt-{_UNSAFE.sub('-', key[:_SLUG_CHARACTERS])}.{digest}.json"


def _read(path: Path, *, whole: bool = True) -> tuple[bytes, bytes] | None:
    """Return a file's first line and, if the ``whole`` is wanted, what follows it; None if there is no file.

    Of a file without lines, it is as much as a header can have.
    """
    try:
        fd = os.open(path, os.O_RDONLY | _FLAGS)
    except FileNotFoundError:
        return None
    try:
        beginning = os.read(fd, _AT_ONCE)
        end = beginning.find(b"\n", 0, _MAX_HEADER_BYTES) + 1 or min(len(beginning), _MAX_HEADER_BYTES)
        if not whole or len(beginning) == os.fstat(fd).st_size:
            return beginning[:end], beginning[end:]
        os.lseek(fd, end, os.SEEK_SET)
        # Without a buffer, which would copy all of it once more.
        with open(fd, "rb", buffering=0, closefd=False) as file:
            return beginning[:end], file.readall()
    finally:
        os.close(fd)


def _lock(fd: int, *, shared: bool = False) -> bool | None:
    """Lock a file until all its descriptors are closed; return whether it was free, or None if it cannot be locked."""
    if sys.platform == "win32":
        return None
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _remove_if_dead(temp: Path, now: float) -> None:
    if sys.platform == "win32":
        if now - temp.lstat().st_mtime > _LEFTOVER_AGE:
            temp.unlink()
        return
    # For writing, without which NFS gives no exclusive lock.
    fd = os.open(temp, os.O_WRONLY | _FLAGS)
    try:
        locked = _lock(fd)
        if locked or (locked is None and now - os.fstat(fd).st_mtime > _LEFTOVER_AGE):
            temp.unlink()
    finally:
        os.close(fd)


def _write(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def _read_header(path: Path) -> _Header | None:
    parts = _read(path, whole=False)
    return None if parts is None else _parse_header(parts[0], path)


def _parse_header(line: bytes, path: Path) -> _Header:
    """Return the header in ``line``, whose key must be the one that ``path`` is named after."""
    if not line.endswith(b"\n"):
        raise _corrupted(path, "its first line is not complete")
    try:
        header = msgspec.json.decode(line, type=_Header)
        name = _entry_name(header.key)
    except (msgspec.DecodeError, UnicodeDecodeError, InvalidKeyError) as exc:
        raise _corrupted(path, f"its first line is not a dagonizer-file/1 header ({exc})") from exc
    if name != path.name:
        raise _corrupted(path, "its first line names a key that does not belong in this file")
    return header


def _corrupted(path: Path, reason: str) -> StoreCorruptedError:
    return StoreCorruptedError(
        f"{path} is corrupted: {reason}; restore the file from a backup, or save or delete its key to be rid of it"
    )
