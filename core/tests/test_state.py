import datetime
import decimal
import enum
import uuid
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagonizer import Checkpoint, CheckpointData, DAGError, EncodeError, NodeStateBase, ValidationError
from dagonizer.state import Lifecycle


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclass
class Inner:
    at: datetime.datetime
    tags: frozenset[str] = frozenset()


@dataclass
class Everything(NodeStateBase):
    number: int
    ratio: float = 0.5
    when: datetime.datetime | None = None
    day: datetime.date | None = None
    span: datetime.timedelta = datetime.timedelta()
    ident: uuid.UUID = uuid.UUID(int=0)
    price: decimal.Decimal = decimal.Decimal(0)
    colour: Colour = Colour.RED
    raw: bytes = b""
    pair: tuple[int, str] = (0, "")
    names: set[str] = field(default_factory=set)
    by_number: dict[int, list[Inner]] = field(default_factory=dict)
    text: str = ""


MOMENTS = st.datetimes(timezones=st.none() | st.just(datetime.UTC))
STATES = st.builds(
    Everything,
    number=st.integers(),
    ratio=st.floats(allow_nan=False, allow_infinity=False),
    when=st.none() | MOMENTS,
    day=st.none() | st.dates(),
    span=st.timedeltas(datetime.timedelta(-10_000), datetime.timedelta(10_000)),
    ident=st.uuids(),
    price=st.decimals(allow_nan=False, allow_infinity=False),
    colour=st.sampled_from(Colour),
    raw=st.binary(max_size=8),
    pair=st.tuples(st.integers(), st.text(max_size=4)),
    names=st.sets(st.text(max_size=4), max_size=3),
    by_number=st.dictionaries(
        st.integers(-(2**63), 2**63),
        st.lists(st.builds(Inner, at=MOMENTS, tags=st.frozensets(st.text(max_size=3))), max_size=2),
        max_size=2,
    ),
    text=st.text(st.characters(), max_size=6),
    metadata=st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


def through_json(state):
    data = CheckpointData(dag_name="d", cursor="n", state=state.snapshot(), executed_nodes=(), skipped_nodes=())
    return Checkpoint.restore(Checkpoint.to_json(data), type(state).restore).state


@given(STATES)
def test_a_dataclass_state_comes_back_with_its_types(state):
    assert through_json(state) == state


def test_a_lone_surrogate_in_a_typed_field_survives():
    assert through_json(Everything(number=1, text="cut \ud83d")).text == "cut \ud83d"


def test_errors_warnings_and_metadata_survive_and_the_lifecycle_does_not():
    state = Everything(number=1)
    state.set_metadata("k", [1])
    state.collect_error("E", "m", operation="op", recoverable=False, context={"a": 1})
    state.collect_warning("W", "m", operation="op", timestamp="2026-05-13T00:00:00Z")
    state.transition("running")
    restored = through_json(state)
    assert restored == state
    assert restored.get_metadata("k") == [1]
    assert restored.get_metadata("absent", 7) == 7
    assert restored.warnings[0]["timestamp"] == "2026-05-13T00:00:00Z"
    assert restored.lifecycle == Lifecycle("pending")


@dataclass
class Loose(NodeStateBase):
    anything: object = None


@pytest.mark.parametrize("value", [(1, 2), {1, 2}, datetime.date(2026, 1, 1), {"a": (1,)}, {1: 2}])
def test_a_value_that_its_annotation_would_not_bring_back_is_refused(value):
    with pytest.raises(EncodeError, match=r"\$\.state\.anything.*annotate"):
        Loose(anything=value).snapshot()


def test_a_value_of_another_type_than_annotated_is_refused():
    with pytest.raises(EncodeError, match=r"\$\.state\.text: Expected `str`, got `int`"):
        Everything(number=1, text=3).snapshot()


def test_nan_in_a_typed_field_is_named_by_the_codec():
    with pytest.raises(EncodeError, match=r"\$\.state\.ratio: nan is not a JSON value"):
        through_json(Everything(number=1, ratio=float("nan")))


class Hooked(NodeStateBase):
    def __init__(self):
        super().__init__()
        self.items = []

    def snapshot_data(self):
        return {"items": [*self.items]}

    def restore_data(self, snap):
        self.items = list(snap["items"])


def test_the_hooks_capture_what_they_say():
    state = Hooked()
    state.items.append("a")
    assert through_json(state).items == ["a"]


class Forgetful(NodeStateBase):
    def __init__(self):
        super().__init__()
        self.items = []
        self._cache = {}


class Annotated(NodeStateBase):
    items: list[str] = []  # noqa: RUF012 - the mistake that is tested


@pytest.mark.parametrize("cls", [Forgetful, Annotated])
def test_an_attribute_that_nothing_captures_is_an_error_not_a_loss(cls):
    with pytest.raises(EncodeError, match=r"\$\.state\.items.*would not capture"):
        cls().snapshot()


def test_a_misspelt_attribute_of_a_dataclass_is_an_error():
    state = Everything(number=1)
    state.nubmer = 2
    with pytest.raises(EncodeError, match="nubmer"):
        state.snapshot()


class Reserved(NodeStateBase):
    def snapshot_data(self):
        return {"errors": []}


def test_the_reserved_names_are_refused():
    with pytest.raises(EncodeError, match="reserved"):
        Reserved().snapshot()


def test_what_a_dataclass_does_not_know_travels_on_unchanged():
    restored = Loose.restore({"anything": 1, "from_another_engine": [1, {"a": None}]})
    assert restored.snapshot()["from_another_engine"] == [1, {"a": None}]


def test_a_missing_field_keeps_its_default_unless_it_has_none():
    assert Loose.restore({}).anything is None
    with pytest.raises(ValidationError, match=r"\$\.state\.number: missing"):
        Everything.restore({})


@pytest.mark.parametrize(
    ("snap", "path"),
    [
        ({"metadata": []}, "$.state.metadata"),
        ({"errors": None}, "$.state.errors"),
        ({"errors": [1]}, "$.state.errors[0]"),
        ({"warnings": [{"code": "W"}]}, "$.state.warnings[0]"),
        ({"number": "x"}, "$.state.number"),
        ({"number": 1, "by_number": {"7": [{"at": "never"}]}}, "$.state.by_number[...][0].at"),
        ({"number": 1, "colour": "green"}, "$.state.colour"),
    ],
)
def test_a_tampered_state_is_refused_by_path(snap, path):
    with pytest.raises(ValidationError) as caught:
        Everything.restore({"number": 1, **snap})
    assert caught.value.issues[0].path == path


def test_the_lifecycle_moves_only_forward():
    state = NodeStateBase()
    with pytest.raises(DAGError, match="pending cannot become completed"):
        state.transition("completed")
    state.transition("running")
    with pytest.raises(DAGError, match="running cannot become running"):
        state.transition("running")
    state.transition("failed", error=RuntimeError("x"))
    with pytest.raises(DAGError, match="failed cannot become running"):
        state.transition("running")


def test_a_clone_is_independent_and_pending():
    state = Everything(number=1, names={"a"})
    state.transition("running")
    twin = state.clone()
    assert twin == state
    assert twin.lifecycle.kind == "pending"
    twin.names.add("b")
    twin.metadata["k"] = 1
    assert state.names == {"a"}
    assert state.metadata == {}
