"""The command doctor, in a process of its own, on the stores of a stranger and on memory."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("typer")
pytest.importorskip("rich")

SOURCE = Path(__file__).parents[1] / "src"
SECRET = "p4ssw0rd"

# A store in a directory, whose name tells how it and its backend are.
PLUGIN = r"""
import asyncio
import hashlib
import threading
from pathlib import Path

from dagonizer.diagnosis import Finding
from dagonizer.errors import StoreAccessError, StoreUnavailableError
from dagonizer.hookspecs import hookimpl


class Store:
    def __init__(self, url):
        self.url = url
        self.how = Path(url.path).name

    def path(self, key):
        if self.how == "refusing":
            raise StoreAccessError(f"{self.url}: wrong password")
        if self.how == "buggy":
            raise RuntimeError(f"refused: {self.url.password}")
        return Path(self.url.path, hashlib.sha256(key.encode()).hexdigest())

    async def save(self, key, json):
        self.path(key).write_text(json, encoding="utf-8", newline="")

    async def load(self, key):
        if self.how == "stuck":
            await asyncio.to_thread(threading.Event().wait)
        path = self.path(key)
        return path.read_bytes().decode() if path.exists() else None

    async def delete(self, key):
        self.path(key).unlink(missing_ok=True)

    async def list_keys(self, prefix=""):
        if self.how == "slow":
            Path(self.url.path, "begun").touch()
            await asyncio.Event().wait()
        yield prefix

    async def load_versioned(self, key):
        raise StoreUnavailableError("gone")

    save_if = load_versioned


del Store.load_versioned, Store.save_if


@hookimpl
def dagonizer_open_store(url):
    return Store(url)


@hookimpl
async def dagonizer_diagnose_store(url):
    how = Path(url.path).name
    yield Finding(check="role", verdict="good", message="this is the primary")
    if how == "waiting":
        while not Path(url.path, "go on").exists():
            await asyncio.sleep(0.01)
    if how == "odd":
        message = "[red]save[/red] is \x1b[31mappend\r\nonly[/] and takes as many words as do not fit into a line"
        yield Finding(check="append-only", verdict="warning", message=message, remedy="CONFIG SET appendonly [yes] " * 4)
    if how == "bad":
        yield Finding(check="eviction", verdict="bad", message="checkpoints are evicted", remedy="do not")
    yield Finding(check="durability", verdict="good", message="outlives the machine")
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("installed")
    (folder / "doctor_store.py").write_text(PLUGIN)
    info = folder / "doctor_store-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: doctor-store\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[dagonizer.stores]\nill = doctor_store\n")
    return folder


@pytest.fixture
def start(installed, tmp_path):
    """Start the command on a store that is in a way; give the process and the store's directory."""

    def popen(how, *arguments, script=("-m", "dagonizer.cli"), environment=None, **options):
        path = os.pathsep.join((str(SOURCE), str(installed), os.environ.get("PYTHONPATH", "")))
        inherited = {name: value for name, value in os.environ.items() if name not in {"DAGONIZER_STORE", "COLUMNS"}}
        directory = tmp_path / how
        directory.mkdir(exist_ok=True)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "encoding": "utf-8", **options}
        command = [sys.executable, *script, "doctor", url_of(directory), *arguments]
        variables = {**inherited, "PYTHONPATH": path.rstrip(os.pathsep), "PYTHONIOENCODING": "utf-8"}
        return subprocess.Popen(command, env={**variables, **(environment or {})}, **pipes), directory

    return popen


@pytest.fixture
def doctor(start):
    def run(how, *arguments, **options):
        process, directory = start(how, *arguments, **options)
        with process:
            try:
                out, err = process.communicate(timeout=60)
            finally:
                process.kill()
        assert "Traceback" not in err
        assert SECRET not in out + err
        assert list(directory.iterdir()) == []
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    return run


def url_of(directory):
    return f"ill://user:{SECRET}@host{directory}"


def test_a_good_store_gets_a_line_for_each_check_and_durability_stands_alone(doctor):
    ran = doctor("good")
    assert (ran.returncode, ran.stderr) == (0, "")
    head, checks, durability, counts = ran.stdout.split("\n\n")
    assert head.startswith("ill://***@host/")
    assert [line.split()[:2] for line in checks.splitlines() if line[0] != " "] == [
        ["✓", "connection"],
        ["✓", "text"],
        ["✓", "round-trip"],
        ["✓", "absence"],
        ["·", "compare-and-swap"],
        ["✓", "listing"],
        ["✓", "clean-up"],
        ["✓", "role"],
    ]
    assert durability == "✓ durability          outlives the machine"
    assert counts == "8 good, 1 note, 0 warnings, 0 bad\n"


@pytest.mark.parametrize(
    ("how", "code", "verdict"), [("good", 0, "note"), ("odd", 1, "warning"), ("bad", 1, "bad"), ("refusing", 3, "bad")]
)
def test_the_exit_code_and_one_document_tell_the_worst(doctor, how, code, verdict):
    ran = doctor(how, "--json")
    assert (ran.returncode, ran.stderr) == (code, "")
    document = json.loads(ran.stdout)
    assert list(document) == ["store", "findings", "verdict"]
    assert document["store"].startswith("ill://***@host/")
    assert document["verdict"] == verdict
    assert all(list(finding) == ["check", "verdict", "message", "remedy"] for finding in document["findings"])
    assert document["findings"][-1]["check"] == "durability"


def test_what_a_plugin_says_is_shown_as_it_is_in_lines_that_fit(doctor):
    ran = doctor("odd", environment={"COLUMNS": "61"})
    shown = ran.stdout[ran.stdout.index("! append-only") : ran.stdout.index("\n\n✓ durability")]
    assert shown.splitlines() == [
        r"! append-only         [red]save[/red] is",
        r"                      \u001b[31mappend\r\nonly[/] and takes",
        r"                      as many words as do not fit into a line",
        r"                      → CONFIG SET appendonly [yes] CONFIG",
        r"                        SET appendonly [yes] CONFIG SET",
        r"                        appendonly [yes] CONFIG SET",
        r"                        appendonly [yes]",
    ]
    assert all(line == line.rstrip() for line in ran.stdout.splitlines())


def test_a_terminal_without_these_characters_gets_other_marks(doctor):
    ran = doctor("odd", environment={"PYTHONIOENCODING": "ascii"})
    assert ran.stdout.isascii()
    assert "\n+ connection  " in ran.stdout
    assert "\n! append-only " in ran.stdout
    assert "\n                      -> CONFIG SET" in ran.stdout


def test_a_store_that_refuses_is_a_finding_and_what_its_plugin_knows_is_told(doctor):
    ran = doctor("refusing")
    assert ran.returncode == 3
    said = " ".join(ran.stdout.split())
    assert "✗ connection StoreAccessError: ill://***@host" in said
    assert "wrong password (not examined: text, " in said
    assert "✓ role" in said


def test_a_bug_of_a_store_is_a_finding_without_its_text(doctor):
    ran = doctor("buggy")
    assert ran.returncode == 3
    assert re.search(r"\n✗ connection          RuntimeError was raised \(doctor_store\.py, line \d+\)", ran.stdout)


@pytest.mark.parametrize("url", ["memory://a/path", "nope://x", "no url", "redis://h?password=p4ssw0rd&x=1"])
def test_a_wrong_url_is_wrong_use(url):
    ran = subprocess.run(
        [sys.executable, "-m", "dagonizer.cli", "doctor", url], capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith("error: ")
    assert SECRET not in ran.stderr


def test_the_store_may_stand_in_the_environment():
    command = [sys.executable, "-m", "dagonizer.cli", "doctor"]
    environment = {**os.environ, "DAGONIZER_STORE": "memory://a"}
    ran = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", check=False)
    assert (ran.returncode, ran.stdout.split()[0]) == (1, "memory://a")
    del environment["DAGONIZER_STORE"]
    assert subprocess.run(command, env=environment, capture_output=True, check=False).returncode == 2


def test_a_finding_is_shown_as_soon_as_it_is_found(start):
    process, directory = start("waiting")
    with process:
        for line in process.stdout:
            if line.startswith("✓ role"):
                break
        (directory / "go on").touch()
        assert "durability" in process.stdout.read()
    assert process.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_whoever_ends_it_leaves_nothing_behind(start, number):
    process, directory = start("slow")
    with process:
        for line in process.stdout:
            if "compare-and-swap" in line:
                break
        while not (directory / "begun").exists():
            assert process.poll() is None
        assert len(list(directory.iterdir())) == 2
        process.send_signal(number)
        assert process.wait(timeout=60) == 130
        assert process.stderr.read().strip() == ""
    assert [path.name for path in directory.iterdir()] == ["begun"]


# The thread that a dead file system holds is never given back.
IMPATIENT = """
import functools, sys
from dagonizer.cli import doctor, main

doctor.diagnose_store = functools.partial(doctor.diagnose_store, limit=0.2)
doctor._GRACE = 0.2
main(sys.argv[1:])
"""


def test_a_call_that_never_returns_does_not_keep_the_command(doctor):
    ran = doctor("stuck", script=("-c", IMPATIENT))
    assert ran.returncode == 3
    assert "✗ connection          there was no answer within 0.2 s" in ran.stdout
    assert ran.stdout.endswith("2 good, 0 notes, 0 warnings, 1 bad\n")


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo terminals")
def test_a_terminal_gets_colours(start):
    reading, writing = os.openpty()
    process, _ = start("odd", stdout=writing, environment={"TERM": "xterm", "NO_COLOR": ""})
    os.close(writing)
    shown = b""
    with process, os.fdopen(reading, "rb", buffering=0) as terminal:
        # Linux says EIO when the other end is closed.
        try:
            while piece := terminal.read(4096):
                shown += piece
        except OSError:
            pass
    text = shown.decode()
    assert "\x1b[33m!\x1b[0m" in text
    assert "\x1b[32m✓\x1b[0m" in text
    assert "\x1b[31mappend" not in text
    assert re.search("\x1b\\[33m1 warning\x1b\\[0m", text)
