"""Faults of real servers, clients and networks, at two scales, with one report of all."""

from __future__ import annotations

import os
import random
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pytest
from faults.report import Report, Row

from dagonizer_test_servers.shared import External, NoServerError

if TYPE_CHECKING:
    from dagonizer_test_servers.shared import Server

T = TypeVar("T")

_KINDS = {"postgresql": "postgres", "redis": "redis", "s3": "s3", "etcd": "etcd", "etcd+http": "etcd"}
_ROWS = pytest.StashKey[list[Row]]()
_SEED = pytest.StashKey[int]()
_FOLDER = Path(__file__).parent


def pytest_configure(config):
    config.stash[_ROWS] = []
    seed = config.option.faults_seed
    config.stash[_SEED] = secrets.randbelow(1_000_000) if seed is None else seed


def pytest_collection_modifyitems(items):
    """Name the servers, so that they are started together before the first test."""
    for item in items:
        if item.path.is_relative_to(_FOLDER) and hasattr(item, "callspec"):
            store = item.callspec.params.get("store")
            if store in _KINDS:
                item.fixturenames.append(_fixture(store))


def pytest_terminal_summary(terminalreporter, config):
    def tests(*outcomes):
        reports = [report for outcome in outcomes for report in terminalreporter.getreports(outcome)]
        folder = _FOLDER.relative_to(config.rootpath).as_posix()
        return sorted({report.nodeid for report in reports if report.nodeid.startswith(f"{folder}/")})

    report = Report(
        seed=config.stash[_SEED],
        scale=config.option.faults,
        rows=config.stash[_ROWS],
        failed=tests("failed", "error"),
        skipped=tests("skipped"),
    )
    if not (report.rows or report.failed or report.skipped):
        return
    terminalreporter.section(f"faults: {report.scale}, --faults-seed={report.seed}")
    terminalreporter.write_line(str(report))
    if config.option.faults_report:
        report.write(config.option.faults_report)


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


def _fixture(store: str) -> str:
    return f"{_KINDS[store]}_server"


@pytest.fixture
def server(request, store) -> Server:
    """The server of ``store``, which is the scheme of a URL."""
    return request.getfixturevalue(_fixture(store))


@pytest.fixture
def killable_server(server) -> Server:
    """The same, for a test that kills it."""
    if isinstance(server, External):
        reason = "the server was named by the environment, so the tests cannot kill it"
        if os.environ.get("CI"):
            raise NoServerError(reason)
        pytest.skip(f"{reason}; set CI=true to make this a failure")
    return server
