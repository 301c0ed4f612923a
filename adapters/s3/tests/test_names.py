"""The names of objects: safe, injective, and found by prefix."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dagonizer_s3 import _names as names
from dagonizer_s3._config import S3Config

ALIKE = st.sampled_from("aA_-.0\u00e9E\u0301\u212bÅß/\\:%*?~ \n\x7f😀\u200d")
LEGAL = st.characters(exclude_characters="\0", exclude_categories=["Cs"])
KEYS = st.one_of(
    st.text(ALIKE, min_size=1, max_size=8),
    st.text(LEGAL, min_size=1, max_size=60),
    st.tuples(st.sampled_from(["x", "é", "_", "."]), st.integers(70, 260), st.text(ALIKE, max_size=4)).map(
        lambda parts: parts[0] * parts[1] + parts[2]
    ),
).filter(lambda key: len(key.encode()) <= 1024)


def key_of(key: str) -> str | None:
    """The key that a listing finds."""
    encoded = key.encode()
    segment = names.segment_of(encoded)
    if names.is_long(segment):
        return names.key_of_long(segment, names.metadata_of(encoded))
    assert names.metadata_of(encoded) == {}
    return names.key_in(segment)


@given(KEYS)
@example("x" * 250)
@example("x" * 251)
@example("x" * 1024)
@example("\x01" * 1024)
@example("..")
def test_a_name_is_safe_short_and_tells_its_key(key: str) -> None:
    segment = names.segment_of(key.encode())
    assert re.fullmatch(r"[A-Za-z0-9_-]+(\.[0-9a-f]{64})?\.json", segment)
    assert len(segment) <= names.MAX_SEGMENT
    assert key_of(key) == key
    assert sum(len(name) + len(value) for name, value in names.metadata_of(key.encode()).items()) < 2048


@given(KEYS, KEYS)
def test_two_keys_never_meet(a: str, b: str) -> None:
    assert (names.segment_of(a.encode()) == names.segment_of(b.encode())) == (a == b)


@given(KEYS, st.data())
def test_the_segments_of_all_keys_with_a_prefix_have_its_beginning(key: str, data: st.DataObject) -> None:
    prefix = key[: data.draw(st.integers(0, len(key)))]
    assert names.segment_of(key.encode()).startswith(names.beginning_of(prefix.encode()))


@given(st.text(ALIKE, min_size=1, max_size=8), st.text(ALIKE, max_size=4))
def test_ordinary_keys_without_a_prefix_do_not_have_its_beginning(key: str, prefix: str) -> None:
    found = names.segment_of(key.encode()).startswith(names.beginning_of(prefix.encode()))
    assert found == key.startswith(prefix)


@given(st.text(st.sampled_from("aA_2eEf.-json/"), max_size=12).map(lambda text: f"{text}.json"))
def test_what_is_taken_for_a_name_is_the_name_of_that_key(segment: str) -> None:
    key = names.key_in(segment)
    assert key is None or names.segment_of(key.encode()) == segment


@pytest.mark.parametrize(
    ("key", "segment"),
    [
        ("run-42", "run-42.json"),
        ("Run_42", "Run__42.json"),
        ("user:1/run 2", "user_3a1_2frun_202.json"),
        ("..", "_2e_2e.json"),
        ("é", "_c3_a9.json"),
        ("x" * 250, "x" * 250 + ".json"),
    ],
)
def test_names_can_be_read(key: str, segment: str) -> None:
    assert names.segment_of(key.encode()) == segment


@pytest.mark.parametrize(
    "segment",
    [
        "",
        ".json",
        "a",
        "a.txt",
        "a.b.json",
        "_41.json",
        "_2E.json",
        "_00.json",
        "_ff.json",
        "_.json",
        "a/b.json",
        "x" * 251 + ".json",
    ],
)
def test_what_is_not_a_name_has_no_key(segment: str) -> None:
    assert names.key_in(segment) is None


def test_the_probe_is_no_key() -> None:
    for segment in (names.PROBE, names.new_probe()):
        assert names.key_in(segment) is None
        assert not names.is_long(segment)
    assert names.new_probe() != names.new_probe()


@pytest.mark.parametrize("metadata", [{}, {"key": ""}, {"key": "?"}, {"key": "eA=="}, {"key": "_w=="}, {"key": "a"}])
def test_metadata_that_tell_no_key_or_another_are_noticed(metadata: dict[str, str]) -> None:
    assert names.key_of_long(names.segment_of(b"x" * 300), metadata) is None


def test_the_longest_prefix_leaves_room_for_the_longest_segment() -> None:
    config = S3Config(bucket="bucket", prefix="p" * 768)
    assert len(f"{config.prefix}/") + names.MAX_SEGMENT == names.MAX_NAME_BYTES
    with pytest.raises(ValueError, match="769 characters"):
        S3Config(bucket="bucket", prefix="p" * 769)
