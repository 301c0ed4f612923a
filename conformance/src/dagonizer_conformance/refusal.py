"""Expects a store to refuse: what counts as refusing, and every method that must."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from dagonizer import DagonizerError
from dagonizer_conformance.outcomes import Violation, shown

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from typing import Any

    from dagonizer_conformance.client import Client


async def expect_refusal(operation: Awaitable[object], what: str, *classes: type[DagonizerError]) -> None:
    """Raise ``Violation`` unless ``operation`` raises. ``classes`` are those of ``is_refused``."""
    returned = await _returned(operation, what, classes)
    if returned is not _REFUSED:
        raise Violation(f"{what} returned {shown(returned)}; it must raise")


async def is_refused(operation: Awaitable[object], what: str, *classes: type[DagonizerError]) -> bool:
    """Return whether ``operation`` raises.

    A stranger's store raises what it likes; but a ``DagonizerError`` must be one of ``classes``, else ``Violation``.
    """
    return await _returned(operation, what, classes) is _REFUSED


_REFUSED = object()


async def _returned(operation: Awaitable[object], what: str, classes: tuple[type[DagonizerError], ...]) -> object:
    try:
        return await operation
    except Violation:
        raise
    except DagonizerError as exc:
        if not isinstance(exc, classes):
            names = " or ".join(cls.__name__ for cls in classes)
            raise Violation(f"{what} raised {exc!r}, not {names}") from exc
        return _REFUSED
    except Exception:  # noqa: BLE001 - it refuses, in its own words
        return _REFUSED


def every_method(client: Client, key: str, text: str) -> dict[str, Callable[[], Coroutine[Any, Any, object]]]:
    """Return calls of each method that the store has, closing aside; those that write put ``text`` under ``key``."""
    calls: dict[str, Callable[[], Coroutine[Any, Any, object]]] = {
        "save": partial(client.save, key, text),
        "load": partial(client.load, key),
        "delete": partial(client.delete, key),
        "load_versioned": partial(client.load_versioned, key),
        "save_if": partial(client.save_if, key, text, expected=None),
        "list_keys": partial(client.list_keys, key),
    }
    return {name: call for name, call in calls.items() if hasattr(client.store, name)}
