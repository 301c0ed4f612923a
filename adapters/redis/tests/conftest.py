"""The README, so that the tests try exactly what it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def readme() -> str:
    return Path(__file__).parent.parent.joinpath("README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def grants(readme: str) -> dict[str, str]:
    """Return the commands that the README grants, by the words before them."""
    return dict(re.findall(r"^- (.+): `(\+.+)`$", readme, re.MULTILINE))
