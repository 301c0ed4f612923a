"""What the faults did, a row each, as JSON and as a table."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from typing import Self

    from faults.ledger import Judgement

_COLUMNS = (
    ("fault", "---"),
    ("store", "---"),
    ("injected", "---:"),
    ("acknowledged", "---:"),
    ("lost", "---:"),
    ("torn", "---:"),
    ("longest wait", "---:"),
    ("errors seen", "---"),
    ("notes", "---"),
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one fault did to one store.

    ``acknowledged`` counts the operations that succeeded while it was injected, ``lost`` the reads that missed what was
    acknowledged before and the keys with a history that no order explains, ``torn`` the values that were damaged.
    ``longest_wait`` is in seconds, for one call.
    """

    fault: str
    store: str
    injected: int
    acknowledged: int
    lost: int
    torn: int
    longest_wait: float
    errors: Mapping[str, int] = field(default_factory=dict)
    notes: str = ""

    @classmethod
    def of(cls, judgement: Judgement, fault: str, store: str, *, injected: int, notes: str = "") -> Self:
        """Return the row of a test whose clients kept ledgers."""
        return cls(
            fault=fault,
            store=store,
            injected=injected,
            acknowledged=judgement.acknowledged,
            lost=len(judgement.lost) + len(judgement.impossible),
            torn=len(judgement.torn),
            longest_wait=judgement.longest_wait,
            errors=dict(judgement.errors),
            notes=notes,
        )


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a run did. A test that is among ``failed`` or ``skipped`` may lack its row."""

    seed: int
    scale: str
    rows: Sequence[Row]
    failed: Sequence[str]
    skipped: Sequence[str]

    def write(self, folder: Path) -> None:
        """Write ``faults.json`` and ``faults.md`` into ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        # Not asdict, which cannot copy a Counter before Python 3.12.
        document = {**vars(self), "rows": [vars(row) for row in self.rows]}
        (folder / "faults.json").write_text(json.dumps(document, indent=2) + "\n")
        (folder / "faults.md").write_text(f"Seed {self.seed}, {self.scale}.\n\n{self}\n")

    def __str__(self) -> str:
        """Return it as Markdown."""
        names, alignments = zip(*_COLUMNS, strict=True)
        rows = "\n".join(map(_line, (names, alignments, *map(_cells, self.rows))))
        return f"{rows}\n\nFailed: {_names(self.failed)}.\nSkipped: {_names(self.skipped)}."


def _cells(row: Row) -> Sequence[str]:
    errors = ", ".join(f"{count:,} {name}" for name, count in sorted(row.errors.items())) or "none"
    counts = (row.injected, row.acknowledged, row.lost, row.torn)
    return (row.fault, row.store, *(f"{count:,}" for count in counts), f"{row.longest_wait:.2f} s", errors, row.notes)


def _names(tests: Sequence[str]) -> str:
    return ", ".join(f"`{test}`" for test in tests) or "none"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
