"""The commands for entries, in this process, on stores in memory and on stores that misbehave."""

import asyncio
import io
import json
import re
import signal
import sys
import threading
from importlib.metadata import version
from types import SimpleNamespace

import pytest

pytest.importorskip("typer")
pytest.importorskip("rich")

from hypothesis import example, given
from hypothesis import strategies as st

from dagonizer import (
    Checkpoint,
    CheckpointData,
    MemoryCheckpointStore,
    StoreAccessError,
    StoreConflictError,
    StoreCorruptedError,
    StoreLimitError,
    StoreUnavailableError,
)
from dagonizer.cli import complete, main, measure, terminal
from dagonizer.cli.checkpoints import find_differences, mermaid_lines
from dagonizer.cli.complete import complete_key, complete_other_key, complete_url
from dagonizer.cli.outcome import error_lines, quoted, shown, without_secrets
from dagonizer.cli.transfer import copy_entry, for_each, is_earlier

ODD_KEYS = ["a\nb", " lead", "\x1b[2J", '"', "\u202e", "é/ü", "-x", "x" * 1024]


def checkpoint(*executed, cursor="next", dag="survey", skipped=(), **state):
    data = CheckpointData(dag_name=dag, cursor=cursor, state=state, executed_nodes=executed, skipped_nodes=skipped)
    return Checkpoint.to_json(data)


class Terminal(io.TextIOWrapper):
    def isatty(self):
        return True


class Ran:
    def __init__(self, code, out, err):
        self.code, self.out, self.raw, self.err = code, out.decode(), out, err.decode()

    @property
    def json(self):
        return json.loads(self.out)


@pytest.fixture
def cli(capsysbinary, monkeypatch):
    for name in ("STORE", "SOURCE", "DESTINATION"):
        monkeypatch.delenv(f"DAGONIZER_{name}", raising=False)

    def run(*arguments, stdin=b"", terminal=False):
        monkeypatch.setattr(sys, "stdin", (Terminal if terminal else io.TextIOWrapper)(io.BytesIO(stdin)))
        with pytest.raises(SystemExit) as ended:
            main(list(map(str, arguments)))
        ran = Ran(ended.value.code, *capsysbinary.readouterr())
        assert "Traceback" not in ran.err
        return ran

    return run


@pytest.fixture
def on_a(cli):
    """A command on the store memory://a."""
    return lambda command, *arguments, **options: cli(command, "--store", "memory://a", *arguments, **options)


def fill(name, entries):
    async def save():
        for key, text in entries.items():
            await MemoryCheckpointStore(name).save(key, text)

    asyncio.run(save())


def held(name):
    async def load():
        store = MemoryCheckpointStore(name)
        return {key: await store.load(key) async for key in store.list_keys()}

    return asyncio.run(load())


# ls


def test_ls_shows_the_keys_of_a_prefix_and_escapes_what_a_terminal_would_obey(on_a):
    fill("a", dict.fromkeys(["run:1", "run:2", "other", "run:\n\x1b[2J"], "x"))
    assert on_a("ls").out.splitlines() == ["run:1", "run:2", "other", '"run:\\n\\u001b[2J"']
    assert on_a("ls", "run:").out.splitlines() == ["run:1", "run:2", '"run:\\n\\u001b[2J"']
    assert on_a("ls", "nothing").out == ""
    assert on_a("ls", "nothing").code == 0


def test_ls_is_exact_with_json_and_null(on_a):
    fill("a", dict.fromkeys(ODD_KEYS, "x"))
    assert on_a("ls", "--json").json == ODD_KEYS
    assert on_a("ls", "-0").out.split("\0") == [*ODD_KEYS, ""]
    assert on_a("ls", "none", "--json").json == []


@pytest.mark.parametrize("listed", [0, 100])
def test_what_ls_has_told_before_the_store_fails_is_one_document(on_a, monkeypatch, listed):
    async def list_keys(self, prefix=""):
        for number in range(listed):
            yield str(number)
        raise StoreUnavailableError("gone")

    monkeypatch.setattr(MemoryCheckpointStore, "list_keys", list_keys)
    ran = on_a("ls", "--json")
    assert (ran.code, ran.err) == (3, "error: gone\n")
    # Of a page that is not full nothing has been told.
    assert ran.json == [str(number) for number in range(64)] if listed else ran.out == ""


def test_ls_takes_the_store_from_the_environment(cli, monkeypatch):
    fill("a", {"k": "x"})
    monkeypatch.setattr("os.environ", {**__import__("os").environ, "DAGONIZER_STORE": "memory://a"})
    assert cli("ls").out == "k\n"


def test_copy_and_verify_take_their_stores_from_the_environment(cli, monkeypatch):
    fill("a", {"k": "x"})
    assert "Missing argument 'SRC'" in cli("copy").err
    monkeypatch.setenv("DAGONIZER_SOURCE", "memory://a")
    assert "Missing argument 'DST'" in cli("verify").err
    monkeypatch.setenv("DAGONIZER_DESTINATION", "memory://b")
    assert cli("verify").out.startswith("missing")
    assert cli("copy").code == 0
    assert cli("verify").code == 0
    assert cli("verify", "memory://b", "memory://c").out.startswith("missing")


def test_ls_long(on_a):
    fill("a", {"k1": checkpoint("read", "parse"), "k2": "no checkpoint", "k3": checkpoint(cursor=None)})
    lines = [line.split() for line in on_a("ls", "--long").out.splitlines()]
    assert lines == [
        ["bytes", "executed", "dag", "cursor", "key"],
        [str(len(checkpoint("read", "parse"))), "2", "survey", "next", "k1"],
        ["13", "-", "-", "-", "k2"],
        [str(len(checkpoint(cursor=None))), "0", "survey", "(complete)", "k3"],
    ]
    assert on_a("ls", "--long", "--json", "k2").json == [
        {"key": "k2", "dag": None, "cursor": None, "executed": None, "bytes": 13, "error": None}
    ]


def test_ls_long_has_more_than_a_page_and_leaves_out_what_was_deleted_meanwhile(on_a, monkeypatch):
    fill("a", {f"{number:03}": "x" for number in range(200)})

    async def lose(self, key):
        return None if key == "100" else "x"

    monkeypatch.setattr(MemoryCheckpointStore, "load", lose)
    assert [row["key"] for row in on_a("ls", "--long", "--json").json] == [f"{n:03}" for n in range(200) if n != 100]


def test_ls_long_stays_in_its_columns_whatever_the_names(on_a):
    fill("a", {"k": checkpoint(dag="survey " * 9, cursor="\x1b" * 9)})
    (line,) = on_a("ls", "-l").out.splitlines()[1:]
    assert line.endswith('0  "survey survey su…  "\\u001b\\u001b\\u00…  k')


# get and put


@pytest.mark.parametrize("text", ["", "no newline", "line\n", '{"emoji": "🦆"}\r\n', "\ufeffBOM"])
def test_get_writes_what_put_read(on_a, text, tmp_path):
    assert on_a("put", "k", stdin=text.encode()).code == 0
    got = on_a("get", "k")
    assert (got.code, got.raw) == (0, text.encode())
    (tmp_path / "file").write_bytes(text.encode())
    assert on_a("put", "k2", tmp_path / "file", "--json").json == {
        "key": "k2",
        "saved": True,
        "bytes": len(text.encode()),
    }
    assert on_a("get", "k2", "--json").json == {"key": "k2", "value": text}


def test_get_of_nothing(on_a):
    got = on_a("get", "k\x1b")
    assert (got.code, got.raw, got.err) == (1, b"", 'no entry under "k\\u001b"\n')
    assert on_a("get", "k", "--json").json == {"key": "k", "value": None}


def test_put_validates_on_request(on_a):
    refused = on_a("put", "k", "--validate", "--json", stdin=b'{"version": "2"}')
    assert refused.code == 1
    assert {issue["path"] for issue in refused.json["issues"]} >= {"$.version", "$.dagName", "$.state"}
    assert "$.dagName: missing" in refused.err
    assert held("a") == {}
    assert on_a("put", "k", "--validate", stdin=checkpoint().encode()).code == 0
    assert held("a") == {"k": checkpoint()}


# rm


def test_rm_deletes_and_names_what_was_not_there(on_a):
    fill("a", {"k1": "x", "k2": "x", "k3": "x"})
    assert on_a("rm", "k1").code == 0
    removed = on_a("rm", "k2", "gone", "k2", "--json")
    assert (removed.code, removed.json) == (1, {"deleted": ["k2"], "absent": ["gone"]})
    assert held("a") == {"k3": "x"}


def test_rm_deletes_nothing_if_one_key_is_impossible(on_a):
    fill("a", {"k1": "x"})
    assert on_a("rm", "k1", "").code == 2
    assert held("a") == {"k1": "x"}


def test_rm_of_a_prefix_does_not_guess_without_a_terminal(on_a):
    fill("a", {"run:1": "x", "run:2": "x", "other": "x"})
    refused = on_a("rm", "--prefix", "run:", stdin=b"y\n")
    assert refused.code == 2
    assert "2 entries of memory://a whose keys start with run:" in refused.err
    assert "--yes" in refused.err
    assert len(held("a")) == 3
    assert on_a("rm", "--prefix", "run:", "--yes").err == "2 entries deleted\n"
    assert held("a") == {"other": "x"}
    assert on_a("rm", "--prefix", "run:", "--json").json == {"deleted": [], "absent": []}


@pytest.mark.parametrize(("answer", "code", "left"), [(b"y\n", 0, 0), (b"n\n", 1, 2), (b"\n", 1, 2), (b"", 1, 2)])
def test_rm_of_a_prefix_asks(on_a, answer, code, left):
    fill("a", {"k1": "x", "k2": "x"})
    asked = on_a("rm", "--prefix", "", stdin=answer, terminal=True)
    assert asked.code == code
    assert asked.err.startswith("delete 2 entries of memory://a that it holds? [y/N] ")
    assert len(held("a")) == left


def test_rm_deletes_what_cannot_be_read(on_a, monkeypatch):
    async def corrupted(self, key):
        raise StoreCorruptedError("not UTF-8")

    fill("a", {"k": "x"})
    with monkeypatch.context() as patched:
        patched.setattr(MemoryCheckpointStore, "load", corrupted)
        assert on_a("rm", "k").code == 0
    assert held("a") == {}


# show


def test_show_draws_the_checkpoint_as_a_tree(on_a):
    state = {"items": list(range(30)), "text": "x" * 500, "esc": "\x1b[2J", "deep": {"er": {}}, "none": None}
    fill("a", {"k": checkpoint("read", "parse", skipped=["rank"], **state)})
    tree = on_a("show", "k").out
    for text in (
        "dag survey",
        "cursor next",
        "executed read → parse",
        "skipped rank",
        "state (5 fields)",
        "items (30 items)",
        "[19] 19",
        "… 10 more; --all shows them",
        "… 500 characters",
        'esc "\\u001b[2J"',
        "er {}",
        "none null",
    ):
        assert text in tree
    assert "[20]" not in tree
    assert "\x1b" not in tree
    assert "[29] 29" in on_a("show", "k", "--all").out


def test_show_as_json_is_the_whole_document(on_a):
    fill("a", {"k": checkpoint("read", n=[1, 2**70], lone="\ud83d")})
    found = on_a("show", "k", "--json").json
    assert found["checkpoint"] == json.loads(checkpoint("read", n=[1, 2**70], lone="\ud83d"))
    assert found["bytes"] == len(checkpoint("read", n=[1, 2**70], lone="\ud83d"))


@pytest.mark.parametrize("columns", ["1", "30"])
def test_show_leaves_nothing_out_where_the_terminal_is_narrow(on_a, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    state = "here it ends"
    for name in "jihgfedcba":
        state = {name: state}
    fill("a", {"k": checkpoint(state=state)})
    shown = on_a("show", "k").out.replace("│", " ").split()
    assert shown[-4:] == ["j", '"here', "it", 'ends"']


def test_show_bears_a_deep_state_and_a_complete_run(on_a):
    deep = {}
    for _ in range(300):
        deep = {"d": deep}
    fill("a", {"k": checkpoint(cursor=None, deep=deep)})
    tree = on_a("show", "k").out
    assert "… deeper" in tree
    assert "cursor none: the run is complete" in tree


def test_show_of_what_is_no_checkpoint(on_a):
    fill("a", {"k": '{"version": "1"}'})
    refused = on_a("show", "k", "--json")
    assert refused.code == 1
    assert "$.dagName: missing" in refused.err
    assert {"path": "$.dagName", "message": "missing"} in refused.json["issues"]
    assert on_a("show", "absent").code == 1
    assert on_a("show", "absent", "--json").json["checkpoint"] is None


def test_show_draws_a_flowchart(on_a):
    fill("a", {"k": checkpoint("read", 'x"] --> y', skipped=["rank"])})
    assert on_a("show", "k", "--mermaid").out.splitlines()[:6] == [
        "flowchart LR",
        '    n0["read"]',
        '    n1["x#34;#93; #45;#45;#62; y"]',
        '    cursor(["next"])',
        '    s0["rank"]',
        "    n0 --> n1",
    ]
    chart = on_a("show", "k", "--mermaid").out
    for line in ("n1 --> cursor", "class n0,n1 executed", "class cursor next", "class s0 skipped", "stroke-dasharray"):
        assert line in chart


@given(st.lists(st.text()), st.none() | st.text(), st.lists(st.text()))
def test_no_node_name_breaks_out_of_the_flowchart(executed, cursor, skipped):
    data = CheckpointData(
        dag_name="d", cursor=cursor, state={}, executed_nodes=tuple(executed), skipped_nodes=tuple(skipped)
    )
    plain = CheckpointData(
        dag_name="d",
        cursor=None if cursor is None else "x",
        state={},
        executed_nodes=("x",) * len(executed),
        skipped_nodes=("x",) * len(skipped),
    )
    drawn, expected = list(mermaid_lines(data)), list(mermaid_lines(plain))
    assert len(drawn) == len(expected)
    for line, like in zip(drawn, expected, strict=True):
        opening, quote, rest = line.partition('"')
        assert opening == like.partition('"')[0]
        label, _, closing = rest.rpartition('"')
        assert closing == like.rpartition('"')[2] or not quote
        assert not set(label) & set('"[](){}<>`|\\\n\r')


# validate


def test_validate_tells_all_that_is_wrong_with_files_entries_and_stdin(on_a, tmp_path):
    (tmp_path / "good.json").write_text(checkpoint())
    (tmp_path / "bad.json").write_text('{"version": "2", "state": [], "extra": 1}')
    (tmp_path / "latin.json").write_bytes(b"\xe9")
    fill("a", {"k": checkpoint(), "bad": "no"})
    names = (
        tmp_path / "good.json",
        tmp_path / "bad.json",
        tmp_path / "latin.json",
        "-",
        "k",
        "bad",
        "absent",
        "x" * 999,
    )
    ran = on_a("validate", *names, "--json", stdin=b"{")
    assert ran.code == 1
    documents = {document["name"].rpartition("/")[2]: document for document in ran.json}
    assert [name for name, document in documents.items() if document["valid"]] == ["good.json", "k"]
    assert {issue["path"] for issue in documents["bad.json"]["issues"]} == {
        *("$.version", "$.state", "$.extra", "$.dagName", "$.cursor", "$.executedNodes", "$.skippedNodes")
    }
    assert [documents[name]["kind"] for name in ("good.json", "-", "k", "absent")] == ["file", "file", "key", "key"]
    assert "no such entry" in documents["absent"]["issues"][0]["message"]
    lines = on_a("validate", "k", "bad").out.splitlines()
    assert lines == ["k: valid", "bad: $: not JSON: Expecting value (line 1, column 1)"]
    assert on_a("validate", "k").code == 0


def test_validate_needs_no_store_for_files(cli, tmp_path):
    (tmp_path / "good.json").write_text(checkpoint())
    assert cli("validate", tmp_path / "good.json").code == 0
    refused = cli("validate", tmp_path / "missing.json")
    assert refused.code == 2
    assert "is not a file; to validate an entry, name its store by --store" in refused.err


# diff


def test_diff_names_paths_and_values(on_a):
    fill("a", {"k1": checkpoint("a", x=[1, {"y": 2}], gone="\x1b"), "k2": checkpoint("a", "b", x=[1, {"y": True}])})
    ran = on_a("diff", "k1", "k2")
    assert ran.code == 1
    assert ran.out.splitlines() == [
        "- $.state.x[1].y: 2",
        "+ $.state.x[1].y: true",
        '- $.state.gone: "\\u001b"',
        '+ $.executedNodes[1]: "b"',
    ]
    assert on_a("diff", "k1", "k2", "--json").json == {
        "equal": False,
        "absent": [],
        "differences": [
            {"path": "$.state.x[1].y", "left": 2, "right": True},
            {"path": "$.state.gone", "left": "\x1b"},
            {"path": "$.executedNodes[1]", "right": "b"},
        ],
    }


def test_diff_cuts_long_values_for_people_only(on_a):
    fill("a", {"k1": json.dumps({"x": "y" * 5000}), "k2": "{}"})
    assert "yy… 5,002 characters; --json shows all" in on_a("diff", "k1", "k2").out
    assert on_a("diff", "k1", "k2", "--json").json["differences"] == [{"path": "$.x", "left": "y" * 5000}]


def test_true_is_not_1_but_a_number_is_a_number():
    assert [path for path, *_ in find_differences([True, 1, 0, 2], [1, 1.0, False, 2])] == ["$[0]", "$[2]"]


def test_diff_sees_json_not_its_layout_and_other_stores(on_a):
    fill("a", {"k": '{"a": 1, "b": [1.0]}', "text": "not JSON"})
    fill("b", {"k": '{"b":[1],"a":1}', "text": "not JSON either"})
    assert on_a("diff", "k", "k", "--with-store", "memory://b").code == 0
    assert on_a("diff", "text", "text").code == 0
    assert on_a("diff", "text", "text", "--with-store", "memory://b").code == 1
    absent = on_a("diff", "k", "absent", "--json")
    assert (absent.code, absent.json["absent"]) == (1, ["absent"])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda below: st.lists(below) | st.dictionaries(st.text(), below),
)


@given(JSON, JSON)
def test_differences_are_none_exactly_for_equal_documents(one, other):
    assert list(find_differences(one, one)) == []
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (list(find_differences(one, other)) == []) == same


# watch


def test_watch_prints_a_line_for_each_change(on_a, monkeypatch):
    texts = iter([None, None, checkpoint("a"), checkpoint("a"), checkpoint("a", "b"), "text", None])

    async def load(self, key):
        return next(texts)

    monkeypatch.setattr(MemoryCheckpointStore, "load", load)
    ran = on_a("watch", "k", "--interval", "0.01", "--count", "4", "--json")
    events = [json.loads(line) for line in ran.out.splitlines()]
    assert [event["event"] for event in events] == ["absent", "created", "changed", "changed", "deleted"]
    assert [event.get("executed") for event in events] == [None, 1, 2, None, None]
    assert ran.code == 0


def test_watch_for_people(on_a):
    fill("a", {"k": checkpoint("a")})
    line = on_a("watch", "k", "--count", "0").out
    assert line.partition("  ")[2] == f"present  {len(checkpoint('a'))} bytes, survey: 1 executed, next is next\n"


def test_ctrl_c_ends_a_watch_quietly(on_a, monkeypatch):
    fill("a", {"k": "x"})
    real = MemoryCheckpointStore.load

    async def load(self, key):
        signal.raise_signal(signal.SIGINT)
        return await real(self, key)

    monkeypatch.setattr(MemoryCheckpointStore, "load", load)
    assert threading.current_thread() is threading.main_thread()
    assert on_a("watch", "k").code == 130


# copy and verify


def test_copy_tells_what_became_of_each_entry(cli):
    entries = {
        "new": checkpoint("a"),
        "equal": checkpoint("a"),
        "older": checkpoint("a", "b", n=2),
        "newer": checkpoint("a", n=1),
        "other": checkpoint("a"),
        "text": "text",
    }
    there = {
        "equal": checkpoint("a"),
        "older": checkpoint("a", n=1),
        "newer": checkpoint("a", "b", n=2),
        "other": checkpoint("a", dag="another"),
        "text": "other text",
        "extra": "x",
    }
    fill("a", entries)
    fill("b", there)
    kept = cli("copy", "memory://a", "memory://b", "--dry-run", "--json").json
    assert kept["kept_keys"] == ["older", "newer", "other", "text"]
    planned = cli("copy", "memory://a", "memory://b", "--update", "--dry-run", "--json")
    assert held("b") == there
    assert planned.json["planned"] == [{"key": "new", "outcome": "copied"}, {"key": "older", "outcome": "replaced"}]
    ran = cli("copy", "memory://a", "memory://b", "--update", "--json")
    assert ran.code == planned.code == 1
    summary = ran.json
    assert {name: summary[name] for name in ("copied", "replaced", "equal", "kept", "gone", "failed")} == {
        "copied": 1,
        "replaced": 1,
        "equal": 1,
        "kept": 3,
        "gone": 0,
        "failed": 0,
    }
    assert summary["kept_keys"] == ["newer", "other", "text"]
    assert summary["bytes"] == len(entries["new"]) + len(entries["older"])
    assert held("b") == {**there, "new": entries["new"], "older": entries["older"]}
    again = cli("copy", "memory://a", "memory://b", "--overwrite")
    assert (again.code, held("b")) == (0, {**entries, "extra": "x"})
    assert "3 replaced, 3 equal, 0 kept" in again.err


def test_copy_tells_how_far_it_is_where_there_is_no_terminal(cli, monkeypatch):
    monkeypatch.setattr(terminal, "_SECONDS_BETWEEN_LINES", -1)
    fill("a", {"k1": "xx", "k2": "xx", "k3": "xx"})
    lines = cli("copy", "memory://a", "memory://b", "--jobs", "1").err.splitlines()
    assert [line.partition(",")[0] for line in lines[:3]] == [f"copying: {number} of 3" for number in (1, 2, 3)]
    assert re.fullmatch(r"copying: 3 of 3, [\d,]+/s [\d.]+ \w+/s, 0 s left", lines[2])
    assert lines[3].startswith("3 copied, ")


def test_copy_draws_a_bar_on_a_terminal(cli, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    fill("a", {"k1": "xx", "k2": "xx", "k3": "xx"})
    fill("b", {"k2": "other"})
    ran = cli("copy", "memory://a", "memory://b", "--json")
    assert "3/3" in ran.err
    assert "kept: k2: " in ran.err
    assert ran.json["copied"] == 2


def test_copy_of_a_prefix(cli):
    fill("a", {"run:1": "x", "other": "x"})
    assert cli("copy", "memory://a", "memory://b", "--prefix", "run:").code == 0
    assert held("b") == {"run:1": "x"}


@pytest.mark.parametrize(
    ("one", "other", "earlier"),
    [
        (checkpoint("a"), checkpoint("a", "b"), True),
        (checkpoint(), checkpoint("a"), True),
        (checkpoint("a"), checkpoint("a", n=1), False),
        (checkpoint("b"), checkpoint("a", "b"), False),
        (checkpoint("a", dag="x"), checkpoint("a", "b", dag="y"), False),
        (checkpoint("a", "b"), checkpoint("a"), False),
        ("text", checkpoint("a"), False),
    ],
)
def test_what_an_earlier_checkpoint_is(one, other, earlier):
    assert is_earlier(one, other) is earlier


class Plain:
    """A store of three methods."""

    def __init__(self, **entries):
        self.entries = entries

    async def save(self, key, json):
        self.entries[key] = json

    async def load(self, key):
        return self.entries.get(key)

    async def delete(self, key):
        self.entries.pop(key, None)


def copied(source, target, **options):
    return asyncio.run(copy_entry(source, target, "k", **{"dry_run": False, "replaced": "none", **options}))


def test_copy_works_without_compare_and_swap():
    target = Plain()
    assert copied(Plain(k="x"), target) == ("copied", 1)
    assert copied(Plain(k="x"), target) == ("equal", 0)
    assert copied(Plain(k="y"), target) == ("kept", 0)
    assert copied(Plain(k="y"), target, replaced="all") == ("replaced", 1)
    assert copied(Plain(), target) == ("gone", 0)
    assert target.entries == {"k": "y"}


class Contested(MemoryCheckpointStore):
    """Another client saves between a look and a save, each of ``texts`` once."""

    def __init__(self, *texts):
        super().__init__()
        self.texts = list(texts)

    async def save_if(self, key, json, *, expected):
        if self.texts:
            await self.save(key, self.texts.pop(0))
        return await super().save_if(key, json, expected=expected)


def test_a_conflict_while_copying_looks_again():
    newest = checkpoint("a", "b", "c")
    for meanwhile, outcome, left in (
        (checkpoint("a"), "replaced", newest),
        (newest, "equal", newest),
        (checkpoint("a", "b", "c", "d"), "kept", checkpoint("a", "b", "c", "d")),
    ):
        target = Contested(meanwhile)
        assert copied(Plain(k=newest), target, replaced="earlier")[0] == outcome
        assert asyncio.run(target.load("k")) == left


class Worked(MemoryCheckpointStore):
    """A worker takes up what was saved before it is read back: ``goes_on`` to a text, or completes and deletes it."""

    def __init__(self, goes_on):
        super().__init__()
        self.goes_on = goes_on

    async def save_if(self, key, json, *, expected):
        version = await super().save_if(key, json, expected=expected)
        await (self.save(key, self.goes_on) if self.goes_on else self.delete(key))
        return version


@pytest.mark.parametrize("goes_on", [None, checkpoint("a", "b", "c")])
@pytest.mark.parametrize("replaced", ["none", "earlier", "all"])
def test_what_a_worker_has_made_of_a_copy_before_it_is_read_back_is_left_to_it(goes_on, replaced):
    target = Worked(goes_on)
    assert copied(Plain(k=checkpoint("a", "b")), target, replaced=replaced)[0] == "copied"
    assert asyncio.run(target.load("k")) == goes_on


def test_an_entry_that_others_change_all_the_time_is_given_up():
    with pytest.raises(StoreConflictError, match="10 times"):
        copied(
            Plain(k=checkpoint("a", "b")), Contested(*(checkpoint("a", n=n) for n in range(10)), "x"), replaced="all"
        )


class Altering(MemoryCheckpointStore):
    async def load_versioned(self, key):
        entry = await super().load_versioned(key)
        return entry and type(entry)(entry.json.upper(), entry.version)


class PlainAltering(Plain):
    async def load(self, key):
        return self.entries.get(key) and self.entries[key].upper()


@pytest.mark.parametrize("target", [Altering, PlainAltering])
def test_a_copy_that_is_not_read_back_equal_is_an_error(target):
    with pytest.raises(StoreCorruptedError, match="read back"):
        copied(Plain(k="x"), target())


def test_a_corrupted_entry_of_the_destination_is_replaced_only_when_told():
    class Corrupted(MemoryCheckpointStore):
        corrupted = True

        async def load_versioned(self, key):
            if self.corrupted:
                raise StoreCorruptedError("rotten")
            return await super().load_versioned(key)

        async def save(self, key, json):
            self.corrupted = False
            await super().save(key, json)

    target = Corrupted()
    with pytest.raises(StoreCorruptedError, match="rotten"):
        copied(Plain(k="x"), target)
    assert copied(Plain(k="x"), target, replaced="all") == ("replaced", 1)


def test_errors_of_single_entries_are_told_and_the_rest_goes_on(cli, monkeypatch):
    fill("a", {"bad": "x", "big": "x", "good": "x"})
    real = MemoryCheckpointStore.load

    async def load(self, key):
        if key in {"bad", "big"}:
            raise {"bad": StoreCorruptedError, "big": StoreLimitError}[key](f"{key} it is")
        return await real(self, key)

    monkeypatch.setattr(MemoryCheckpointStore, "load", load)
    ran = cli("copy", "memory://a", "memory://b", "--json")
    assert ran.code == 3
    assert ran.json["failures"] == [{"key": "bad", "error": "bad it is"}, {"key": "big", "error": "big it is"}]
    assert (ran.json["copied"], ran.json["failed"]) == (1, 2)
    verified = cli("verify", "memory://a", "memory://b", "--json")
    assert (verified.code, verified.json["equal"], len(verified.json["failures"])) == (3, 1, 2)
    listing = cli("ls", "--store", "memory://a", "-l", "--json")
    assert (listing.code, [row["error"] for row in listing.json]) == (3, ["bad it is", "big it is", None])


@pytest.mark.parametrize("error", [StoreUnavailableError, StoreAccessError])
def test_a_store_that_fails_ends_a_copy_which_still_tells_what_it_did(cli, monkeypatch, error):
    fill("a", {"k1": "x", "k2": "x", "k3": "x"})
    real = MemoryCheckpointStore.save_if

    async def save_if(self, key, json, *, expected):
        if key == "k2":
            raise error("it is gone")
        return await real(self, key, json, expected=expected)

    monkeypatch.setattr(MemoryCheckpointStore, "save_if", save_if)
    ran = cli("copy", "memory://a", "memory://b", "--jobs", "1")
    assert ran.code == 3
    assert ran.err.splitlines()[0].startswith("1 copied")
    assert ran.err.splitlines()[-1] == "error: it is gone"
    ran = cli("copy", "memory://a", "memory://b", "--jobs", "1", "--json")
    assert (ran.code, ran.json["error"], ran.json["equal"]) == (3, "it is gone", 1)


def test_jobs_are_concurrent_and_the_first_error_cancels_the_others():
    ended = []

    async def scenario():
        under_way = asyncio.Barrier(3)

        async def work(item):
            await under_way.wait()
            if item == 0:
                raise StoreUnavailableError("gone")
            try:
                await asyncio.Event().wait()
            finally:
                ended.append(item)

        await for_each(range(9), work, 3)

    with pytest.raises(StoreUnavailableError):
        asyncio.run(scenario())
    assert sorted(ended) == [1, 2]


def test_verify_finds_what_is_missing_different_and_extra(cli):
    fill("a", {"same": "x", "different": "x", "missing": "x"})
    fill("b", {"same": "x", "different": "y", "extra\n": "x"})
    ran = cli("verify", "memory://a", "memory://b")
    assert ran.code == 1
    assert ran.out.splitlines() == ["missing    missing", "different  different", 'extra      "extra\\n"']
    found = cli("verify", "memory://a", "memory://b", "--json").json
    assert found == {
        "equal": 1,
        "missing": ["missing"],
        "different": ["different"],
        "extra": ["extra\n"],
        "gone": 0,
        "failures": [],
    }
    assert cli("verify", "memory://a", "memory://b", "--prefix", "same").code == 0
    assert cli("verify", "memory://a", "memory://b", "--prefix", "extra").code == 1
    assert cli("verify", "memory://a", "memory://b", "--prefix", "extra", "--one-way").code == 0


# bench


def test_bench_measures_every_cell_and_removes_its_keys(cli):
    fill("a", {"mine": "x"})
    ran = cli("bench", "memory://a", "--seconds", "0", "--json")
    assert ran.code == 0
    cells = ran.json["cells"]
    assert [(cell["operation"], cell["bytes"], cell["in_flight"]) for cell in cells] == [
        (operation, size, in_flight)
        for size in (1024, 65536, 1048576)
        for in_flight in (1, 16)
        for operation in ("save", "load")
    ]
    assert all(cell["operations"] >= cell["in_flight"] and 0 < cell["p50"] <= cell["p99"] for cell in cells)
    assert held("a") == {"mine": "x"}
    table = cli("bench", "memory://a", "--seconds", "0").out
    assert "p99 ms" in table
    assert all(len(line) <= 80 for line in table.splitlines())


@pytest.mark.parametrize("columns", ["1", "40", "60"])
def test_bench_writes_over_the_edge_of_a_narrow_terminal(cli, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    table = cli("bench", "memory://a", "--seconds", "0").out
    assert "…" not in table
    header = [cell.strip() for cell in table.splitlines()[1].split("┃")[1:-1]]
    assert header == ["operation", "size", "in flight", "p50 ms", "p99 ms", "per second", "throughput"]
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in table.splitlines() if line.startswith("│")]
    assert [row[:3] for row in rows[-2:]] == [["save", "1 MB", "16"], ["load", "1 MB", "16"]]
    assert all(row[-1].endswith("B/s") for row in rows)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 130)])
def test_bench_removes_its_keys_when_it_is_ended(cli, monkeypatch, number, code):
    real = MemoryCheckpointStore.save

    async def save(self, key, json):
        await real(self, key, json)
        assert held_now(self)
        signal.raise_signal(number)

    monkeypatch.setattr(MemoryCheckpointStore, "save", save)
    before = signal.getsignal(signal.SIGTERM)
    assert cli("bench", "memory://a").code == code
    assert held("a") == {}
    assert signal.getsignal(signal.SIGTERM) == before


def held_now(store):
    return [key for key in store._entries.by_key if key.startswith("dagonizer-bench-")]


def test_bench_goes_on_where_a_size_is_too_large_and_says_which_keys_it_could_not_remove(cli, monkeypatch):
    async def save(self, key, json):
        if len(json) > 100_000:
            raise StoreLimitError("too large")

    async def delete(self, key):
        raise StoreUnavailableError("gone")

    monkeypatch.setattr(MemoryCheckpointStore, "save", save)
    monkeypatch.setattr(MemoryCheckpointStore, "delete", delete)
    ran = cli("bench", "memory://a", "--seconds", "0", "--json")
    assert ran.code == 3
    assert {cell["bytes"] for cell in ran.json["cells"] if cell["error"]} == {1048576}
    assert "these entries are left" in ran.err
    assert ran.err.count("dagonizer-bench-") == 16


def test_operations_in_flight_take_turns_even_in_a_store_that_never_waits():
    counts = dict.fromkeys(range(16), 0)

    async def call(key):
        counts[key] += 1

    asyncio.run(measure._measure("load", 1, call, list(counts), 0.5))
    assert min(counts.values()) > 1


def test_percentiles_are_by_nearest_rank():
    assert [measure.percentile(range(1, 101), p) for p in (50, 99, 100)] == [50, 99, 100]
    assert measure.percentile([7], 99) == 7


@pytest.mark.parametrize(
    "arguments",
    [
        ["get", "k", "redis://user:s3cret@host", "--store", "memory://a"],
        ["copy", "memory://a", "memory://b", "redis://:s3cret@host"],
        ["redis://:s3cret@host", "ls"],
        ["--redis://:s3cret@host"],
        ["bench", "memory://a", "--redis://:s3cret@host"],
        ["bench", "memory://a", "redis://user:and s3cret@host?also=s3cret and s3cret"],
        ["bench", "memory://a", "redis://user:'s3cret)' is not a s3cret@host"],
        ["validate", "redis://user:s3cret@host"],
        ["validate", "redis://user:s3cret@host", "--store", "memory://a"],
        ["show", "redis://user:s3cret@host", "--store", "memory://a"],
        ["put", "k", "redis://user:s3cret@host", "--store", "memory://a"],
    ],
)
def test_the_password_of_a_url_in_the_wrong_place_is_not_repeated(cli, arguments):
    ran = cli(*arguments)
    assert ran.code in {1, 2}
    assert "s3cret" not in ran.err + ran.out
    assert "redis://***@host" in ran.err + ran.out


@pytest.mark.parametrize(
    ("url", "told"),
    [
        (
            "postgresql://h/db?password=s3cret&sslpassword=and s3cret",
            "(postgresql://h/db?password=***&sslpassword=***)",
        ),
        ("redis://user:pa/s3cret@host", "(redis:***)"),
        ("redis://user:pa#s3cret@host", "(redis:***)"),
        ("redis://user:s3cret", "(redis:***)"),
        ("redis:user:s3cret@host", "(redis:***)"),
        ("redis//user:s3cret@host", "(redis//user:***)"),
        ("run:1", "(run:1)"),
        ("Run:1/a b", "(Run:1/a b)"),
    ],
)
def test_nor_are_other_secrets_of_a_url_that_is_wrong_as_well(cli, url, told):
    ran = cli("bench", "memory://a", url)
    assert (ran.code, ran.out) == (2, "")
    assert "s3cret" not in ran.err
    assert told in ran.err


@pytest.mark.parametrize("url", ["redis:user:s3cret@host", "redis:/user:s3cret@host", "redis:user:s3\n/cret@s3cret"])
@pytest.mark.parametrize("command", ["get", "show", "rm", "validate", "put k", "diff k", "watch --count=0"])
def test_nor_where_the_slashes_were_forgotten_and_a_key_or_file_belongs(on_a, command, url):
    ran = on_a(*command.split(), url)
    assert ran.code in {0, 1, 2}
    assert "s3" not in ran.err + ran.out
    assert ("redis:***" in ran.err + ran.out) is (ran.code != 0)


@pytest.mark.parametrize("key", ["run:12@host", "run:12", "a@b:c", "a:b:c", "dir/run:7:@x", "run:1/a:b@c"])
def test_a_key_is_shown_as_it_is_though_it_has_a_colon_and_an_at(on_a, key):
    assert on_a("get", key).err == f"no entry under {key}\n"


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("No such command 'redis://:s3cret@h'.", "No such command 'redis://***@h'."),
        ("'redis://:s3cret@h' is not a valid integer.", "'redis://***@h' is not a valid integer."),
        ("unexpected (run:1 redis://:s3cret@h b)", "unexpected (run:***)"),
        ("No such option: --lnog", "No such option: --lnog"),
    ],
)
def test_the_rest_of_a_message_is_left(message, told):
    assert without_secrets(message) == told


@given(st.text(), st.text(), st.sampled_from(["redis://u:{}@h", "redis:u:{}@h", "redis:/:{}@h"]))
@example("1?", "=", "redis://u:{}@h")
@example("1/", "", "redis://u:{}@h")
@example("') ", "'", "redis://u:{}@h")
def test_no_password_is_left_whatever_it_is(before, after, url):
    password = f"{before}s3cret{after}"
    for message in ("{}", "--{}", "({} x)", "'{}' is not a valid integer."):
        assert "s3cret" not in without_secrets(message.format(url.replace("{}", password)))


@pytest.mark.parametrize(
    ("one", "other", "code"),
    [("[NaN]", "[NaN]", 0), ("[1e400]", "[1e999]", 1), ("[NaN]", "[1]", 1), ("[1e1]", "[10.0]", 0)],
)
def test_numbers_that_json_does_not_have_are_compared_as_they_are_written(on_a, one, other, code):
    fill("a", {"one": one, "other": other})
    ran = on_a("diff", "one", "other", "--json")
    assert ran.code == code
    assert ran.json["equal"] is (code == 0)


def test_an_empty_store_is_not_the_same_store(on_a):
    fill("a", {"k": "x"})
    assert on_a("diff", "k", "k", "--with-store", "").code == 2


def test_only_plain_keys_are_offered_to_a_shell():
    evil = ["a;touch${IFS}x", "$(x)", "`x`", "a b", "a'b", 'a"b', "a\\b", "a|b", "a&b", "a>b", "*", "é", "~a", "#a"]
    # A command would take the last two for options.
    assert list(complete._plain([*evil, "run:7/a_b-c.d@e%f=g,h+i", "--all", "-"])) == ["run:7/a_b-c.d@e%f=g,h+i"]


# what all have in common


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["ls"], 2, "--store"),
        (["ls", "--store", "no url"], 2, "not a store URL"),
        (["ls", "--store", "nowhere://x"], 2, "unknown scheme"),
        (["ls", "--store", "memory://a?x=secret"], 2, "unknown parameter"),
        (["ls", "--store", "memory://a", "--null", "--json"], 2, "--null"),
        (["ls", "--store", "memory://a", "\udce9"], 2, "lone surrogate"),
        (["get", "--store", "memory://a", ""], 2, "must not be empty"),
        (["get", "--store", "memory://a", "x" * 1025], 2, "1025"),
        (["get", "--store", "memory://a"], 2, "KEY"),
        (["put", "--store", "memory://a", "k", "/no/such"], 2, "cannot read /no/such: No such file"),
        (["put", "--store", "memory://a", "k", "/"], 2, "cannot read /: Is a directory"),
        (["show", "--store", "memory://a", "k", "--json", "--mermaid"], 2, "--mermaid"),
        (["rm", "--store", "memory://a"], 2, "either keys or --prefix"),
        (["rm", "--store", "memory://a", "k", "--prefix", ""], 2, "either keys or --prefix"),
        (["diff", "--store", "memory://a", "k", ""], 2, "must not be empty"),
        (["validate"], 2, "FILE|KEY"),
        (["watch", "--store", "memory://a", "k", "--interval", "0"], 2, "interval"),
        (["copy", "memory://a"], 2, "DST"),
        (["copy", "memory://a", "no url"], 2, "not a store URL"),
        (["copy", "memory://a", "memory://b", "--jobs", "0"], 2, "jobs"),
        (["verify", "memory://a", "nowhere://secret"], 2, "unknown scheme"),
        (["bench", "memory://a/path"], 2, "a memory URL is memory://name"),
        (["no-such-command"], 2, "no-such-command"),
        (["ls", "--no-such-option"], 2, "no-such-option"),
    ],
)
def test_wrong_use_is_told_without_a_traceback(cli, arguments, code, message):
    ran = cli(*arguments)
    assert (ran.code, ran.out) == (code, "")
    assert message in ran.err
    assert "secret" not in ran.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["ls", "--store", "memory://a/%1b[31mred%0aerror: no"],
        ["verify", "memory://a", "memory://b/%1b[31mred%0aerror: no"],
        ["bench", "memory://a", "\x1b[31mred\nerror: no"],
        ["put", "--store", "memory://a", "k", "/no/\x1b[31mred\nerror: no"],
        ["demo", "--input", "/no/\x1b[31mred\nerror: no"],
    ],
)
def test_no_error_moves_a_terminal(cli, arguments):
    ran = cli(*arguments)
    assert ran.code == 2
    assert "[31mred" in ran.err
    assert "\x1b" not in ran.err
    assert "\nerror: no" not in ran.err


def test_what_a_server_says_of_an_entry_moves_no_terminal(cli, monkeypatch):
    async def refuse(*_):
        raise StoreCorruptedError("\x1b[31mred")

    fill("a", {"k": "x"})
    monkeypatch.setattr(MemoryCheckpointStore, "load", refuse)
    ran = cli("verify", "memory://a", "memory://b")
    assert (ran.code, ran.out) == (3, "failed     k: \\u001b[31mred\n")
    assert "\x1b" not in ran.err


def test_the_notes_of_an_error_are_lines_of_their_own():
    error = StoreUnavailableError("no\nanswer")
    error.add_note("Traceback:\n  \x1b[31mred")
    assert list(error_lines(error)) == ["error: no\\nanswer", "Traceback:", "  \\u001b[31mred"]


def test_put_refuses_what_is_not_text(on_a):
    for stdin, message in ((b"\xff", "- is not UTF-8 text"), (b"a\0b", "U+0000")):
        refused = on_a("put", "k", stdin=stdin)
        assert refused.code == 2
        assert message in refused.err


@pytest.mark.parametrize("command", ["ls", "get", "put", "rm", "show", "validate", "diff", "watch", "copy", "verify"])
def test_a_store_that_does_not_answer_is_exit_code_3(cli, monkeypatch, command):
    async def refuse(*_, **__):
        raise StoreUnavailableError("memory://a does not answer")

    async def refuse_listing(*_):
        await refuse()
        yield ""

    for name in ("save", "load", "delete", "load_versioned"):
        monkeypatch.setattr(MemoryCheckpointStore, name, refuse)
    monkeypatch.setattr(MemoryCheckpointStore, "list_keys", refuse_listing)
    arguments = {"ls": [], "copy": ["memory://a"], "verify": ["memory://a"], "diff": ["k", "k"]}.get(command, ["k"])
    store = [] if command in {"copy", "verify"} else ["--store"]
    ran = cli(command, *store, "memory://a", *arguments)
    assert ran.code == 3
    assert ran.err == "error: memory://a does not answer\n"


def test_a_bug_of_a_store_is_not_a_no(monkeypatch, capsys):
    async def crash(self, key):
        raise RuntimeError("a bug")

    monkeypatch.setattr(MemoryCheckpointStore, "load", crash)
    with pytest.raises(SystemExit) as ended:
        main(["get", "--store", "memory://a", "k"])
    assert ended.value.code == 3
    assert "RuntimeError: a bug" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("run:1", "run:1"),
        ("é 🦆", "é 🦆"),
        ("", '""'),
        (" a", '" a"'),
        ('"a"', '"\\"a\\""'),
        ("a\nb", '"a\\nb"'),
        ("\x7f\u202e\U000e0001", '"\\u007f\\u202e\\udb40\\udc01"'),
    ],
)
def test_what_people_are_shown(text, expected):
    assert shown(text) == expected


@given(st.text())
def test_what_is_shown_is_printable_and_can_be_read_back(text):
    assert shown(text).isprintable()
    assert json.loads(quoted(text)) == text
    assert shown(text) == text or json.loads(shown(text)) == text


def test_the_shell_completes_schemes_and_keys(monkeypatch):
    context = SimpleNamespace(params={"store": "memory://a"})
    fill("a", {"run:1": "x", "run:2": "x", "run: 3": "x", "other": "x"})
    assert complete_url("mem") == ["memory://"]
    assert complete_key(context, "run:") == ["run:1", "run:2"]
    context.params = {"store": "nowhere://"}
    assert complete_key(context, "") == []
    context.params = {}
    monkeypatch.setenv("DAGONIZER_STORE", "memory://a")
    assert complete_key(context, "o") == ["other"]


def test_the_second_key_of_diff_is_completed_from_its_own_store():
    fill("a", {"run:1": "x"})
    fill("b", {"run:2": "x"})
    context = SimpleNamespace(params={"store": "memory://a", "with_store": "memory://b"})
    assert complete_key(context, "run") == ["run:1"]
    assert complete_other_key(context, "run") == ["run:2"]
    context.params["with_store"] = None
    assert complete_other_key(context, "run") == ["run:1"]


def test_the_help_names_the_exit_codes(cli):
    text = " ".join(cli("--help").out.split())
    assert "2 wrong use" in text
    assert "--install-completion" in text


def test_the_help_has_a_short_option_and_there_is_a_version(cli):
    for command in ([], ["ls"], ["doctor"]):
        assert cli(*command, "-h").out == cli(*command, "--help").out
    ran = cli("--version")
    assert (ran.code, ran.out) == (0, f"dagonizer {version('dagonizer')}\n")


@pytest.mark.parametrize(
    "arguments", [["--help"], ["stores"], ["show", "k", "--store", "memory://a"], ["no-such-command"]]
)
def test_a_width_of_0_is_none(cli, monkeypatch, arguments):
    fill("a", {"k": checkpoint()})
    expected = cli(*arguments)
    monkeypatch.setenv("COLUMNS", "0")
    ran = cli(*arguments)
    assert (ran.code, ran.out, ran.err) == (expected.code, expected.out, expected.err)
