"""The command line, ``dagonizer``: the extra ``dagonizer[cli]``."""

from __future__ import annotations

import sys

from dagonizer.errors import DagonizerError

_NEEDED = ("typer", "rich")


def main() -> None:
    """Run the command line. An error of ours is one line on stderr and exit code 1, never a traceback."""
    try:
        from dagonizer.cli.app import app  # noqa: PLC0415 - its imports are what may be missing
    except ImportError as exc:
        if (exc.name or "").partition(".")[0] not in _NEEDED:
            raise
        print('the command line needs: pip install "dagonizer[cli]"', file=sys.stderr)
        sys.exit(1)
    try:
        app()
    except DagonizerError as exc:
        print(f"error: {exc}", file=sys.stderr)
        sys.exit(1)
