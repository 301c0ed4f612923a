"""Stores that change, lose or wrongly accept texts."""

from __future__ import annotations

import json as jsonlib
import os
import re
import unicodedata
from typing import TYPE_CHECKING

from dagonizer import InvalidValueError, StoreLimitError
from dagonizer_conformance.mutants.mutant import mutant
from dagonizer_conformance.mutants.reference import ReferenceStore

if TYPE_CHECKING:
    from typing import Any

_CHUNK = 4096


@mutant("value-stripped", "value.whitespace")
class Strip(ReferenceStore):
    """White space around a text is stripped."""

    def _decode_value(self, key: str, stored: bytes) -> str:
        return super()._decode_value(key, stored).strip()


@mutant("value-universal-newlines", "value.whitespace")
class UniversalNewlines(ReferenceStore):
    """Values are kept in files that are read in text mode, where every line end becomes a line feed."""

    def _decode_value(self, key: str, stored: bytes) -> str:
        return super()._decode_value(key, stored).replace("\r\n", "\n").replace("\r", "\n")


@mutant("value-lines-rejoined", "value.whitespace")
class LinesRejoined(ReferenceStore):
    """A text is split into lines and joined again, by which every separator of lines becomes a line feed."""

    def _decode_value(self, key: str, stored: bytes) -> str:
        return "\n".join(super()._decode_value(key, stored).splitlines())


@mutant("value-utf-8-sig", "value.byte-order-mark")
class SignedUTF8(ReferenceStore):
    """The bytes are decoded as utf-8-sig, which drops a byte order mark at the beginning."""

    def _decode_value(self, key: str, stored: bytes) -> str:
        super()._decode_value(key, stored)
        return stored.decode("utf-8-sig")


@mutant("value-utf-16", "value.byte-order-mark")
class UTF16(ReferenceStore):
    """Texts are stored as UTF-16 and the decoder guesses the byte order from the first character."""

    def _encode_value(self, json: str) -> bytes:
        super()._encode_value(json)
        return json.encode("utf-16-le")

    def _decode_value(self, key: str, stored: bytes) -> str:  # noqa: ARG002
        return stored.decode("utf-16")


@mutant("value-nfc", "value.normalization")
class ComposedValue(ReferenceStore):
    """A text is stored in the normalization form NFC."""

    def _encode_value(self, json: str) -> bytes:
        return super()._encode_value(unicodedata.normalize("NFC", json))


@mutant("value-skip-if-equivalent", "value.normalization")
class SkipIfEquivalent(ReferenceStore):
    """A save is skipped when what is there is the same under NFC."""

    async def _save(self, key: str, json: str) -> None:
        there = await self.load(key)
        if there is None or unicodedata.normalize("NFC", there) != unicodedata.normalize("NFC", json):
            await super()._save(key, json)


@mutant("value-unescaped", "value.escapes")
class Unescape(ReferenceStore):
    """The value is put between quotes, and backslashes are dropped when it is read."""

    def _decode_value(self, key: str, stored: bytes) -> str:
        return re.sub(r"\\(.)", r"\1", super()._decode_value(key, stored))


@mutant("value-escaped-nul-refused", "value.escapes")
class EscapedNulRefused(ReferenceStore):
    r"""The column has the type jsonb, which refuses the escape \\u0000."""

    def _encode_value(self, json: str) -> bytes:
        if "\\u0000" in json:
            raise InvalidValueError("unsupported Unicode escape sequence")
        return super()._encode_value(json)


@mutant("value-parsed", "value.objects")
class Reserialize(ReferenceStore):
    """JSON is parsed on the way in and written anew on the way out, so that of two members of one name one is left."""

    def _decode_value(self, key: str, stored: bytes) -> str:
        text = super()._decode_value(key, stored)
        try:
            return jsonlib.dumps(jsonlib.loads(text), ensure_ascii=False, separators=(",", ":"))
        except ValueError:
            return text


@mutant("value-members-sorted", "value.objects")
class SortMembers(ReferenceStore):
    """JSON is stored in a canonical form, with the members of objects sorted."""

    def _encode_value(self, json: str) -> bytes:
        try:
            document = jsonlib.loads(json, object_pairs_hook=sorted)
        except (ValueError, TypeError):
            return super()._encode_value(json)
        pairs = isinstance(document, list) and document and all(isinstance(pair, tuple) for pair in document)
        return super()._encode_value(jsonlib.dumps(dict(document), separators=(",", ":")) if pairs else json)


@mutant("value-numbers-rounded", "value.numbers")
class RoundNumbers(ReferenceStore):
    """Numbers go through a double, as in a store behind a JavaScript service."""

    def _encode_value(self, json: str) -> bytes:
        try:
            document = jsonlib.loads(json, parse_int=float)
        except ValueError:
            return super()._encode_value(json)
        return super()._encode_value(json if "{" in json else jsonlib.dumps(document, separators=(",", ":")))


@mutant("value-basic-plane-only", "value.characters")
class BasicPlaneOnly(ReferenceStore):
    """The column has MySQL's three-byte utf8; characters beyond the basic plane become question marks."""

    def _encode_value(self, json: str) -> bytes:
        return super()._encode_value(re.sub("[^\0-\uffff]", "?", json))


@mutant("value-control-characters-dropped", "value.characters")
class DropControlCharacters(ReferenceStore):
    """Values travel in XML, and characters that XML does not allow are dropped."""

    def _encode_value(self, json: str) -> bytes:
        return re.sub(rb"[\x01-\x08\x0b\x0c\x0e-\x1f]", b"", super()._encode_value(json))


@mutant("value-marks-dropped", "value.characters")
class DropMarks(ReferenceStore):
    """Invisible characters, such as marks of direction and joiners, are dropped as unsafe."""

    def _encode_value(self, json: str) -> bytes:
        return super()._encode_value("".join(c for c in json if unicodedata.category(c) != "Cf"))


@mutant("value-sql-interpolated", "value.code")
class InterpolateSQL(ReferenceStore):
    """The value is put into the SQL text without doubling its quotes; where it ends early the rest is lost."""

    def _encode_value(self, json: str) -> bytes:
        literal = json.replace("''", "\0")
        return super()._encode_value(literal.partition("'")[0].replace("\0", "'"))


@mutant("value-percent-formatted", "value.code")
class PercentFormat(ReferenceStore):
    """The statement with the value in it is formatted with %, by which %% becomes %."""

    def _encode_value(self, json: str) -> bytes:
        return super()._encode_value(json.replace("%%", "%"))


@mutant("value-variables-expanded", "value.code")
class ExpandVariables(ReferenceStore):
    """Variables of the environment are expanded in values, as if they were configuration."""

    def _encode_value(self, json: str) -> bytes:
        return super()._encode_value(os.path.expandvars(json))


@mutant("value-empty-is-absent", "value.nothing")
class EmptyIsAbsent(ReferenceStore):
    """An empty text is taken for no entry."""

    async def load(self, key: str) -> str | None:
        return await super().load(key) or None


@mutant("value-null-is-absent", "value.nothing")
class NullIsAbsent(ReferenceStore):
    """A text that says null is taken for no entry."""

    async def load(self, key: str) -> str | None:
        text = await super().load(key)
        return None if text == "null" else text


@mutant("value-json-only", "value.not-json")
class JSONOnly(ReferenceStore):
    """The column has the type json, which refuses whatever is not."""

    def _encode_value(self, json: str) -> bytes:
        encoded = super()._encode_value(json)
        try:
            jsonlib.loads(encoded)
        except ValueError as exc:
            raise InvalidValueError(str(exc)) from exc
        return encoded


@mutant("value-base64-guessed", "value.not-json")
class GuessBase64(ReferenceStore):
    """What looks like base64 is decoded, for an older version of the store encoded its values so."""

    def _decode_value(self, key: str, stored: bytes) -> str:
        text = super()._decode_value(key, stored)
        if re.fullmatch("([A-Za-z0-9+/]{4})*[A-Za-z0-9+/]{2,3}={1,2}", text) is None:
            return text
        return jsonlib.dumps(text)


@mutant("value-latin-1", "value.second-instance")
class Latin1(ReferenceStore):
    """Texts are encoded with the locale's encoding; a cache of the client's own saves hides what that loses."""

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **options)
        self._saved: dict[str, str] = {}

    async def save(self, key: str, json: str) -> None:
        await super().save(key, json)
        self._saved[key] = json

    async def load(self, key: str) -> str | None:
        return self._saved.get(key) or await super().load(key)

    def _encode_value(self, json: str) -> bytes:
        super()._encode_value(json)
        return json.encode("latin-1", errors="replace").decode("latin-1").encode()


@mutant("value-cut-at-64-kib", "value.sizes")
class CutAt64KiB(ReferenceStore):
    """A column of the type TEXT cuts a value off at 65,535 bytes."""

    def _encode_value(self, json: str) -> bytes:
        return super()._encode_value(json)[:65535]


@mutant("value-last-full-block-lost", "value.sizes")
class LoseFullBlock(ReferenceStore):
    """A value that fills its last block of 4,096 bytes loses it, for the end is taken for the end of the file."""

    def _encode_value(self, json: str) -> bytes:
        encoded = super()._encode_value(json)
        return encoded if len(encoded) % _CHUNK or not encoded else encoded[:-_CHUNK]


@mutant("value-request-limit", "value.large")
class RequestLimit(ReferenceStore):
    """Values beyond etcd's limit of a request, 1.5 MiB, are refused."""

    def _encode_value(self, json: str) -> bytes:
        encoded = super()._encode_value(json)
        if len(encoded) > 3 << 19:
            raise StoreLimitError("the request is too large")
        return encoded


@mutant("value-length-wraps", "value.large")
class LengthWraps(ReferenceStore):
    """The length is kept in too few bits, so that of a large value only a part is read."""

    def _decode_value(self, key: str, stored: bytes) -> str:
        return super()._decode_value(key, stored[: len(stored) % (1 << 21)])


@mutant("value-chunks-decoded-alone", "value.chunk-edges")
class ChunksDecodedAlone(ReferenceStore):
    """Each chunk of 4,096 bytes is decoded on its own, and characters across an edge are replaced."""

    def _decode_value(self, key: str, stored: bytes) -> str:
        super()._decode_value(key, stored)
        chunks = (stored[start : start + _CHUNK] for start in range(0, len(stored), _CHUNK))
        return "".join(chunk.decode(errors="replace") for chunk in chunks)


@mutant("value-incomplete-end-ignored", "value.chunk-edges")
class IgnoreIncompleteEnd(ReferenceStore):
    """A value is cut in two after 65,536 bytes, and of either part an incomplete character is left out."""

    def _encode_value(self, json: str) -> bytes:
        encoded = super()._encode_value(json)
        return encoded[:65536].decode(errors="ignore").encode() + encoded[65536:].decode(errors="ignore").encode()


@mutant("value-written-in-place", "value.shrink-and-grow")
class WriteInPlace(ReferenceStore):
    """A value is written over the old one, and the file is not cut off behind it."""

    async def _save(self, key: str, json: str) -> None:
        old = await self.load(key) or ""
        await super()._save(key, json + old[len(json) :])


@mutant("value-length-kept", "value.shrink-and-grow")
class KeepLength(ReferenceStore):
    """The client remembers the length of a value from its first save, and reads no more than that."""

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **options)
        self._lengths: dict[str, int] = {}

    async def save(self, key: str, json: str) -> None:
        self._lengths.setdefault(key, len(json))
        await super().save(key, json)

    async def load(self, key: str) -> str | None:
        text = await super().load(key)
        return None if text is None else text[: self._lengths.get(key)]


@mutant("value-skip-if-as-long", "value.same-length")
class SkipIfAsLong(ReferenceStore):
    """A save is skipped when what is there is as long, like a copy that compares sizes."""

    async def _save(self, key: str, json: str) -> None:
        there = await self.load(key)
        if there is None or len(there) != len(json):
            await super()._save(key, json)


@mutant("value-skip-if-alike-at-its-ends", "value.same-length")
class SkipIfAlike(ReferenceStore):
    """A save is skipped when a checksum of the value's first and last 256 bytes has not changed."""

    async def _save(self, key: str, json: str) -> None:
        there = await self.load(key)
        if there is None or (there[:256], there[-256:], len(there)) != (json[:256], json[-256:], len(json)):
            await super()._save(key, json)


@mutant("value-printed", "value.str-subclass")
class PrintValue(ReferenceStore):
    """The value is printed into the request."""

    async def save(self, key: str, json: str) -> None:
        await super().save(key, f"{json}")


@mutant("value-exactly-str", "value.str-subclass")
class ExactlyStr(ReferenceStore):
    """Only values whose class is str itself are accepted."""

    def _encode_value(self, json: str) -> bytes:
        if type(json) is not str:
            raise InvalidValueError(f"a value must be a str, not {type(json).__name__}")
        return super()._encode_value(json)


@mutant("value-bytes-accepted", "value.only-str")
class AcceptBytes(ReferenceStore):
    """Bytes are stored as they are."""

    def _encode_value(self, json: str) -> bytes:
        return json if isinstance(json, bytes) else super()._encode_value(json)


@mutant("value-converted", "value.only-str")
class ConvertValue(ReferenceStore):
    """Whatever is no str is made one."""

    def _encode_value(self, json: object) -> bytes:
        return super()._encode_value(json if isinstance(json, str) else jsonlib.dumps(json, default=str))


@mutant("value-deleted-before-check", "value.only-str", "value.nul", "value.lone-surrogates")
class DeleteBeforeCheck(ReferenceStore):
    """A save removes the old entry before it looks at the new text."""

    async def _save(self, key: str, json: str) -> None:
        await self._delete(key)
        await super()._save(key, json)


@mutant("value-ends-at-nul", "value.nul")
class EndAtNul(ReferenceStore):
    """The value is handed on as a C string, which ends at U+0000."""

    def _encode_value(self, json: str) -> bytes:
        return super()._encode_value(json.partition("\0")[0] if isinstance(json, str) else json)


@mutant("value-surrogates-replaced", "value.lone-surrogates")
class ReplaceSurrogates(ReferenceStore):
    """A lone surrogate becomes a question mark."""

    def _encode_value(self, json: str) -> bytes:
        return super()._encode_value(json.encode(errors="replace").decode() if isinstance(json, str) else json)


@mutant("value-surrogates-paired", "value.lone-surrogates")
class PairSurrogates(ReferenceStore):
    """Texts are encoded as UTF-16 with surrogates passed, by which two halves become one character."""

    def _encode_value(self, json: str) -> bytes:
        if isinstance(json, str):
            json = json.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
        return super()._encode_value(json)
