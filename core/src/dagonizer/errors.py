"""Every exception that this project raises on purpose.

    DagonizerError
    ├─ DAGError                 a DAG, a run or a lifecycle is used against its rules
    ├─ EncodeError              a value cannot become JSON unchanged
    ├─ ValidationError          a document is not a valid checkpoint; ``issues`` says why
    └─ StoreError
       ├─ StoreURLError         (also ValueError) a store URL is wrong
       ├─ UnknownSchemeError    no installed plugin opens the URL's scheme
       ├─ DuplicateSchemeError  two distributions claim one scheme
       ├─ InvalidKeyError       (also ValueError) a key that no store may accept
       ├─ InvalidValueError     (also ValueError) a value that no store may accept
       ├─ StoreUnavailableError the backend does not answer; trying again later may help
       ├─ StoreAccessError      the backend refuses: credentials, permissions, read-only
       ├─ StoreLimitError       a limit of the backend: size, quota, disk
       ├─ StoreConflictError    a compare-and-swap lost
       ├─ StoreCorruptedError   what is stored is not what was saved
       └─ StoreClosedError      the store was closed

A store raises these and nothing else, ``from`` the driver's own exception.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

_SHOWN_ISSUES = 5


class DagonizerError(Exception):
    """Base of every error of this project."""


class DAGError(DagonizerError):
    """A DAG, a run or a lifecycle is used against its rules."""


class EncodeError(DagonizerError):
    """A value cannot be written as JSON without changing; the message names its path."""


class ValidationIssue(NamedTuple):
    """One thing that is wrong with a document.

    ``path`` starts at ``$``, the whole document (``$.executedNodes[3]``); ``message`` says what is wrong there.
    """

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


class ValidationError(DagonizerError):
    """A document is not a valid checkpoint. ``issues`` holds everything that is wrong with it."""

    def __init__(self, issues: Iterable[ValidationIssue]) -> None:
        self.issues: tuple[ValidationIssue, ...] = tuple(issues)
        super().__init__(self.issues)

    def __str__(self) -> str:
        shown = "; ".join(map(str, self.issues[:_SHOWN_ISSUES]))
        hidden = len(self.issues) - _SHOWN_ISSUES
        return f"not a valid checkpoint: {shown}" + (f"; and {hidden} more" if hidden > 0 else "")


class StoreError(DagonizerError):
    """Base of every error of a store."""


class StoreURLError(StoreError, ValueError):
    """A store URL is malformed, or has a part or parameter that its scheme does not know."""


class UnknownSchemeError(StoreError):
    """No installed plugin opens the URL's scheme."""


class DuplicateSchemeError(StoreError):
    """Two installed distributions claim one scheme."""


class InvalidKeyError(StoreError, ValueError):
    """A key that no store may accept. Nothing was read or written."""


class InvalidValueError(StoreError, ValueError):
    """A value that no store may accept. Nothing was stored."""


class StoreUnavailableError(StoreError):
    """The backend cannot be reached or did not answer in time; the outcome of a save or delete is unknown."""


class StoreAccessError(StoreError):
    """The backend refuses the caller: credentials, permissions, a read-only location."""


class StoreLimitError(StoreError):
    """A limit of the backend is reached: size of a value, quota, space on the disk."""


class StoreConflictError(StoreError):
    """A compare-and-swap found another version than the expected one, and changed nothing."""


class StoreCorruptedError(StoreError):
    """What is stored under the key is not what was saved."""


class StoreClosedError(StoreError):
    """The store was closed before the call."""
