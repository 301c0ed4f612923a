"""What the faults did, a row each, as JSON and as a table."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
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
    acknowledged before, ``torn`` the values that were damaged. ``longest_wait`` is in seconds, for one call.
    """

    fault: str
    store: str
    injected: int
    acknowledged: int
    longest_wait: float
    lost: int = 0
    torn: int = 0
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
            longest_wait=judgement.longest_wait,
            lost=len(judgement.lost) + len(judgement.impossible),
            torn=len(judgement.torn),
            errors=dict(judgement.errors),
            notes=notes,
        )


def write(folder: Path, rows: Sequence[Row], *, seed: int, scale: str) -> None:
    """Write ``faults.json`` and ``faults.md`` into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    document = {"seed": seed, "scale": scale, "rows": [asdict(row) for row in rows]}
    (folder / "faults.json").write_text(json.dumps(document, indent=2) + "\n")
    (folder / "faults.md").write_text(f"Seed {seed}, {scale}.\n\n{table(rows)}\n")


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table."""
    names, alignments = zip(*_COLUMNS, strict=True)
    return "\n".join(map(_line, (names, alignments, *map(_cells, rows))))


def _cells(row: Row) -> Sequence[str]:
    errors = ", ".join(f"{count:,} {name}" for name, count in sorted(row.errors.items())) or "none"
    counts = (row.injected, row.acknowledged, row.lost, row.torn)
    return (row.fault, row.store, *(f"{count:,}" for count in counts), f"{row.longest_wait:.2f} s", errors, row.notes)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
