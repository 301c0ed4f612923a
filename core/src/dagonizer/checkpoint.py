"""A stopped run becomes one JSON document, and a JSON document becomes a run that can be resumed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import msgspec

from dagonizer.errors import DAGError, ValidationError, ValidationIssue
from dagonizer.validation import CheckpointData, decode, encode, isolated

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from dagonizer.contracts import CheckpointStore

__all__ = ["Checkpoint", "CheckpointData", "RecalledCheckpoint"]

S = TypeVar("S")


class SupportsSnapshot(Protocol):
    """A state that can be captured."""

    def snapshot(self) -> dict[str, Any]:
        """Return the state as JSON values."""
        ...


class RunResult(Protocol):
    """What a checkpoint is taken from; ``ExecutionResult`` is one."""

    @property
    def state(self) -> SupportsSnapshot: ...
    @property
    def cursor(self) -> str | None: ...
    @property
    def executed_nodes(self) -> Sequence[str]: ...
    @property
    def skipped_nodes(self) -> Sequence[str]: ...


class RecalledCheckpoint(msgspec.Struct, Generic[S], frozen=True):
    """What ``Dagonizer.resume`` needs to go on.

    ``state`` is what ``restore_state`` has returned, ``dag_name`` the DAG, ``cursor`` the name of the node to run next.
    ``executed_nodes`` and ``skipped_nodes`` are names of nodes, in the order in which it happened.
    """

    state: S
    dag_name: str
    cursor: str
    executed_nodes: tuple[str, ...]
    skipped_nodes: tuple[str, ...]


class Checkpoint:
    """The codec, and its composition with a store. All methods are static."""

    @staticmethod
    def from_result(dag_name: str, result: RunResult) -> CheckpointData:
        """Capture a stopped run. Later changes to the state do not reach the returned data.

        Raises ``DAGError`` when ``result.cursor`` is None: the run is complete and nothing is left to resume.
        """
        if result.cursor is None:
            raise DAGError(f"the run of {dag_name!r} is complete: its cursor is None, and there is nothing to resume")
        return CheckpointData(
            dag_name=dag_name,
            cursor=result.cursor,
            state=isolated(result.state.snapshot()),
            executed_nodes=tuple(result.executed_nodes),
            skipped_nodes=tuple(result.skipped_nodes),
        )

    @staticmethod
    def to_json(data: CheckpointData, *, indent: int | None = None) -> str:
        """Return ``data`` as one JSON document, compact or indented by ``indent`` spaces.

        Only JSON's own values are accepted: None, bool, int, finite float, str, list, and dict with str keys. Anything
        else (a tuple, a set, NaN, a datetime, …) raises ``EncodeError``, which names its path.
        """
        return encode(data, indent=indent)

    @staticmethod
    def restore(
        raw: str | bytes | Mapping[str, Any], restore_state: Callable[[dict[str, Any]], S]
    ) -> RecalledCheckpoint[S]:
        """Validate the document ``raw`` and restore its state with ``restore_state``.

        Raises ``ValidationError`` for anything but a valid checkpoint of a run that is not complete; what
        ``restore_state`` raises itself passes through.
        """
        data = decode(raw)
        if data.cursor is None:
            raise ValidationError([ValidationIssue("$.cursor", "null: the run is complete, nothing is left to resume")])
        return RecalledCheckpoint(
            state=restore_state(data.state),
            dag_name=data.dag_name,
            cursor=data.cursor,
            executed_nodes=data.executed_nodes,
            skipped_nodes=data.skipped_nodes,
        )

    @staticmethod
    async def persist(store: CheckpointStore, key: str, data: CheckpointData) -> None:
        """Save ``data`` under ``key``. Raises ``EncodeError`` before the store is touched, or a ``StoreError``."""
        await store.save(key, encode(data))

    @staticmethod
    async def recall(
        store: CheckpointStore, key: str, restore_state: Callable[[dict[str, Any]], S]
    ) -> RecalledCheckpoint[S] | None:
        """Load and restore what is under ``key``, or return None when there is no entry.

        Raises what ``restore`` raises, or a ``StoreError``.
        """
        json = await store.load(key)
        return None if json is None else Checkpoint.restore(json, restore_state)
