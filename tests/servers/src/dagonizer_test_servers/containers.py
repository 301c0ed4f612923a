"""Servers in containers, where a Docker engine answers."""

from __future__ import annotations

import json
import os
import socket
import time
import urllib.request
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

from dagonizer_test_servers import s3
from dagonizer_test_servers.process import free_port
from dagonizer_test_servers.shared import NoServerError

if TYPE_CHECKING:
    from collections.abc import Callable

_PATIENCE = 120.0
_PAUSE = 0.1
_LOG_TAIL = 2_000
_PASSWORD = "only-in-tests"


class Recipe(NamedTuple):
    """How a server of one kind runs in a container."""

    image: str
    """The usual public image; the environment variable DAGONIZER_TEST_…_IMAGE names another."""
    port: int
    """Where it listens, in the container."""
    command: str
    environment: dict[str, str]
    ready: Callable[[int], bool]
    """Whether it serves on a port of this machine."""
    url: str
    """The store URL, with ``{port}``."""


def _postgres() -> Recipe:
    return Recipe(
        image="postgres:18",
        port=5432,
        command="postgres -c max_connections=400",
        environment={"POSTGRES_PASSWORD": _PASSWORD},
        # The request for TLS, which it answers with one letter; see the manual, "Message Formats".
        ready=lambda port: _reply(port, bytes.fromhex("0000000804d2162f")) in {b"S", b"N"},
        url=f"postgresql://postgres:{_PASSWORD}@127.0.0.1:{{port}}/postgres",
    )


def _redis() -> Recipe:
    return Recipe(
        image="valkey/valkey:9",
        port=6379,
        command="valkey-server --protected-mode no --appendonly yes --appendfsync always",
        environment={},
        ready=lambda port: _reply(port, b"PING\r\n") == b"+PONG\r\n",
        url="redis://127.0.0.1:{port}",
    )


def _etcd() -> Recipe:
    def is_healthy(port: int) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1) as answer:
                return bool(json.load(answer)["health"] == "true")
        except OSError:
            return False

    return Recipe(
        image="rancher/mirrored-coreos-etcd:v3.5.21",
        port=2379,
        command="etcd --data-dir /etcd-data --listen-client-urls http://0.0.0.0:2379 "
        "--advertise-client-urls http://127.0.0.1:2379 --quota-backend-bytes 8589934592 "
        "--auto-compaction-mode revision --auto-compaction-retention 1000",
        environment={},
        ready=is_healthy,
        url="etcd://127.0.0.1:{port}",
    )


def _reply(port: int, request: bytes) -> bytes:
    """Return the first reply of what listens on ``port``, or nothing."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(request)
            return connection.recv(64)
    except OSError:
        return b""


def _s3() -> Recipe:
    endpoint_url = "http://127.0.0.1:{port}"
    return Recipe(
        image="chrislusf/seaweedfs:4.48",
        port=8333,
        command="server -dir=/data -s3 -s3.port=8333 -volume.max=100 -master.volumeSizeLimitMB=1024 "
        "-master.raftHashicorp -master.electionTimeout=1s -master.heartbeatInterval=100ms",
        # Its administrator, as nothing else says who that is.
        environment={"AWS_ACCESS_KEY_ID": s3.ADMIN, "AWS_SECRET_ACCESS_KEY": f"{s3.ADMIN}-secret"},
        ready=lambda port: s3.serves(s3.client_of(endpoint_url.format(port=port))),
        url=s3.url_of(endpoint_url, s3.ADMIN),
    )


_RECIPES = {"postgres": _postgres, "redis": _redis, "s3": _s3, "etcd": _etcd}


def start(kind: str) -> Container:
    """Start a server of one of the kinds. Raises ``NoServerError`` without a Docker engine."""
    return Container(kind, _RECIPES[kind]())


class Container:
    """A server in a container, on the same port of the loopback address for its whole life."""

    def __init__(self, kind: str, recipe: Recipe) -> None:
        if find_spec("testcontainers") is None:
            raise NoServerError("testcontainers is not installed")
        from docker.errors import DockerException  # noqa: PLC0415 - only where it is installed
        from testcontainers.core.container import DockerContainer  # noqa: PLC0415

        self._recipe = recipe
        self._port = free_port()
        image = os.environ.get(f"DAGONIZER_TEST_{kind.upper()}_IMAGE", recipe.image)
        try:
            self._container: Any = DockerContainer(image).with_command(recipe.command).with_envs(**recipe.environment)
            # with_bind_ports knows no address, and would open it to other machines.
            self._container.ports[str(recipe.port)] = ("127.0.0.1", self._port)
            self._container.start()
        except DockerException as exc:
            raise NoServerError(f"no container of {image}: {exc}") from exc
        self._wait()

    @property
    def url(self) -> str:
        """The store URL."""
        return self._recipe.url.format(port=self._port)

    def down(self) -> None:
        """Kill it (SIGKILL); its data stay."""
        self._container.get_wrapped_container().kill()

    def up(self) -> None:
        """Start it again; does nothing while it runs."""
        self._container.get_wrapped_container().start()
        self._wait()

    def condition(self) -> str:
        """Return its status, and the end of its log."""
        container = self._container.get_wrapped_container()
        container.reload()
        return f"{container.status}\n{self._end_of_log()}"

    def stop(self) -> None:
        """Remove it with its data."""
        self._container.stop()

    def _wait(self) -> None:
        deadline = time.monotonic() + _PATIENCE
        while not self._recipe.ready(self._port):
            if time.monotonic() > deadline:
                log = self._end_of_log()
                self.stop()
                raise TimeoutError(f"the container of {self._container.image} does not serve:\n{log}")
            time.sleep(_PAUSE)

    def _end_of_log(self) -> str:
        return b"".join(self._container.get_logs()).decode(errors="replace")[-_LOG_TAIL:]
