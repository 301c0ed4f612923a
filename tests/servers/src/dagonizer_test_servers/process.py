"""A server that is a process of this machine, and ends with the process that started it."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

_PATIENCE = 60.0
_PAUSE = 0.02
_PORTS = range(20_000, 32_000)
# Each once: who is given one may not have bound it yet when the next one asks.
_ports = iter(secrets.SystemRandom().sample(_PORTS, len(_PORTS)))
_LOG_TAIL = 2_000
# Linux ends a child with the thread that started it, so that must be one that lives as long as this process.
_starter = ThreadPoolExecutor(1, thread_name_prefix="server-starter")


class Process:
    """One process, which can be killed and started again with the same command.

    ``ready`` says whether it serves; ``log`` gets what it prints. ``user`` is the id to run as, where this process may
    change that.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        log: Path,
        ready: Callable[[], bool],
        user: int | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._command = list(command)
        self._log = log
        self._ready = ready
        self._user = user
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The id of the process."""
        assert self._process is not None, "it was not started"
        return self._process.pid

    def start(self) -> None:
        """Start it, and return once it is ready. Raises ``RuntimeError`` with the end of its log if it never is."""
        self._process = _starter.submit(self._spawn).result()
        deadline = time.monotonic() + _PATIENCE
        while not self._ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"{self._command[0]} did not start:\n{self._end_of_log()}")
            time.sleep(_PAUSE)

    def kill(self) -> None:
        """Kill it (SIGKILL) with all that it has started, and wait for its end."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Ask it to end (SIGTERM), and kill it if it takes longer than ten seconds."""
        self._end(signal.SIGTERM)

    def condition(self) -> str:
        """Return whether it runs, and the end of its log."""
        if self._process is None:
            status = "it was killed"
        elif self._process.poll() is not None:
            status = f"it has ended by itself, with {self._process.returncode}"
        else:
            # The state, and the memory in KiB.
            told = ["ps", "-o", "stat=,rss=", "-p", str(self._process.pid)]
            status = f"it runs: {subprocess.run(told, check=False, capture_output=True, text=True).stdout.strip()}"
        return f"{status}\n{self._end_of_log()}"

    def _end_of_log(self) -> str:
        return self._log.read_text(errors="replace")[-_LOG_TAIL:]

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        # The group outlives its leader while any child of it does.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, how)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        # Its number may be another's from now on.
        self._process = None

    def _spawn(self) -> subprocess.Popen[bytes]:
        command = self._command
        setpriv = shutil.which("setpriv")
        if setpriv is not None:
            as_user = [] if self._user is None else [f"--reuid={self._user}", f"--regid={self._user}", "--clear-groups"]
            command = [setpriv, "--pdeathsig=KILL", *as_user, *command]
        with self._log.open("ab") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=None if self._environment is None else {**os.environ, **self._environment},
                user=self._user if setpriv is None else None,
            )


def free_port() -> int:
    """Return a port of the loopback address that nobody listens on, another one each time.

    It is none that the system gives to outgoing connections, one of which could take it while a server is down.
    """
    for port in _ports:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("this process has had every port")


def answers(port: int) -> bool:
    """Return whether somebody listens on ``port`` of the loopback address."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
