"""How the driver's errors become the project's.

PermissionError                                         StoreAccessError
ConnectionError TimeoutError and every other OSError    StoreUnavailableError
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from dagonizer.errors import StoreAccessError, StoreUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dagonizer.errors import StoreError

# Add the driver's: StoreAccessError is for who may not, StoreLimitError for what is full or too large.
_BY_CLASS: dict[type[Exception], tuple[type[StoreError], str]] = {
    PermissionError: (StoreAccessError, "check the user name, the password and the permissions"),
    OSError: (
        StoreUnavailableError,
        "check that the server runs, then try again; a save or deletion may have happened",
    ),
}


@contextmanager
def translated(action: str, where: str) -> Iterator[None]:
    """Raise what the block raises of the driver's as the ``StoreError`` that says so of ``action`` and ``where``."""
    try:
        yield
    except tuple(_BY_CLASS) as exc:
        error, advice = next(_BY_CLASS[cls] for cls in type(exc).__mro__ if cls in _BY_CLASS)
        said = str(exc) or ("no answer within the timeout" if isinstance(exc, TimeoutError) else type(exc).__name__)
        raise error(f"could not {action} at {where}: {said}; {advice}") from exc
