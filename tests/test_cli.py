"""The command line on stores of files, each command in a process of its own: killed, interrupted, and piped."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

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


def on(url):
    return {**os.environ, "DAGONIZER_STORE": url}


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
        ["doctor", urls[0]],
        ["rm", "--prefix", "k", "--yes"],
    ):
        ran = dagonizer(*arguments, "--json", DAGONIZER_STORE=urls[0])
        assert ran.returncode == (1 if arguments[0] in {"diff", "doctor"} else 0), (arguments, ran.stderr)
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


# Of every command, with what it needs to have something to say.
TALKATIVE = [
    ["--help"],
    ["--version"],
    ["stores"],
    ["ls"],
    ["ls", "--null"],
    ["show", "k"],
    ["get", "k"],
    ["put", "new", "FILE", "--json"],
    ["rm", "old", "--json"],
    ["validate", "k"],
    ["diff", "k", "k2"],
    ["copy", "SOURCE", "TARGET", "--json"],
    ["verify", "SOURCE", "TARGET", "--json"],
    ["watch", "k"],
    ["bench", "memory://", "--seconds", "0"],
    ["doctor", "memory://"],
    ["demo"],
]
FULL = Path("/dev/full")
CANNOT_WRITE = "error: cannot write to standard output: {}\n"


def all_of_them(urls, tmp_path, run):
    """Run every command, two at a time, and return what ``run`` returns, by command."""
    fill(urls[0], {"k": checkpoint("a"), "k2": checkpoint("a", "b"), "old": checkpoint()})
    (tmp_path / "file").write_text(checkpoint())
    names = {"FILE": str(tmp_path / "file"), "SOURCE": urls[0], "TARGET": urls[1]}
    with ThreadPoolExecutor(2) as pool:
        ran = pool.map(lambda words: run([names.get(word, word) for word in words]), TALKATIVE)
        return {" ".join(words): outcome for words, outcome in zip(TALKATIVE, ran, strict=True)}


@pytest.mark.skipif(not FULL.exists(), reason="only Linux has a device that is always full")
def test_output_that_cannot_be_written_is_an_error_of_one_line(urls, tmp_path):
    def to_full_disk(words):
        with FULL.open("w") as full:
            ran = subprocess.run(
                command(*words), env=on(urls[0]), stdout=full, stderr=subprocess.PIPE, encoding="utf-8", check=False
            )
        return ran.returncode, ran.stderr

    for words, (code, said) in all_of_them(urls, tmp_path, to_full_disk).items():
        assert (code, said) == (3, CANNOT_WRITE.format("No space left on device")), words


def test_every_command_ends_quietly_when_nobody_reads_it(urls, tmp_path):
    def to_nobody(words):
        reading, writing = os.pipe()
        os.close(reading)
        with os.fdopen(writing, "w") as pipe:
            ran = subprocess.run(
                command(*words), env=on(urls[0]), stdout=pipe, stderr=subprocess.PIPE, encoding="utf-8", check=False
            )
        return ran.returncode, ran.stderr

    for words, ended in all_of_them(urls, tmp_path, to_nobody).items():
        assert ended == (141, ""), words


@pytest.mark.skipif(os.name == "nt", reason="a POSIX shell closes the streams")
@pytest.mark.parametrize(
    ("words", "redirection", "ended"),
    [
        (["ls"], ">&-", (3, CANNOT_WRITE.format("Bad file descriptor"))),
        (["stores"], ">&-", (3, CANNOT_WRITE.format("Bad file descriptor"))),
        (["no-such-command"], ">&- 2>&-", (2, "")),
        (["rm", "absent"], "2>&-", (1, "")),
        (["rm", "absent"], "2>/dev/full", (1, "")),
        (["get", "k"], ">/dev/full 2>&-", (3, "")),
        # What they do is done, and they have nothing to say.
        (["put", "k", "FILE"], ">&- <&-", (0, "")),
        (["get", "k"], "<&- 2>&-", (0, "")),
        (["put", "k"], "<&-", (2, "error: cannot read -: Bad file descriptor\n")),
        (["validate", "-"], "<&-", (2, "error: cannot read -: Bad file descriptor\n")),
        (
            ["rm", "--prefix", "k"],
            "<&-",
            (
                2,
                "error: 1 entry of URL whose keys start with k would be deleted; without a terminal to ask, say --yes\n",
            ),
        ),
    ],
)
def test_a_stream_that_is_closed_gives_no_traceback_and_no_false_answer(urls, tmp_path, words, redirection, ended):
    fill(urls[0], {"k": checkpoint("a")})
    (tmp_path / "file").write_text(checkpoint())
    words = [str(tmp_path / "file") if word == "FILE" else word for word in words]
    ran = subprocess.run(
        ["bash", "-c", f'exec "$@" {redirection}', "bash", *command(*words)],
        env=on(urls[0]),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert (ran.returncode, ran.stderr.replace(f"file://{tmp_path}/source?fsync=***", "URL")) == ended


@pytest.mark.skipif(os.name == "nt", reason="a POSIX shell closes the streams")
def test_nothing_gets_the_number_of_a_stream_that_was_closed(urls):
    # What a library writes to stderr would end up in the store's file.
    program = "import os; from dagonizer.cli.streams import guard_streams; guard_streams(); print(os.open('.', 0) > 2)"
    ran = subprocess.run(
        ["bash", "-c", 'exec "$@" <&- 2>&-', "bash", sys.executable, "-c", program],
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert ran.stdout == "True\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("named", [True, False])
def test_a_demo_that_is_ended_leaves_nothing_behind(urls, tmp_path, named, number):
    (tmp_path / "tree").mkdir()
    for name in "abc":
        (tmp_path / "tree" / f"{name}.py").write_text("x = 1\n")
    folder = tmp_path / "temporary"
    folder.mkdir()
    store = ["--store", urls[0]] if named else []
    with subprocess.Popen(
        command("demo", "--input", tmp_path / "tree", *store),
        env={**os.environ, "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    ) as ran:
        # The first worker has left its checkpoint, and the second is not there yet.
        assert any(line.startswith("checkpoint:") for line in ran.stdout)
        assert held(urls[0]) if named else list(folder.iterdir())
        ran.send_signal(number)
        assert ran.wait() == 130
        assert ran.stderr.read().strip() == ""
    assert held(urls[0]) == {}
    assert list(folder.iterdir()) == []


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


# Interrupted again and again, somewhere in its writing.
INTERRUPTED = """
import signal, sys
from dagonizer.cli.streams import guard_streams

def interrupt(*_):
    global writing
    if writing:
        writing = False
        raise KeyboardInterrupt

guard_streams()
stream = getattr(sys, sys.argv[1])
writing = False
signal.signal(signal.SIGALRM, interrupt)
signal.setitimer(signal.ITIMER_REAL, 0.0002, 0.0002)
for number in range(20_000):
    try:
        writing = True
        stream.write(f"{number}\\n")
        stream.flush()
        writing = False
    except KeyboardInterrupt:
        pass
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no interval timer")
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_what_was_written_before_ctrl_c_is_not_written_again(stream):
    ran = subprocess.run([sys.executable, "-c", INTERRUPTED, stream], capture_output=True, check=False)
    written = [int(line) for line in getattr(ran, stream).splitlines()]
    assert written == sorted(set(written))
    assert len(written) > 1_000


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
        ("dagonizer diff run:1 --with-store URL run", ["run:3"]),
        ("dagonizer --version wat", ["watch"]),
    ],
)
def test_the_shell_completes_commands_keys_schemes_and_options(urls, words, completed):
    fill(urls[0], {"run:1": "x", "other": "x", "run:2": "x"})
    fill(urls[1], {"run:3": "x"})
    words = words.replace("URL", urls[1])
    asked = {"COMP_WORDS": words, "COMP_CWORD": str(words.count(" ")), "DAGONIZER_STORE": urls[0]}
    ran = dagonizer(**asked, _DAGONIZER_COMPLETE="complete_bash")
    assert ran.stdout.splitlines() == completed, ran.stderr
