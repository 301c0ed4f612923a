"""A client of the store in a process of its own, to be killed or paused.

The parent starts ``main`` in another interpreter and writes JSON lines to its standard input: first what to open, then
the calls, each with an ``id``. The child answers each call with a line when it is done, in any order. It ends when its
standard input does. What it opens is never among its arguments, for a URL may hold a password.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Any, cast

from dagonizer import VersionedJson, errors
from dagonizer_conformance.harness import resolve
from dagonizer_conformance.outcomes import TargetError

if TYPE_CHECKING:
    from typing import Self

    from dagonizer import CheckpointStore

_TAIL_BYTES = 4096
_PATIENCE = 5.0
_CANNOT_OPEN = "a client in another process cannot open the store"


class ProcessLost(Exception):  # noqa: N818 - what a case provokes
    """The client process ended before it answered; the outcome of the call is unknown."""


class ClientProcess:
    """A client in another process. It belongs to no event loop, and its calls may overlap."""

    def __init__(self) -> None:
        self._ids = itertools.count()
        self._lock = threading.Lock()
        self._pending: dict[int, concurrent.futures.Future[dict[str, Any]]] = {}
        self._lost: str | None = None
        self._killed = False
        self._ended: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        # A file and not a pipe, so that nobody need read it.
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - stop() closes it
        self._process = subprocess.Popen(  # noqa: S603 - this interpreter and this module
            # -P: the folder that the parent is in must not hide a module. Not -m: the package has imported this module.
            [sys.executable, "-P", "-c", f"from {__name__} import main; main()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
        )
        self._stdin = cast("IO[bytes]", self._process.stdin)
        self._stdout = cast("IO[bytes]", self._process.stdout)
        # Writing to a paused process blocks, and so does reading from it.
        self._threads = [threading.Thread(target=target, daemon=True) for target in (self._write, self._read)]
        for thread in self._threads:
            thread.start()

    @classmethod
    async def start(cls, target: str, namespace: str) -> Self:
        """Start a process that opens ``target``, as ``resolve`` understands it, for ``namespace``.

        Raises ``TargetError`` if it cannot.
        """
        client = cls()
        try:
            await client._open(target, namespace)
        except BaseException:
            client.kill()
            await client.stop()
            raise
        return client

    async def save(self, key: str, json: str) -> None:
        """Call ``save``."""
        await self._call("save", key=key, json=json)

    async def load(self, key: str) -> str | None:
        """Call ``load``."""
        text: str | None = await self._call("load", key=key)
        return text

    async def delete(self, key: str) -> None:
        """Call ``delete``."""
        await self._call("delete", key=key)

    async def load_versioned(self, key: str) -> VersionedJson | None:
        """Call ``load_versioned``."""
        fields = await self._call("load_versioned", key=key)
        return None if fields is None else VersionedJson(**fields)

    async def save_if(self, key: str, json: str, *, expected: str | None) -> str:
        """Call ``save_if``."""
        version: str = await self._call("save_if", key=key, json=json, expected=expected)
        return version

    @property
    def idle(self) -> bool:
        """Whether the process can take calls, and has none to answer."""
        return not (self._killed or self._pending or self._lost)

    def kill(self) -> None:
        """Kill the process (SIGKILL). Calls that wait raise ``ProcessLost``; ``stop`` waits for its end."""
        self._killed = True
        self._process.kill()

    def pause(self) -> None:
        """Pause the process (SIGSTOP)."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused process go on (SIGCONT)."""
        self._process.send_signal(signal.SIGCONT)

    async def stop(self) -> None:
        """Let the process close its store and end, killing it after some seconds. Twice is allowed."""
        self.resume()
        self._requests.put(None)
        ended = asyncio.wrap_future(self._ended)
        try:
            await asyncio.wait([ended], timeout=_PATIENCE)
        finally:
            self.kill()
            for thread in self._threads:
                thread.join()
            self._stderr.close()

    async def _open(self, target: str, namespace: str) -> None:
        try:
            reply = await self._send({"target": target, "namespace": namespace, "path": sys.path})
        except ProcessLost as exc:
            raise TargetError(f"{_CANNOT_OPEN}: {exc}") from exc
        if "raised" in reply:
            raise TargetError(f"{_CANNOT_OPEN}: {_shown(reply['raised'])}{self._tail()}")

    async def _call(self, method: str, **arguments: str | None) -> Any:  # noqa: ANN401 - JSON
        reply = await self._send({"method": method, "arguments": arguments})
        if "raised" not in reply:
            return reply["returned"]
        raised = reply["raised"]
        error = getattr(errors, raised["class"], None)
        if isinstance(error, type) and issubclass(error, errors.StoreError):
            raise error(raised["message"])
        raise RuntimeError(f"{_shown(raised)}{self._tail()}")

    async def _send(self, message: dict[str, Any]) -> dict[str, Any]:
        """Send ``message`` and wait for its reply."""
        reply: concurrent.futures.Future[dict[str, Any]] = concurrent.futures.Future()
        with self._lock:
            if self._lost is not None:
                raise ProcessLost(self._lost)
            message_id = next(self._ids)
            self._pending[message_id] = reply
        self._requests.put(_line({"id": message_id, **message}))
        return await asyncio.wrap_future(reply)

    def _write(self) -> None:
        # A broken pipe is the end of the process, which the reader tells.
        with suppress(BrokenPipeError), self._stdin as pipe:
            while (line := self._requests.get()) is not None:
                pipe.write(line)
                pipe.flush()

    def _read(self) -> None:
        with self._stdout as pipe:
            for line in pipe:
                # A process that is killed may leave half a line.
                if line.endswith(b"\n"):
                    self._answer(json.loads(line))
        status = self._process.wait()
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        with self._lock:
            self._lost = f"the client process {how}{self._tail()}"
            pending, self._pending = self._pending, {}
        for waiting in pending.values():
            # False for a call that was cancelled.
            if waiting.set_running_or_notify_cancel():
                waiting.set_exception(ProcessLost(self._lost))
        self._ended.set_result(None)

    def _answer(self, reply: dict[str, Any]) -> None:
        with self._lock:
            waiting = self._pending.pop(reply["id"])
        if waiting.set_running_or_notify_cancel():
            waiting.set_result(reply)

    def _tail(self) -> str:
        """Return the end of what the process wrote to its standard error, on a line of its own."""
        descriptor = self._stderr.fileno()
        size = os.fstat(descriptor).st_size
        # Not by seeking, which would move where the process writes.
        tail = os.pread(descriptor, _TAIL_BYTES, max(0, size - _TAIL_BYTES)).decode(errors="replace").strip()
        return f"\n{tail}" if tail else ""


class _Child:
    """What runs in the other process: it opens the store and does the calls, each in a task of its own."""

    def __init__(self, requests: IO[bytes], replies: IO[bytes]) -> None:
        self._requests = requests
        self._replies = replies
        self._calls: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Serve until the requests end."""
        first = await self._next()
        if first is None:
            return
        sys.path.extend(entry for entry in first["path"] if entry not in sys.path)
        try:
            harness = resolve(first["target"], allow_remote=True)
            store = await harness.open(first["namespace"])
        except Exception as exc:  # noqa: BLE001 - whatever a stranger's code raises, the parent must hear
            self._reply({"id": first["id"], "raised": _raised(exc)})
            return
        self._reply({"id": first["id"], "returned": None})
        while (request := await self._next()) is not None:
            call = asyncio.create_task(self._call(store, request))
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)
        for call in self._calls:
            call.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)
        await harness.close(store)

    async def _next(self) -> dict[str, Any] | None:
        line = await asyncio.to_thread(self._requests.readline)
        request: dict[str, Any] | None = json.loads(line) if line else None
        return request

    async def _call(self, store: CheckpointStore, request: dict[str, Any]) -> None:
        try:
            arguments = request["arguments"]
            # By position, for a store may name its parameters as it likes.
            positional = [arguments.pop(name) for name in ("key", "json") if name in arguments]
            returned = await getattr(store, request["method"])(*positional, **arguments)
            if returned is not None and request["method"] == "load_versioned":
                returned = {"json": returned.json, "version": returned.version}
            self._reply({"id": request["id"], "returned": returned})
        except (Exception, asyncio.CancelledError) as exc:  # noqa: BLE001 - whatever it is, the parent must hear
            self._reply({"id": request["id"], "raised": _raised(exc)})

    def _reply(self, message: dict[str, Any]) -> None:
        self._replies.write(_line(message))
        self._replies.flush()


def _line(message: dict[str, Any]) -> bytes:
    # In ASCII, so that lone surrogates survive.
    return json.dumps(message).encode() + b"\n"


def _raised(exc: BaseException) -> dict[str, str]:
    """Describe ``exc`` for the parent: by the class of ``dagonizer.errors`` that it is one of, or by its own."""
    known = next((cls for cls in type(exc).__mro__ if cls.__module__ == errors.__name__), None)
    if known is None and not isinstance(exc, TargetError):
        traceback.print_exception(exc)
    return {"class": (known or type(exc)).__name__, "message": str(exc)}


def _shown(raised: dict[str, str]) -> str:
    return f"{raised['class']}: {raised['message']}" if raised["message"] else raised["class"]


def main() -> None:
    """Be the child."""
    # The parent decides what an interrupt ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What a store prints must not come among the replies.
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    asyncio.run(_Child(sys.stdin.buffer, replies).run())
