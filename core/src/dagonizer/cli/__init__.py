"""The command line, ``dagonizer``: the extra ``dagonizer[cli]``."""

from __future__ import annotations

import sys
import traceback
from typing import TYPE_CHECKING

from dagonizer.cli.outcome import FAILED, INTERRUPTED, MISUSED, PIPE_CLOSED, YES, error_lines, exit_code_of
from dagonizer.cli.streams import PipeClosedError, flushed, guard_streams
from dagonizer.errors import DagonizerError

if TYPE_CHECKING:
    from collections.abc import Sequence

_NEEDED = ("typer", "rich")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line with ``arguments``, those of the process by default, and exit.

    An error of ours is a line on stderr, never a traceback. Exit codes: 0 done; 1 the answer is no; 2 wrong use; 3 the
    store failed, or holds what it should not, or the output cannot be written; 130 interrupted; 141 nobody reads on.
    """
    try:
        guard_streams()
        code = flushed(_run(arguments))
    except KeyboardInterrupt:
        # Where typer does not see it: its import takes most of the time of a small command.
        print(file=sys.stderr)
        code = INTERRUPTED
    sys.exit(code)


def _run(arguments: Sequence[str] | None) -> object:
    """Return what the process is to end with."""
    try:
        from dagonizer.cli.app import app  # noqa: PLC0415 - its imports are what may be missing
    except ImportError as exc:
        if (exc.name or "").partition(".")[0] not in _NEEDED:
            raise
        print('the command line needs: pip install "dagonizer[cli]"', file=sys.stderr)
        return MISUSED
    try:
        app(arguments, prog_name="dagonizer")
    except SystemExit as ended:
        return ended.code
    except PipeClosedError:
        return PIPE_CLOSED
    except DagonizerError as exc:
        print(*error_lines(exc), sep="\n", file=sys.stderr)
        return exit_code_of(exc)
    except Exception:  # noqa: BLE001 - a bug, ours or of a stranger's store; Python's exit code for it is 1, which means no
        traceback.print_exc()
        return FAILED
    return YES
