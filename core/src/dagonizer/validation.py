"""The wire format: one typed pass over valid documents, and a full report on invalid ones.

The JSON Schema in ``schema/checkpoint-1.json`` is the norm; ``CheckpointData`` is the same in types. ``msgspec``
decodes at C speed. Only what it refuses goes to the standard ``json`` and to ``jsonschema``, which find all that is
wrong, or that nothing is: ``msgspec`` refuses lone-surrogate escapes, which the format allows.
"""

from __future__ import annotations

import copy
import functools
import json
import math
import re
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import msgspec

from dagonizer.errors import EncodeError, ValidationError, ValidationIssue

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import jsonschema

VERSION: Literal["1"] = "1"
"""The version of the wire format."""

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_SHOWN_CHARACTERS = 80
_SCHEMA_DEPTH = 2


class CheckpointData(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """A checkpoint as it stands in its document.

    ``cursor`` is the name of the node to run next, None once the run is complete; ``state`` is a JSON object;
    ``executed_nodes`` and ``skipped_nodes`` are names in the order in which they happened.
    """

    version: Literal["1"] = VERSION
    dag_name: Annotated[str, msgspec.Meta(min_length=1)]
    cursor: str | None
    state: dict[str, Any]
    executed_nodes: tuple[str, ...]
    skipped_nodes: tuple[str, ...]


class _Document(CheckpointData, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    version: Literal["1"]  # pyright: ignore[reportGeneralTypeIssues] - in a document it has no default


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(_Document)


def encode(data: CheckpointData, *, indent: int | None = None) -> str:
    """Return ``data`` as its JSON document; see ``Checkpoint.to_json``."""
    try:
        raw = _encoder.encode(data)
        decoded: CheckpointData = _decoder.decode(raw)
        if decoded.state == data.state and _names(decoded) == _names(data):
            return (raw if indent is None else msgspec.json.format(raw, indent=indent)).decode()
    except (TypeError, ValueError, RecursionError):
        pass  # the walk below finds the value, or that it has a lone surrogate, which msgspec does not write
    fields = _fields(data)
    try:
        _refuse_altered(fields, "$")
    except RecursionError as exc:
        raise EncodeError("$.state: nested too deeply to be written as JSON") from exc
    issues = schema_issues(fields)
    if issues:
        raise EncodeError(str(issues[0]))
    separators = (",", ":") if indent is None else (",", ": ")
    try:
        text = json.dumps(fields, ensure_ascii=False, allow_nan=False, separators=separators, indent=indent)
    except (ValueError, RecursionError) as exc:
        raise EncodeError(f"$.state: {exc}") from exc
    return _LONE_SURROGATE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def decode(raw: str | bytes | Mapping[str, Any]) -> CheckpointData:
    """Return the checkpoint that the document ``raw`` holds.

    Raises ``ValidationError`` with everything that is wrong with it, and nothing else whatever ``raw`` is.
    """
    try:
        if isinstance(raw, (str, bytes, bytearray)):
            return _decoder.decode(raw)
    except (ValueError, RecursionError):
        pass  # the slow way says why, and accepts the lone surrogates that msgspec refuses
    document = _parsed(raw)
    issues = schema_issues(document)
    if issues:
        raise ValidationError(issues)
    return msgspec.convert(document, _Document)


def schema_issues(document: object) -> list[ValidationIssue]:
    """Return everything in which ``document``, as parsed by ``json``, differs from the JSON Schema."""
    return [issue for error in _schema_validator().iter_errors(_outline(document)) for issue in _issues(error)]


def isolated(state: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of ``state`` that later changes to the original do not reach."""
    try:
        copied = msgspec.to_builtins(state)
        if copied == state:
            return copied  # type: ignore[no-any-return]  # equal to a dict
    except (TypeError, ValueError, RecursionError):
        pass
    # Something in it is not a JSON value; it is kept as it is, so that the error which is to come can name it.
    return copy.deepcopy(state)


def _names(data: CheckpointData) -> tuple[object, ...]:
    return data.dag_name, data.cursor, tuple(data.executed_nodes), tuple(data.skipped_nodes)


def _fields(data: CheckpointData) -> dict[str, Any]:
    return {
        "version": data.version,
        "dagName": data.dag_name,
        "cursor": data.cursor,
        "state": data.state,
        "executedNodes": list(data.executed_nodes),
        "skippedNodes": list(data.skipped_nodes),
    }


def _refuse_altered(value: object, path: str) -> None:  # noqa: C901 - one case a kind of JSON value
    """Raise ``EncodeError`` with the path of the first value below ``value`` that JSON does not keep."""
    match value:
        case None | bool():
            pass
        case str():
            # Two lone surrogates in a row would be read as the one character that they encode.
            if _LONE_SURROGATE.search(value) and json.loads(json.dumps(value)) != value:
                raise EncodeError(f"{path}: a surrogate pair as two characters is not a JSON value")
        case float() if not math.isfinite(value):
            raise EncodeError(f"{path}: {value} is not a JSON value")
        case int() | float():
            pass
        case list():
            for index, item in enumerate(value):
                _refuse_altered(item, f"{path}[{index}]")
        case dict():
            for key, item in value.items():
                if not isinstance(key, str):
                    raise EncodeError(f"{path}: the key {key!r} is {_article(type(key).__name__)}, not a str")
                _refuse_altered(key, f"{path}, key {key!r}")
                _refuse_altered(item, json_path(path, key))
        case _:
            raise EncodeError(f"{path}: {type(value).__name__} is not a JSON value")


def _parsed(raw: object) -> object:
    if isinstance(raw, str):
        text = raw
    elif isinstance(raw, (bytes, bytearray)):
        try:
            text = raw.decode()
        except UnicodeDecodeError as exc:
            raise _not_json(f"not UTF-8 text: {exc.reason} at byte {exc.start}") from exc
    else:
        try:
            document = dict(raw)  # type: ignore[call-overload]  # what is not a mapping raises
            _refuse_altered(document, "$")
            text = json.dumps(document)
        except (TypeError, ValueError, RecursionError, EncodeError) as exc:
            raise _not_json(f"not a JSON document: {exc}") from exc
    try:
        return json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    except json.JSONDecodeError as exc:
        raise _not_json(f"not JSON: {exc.msg} (line {exc.lineno}, column {exc.colno})") from exc
    except ValueError as exc:
        raise _not_json(f"not JSON: {exc}") from exc
    except RecursionError as exc:
        raise _not_json("nested too deeply") from exc


def _not_json(message: str) -> ValidationError:
    return ValidationError([ValidationIssue("$", message)])


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError(f"the number {digits[:_SHOWN_CHARACTERS]} is out of range")
    return number


@functools.cache
def _schema_validator() -> jsonschema.Draft202012Validator:
    from importlib.resources import files  # noqa: PLC0415 - only an error report needs these

    from jsonschema import Draft202012Validator  # noqa: PLC0415

    schema = files("dagonizer").joinpath("schema", "checkpoint-1.json").read_bytes()
    return Draft202012Validator(json.loads(schema))


def _outline(value: Any, depth: int = _SCHEMA_DEPTH) -> Any:  # noqa: ANN401 - any JSON value
    """Return ``value`` without what the schema does not look at: jsonschema puts all of it into its messages."""
    match value:
        case str():
            return value[:_SHOWN_CHARACTERS]
        case dict():
            return {key: _outline(item, depth - 1) for key, item in value.items()} if depth == _SCHEMA_DEPTH else {}
        case list() | tuple():
            return [_outline(item, depth - 1) for item in value] if depth else []
        case _:
            return value


def _issues(error: jsonschema.ValidationError) -> Iterator[ValidationIssue]:
    path = functools.reduce(json_path, error.absolute_path, "$")
    allowed: Any = error.validator_value
    found: Any = error.instance
    match error.validator:
        case "required":
            # jsonschema reports each missing field, but names it in its message only.
            name = error.message.removesuffix(" is a required property").strip("'\"")
            yield ValidationIssue(json_path(path, name), "missing")
        case "additionalProperties":
            for name in found.keys() - error.schema["properties"].keys():  # type: ignore[index]
                yield ValidationIssue(json_path(path, name), "unknown field")
        case "type":
            expected = allowed if isinstance(allowed, str) else " or ".join(allowed)
            yield ValidationIssue(path, f"expected {expected}, got {_json_type(found)}")
        case "const":
            yield ValidationIssue(path, f"expected {json.dumps(allowed)}, got {json.dumps(found)}")
        case "minLength":
            yield ValidationIssue(path, "must not be empty")
        case _:
            yield ValidationIssue(path, error.message)


def _json_type(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case str():
            return "string"
        case int() | float():
            return "number"
        case list():
            return "array"
        case dict():
            return "object"
        case _:
            return type(value).__name__


def json_path(path: str, step: object) -> str:
    """Return the path of what ``step``, a name or an index, leads to from ``path``: ``$.state.items[3]["a b"]``."""
    if isinstance(step, int):
        return f"{path}[{step}]"
    if isinstance(step, str) and step.isidentifier():
        return f"{path}.{step}"
    return f"{path}[{json.dumps(step)}]"


def _article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiouAEIOU' else 'a'} {noun}"
