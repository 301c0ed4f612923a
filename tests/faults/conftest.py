"""Faults of real servers, clients and networks, at two scales, with one report of all."""

from __future__ import annotations

import random
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pytest
from faults.report import Row, table, write

from dagonizer_test_servers import shared

if TYPE_CHECKING:
    from dagonizer_test_servers.shared import Server

T = TypeVar("T")

_KINDS = {"postgresql": "postgres", "redis": "redis", "s3": "s3", "etcd": "etcd", "etcd+http": "etcd"}
_ROWS = pytest.StashKey[list[Row]]()
_SEED = pytest.StashKey[int]()


def pytest_addoption(parser):
    group = parser.getgroup("faults")
    group.addoption("--faults", choices=("short", "whole"), default="short", help="how often faults are injected")
    group.addoption("--faults-seed", type=int, help="the seed of a run that is to be repeated")
    group.addoption("--faults-report", type=Path, metavar="DIR", help="where faults.json and faults.md go")


def pytest_configure(config):
    config.stash[_ROWS] = []
    seed = config.option.faults_seed
    config.stash[_SEED] = secrets.randbelow(1_000_000) if seed is None else seed


def pytest_terminal_summary(terminalreporter, config):
    rows, seed, scale = config.stash[_ROWS], config.stash[_SEED], config.option.faults
    if not rows:
        return
    terminalreporter.section(f"faults: {scale}, --faults-seed={seed}")
    terminalreporter.write_line(table(rows))
    if config.option.faults_report:
        write(config.option.faults_report, rows, seed=seed, scale=scale)


class Faults:
    """One test's share of the run: how much to do, in what order, and where to tell of it."""

    def __init__(self, config: pytest.Config, name: str) -> None:
        self.seed = f"{config.stash[_SEED]} {name}"
        self.random = random.Random(self.seed)
        self._whole = config.option.faults == "whole"
        self._rows = config.stash[_ROWS]

    def scale(self, *, short: T, whole: T) -> T:
        """Return the one that goes with the run."""
        return whole if self._whole else short

    def tell(self, row: Row) -> None:
        """Put ``row`` into the report. To be called before what it says is judged."""
        self._rows.append(row)


@pytest.fixture
def faults(request) -> Faults:
    return Faults(request.config, request.node.name)


@pytest.fixture
def server(store) -> Server:
    """The server of ``store``, which is the scheme of a URL."""
    return shared(_KINDS[store])
