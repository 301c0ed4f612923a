"""What the ledgers show, and what they do not take for a fault."""

from __future__ import annotations

import json

import pytest
from faults.ledger import Call, Recorder, calls_in, judge, lost

from dagonizer import MemoryCheckpointStore

KEY = "k"


def write(value, started, ended=None, error=None, *, by="writer"):
    return Call(by, "save" if value else "delete", KEY, value, started, ended, error)


def other(*arguments):
    return write(*arguments, by="other")


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
    [write("1", 1, 3), other("2", 2, 4), found("1", 5, 6)],
    [write("1", 1, 3), other("2", 2, 4), found("2", 5, 6)],
    [write("1", 1, 2), other("2", 3, 6), found("1", 4, 5), found("2", 4, 5)],
    [write("1", 1, 2, "StoreUnavailableError"), other("2", 3, 4), found("1", 5, 6)],
    [write("1", 1), other("2", 3, 4), found("1", 5, 6)],
    [write(None, 1, 2), write("1", 3, 5), other(None, 4, 6), found(None, 7, 8)],
])  # fmt: skip
def test_of_writes_by_two_clients_at_once_either_is_right(history):
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


@pytest.mark.parametrize("history", [
    [write("1", 1, 2), other("2", 3, 4), found("1", 5, 6)],
    [write("1", 1, 2), other("2", 3, 4), found(None, 5, 6)],
    [write("1", 1, 2), other(None, 3, 4), found("1", 5, 6)],
    [other(None, 1, 2), write("1", 3, 4), other(None, 5, 6, "StoreAccessError"), other("2", 7, 8), found(None, 9, 10)],
    [write("1", 1, 3), other("2", 2, 4), found(None, 5, 6)],
    [write("1", 1, 3), other("2", 2, 6), write("3", 4, 5), found("1", 7, 8)],
    [write("1", 1, 2, "StoreUnavailableError"), other("2", 3, 5), write("3", 4, 6), found("1", 7, 8)],
])  # fmt: skip
def test_what_another_client_has_overwritten_is_lost(history):
    assert len(lost(history)) == 1


def test_a_value_from_nowhere_is_lost():
    assert lost([found("1", 1, 2), write("1", 3, 4)]) == ["reader found 1 under 'k', where it had not been written"]


def test_it_says_whether_what_came_back_had_been_acknowledged():
    later = [write("2", 3, 4), found("1", 5, 6)]
    assert lost([write("1", 1, 2), *later]) == ["reader found 1 under 'k', where 2 was acknowledged"]
    given_up = "reader found 1, which was not acknowledged, under 'k', where 2 was acknowledged"
    assert lost([write("1", 1, 2, "StoreUnavailableError"), *later]) == [given_up]


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
    one, two = (Recorder(store, tmp_path / name) for name in ("one", "two"))
    await one.save(KEY)
    old = await store.load(KEY)
    await two.save(KEY)
    await two.load(KEY)
    judge(tmp_path).expect_nothing_lost()
    await store.save(KEY, old)
    await two.load(KEY)
    judgement = judge(tmp_path)
    assert (len(judgement.lost), len(judgement.impossible)) == (1, 1)
    assert len(judge(tmp_path, linearizable=False).lost) == 1
    for recorder in (one, two):
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
    third = Recorder(store, path)
    assert await third.delete(KEY)
    third.close()
    with path.open("a") as file:
        file.write('{"begin": ["sa')
    calls = list(calls_in(path))
    assert [(call.name, call.value, call.acknowledged) for call in calls] == [
        ("save", "client #0", True),
        ("save", "client #1", False),
        ("load", "client #0", True),
        ("save", "client #3", True),
        ("delete", None, True),
    ]
