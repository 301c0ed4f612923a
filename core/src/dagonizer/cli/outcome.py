"""What a command's end means to a script, and how keys, texts and errors are shown to people."""

from __future__ import annotations

import contextlib
import json
import re
import signal
from typing import TYPE_CHECKING

from dagonizer.errors import (
    DagonizerError,
    DuplicateSchemeError,
    InvalidKeyError,
    InvalidValueError,
    StoreURLError,
    UnknownSchemeError,
)
from dagonizer.url import StoreURL

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

YES, NO, MISUSED, FAILED = 0, 1, 2, 3
"""Exit codes: done, the answer is no, wrong use, the store failed or holds what it should not."""

INTERRUPTED, PIPE_CLOSED = 130, 141
"""Exit codes as a shell reports them of SIGINT and SIGPIPE."""


class UsageError(DagonizerError):
    """A command was asked for what it cannot do."""


_MISUSES = (UsageError, StoreURLError, UnknownSchemeError, DuplicateSchemeError, InvalidKeyError, InvalidValueError)


# A store URL that may hold secrets, where a key or the name of a file belongs. Its "//" may have been forgotten, but
# ``run:7@host`` is a key.
_MISPLACED_URL = re.compile(r".*://|[a-z][a-z0-9+.-]*:/*[^/]*:.*@", re.DOTALL | re.IGNORECASE)

# What may be a store URL in the words of somebody else: from its scheme to what can only end the sentence.
_TYPED_URL = re.compile(
    r"""([a-z][a-z0-9+.-]*:)(?=\S).*?(?=(?:\)|['"](?: is not a [a-z ]+)?\.?)?\Z)""", re.DOTALL | re.IGNORECASE
)


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
    return printable(written)


def printable(text: str) -> str:
    """Return ``text`` in one line, with escapes for what a terminal would obey."""
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)


def typed(text: str) -> str:
    """Return a key or the name of a file as people see it, without secrets if it is a store URL in the wrong place."""
    return shown(without_secrets(text) if _MISPLACED_URL.match(text) else text)


def without_secrets(text: str) -> str:
    """Return ``text``, in which somebody may have typed a store URL anywhere, without the secrets of that.

    A password may hold whatever could end a URL, so all that follows a scheme is taken for one URL.
    """
    return _TYPED_URL.sub(_without_secrets, text)


def error_lines(error: DagonizerError) -> Iterator[str]:
    """Yield what people are told of ``error``: a line for its message, and those of its notes."""
    yield printable(f"error: {error}")
    for note in getattr(error, "__notes__", ()):
        yield from map(printable, note.splitlines())


@contextlib.contextmanager
def termination_as_interrupt() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, so that what it has to clean up is cleaned up."""

    def interrupt(_: int, frame: FrameType | None) -> None:
        # By asyncio's handler, if it is running: an exception in the middle of its own code would break that.
        handler = signal.getsignal(signal.SIGINT)
        (handler if callable(handler) else signal.default_int_handler)(signal.SIGINT, frame)

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _without_secrets(found: re.Match[str]) -> str:
    try:
        url = StoreURL.parse(found[0])
    except StoreURLError:
        return f"{found[1]}***"
    if url.username is not None or url.password is not None:
        return str(url)
    if "@" in found[0]:
        # Credentials that are not where they belong.
        return f"{found[1]}***"
    return str(url) if url.query else found[0]
