"""A mutant: a broken store, and the cases that exist to catch it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dagonizer_conformance.mutants.reference import ReferenceHarness, ReferenceStore

if TYPE_CHECKING:
    from collections.abc import Callable

    from dagonizer_conformance.harness import Harness


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """A store that breaks the contract in one way."""

    id: str
    sentence: str
    """What it does wrong."""
    caught_by: tuple[str, ...]
    """The ids of the cases that catch it, each of them reliably."""
    harness: Callable[[], Harness]
    """Makes a new harness for it."""
    store: type[ReferenceStore] = ReferenceStore
    """The class that clients use, for those in other processes to find."""


def mutant(id: str, *caught_by: str, faults: tuple[str, ...] = ()) -> Callable[[type[ReferenceStore]], Mutant]:  # noqa: A002
    """Make a ``Mutant`` of a class, whose docstring says what it does wrong; ``faults`` are the server's."""

    def decorate(store: type[ReferenceStore]) -> Mutant:
        return Mutant(
            id=id,
            sentence=" ".join((store.__doc__ or "").split()),
            caught_by=caught_by,
            harness=lambda: ReferenceHarness(store, faults=faults),
            store=store,
        )

    return decorate
