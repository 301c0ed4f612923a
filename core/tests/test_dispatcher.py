import asyncio
from dataclasses import dataclass, field

import pytest

from dagonizer import DAGError, Dagonizer, NodeStateBase, node


@dataclass
class Log(NodeStateBase):
    lines: list[str] = field(default_factory=list)


def single(name, outputs, runs=None):
    return {"type": "single", "name": name, "node": runs or name, "outputs": outputs}


def chain(*functions, name="chain"):
    dispatcher = Dagonizer()
    names = [function.__name__ for function in functions]
    for function in functions:
        dispatcher.register_node(node()(function))
    nodes = [single(a, {"success": b}) for a, b in zip(names, [*names[1:], None], strict=True)]
    dispatcher.register_dag({"name": name, "version": "1", "entrypoint": names[0], "nodes": nodes})
    return dispatcher


async def one(state, context):
    state.lines.append("one")


async def two(state, context):
    state.lines.append("two")


async def three(state, context):
    state.lines.append("three")


async def hang(state, context):
    state.lines.append("hang")
    await asyncio.Event().wait()


async def complete_run():
    result = await chain(one, two, three).execute("chain", Log())
    assert result.state.lines == ["one", "two", "three"]
    assert result.cursor is None
    assert result.executed_nodes == ("one", "two", "three")
    assert result.state.lifecycle.kind == "completed"


def test_a_run_executes_its_nodes_in_order():
    asyncio.run(complete_run())


def test_every_step_has_the_next_node_as_its_cursor():
    async def scenario():
        execution = chain(one, two, three).execute("chain", Log())
        assert (execution.result.cursor, execution.result.executed_nodes) == ("one", ())
        steps = [(step.cursor, step.executed_nodes[-1]) async for step in execution]
        assert steps == [("two", "one"), ("three", "two"), (None, "three")]
        assert (await execution).cursor is None
        assert [step async for step in execution] == []

    asyncio.run(scenario())


def test_it_advances_only_while_it_is_driven():
    async def scenario():
        execution = chain(one, two, three).execute("chain", Log())
        async for step in execution:
            assert step.state.lines == ["one"]
            await asyncio.sleep(0)
            assert step.state.lines == ["one"]
            break
        assert (await execution).state.lines == ["one", "two", "three"]
        assert (await execution).state.lines == ["one", "two", "three"]

    asyncio.run(scenario())


def test_the_signal_stops_a_run_between_nodes_and_resume_goes_on():
    async def stop(state, context):
        context.signal.set()

    async def scenario():
        dispatcher = chain(stop, two, three)
        result = await dispatcher.execute("chain", Log(), signal=asyncio.Event())
        assert (result.cursor, result.executed_nodes) == ("two", ("stop",))
        assert result.state.lifecycle.kind == "cancelled"
        resumed = await dispatcher.resume("chain", result.state, result.cursor, executed_nodes=result.executed_nodes)
        assert resumed.executed_nodes == ("stop", "two", "three")
        assert resumed.state.lifecycle.kind == "completed"

    asyncio.run(scenario())


def test_the_signal_stops_a_node_in_its_middle():
    async def scenario():
        signal = asyncio.Event()
        asyncio.get_running_loop().call_later(0.2, signal.set)
        result = await chain(one, hang, three).execute("chain", Log(), signal=signal)
        assert (result.cursor, result.executed_nodes) == ("hang", ("one",))
        assert result.state.lifecycle.kind == "cancelled"
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(scenario())


def test_the_timeout_stops_a_node_in_its_middle():
    async def scenario():
        result = await chain(one, hang).execute("chain", Log(), timeout=0.2)
        assert result.cursor == "hang"
        assert result.state.lifecycle.kind == "timed_out"
        assert "0.2 s" in result.state.lifecycle.reason

    asyncio.run(scenario())


def test_a_cancelled_task_leaves_a_result_to_checkpoint():
    async def scenario():
        execution = chain(one, hang).execute("chain", Log())

        async def drive():
            await execution

        task = asyncio.create_task(drive())
        while not execution._result.state.lines[1:]:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        result = await execution
        assert (result.cursor, result.state.lifecycle.kind) == ("hang", "cancelled")
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(scenario())


def test_a_failing_node_is_the_cursor_and_the_lifecycle_says_why():
    async def fail(state, context):
        raise OSError("disk")

    async def scenario():
        result = await chain(one, fail).execute("chain", Log())
        assert (result.cursor, result.executed_nodes) == ("fail", ("one",))
        assert result.state.lifecycle.kind == "failed"
        assert isinstance(result.state.lifecycle.error, OSError)

    asyncio.run(scenario())


def test_a_failure_that_is_falsy_is_a_failure():
    class EmptyError(Exception):
        def __bool__(self):
            return False

    async def fail(state, context):
        raise EmptyError

    async def scenario():
        result = await chain(fail).execute("chain", Log())
        assert isinstance(result.state.lifecycle.error, EmptyError)

    asyncio.run(scenario())


def test_a_node_that_cancels_itself_has_failed():
    async def quit_early(state, context):
        raise asyncio.CancelledError

    async def scenario():
        result = await chain(quit_early).execute("chain", Log())
        assert result.state.lifecycle.kind == "failed"
        assert "cancelled itself" in str(result.state.lifecycle.error)

    asyncio.run(scenario())


def test_a_time_limit_inside_a_node_is_a_failure_of_the_node():
    async def slow(state, context):
        async with asyncio.timeout(0):
            await asyncio.Event().wait()

    async def scenario():
        result = await chain(slow).execute("chain", Log(), timeout=30)
        assert result.state.lifecycle.kind == "failed"
        assert isinstance(result.state.lifecycle.error, TimeoutError)

    asyncio.run(scenario())


def test_an_interrupt_is_not_a_failure_of_the_node():
    async def interrupt(state, context):
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        asyncio.run(chain(interrupt).execute("chain", Log())._finish())


def branching():
    dispatcher = Dagonizer()

    @node(outputs=("left", "right"))
    async def choose(state, context):
        return state.lines[0]

    dispatcher.register_node(choose)
    dispatcher.register_node(node()(two))
    dispatcher.register_node(node(name="other")(three))
    dispatcher.register_dag(
        {
            "name": "d",
            "version": "1",
            "entrypoint": "choose",
            "nodes": [
                single("choose", {"left": "L", "right": "R"}),
                single("L", {"success": "R"}, "two"),
                single("R", {"success": None}, "other"),
            ],
        }
    )
    return dispatcher


@pytest.mark.parametrize(("output", "executed"), [("left", ("choose", "L", "R")), ("right", ("choose", "R"))])
def test_the_output_of_a_node_chooses_the_way(output, executed):
    async def scenario():
        result = await branching().execute("d", Log(lines=[output]))
        assert result.executed_nodes == executed

    asyncio.run(scenario())


def test_an_unknown_output_fails_the_node():
    async def scenario():
        result = await branching().execute("d", Log(lines=["up"]))
        assert result.cursor == "choose"
        assert "'up'" in str(result.state.lifecycle.error)

    asyncio.run(scenario())


GOOD = {"name": "d", "version": "1", "entrypoint": "a", "nodes": [single("a", {"success": None}, "one")]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"entrypoint": "b"}, "no node 'b'"),
        ({"nodes": []}, "no node 'a'"),
        ({"nodes": [single("a", {"success": "b"}, "one")]}, "no node 'b'"),
        ({"nodes": [single("a", {"success": "a"}, "one")]}, "cycle"),
        ({"nodes": [single("a", {"success": "b"}, "one"), single("b", {"success": "a"}, "one")]}, "cycle"),
        ({"nodes": [single("a", {"success": None}, "nine")]}, "'nine', which is not registered"),
        ({"nodes": [single("a", {}, "one")]}, "success"),
        ({"nodes": [single("a", {"success": None, "x": None}, "one")]}, "x"),
        ({"nodes": [*GOOD["nodes"], *GOOD["nodes"]]}, "two nodes 'a'"),
        ({"nodes": [{**GOOD["nodes"][0], "type": "parallel"}]}, "single"),
        ({"extra": 1}, "extra"),
        ({"name": 1}, "Expected `str`"),
    ],
)
def test_a_malformed_dag_is_refused(change, message):
    dispatcher = Dagonizer()
    dispatcher.register_node(node()(one))
    with pytest.raises(DAGError, match=message):
        dispatcher.register_dag({**GOOD, **change})
    dispatcher.register_dag(GOOD)


def test_misuse_is_refused_at_once():
    dispatcher = chain(one)
    with pytest.raises(DAGError, match="registered already"):
        dispatcher.register_node(node()(one))
    with pytest.raises(DAGError, match="no outputs"):
        dispatcher.register_node(node(name="n", outputs=())(one))
    with pytest.raises(DAGError, match="no DAG 'x' is registered; there are: chain"):
        dispatcher.execute("x", Log())
    with pytest.raises(DAGError, match="no node 'x'"):
        dispatcher.resume("chain", Log(), "x")

    async def scenario():
        result = await dispatcher.execute("chain", Log())
        with pytest.raises(DAGError, match="clone"):
            dispatcher.execute("chain", result.state)

    asyncio.run(scenario())


def test_two_tasks_cannot_advance_one_execution():
    async def scenario():
        execution = chain(hang).execute("chain", Log())
        task = asyncio.ensure_future(execution._finish())
        await asyncio.sleep(0)
        with pytest.raises(DAGError, match="another task"):
            await execution
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())
