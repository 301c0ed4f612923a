import asyncio
from dataclasses import dataclass, field

import pytest

from dagonizer import (
    DAGError,
    Dagonizer,
    EncodeError,
    MemoryCheckpointStore,
    NodeStateBase,
    StoreConflictError,
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


def run(dispatcher, store, **options):
    return durable.run(dispatcher, "d", Log, store=store, key="k", restore_state=Log.restore, **options)


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


def test_the_checkpoint_is_saved_after_every_node():
    async def scenario():
        store = ThreeMethods()
        await run(pipeline(), store)
        assert [
            f'"cursor":{cursor}' in json for cursor, json in zip(['"b"', '"c"', "null"], store.saves, strict=True)
        ] == [
            True,
            True,
            True,
        ]

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
            async with asyncio.timeout(0.02):
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
        result = await run(pipeline(before), store, timeout=0.02)
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


def test_a_state_that_cannot_be_captured_stops_the_run_with_its_path():
    async def before(name, state):
        state.set_metadata("when", {1, 2})

    async def scenario():
        with pytest.raises(EncodeError, match=r"\$\.state\.metadata\.when: set"):
            await run(pipeline(before), MemoryCheckpointStore())

    asyncio.run(scenario())
