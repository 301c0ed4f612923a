"""The state that a run carries from node to node, and how it is captured and restored."""

from __future__ import annotations

import copy
import dataclasses
import re
from dataclasses import MISSING, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NotRequired, TypedDict, get_type_hints

import msgspec

from dagonizer.errors import DAGError, EncodeError, ValidationError, ValidationIssue

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

LifecycleKind = Literal["pending", "running", "completed", "failed", "cancelled", "timed_out"]

_NEXT: dict[LifecycleKind, tuple[LifecycleKind, ...]] = {
    "pending": ("running",),
    "running": ("completed", "failed", "cancelled", "timed_out"),
}
_MSGSPEC_PATH = re.compile(r"(.*) - at `\$(.*)`", re.DOTALL)
_SHOWN_CHARACTERS = 80


class Lifecycle(msgspec.Struct, frozen=True):
    """Where a run stands: its ``kind``, the ``error`` of a failed run, and the ``reason`` of a stopped one.

    It begins as ``pending``, becomes ``running``, and ends as ``completed``, ``failed``, ``cancelled`` or
    ``timed_out``.
    """

    kind: LifecycleKind = "pending"
    error: Exception | None = None
    reason: str | None = None


class NodeError(TypedDict):
    """An error that a node has collected; ``timestamp`` is RFC 3339 text."""

    code: str
    message: str
    operation: str
    recoverable: bool
    timestamp: str
    context: NotRequired[dict[str, Any]]


class NodeWarning(TypedDict):
    """A warning that a node has collected; ``timestamp`` is RFC 3339 text."""

    code: str
    message: str
    operation: str
    timestamp: str


@dataclass(kw_only=True, eq=False)
class NodeStateBase:
    """The base of every state: metadata, collected errors and warnings, and the lifecycle of the run.

    A subclass that is a dataclass is captured and restored by its annotated fields, with their types: datetime, UUID,
    Enum, tuple, set and nested dataclasses come back as they were. Any other subclass overrides ``snapshot_data`` and
    ``restore_data``. An attribute that neither way would capture makes ``snapshot`` raise; one whose name starts with
    an underscore is transient and is not captured.
    """

    metadata: dict[str, Any] = field(default_factory=dict)
    errors: list[NodeError] = field(default_factory=list)
    warnings: list[NodeWarning] = field(default_factory=list)
    lifecycle: Lifecycle = field(default_factory=Lifecycle, init=False, repr=False, compare=False)
    _unknown: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def get_metadata(self, key: str, default: Any = None) -> Any:  # noqa: ANN401 - metadata holds any JSON value
        """Return the metadata under ``key``, or ``default``."""
        return self.metadata.get(key, default)

    def set_metadata(self, key: str, value: Any) -> None:  # noqa: ANN401 - metadata holds any JSON value
        """Put a JSON value into the metadata."""
        self.metadata[key] = value

    def collect_error(
        self,
        code: str,
        message: str,
        *,
        operation: str,
        recoverable: bool = True,
        context: dict[str, Any] | None = None,
        timestamp: str | None = None,
    ) -> None:
        """Record an error, which is part of every later snapshot.

        ``code`` is for programs and ``message`` for people; ``operation`` says what was being done, and ``context`` is
        a JSON object of what else there is to know. ``timestamp`` is RFC 3339 text: now, in UTC, unless given.
        """
        error: NodeError = {
            "code": code,
            "message": message,
            "operation": operation,
            "recoverable": recoverable,
            "timestamp": timestamp or _now(),
        }
        if context is not None:
            error["context"] = context
        self.errors.append(error)

    def collect_warning(self, code: str, message: str, *, operation: str, timestamp: str | None = None) -> None:
        """Record a warning, which is part of every later snapshot; the arguments are those of ``collect_error``."""
        self.warnings.append(
            {"code": code, "message": message, "operation": operation, "timestamp": timestamp or _now()}
        )

    def transition(self, kind: LifecycleKind, *, error: Exception | None = None, reason: str | None = None) -> None:
        """Move the lifecycle on to ``kind``, as the dispatcher does.

        Raises ``DAGError`` for a move that the lifecycle does not have, such as out of ``completed``.
        """
        if kind not in _NEXT.get(self.lifecycle.kind, ()):
            raise DAGError(f"a state that is {self.lifecycle.kind} cannot become {kind}")
        self.lifecycle = Lifecycle(kind, error, reason)

    def clone(self) -> Self:
        """Return an independent deep copy whose lifecycle is pending."""
        twin = copy.copy(self)
        twin.lifecycle = Lifecycle()
        for name, value in vars(self).items():
            if name != "lifecycle":
                setattr(twin, name, copy.deepcopy(value))
        return twin

    def snapshot(self) -> dict[str, Any]:
        """Return the state as a JSON object: metadata, errors, warnings, and what ``snapshot_data`` returns.

        The lifecycle is not part of it. Raises ``EncodeError`` for a field that would not be restored as it is.
        """
        data = self.snapshot_data()
        reserved = data.keys() & _BASE_NAMES
        if reserved:
            raise EncodeError(
                f"$.state: snapshot_data of {type(self).__name__} returns the reserved {sorted(reserved)}"
            )
        return {"metadata": self.metadata, "errors": self.errors, "warnings": self.warnings, **data}

    @classmethod
    def restore(cls, snap: Mapping[str, Any]) -> Self:
        """Return a state with the contents of ``snap``, its lifecycle pending.

        Raises ``ValidationError`` if ``snap`` does not fit the class.
        """
        types = _field_types(cls)
        state = cls(**{name: _required(name, types[name], snap) for name in _required_names(cls)})
        for name, expected in _BASE_TYPES.items():
            if name in snap:
                _convert(snap[name], expected, name)
                setattr(state, name, snap[name])
        state.restore_data({name: value for name, value in snap.items() if name not in _BASE_TYPES})
        return state

    def snapshot_data(self) -> dict[str, Any]:
        """Return what the subclass adds to the snapshot, as JSON values. Override it with ``restore_data``."""
        cls = type(self)
        types = _field_types(cls)
        stray = [name for name in {**vars(self), **_bare_annotations(cls)} if _is_stray(name, types)]
        if stray:
            raise EncodeError(
                f"$.state.{stray[0]}: {cls.__name__} would not capture it; make {cls.__name__} a dataclass with this "
                "field, override snapshot_data and restore_data, or start the name with an underscore"
            )
        return {**self._unknown, **{name: _built(name, getattr(self, name), of) for name, of in types.items()}}

    def restore_data(self, snap: dict[str, Any]) -> None:
        """Take over what ``snapshot_data`` returned.

        A dataclass keeps the default of a field that ``snap`` lacks, and hands on unchanged what it does not know.
        """
        types = _field_types(type(self))
        for name in types.keys() & snap.keys():
            setattr(self, name, _convert(snap[name], types[name], name))
        self._unknown = {name: value for name, value in snap.items() if name not in types}


_BASE_TYPES: dict[str, Any] = {
    "metadata": dict[str, Any],
    "errors": list[NodeError],
    "warnings": list[NodeWarning],
}
_BASE_NAMES = _BASE_TYPES.keys()
_BASE_FIELDS = {f.name for f in dataclasses.fields(NodeStateBase)}


def _field_types(cls: type[NodeStateBase]) -> dict[str, Any]:
    names = [f.name for f in dataclasses.fields(cls) if f.name not in _BASE_FIELDS and not f.name.startswith("_")]
    hints = get_type_hints(cls, include_extras=True) if names else {}
    return {name: hints[name] for name in names}


def _required_names(cls: type[NodeStateBase]) -> tuple[str, ...]:
    return tuple(
        f.name for f in dataclasses.fields(cls) if f.init and f.default is MISSING and f.default_factory is MISSING
    )


def _bare_annotations(cls: type[NodeStateBase]) -> dict[str, Any]:
    """Return the annotations below the base; a class without @dataclass makes no fields of them."""
    bases = [base for base in cls.__mro__ if issubclass(base, NodeStateBase) and base is not NodeStateBase]
    annotations = {name: of for base in bases for name, of in vars(base).get("__annotations__", {}).items()}
    return {name: of for name, of in annotations.items() if "ClassVar" not in str(of)}


def _is_stray(name: str, types: Mapping[str, Any]) -> bool:
    return not name.startswith("_") and name not in types and name not in _BASE_FIELDS


def _built(name: str, value: object, expected: Any) -> Any:  # noqa: ANN401 - any type form, any JSON value
    try:
        built = msgspec.json.decode(msgspec.json.encode(value))
        if msgspec.convert(built, expected, str_keys=True) == value:
            return built
    except (TypeError, ValueError, RecursionError):
        pass  # JSON text cannot hold a lone surrogate's character or NaN; below they stay, for the codec to judge
    try:
        built = _lists(msgspec.to_builtins(value, str_keys=True))
        same = msgspec.convert(built, expected, str_keys=True) == value
    except (TypeError, ValueError, RecursionError) as exc:
        raise EncodeError(f"$.state.{name}: {exc}") from exc
    if not same and value == value:  # noqa: PLR0124 - NaN alone differs from itself
        shown = repr(value)[:_SHOWN_CHARACTERS]
        raise EncodeError(f"$.state.{name}: {shown} would not come back equal; annotate the field with its exact type")
    return built


def _lists(value: Any) -> Any:  # noqa: ANN401 - any built-in value
    """Return ``value`` with a list for each tuple."""
    match value:
        case dict():
            return {key: _lists(item) for key, item in value.items()}
        case list() | tuple():
            return [_lists(item) for item in value]
        case _:
            return value


def _required(name: str, expected: Any, snap: Mapping[str, Any]) -> Any:  # noqa: ANN401
    if name not in snap:
        raise ValidationError([ValidationIssue(f"$.state.{name}", "missing, and the state's class has no default")])
    return _convert(snap[name], expected, name)


def _convert(value: object, expected: Any, name: str) -> Any:  # noqa: ANN401
    try:
        return msgspec.convert(value, expected, str_keys=True)
    except (ValueError, RecursionError) as exc:
        match = _MSGSPEC_PATH.fullmatch(str(exc))
        message, below = match.groups() if match else (str(exc), "")
        raise ValidationError([ValidationIssue(f"$.state.{name}{below}", message)]) from exc


def _now() -> str:
    from datetime import UTC, datetime  # noqa: PLC0415 - only collecting needs it

    return datetime.now(UTC).isoformat()
