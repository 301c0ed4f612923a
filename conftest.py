"""The servers are fixtures of every test."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis

if TYPE_CHECKING:
    import pytest

pytest_plugins = ["dagonizer_test_servers.plugin"]

# A busy machine is slow, which is no failure.
hypothesis.settings.register_profile(
    "patient", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow], print_blob=True
)
hypothesis.settings.load_profile("patient")


def pytest_configure() -> None:
    """Let Ctrl-C work, in what the tests start as well: a shell has what it starts in the background ignore it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of tests/faults, which only this file can whatever folders are tested."""
    group = parser.getgroup("faults")
    group.addoption("--faults", choices=("short", "whole"), default="short", help="how often faults are injected")
    group.addoption("--faults-seed", type=int, help="the seed of a run that is to be repeated")
    group.addoption("--faults-report", type=Path, metavar="DIR", help="where faults.json and faults.md go")
