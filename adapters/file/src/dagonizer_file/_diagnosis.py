"""What ``dagonizer doctor`` finds in a directory, and in the file system that it is on."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import stat
import sys
import tempfile
import time
from contextlib import suppress
from itertools import islice
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, NamedTuple, ParamSpec, TypeVar

from dagonizer.diagnosis import DURABILITY, Finding
from dagonizer_file._errors import store_error
from dagonizer_file._store import _ENTRY_NAME, _lock

if sys.platform != "win32":
    import resource

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from dagonizer_file._config import FileConfig

P = ParamSpec("P")
T = TypeVar("T")

_PROBES_PREFIX = ".dagonizer-doctor-"
_MOUNTINFO = "/proc/self/mountinfo"
_ESCAPE = re.compile(r"\\([0-7]{3})")

_MEMORY = frozenset({"tmpfs", "ramfs"})
_LAYERS = frozenset({"overlay", "aufs", "fuse.fuse-overlayfs"})
_WINDOWS_SHARES = frozenset({"cifs", "smb3", "smbfs"})
_NETWORK = _WINDOWS_SHARES | {
    "9p",
    "afs",
    "beegfs",
    "ceph",
    "fuse.ceph-fuse",
    "fuse.glusterfs",
    "fuse.grpcfuse",
    "fuse.sshfs",
    "fuse.vmhgfs-fuse",
    "glusterfs",
    "lustre",
    "nfs",
    "nfs4",
    "prl_fs",
    "vboxsf",
    "virtiofs",
}
# Options of mounts with which a flush does not reach the disk.
_UNFLUSHED = ("nobarrier", "barrier=0", "fsync_mode=nobarrier", "volatile", "fsync=volatile")
# And with which NFS locks hold on one machine only.
_LOCAL_LOCKS = ("nolock", "local_lock=flock", "local_lock=all")

_MIB = 1024 * 1024
_GIB = 1024 * _MIB
# Of the largest value, the old file and the new.
_LEAST_BYTES = 128 * _MIB
_LEAST_SHARE = 20
_LEAST_FILES = 1000
_LARGEST_FILE = 65 * _MIB
_LOOKED_AT = 256

_SERVER_STORES = "use a store with a server, such as postgresql:// or redis://"
_ON_A_DISK = "name a directory on a disk"
_ON_A_VOLUME = "name a directory of a volume that is mounted into the container"
_SYNC = "see that the server flushes when it is told to (NFS: exported sync, not async)"
_WITH_FSYNC = "leave fsync=false out of the URL"


class Mount(NamedTuple):
    """A line of mountinfo: where a file system is mounted, its type, and its options there and as a whole."""

    point: str
    type: str
    options: tuple[str, ...]


async def diagnose(config: FileConfig) -> AsyncIterator[Finding]:
    """Yield what is found in the directory of ``config``. Probes are files in a directory of their own, within it."""
    root = str(config.root.absolute())
    beginning = await _ask(root, _nearest, root)
    mount = await _ask(root, _mount_of, beginning)
    directory = await _ask(root, _check_directory, root, beginning)
    yield directory
    usable = directory.verdict == "good"
    if usable and sys.platform != "win32":
        yield await _ask(root, _check_permissions, root)
    if mount is not None:
        yield judge_file_system(mount)
    if directory.verdict != "bad" and sys.platform != "win32":
        yield await _ask(root, _check_space, beginning)
        yield await _ask(root, _check_inodes, beginning)
        yield await _ask(root, _check_file_size)
    if usable:
        for check, probe in _PROBES.items():
            yield await asyncio.to_thread(_tried, check, probe, root)
        yield await asyncio.to_thread(_tried, "fsync", _flush, root) if config.fsync else _without_fsync()
    yield judge_durability(mount, fsync=config.fsync)


async def _ask(root: str, look: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    try:
        return await asyncio.to_thread(look, *args, **kwargs)
    except OSError as exc:
        raise store_error(exc, "examine files", root) from exc


def parse_mountinfo(text: str) -> list[Mount]:
    """Return the mounts that ``text``, of ``/proc/self/mountinfo``, tells, in its order."""
    mounts = []
    for line in text.splitlines():
        # A number of optional fields ends with a hyphen.
        left, _, right = line.partition(" - ")
        fields, (kind, _, *of_all) = left.split(" "), right.split(" ")
        options = (*fields[5].split(","), *"".join(of_all).split(","))
        point = _ESCAPE.sub(lambda match: chr(int(match[1], 8)), fields[4])
        mounts.append(Mount(point, kind, options))
    return mounts


def find_mount(path: str, mounts: list[Mount]) -> Mount | None:
    """Return the mount that ``path``, without symbolic links, is on."""
    found = None
    for mount in mounts:
        within = path == mount.point or path.startswith(mount.point.rstrip("/") + "/")
        # A later one at the same place hides the earlier.
        if within and (found is None or len(mount.point) >= len(found.point)):
            found = mount
    return found


def judge_file_system(mount: Mount) -> Finding:
    """Return what is to be said of the file system by its type and options alone."""
    check = "file-system"
    what = f"{mount.type} at {mount.point}"
    local = [option for option in mount.options if option in _LOCAL_LOCKS]
    if "ro" in mount.options:
        message = f"{what} is mounted read-only: nothing can be saved"
        return _bad(check, message, f"mount -o remount,rw {quote(mount.point)}")
    if mount.type in _MEMORY:
        return _warning(check, f"{what} is in memory: checkpoints are gone after a reboot", _ON_A_DISK)
    if mount.type in _LAYERS:
        message = f"{what} is a layer over an image, as containers have it: checkpoints go when the container goes"
        return _warning(check, message, _ON_A_VOLUME)
    if mount.type in _WINDOWS_SHARES:
        message = f"{what} is a network file system on which a locked file cannot be read: loads fail during saves"
        return _warning(check, message, f"keep checkpoints on a local disk, or {_SERVER_STORES}")
    if local:
        message = f"{what} is mounted with {local[0]}: locks do not hold between machines"
        return _warning(check, message, f"mount it without {local[0]}, or use it from one machine only")
    if mount.type.startswith("nfs") and "soft" in mount.options:
        message = f"{what} is mounted soft: while its server is slow, saves fail that have happened"
        return _warning(check, message, "mount it with the option hard")
    if mount.type in _NETWORK:
        message = f"{what} is a network file system: what locking and flushing do is up to its server"
        return _warning(check, message, f"{_SYNC}; for many machines, {_SERVER_STORES}")
    if _is_of_a_program(mount):
        message = f"{what} is a file system in user space: what locking, flushing and replacing do is up to its program"
        return Finding(check=check, verdict="note", message=message)
    return _good(check, f"{what} is local")


def judge_durability(mount: Mount | None, *, fsync: bool) -> Finding:
    """Return which failures an acknowledged save outlives, by the file system's type and options and the URL's."""
    process = "an acknowledged save outlives its process"
    unflushed = [] if mount is None else [option for option in mount.options if option in _UNFLUSHED]
    if mount is not None and mount.type in _MEMORY:
        return _warning(DURABILITY, f"{process}, but no reboot: {mount.type} is in memory", _ON_A_DISK)
    if not fsync:
        message = f"{process}, but not a power failure or a crash of the system within half a minute: fsync=false"
        return _warning(DURABILITY, message, _WITH_FSYNC)
    if mount is not None and unflushed:
        message = f"{process}, but not a power failure soon after: {mount.point} is mounted with {unflushed[0]}"
        return _warning(DURABILITY, message, f"mount it without {unflushed[0]}, so that a flush reaches the disk")
    if mount is not None and mount.type in _NETWORK:
        message = f"{process} and this machine; whether it outlives a failure of the server is up to that"
        return _warning(DURABILITY, message, _SYNC)
    if mount is not None and _is_of_a_program(mount):
        message = f"{process}; whether it outlives anything else is up to the program of {mount.type}"
        return Finding(check=DURABILITY, verdict="note", message=message)
    survived = f"{process}, a crash of the system and a power failure"
    if mount is not None and mount.type in _LAYERS:
        return _warning(DURABILITY, f"{survived}, but not the removal of the container, if it is in one", _ON_A_VOLUME)
    if sys.platform == "win32":
        message = f"{survived}, but after that a new entry may be missing: Windows flushes no directories"
        return Finding(check=DURABILITY, verdict="note", message=message)
    if sys.platform == "darwin":
        message = f"{process} and a crash of the system, and a power failure if the drive's own cache does"
        return Finding(check=DURABILITY, verdict="note", message=message)
    return _good(DURABILITY, f"{survived}: the file and its directory are flushed; it does not outlive the disk")


def _is_of_a_program(mount: Mount) -> bool:
    # But fuseblk is on a local disk.
    return mount.type == "fuse" or mount.type.startswith("fuse.")


# What follows runs in a thread.


def _nearest(root: str) -> str:
    """Return ``root``, or what of the way to it exists."""
    path = Path(root)
    while not path.exists() and not path.is_symlink():
        path = path.parent
    return str(path)


def _mount_of(path: str) -> Mount | None:
    try:
        text = Path(_MOUNTINFO).read_text(encoding="utf-8", errors="surrogateescape")
    except FileNotFoundError:
        # Only Linux has it.
        return None
    return find_mount(os.path.realpath(path), parse_mountinfo(text))


def _check_directory(root: str, beginning: str) -> Finding:
    check = "directory"
    if not Path(beginning).is_dir():
        return _bad(check, f"{beginning} is no directory", "name another directory in the URL")
    mend = f"chown {_user()} {quote(beginning)}, and chmod u+rwx {quote(beginning)}"
    missing = "" if beginning == root else f"{root} does not exist, and "
    if not _may(beginning, os.W_OK | os.X_OK):
        return _bad(check, f"{missing}{beginning} cannot be written by this user ({_user()})", mend)
    if missing:
        later = f"{missing}is made on the first save; until then, nothing is tried in it"
        return Finding(check=check, verdict="note", message=later)
    if not _may(root, os.R_OK):
        return _bad(check, f"{root} can be written, but not listed by this user ({_user()})", mend)
    return _good(check, f"{root} can be written")


def _check_permissions(root: str) -> Finding:
    check = "permissions"
    mode = stat.S_IMODE(Path(root).stat().st_mode)
    shown = f"{root} has the mode {mode:04o}"
    mend = f"chmod 700 {quote(root)}"
    entries = _some_entries(root)
    closed = [path for path, _ in entries if not _may(path, os.R_OK)]
    if closed:
        message = f"{len(closed)} of {len(entries)} entries cannot be read by this user ({_user()}): {closed[0]}"
        return _bad(check, message, f"chown {_user()} {quote(root)}/ckpt-*, and chmod 600 {quote(root)}/ckpt-*")
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        return _warning(check, f"{shown}: every user can remove checkpoints, and put others in their place", mend)
    exposed = sum(bool(entry_mode & (stat.S_IRWXG | stat.S_IRWXO)) for _, entry_mode in entries)
    if exposed:
        message = f"{exposed} of {len(entries)} entries are not for their owner alone (mode 0600)"
        return _warning(check, message, f"chmod 600 {quote(root)}/ckpt-*")
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        message = f"{shown}: other users can put files there"
        return Finding(check=check, verdict="note", message=message, remedy=mend)
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        message = (
            f"{shown}: others may see the names of the files, which begin like their keys; to read them needs more"
        )
        return Finding(check=check, verdict="note", message=message, remedy=mend)
    return _good(check, f"{shown}, and no entry is for others")


def _some_entries(root: str) -> list[tuple[str, int]]:
    """Return paths and modes of the entries that come first, without those that are deleted meanwhile."""
    found = []
    with os.scandir(root) as files:
        for file in islice((file for file in files if _ENTRY_NAME.fullmatch(file.name)), _LOOKED_AT):
            with suppress(FileNotFoundError):
                found.append((file.path, file.stat(follow_symlinks=False).st_mode))
    return found


def _check_space(path: str) -> Finding:
    usage = shutil.disk_usage(path)
    free, total = usage.free, usage.total
    if not total:
        return Finding(check="space", verdict="note", message="the file system does not tell how much space it has")
    message = f"{_size(free)} of {_size(total)} are free"
    if free < max(_LEAST_BYTES, min(total // _LEAST_SHARE, _GIB)):
        return _warning("space", f"{message}: when there is none, saves fail", "free some, or enlarge the file system")
    return _good("space", message)


def _check_inodes(path: str) -> Finding:
    check = "inodes"
    found = os.statvfs(path)
    # Some file systems have no such number.
    if not found.f_files:
        return _good(check, "the number of files is not limited")
    message = f"{found.f_favail:,} files more can be made"
    if found.f_favail < _LEAST_FILES:
        return _warning(check, f"{message}: then saves of new keys fail", "delete files, or make a larger file system")
    return _good(check, message)


def _check_file_size() -> Finding:
    check = "file-size"
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if limit == resource.RLIM_INFINITY or limit >= _LARGEST_FILE:
        return _good(check, "files may be larger than 64 MiB")
    return _warning(check, f"this process may not write files of more than {limit:,} bytes", "ulimit -f unlimited")


def _tried(check: str, probe: Callable[[str], Finding], root: str) -> Finding:
    try:
        with tempfile.TemporaryDirectory(prefix=_PROBES_PREFIX, dir=root) as directory:
            return probe(directory + os.sep)
    except OSError as exc:
        return _bad(check, str(store_error(exc, "try this out", root)))


def _case_folding(prefix: str) -> Finding:
    check = "case-folding"
    Path(prefix + "a").touch()
    folds = Path(prefix + "A").exists()
    how = "folds case" if folds else "tells upper from lower case"
    return _good(check, f"the file system {how}, which keys do not depend on: files are named in lower-case ASCII")


def _replacing(prefix: str) -> Finding:
    check = "atomic-replace"
    old, new = Path(prefix + "old"), Path(prefix + "new")
    old.write_text("old")
    new.write_text("new")
    file = new.stat().st_ino
    if sys.platform == "win32":
        # There a file that is open cannot be replaced.
        new.replace(old)
        seen = "old"
    else:
        with old.open() as reader:
            new.replace(old)
            seen = reader.read()
    if (seen, old.read_text(), old.stat().st_ino, new.exists()) == ("old", "new", file, False):
        return _good(check, "a file is replaced in one step, under its readers too")
    return _bad(
        check,
        "a file is not replaced in one step: a load during a save, or after a crash, may find half of it or nothing",
        f"name a directory on a local disk, or {_SERVER_STORES}",
    )


def _locking(prefix: str) -> Finding:
    check = "lock"
    if sys.platform == "win32":
        return Finding(check=check, verdict="note", message="locks are not examined on Windows")
    with Path(prefix + "lock").open("w") as one, Path(prefix + "lock").open("w") as other:
        held = _lock(one.fileno()), _lock(other.fileno(), shared=True)
    if held == (True, False):
        return _good(check, "flock excludes others")
    message = "files cannot be locked (flock): saves fail" if held[0] is None else "flock excludes nobody"
    return _bad(check, message, f"mount the file system with locks, or {_SERVER_STORES}")


def _flush(prefix: str) -> Finding:
    took = []
    with Path(prefix + "file").open("wb") as file:
        file.write(b"text")
        file.flush()
        took.append(_seconds(os.fsync, file.fileno()))
    if os.name != "nt":
        directory = os.open(prefix, os.O_RDONLY)
        try:
            took.append(_seconds(os.fsync, directory))
        finally:
            os.close(directory)
    shown = " and ".join(f"{1000 * seconds:.2f} ms" for seconds in took)
    return _good("fsync", f"a file and its directory are flushed, in {shown}")


_PROBES = {"case-folding": _case_folding, "atomic-replace": _replacing, "lock": _locking}


def _without_fsync() -> Finding:
    message = "fsync=false: saves and deletions return before they are on the disk"
    return _warning("fsync", message, _WITH_FSYNC)


def _seconds(call: Callable[[int], None], fd: int) -> float:
    started = time.perf_counter()
    call(fd)
    return time.perf_counter() - started


def _may(path: str, mode: int) -> bool:
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)


def _user() -> str:
    return "this user" if sys.platform == "win32" else str(os.geteuid())


def _size(number: int) -> str:
    return f"{number / _GIB:,.1f} GiB" if number >= _GIB else f"{number / _MIB:,.1f} MiB"


def _good(check: str, message: str) -> Finding:
    return Finding(check=check, verdict="good", message=message)


def _warning(check: str, message: str, remedy: str) -> Finding:
    return Finding(check=check, verdict="warning", message=message, remedy=remedy)


def _bad(check: str, message: str, remedy: str | None = None) -> Finding:
    return Finding(check=check, verdict="bad", message=message, remedy=remedy)
