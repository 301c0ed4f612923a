import asyncio
import json
from dataclasses import dataclass, field

from dagonizer import Checkpoint, Dagonizer, NodeStateBase, ValidationError, node


def rounded(value):
    """``value`` with integers as the other language reads them: beyond 2**53 they become floats."""
    return json.loads(
        json.dumps(value), parse_int=lambda digits: int(digits) if abs(int(digits)) <= 2**53 else float(digits)
    )


def test_every_document_gets_the_verdict_of_the_other_implementation(vectors):
    cases = json.loads((vectors / "wire-v1.json").read_text(encoding="utf-8"))
    assert len(cases) > 100
    for case in cases:
        try:
            recalled = Checkpoint.restore(case["raw"], lambda snapshot: snapshot)
        except ValidationError:
            assert case["verdict"] == "reject", case["id"]
            continue
        assert case["verdict"] == "accept", case["id"]
        ours = {
            "dagName": recalled.dag_name,
            "cursor": recalled.cursor,
            "executedNodes": recalled.executed_nodes,
            "skippedNodes": recalled.skipped_nodes,
            "state": recalled.state,
        }
        assert rounded(ours) == rounded(case["recalled"]), case["id"]


@dataclass
class ProcessState(NodeStateBase):
    processed: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    count: int = 0
    ratio: float = 0.1


NODES = ("extract", "transform", "validate", "load", "publish")


def five_nodes():
    """The DAG that the documents were written by, found again from their contents.

    Each node counts up, notes itself, and sets ratio to ratio * 3 + 0.1; from 0.1 that gives the recorded floats.
    """
    dispatcher = Dagonizer()
    for name in NODES:

        async def work(state, context, name=name):
            state.count += 1
            state.processed.append(f"{name}:é😀{state.count}")
            state.ratio = state.ratio * 3 + 0.1
            state.set_metadata(f"last.{name}", {"n": state.count, "nested": [1, [2, None]]})

        dispatcher.register_node(node(name=name)(work))
    following = dict(zip(NODES, [*NODES[1:], None], strict=True))
    dispatcher.register_dag(
        {
            "name": "process",
            "version": "1",
            "entrypoint": "extract",
            "nodes": [
                {"type": "single", "name": name, "node": name, "outputs": {"success": following[name]}}
                for name in NODES
            ],
        }
    )
    return dispatcher


def test_every_run_of_the_other_engine_is_resumed_to_its_recorded_end(vectors):
    async def scenario():
        runs = json.loads((vectors / "engine-runs.json").read_text(encoding="utf-8"))
        assert len(runs) == 4
        for run in runs:
            recalled = Checkpoint.restore(run["json"], ProcessState.restore)
            assert recalled.cursor == run["cursor"]
            assert list(recalled.executed_nodes) == run["executedNodes"]
            assert json.loads(run["json"])["state"] == recalled.state.snapshot()
            result = await five_nodes().resume(recalled.dag_name, recalled.state, recalled.cursor)
            assert result.state.processed == run["finalProcessed"]
            assert result.state.count == run["finalCount"]
            assert result.state.ratio == run["finalRatio"]
            assert list(result.executed_nodes) == run["resumedExecutedNodes"]

    asyncio.run(scenario())
