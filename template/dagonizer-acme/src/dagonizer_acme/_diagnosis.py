"""What ``dagonizer doctor`` finds in Acme."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dagonizer.diagnosis import DURABILITY, Finding

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from dagonizer_acme._config import AcmeConfig


async def diagnose(config: AcmeConfig) -> AsyncIterator[Finding]:
    """Yield what is found at the server of ``config``, over connections of its own. Nothing is changed there."""
    # Before it: version, rights, space, and every setting that can lose checkpoints, each with its remedy. Saves, loads
    # and their time are looked at already, for every store.
    yield judge_durability(config)


def judge_durability(config: AcmeConfig) -> Finding:
    """Return which failures an acknowledged save outlives: of the process, the server, the machine, its disk."""
    message = f"unknown: dagonizer_acme/_diagnosis.py does not tell yet what a save outlives at {config.where}"
    return Finding(check=DURABILITY, verdict="note", message=message)
