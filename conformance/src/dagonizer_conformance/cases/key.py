"""Keys are opaque: whatever differs in them makes them different."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from dagonizer import InvalidKeyError
from dagonizer_conformance.case import case
from dagonizer_conformance.outcomes import Violation, expect_text, shown
from dagonizer_conformance.refusal import is_refused
from dagonizer_conformance.results import Capability, Level

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator

    from dagonizer_conformance.client import Client
    from dagonizer_conformance.context import Context

_ORACLE = "the key that each text names"

CASE = (
    "key",
    "KEY",
    "Key",
    "kEY",
    "stra\u00dfe",
    "strasse",
    "STRASSE",
    "\u0131",
    "i",
    "\u0130",
    "I",
    "\u03c2",
    "\u03c3",
)
UNICODE_FORMS = (
    "caf\u00e9",
    "cafe\u0301",
    "cafe",
    "\u212a",
    "K",
    "\u212b",
    "\u00c5",
    "A\u030a",
    "\ufb01le",
    "file",
    "x\u00b2",
    "x2",
    "\uff41",
    "a",
    "\u0430",
    "\uac00",
    "\u1100\u1161",
)
OUTER_CHARACTERS = (
    "a",
    " a",
    "a ",
    "a  ",
    " ",
    "\ta",
    "a\t",
    "a\n",
    "\na",
    "a\r\n",
    "a.",
    ".a",
    "a..",
    "a\u00a0",
    "\ufeffa",
)
SLASHES = ("a/b", "a//b", "/a/b", "a/b/", "//a/b", "a/b//", "a", "a/", "/a", "/", "//", "a\\b", "a/ b")
DOT_SEGMENTS = ("a", "./a", "a/.", "a/..", "b/../a", "../a", "../../a", "a/./b", "a/b", "a/c/../b", "..", ".", "...")
PERCENT = (
    "a/b",
    "a%2Fb",
    "a%2fb",
    "a%252Fb",
    "a b",
    "a+b",
    "a%20b",
    "a%2Bb",
    "%",
    "%25",
    "%2525",
    "%00",
    "%zz",
    "a=b&c",
)
SEPARATORS = ("a:b", "a|b", "a-b", "a_b", "a.b", "a\\b", "a,b", "a;b", "a/b", "a b", "a=b", "a#b", "ab", "a::b", "a__b")
WILDCARDS = (
    "a*",
    "a?",
    "a[b]",
    "a%",
    "a_",
    "a{b,c}",
    "a\\*",
    "ab",
    "ac",
    "abc",
    "*",
    "?",
    "^a",
    "a$",
    ".*",
    "{a}",
    "{a}b",
    "a%c",
    "a_c",
    "%",
    "_",
)
CODE = (
    "a'b",
    "a''b",
    'a"b',
    "a`b",
    "a\\'b",
    "'; DROP TABLE a; --",
    "' OR ''='",
    "%s",
    "%(a)s",
    "{0}",
    "$a",
    "${a}",
    "$(a)",
)
RESERVED_NAMES = (
    "con",
    "NUL",
    "aux.txt",
    "com1",
    "a.tmp",
    "a.json",
    "a",
    ".lock",
    "lock",
    "~",
    "a~",
    ".a.swp",
    "desktop.ini",
    ".DS_Store",
    "lost+found",
    "__init__",
    "-rf",
    "index",
    "a.gz",
)
EMOJI = (
    "\U0001f469\u200d\U0001f469\u200d\U0001f467",
    "\U0001f469\U0001f469\U0001f467",
    "\U0001f469",
    "\u2764",
    "\u2764\ufe0f",
    "\u2764\ufe0e",
    "\U0001f44d",
    "\U0001f44d\U0001f3fd",
    "\U0001f1e9\U0001f1ea",
    "\U0001f1ea\U0001f1e9",
    "a\u200bb",
    "ab",
    "\u202eab",
    "?",
    "??",
)
CONTROL_CHARACTERS = tuple(f"a{chr(code)}b" for code in (*range(1, 0x20), 0x7F, 0x80, 0x85, 0x9F))
NUMBERS = ("1", "01", "1.0", "1e0", "+1", "-1", "1 ", "0x1", "\u0661", "\uff11", "0", "-0", "00", "1_0", "10", "9" * 30)
WORDS = (
    "None",
    "null",
    "nil",
    "undefined",
    "true",
    "True",
    "false",
    "NaN",
    "nan",
    "default",
    "*",
    "''",
    '""',
    "{}",
    "[]",
    "b'a'",
)

ILLEGAL: tuple[Any, ...] = (
    "",
    "\0",
    "\0a",
    "a\0b",
    "a\0",
    "\ud800",
    "a\udfffb",
    "a\ud83d\ude00",
    None,
    0,
    1,
    1.5,
    True,
    b"a",
    ("a",),
)
LOOK_ALIKES = (
    "a",
    "b",
    "ab",
    "a b",
    "?",
    "a?b",
    "a\ufffdb",
    "a\U0001f600",
    "None",
    "0",
    "1",
    "1.5",
    "True",
    "b'a'",
    "('a',)",
)
"""What a store might take the illegal ones for."""


@case("key.case-is-kept", level=Level.CORE, oracle=_ORACLE)
async def letter_case(context: Context) -> None:
    """Keys that differ in case only are different keys."""
    await _expect_distinct(context, CASE)


@case("key.unicode-form", level=Level.CORE, oracle=_ORACLE)
async def unicode_form(context: Context) -> None:
    """Keys that look alike, or are equivalent to Unicode, are different keys."""
    await _expect_distinct(context, UNICODE_FORMS)


@case("key.outer-characters", level=Level.CORE, oracle=_ORACLE)
async def outer_characters(context: Context) -> None:
    """White space and dots at the ends of a key are a part of it."""
    await _expect_distinct(context, OUTER_CHARACTERS)


@case("key.slashes", level=Level.CORE, oracle=_ORACLE)
async def slashes(context: Context) -> None:
    """Slashes in a key are kept, doubled, leading and trailing ones too, and a key can be the beginning of another."""
    await _expect_distinct(context, SLASHES)


@case("key.dot-segments", level=Level.CORE, oracle=_ORACLE)
async def dot_segments(context: Context) -> None:
    """A key is no path: its segments `.` and `..` lead nowhere."""
    await _expect_distinct(context, DOT_SEGMENTS)


@case("key.percent", level=Level.CORE, oracle=_ORACLE)
async def percent(context: Context) -> None:
    """A key is no URL: `%2F` is not `/`, and `+` is no space."""
    await _expect_distinct(context, PERCENT)


@case("key.separators", level=Level.CORE, oracle=_ORACLE)
async def separators(context: Context) -> None:
    """Keys that differ in their separators only are different keys."""
    await _expect_distinct(context, SEPARATORS)


@case("key.wildcards", level=Level.CORE, oracle=_ORACLE)
async def wildcards(context: Context) -> None:
    """A key is no pattern: its wildcards match nothing."""
    await _expect_distinct(context, WILDCARDS)


@case("key.code", level=Level.CORE, oracle=_ORACLE)
async def code(context: Context) -> None:
    """A key that looks like SQL, a format or a command is only a key."""
    await _expect_distinct(context, CODE)


@case("key.common-prefix", level=Level.CORE, oracle=_ORACLE)
async def common_prefix(context: Context) -> None:
    """Very long keys are told apart by whatever differs in them, be it the last character."""
    longest = (await context.open()).max_key_bytes
    prefix = "k" * 1_000
    full = "k" * (longest - 1)
    middle = "k" * (longest // 2 - 1)
    await _expect_distinct(
        context, (prefix, f"{prefix}a", f"{prefix}b", f"{prefix}ab", f"{full}a", f"{full}b", f"{middle}a{middle}", full)
    )


@case("key.reserved-names", level=Level.CORE, oracle=_ORACLE)
async def reserved_names(context: Context) -> None:
    """Names that mean something to a file system or a tool are keys like any other."""
    await _expect_distinct(context, RESERVED_NAMES)


@case("key.emoji", level=Level.CORE, oracle=_ORACLE)
async def emoji(context: Context) -> None:
    """Keys may hold any character, and invisible ones, as joiners and selectors, make a difference."""
    await _expect_distinct(context, EMOJI)


@case("key.control-characters", level=Level.CORE, oracle=_ORACLE)
async def control_characters(context: Context) -> None:
    """Control characters other than U+0000 are a part of the key."""
    count = context.scale(smoke=10, default=len(CONTROL_CHARACTERS), soak=len(CONTROL_CHARACTERS))
    await _expect_distinct(context, ("ab", "a b", *context.random.sample(CONTROL_CHARACTERS, count)))


@case("key.numbers", level=Level.CORE, oracle=_ORACLE)
async def numbers(context: Context) -> None:
    """A key that looks like a number is text: 1, 01 and 1.0 are different keys."""
    await _expect_distinct(context, NUMBERS)


@case("key.words", level=Level.CORE, oracle=_ORACLE)
async def words(context: Context) -> None:
    """A key that looks like a constant of some language, such as null, is only a key."""
    await _expect_distinct(context, WORDS)


@case("key.lengths", level=Level.CORE, oracle=_ORACLE, seconds=60)
async def lengths(context: Context) -> None:
    """A key may have any length up to 1,024 bytes of UTF-8."""
    client = await context.open()
    longest = client.max_key_bytes
    every = context.scale(smoke=250, default=25, soak=1)
    edges = {2**power + off for power in range(1, 10) for off in (0, 1)} if every < 250 else {2, 255, 256}  # noqa: PLR2004
    keys = ["k" * size for size in {*range(1, longest, every), *edges, longest - 1, longest}]
    for width, character in enumerate("é漢😀", 2):
        # A character of several bytes ends where the longest key does.
        keys.append("k" * (longest % width) + character * (longest // width))
    texts = {key: context.text(key) for key in keys}
    for key, text in texts.items():
        await client.save(key, text)
    for key, text in texts.items():
        what = f"what was loaded from a key of {len(key.encode()):,} bytes"
        expect_text(await client.load(key), text, what)
        await client.delete(key)
        expect_text(await client.load(key), None, f"{what} after its deletion")


@case("key.illegal", level=Level.CORE, oracle="the contract's rules for keys, and the texts of the keys that are legal")
async def illegal(context: Context) -> None:
    """Every method refuses what is no key: an empty or too long text, U+0000, a lone surrogate, what is no str."""
    client = await context.open()
    longest = client.max_key_bytes
    too_long = ("k" * (longest + 1), "k" * (longest - 1) + "é", "k" * (4 * longest))
    texts = {key: context.text(key) for key in (*LOOK_ALIKES, "k" * longest, "k" * (longest - 1))}
    for key, text in texts.items():
        await client.save(key, text)
    for key in (*ILLEGAL, *too_long):
        for method, call in _methods(client, key):
            what = f"{method}({shown(key)})"
            if not await is_refused(call(), what, InvalidKeyError):
                await _remove(client, key)
                raise Violation(f"{what} was not refused")
    for key, text in texts.items():
        expect_text(await client.load(key), text, f"what was loaded from {shown(key)} after calls with illegal keys")


def _methods(client: Client, key: str) -> Iterator[tuple[str, Callable[[], Awaitable[object]]]]:
    yield "save", partial(client.save, key, "{}")
    yield "load", partial(client.load, key)
    yield "delete", partial(client.delete, key)
    if client.has(Capability.COMPARE_AND_SWAP):
        yield "load_versioned", partial(client.load_versioned, key)
        yield "save_if", partial(client.save_if, key, "{}", expected=None)


async def _remove(client: Client, key: str) -> None:
    # The runner removes only what is under legal keys; nothing can be done if this does not help.
    with suppress(Exception):
        await client.delete(key)


async def _expect_distinct(context: Context, keys: Iterable[str]) -> None:
    """Save all, load each, also with another client, and delete one after the other what must still be there."""
    client, other = await context.open(), await context.open()
    texts = {key: context.text(key) for key in keys}
    shuffled = context.random.sample(list(texts), len(texts))
    for key in shuffled:
        await client.save(key, texts[key])
    for key, text in texts.items():
        what = f"what another client loaded from {shown(key)} after all of {len(texts)} keys were saved"
        expect_text(await other.load(key), text, what)
    for number, key in enumerate(shuffled):
        deleted = ", ".join(map(shown, shuffled[:number]))
        expect_text(
            await client.load(key), texts[key], f"what was loaded from {shown(key)} after {deleted} were deleted"
        )
        await client.delete(key)
        expect_text(await other.load(key), None, f"what was loaded from {shown(key)} after its deletion")
