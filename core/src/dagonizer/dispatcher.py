"""The reference dispatcher: runs the nodes of a DAG one after the other, and stops where a checkpoint can be taken."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar

import msgspec

from dagonizer.errors import DAGError
from dagonizer.state import Lifecycle, NodeStateBase

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Generator, Iterable, Mapping

S = TypeVar("S", bound=NodeStateBase)
S_contra = TypeVar("S_contra", bound=NodeStateBase, contravariant=True)


class NodeContext(msgspec.Struct, frozen=True):
    """What a node may know of its run: the names of the DAG and of its place there.

    ``signal`` is set when the run is asked to stop.
    """

    dag_name: str
    node_name: str
    signal: asyncio.Event


class Node(Protocol[S_contra]):
    """A unit of work. A DAG places it by its ``name``, and routes by the output that ``execute`` returns."""

    @property
    def name(self) -> str:
        """The name that placements refer to."""
        ...

    @property
    def outputs(self) -> Collection[str]:
        """Every output that ``execute`` may return."""
        ...

    async def execute(self, state: S_contra, context: NodeContext) -> str | None:
        """Work on ``state`` and return one of ``outputs``; None means the only one.

        A run that is stopped or times out cancels this coroutine. What it has written to ``state`` by then stays, and
        the node runs again on resume: write results when they are complete.
        """
        ...


class FunctionNode(msgspec.Struct, Generic[S], frozen=True):
    """A node made of an async function; see ``node``."""

    name: str
    outputs: tuple[str, ...]
    function: Callable[[S, NodeContext], Awaitable[str | None]]

    async def execute(self, state: S, context: NodeContext) -> str | None:
        """Call the function."""
        return await self.function(state, context)


def node(
    *, name: str | None = None, outputs: Iterable[str] = ("success",)
) -> Callable[[Callable[[S, NodeContext], Awaitable[str | None]]], FunctionNode[S]]:
    """Make a node of an async function ``(state, context) -> output``; its name is the function's unless given."""

    def decorate(function: Callable[[S, NodeContext], Awaitable[str | None]]) -> FunctionNode[S]:
        return FunctionNode(name or str(getattr(function, "__name__", "node")), tuple(outputs), function)

    return decorate


class ExecutionResult(msgspec.Struct, Generic[S], frozen=True):
    """A run so far.

    ``state`` is the run's own, which later nodes change. ``cursor`` is the name of the node to run next, None once the
    run is complete. ``executed_nodes`` and ``skipped_nodes`` are names of nodes, in the order in which it happened.
    """

    state: S
    cursor: str | None
    executed_nodes: tuple[str, ...]
    skipped_nodes: tuple[str, ...]


class _Placement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    type: Literal["single"]
    name: str
    node: str
    outputs: dict[str, str | None]


class _DAG(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    version: str
    entrypoint: str
    nodes: list[_Placement]

    def placement(self, name: str) -> _Placement:
        for placement in self.nodes:
            if placement.name == name:
                return placement
        raise DAGError(f"the DAG {self.name!r} has no node {name!r}")


class Dagonizer(Generic[S]):
    """Holds nodes and DAGs, and runs them. One dispatcher serves many runs at the same time."""

    def __init__(self) -> None:
        self._nodes: dict[str, Node[S]] = {}
        self._dags: dict[str, _DAG] = {}

    def register_node(self, node: Node[S]) -> None:
        """Make a node known under its name. Raises ``DAGError`` if the name is taken or it has no outputs."""
        if node.name in self._nodes:
            raise DAGError(f"a node {node.name!r} is registered already")
        if not node.outputs:
            raise DAGError(f"the node {node.name!r} has no outputs")
        self._nodes[node.name] = node

    def register_dag(self, dag: Mapping[str, Any]) -> None:
        """Make a DAG known under its name; its nodes must be registered before.

        ``dag`` is ``{"name", "version", "entrypoint", "nodes": [{"type": "single", "name", "node", "outputs": {output:
        name of the next, or None}}]}``. Raises ``DAGError`` if it is malformed, names what does not exist, leaves an
        output of a node without a route, or has a cycle.
        """
        try:
            parsed = msgspec.convert(dag, _DAG)
        except msgspec.ValidationError as exc:
            raise DAGError(f"not a DAG of single placements: {exc}") from exc
        if parsed.name in self._dags:
            raise DAGError(f"a DAG {parsed.name!r} is registered already")
        names = [placement.name for placement in parsed.nodes]
        for name in names:
            if names.count(name) > 1:
                raise DAGError(f"the DAG {parsed.name!r} has two nodes {name!r}")
        parsed.placement(parsed.entrypoint)
        for placement in parsed.nodes:
            if placement.node not in self._nodes:
                raise DAGError(f"the DAG {parsed.name!r} places {placement.node!r}, which is not registered")
            unrouted = set(self._nodes[placement.node].outputs).symmetric_difference(placement.outputs)
            if unrouted:
                raise DAGError(
                    f"the DAG {parsed.name!r}: the outputs of {placement.name!r} and of its node "
                    f"{placement.node!r} differ in {sorted(unrouted)}"
                )
            for following in placement.outputs.values():
                if following is not None:
                    parsed.placement(following)
        _refuse_cycle(parsed)
        self._dags[parsed.name] = parsed

    def execute(
        self, dag_name: str, state: S, *, signal: asyncio.Event | None = None, timeout: float | None = None
    ) -> Execution[S]:
        """Run a DAG from its entrypoint on a pending ``state``.

        The run stops when ``signal`` is set, or ``timeout`` seconds after its first step began: the node that is
        running is cancelled and becomes the cursor. Raises ``DAGError`` for an unknown DAG or a state in use.
        """
        dag = self._dag(dag_name)
        if state.lifecycle.kind != "pending":
            raise DAGError(f"a run starts from a pending state, this one is {state.lifecycle.kind}; clone() it")
        return self._execution(dag, ExecutionResult(state, dag.entrypoint, (), ()), signal, timeout)

    def resume(
        self,
        dag_name: str,
        state: S,
        cursor: str,
        *,
        executed_nodes: Iterable[str] = (),
        skipped_nodes: Iterable[str] = (),
        signal: asyncio.Event | None = None,
        timeout: float | None = None,
    ) -> Execution[S]:
        """Run a DAG from ``cursor``, as a fresh lifecycle on ``state``; the rest is as for ``execute``.

        The histories of the run before, if given, stand before the new ones in the results. Raises ``DAGError`` for a
        DAG or a ``cursor`` that there is not, and for a state that is running.
        """
        dag = self._dag(dag_name)
        dag.placement(cursor)
        if state.lifecycle.kind == "running":
            raise DAGError("the state is running already")
        state.lifecycle = Lifecycle()
        start = ExecutionResult(state, cursor, tuple(executed_nodes), tuple(skipped_nodes))
        return self._execution(dag, start, signal, timeout)

    def _dag(self, name: str) -> _DAG:
        if name not in self._dags:
            raise DAGError(f"no DAG {name!r} is registered; there are: {', '.join(self._dags) or 'none'}")
        return self._dags[name]

    def _execution(
        self, dag: _DAG, start: ExecutionResult[S], signal: asyncio.Event | None, timeout: float | None
    ) -> Execution[S]:
        import asyncio  # noqa: PLC0415 - as long to import as all the rest of this package

        return Execution(dag, self._nodes, start, signal or asyncio.Event(), timeout)


class Execution(Generic[S]):
    """A run. Await it for its final result, or iterate over it for the result after every node.

    It advances only while it is awaited or iterated over, so that a checkpoint taken between two steps is complete.
    Awaiting it after some steps runs the rest; awaiting it again returns the same result. It never raises for a failing
    node: ``result.cursor`` is the node to run again and ``result.state.lifecycle`` says why. When the task that drives
    it is cancelled, ``CancelledError`` propagates, and awaiting the execution afterwards returns where it stopped.
    """

    def __init__(
        self,
        dag: _DAG,
        nodes: Mapping[str, Node[S]],
        start: ExecutionResult[S],
        signal: asyncio.Event,
        timeout: float | None,
    ) -> None:
        self._dag = dag
        self._nodes = nodes
        self._result = start
        self._signal = signal
        self._timeout = timeout
        self._deadline: float | None = None
        self._advancing = False

    @property
    def result(self) -> ExecutionResult[S]:
        """The run so far. Before the first step the cursor is where it begins."""
        return self._result

    def __await__(self) -> Generator[Any, None, ExecutionResult[S]]:
        return self._finish().__await__()

    async def __aiter__(self) -> AsyncIterator[ExecutionResult[S]]:
        while not self._ended():
            executed = len(self._result.executed_nodes)
            await self._step()
            if len(self._result.executed_nodes) > executed:
                yield self._result

    async def _finish(self) -> ExecutionResult[S]:
        while not self._ended():
            await self._step()
        return self._result

    def _ended(self) -> bool:
        return self._result.state.lifecycle.kind not in ("pending", "running")

    async def _step(self) -> None:
        """Run the node at the cursor, or end the run."""
        import asyncio  # noqa: PLC0415 - as long to import as all the rest of this package

        if self._advancing:
            raise DAGError("this execution is being advanced by another task")
        self._advancing = True
        state = self._result.state
        try:
            if state.lifecycle.kind == "pending":
                state.transition("running")
                self._deadline = None if self._timeout is None else monotonic() + self._timeout
            if self._result.cursor is None:
                state.transition("completed")
            elif self._signal.is_set():
                state.transition("cancelled", reason="the signal was set")
            elif self._deadline is not None and monotonic() >= self._deadline:
                state.transition("timed_out", reason=f"the run took longer than {self._timeout} s")
            else:
                await self._run_node(self._dag.placement(self._result.cursor))
        except asyncio.CancelledError:
            state.transition("cancelled", reason="the task that ran it was cancelled")
            raise
        finally:
            self._advancing = False

    async def _run_node(self, placement: _Placement) -> None:
        import asyncio  # noqa: PLC0415

        result = self._result
        state = result.state
        runs = self._nodes[placement.node]
        context = NodeContext(self._dag.name, placement.name, self._signal)
        work = asyncio.ensure_future(runs.execute(state, context))
        stop = asyncio.ensure_future(self._signal.wait())
        remaining = None if self._deadline is None else max(0.0, self._deadline - monotonic())
        try:
            await asyncio.wait((work, stop), timeout=remaining, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stop.cancel()
            interrupted = not work.done()
            work.cancel()
            await asyncio.wait((work, stop))
        if work.cancelled():
            if not interrupted:
                state.transition("failed", error=DAGError(f"the node {placement.name!r} cancelled itself"))
            elif self._signal.is_set():
                state.transition("cancelled", reason="the signal was set")
            else:
                state.transition("timed_out", reason=f"the run took longer than {self._timeout} s")
            return
        error = work.exception()
        if error is None:
            error = _unknown_output(placement, work.result())
        if error is None:
            cursor = _next_cursor(placement, work.result())
            executed = (*result.executed_nodes, placement.name)
            self._result = ExecutionResult(state, cursor, executed, result.skipped_nodes)
            if cursor is None:
                state.transition("completed")
        elif isinstance(error, Exception):
            state.transition("failed", error=error)
        else:
            raise error


def _next_cursor(placement: _Placement, output: str | None) -> str | None:
    return next(iter(placement.outputs.values())) if output is None else placement.outputs[output]


def _unknown_output(placement: _Placement, output: str | None) -> DAGError | None:
    if output in placement.outputs or (output is None and len(placement.outputs) == 1):
        return None
    return DAGError(f"the node {placement.name!r} returned {output!r}, not one of {sorted(placement.outputs)}")


def _refuse_cycle(dag: _DAG) -> None:
    """Raise ``DAGError`` if a node can be reached from itself (Kahn's algorithm)."""
    following = {p.name: {name for name in p.outputs.values() if name is not None} for p in dag.nodes}
    while following:
        targets = set().union(*following.values())
        sources = following.keys() - targets
        if not sources:
            raise DAGError(f"the DAG {dag.name!r} has a cycle through {sorted(targets)}")
        for name in sources:
            del following[name]
