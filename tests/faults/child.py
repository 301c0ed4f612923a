"""A process that a test starts, tells what to do, and ends, whatever becomes of it."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import Self

_TESTS = Path(__file__).parents[1]
_PATIENCE = 180.0
_MANY = 1 << 16


class Child:
    """A process that runs ``module`` with ``plan``, the first line of its input, until the context ends.

    What is told, either way, is a line of JSON. Nothing waits for ever: a process that does not listen or answer is a
    failure of the test.
    """

    def __init__(self, module: str, plan: dict[str, Any]) -> None:
        self._module = module
        self._plan = plan
        self._unread = b""

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", self._module]
        # Unbuffered, so that select sees all that is there.
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=_TESTS, bufsize=0)
        try:
            os.set_blocking(self._process.stdin.fileno(), False)
            self.tell(self._plan)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    @property
    def pid(self) -> int:
        """The id of the process."""
        return self._process.pid

    @property
    def ended(self) -> bool:
        """Whether it has ended."""
        return self._process.poll() is not None

    def tell(self, what: object) -> None:
        """Tell it something."""
        line = json.dumps(what).encode() + b"\n"
        while line:
            _, ready, _ = select.select([], [self._process.stdin], [], _PATIENCE)
            assert ready, f"{self._module} has not listened for {_PATIENCE:g} s"
            line = line[self._process.stdin.write(line) :]

    def told(self, *, patience: float = _PATIENCE) -> Any:
        """Return what it tells next."""
        deadline = time.monotonic() + patience
        while b"\n" not in self._unread:
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"{self._module} has told nothing for {patience:g} s"
            read = self._process.stdout.read(_MANY)
            assert read, f"{self._module} has ended"
            self._unread += read
        line, _, self._unread = self._unread.partition(b"\n")
        return json.loads(line)

    def finish(self, *, patience: float = _PATIENCE) -> int:
        """Return the status that it ends with once its input has ended."""
        self._process.stdin.close()
        return self._process.wait(patience)

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    def _end(self) -> None:
        # A process that is suspended ends by this, too.
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()
