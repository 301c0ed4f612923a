"""The template of an adapter, and the section of the contributing guide that makes one out of it."""

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
SECTION = re.search(r"^## Add an adapter\n(.*?)^## ", GUIDE, re.DOTALL | re.MULTILINE)[1]
BEFORE, AFTER = re.findall(r"```console\n(.*?)```", SECTION, re.DOTALL)
((FILE, METHODS),) = re.findall(r'```python title="(.*?)"\n(.*?)```', SECTION, re.DOTALL)
NEW_ADAPTER = ROOT / "template" / "new_adapter.py"
# Ends the output of a command with its exit code, and leaves the code to the next.
MARK = r"code=$?; printf '\001%d\001' $code; (exit $code)"

PYTHON_FILES = {"__init__.py", "_config.py", "_diagnosis.py", "_errors.py", "_plugin.py", "_store.py", "py.typed"}


class Newcomer:
    """Somebody with a checkout, and an environment in which only what the guide says is installed."""

    def __init__(self, folder, environment, dist):
        self.checkout = folder / "dagonizer"
        shutil.copytree(ROOT / "template", self.checkout / "template")
        self.adapter = folder / "dagonizer-sqlite"
        self.variables = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COVERAGE"))},
            "PATH": f"{environment.commands}{os.pathsep}{os.environ['PATH']}",
            "PYTHONIOENCODING": "utf-8",
            "PIP_FIND_LINKS": str(dist),
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }

    def follow(self, console, folder):
        """Do what the guide says, and check that it prints what it says; return the exit codes by command."""
        session = re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", console, re.MULTILINE)
        script = "exec 2>&1\n" + "".join(f"{command}\n{MARK}\n" for command, _ in session)
        ran = subprocess.run(
            ["bash"],
            input=script,
            cwd=folder,
            env=self.variables,
            capture_output=True,
            encoding="utf-8",
            check=False,
        )
        said = ran.stdout.split("\1")
        assert len(said) == 2 * len(session) + 1, ran.stdout
        for (command, expected), printed in zip(session, said[::2], strict=False):
            pattern = ".*?".join(map(re.escape, expected.rstrip().split("…")))
            assert re.search(pattern, printed, re.DOTALL), f"$ {command}\n{printed}"
        return {command: int(code) for (command, _), code in zip(session, said[1::2], strict=True)}


def write_the_methods(adapter):
    """Put the methods of the guide where the template has its own, and what they need beside the class."""
    store = adapter / FILE
    source = store.read_text()
    imports, functions = [], []
    for node in ast.parse(METHODS).body:
        written = ast.get_source_segment(METHODS, node)
        if isinstance(node, ast.AsyncFunctionDef):
            lines = written.splitlines(keepends=True)
            source = replaced(source, node.name, "    ".join(["", *lines]) + "\n")
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            imports.append(written)
        else:
            functions.append(written)
    first = "from contextlib import"
    source = source.replace(first, "\n".join([*imports, first]))
    store.write_text("\n\n\n".join([source.rstrip(), *functions]) + "\n")


def replaced(source, name, method):
    """Return ``source`` with another method ``name`` in its class."""
    (old,) = [node for node in ast.walk(ast.parse(source)) if getattr(node, "name", None) == name]
    lines = source.splitlines(keepends=True)
    return "".join([*lines[: old.lineno - 1], method, *lines[old.end_lineno :]])


@pytest.mark.skipif(os.name == "nt", reason="the sessions are of a POSIX shell")
def test_the_template_passes_the_kit_when_three_methods_are_written_and_not_before(tmp_path, new_environment, dist):
    newcomer = Newcomer(tmp_path, new_environment(), dist)
    codes = newcomer.follow(BEFORE, newcomer.checkout)
    assert codes.pop("pytest -q -x tests/test_conformance.py") == 1
    assert set(codes.values()) == {0}
    write_the_methods(newcomer.adapter)
    (export,) = (command for command in codes if command.startswith("export "))
    name, _, value = shlex.split(export)[1].partition("=")
    newcomer.variables[name] = value
    codes = newcomer.follow(AFTER, newcomer.adapter)
    (listing,) = (command for command in codes if "dagonizer ls" in command)
    assert codes.pop(listing) == 2
    assert set(codes.values()) == {0}


LATE = """
import asyncio, threading
from dagonizer import StoreUnavailableError
from dagonizer_sqlite import SqliteCheckpointStore, SqliteConfig, _store

execute, go_on = _store.execute, threading.Event()


def late(client, sql, *values):
    if b"first" in values:
        go_on.wait()
    return execute(client, sql, *values)


async def save():
    async with SqliteCheckpointStore(SqliteConfig(path="late.db", timeout=2)) as store:
        threading.Timer(3, go_on.set).start()
        try:
            await store.save("key", "first")
        except StoreUnavailableError:
            await store.save("key", "second")


async def load():
    async with SqliteCheckpointStore(SqliteConfig(path="late.db")) as store:
        print(await store.load("key"))


_store.execute = late
asyncio.run(save())  # and all threads
asyncio.run(load())
"""


def test_a_save_of_the_guide_that_takes_too_long_does_not_come_after_the_next(tmp_path):
    adapter = tmp_path / "there"
    assert new_adapter("sqlite", adapter).returncode == 0
    write_the_methods(adapter)
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", LATE],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(adapter / "src")},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert (ran.stdout, ran.stderr) == ("second\n", "")


def test_the_template_has_the_files_of_an_adapter(tmp_path):
    made = new_adapter("acme7", tmp_path / "there")
    assert made.returncode == 0, made.stderr
    files = {path.relative_to(tmp_path / "there") for path in (tmp_path / "there").rglob("*") if path.is_file()}
    assert files == {
        *(Path("src/dagonizer_acme7", name) for name in PYTHON_FILES),
        *(Path("tests", name) for name in ("test_config.py", "test_conformance.py")),
        Path("README.md"),
        Path("pyproject.toml"),
    }
    for adapter in ROOT.glob("adapters/*/src/dagonizer_*"):
        assert {path.name for path in adapter.iterdir()} >= PYTHON_FILES
    assert "class Acme7CheckpointStore:" in (tmp_path / "there/src/dagonizer_acme7/_store.py").read_text()


@pytest.mark.parametrize("name", ["", "7up", "Acme", "a-b", "a/b", "é"])
def test_what_is_no_name_of_an_adapter_is_refused(tmp_path, name):
    refused = new_adapter(name, tmp_path / "there")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == f"{name!r} is no name for an adapter: lower-case letters and digits, a letter first\n"
    assert not (tmp_path / "there").exists()


def test_nothing_that_exists_is_written_over(tmp_path):
    refused = new_adapter("acme", tmp_path)
    assert refused.returncode == 2
    assert refused.stderr == f"{tmp_path} exists; name a folder that does not\n"
    assert new_adapter("acme").stderr == "usage: python new_adapter.py NAME FOLDER\n"


def new_adapter(*arguments):
    return subprocess.run([sys.executable, NEW_ADAPTER, *arguments], capture_output=True, encoding="utf-8", check=False)
