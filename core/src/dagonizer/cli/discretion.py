"""A command line that does not repeat secrets; also that of the conformance kit."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import typer
from typer.core import TyperGroup

from dagonizer.cli.outcome import printable, without_secrets

if TYPE_CHECKING:
    from collections.abc import Iterator

# What typer raises for wrong use; the class is click's, or that of typer's own copy of it.
_WrongUse = cast("type[Exception]", typer.BadParameter.__base__)


class DiscreetGroup(TyperGroup):
    """Commands that do not repeat the secrets of a URL that stands in the wrong place."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - not ours
        """Read the arguments before the command."""
        with _discreet():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 - not ours
        """Read the arguments of the command, and run it."""
        with _discreet():
            return super().invoke(ctx)


@contextmanager
def _discreet() -> Iterator[None]:
    try:
        yield
    except _WrongUse as exc:
        told: Any = exc
        told.message = printable(without_secrets(told.message))
        raise
