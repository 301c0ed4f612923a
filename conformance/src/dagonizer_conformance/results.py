"""What a run of the kit says: statuses, levels and the report."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Level(StrEnum):
    """What a store can earn. Each level includes the ones before it."""

    CORE = "CORE"
    CONCURRENT = "CONCURRENT"
    CRASH_SAFE = "CRASH-SAFE"


def levels_up_to(level: Level | str) -> tuple[Level, ...]:
    """Return ``level`` and those before it. Raises ``ValueError`` if it is none."""
    levels = tuple(Level)
    return levels[: levels.index(Level(level)) + 1]


class Capability(StrEnum):
    """What a store may offer beyond its three methods, each earned as a chip of its own."""

    CLOSE = "close"
    LISTING = "listing"
    COMPARE_AND_SWAP = "compare-and-swap"
    NETWORK = "network"


class Status(StrEnum):
    """How a case ended. Nothing but PASS raises a level."""

    PASS = "PASS"  # noqa: S105 - not a password
    """The store does what the case asks."""
    FAIL = "FAIL"
    """It does not."""
    XFAIL = "XFAIL"
    """It does not, as its harness says, with a reason and a date until which this is tolerated."""
    UNSUPPORTED = "UNSUPPORTED"
    """The store does not offer the capability, and this was checked."""
    UNVERIFIED = "UNVERIFIED"
    """The harness has no hook for what the case needs."""
    INCONCLUSIVE = "INCONCLUSIVE"
    """The case could not tell: its time was up, or the overlap or cancellation it is about never happened."""
    ERROR = "ERROR"
    """The kit or the harness is at fault, not the store."""


class Operation(msgspec.Struct, frozen=True):
    """One call of a store, as its client saw it. Times are seconds since the case began."""

    client: str
    """Which client called, such as ``client 2`` or ``process 1``."""
    name: str
    """The method: ``save``, ``load``, ``delete``, ``save_if``, …"""
    key: str
    """The key, or the prefix of a listing."""
    argument: str | None
    """A short label of the text that was given, such as ``writer 2 #17``; None for methods without one."""
    started: float
    """When it was called."""
    ended: float | None
    """When it returned; None when the call never returned."""
    outcome: str
    """A short label of what it returned or raised: ``None``, ``writer 1 #4``, ``CancelledError``, ``unknown``."""


class Result(msgspec.Struct, frozen=True):
    """How one case ended."""

    id: str
    """Such as ``key.case-is-kept``."""
    group: str
    """The part of the id before the dot."""
    level: Level | None
    """The level that the case counts for; None when it counts for a capability."""
    capability: Capability | None
    sentence: str
    """What a store must do, in one sentence."""
    status: Status
    detail: str
    """Why, in one or more lines; may be empty for PASS."""
    seconds: float
    """How long it took."""
    reproduction: str | None = None
    """The commands that reproduce a failure."""
    timeline: tuple[Operation, ...] = ()
    """For a linearizability failure: the shortest part of the history that no single register can explain."""


class Report(msgspec.Struct, frozen=True):
    """What a run says of a store."""

    store: str
    """What was tested, without secrets."""
    namespaces: str
    """How the run kept its keys apart from others, in a few words."""
    seed: int
    """What its random choices began with; another run with it makes the same."""
    budget: str
    """``smoke``, ``default`` or ``soak``."""
    started: str
    """UTC, ISO 8601."""
    seconds: float
    """How long the run took."""
    kit_version: str
    """The version of dagonizer-conformance."""
    python: str
    """The version of Python."""
    complete: bool
    """Whether every case was run; a selection earns no level."""
    results: tuple[Result, ...]
    """One for each case, in the order in which they ran."""

    @property
    def levels(self) -> tuple[Level, ...]:
        """The levels that the store has earned: every case of the level, and of those before it, passed."""
        earned: list[Level] = []
        for level in Level:
            of_level = [result for result in self.results if result.level == level]
            if not self.complete or not of_level or any(result.status != Status.PASS for result in of_level):
                break
            earned.append(level)
        return tuple(earned)

    @property
    def chips(self) -> tuple[Capability, ...]:
        """The capabilities that the store has earned: every case of the capability passed."""
        earned = []
        for capability in Capability:
            of_capability = [result for result in self.results if result.capability == capability]
            if self.complete and of_capability and all(result.status == Status.PASS for result in of_capability):
                earned.append(capability)
        return tuple(earned)

    @property
    def conforms(self) -> bool:
        """Whether some case passed, and every other one passed or could not apply. A deviation does not conform."""
        fine = {Status.PASS, Status.UNSUPPORTED, Status.UNVERIFIED}
        statuses = {result.status for result in self.results}
        return Status.PASS in statuses and statuses <= fine

    @property
    def exit_code(self) -> int:
        """0: as expected, with its deviations; 1: it does not conform; 2: inconclusive; 3: the harness failed."""
        statuses = {result.status for result in self.results}
        if Status.ERROR in statuses or not self.results:
            return 3
        if Status.FAIL in statuses:
            return 1
        if Status.INCONCLUSIVE in statuses or Status.PASS not in statuses:
            return 2
        return 0

    def counts(self) -> dict[Status, int]:
        """Return how many cases ended in each status, leaving out those with none."""
        return {status: n for status in Status if (n := sum(r.status == status for r in self.results))}
