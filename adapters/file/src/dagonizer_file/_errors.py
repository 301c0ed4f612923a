"""How the operating system's errors become the project's.

filelock.Timeout               StoreUnavailableError
EACCES EPERM EROFS … (table)   StoreAccessError
ENOSPC EDQUOT EFBIG … (table)  StoreLimitError
every other OSError            StoreUnavailableError
"""

from __future__ import annotations

import errno
from contextlib import contextmanager
from typing import TYPE_CHECKING

import filelock

from dagonizer.errors import StoreAccessError, StoreLimitError, StoreUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

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


@contextmanager
def translated(action: str, path: Path) -> Iterator[None]:
    """Raise what the block raises as an ``OSError`` as the ``StoreError`` that says so of ``action`` and ``path``."""
    try:
        yield
    except filelock.Timeout as exc:
        raise StoreUnavailableError(
            f"could not {action} in {path}: another process held {exc.lock_file} for the whole timeout; "
            "try again, or raise the timeout"
        ) from exc
    except OSError as exc:
        error, advice = _BY_ERRNO.get(exc.errno or 0, (StoreUnavailableError, _UNAVAILABLE))
        where = path if exc.filename is None else exc.filename
        raise error(f"could not {action} in {path}: {exc.strerror or exc} ({where}); {advice}") from exc
