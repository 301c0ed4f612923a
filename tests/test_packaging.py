"""What a user installs: wheels in an environment of their own."""

import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ADAPTERS = ("etcd", "file", "postgres", "redis", "s3")
FOLDERS = ("core", *(f"adapters/{adapter}" for adapter in ADAPTERS), "conformance")
SDKS = {"aetcd", "aioboto3", "aiofiles", "asyncpg", "etcd3-py", "grpcio", "redis"}

PLUGIN_PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "dagonizer-acme"
version = "1"
[project.entry-points."dagonizer.stores"]
acme = "dagonizer_acme"
{more}
"""
PLUGIN = """
from dagonizer import MemoryCheckpointStore
from dagonizer.hookspecs import StoreDescription, hookimpl

@hookimpl
def dagonizer_describe_store(): return StoreDescription(schemes=("acme",), summary="in Acme's cloud")

@hookimpl
def dagonizer_open_store(url): return MemoryCheckpointStore()
"""


TRY = """
import sys
from dagonizer import open_store
try:
    print(type(open_store({url!r})).__name__)
except Exception as exc:
    print(type(exc).__name__, exc)
"""


INSTALLED = """
from importlib.metadata import distributions
print(*(distribution.name.lower() for distribution in distributions()))
"""


def test_every_distribution_builds_to_a_wheel_and_an_sdist(dist):
    names = sorted(path.name for path in dist.iterdir())
    assert [name for name in names if name.endswith(".whl")] == [
        "dagonizer-0.1.0-py3-none-any.whl",
        "dagonizer_conformance-0.1.0-py3-none-any.whl",
        *(f"dagonizer_{adapter}-0.1.0-py3-none-any.whl" for adapter in ADAPTERS),
    ]
    assert len([name for name in names if name.endswith(".tar.gz")]) == len(FOLDERS)


def test_wheels_work_in_an_empty_environment(dist, new_environment, tmp_path):
    environment = new_environment()
    environment.install("--find-links", str(dist), "dagonizer")
    assert 'pip install "dagonizer[redis]"' in environment(TRY.format(url="redis://localhost"))
    assert 'pip install "dagonizer[file]"' in environment(TRY.format(url="file:x"))
    assert "unknown scheme 'nope'; installed: memory" in environment(TRY.format(url="nope://x"))

    environment.install("--find-links", str(dist), "dagonizer[file]")
    assert environment(TRY.format(url=f"file://{tmp_path}/store")) == "FileCheckpointStore"
    assert "installed: file, memory" in environment(TRY.format(url="nope://x"))
    assert environment("import dagonizer.cli; dagonizer.cli") == ""
    assert (
        environment("from importlib.resources import files; print(files('dagonizer').joinpath('py.typed').is_file())")
        == "True"
    )

    project = tmp_path / "plugin"
    project.mkdir()
    more = '[tool.hatch.build.targets.wheel]\ninclude = ["dagonizer_acme.py"]'
    (project / "pyproject.toml").write_text(PLUGIN_PROJECT.format(more=more))
    (project / "dagonizer_acme.py").write_text(PLUGIN)
    environment.install(str(project))
    assert environment(TRY.format(url="acme://cloud")) == "MemoryCheckpointStore"

    (project / "pyproject.toml").write_text(
        PLUGIN_PROJECT.replace("dagonizer-acme", "dagonizer-acme-fork").format(more=more)
    )
    environment.install(str(project))
    answer = environment(TRY.format(url="acme://cloud"))
    assert answer.startswith("DuplicateSchemeError")
    assert "dagonizer-acme-fork" in answer
    assert "of dagonizer-acme and" in answer or answer.split(";")[0].endswith("of dagonizer-acme")


@pytest.mark.parametrize(
    ("extra", "sdks", "url"),
    [
        ("file", {"aiofiles"}, "file:///tmp/x"),
        ("postgres", {"asyncpg"}, "postgresql://localhost/db"),
        ("redis", {"redis"}, "redis://localhost"),
        ("s3", {"aioboto3", "aiofiles"}, "s3://bucket"),  # aioboto3 itself needs aiofiles
        ("etcd", {"aetcd", "grpcio"}, "etcd://localhost"),
    ],
)
def test_an_extra_installs_its_adapter_and_no_other_sdk(extra, sdks, url, dist, new_environment):
    environment = new_environment()
    environment.install("--find-links", str(dist), f"dagonizer[{extra}]")
    installed = set(environment(INSTALLED).split())
    assert installed & SDKS == sdks
    assert {name for name in installed if name.startswith("dagonizer")} == {"dagonizer", f"dagonizer-{extra}"}
    assert environment(TRY.format(url=url)).lower() == f"{extra}checkpointstore"


def test_all_distributions_have_one_version_and_python_range():
    projects = [tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"] for folder in FOLDERS]
    assert {(project["version"], project["requires-python"], project["license"]) for project in projects} == {
        ("0.1.0", ">=3.11", "MIT")
    }
    extras = projects[0]["optional-dependencies"]
    assert set(extras) == {"file", "postgres", "redis", "s3", "etcd", "conformance", "cli", "otel", "zstd", "all"}
