"""The command line on stores of files, each command in a process of its own: killed, interrupted, and piped."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys

import pytest

from dagonizer import Checkpoint, CheckpointData, open_store

NUMBER = 500

# Stops for good in the middle of a save.
STALLED = """
import asyncio, itertools, sys
from dagonizer.cli import main
from dagonizer_file import FileCheckpointStore

calls, real = itertools.count(1), FileCheckpointStore.save_if

async def save_if(self, key, json, *, expected):
    if next(calls) >= 250:
        print("half-way", flush=True)
        await asyncio.Event().wait()
    return await real(self, key, json, expected=expected)

FileCheckpointStore.save_if = save_if
main(sys.argv[1:])
"""


def command(*arguments):
    return [sys.executable, "-m", "dagonizer.cli", *map(str, arguments)]


def dagonizer(*arguments, stdin="", **environment):
    return subprocess.run(
        command(*arguments),
        input=stdin,
        env={**os.environ, **environment},
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )


def checkpoint(*executed, **state):
    data = CheckpointData(dag_name="survey", cursor="next", state=state, executed_nodes=executed, skipped_nodes=())
    return Checkpoint.to_json(data)


@pytest.fixture
def urls(tmp_path):
    return [f"file://{tmp_path}/{name}?fsync=false" for name in ("source", "target")]


def fill(url, entries):
    async def save():
        async with open_store(url) as store:
            for key, text in entries.items():
                await store.save(key, text)

    asyncio.run(save())


def held(url):
    async def load():
        async with open_store(url) as store:
            return {key: await store.load(key) async for key in store.list_keys()}

    return asyncio.run(load())


def test_a_copy_that_is_killed_goes_on_where_it_was(urls):
    entries = {f"run/{number}": checkpoint("read", "parse", number=number) for number in range(NUMBER)}
    fill(urls[0], entries)
    # The target already has some of them as they were earlier.
    fill(urls[1], {f"run/{number}": checkpoint("read") for number in range(20)})
    killed = subprocess.Popen(
        [sys.executable, "-c", STALLED, "copy", *urls, "--update", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    with killed:
        assert killed.stdout.readline() == b"half-way\n"
        os.kill(killed.pid, signal.SIGKILL)
        assert killed.wait() == -signal.SIGKILL
    before = sum(entries[key] == text for key, text in held(urls[1]).items())
    assert 200 < before < NUMBER
    resumed = dagonizer("copy", *urls, "--update", "--json")
    assert resumed.returncode == 0, resumed.stderr
    summary = json.loads(resumed.stdout)
    assert summary["equal"] == before
    assert summary["copied"] + summary["replaced"] == NUMBER - before
    assert summary["kept"] == summary["gone"] == summary["failed"] == 0
    verified = dagonizer("verify", *urls, "--json")
    assert verified.returncode == 0, verified.stderr
    assert json.loads(verified.stdout)["equal"] == NUMBER
    assert held(urls[1]) == entries
    assert dagonizer("copy", *urls).stderr.startswith(f"0 copied, 0 replaced, {NUMBER} equal, ")


def test_a_corrupted_entry_is_told_and_removed(urls, tmp_path):
    fill(urls[0], {"bad": checkpoint("a", text="x" * 1000)})
    for file in (tmp_path / "source").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:-10] + b"\xff" * 10)
    fill(urls[0], {"good": checkpoint("a")})
    copied = dagonizer("copy", *urls, "--json")
    assert copied.returncode == 3
    summary = json.loads(copied.stdout)
    assert (summary["copied"], [failure["key"] for failure in summary["failures"]]) == (1, ["bad"])
    assert copied.stderr.startswith("failed: bad: ")
    assert dagonizer("verify", *urls).returncode == 3
    assert dagonizer("get", "--store", urls[0], "bad").returncode == 3
    assert dagonizer("validate", "--store", urls[0], "bad", "good", "--json").returncode == 3
    listed = dagonizer("ls", "-l", "--store", urls[0])
    assert listed.returncode == 3
    assert any(line.split()[::4] == ["unreadable", "bad"] for line in listed.stdout.splitlines())
    assert dagonizer("rm", "bad", "--store", urls[0]).returncode == 0
    assert list(held(urls[0])) == ["good"]


def test_every_command_with_json_prints_json(urls, tmp_path):
    fill(urls[0], {"k": checkpoint("a"), "k2": checkpoint("a", "b")})
    (tmp_path / "file").write_text(checkpoint())
    for arguments in (
        ["stores"],
        ["ls"],
        ["ls", "--long"],
        ["show", "k"],
        ["get", "k"],
        ["put", "k3", tmp_path / "file"],
        ["rm", "k3"],
        ["validate", "k", tmp_path / "file"],
        ["diff", "k", "k2"],
        ["copy", *urls],
        ["copy", *urls, "--dry-run"],
        ["verify", *urls],
        ["watch", "k", "--count", "0"],
        ["bench", urls[0], "--seconds", "0"],
        ["rm", "--prefix", "k", "--yes"],
    ):
        ran = dagonizer(*arguments, "--json", DAGONIZER_STORE=urls[0])
        assert ran.returncode == (1 if arguments[0] == "diff" else 0), (arguments, ran.stderr)
        json.loads(ran.stdout)
        assert ran.stderr == ""


def test_a_reader_that_has_seen_enough_is_no_error(urls):
    fill(urls[0], {f"{number:04}" + "x" * 1000: "text" for number in range(200)})
    with subprocess.Popen(
        command("ls", "--store", urls[0]), stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8"
    ) as ran:
        assert ran.stdout.readline().startswith("0")
        ran.stdout.close()
        assert ran.stderr.read() == ""
    assert ran.returncode == 141


def test_watch_sees_what_another_process_does_until_it_is_interrupted(urls):
    fill(urls[0], {"k": checkpoint("a")})
    with subprocess.Popen(
        command("watch", "--store", urls[0], "k", "--interval", "0.01", "--json"),
        # It is to flush by itself.
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    ) as ran:
        seen = [json.loads(ran.stdout.readline())]
        for change in (("put", "k", "-"), ("rm", "k")):
            assert dagonizer(*change, "--store", urls[0], stdin=checkpoint("a", "b")).returncode == 0
            seen.append(json.loads(ran.stdout.readline()))
        ran.send_signal(signal.SIGINT)
        assert ran.wait() == 130
        assert ran.stderr.read().strip() == ""
    assert [(event["event"], event.get("executed")) for event in seen] == [
        ("present", 1),
        ("changed", 2),
        ("deleted", None),
    ]


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo terminals")
def test_ctrl_c_at_the_question_deletes_nothing(urls):
    fill(urls[0], {"k": "text"})
    asking, answering = os.openpty()
    with subprocess.Popen(
        command("rm", "--store", urls[0], "--prefix", ""), stdin=answering, stderr=subprocess.PIPE, bufsize=0
    ) as ran:
        question = b""
        while not question.endswith(b"[y/N] "):
            said = ran.stderr.read(1)
            assert said, f"it has ended with {question!r}"
            question += said
        assert question.startswith(b"delete 1 entry of file://")
        ran.send_signal(signal.SIGINT)
        assert ran.wait() == 130
        assert ran.stderr.read() == b"\n"
    os.close(asking)
    os.close(answering)
    assert held(urls[0]) == {"k": "text"}


@pytest.mark.parametrize("key", ["a\nb\x1b", "-k", "..", "é 🦆"])
def test_any_key_goes_through_a_shell(urls, key):
    assert dagonizer("put", "--store", urls[0], "--", key, stdin="text\n").returncode == 0
    assert dagonizer("get", "--store", urls[0], "--", key).stdout == "text\n"
    assert dagonizer("ls", "-0", "--store", urls[0]).stdout == f"{key}\0"
    shown = dagonizer("ls", "--store", urls[0]).stdout
    assert shown.count("\n") == 1
    assert "\x1b" not in shown


def test_a_terminal_without_these_characters_gets_their_escapes(urls):
    fill(urls[0], {"é🦆": "text"})
    ran = dagonizer("ls", "--store", urls[0], PYTHONIOENCODING="ascii")
    assert (ran.returncode, ran.stdout) == (0, "\\xe9\\U0001f986\n")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_its_completion(shell):
    ran = dagonizer("--show-completion", shell, _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert ran.returncode == 0, ran.stderr
    assert "_DAGONIZER_COMPLETE=" in ran.stdout


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("dagonizer wat", ["watch"]),
        ("dagonizer show run", ["run:1", "run:2"]),
        ("dagonizer copy fil", ["file://"]),
        ("dagonizer ls --lo", ["--long"]),
    ],
)
def test_the_shell_completes_commands_keys_schemes_and_options(urls, words, completed):
    fill(urls[0], {"run:1": "x", "other": "x", "run:2": "x"})
    asked = {"COMP_WORDS": words, "COMP_CWORD": str(words.count(" ")), "DAGONIZER_STORE": urls[0]}
    ran = dagonizer(**asked, _DAGONIZER_COMPLETE="complete_bash")
    assert ran.stdout.splitlines() == completed, ran.stderr
