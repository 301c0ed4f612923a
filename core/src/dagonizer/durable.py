"""A run that survives its process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from dagonizer.checkpoint import CheckpointData
from dagonizer.contracts import SupportsCompareAndSwap
from dagonizer.dispatcher import ExecutionResult
from dagonizer.errors import DAGError
from dagonizer.state import NodeStateBase
from dagonizer.validation import decode, encode

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from dagonizer.contracts import CheckpointStore
    from dagonizer.dispatcher import Dagonizer

S = TypeVar("S", bound=NodeStateBase)


async def run(
    dispatcher: Dagonizer[S],
    dag_name: str,
    new_state: Callable[[], S],
    *,
    store: CheckpointStore,
    key: str,
    restore_state: Callable[[dict[str, Any]], S],
    signal: asyncio.Event | None = None,
    timeout: float | None = None,  # noqa: ASYNC109 - it ends the run with a result, not with an exception
) -> ExecutionResult[S]:
    """Run a DAG to its end, or go on with the run whose checkpoint is under ``key``.

    The checkpoint is saved before the first node and after every node, and the entry is deleted once the run is
    complete. A run that stops early (a failing node, ``signal``, ``timeout`` in seconds) returns its result and leaves
    the last checkpoint in the store: call again to go on. ``new_state`` is asked for a state only where there is no
    checkpoint. After any error of the store, too, calling again goes on from whatever was saved.

    Where the store can compare-and-swap, a second worker on the same key raises ``StoreConflictError`` at its next
    checkpoint and changes nothing, however long it was suspended. Of workers that begin a run at the same time, all but
    one raise it before they run a node; one that gets to its first save when the entry is gone begins a new run. Where
    it cannot, two workers on one key overwrite each other's checkpoints unnoticed.

    Give each run a key of its own. The deletion alone is unconditional: a worker that is suspended just before it,
    until another run has begun under the key, deletes that run's checkpoint. And where a version is that of the text
    (Redis, S3), one that is suspended until another run has come to an equal checkpoint goes on with it in its place.

    Raises ``DAGError`` if the entry belongs to another DAG, ``ValidationError`` if it is not a checkpoint,
    ``EncodeError`` if the state cannot be captured, and the store's ``StoreError``.
    """
    entry = _Entry(store, key)
    saved = await entry.load()
    if saved is None:
        execution = dispatcher.execute(dag_name, new_state(), signal=signal, timeout=timeout)
        # Else a worker that is suspended in the first node could begin the run again when another has completed it.
        await entry.save(_captured(dag_name, execution.result))
    else:
        data = decode(saved)
        if data.dag_name != dag_name:
            raise DAGError(f"the entry under {key!r} is a checkpoint of the DAG {data.dag_name!r}, not of {dag_name!r}")
        state = restore_state(data.state)
        if data.cursor is None:  # its worker ended between the last save and the deletion
            state.transition("running")
            state.transition("completed")
            await store.delete(key)
            return ExecutionResult(state, None, data.executed_nodes, data.skipped_nodes)
        execution = dispatcher.resume(
            dag_name,
            state,
            data.cursor,
            executed_nodes=data.executed_nodes,
            skipped_nodes=data.skipped_nodes,
            signal=signal,
            timeout=timeout,
        )
    async for step in execution:
        # The last node is saved too: so two workers that both ran it cannot both succeed.
        await entry.save(_captured(dag_name, step))
    result = await execution
    if result.cursor is None:
        await store.delete(key)
    return result


def _captured(dag_name: str, step: ExecutionResult[S]) -> str:
    return encode(
        CheckpointData(
            dag_name=dag_name,
            cursor=step.cursor,
            state=step.state.snapshot(),
            executed_nodes=step.executed_nodes,
            skipped_nodes=step.skipped_nodes,
        )
    )


class _Entry:
    """The run's entry: replaced by compare-and-swap where the store can."""

    def __init__(self, store: CheckpointStore, key: str) -> None:
        self._store = store
        self._key = key
        self._version: str | None = None

    async def load(self) -> str | None:
        if not isinstance(self._store, SupportsCompareAndSwap):
            return await self._store.load(self._key)
        entry = await self._store.load_versioned(self._key)
        if entry is None:
            return None
        self._version = entry.version
        return entry.json

    async def save(self, json: str) -> None:
        if isinstance(self._store, SupportsCompareAndSwap):
            self._version = await self._store.save_if(self._key, json, expected=self._version)
        else:
            await self._store.save(self._key, json)
