from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagonizer import StoreURL, StoreURLError
from dagonizer.url import Host, parameter, parameters_of


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("file:///var/a%20b", StoreURL("file", path="/var/a b")),
        ("file:rel/dir", StoreURL("file", path="rel/dir")),
        ("FILE:x", StoreURL("file", path="x")),
        ("memory://Name", StoreURL("memory", hosts=(Host("Name", None),))),
        ("redis+cluster://h1:1,h2", StoreURL("redis+cluster", hosts=(Host("h1", 1), Host("h2", None)))),
        ("x://u%40v:p%3Aq+r@[::1]:5/db", StoreURL("x", "u@v", "p:q+r", (Host("::1", 5),), "/db")),
        ("x://:p@/s", StoreURL("x", None, "p", (), "/s")),
        ("x://u:@h", StoreURL("x", "u", "", (Host("h", None),))),
        ("x://h:1/?a=b@c", StoreURL("x", hosts=(Host("h", 1),), path="/", query=(("a", "b@c"),))),
        ("x://u@h:1?a=b@c", StoreURL("x", "u", None, (Host("h", 1),), query=(("a", "b@c"),))),
        ("x:?a=1%262&b=", StoreURL("x", query=(("a", "1&2"), ("b", "")))),
        ("postgresql://%2Frun%2Fpg/db", StoreURL("postgresql", hosts=(Host("/run/pg", None),), path="/db")),
    ],
)
def test_a_url_is_split_and_percent_decoded(text, expected):
    assert StoreURL.parse(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no-scheme",
        "/abs/path",
        "1x:",
        "x://h:port",
        "x://h:99999",
        "x://h1,,h2",
        "x://[::1",
        "x://:80",
        "x:a%zz",
        "x:%ff",
        "x:#f",
        "x:a?b",
        "x:?=1",
        "x:?a=%f",
        "x://h/a@b",
        "x://u:12345?a=b@h/db",
        7,
        None,
    ],
)
def test_a_malformed_url_is_refused(text):
    with pytest.raises(StoreURLError):
        StoreURL.parse(text)


SECRET = "hunter2-s3cr3t"


@pytest.mark.parametrize(
    "text",
    [
        f"x://user:{SECRET}@h/db?token={SECRET}",
        f"x://{SECRET}@h",
        f"x://u:{SECRET}@h:port",
        f"x://u:{SECRET}@[h",
        f"x://u:a/{SECRET}@h/db",
        f"x://u:a#{SECRET}@h/db",
        f"x://u:a?{SECRET}@h/db",
        f"x://u:12345?{SECRET}=a@h/db",
        f"x://u:%zz{SECRET}@h",
        f"x://u:%ff{SECRET}@h",
        f"x://h?a={SECRET}&{SECRET}",
        f"x://:80/{SECRET}@h",
        f"x:u:{SECRET}@h?a=1",
        f"x:/u:{SECRET}@h/db",
        f"x:///:a/{SECRET}@h",
        f"{SECRET}",
    ],
)
def test_no_secret_is_in_a_repr_or_an_error(text):
    shown = []
    try:
        url = StoreURL.parse(text)
        shown = [str(url), repr(url)]
        url.read_parameters(())
    except StoreURLError as exc:
        error = exc
        while error is not None:
            shown += [str(error), repr(error)]
            error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    assert shown
    assert all(SECRET not in text for text in shown)


@pytest.mark.parametrize("text", ["file:///var/12:30/me@host", "file:me@host", "x://h/12:30%40/me", "x:12:30"])
def test_a_path_that_is_one_is_shown(text):
    assert str(StoreURL.parse(text)) == text.replace("%40", "@")


@dataclass(frozen=True)
class Config:
    root: str
    fsync: bool = parameter(True, "whether to sync")
    mode: Literal["auto", "never"] = parameter("auto", "how to create")
    timeout: Annotated[float, msgspec.Meta(gt=0)] = parameter(5.0, "in seconds")
    wait: Annotated[int, msgspec.Meta(ge=0)] | None = parameter(None, "replicas")


def read(query):
    return StoreURL.parse(f"x:p?{query}").read_parameters(parameters_of(Config))


def test_parameters_are_typed_by_the_config():
    assert read("fsync=false&mode=never&timeout=0.5&wait=2") == {
        "fsync": False,
        "mode": "never",
        "timeout": 0.5,
        "wait": 2,
    }
    assert [p.name for p in parameters_of(Config)] == ["fsync", "mode", "timeout", "wait"]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("fsnyc=1", "unknown parameter 'fsnyc'; did you mean 'fsync'?"),
        ("zzzz=1", "it knows fsync, mode, timeout, wait"),
        ("fsync=maybe", "'fsync' must be true or false"),
        ("mode=always", "'mode' must be one of auto, never"),
        ("timeout=0", "'timeout' must be a number above 0"),
        ("timeout=soon", "'timeout' must be a number above 0"),
        ("wait=1.5", "'wait' must be a whole number of at least 0"),
        ("fsync=1&fsync=0", "given twice"),
    ],
)
def test_a_wrong_parameter_says_what_is_expected(query, message):
    with pytest.raises(StoreURLError) as caught:
        read(query)
    assert message in str(caught.value)


@given(st.text())
def test_no_text_makes_the_parser_raise_anything_else(text):
    for candidate in (text, f"x://{text}", f"x:{text}"):
        try:
            StoreURL.parse(candidate)
        except StoreURLError as exc:
            assert str(exc)
