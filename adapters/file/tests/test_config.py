"""The configuration, its URLs and the plugin."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

import dagonizer_file
from dagonizer.errors import StoreURLError
from dagonizer.url import StoreURL
from dagonizer_file import FileCheckpointStore, FileConfig, _plugin


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("file:///var/checkpoints", FileConfig(root=Path("/var/checkpoints"))),
        ("file:/var/checkpoints", FileConfig(root=Path("/var/checkpoints"))),
        ("file://localhost/var/checkpoints", FileConfig(root=Path("/var/checkpoints"))),
        ("file:rel/dir", FileConfig(root=Path("rel/dir"))),
        ("file:a%20b%40c", FileConfig(root=Path("a b@c"))),
        ("file:d?fsync=false", FileConfig(root=Path("d"), fsync=False)),
        ("file:d?fsync=true", FileConfig(root=Path("d"), fsync=True)),
        ("file:d?timeout=2.5", FileConfig(root=Path("d"), timeout=2.5)),
        ("file:d?compression=zstd", FileConfig(root=Path("d"), compression="zstd")),
        ("file:d?timeout=5&fsync=false", FileConfig(root=Path("d"), timeout=5, fsync=False)),
    ],
)
def test_a_url_says_every_part_of_the_configuration(url: str, expected: FileConfig) -> None:
    assert FileConfig.from_url(StoreURL.parse(url)) == expected


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("file:", "directory is missing"),
        ("file://localhost", "directory is missing"),
        ("file://rel/dir", "no host but localhost"),
        ("file://localhost:80/dir", "no host but localhost"),
        ("file://localhost,localhost/dir", "no host but localhost"),
        ("file://user:secret@localhost/dir", "no user name or password"),
        ("file:d?fsnyc=true", "did you mean 'fsync'"),
        ("file:d?fsync=maybe", "must be true or false"),
        ("file:d?timeout=0", "must be a number above 0"),
        ("file:d?timeout=soon", "must be a number above 0"),
        ("file:d?timeout=nan", "above 0"),
        ("file:d?compression=gzip", "must be one of none, zstd"),
        ("file:a%00b", "U\\+0000"),
    ],
)
def test_a_wrong_url_is_refused_with_the_reason(url: str, message: str) -> None:
    with pytest.raises(StoreURLError, match=message) as caught:
        FileConfig.from_url(StoreURL.parse(url))
    assert "secret" not in str(caught.value)


def test_arguments_that_make_no_sense_are_refused() -> None:
    for timeout in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="timeout"):
            FileConfig(root=Path("d"), timeout=timeout)
    with pytest.raises(ValueError, match="compression must be"):
        FileConfig(root=Path("d"), compression="gzip")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must not be empty"):
        FileCheckpointStore("")
    with pytest.raises(ValueError, match=r"U\+0000"):
        FileCheckpointStore("a\0b")


def test_compression_that_is_not_installed_is_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(StoreURLError, match=r'pip install "dagonizer\[zstd\]"'):
        FileConfig.from_url(StoreURL.parse("file:d?compression=zstd"))


def test_the_plugin_opens_and_describes_file_urls(tmp_path: Path) -> None:
    description = _plugin.dagonizer_describe_store()
    assert description.schemes == ("file",)
    assert {p.name: p.default for p in description.parameters} == {
        "fsync": True,
        "timeout": 30.0,
        "compression": "none",
    }
    store = _plugin.dagonizer_open_store(StoreURL.parse(f"file://{tmp_path}/d"))
    assert isinstance(store, FileCheckpointStore)
    assert not (tmp_path / "d").exists(), "a constructor does no I/O"


def test_the_package_exports_two_names() -> None:
    assert dagonizer_file.__all__ == ["FileCheckpointStore", "FileConfig"]
