"""Whatever text is saved comes back, code point for code point."""

from __future__ import annotations

import string
from functools import partial
from typing import TYPE_CHECKING

from dagonizer import InvalidValueError
from dagonizer_conformance.case import case
from dagonizer_conformance.outcomes import expect, expect_text, shown
from dagonizer_conformance.refusal import expect_refusal, is_refused
from dagonizer_conformance.results import Capability, Level

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from dagonizer_conformance.context import Context

_ORACLE = "the text that was saved"
_CERTIFIABLE = 512
_MEBIBYTE = 1 << 20
_SECONDS_FOR_A_MEBIBYTE = 1.0

WHITESPACE = (
    " {}",
    "{} ",
    "\t{}\t",
    "{}\n",
    "\n\n{}\r\n",
    '{ "a" :\t[ 1 ,\n2 ] }',
    " ",
    "\t",
    "\n",
    "\r",
    "\r\n",
    "a\nb\r\nc\rd\n\re",
    "a\x0bb\x0cc",
    "a\x1cb\x1dc\x1ed\x1fe",
    "a\x1ab",
    "\u0085a\u0085",
    "\u2028a\u2029",
    "\u00a0a\u3000",
    "\u200ba\u2060",
)
BYTE_ORDER_MARKS = ("\ufeff{}", "\ufeff", "\ufeff\ufeff[]", "a\ufeffb", "[]\ufeff", "\ufffe{}", "\u00ef\u00bb\u00bf{}")
NORMALIZATION = (
    '"caf\u00e9"',
    '"cafe\u0301"',
    "\u212b \u00c5 A\u030a",
    "\u2126 \u03a9",
    "\ufb01 fi",
    "\uac00 \u1100\u1161",
    "q\u0307\u0323 q\u0323\u0307",
    "\u1e9b\u0323",
    "\uff21 A \u24b6",
)
ESCAPES = (
    r'{"nul":"\u0000"}',
    r'{"lone":"\ud83d"}',
    r'{"pair":"\ud83d\ude00"}',
    r'{"letter":"\u00e9\u0041"}',
    r'{"all":"\"\\\/\b\f\n\r\t"}',
    r'{"path":"C:\\new\\table\\0"}',
    r'"\\u0000 \\\\u0000"',
    "\\",
    "\\\\",
    "\\0",
    "\\x00",
    "\\n",
    '"',
    "'",
    '""""',
    "''''",
    "&amp; &#0; &lt;",
)
OBJECTS = (
    '{"a":1,"a":2}',
    '{"a":{"x":1,"x":null},"a":[]}',
    '{"b":1,"a":2,"C":3}',
    '{"10":0,"9":1,"1":2}',
    '{"aa":0,"b":1}',
    '{"":0," ":1}',
    '{"__proto__":{},"constructor":null}',
    '{"a":null,"b":[],"c":{}}',
)
NUMBERS = (
    "[1.0,1,1.00,10e-1]",
    "[1e400,-1e400,1e-400]",
    "[-0,-0.0,0.0,0]",
    "[1E5,1e5,1e+05,100000]",
    "[12345678901234567890,-98765432109876543210]",
    "[9007199254740993,9223372036854775808,18446744073709551616]",
    "[0.1,0.10,0.1000000000000000055511151231257827]",
    "[3.14159265358979323846264338327950288419716939937510]",
    "1.0",
    "007",
    "+1",
    "1_000",
    "[" + "9" * 400 + "]",
)
CHARACTERS = (
    "\U0001f600 \U00010000 \U0010ffff",
    "a\ufffeb\uffffc",
    "\U0001fffe \U0010fffe \ufdd0",
    "\ue000\uf8ff \U000f0000\U0010fffd",
    "e\u0301\u0323\u0327 \u0301\u0301\u0301",
    "\u202eabc\u202c \u200fd\u200e \u2066e\u2069",
    "\u0634\u0645\u0633 \u05e9\u05dc\u05d5\u05dd",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 \u2764\ufe0f \u2764\ufe0e \U0001f1e9\U0001f1ea",
    "\ufffd ?",
    "a\u00adb\u034fc\u180ed",
    "\U000e0041\U000e007f",
    "".join(map(chr, range(0x01, 0x20))) + "\x7f",
    "".join(map(chr, range(0x80, 0xA0))),
)
CODE = (
    "'; DROP TABLE checkpoints; --",
    "' OR ''='",
    '" UNION SELECT "',
    "? ?1 :name @name $1 $$ $tag$",
    "%s %d %(x)s %% %n %00",
    "{} {0} {x} {{x}} {x!r}",
    "$x ${x} $(id) `id` $PATH ~ !!",
    "{{ 7 * 7 }} {% x %} <%= x %> #{x}",
    "<script>alert(1)</script> ]]> <!--",
    "\\x00 \\u0000 \\0 \\N \\.",
    "*3\r\n$3\r\nSET\r\n$1\r\nk\r\n",
    "END\r\n.\r\n",
    "a; b & c | d > e < f # g",
    "__import__('os')",
)
NOTHING = ("", '""', "null", "false", "0", "[]", "{}", "None", "nil", "undefined")
NOT_JSON = (
    "not JSON",
    "{",
    '{"a":',
    '{"a":1}}',
    "{}{}",
    "{'a': 1}",
    "[NaN,Infinity]",
    "// comment",
    "---\n- a\n",
    "a,b\n1,2\n",
    "aGVsbG8=",
    "gAAAAABl",
    "H4sIAAAAAAAA",
    "x" * 200_000,
)


@case("value.whitespace", level=Level.CORE, oracle=_ORACLE)
async def whitespace(context: Context) -> None:
    """White space and line ends are kept, around a text and within."""
    await _expect_kept(context, WHITESPACE)


@case("value.byte-order-mark", level=Level.CORE, oracle=_ORACLE)
async def byte_order_mark(context: Context) -> None:
    """A byte order mark is a character like any other."""
    await _expect_kept(context, BYTE_ORDER_MARKS)


@case("value.normalization", level=Level.CORE, oracle=_ORACLE)
async def normalization(context: Context) -> None:
    """A text keeps its Unicode form: composed and decomposed characters are different texts."""
    await _expect_kept(context, NORMALIZATION)


@case("value.escapes", level=Level.CORE, oracle=_ORACLE)
async def escapes(context: Context) -> None:
    """Escapes, backslashes and quotes are kept as they are written."""
    await _expect_kept(context, ESCAPES)


@case("value.objects", level=Level.CORE, oracle=_ORACLE)
async def objects(context: Context) -> None:
    """The members of a JSON object keep their order, also those that have one name."""
    await _expect_kept(context, OBJECTS)


@case("value.numbers", level=Level.CORE, oracle=_ORACLE)
async def numbers(context: Context) -> None:
    """Numbers keep the form in which they are written, however large or precise they are."""
    await _expect_kept(context, NUMBERS)


@case("value.characters", level=Level.CORE, oracle=_ORACLE)
async def characters(context: Context) -> None:
    """Every character is kept: astral, combining and control characters, private ones, noncharacters, marks."""
    await _expect_kept(context, CHARACTERS)


@case("value.code", level=Level.CORE, oracle=_ORACLE)
async def code(context: Context) -> None:
    """Text that looks like SQL, a template, a format or a command is text."""
    await _expect_kept(context, CODE)


@case("value.nothing", level=Level.CORE, oracle=_ORACLE)
async def nothing(context: Context) -> None:
    """The empty text is a text, and so is one that says null."""
    await _expect_kept(context, NOTHING)


@case("value.not-json", level=Level.CORE, oracle=_ORACLE)
async def not_json(context: Context) -> None:
    """A text need not be JSON."""
    await _expect_kept(context, NOT_JSON)


@case("value.second-instance", level=Level.CORE, oracle=_ORACLE)
async def second_instance(context: Context) -> None:
    """Another client loads exactly what was saved, whatever its characters."""
    writer, reader = await context.open(), await context.open()
    kinds = [
        WHITESPACE,
        BYTE_ORDER_MARKS,
        NORMALIZATION,
        ESCAPES,
        OBJECTS,
        NUMBERS,
        CHARACTERS,
        CODE,
        NOTHING,
        NOT_JSON,
    ]
    each = context.scale(smoke=2, default=30, soak=30)
    texts = [text for kind in kinds for text in kind[:each]]
    texts_by_key = {context.key(f"{number}"): text for number, text in enumerate(texts)}
    for key, text in texts_by_key.items():
        await writer.save(key, text)
    for key, text in texts_by_key.items():
        expect_text(await reader.load(key), text, f"what another client loaded after {shown(text)} was saved")


@case("value.sizes", level=Level.CORE, oracle=_ORACLE, seconds=60)
async def sizes(context: Context) -> None:
    """A text of any size up to a mebibyte comes back whole, next to a power of two as well."""
    client = await context.open()
    key = context.key()
    step = context.scale(smoke=4, default=1, soak=1)
    for size in sorted({0} | {2**power + off for power in range(0, 21, step) for off in (-1, 0, 1)}):
        if size < _CERTIFIABLE:
            text = "".join(context.random.choices(string.ascii_letters, k=size))
        else:
            text = context.text(key, size=size)
        await client.save(key, text)
        expect_text(await client.load(key), text, f"what was loaded after {size:,} bytes were saved")


@case("value.large", level=Level.CORE, oracle=_ORACLE, seconds=120)
async def large(context: Context) -> None:
    """A text of many mebibytes comes back whole, and a short one can replace it."""
    client = await context.open()
    key = context.key()
    mebibytes = context.scale(smoke=2, default=16, soak=64)
    client.patience = context.patience + mebibytes * _SECONDS_FOR_A_MEBIBYTE
    for text in (context.text(key, size=mebibytes * _MEBIBYTE), context.text(key)):
        await client.save(key, text)
        expect_text(await client.load(key), text, f"what was loaded after {len(text):,} characters were saved")


@case("value.chunk-edges", level=Level.CORE, oracle=_ORACLE, seconds=60)
async def chunk_edges(context: Context) -> None:
    """Characters of several bytes come back wherever a text may be cut into chunks."""
    client = await context.open()
    key = context.key()
    size = context.scale(smoke=2**17, default=2**20, soak=2**24)
    for character in "é漢😀":
        width = len(character.encode())
        # Whatever the chunks, with one of these offsets a character lies across their edge.
        for offset in range(width):
            text = "." * offset + character * (size // width + 1)
            await client.save(key, text)
            expect_text(await client.load(key), text, f"what was loaded of {character} after {offset} bytes")


@case("value.shrink-and-grow", level=Level.CORE, oracle="the last of several saved texts")
async def shrink_and_grow(context: Context) -> None:
    """A short text that replaces a long one leaves nothing of it, and a long one replaces a short one whole."""
    client = await context.open()
    key = context.key()
    for size in (100_000, 1_000, 99_999, 0, 300_000, 299_999, 5_000):
        text = context.text(key, size=size) if size else ""
        await client.save(key, text)
        expect_text(await client.load(key), text, f"what was loaded after a text of {len(text):,} characters was saved")


@case("value.same-length", level=Level.CORE, oracle="the last of several saved texts")
async def same_length(context: Context) -> None:
    """A text replaces another of its length, even if they differ in one character only."""
    client = await context.open()
    key = context.key()
    text = "a" * 1_000
    await client.save(key, text)
    for index in (0, 1, 500, 998, 999):
        text = text[:index] + "b" + text[index + 1 :]
        await client.save(key, text)
        expect_text(await client.load(key), text, f"what was loaded after the character {index} was changed")


class _Alias(str):
    """A text that prints as another one, as the members of some enumerations do."""

    __slots__ = ()

    def __str__(self) -> str:
        return "not the text"


@case("value.str-subclass", level=Level.CORE, oracle=_ORACLE)
async def str_subclass(context: Context) -> None:
    """A text of a subclass of str is saved as the text that it is."""
    writer, reader = await context.open(), await context.open()
    key = context.key()
    text = context.text(key)
    await writer.save(key, _Alias(text))
    for client in (writer, reader):
        loaded = await client.load(key)
        expect(
            isinstance(loaded, str) and loaded == text,
            f"{shown(loaded)} was loaded by {client.name}, not {shown(text)}",
        )


@case("value.only-str", level=Level.CORE, oracle="the text that was there before")
async def only_str(context: Context) -> None:
    """A value that is not a str is refused, and nothing is stored."""
    client = await context.open()
    ways: dict[str, Callable[..., Awaitable[object]]] = {"save": client.save}
    if client.has(Capability.COMPARE_AND_SWAP):
        ways["save_if"] = partial(client.save_if, expected=None)
    absent, present = context.key("absent"), context.key("present")
    olds = {absent: None, present: context.text(present)}
    for key, old in olds.items():
        await client.save(key, old or context.text(key))
    await client.delete(absent)
    for value in (b"{}", bytearray(b"{}"), None, 0, 1, 1.5, True, {}, {"a": 1}, [], ["{}"], ()):
        for key, old in olds.items():
            for name, save in ways.items():
                what = f"{name} of {shown(value)} ({type(value).__name__})"
                await expect_refusal(save(key, value), what, InvalidValueError)
            expect_text(await client.load(key), old, f"what was loaded after a save of {shown(value)}")


@case("value.nul", level=Level.CORE, oracle="the text that was saved, or the one before it")
async def nul(context: Context) -> None:
    """A text with U+0000 is kept exactly, or refused with nothing changed."""
    long = "x" * 70_000
    await _expect_exact_or_refused(context, ("\0", "\0a", "a\0b", "a\0", "a\0\0", f"{long}\0", f"\0{long}"))


@case("value.lone-surrogates", level=Level.CORE, oracle="the text that was saved, or the one before it")
async def lone_surrogates(context: Context) -> None:
    """A text with a lone surrogate is kept exactly, or refused with nothing changed."""
    long = "x" * 70_000
    # The last but two is the two halves of one character, which must not become that character.
    texts = (
        "\ud800",
        "\udfffa",
        "a\udc80b",
        "a\ud83d",
        "\ude00\ud83d",
        "\ud83d\ude00",
        f"{long}\udc00",
        f"\ud800{long}",
    )
    await _expect_exact_or_refused(context, texts)


async def _expect_kept(context: Context, texts: Iterable[str]) -> None:
    client = await context.open()
    key = context.key()
    for text in texts:
        await client.save(key, text)
        expect_text(await client.load(key), text, f"what was loaded after {shown(text)} was saved")


async def _expect_exact_or_refused(context: Context, texts: Iterable[str]) -> None:
    client = await context.open()
    for key, before in (("absent", None), ("present", "{}")):
        old = before
        if old is not None:
            await client.save(context.key(key), old)
        for text in texts:
            what = f"save of {shown(text)}"
            if not await is_refused(client.save(context.key(key), text), what, InvalidValueError):
                old = text
            expect_text(await client.load(context.key(key)), old, f"what was loaded after a {what}")
