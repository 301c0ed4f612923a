"""The checker against one that tries everything, on histories of a real register, and on planted violations."""

from __future__ import annotations

import random
from itertools import combinations, permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dagonizer_conformance.linearizability import Event, Verdict, _without, check, shrink


def write(value, started, ended, client="a"):
    return Event(client, "write", value, started, ended)


def read(value, started, ended, client="b"):
    return Event(client, "read", value, started, ended)


def brute_force(events, initial):
    """By the definition: some subset with all that ended, in some order that keeps real time and register."""
    certain = [event for event in events if event.ended is not None]
    uncertain = [event for event in events if event.ended is None]
    return any(
        explains(order, initial)
        for count in range(len(uncertain) + 1)
        for chosen in combinations(uncertain, count)
        for order in permutations([*certain, *chosen])
    )


def explains(order, initial):
    value = initial
    for position, event in enumerate(order):
        if any(later.ended is not None and later.ended < event.started for later in order[position + 1 :]):
            return False
        if event.kind == "write":
            value = event.value
        elif event.value != value:
            return False
    return True


@st.composite
def short_events(draw):
    started = draw(st.integers(0, 8))
    return Event(
        draw(st.sampled_from("ab")),
        draw(st.sampled_from(["read", "write"])),
        draw(st.sampled_from([None, "x", "y"])),
        started,
        draw(st.one_of(st.none(), st.integers(started, started + 4))),
    )


histories = st.lists(short_events(), max_size=6)
initials = st.sampled_from([None, "x"])


@settings(max_examples=1000, deadline=None)
@given(histories, initials)
def test_it_agrees_with_the_definition(events, initial):
    assert check(events, initial=initial).linearizable is brute_force(events, initial)


@settings(max_examples=1000, deadline=None)
@given(histories, initials, st.sets(st.integers(0, 5)))
def test_leaving_events_out_keeps_a_possible_history_possible(events, initial, positions):
    rest = _without(events, [position for position in positions if position < len(events)], initial)
    assert brute_force(rest, initial) or not brute_force(events, initial)


@settings(max_examples=1000, deadline=None)
@given(histories, initials)
def test_a_counterexample_is_impossible_and_has_no_event_to_spare(events, initial):
    verdict = check(events, initial=initial)
    if verdict.linearizable:
        assert verdict.counterexample == ()
        with pytest.raises(ValueError, match="must not be linearizable"):
            shrink(events, initial=initial)
        return
    part = verdict.counterexample
    assert part == shrink(events, initial=initial)
    assert all(event in events for event in part)
    assert not brute_force(part, initial)
    written = {event.value for event in events if event.kind == "write"}
    assert written & {event.value for event in part} <= {event.value for event in part if event.kind == "write"} | {
        initial
    }
    for position in range(len(part)):
        assert brute_force(_without(part, [position], initial), initial)


def recorded(seed, operations, *, clients=8, unknown=0, deletes=0.0):
    """What ``clients`` would record of a real register: each operation happens at one instant within its time."""
    rng = random.Random(seed)
    instants = []
    for client in range(clients):
        now = rng.randrange(100)
        for number in range(operations // clients):
            started = now + rng.randrange(50)
            instant = started + rng.randrange(1, 100)
            ended = instant + rng.randrange(1, 100)
            now = ended
            kind = rng.choice(["read", "write"])
            value = None if rng.random() < deletes else f"{client}.{number}"
            instants.append((instant, rng.random(), str(client), kind, value, started, ended))
    for number in range(unknown):
        started = rng.randrange(100 * operations // clients)
        # Some take effect long after, and half of them never.
        instant = started + rng.choice([10, 100, 10_000])
        kind = rng.choice(["write", "lost"])
        value = None if rng.random() < deletes else f"unknown.{number}"
        instants.append((instant, rng.random(), f"u{number}", kind, value, started, None))
    value = None
    events = []
    for _, _, client, kind, written, started, ended in sorted(instants):
        if kind == "write":
            value = written
        events.append(
            Event(client, "read" if kind == "read" else "write", value if kind == "read" else written, started, ended)
        )
    rng.shuffle(events)
    return events


@pytest.mark.parametrize("deletes", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("seed", range(20))
def test_the_history_of_a_real_register_is_accepted(seed, deletes):
    events = recorded(seed, 300, clients=1 + seed % 12, unknown=seed * 2, deletes=deletes)
    assert check(events) == Verdict(True)


@pytest.mark.parametrize("deletes", [0.0, 0.3])
def test_a_long_history_takes_few_steps(deletes):
    events = recorded(7, 1000, unknown=40, deletes=deletes)
    assert check(events, limit=5_000) == Verdict(True)


VIOLATIONS = {
    "a stale read after an acknowledged write": [write("x", 0, 1), write("y", 2, 3), read("x", 4, 5)],
    "a lost update": [write("x", 0, 1), read(None, 2, 3)],
    "nothing between old and new": [write("x", 0, 1), write("y", 2, 5), read(None, 3, 4)],
    "resurrection after a delete": [write("x", 0, 1), write(None, 2, 3), read("x", 4, 5)],
    "new, then old": [write("x", 0, 1), write("y", 2, 9), read("y", 3, 4), read("x", 5, 6)],
    "new for one, then old for another": [
        write("x", 0, 1),
        write("y", 2, None),
        read("y", 3, 4, "b"),
        read("x", 5, 6, "c"),
    ],
    "what nobody wrote": [read("x", 0, 1)],
    "what is written only later": [read("x", 0, 1), write("x", 2, 3)],
    "an unknown write that happened twice": [
        write("x", 0, None),
        read("x", 1, 2),
        write("y", 3, 4),
        read("y", 5, 6),
        read("x", 7, 8),
    ],
}


@pytest.mark.parametrize("name", VIOLATIONS)
def test_a_violation_is_rejected(name):
    assert check(VIOLATIONS[name]).linearizable is False


@pytest.mark.parametrize("name", VIOLATIONS)
def test_a_violation_is_found_behind_a_long_history_and_shrinks_to_its_own_size(name):
    before = recorded(1, 300, unknown=10)
    delay = 2 + max(event.ended for event in before if event.ended is not None)
    delete = write(None, delay - 1, delay - 1)
    planted = [
        Event(event.client, event.kind, event.value, event.started + delay, event.ended and event.ended + delay)
        for event in VIOLATIONS[name]
    ]
    verdict = check([*before, delete, *planted])
    assert verdict.linearizable is False
    assert len(verdict.counterexample) <= len(planted)
    assert any(event in planted and event.kind == "read" for event in verdict.counterexample)


@pytest.mark.parametrize("clients", [8, 30])
@pytest.mark.parametrize("seed", range(10))
def test_one_changed_read_is_found_in_a_long_history(seed, clients):
    events = recorded(seed, 300, clients=clients, unknown=10)
    reads = sorted((event for event in events if event.kind == "read"), key=lambda event: event.started)
    old, new = reads[10], reads[-10]
    changed = Event(new.client, "read", old.value, new.started, new.ended)
    verdict = check([changed if event is new else event for event in events], limit=20_000)
    assert verdict.linearizable is False
    assert changed in verdict.counterexample
    assert 3 <= len(verdict.counterexample) <= 6


def test_a_write_is_not_left_out_while_a_read_of_an_equal_value_needs_it():
    # Without the second write of x the read would seem stale.
    possible = [write("x", 0, 1), write("y", 2, 3), write("x", 4, 5), read("x", 6, 7)]
    impossible = [*possible, write("z", 8, 9), read("y", 10, 11)]
    assert check(possible).linearizable is True
    assert shrink(impossible) == (write("y", 2, 3), write("z", 8, 9), read("y", 10, 11))


@pytest.mark.parametrize(
    "end",
    [
        [read("x", 4, 5), write("x", 5, 6)],
        [write("x", 4, 5), write("z", 6, 8), read("x", 8, 9)],
        [write("x", 4, 6), write("z", 6, 7), read("x", 8, 9)],
    ],
)
def test_a_read_goes_with_a_write_that_it_only_touches(end):
    events = [write("x", 0, 1), write("y", 2, 3), *end]
    assert brute_force(events, None)
    position = max(index for index, event in enumerate(events) if event.kind == "write" and event.value == "x")
    assert brute_force(_without(events, [position], None), None)


def test_a_search_that_takes_too_long_has_no_verdict():
    assert check(recorded(1, 300), limit=10) == Verdict(None)
    assert check(VIOLATIONS["a lost update"], limit=0) == Verdict(None)


def test_a_history_without_events_is_possible():
    assert check([]) == Verdict(True)
    assert check([read("x", 0, None)]) == Verdict(True)


def test_an_event_must_not_end_before_it_starts():
    with pytest.raises(ValueError, match=r"ended \(1\) must not be before started \(2\)"):
        read("x", 2, 1)
