import asyncio
import datetime
import enum
import json
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from dagonizer import (
    Checkpoint,
    CheckpointData,
    DAGError,
    EncodeError,
    ExecutionResult,
    MemoryCheckpointStore,
    NodeStateBase,
    ValidationError,
)

CORPUS = json.loads((Path(__file__).parent / "corpus.json").read_text(encoding="utf-8"))
VALID = {"version": "1", "dagName": "d", "cursor": "n", "state": {}, "executedNodes": [], "skippedNodes": []}


def same(snapshot):
    return snapshot


def data(**fields):
    return CheckpointData(
        **{"dag_name": "d", "cursor": "n", "state": {}, "executed_nodes": (), "skipped_nodes": (), **fields}
    )


def schema_says(document):
    schema = json.loads(files("dagonizer").joinpath("schema", "checkpoint-1.json").read_text())
    return Draft202012Validator(schema).is_valid(document)


def decoder_says(raw):
    try:
        Checkpoint.restore(raw, same)
    except ValidationError as exc:
        return [issue.path for issue in exc.issues] == ["$.cursor"] and "complete" in exc.issues[0].message
    return True


@pytest.mark.parametrize("case", CORPUS["documents"], ids=lambda case: case["id"])
def test_every_document_of_the_corpus_gets_its_verdict(case):
    if case["verdict"] == "accept":
        recalled = Checkpoint.restore(case["raw"], same)
        assert recalled.state == case["state"]
        again = Checkpoint.to_json(data(dag_name=recalled.dag_name, cursor=recalled.cursor, state=recalled.state))
        assert Checkpoint.restore(again, same).state == case["state"]
    else:
        with pytest.raises(ValidationError) as caught:
            Checkpoint.restore(case["raw"], same)
        assert [issue.path for issue in caught.value.issues] == case["paths"]


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
NAMES = ("version", "dagName", "cursor", "state", "executedNodes", "skippedNodes")


@st.composite
def nearly_documents(draw):
    """A valid document with up to three of its fields replaced, removed or joined by an unknown one."""
    document = {
        "version": "1",
        "dagName": draw(st.text(min_size=1, max_size=5)),
        "cursor": draw(st.none() | st.text(max_size=5)),
        "state": draw(st.dictionaries(st.text(max_size=4), JSON_VALUES, max_size=3)),
        "executedNodes": draw(st.lists(st.text(max_size=5), max_size=3)),
        "skippedNodes": [],
    }
    for name in draw(st.lists(st.sampled_from((*NAMES, "extra")), max_size=3)):
        if draw(st.booleans()):
            document.pop(name, None)
        else:
            document[name] = draw(JSON_VALUES)
    return document


@given(nearly_documents())
def test_the_typed_decoder_and_the_json_schema_agree(document):
    assert decoder_says(json.dumps(document)) == schema_says(document)
    assert decoder_says(document) == schema_says(document)


@given(
    st.one_of(
        st.text(),
        st.binary(),
        JSON_VALUES,
        st.builds(json.dumps, nearly_documents()).flatmap(
            lambda text: st.tuples(st.just(text), st.integers(0, len(text)), st.text(max_size=2)).map(
                lambda cut: cut[0][: cut[1]] + cut[2] + cut[0][cut[1] + 1 :]
            )
        ),
    )
)
def test_no_input_makes_restore_raise_anything_but_validation_error(raw):
    try:
        Checkpoint.restore(raw, NodeStateBase.restore)
    except ValidationError as exc:
        assert exc.issues
        assert str(exc)


@pytest.mark.parametrize("opening", ["[", '{"a":', '{"version":"1","dagName":"d","state":{"a":' + "["])
def test_a_hundred_thousand_brackets_are_a_validation_error(opening):
    with pytest.raises(ValidationError):
        Checkpoint.restore(opening * 100_000, same)


@given(st.dictionaries(st.text(max_size=4), JSON_VALUES, max_size=5), st.sampled_from([None, 2]))
def test_a_json_state_survives_unchanged(state, indent):
    restored = Checkpoint.restore(Checkpoint.to_json(data(state=state), indent=indent), same).state
    assert json.dumps(restored) == json.dumps(state)


class Colour(enum.Enum):
    RED = "red"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), "$.state.v: nan is not a JSON value"),
        (float("-inf"), "$.state.v: -inf is not a JSON value"),
        ((1,), "$.state.v: tuple is not a JSON value"),
        ({1}, "$.state.v: set is not a JSON value"),
        (b"x", "$.state.v: bytes is not a JSON value"),
        (Colour.RED, "$.state.v: Colour is not a JSON value"),
        ({1: 2}, "$.state.v: the key 1 is an int, not a str"),
        ({None: 2}, "$.state.v: the key None is a NoneType, not a str"),
        ([0, {"when": datetime.datetime.now(datetime.UTC)}], "$.state.v[1].when: datetime is not a JSON value"),
        ([0, {"not a name": object()}], '$.state.v[1]["not a name"]: object is not a JSON value'),
        ("\ud83d\ude00", "$.state.v: a surrogate pair as two characters is not a JSON value"),
        ({"\ud83d\ude00": 1}, "surrogate pair"),
        ([10**5000], "$.state"),
    ],
)
def test_what_json_would_change_is_refused_by_path(value, message):
    with pytest.raises(EncodeError) as caught:
        Checkpoint.to_json(data(state={"v": value}))
    assert message in str(caught.value)


def test_a_state_nested_too_deeply_is_refused():
    state = {}
    for _ in range(200_000):
        state = {"a": state}
    with pytest.raises(EncodeError, match="too deeply"):
        Checkpoint.to_json(data(state=state))
    while state:  # taken apart by hand: freeing it at once would recurse
        state = state["a"]


@pytest.mark.parametrize(
    "fields", [{"dag_name": ""}, {"dag_name": b"d"}, {"cursor": 1}, {"executed_nodes": (b"x",)}, {"version": "2"}]
)
def test_data_that_the_schema_refuses_is_not_encoded(fields):
    with pytest.raises(EncodeError):
        Checkpoint.to_json(data(**fields))


def test_a_lone_surrogate_survives_as_the_same_escape():
    raw = json.dumps({**VALID, "state": {"t": "cut \ud83d", "\ude00": "é"}})
    restored = Checkpoint.restore(raw, same)
    assert restored.state == {"t": "cut \ud83d", "\ude00": "é"}
    again = Checkpoint.to_json(data(state=restored.state))
    assert r'"t":"cut \ud83d"' in again
    assert "é" in again
    assert Checkpoint.restore(again, same).state == restored.state


def test_later_changes_do_not_reach_captured_data():
    state = NodeStateBase(metadata={"items": [1]})
    captured = Checkpoint.from_result("d", ExecutionResult(state, "n", ("a",), ()))
    state.metadata["items"].append(2)
    assert captured.state["metadata"] == {"items": [1]}


def test_what_cannot_be_written_is_captured_and_then_named():
    state = NodeStateBase(metadata={"items": (1, object())})
    captured = Checkpoint.from_result("d", ExecutionResult(state, "n", (), ()))
    with pytest.raises(EncodeError, match=r"\$\.state\.metadata\.items: tuple"):
        Checkpoint.to_json(captured)


def test_a_complete_run_has_no_checkpoint():
    with pytest.raises(DAGError, match="complete"):
        Checkpoint.from_result("d", ExecutionResult(NodeStateBase(), None, ("a",), ()))
    with pytest.raises(ValidationError, match=r"\$\.cursor: null"):
        Checkpoint.restore({**VALID, "cursor": None}, same)


def test_persist_and_recall_compose_with_a_store():
    async def scenario():
        store = MemoryCheckpointStore()
        assert await Checkpoint.recall(store, "k", same) is None
        await Checkpoint.persist(store, "k", data(state={"a": 1}))
        recalled = await Checkpoint.recall(store, "k", same)
        assert (recalled.dag_name, recalled.cursor, recalled.state) == ("d", "n", {"a": 1})
        await store.save("k", "not a checkpoint")
        with pytest.raises(ValidationError, match="not JSON"):
            await Checkpoint.recall(store, "k", same)

    asyncio.run(scenario())


def test_importing_dagonizer_imports_no_adapter_no_jsonschema_and_no_asyncio():
    code = "import dagonizer, sys; print([m for m in ('jsonschema', 'asyncio', 'dagonizer_file', 'importlib.metadata', 'typer') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
