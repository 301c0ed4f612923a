"""The configuration, its URLs and the plugin."""

from __future__ import annotations

import asyncio
import math

import pytest

import dagonizer_acme
from dagonizer import open_store
from dagonizer.diagnosis import DURABILITY
from dagonizer.errors import StoreURLError
from dagonizer.url import Host, StoreURL
from dagonizer_acme import AcmeCheckpointStore, AcmeConfig, _plugin


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("acme:", AcmeConfig()),
        ("acme://host", AcmeConfig(hosts=(Host("host", None),))),
        ("acme://h1:1,h2:2", AcmeConfig(hosts=(Host("h1", 1), Host("h2", 2)))),
        ("acme://u:p%40ss@host", AcmeConfig(hosts=(Host("host", None),), username="u", password="p@ss")),
        ("acme:///a%20path", AcmeConfig(path="/a path")),
        ("acme:?prefix=a%3Ab&timeout=2.5", AcmeConfig(prefix="a:b", timeout=2.5)),
    ],
)
def test_a_url_says_every_part_of_the_configuration(url: str, expected: AcmeConfig) -> None:
    assert AcmeConfig.from_url(StoreURL.parse(url)) == expected


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("acme://u:secret@host?prefx=a", "did you mean 'prefix'"),
        ("acme:?timeout=0", "must be a number above 0"),
        ("acme:?timeout=soon", "must be a number above 0"),
        ("acme:?timeout=nan", "above 0"),
    ],
)
def test_a_wrong_url_is_refused_with_the_reason(url: str, message: str) -> None:
    with pytest.raises(StoreURLError, match=message) as caught:
        AcmeConfig.from_url(StoreURL.parse(url))
    assert "secret" not in str(caught.value)


def test_arguments_that_make_no_sense_are_refused() -> None:
    for timeout in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="timeout"):
            AcmeConfig(timeout=timeout)
    with pytest.raises(ValueError, match="lone surrogate"):
        AcmeConfig(prefix="\ud800")


def test_a_password_is_not_shown() -> None:
    config = AcmeConfig(hosts=(Host("host", 1),), username="somebody", password="secret")
    assert "secret" not in repr(config) + config.where
    assert "somebody" not in repr(config) + config.where


def test_the_plugin_opens_and_describes_acme_urls() -> None:
    description = _plugin.dagonizer_describe_store()
    assert description.schemes == ("acme",)
    assert {p.name: p.default for p in description.parameters} == {"prefix": "dagonizer", "timeout": 30.0}
    assert isinstance(open_store("acme://host"), AcmeCheckpointStore)


def test_the_doctor_is_told_which_failures_a_save_outlives() -> None:
    async def found() -> list[str]:
        url = StoreURL.parse("acme://somebody:secret@host:1?timeout=2.5")
        findings = [finding async for finding in _plugin.dagonizer_diagnose_store(url)]
        assert "secret" not in repr(findings)
        return [finding.check for finding in findings]

    assert DURABILITY in asyncio.run(found())


def test_the_package_exports_two_names() -> None:
    assert dagonizer_acme.__all__ == ["AcmeCheckpointStore", "AcmeConfig"]
