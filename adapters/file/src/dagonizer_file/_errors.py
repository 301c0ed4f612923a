"""How the operating system's errors become the project's.

filelock.Timeout               StoreUnavailableError
EACCES EPERM EROFS … (table)   StoreAccessError
ENOSPC EDQUOT EFBIG … (table)  StoreLimitError
every other OSError            StoreUnavailableError
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import filelock

from dagonizer.errors import StoreAccessError, StoreLimitError, StoreUnavailableError

if TYPE_CHECKING:
    from dagonizer.errors import StoreError

_ACCESS = "check the owner and mode of that path, and that it is a directory on a writable file system"
_LIMIT = "free space, raise the quota or file size limit, or use a shorter directory name"
_UNAVAILABLE = "check that the file system is mounted and healthy, then try again; a save or deletion may have happened"

_BY_ERRNO: dict[int, tuple[type[StoreError], str]] = {
    errno.EACCES: (StoreAccessError, _ACCESS),
    errno.EPERM: (StoreAccessError, _ACCESS),
    errno.EROFS: (StoreAccessError, _ACCESS),
    errno.ENOTDIR: (StoreAccessError, _ACCESS),
    errno.EISDIR: (StoreAccessError, _ACCESS),
    errno.ELOOP: (StoreAccessError, _ACCESS),
    errno.ENOSPC: (StoreLimitError, _LIMIT),
    errno.EFBIG: (StoreLimitError, _LIMIT),
    errno.ENAMETOOLONG: (StoreLimitError, _LIMIT),
}
if hasattr(errno, "EDQUOT"):  # Windows before 3.13 has no such name.
    _BY_ERRNO[errno.EDQUOT] = (StoreLimitError, _LIMIT)


def store_error(exc: OSError, action: str, root: str) -> StoreError:
    """Return the ``StoreError`` for an ``OSError`` while doing ``action`` in the directory ``root``."""
    if isinstance(exc, filelock.Timeout):
        return StoreUnavailableError(
            f"could not {action} in {root}: another process held {exc.lock_file} for the whole timeout; "
            "try again, or raise the timeout"
        )
    error, advice = _BY_ERRNO.get(exc.errno or 0, (StoreUnavailableError, _UNAVAILABLE))
    where = root if exc.filename is None else exc.filename
    return error(f"could not {action} in {root}: {exc.strerror or exc} ({where}); {advice}")
