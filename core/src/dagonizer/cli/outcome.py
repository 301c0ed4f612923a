"""What a command's end means to a script, and how keys and texts are shown to people."""

from __future__ import annotations

import json

from dagonizer.errors import (
    DagonizerError,
    DuplicateSchemeError,
    InvalidKeyError,
    InvalidValueError,
    StoreURLError,
    UnknownSchemeError,
)

YES, NO, MISUSED, FAILED = 0, 1, 2, 3
"""Exit codes: done, the answer is no, wrong use, the store failed or holds what it should not."""

INTERRUPTED, PIPE_CLOSED = 130, 141
"""Exit codes as a shell reports them of SIGINT and SIGPIPE."""


class UsageError(DagonizerError):
    """A command was asked for what it cannot do."""


_MISUSES = (UsageError, StoreURLError, UnknownSchemeError, DuplicateSchemeError, InvalidKeyError, InvalidValueError)


def exit_code_of(error: DagonizerError) -> int:
    """Return the exit code of a command that ``error`` ended."""
    return MISUSED if isinstance(error, _MISUSES) else FAILED


def shown(text: str) -> str:
    """Return a key or another short text as people see it: what is not plainly printable becomes a JSON string."""
    if text and text.isprintable() and text == text.strip() and not text.startswith('"'):
        return text
    return quoted(text)


def quoted(text: str) -> str:
    """Return ``text`` as a JSON string in which only printable characters stand for themselves."""
    written = json.dumps(text, ensure_ascii=False)
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in written)
