"""The command line, ``dagonizer``: the extra ``dagonizer[cli]``."""

from __future__ import annotations

import io
import sys
import traceback
from typing import TYPE_CHECKING

from dagonizer.cli.outcome import FAILED, MISUSED, exit_code_of
from dagonizer.errors import DagonizerError

if TYPE_CHECKING:
    from collections.abc import Sequence

_NEEDED = ("typer", "rich")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line with ``arguments``, those of the process by default, and exit.

    An error of ours is a line on stderr, never a traceback. Exit codes: 0 done; 1 the answer is no; 2 wrong use; 3 the
    store failed, or holds what it should not; 130 interrupted.
    """
    try:
        from dagonizer.cli.app import app  # noqa: PLC0415 - its imports are what may be missing
    except ImportError as exc:
        if (exc.name or "").partition(".")[0] not in _NEEDED:
            raise
        print('the command line needs: pip install "dagonizer[cli]"', file=sys.stderr)
        sys.exit(MISUSED)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal that cannot show a character shows its escape.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        app(arguments, prog_name="dagonizer")
    except DagonizerError as exc:
        print(f"error: {exc}", file=sys.stderr)
        sys.exit(exit_code_of(exc))
    except Exception:  # noqa: BLE001 - a bug, ours or of a stranger's store; Python's exit code for it is 1, which means no
        traceback.print_exc()
        sys.exit(FAILED)
