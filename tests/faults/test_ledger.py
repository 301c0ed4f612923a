"""What the ledgers show, and what they do not take for a fault."""

from __future__ import annotations

import json

import pytest
from faults.ledger import Call, Recorder, calls_in, judge, lost

from dagonizer import MemoryCheckpointStore

KEY = "k"


def write(value, started, ended=None, error=None):
    return Call("writer", "save" if value else "delete", KEY, value, started, ended, error)


def found(value, started, ended):
    return Call("reader", "load", KEY, value, started, ended)


@pytest.mark.parametrize("history", [
    [found(None, 1, 2), write("1", 3, 4), found("1", 5, 6)],
    [write("1", 1, 4), found(None, 2, 3)],
    [write("1", 1, 2), write("2", 3), found("1", 5, 6)],
    [write("1", 1, 2), write("2", 3, 4, "StoreUnavailableError"), found("2", 5, 6)],
    [write("1", 1, 2), write(None, 3, 4), found(None, 5, 6)],
    [write("1", 1, 2), write("2", 3, 6), found("2", 4, 5)],
])  # fmt: skip
def test_the_last_acknowledged_value_or_a_later_one_is_right(history):
    assert lost(history) == []


@pytest.mark.parametrize("history", [
    [write("1", 1, 2), found(None, 3, 4)],
    [write("1", 1, 2), write("2", 3, 4), found("1", 5, 6)],
    [write("1", 1, 2, "StoreUnavailableError"), write("2", 3, 4), found("1", 5, 6)],
    [write("1", 1, 2), write(None, 3, 4), found("1", 5, 6)],
    [write("1", 1, 2), found(None, 3, 4), write(None, 5, 6)],
])  # fmt: skip
def test_an_older_value_is_lost(history):
    assert len(lost(history)) == 1


class Altering(MemoryCheckpointStore):
    """Returns what ``alter`` makes of a text."""

    alter = staticmethod(str)

    async def load(self, key):
        text = await super().load(key)
        return None if text is None else self.alter(text)


@pytest.mark.parametrize("alter", [
    lambda text: text[:-1],
    lambda text: text.replace("padding", "Padding"),
    lambda text: text.replace('"k"', '"l"'),
])  # fmt: skip
async def test_a_damaged_value_is_torn(alter, tmp_path):
    store = Altering()
    store.alter = alter
    recorder = Recorder(store, tmp_path / "client")
    await recorder.save(KEY)
    await recorder.load(KEY)
    recorder.close()
    judgement = judge(tmp_path)
    assert len(judgement.torn) == 1
    with pytest.raises(AssertionError, match="client read 'k'"):
        judgement.expect_nothing_lost()


async def test_a_value_that_another_client_overwrote_must_not_come_back(tmp_path):
    store = MemoryCheckpointStore()
    one, other = (Recorder(store, tmp_path / name) for name in ("one", "other"))
    await one.save(KEY)
    old = await store.load(KEY)
    await other.save(KEY)
    await other.load(KEY)
    judge(tmp_path).expect_nothing_lost()
    await store.save(KEY, old)
    await other.load(KEY)
    judgement = judge(tmp_path)
    assert (len(judgement.lost), len(judgement.impossible)) == (0, 1)
    for recorder in (one, other):
        recorder.close()


async def test_a_client_goes_on_with_the_ledger_of_one_that_was_killed(tmp_path):
    path = tmp_path / "client"
    store = MemoryCheckpointStore()
    first = Recorder(store, path)
    await first.save(KEY)
    first.close()
    # It was killed in the middle of a call, and its successor in the middle of a line.
    with path.open("a") as file:
        file.write(json.dumps({"begin": ["save", KEY, "client #1", 1]}) + "\n")
    second = Recorder(store, path)
    assert await second.load(KEY)
    await second.save(KEY)
    second.close()
    with path.open("a") as file:
        file.write('{"begin": ["sa')
    calls = list(calls_in(path))
    assert [(call.name, call.value, call.acknowledged) for call in calls] == [
        ("save", "client #0", True),
        ("save", "client #1", False),
        ("load", "client #0", True),
        ("save", "client #3", True),
    ]
