"""The servers as fixtures of pytest, started together before the first test and stopped after the last."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from dagonizer_test_servers.shared import (
    KINDS,
    NoServerError,
    Server,
    conditions,
    shared,
    start_together,
    stop_all,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Generator


def _fixture(kind: str) -> Callable[[], Server]:
    @pytest.fixture(scope="session", name=f"{kind}_server")
    def server() -> Server:
        try:
            return shared(kind)
        except NoServerError as exc:
            if os.environ.get("CI"):
                raise
            pytest.skip(f"{exc}; set CI=true to make this a failure")

    return server


postgres_server, redis_server, s3_server, etcd_server = map(_fixture, KINDS)


def _used_by(*items: pytest.Item) -> list[str]:
    names = {name for item in items for name in getattr(item, "fixturenames", ())}
    return [kind for kind in KINDS if f"{kind}_server" in names]


def pytest_collection_finish(session: pytest.Session) -> None:
    """Start the servers that the selected tests ask for."""
    if not session.config.option.collectonly:
        start_together(_used_by(*session.items))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Say of a failed test how its servers are, for they are gone with their logs when somebody reads it."""
    report = yield
    if report.failed:
        report.sections += [(f"{kind} server", condition) for kind, condition in conditions(_used_by(item)).items()]
    return report


def pytest_unconfigure() -> None:
    """Stop them."""
    stop_all()
