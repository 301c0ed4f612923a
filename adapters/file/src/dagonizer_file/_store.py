"""The store: a directory, one file a key.

A file holds one line of JSON that says whose value it is, and then the value's UTF-8 bytes, untouched or as a Zstandard
frame; the hash in the line is of what follows it. Writers put a new file beside the old one and rename it over, under a
lock of the directory, which saves and deletions share, for each is a single step, and comparing or listing excludes;
readers need none. The new file is itself locked for as long as its save goes on, so that a later save can tell, and
remove, those of processes that died.
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
from contextlib import suppress
from errno import ENOTDIR
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import aiofiles.os
import filelock
import msgspec
import xxhash

from dagonizer.compression import compress, expand
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
from dagonizer_file._errors import store_error

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from types import TracebackType
    from typing import Self

_LOCK_NAME = ".lock"
_ENTRY_NAME = re.compile(r"ckpt-[a-z0-9_-]{1,40}\.([0-9a-f]{64})\.json")
_TEMP_NAME = re.compile(r"\.[0-9a-f]{64}\.[0-9a-f]{16}\.tmp")
_UNSAFE = re.compile(r"[^a-z0-9_-]", re.DOTALL)
_SLUG_CHARACTERS = 40

# The longest header is a key of 1,024 control characters, each six bytes as JSON, and some 200 bytes beside it.
_MAX_HEADER_BYTES = 8192
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

    def use(self, change: Callable[..., object], *paths: str) -> None:
        with self._lock:
            if self._withdrawn:
                raise StoreUnavailableError("cancelled before anything was changed")
            change(*paths)


class FileCheckpointStore:
    """A store in a directory, which any number of processes on one machine may share.

    ``config`` is a ``FileConfig``, or just the directory. It keeps the whole contract, and lists keys and
    compares-and-swaps. Making a store does no I/O; the directory is made on the first save. Each operation is one call
    in the event loop's default executor, a listing one and one more for every 256 files.

    Errors, besides those of ``dagonizer.keys``: ``StoreAccessError``, ``StoreLimitError``, ``StoreUnavailableError``,
    ``StoreConflictError``, ``StoreCorruptedError``, ``StoreClosedError``, and ``StoreError`` for a compressed value
    where ``zstandard`` is not installed.
    """

    def __init__(self, config: FileConfig | str | os.PathLike[str]) -> None:
        if not isinstance(config, FileConfig):
            if not os.fspath(config):
                raise ValueError("the directory must not be empty; write '.' for the current one")
            config = FileConfig(root=Path(config))
        self._config = config
        # A later chdir must not move the store.
        self._root = str(config.root.absolute())
        self._prefix = os.path.join(self._root, "")
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
            await self._delete_now(name, permit)
        finally:
            permit.withdraw()

    async def load_versioned(self, key: str) -> VersionedJson | None:
        """Return the text under ``key`` with its version, or None. Raises ``StoreCorruptedError`` like ``load``."""
        self._check_open()
        name = _entry_name(key)
        return await self._load_now(key, name)

    async def save_if(self, key: str, json: str, *, expected: str | None) -> str:
        """Save if the entry has the version ``expected`` (None: no entry), and return its new version.

        Raises ``StoreConflictError``, or ``StoreCorruptedError`` if the present entry does not tell its version.
        """
        self._check_open()

        def compare(path: str) -> None:
            current = _read_header(path)
            if current is not None and current.key != key:
                raise _misplaced(path)
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
            names = await self._names_now(permit)
        finally:
            permit.withdraw()
        for start in range(0, len(names), _PAGE):
            for key in await self._keys_now(names[start : start + _PAGE]):
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

    async def _save(self, key: str, json: str, compare: Callable[[str], None] | None) -> str:
        name = _entry_name(key)
        permit = _Permit()
        try:
            return await self._save_now(key, name, json, compare, permit)
        finally:
            permit.withdraw()

    # What follows runs in a thread.

    @aiofiles.os.wrap
    def _save_now(self, key: str, name: str, json: str, compare: Callable[[str], None] | None, permit: _Permit) -> str:
        # Here and not in the coroutine: encoding and hashing 64 MiB would hold up the event loop.
        value = compress(value_bytes(json), self._config.compression)
        header = _Header("dagonizer-file/1", key, secrets.token_hex(16), xxhash.xxh3_128_hexdigest(value))
        try:
            temp, fd = self._create(name)
            try:
                self._sweep(temp)
                self._write(fd, msgspec.json.encode(header) + b"\n", value)
                if sys.platform == "win32":
                    # There a file that is open can be neither renamed nor locked.
                    os.close(fd)
                    fd = -1
                self._replace(temp, self._prefix + name, compare, permit)
            except BaseException:
                if sys.platform == "win32" and fd >= 0:
                    os.close(fd)
                    fd = -1
                # Also gone when the sweep of another store took it; the first error is the one to tell.
                with suppress(OSError):
                    os.unlink(temp)
                raise
            finally:
                # Not before the rename: no sweep takes a file that is locked.
                if fd >= 0:
                    os.close(fd)
            self._sync_directory(self._root)
        except OSError as exc:
            raise store_error(exc, f"save {name}", self._root) from exc
        return header.revision

    @aiofiles.os.wrap
    def _delete_now(self, name: str, permit: _Permit) -> None:
        try:
            if not self._exists():
                return
            release = self._lock_directory(permit, shared=True)
            try:
                with suppress(FileNotFoundError):
                    permit.use(os.unlink, self._prefix + name)
            finally:
                release()
            # Even when there was nothing: an earlier deletion, cancelled, may have left before this.
            self._sync_directory(self._root)
        except OSError as exc:
            raise store_error(exc, f"delete {name}", self._root) from exc

    @aiofiles.os.wrap
    def _load_now(self, key: str, name: str) -> VersionedJson | None:
        path = self._prefix + name
        try:
            parts = _read(path)
        except OSError as exc:
            raise store_error(exc, f"load {name}", self._root) from exc
        if parts is None:
            return None
        line, value = parts
        header = _parse_header(line, path)
        if header.key != key:
            raise _misplaced(path)
        if xxhash.xxh3_128_hexdigest(value) != header.xxh3_128:
            raise _corrupted(path, "its value is not the one that was saved (XXH3 differs)")
        return VersionedJson(value_text(expand(value, key=key), key=key), header.revision)

    @aiofiles.os.wrap
    def _names_now(self, permit: _Permit) -> list[str]:
        try:
            if not self._exists():
                return []
            # A rename in the middle of a listing could show an entry twice or not at all.
            release = self._lock_directory(permit, shared=False)
            try:
                names = os.listdir(self._root)
            finally:
                release()
        except OSError as exc:
            raise store_error(exc, "list keys", self._root) from exc
        return [name for name in names if _ENTRY_NAME.fullmatch(name)]

    @aiofiles.os.wrap
    def _keys_now(self, names: list[str]) -> list[str]:
        try:
            headers = [(name, _read_header(self._prefix + name)) for name in names]
        except OSError as exc:
            raise store_error(exc, "list keys", self._root) from exc
        keys = []
        for name, header in headers:
            if header is not None:
                if not _belongs(header.key, name):
                    raise _misplaced(self._prefix + name)
                keys.append(header.key)
        return keys

    def _create(self, name: str) -> tuple[str, int]:
        """Return the path of a new file and its descriptor, for as long as which is open no sweep takes the file."""
        while True:
            temp = f"{self._prefix}.{name.split('.')[1]}.{secrets.token_hex(8)}.tmp"
            fd = self._open_new(temp)
            try:
                # A sweep may have come before the lock.
                if _lock(fd) is not False and os.fstat(fd).st_nlink:
                    return temp, fd
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)
            with suppress(FileNotFoundError):
                os.unlink(temp)

    def _write(self, fd: int, header: bytes, value: bytes) -> None:
        written = 0
        if sys.platform != "win32":
            # Nearly always that is all: one call, and no copy.
            written = os.writev(fd, (header, value))
        if written < len(header) + len(value):
            rest = memoryview(header + value)[written:]
            while rest:
                rest = rest[os.write(fd, rest) :]
        if self._config.fsync:
            os.fsync(fd)
        else:
            # What was not flushed is seen by other hosts, on NFS, once a descriptor is closed. This one keeps the lock.
            os.close(os.dup(fd))

    def _replace(self, temp: str, path: str, compare: Callable[[str], None] | None, permit: _Permit) -> None:
        release = self._lock_directory(permit, shared=compare is None)
        try:
            if compare is not None:
                compare(path)
            permit.use(os.replace, temp, path)
        finally:
            release()

    def _open_new(self, temp: str) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS
        try:
            return os.open(temp, flags, 0o600)
        except FileNotFoundError:
            self._make_root()
            return os.open(temp, flags, 0o600)

    def _make_root(self) -> None:
        missing = []
        directory = Path(self._root)
        while not directory.exists():
            missing.append(directory)
            directory = directory.parent
        for directory in reversed(missing):
            directory.mkdir(0o700, exist_ok=True)
            # Also when another process made it: that one may not have got this far.
            self._sync_directory(str(directory.parent))

    def _exists(self) -> bool:
        try:
            mode = os.stat(self._root).st_mode
        except FileNotFoundError:
            return False
        if not stat.S_ISDIR(mode):
            raise NotADirectoryError(ENOTDIR, os.strerror(ENOTDIR), self._root)
        return True

    def _lock_directory(self, permit: _Permit, *, shared: bool) -> Callable[[], None]:
        """Wait for the directory's lock, and return what releases it."""
        fd = self._locked_at_once(shared=shared)
        if fd is not None:
            return partial(os.close, fd)
        # A new lock each time, for one instance does not exclude the threads that share it. Never a soft lock: a
        # process that dies would hold it for ever.
        lock = filelock.FileLock(
            self._prefix + _LOCK_NAME,
            timeout=self._config.timeout,
            mode=0o600,
            poll_interval=0.001,
            fallback_to_soft=False,
        )
        lock.acquire(cancel_check=permit.is_withdrawn)
        return lock.release

    def _locked_at_once(self, *, shared: bool) -> int | None:
        """Return the open lock file, locked as filelock locks it, or None: then it is for filelock to wait or fail."""
        if sys.platform == "win32":
            return None
        try:
            fd = os.open(self._prefix + _LOCK_NAME, os.O_RDWR | os.O_CREAT | _FLAGS, 0o600)
        except OSError:
            return None
        if _lock(fd, shared=shared):
            return fd
        os.close(fd)
        return None

    def _sync_directory(self, directory: str) -> None:
        # Windows cannot open a directory.
        if not self._config.fsync or os.name == "nt":
            return
        fd = os.open(directory, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def _sweep(self, mine: str) -> None:
        """Remove the temporary files of saves that died. ``mine`` is a new one, and knows the file system's time."""
        if time.monotonic() < self._next_sweep:
            return
        self._next_sweep = time.monotonic() + _SWEEP_INTERVAL
        now = os.lstat(mine).st_mtime
        with os.scandir(self._root) as entries:
            for entry in entries:
                if _TEMP_NAME.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                    # Its own save or another sweep was quicker, or it is another user's, or whatever else is the matter
                    # with a file that nobody needs: no reason to fail this save.
                    with suppress(OSError):
                        _remove_if_dead(entry.path, now)


def _entry_name(key: str) -> str:
    # ASCII lower case only, since some file systems fold case or Unicode forms. The slug is for people; the hash tells
    # keys apart. The prefix is there because Windows keeps names such as con.json for devices.
    digest = hashlib.sha256(key_bytes(key)).hexdigest()
    return f"ckpt-{_UNSAFE.sub('-', key[:_SLUG_CHARACTERS])}.{digest}.json"


def _read(path: str, *, whole: bool = True) -> tuple[bytes, bytes] | None:
    """Return a file's first line and, if the ``whole`` is wanted, what follows it; None if there is no file.

    Of a file without lines, it is as much as a header can have.
    """
    try:
        fd = os.open(path, os.O_RDONLY | _FLAGS)
    except FileNotFoundError:
        return None
    try:
        beginning = os.read(fd, _MAX_HEADER_BYTES)
        end = beginning.find(b"\n") + 1 or len(beginning)
        size = os.fstat(fd).st_size if whole else 0
        if len(beginning) >= size:
            return beginning[:end], beginning[end:]
        # Again from where the value begins, so that it need not be put together.
        os.lseek(fd, end, os.SEEK_SET)
        value = os.read(fd, size - end)
        # One call reads 2 GiB at most.
        while len(value) < size - end and (more := os.read(fd, size - end - len(value))):
            value += more
        return beginning[:end], value
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


def _remove_if_dead(temp: str, now: float) -> None:
    if sys.platform == "win32":
        if now - os.lstat(temp).st_mtime > _LEFTOVER_AGE:
            os.unlink(temp)
        return
    # For writing, without which NFS gives no exclusive lock.
    fd = os.open(temp, os.O_WRONLY | _FLAGS)
    try:
        locked = _lock(fd)
        if locked or (locked is None and now - os.fstat(fd).st_mtime > _LEFTOVER_AGE):
            os.unlink(temp)
    finally:
        os.close(fd)


def _read_header(path: str) -> _Header | None:
    parts = _read(path, whole=False)
    return None if parts is None else _parse_header(parts[0], path)


def _parse_header(line: bytes, path: str) -> _Header:
    if not line.endswith(b"\n"):
        raise _corrupted(path, "its first line is not complete")
    try:
        return msgspec.json.decode(line, type=_Header)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise _corrupted(path, f"its first line is not a dagonizer-file/1 header ({exc})") from exc


def _belongs(key: str, name: str) -> bool:
    try:
        return _entry_name(key) == name
    except InvalidKeyError:
        return False


def _misplaced(path: str) -> StoreCorruptedError:
    return _corrupted(path, "its first line names a key that does not belong in this file")


def _corrupted(path: str, reason: str) -> StoreCorruptedError:
    return StoreCorruptedError(
        f"{path} is corrupted: {reason}; restore the file from a backup, or save or delete its key to be rid of it"
    )
