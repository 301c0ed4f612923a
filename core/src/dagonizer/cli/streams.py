"""The standard streams of a command, which may be full, broken or closed."""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING, Any, TypeGuard

from dagonizer.cli.outcome import FAILED, PIPE_CLOSED, error_lines
from dagonizer.errors import DagonizerError

if TYPE_CHECKING:
    from typing import TextIO

    from _typeshed import ReadableBuffer

_STDOUT, _STDERR = 1, 2


class OutputError(DagonizerError):
    """What a command has to say cannot be written, so nobody may take its silence for an answer."""


class PipeClosedError(Exception):
    """Whoever reads standard output has seen enough; no OSError, which rich and typer have opinions about."""


def guard_streams() -> None:
    """Let output that cannot be written raise ``OutputError``, or ``PipeClosedError``, once.

    What people are told on stderr is dropped then, for its failure changes no answer. A stream that was closed when the
    process began is one that can be neither read nor written. What is not the process's own, or a terminal, stays as it
    is.
    """
    if os.environ.get("COLUMNS") == "0":
        # Whoever set it does not know the width; rich would print nothing.
        del os.environ["COLUMNS"]
    _occupy_closed_descriptors()
    if sys.stdin is None:
        sys.stdin = os.fdopen(os.open(os.devnull, os.O_WRONLY), encoding="utf-8")
    if sys.stdout is None:
        sys.stdout = _text(_Output(io.FileIO(os.open(os.devnull, os.O_RDONLY), "wb")))
    elif _is_file(sys.stdout, sys.__stdout__):
        sys.stdout = _text(_Output(io.FileIO(_STDOUT, "wb", closefd=False)), sys.stdout)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 - as long as the process lives
    elif _is_file(sys.stderr, sys.__stderr__):
        sys.stderr = _text(_Remarks(io.FileIO(_STDERR, "wb", closefd=False)), sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that cannot show a character shows its escape.
            stream.reconfigure(errors="backslashreplace")


def flushed(code: Any) -> Any:  # noqa: ANN401 - whatever a process may end with
    """Return ``code``, or the exit code that says that some of the output could not be written."""
    try:
        sys.stderr.flush()
        sys.stdout.flush()
    except PipeClosedError:
        return PIPE_CLOSED
    except OutputError as exc:
        print(*error_lines(exc), sep="\n", file=sys.stderr)
        return FAILED
    return code


class _Remarks(io.BufferedWriter):
    """A stream whose first failure is the last that is heard of it.

    The file below it is not of Python code, between whose write and whose return Ctrl-C could come: what was written
    would be written once more.
    """

    def write(self, data: ReadableBuffer) -> int:
        """Write ``data``, or drop it."""
        try:
            return super().write(data)
        except OSError as exc:
            self._fail(exc)
            return memoryview(data).nbytes

    def flush(self) -> None:
        """Write what is buffered, or drop it."""
        try:
            super().flush()
        except OSError as exc:
            self._fail(exc)

    def _fail(self, exc: OSError) -> None:
        # What is buffered would fail again and again, and in the end where nobody can catch it.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)
        self._tell(exc)

    def _tell(self, exc: OSError) -> None:
        """Do nothing."""


class _Output(_Remarks):
    """One whose failure raises."""

    def _tell(self, exc: OSError) -> None:
        if isinstance(exc, BrokenPipeError):
            raise PipeClosedError from exc
        raise OutputError(f"cannot write to standard output: {exc.strerror}") from exc


def _text(stream: _Remarks, like: io.TextIOWrapper | None = None) -> io.TextIOWrapper:
    return io.TextIOWrapper(
        stream,
        encoding="utf-8" if like is None else like.encoding,
        # Python writes to stderr what it is told to, and buffers only the rest.
        line_buffering=like is not None and (like.line_buffering or like.write_through),
    )


def _is_file(stream: TextIO, original: TextIO | None) -> TypeGuard[io.TextIOWrapper]:
    return stream is original and isinstance(stream, io.TextIOWrapper) and not stream.isatty()


def _occupy_closed_descriptors() -> None:
    """Let no file or socket have the number of a standard stream: a library may write there what it has to say."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
