"""A case: one promise of the contract, and how it is checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from dagonizer_conformance.context import Context
    from dagonizer_conformance.results import Capability, Level

    Check = Callable[[Context], Awaitable[None]]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One promise of the contract. It counts either for a level or for a capability."""

    id: str
    """Its group and its name: ``key.case-is-kept``."""
    sentence: str
    """What a store must do."""
    oracle: str
    """How the case knows what is right, without believing the store."""
    check: Check
    level: Level | None = None
    capability: Capability | None = None
    seconds: float = 30.0
    """How long it may take before it is given up as inconclusive; ten times as long in the budget ``soak``."""

    @property
    def group(self) -> str:
        """The part of the id before the dot."""
        return self.id.partition(".")[0]


def case(
    id: str,  # noqa: A002 - its name everywhere else
    *,
    oracle: str,
    level: Level | None = None,
    capability: Capability | None = None,
    seconds: float = 30.0,
) -> Callable[[Check], Case]:
    """Make a ``Case`` of the decorated coroutine function, whose docstring is the sentence."""

    def decorate(check: Check) -> Case:
        sentence = " ".join((check.__doc__ or "").split())
        if not sentence or "." not in id or (level is None) == (capability is None):
            raise ValueError(f"{id}: a case needs a docstring, an id with a group, and a level or a capability")
        return Case(
            id=id, sentence=sentence, oracle=oracle, check=check, level=level, capability=capability, seconds=seconds
        )

    return decorate
