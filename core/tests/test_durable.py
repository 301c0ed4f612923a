import asyncio
import json
from dataclasses import dataclass, field

import pytest

from dagonizer import (
    DAGError,
    Dagonizer,
    EncodeError,
    MemoryCheckpointStore,
    NodeStateBase,
    StoreConflictError,
    StoreUnavailableError,
    ValidationError,
    durable,
    node,
)


@dataclass
class Log(NodeStateBase):
    lines: list[str] = field(default_factory=list)


class ThreeMethods:
    """A store that can neither list nor compare-and-swap."""

    def __init__(self):
        self.texts = {}
        self.saves = []

    async def save(self, key, json):
        self.texts[key] = json
        self.saves.append(json)

    async def load(self, key):
        return self.texts.get(key)

    async def delete(self, key):
        self.texts.pop(key, None)


def pipeline(before=None):
    """A DAG a → b → c; ``before`` is called with each node's name and state, and may raise or wait."""
    dispatcher = Dagonizer()
    for name in "abc":

        async def work(state, context, name=name):
            if before is not None:
                await before(name, state)
            state.lines.append(name)

        dispatcher.register_node(node(name=name)(work))
    nodes = [
        {"type": "single", "name": a, "node": a, "outputs": {"success": b}}
        for a, b in [("a", "b"), ("b", "c"), ("c", None)]
    ]
    dispatcher.register_dag({"name": "d", "version": "1", "entrypoint": "a", "nodes": nodes})
    return dispatcher


def run(dispatcher, store, new_state=Log, **options):
    return durable.run(dispatcher, "d", new_state, store=store, key="k", restore_state=Log.restore, **options)


@pytest.mark.parametrize("store_type", [ThreeMethods, MemoryCheckpointStore])
@pytest.mark.parametrize("failing", ["a", "b", "c"])
def test_a_run_that_fails_goes_on_where_it_stopped(store_type, failing):
    failures = [failing]

    async def before(name, state):
        if name in failures:
            failures.remove(name)
            state.lines.append("half")  # must not be in the checkpoint
            raise OSError

    async def scenario():
        store = store_type()
        first = await run(pipeline(before), store)
        assert first.cursor == failing
        assert first.state.lifecycle.kind == "failed"
        second = await run(pipeline(before), store)
        assert second.state.lines == ["a", "b", "c"]
        assert second.executed_nodes == ("a", "b", "c")
        assert await store.load("k") is None

    asyncio.run(scenario())


def test_the_checkpoint_is_saved_before_the_first_node_and_after_every_node():
    async def before(name, state):
        assert json.loads(store.saves[-1])["cursor"] == name

    async def scenario():
        await run(pipeline(before), store)

    store = ThreeMethods()
    asyncio.run(scenario())
    assert [json.loads(text)["cursor"] for text in store.saves] == ["a", "b", "c", None]


@pytest.mark.parametrize("store_type", [ThreeMethods, MemoryCheckpointStore])
def test_a_run_that_ended_in_its_first_node_goes_on_with_the_state_that_it_began_with(store_type):
    async def before(name, state):
        raise OSError

    async def scenario():
        store = store_type()
        first = await run(pipeline(before), store, new_state=lambda: Log(lines=["given"]))
        assert (first.cursor, first.executed_nodes) == ("a", ())
        second = await run(pipeline(), store)
        assert second.state.lines == ["given", "a", "b", "c"]

    asyncio.run(scenario())


@pytest.mark.parametrize("paused_in", ["a", "b", "c"])
def test_a_worker_that_is_suspended_until_another_has_completed_the_run_changes_nothing(paused_in):
    reached, completed = asyncio.Event(), asyncio.Event()

    async def pause(name, state):
        if name == paused_in:
            reached.set()
            await completed.wait()

    async def scenario():
        store = MemoryCheckpointStore()
        suspended = asyncio.create_task(run(pipeline(pause), store))
        await reached.wait()
        result = await run(pipeline(), store)
        assert result.executed_nodes == ("a", "b", "c")
        completed.set()
        with pytest.raises(StoreConflictError):
            await suspended
        assert store.size == 0

    asyncio.run(scenario())


def test_of_two_workers_that_begin_at_the_same_time_one_runs_nothing():
    ran = []

    async def before(name, state):
        ran.append(name)

    class Slow(MemoryCheckpointStore):
        async def load_versioned(self, key):
            entry = await super().load_versioned(key)
            await both.wait()
            return entry

    async def scenario():
        workers = (run(pipeline(before), store) for _ in range(2))
        outcomes = await asyncio.gather(*workers, return_exceptions=True)
        assert sorted(type(outcome).__name__ for outcome in outcomes) == ["ExecutionResult", "StoreConflictError"]
        assert ran == ["a", "b", "c"]

    both = asyncio.Barrier(2)
    store = Slow()
    asyncio.run(scenario())


def test_a_run_whose_first_save_was_not_acknowledged_goes_on_from_it():
    class Unacknowledged(MemoryCheckpointStore):
        async def save_if(self, key, json, *, expected):
            await super().save_if(key, json, expected=expected)
            raise StoreUnavailableError("the acknowledgement was lost")

    async def scenario():
        unacknowledged = Unacknowledged()
        with pytest.raises(StoreUnavailableError):
            await run(pipeline(), unacknowledged, new_state=lambda: Log(lines=["given"]))
        store = MemoryCheckpointStore()
        await store.save("k", await unacknowledged.load("k"))
        assert (await run(pipeline(), store)).state.lines == ["given", "a", "b", "c"]

    asyncio.run(scenario())


def test_a_second_worker_on_the_same_key_loses():
    async def scenario():
        store = MemoryCheckpointStore()
        ready = asyncio.Barrier(2)

        async def meet(name, state):
            if name == "b":
                await ready.wait()

        await store.save(
            "k",
            '{"version":"1","dagName":"d","cursor":"b","state":{"lines":["a"]},"executedNodes":["a"],"skippedNodes":[]}',
        )
        outcomes = await asyncio.gather(*(run(pipeline(meet), store) for _ in range(2)), return_exceptions=True)
        assert sorted(type(outcome).__name__ for outcome in outcomes) == ["ExecutionResult", "StoreConflictError"]
        assert await store.load("k") is None

    asyncio.run(scenario())


def test_two_workers_on_the_last_node_cannot_both_succeed():
    async def scenario():
        store = MemoryCheckpointStore()
        ready = asyncio.Barrier(2)

        async def meet(name, state):
            await ready.wait()

        await store.save(
            "k",
            '{"version":"1","dagName":"d","cursor":"c","state":{"lines":["a","b"]},"executedNodes":["a","b"],"skippedNodes":[]}',
        )
        outcomes = await asyncio.gather(*(run(pipeline(meet), store) for _ in range(2)), return_exceptions=True)
        assert sum(isinstance(outcome, StoreConflictError) for outcome in outcomes) == 1

    asyncio.run(scenario())


def test_a_worker_killed_between_its_last_save_and_the_deletion_has_completed():
    async def scenario():
        store = ThreeMethods()
        await run(pipeline(), store)
        store.texts["k"] = store.saves[-1]
        result = await run(pipeline(), store)
        assert result.state.lines == ["a", "b", "c"]
        assert (result.cursor, result.state.lifecycle.kind) == (None, "completed")
        assert store.texts == {}

    asyncio.run(scenario())


def test_cancellation_propagates_and_the_checkpoint_stays():
    async def before(name, state):
        if name == "b":
            await asyncio.Event().wait()

    async def scenario():
        store = MemoryCheckpointStore()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await run(pipeline(before), store)
        result = await run(pipeline(), store)
        assert result.state.lines == ["a", "b", "c"]

    asyncio.run(scenario())


def test_a_timeout_stops_the_run_and_the_checkpoint_stays():
    async def before(name, state):
        if name == "b":
            await asyncio.Event().wait()

    async def scenario():
        store = MemoryCheckpointStore()
        result = await run(pipeline(before), store, timeout=0.3)
        assert (result.cursor, result.state.lifecycle.kind) == ("b", "timed_out")
        assert store.size == 1

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("entry", "error"),
    [
        ("not a checkpoint", ValidationError),
        ('{"version":"1","dagName":"other","cursor":"b","state":{},"executedNodes":[],"skippedNodes":[]}', DAGError),
        ('{"version":"1","dagName":"d","cursor":"z","state":{},"executedNodes":[],"skippedNodes":[]}', DAGError),
        (
            '{"version":"1","dagName":"d","cursor":"b","state":{"lines":7},"executedNodes":[],"skippedNodes":[]}',
            ValidationError,
        ),
    ],
)
def test_an_entry_that_does_not_fit_is_refused_and_kept(entry, error):
    async def scenario():
        store = MemoryCheckpointStore()
        await store.save("k", entry)
        with pytest.raises(error):
            await run(pipeline(), store)
        assert await store.load("k") == entry

    asyncio.run(scenario())


def test_a_first_state_that_cannot_be_captured_is_refused_before_anything_runs():
    async def before(name, state):
        raise AssertionError(name)

    def new_state():
        state = Log()
        state.set_metadata("when", {1, 2})
        return state

    async def scenario():
        store = MemoryCheckpointStore()
        with pytest.raises(EncodeError, match=r"\$\.state\.metadata\.when: set"):
            await run(pipeline(before), store, new_state=new_state)
        assert store.size == 0

    asyncio.run(scenario())


def test_a_state_that_cannot_be_captured_stops_the_run_with_its_path():
    async def before(name, state):
        state.set_metadata("when", {1, 2})

    async def scenario():
        with pytest.raises(EncodeError, match=r"\$\.state\.metadata\.when: set"):
            await run(pipeline(before), MemoryCheckpointStore())

    asyncio.run(scenario())
