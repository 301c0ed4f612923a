"""The reference backend: a key-value server in a process of its own.

``python -I -S server.py --directory D --port P --faults a,b`` listens on 127.0.0.1, prints its port (0 takes a free
one), and ends when its standard input does. It imports little, so that it can be killed and be back in an instant.

A frame is the lengths of its two parts (four and eight bytes), a head of JSON, and a body of raw bytes. A request names
a ``command``, and an ``id`` that its reply repeats. Every write is in the journal before it is acknowledged. There is
no fsync: what is tested is SIGKILL, and what was written survives that in the kernel. The journal is never compacted.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import sys
import threading
import time
from queue import SimpleQueue

# Importing typing would take longer than anything else here.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, BinaryIO, NoReturn

    Frame = tuple[dict[str, Any], bytes]

LENGTHS = struct.Struct("!IQ")
PAGE = 256


class Entry:
    """A value, its version, and when it was written."""

    def __init__(self, value: bytes, version: int) -> None:
        self.value = value
        self.version = str(version)
        self.written = time.monotonic()


class Backend:
    """The entries, by namespace and key. A fault is a subclass that overrides one of the methods."""

    def __init__(self, directory: str) -> None:
        self.lock = threading.Lock()
        self._namespaces: dict[str, dict[str, Entry]] = {}
        self._version = 0
        self._sequences: dict[tuple[str, str, str], int] = {}
        self._journal = self._open_journal(os.path.join(directory, "journal"))  # noqa: PTH118 - pathlib is slow to import

    def answer(self, head: dict[str, Any], body: bytes) -> Frame:
        """Do what a request asks and return the reply."""
        with self.lock:
            return self._run(head, body)

    def look_at(self, client: socket.socket) -> None:
        """Look at a client that is about to get its reply. There is nothing to see."""

    def _run(self, head: dict[str, Any], body: bytes) -> Frame:
        match head["command"]:
            case "get":
                return self._get(head)
            case "put" | "put-if":
                return self._put(head, body), b""
            case "delete":
                return self._delete(head), b""
            case "list":
                return self._list(head), b""
            case command:
                raise ValueError(f"unknown command {command!r}")

    def _get(self, head: dict[str, Any]) -> Frame:
        entry = self._find(head)
        return ({"version": None}, b"") if entry is None else ({"version": entry.version}, entry.value)

    def _put(self, head: dict[str, Any], body: bytes) -> dict[str, Any]:
        if self._is_superseded(head):
            return {"superseded": True}
        entry = self._find(head)
        if head["command"] == "put-if" and (None if entry is None else entry.version) != head["expected"]:
            return {"conflict": True}
        self._version += 1
        self._commit({**head, "command": "put", "version": self._version}, body)
        return {"version": str(self._version)}

    def _delete(self, head: dict[str, Any]) -> dict[str, Any]:
        if self._is_superseded(head):
            return {"superseded": True}
        self._commit(head, b"")
        return {}

    def _list(self, head: dict[str, Any]) -> dict[str, Any]:
        keys = [key for key in self._keys(head["namespace"], head["prefix"]) if key > head["after"]]
        return {"keys": keys[:PAGE], "more": len(keys) > PAGE}

    def _find(self, head: dict[str, Any]) -> Entry | None:
        return self._namespaces.get(head["namespace"], {}).get(head["key"])

    def _keys(self, namespace: str, prefix: str) -> list[str]:
        return sorted(key for key in self._namespaces.get(namespace, {}) if key.startswith(prefix))

    def _is_superseded(self, head: dict[str, Any]) -> bool:
        """Return whether a later write of the same client to the same key was applied already.

        Such a write was cancelled, or overtaken on another connection. A client need not say its place in the order.
        """
        if "client" not in head:
            return False
        return bool(head["sequence"] < self._sequences.get((head["client"], head["namespace"], head["key"]), 0))

    def _commit(self, record: dict[str, Any], body: bytes) -> None:
        self._append(record, body)
        self._apply(record, body)

    def _append(self, record: dict[str, Any], body: bytes) -> None:
        rest = memoryview(frame(record, body))
        while rest:
            rest = rest[os.write(self._journal, rest) :]

    def _apply(self, record: dict[str, Any], body: bytes) -> None:
        entries = self._namespaces.setdefault(record["namespace"], {})
        if record["command"] == "put":
            entries[record["key"]] = Entry(body, record["version"])
        else:
            entries.pop(record["key"], None)
        if "client" in record:
            self._sequences[record["client"], record["namespace"], record["key"]] = record["sequence"]

    def _open_journal(self, path: str) -> int:
        """Replay the journal, cut off a record that a kill has torn, and return a descriptor to append to."""
        journal = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        end = 0
        with open(journal, "rb", closefd=False) as file:
            while (replayed := read_frame(file)) is not None:
                record, body = replayed
                self._version = max(self._version, record.get("version", 0))
                self._apply(record, body)
                end = file.tell()
        os.ftruncate(journal, end)
        return journal


class Slow(Backend):
    """Each command waits 5 ms, so that those of several clients overlap."""

    def answer(self, head: dict[str, Any], body: bytes) -> Frame:
        """Wait, then answer."""
        time.sleep(0.005)
        return super().answer(head, body)


class Uneven(Backend):
    """Commands wait 0, 20 or 5 ms in turn, so that those on several connections overtake one another."""

    _commands = 0

    def answer(self, head: dict[str, Any], body: bytes) -> Frame:
        """Wait, then answer."""
        self._commands += 1
        time.sleep((0, 0.02, 0.005)[self._commands % 3])
        return super().answer(head, body)


class AcknowledgeBeforeWrite(Backend):
    """A write is acknowledged 20 ms before it is written anywhere."""

    def __init__(self, directory: str) -> None:
        super().__init__(directory)
        self._due: SimpleQueue[tuple[float, dict[str, Any], bytes]] = SimpleQueue()
        threading.Thread(target=self._commit_later, daemon=True).start()

    def _commit(self, record: dict[str, Any], body: bytes) -> None:
        self._due.put((time.monotonic() + 0.02, record, body))

    def _commit_later(self) -> NoReturn:
        while True:
            due, record, body = self._due.get()
            time.sleep(max(0, due - time.monotonic()))
            with self.lock:
                super()._commit(record, body)


class NoJournal(Backend):
    """Everything is in memory only."""

    def _append(self, record: dict[str, Any], body: bytes) -> None:
        """Write nothing."""


class ListCapped(Backend):
    """A listing ends silently after 1,000 keys."""

    def _keys(self, namespace: str, prefix: str) -> list[str]:
        return super()._keys(namespace, prefix)[:1000]


class EvictAfter1000(Backend):
    """A namespace keeps at most 1,000 keys, the newest."""

    def _apply(self, record: dict[str, Any], body: bytes) -> None:
        super()._apply(record, body)
        entries = self._namespaces[record["namespace"]]
        for key in list(entries)[:-1000]:
            del entries[key]


class Expire(Backend):
    """An entry vanishes a second after it was written."""

    def _run(self, head: dict[str, Any], body: bytes) -> Frame:
        for entries in self._namespaces.values():
            for key in [key for key, entry in entries.items() if time.monotonic() - entry.written > 1]:
                del entries[key]
        return super()._run(head, body)


class SaveKeepsVersion(Backend):
    """An unconditional write leaves the version that the entry had."""

    def _put(self, head: dict[str, Any], body: bytes) -> dict[str, Any]:
        before = self._find(head)
        reply = super()._put(head, body)
        entry = self._find(head)
        if head["command"] == "put" and before is not None and entry is not None:
            entry.version = before.version
        return reply


class VersionsRestart(Backend):
    """Each key has versions of its own, which begin at 1 again after a deletion."""

    def _put(self, head: dict[str, Any], body: bytes) -> dict[str, Any]:
        entry = self._find(head)
        self._version = 0 if entry is None else int(entry.version)
        return super()._put(head, body)


class VersionOfBackend(Backend):
    """Every entry has the version of the last write, whichever entry that was to."""

    def _find(self, head: dict[str, Any]) -> Entry | None:
        entry = super()._find(head)
        if entry is not None:
            entry.version = str(self._version)
        return entry


class VersionIsSecond(Backend):
    """An entry's version is the second of its last write."""

    def _put(self, head: dict[str, Any], body: bytes) -> dict[str, Any]:
        self._version = int(time.time()) - 1
        return super()._put(head, body)


class EndsIfCutOff(Backend):
    """The process ends when a client is gone before its answer."""

    def look_at(self, client: socket.socket) -> None:
        """End if there is no client any more."""
        try:
            gone = not client.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        if gone:
            os._exit(2)


FAULTS = {
    "slow": Slow,
    "uneven": Uneven,
    "acknowledge-before-write": AcknowledgeBeforeWrite,
    "no-journal": NoJournal,
    "list-capped": ListCapped,
    "evict-after-1000": EvictAfter1000,
    "expire": Expire,
    "save-keeps-version": SaveKeepsVersion,
    "versions-restart": VersionsRestart,
    "version-of-backend": VersionOfBackend,
    "version-is-second": VersionIsSecond,
    "ends-if-cut-off": EndsIfCutOff,
}


def frame(head: dict[str, Any], body: bytes) -> bytes:
    """Return the frame of ``head`` and ``body``."""
    encoded = json.dumps(head).encode()
    return LENGTHS.pack(len(encoded), len(body)) + encoded + body


def read_frame(stream: BinaryIO) -> Frame | None:
    """Return the next frame, or None if there is no whole one."""
    lengths = stream.read(LENGTHS.size)
    if len(lengths) < LENGTHS.size:
        return None
    head_length, body_length = LENGTHS.unpack(lengths)
    head, body = stream.read(head_length), stream.read(body_length)
    if len(head) < head_length or len(body) < body_length:
        return None
    return json.loads(head), body


def serve(backend: Backend, connection: socket.socket) -> None:
    """Answer the requests on ``connection``, one after the other, until the client is gone."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        with connection, connection.makefile("rb") as stream:
            while (request := read_frame(stream)) is not None:
                head, body = request
                reply, reply_body = backend.answer(head, body)
                backend.look_at(connection)
                connection.sendall(frame({"id": head["id"], **reply}, reply_body))
    except ConnectionError:
        # The client will not read the reply.
        return


def end_with_parent() -> NoReturn:
    """Wait for the end of the standard input, and exit."""
    sys.stdin.buffer.read()
    os._exit(0)


def main() -> NoReturn:
    """Serve until killed."""
    options = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=True))
    faults = [FAULTS[name] for name in options["--faults"].split(",") if name]
    backend: Backend = type("Faulty", (*faults, Backend), {})(options["--directory"])
    # The parent decides what an interrupt ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()
    with socket.create_server(("127.0.0.1", int(options["--port"])), backlog=128) as server:
        print(server.getsockname()[1], flush=True)  # noqa: T201 - it is what the parent waits for
        while True:
            connection, _ = server.accept()
            threading.Thread(target=serve, args=(backend, connection), daemon=True).start()


if __name__ == "__main__":
    main()
