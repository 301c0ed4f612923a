"""The servers as fixtures of pytest, started together before the first test and stopped after the last."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from dagonizer_test_servers.shared import KINDS, NoServerError, Server, shared, start_together, stop_all

if TYPE_CHECKING:
    from collections.abc import Callable


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


def pytest_collection_finish(session: pytest.Session) -> None:
    """Start the servers that the selected tests ask for."""
    wanted = {name for item in session.items for name in getattr(item, "fixturenames", ())}
    if not session.config.option.collectonly:
        start_together(kind for kind in KINDS if f"{kind}_server" in wanted)


def pytest_unconfigure() -> None:
    """Stop them."""
    stop_all()
