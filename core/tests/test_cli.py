"""The command line: what is installed, and the demo that kills a worker and resumes in another process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from textwrap import dedent

import pytest

pytest.importorskip("typer")
pytest.importorskip("rich")

from typer.testing import CliRunner

from dagonizer.cli import demo
from dagonizer.cli.app import app
from dagonizer.cli.demo import Outcome, Worker, find_differences, find_problems
from dagonizer.cli.survey import find_modules

SOURCE = Path(__file__).parents[1] / "src"
SECRET = "p4ssw0rd"

# Stores of a stranger, as installed: one file per key, one that refuses everybody, and a plugin that cannot be imported.
PLUGIN = """
import hashlib
from pathlib import Path

from dagonizer.errors import StoreAccessError
from dagonizer.hookspecs import StoreDescription, hookimpl
from dagonizer.url import Parameter


class TestingStore:
    def __init__(self, url):
        self.url = url

    def path(self, key):
        if self.url.scheme == "refusing":
            raise StoreAccessError(f"{self.url}: wrong password")
        return Path(self.url.path, hashlib.sha256(key.encode()).hexdigest())

    async def save(self, key, json):
        new = self.path(key).with_suffix(".new")
        new.write_text(json, encoding="utf-8")
        new.replace(self.path(key))

    async def load(self, key):
        return self.path(key).read_text(encoding="utf-8") if self.path(key).exists() else None

    async def delete(self, key):
        self.path(key).unlink(missing_ok=True)


class ForgetfulStore(TestingStore):
    async def load(self, key):
        return None


class WorkerHatingStore(TestingStore):
    async def save(self, key, json):
        raise RuntimeError("a bug of the store")


@hookimpl
def dagonizer_open_store(url):
    return {"forgetful": ForgetfulStore, "crashing": WorkerHatingStore}.get(url.scheme, TestingStore)(url)


@hookimpl
def dagonizer_describe_store():
    return StoreDescription(("testing",), "one file per key", (Parameter("fsync", bool, True, "wait for the disk"),))
"""
UNDESCRIBED = """
from dagonizer.hookspecs import hookimpl
from testing_store import TestingStore


@hookimpl
def dagonizer_open_store(url):
    return TestingStore(url)
"""
ENTRY_POINTS = """
[dagonizer.stores]
testing = testing_store
refusing = testing_store
forgetful = testing_store
crashing = testing_store
broken = no_such_module
undescribed = undescribed_store
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("installed")
    (folder / "testing_store.py").write_text(PLUGIN)
    (folder / "undescribed_store.py").write_text(UNDESCRIBED)
    info = folder / "testing_store-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: testing-store\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    return folder


@pytest.fixture
def dagonizer(installed):
    def run(*arguments, width="100"):
        path = os.pathsep.join((str(SOURCE), str(installed), os.environ.get("PYTHONPATH", "")))
        return subprocess.run(
            [sys.executable, "-m", "dagonizer.cli", *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": path.rstrip(os.pathsep), "COLUMNS": width},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            timeout=60,
            check=False,
        )

    return run


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "tree"
    for name in ("a", "pkg/b", "pkg/c", "d", "__pycache__/no", "lib/site-packages/no"):
        module = root / f"{name}.py"
        module.parent.mkdir(parents=True, exist_ok=True)
        module.write_text(
            dedent(f"""\
            # {name}
            class C:
                def method(self, x):
                    if x and self:
                        return [y for y in x if y]

                    return None
            """)
        )
    (root / "broken.py").write_text("def (:\n")
    (root / "notes.txt").write_text("not Python")
    return root


@pytest.fixture
def shared(tmp_path):
    folder = tmp_path / "shared"
    folder.mkdir()
    return folder


def test_the_demo_kills_resumes_and_finds_no_difference(dagonizer, tree, shared):
    done = dagonizer("demo", "--input", tree, "--store", f"testing://{shared}")
    assert done.returncode == 0, done.stderr
    rows = {line.split()[1]: line for line in done.stdout.splitlines() if line.startswith("│")}
    assert rows["read"].split("│")[2].strip() == "ran"
    assert rows["read"].split("│")[3].strip() == "from the checkpoint"
    assert "killed at 2 of 5" in rows["measure"]
    assert rows["report"].split("│")[2].strip() == "not reached"
    assert "executed read, parse; next is measure" in done.stdout
    assert "identical: the resumed report equals the uninterrupted one" in done.stdout
    assert done.stderr == ""
    assert list(shared.iterdir()) == []


def test_the_demo_as_json(dagonizer, tree, shared):
    done = dagonizer("demo", "--input", tree, "--store", f"testing://{shared}", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["identical"] is True
    assert found["problems"] == []
    assert found["killed"] == {"node": "measure", "done": 2, "total": 5, "exit": -9}
    assert found["checkpoint"]["cursor"] == "measure"
    assert found["checkpoint"]["executed"] == ["read", "parse"]
    assert found["checkpoint"]["bytes"] > 0
    assert [(n["name"], n["worker_1"], n["worker_2"], n["uninterrupted"]) for n in found["nodes"]] == [
        ("read", "ran", "from the checkpoint", "ran"),
        ("parse", "ran", "from the checkpoint", "ran"),
        ("measure", "killed", "ran", "ran"),
        ("rank", "not reached", "ran", "ran"),
        ("report", "not reached", "ran", "ran"),
    ]
    totals = found["report"]["totals"]
    assert {name: totals[name] for name in ("modules", "lines", "functions", "classes", "branches")} == {
        "modules": 5,
        "lines": 4 * 7 + 1,
        "functions": 4,
        "classes": 4,
        "branches": 4 * 3,
    }
    assert (totals["code"], totals["comments"], totals["blank"]) == (4 * 5, 4, 4)
    assert [row["module"] for row in found["report"]["top"]] == ["a.py", "d.py", "pkg/b.py", "pkg/c.py"]
    assert found["report"]["top"][0]["longest_function"] == "method"
    assert found["report"]["top"][0]["longest_function_lines"] == 5
    assert [warning.partition(":")[0] for warning in found["report"]["warnings"]] == ["broken.py"]
    assert "worker 2" in done.stderr


def test_the_demo_leaves_nothing_out_where_the_terminal_is_narrow(dagonizer, tree, shared):
    done = dagonizer("demo", "--input", tree, "--store", f"testing://{shared}", width="40")
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in done.stdout.splitlines() if line[0:1] == "│"]
    assert rows[0] == ["read", "ran", "from the checkpoint", "ran"]
    assert [row[:2] + row[-1:] for row in rows[-4:]] == [
        ["1", "a.py", "5 method"],
        ["2", "d.py", "5 method"],
        ["3", "pkg/b.py", "5 method"],
        ["4", "pkg/c.py", "5 method"],
    ]
    assert "┃ complexity ┃ per 100 ┃ longest function ┃" in done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_the_demo_surveys_files_whatever_their_names(dagonizer, tree, shared):
    for name in (b"\xff.py", b"\xff\xfe.py"):
        Path(os.fsdecode(os.fsencode(tree) + b"/" + name)).write_text("x = 1\n")
    done = dagonizer("demo", "--input", tree, "--store", f"testing://{shared}")
    assert done.returncode == 0, done.stderr
    assert "\\udcff\\udcfe.py" in done.stdout
    found = json.loads(dagonizer("demo", "--input", tree, "--store", f"testing://{shared}", "--json").stdout)
    assert "\udcff\udcfe.py" in [row["module"] for row in found["report"]["top"]]


def test_the_report_does_not_depend_on_the_place(dagonizer, tree, shared, tmp_path):
    first = dagonizer("demo", "--input", tree, "--store", f"testing://{shared}", "--json")
    moved = tree.rename(tmp_path / "moved")
    second = dagonizer("demo", "--input", moved, "--store", f"testing://{shared}", "--json")
    assert json.loads(first.stdout)["report"] == json.loads(second.stdout)["report"]


def test_no_output_has_the_password(dagonizer, tree):
    for options in ((), ("--json",)):
        done = dagonizer("demo", "--input", tree, "--store", f"refusing://me:{SECRET}@host/x?token={SECRET}", *options)
        assert done.returncode == 3
        assert done.stderr.splitlines()[-1] == "error: refusing://***@host/x?token=***: wrong password"
        assert SECRET not in done.stdout + done.stderr


def test_a_failing_worker_is_shown_without_the_password(dagonizer, tree, shared):
    done = dagonizer("demo", "--input", tree, "--store", f"crashing://me:{SECRET}@host{shared}")
    assert done.returncode == 3
    assert "error: worker 1 failed: it ended with exit code 1 before it was killed" in done.stderr
    assert "RuntimeError: a bug of the store" in done.stderr
    assert SECRET not in done.stdout + done.stderr


@pytest.mark.parametrize(("url", "code"), [("memory://demo", 2), ("forgetful:///{shared}", 3)])
def test_a_store_that_processes_do_not_share_is_refused(dagonizer, tree, shared, url, code):
    done = dagonizer("demo", "--input", tree, "--store", url.format(shared=shared))
    assert done.returncode == code
    assert "the demo needs a store that two processes share" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unknown_scheme(dagonizer, tree):
    done = dagonizer("demo", "--input", tree, "--store", "nowhere://x")
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown scheme 'nowhere'")


@pytest.mark.parametrize(
    ("files", "message"), [(0, "no Python modules"), (1, "only one Python module"), (None, "is not a directory")]
)
def test_nothing_to_survey(dagonizer, tmp_path, files, message):
    root = tmp_path / "few"
    if files is not None:
        root.mkdir()
        for number in range(files):
            (root / f"m{number}.py").touch()
    done = dagonizer("demo", "--input", root)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert message in done.stderr


def test_modules_are_sorted_and_installed_packages_are_left_out(tree):
    assert find_modules(tree) == ["a.py", "broken.py", "d.py", "pkg/b.py", "pkg/c.py"]


def test_the_commands_work_on_a_store_of_three_methods(dagonizer, shared, tmp_path):
    store = ("--store", f"testing://{shared}")
    document = '{"version":"1","dagName":"d","cursor":"n","state":{},"executedNodes":[],"skippedNodes":[]}'
    (tmp_path / "document.json").write_text(document)
    assert dagonizer("put", *store, "k", tmp_path / "document.json").returncode == 0
    assert dagonizer("get", *store, "k").stdout == document
    assert "dag d" in dagonizer("show", *store, "k").stdout
    assert dagonizer("validate", *store, "k").stdout == "k: valid\n"
    assert dagonizer("rm", *store, "k").returncode == 0
    assert dagonizer("get", *store, "k").returncode == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("ls", "--json", "--store", "{}"),
        ("rm", "--store", "{}", "--prefix", ""),
        ("copy", "{}", "memory://x"),
        ("verify", "{}", "memory://x"),
        ("verify", "memory://x", "{}"),
    ],
)
def test_a_store_that_cannot_list_says_so(dagonizer, shared, arguments):
    done = dagonizer(*(argument.format(f"testing://{shared}") for argument in arguments))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: testing://{shared} cannot list its keys")
    assert len(done.stderr.splitlines()) == 1


def test_bench_of_a_store_of_three_methods_leaves_nothing(dagonizer, shared):
    done = dagonizer("bench", f"testing://{shared}", "--seconds", "0.01", "--json")
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["cells"]) == 12
    assert list(shared.iterdir()) == []


@pytest.mark.parametrize("command", ["ls", "get", "put", "rm", "show", "watch"])
def test_no_command_tells_the_password(dagonizer, command):
    url = f"refusing://me:{SECRET}@host/x?token={SECRET}"
    done = dagonizer(command, "--store", url, *([] if command == "ls" else ["k"]))
    assert done.returncode == (2 if command == "ls" else 3)
    assert "refusing://***@host/x?token=***" in done.stderr
    assert SECRET not in done.stdout + done.stderr


def test_stores(dagonizer):
    done = dagonizer("stores")
    assert done.returncode == 0, done.stderr
    for text in ("testing:", "testing-store", "one file per key", "fsync", "wait for the disk (true or false, default"):
        assert text in done.stdout
    assert "cannot be loaded" in done.stdout
    assert "no_such_module" in done.stdout
    # A plugin need not describe itself.
    [row] = [line.split("│")[1:-1] for line in done.stdout.splitlines() if "undescribed" in line]
    assert [cell.strip() for cell in row] == ["undescribed:", "", "testing-store"]


@pytest.mark.parametrize("width", ["1", "40", "60"])
def test_stores_leaves_nothing_out_where_the_terminal_is_narrow(dagonizer, width):
    shown = " ".join(dagonizer("stores", width=width).stdout.replace("│", " ").split())
    for store in json.loads(dagonizer("stores", "--json").stdout):
        for text in (store["scheme"], store["distribution"], store["summary"] or "", store["error"] or ""):
            assert text in shown
        for parameter in store["parameters"]:
            assert f"{parameter['name']} {parameter['description']} ({parameter['type']}" in shown
    assert "…" not in shown


def test_stores_as_json(dagonizer):
    done = dagonizer("stores", "--json")
    assert done.returncode == 0, done.stderr
    listed = {store["scheme"]: store for store in json.loads(done.stdout)}
    assert listed["testing"] == {
        "scheme": "testing",
        "distribution": "testing-store",
        "summary": "one file per key",
        "parameters": [{"name": "fsync", "type": "true or false", "default": True, "description": "wait for the disk"}],
        "error": None,
    }
    undescribed = {"scheme": "undescribed", "distribution": "testing-store", "summary": None, "parameters": []}
    assert listed["undescribed"] == {**undescribed, "error": None}
    assert listed["broken"]["summary"] is None
    assert "no_such_module" in listed["broken"]["error"]


def run_python(program):
    path = os.pathsep.join((str(SOURCE), os.environ.get("PYTHONPATH", ""))).rstrip(os.pathsep)
    return subprocess.run(
        [sys.executable, "-c", program, "stores"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )


def test_without_typer_it_says_what_to_install():
    done = run_python("import sys; sys.modules['typer'] = None; from dagonizer.cli import main; main()")
    assert done.returncode == 2
    assert done.stderr == 'the command line needs: pip install "dagonizer[cli]"\n'


IMPORTING = """
import signal, sys
from dagonizer.cli import main

class Importing:
    def find_spec(name, *_):
        if name == "typer":
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Importing)
main()
"""
ENDING = """
import signal, sys
import dagonizer.cli as cli

def flushed(code):
    signal.raise_signal(signal.SIGINT)

cli.flushed = flushed
cli.main()
"""


@pytest.mark.parametrize("program", [IMPORTING, ENDING])
def test_ctrl_c_before_and_after_a_command_is_one_too(program):
    done = run_python(program)
    assert (done.returncode, done.stderr) == (130, "\n")


def _worker(**result):
    return Worker(pid=1, started=["measure"], result=result)


GOOD = Outcome(
    first=Worker(pid=1, started=["read", "parse", "measure"], done=2, total=5, returncode=-9),
    second=_worker(executed=["read", "parse", "measure"], ran=["measure"], report={"totals": {"code": 3}, "top": []}),
    whole=_worker(executed=["read", "parse", "measure"], ran=["read"], report={"totals": {"code": 3}, "top": []}),
    cursor="measure",
    saved_nodes=("read", "parse"),
    saved_bytes=10,
    deleted=True,
)


@pytest.mark.parametrize(
    ("outcome", "problems"),
    [
        (GOOD, []),
        (replace(GOOD, deleted=False), ["the checkpoint is still in the store"]),
        (
            replace(GOOD, second=_worker(**{**GOOD.second.result, "ran": ["parse", "measure"]})),
            ["worker 2 ran again what worker 1 had executed: parse"],
        ),
        (
            replace(GOOD, second=_worker(**{**GOOD.second.result, "report": {"totals": {"code": 4}, "top": []}})),
            ["report.totals.code: uninterrupted 3, resumed 4"],
        ),
        (
            replace(GOOD, second=_worker(**{**GOOD.second.result, "executed": ["measure"]})),
            ["executed: uninterrupted ['read', 'parse', 'measure'], resumed ['measure']"],
        ),
    ],
)
def test_problems(outcome, problems):
    assert find_problems(outcome) == problems


def test_a_difference_is_exit_code_1(monkeypatch, tree):
    async def pretend(*_arguments):
        return replace(
            GOOD, second=_worker(**{**GOOD.second.result, "report": {"totals": {"code": 4}, "top": [], "warnings": []}})
        )

    monkeypatch.setattr(demo, "_kill_and_resume", pretend)
    done = CliRunner().invoke(app, ["demo", "--input", str(tree), "--store", "testing:///x", "--json"])
    assert done.exit_code == 1
    found = json.loads(done.stdout)
    assert found["identical"] is False
    assert "report.totals.code: uninterrupted 3, resumed 4" in found["problems"]


def test_differences_name_every_path():
    assert find_differences({"a": [1, {"b": 2}], "c": 3}, {"a": [1, {"b": 5}]}, "report") == [
        "report.a[1].b: uninterrupted 2, resumed 5",
        "report.c: uninterrupted 3, resumed None",
    ]
