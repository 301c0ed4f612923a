"""Stores in which keys collide, mean something, or are not what was given."""

from __future__ import annotations

import fnmatch
import os.path
import posixpath
import re
import unicodedata
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, unquote_plus

from dagonizer import InvalidKeyError, StoreUnavailableError
from dagonizer.keys import MAX_KEY_BYTES
from dagonizer_conformance.mutants.mutant import mutant
from dagonizer_conformance.mutants.reference import ReferenceStore

if TYPE_CHECKING:
    from dagonizer.contracts import VersionedJson


@mutant("key-case-folded", "key.case-is-kept")
class FoldCase(ReferenceStore):
    """Keys are file names where case does not count."""

    def _encode_key(self, key: str) -> str:
        return super()._encode_key(key).casefold()


@mutant("key-delete-ignores-case", "key.case-is-kept")
class DeleteIgnoringCase(ReferenceStore):
    """A delete compares keys without regard to case, as LIKE does."""

    async def _delete(self, key: str) -> None:
        await super()._delete(key)
        for there in [there async for there in self.list_keys() if there.lower() == key.lower()]:
            await super()._delete(there)


@mutant("key-nfc", "key.unicode-form")
class ComposedKey(ReferenceStore):
    """Keys are stored in the normalization form NFC."""

    def _encode_key(self, key: str) -> str:
        return unicodedata.normalize("NFC", super()._encode_key(key))


@mutant("key-nfkc", "key.unicode-form")
class CompatibleKey(ReferenceStore):
    """Keys are stored in the normalization form NFKC."""

    def _encode_key(self, key: str) -> str:
        return unicodedata.normalize("NFKC", super()._encode_key(key))


@mutant("key-accents-ignored", "key.unicode-form")
class IgnoreAccents(ReferenceStore):
    """Keys are compared by a collation to which accents are nothing."""

    def _encode_key(self, key: str) -> str:
        decomposed = unicodedata.normalize("NFD", super()._encode_key(key))
        return "".join(character for character in decomposed if not unicodedata.combining(character))


@mutant("key-stripped", "key.outer-characters")
class StripKey(ReferenceStore):
    """White space around a key is stripped."""

    def _encode_key(self, key: str) -> str:
        return super()._encode_key(key).strip()


@mutant("key-trailing-dots-dropped", "key.outer-characters")
class DropTrailing(ReferenceStore):
    """Keys are file names that end before their last dots and spaces, as on Windows."""

    def _encode_key(self, key: str) -> str:
        return super()._encode_key(key).rstrip(". ")


@mutant("key-slashes-collapsed", "key.slashes")
class CollapseSlashes(ReferenceStore):
    """Several slashes count as one."""

    def _encode_key(self, key: str) -> str:
        return re.sub("/+", "/", super()._encode_key(key))


@mutant("key-outer-slashes-dropped", "key.slashes")
class DropOuterSlashes(ReferenceStore):
    """Slashes at the ends of a key are dropped."""

    def _encode_key(self, key: str) -> str:
        return super()._encode_key(key).strip("/")


@mutant("key-delete-takes-folder", "key.slashes")
class DeleteFolder(ReferenceStore):
    """A delete removes what is below the key, as if it were a folder."""

    async def _delete(self, key: str) -> None:
        await super()._delete(key)
        for there in [there async for there in self.list_keys(key.rstrip("/") + "/")]:
            await super()._delete(there)


@mutant("key-path-normalized", "key.dot-segments")
class NormalizePath(ReferenceStore):
    """A key is joined to a path, and the path is normalized."""

    def _encode_key(self, key: str) -> str:
        return posixpath.normpath(f"/data/{super()._encode_key(key)}")


@mutant("key-parents-cut-out", "key.dot-segments")
class CutOutParents(ReferenceStore):
    """Each `../` is cut out of a key, to be safe."""

    def _encode_key(self, key: str) -> str:
        return super()._encode_key(key).replace("../", "")


@mutant("key-unquoted", "key.percent")
class UnquoteKey(ReferenceStore):
    """A key is put into a URL as it is, and the server decodes it."""

    def _encode_key(self, key: str) -> str:
        return unquote(super()._encode_key(key), errors="surrogateescape")


@mutant("key-form-decoded", "key.percent")
class FormDecode(ReferenceStore):
    """A key is a field of a form that is encoded but for its spaces, and + stands for a space."""

    def _encode_key(self, key: str) -> str:
        return unquote_plus(quote(super()._encode_key(key), safe="+"))


@mutant("key-sanitized", "key.separators", "key.wildcards", "key.code")
class SanitizeKey(ReferenceStore):
    """What is no letter or digit becomes an underscore."""

    def _encode_key(self, key: str) -> str:
        return re.sub(r"\W", "_", super()._encode_key(key))


@mutant("key-colons-replaced", "key.separators")
class ReplaceColons(ReferenceStore):
    """Colons become hyphens, for the sake of Windows."""

    def _encode_key(self, key: str) -> str:
        return super()._encode_key(key).replace(":", "-")


@mutant("key-loaded-by-pattern", "key.wildcards")
class LoadByPattern(ReferenceStore):
    """A load looks for the first file that matches the key as a pattern."""

    async def load(self, key: str) -> str | None:
        names = [there async for there in self.list_keys() if fnmatch.fnmatchcase(there, key)]
        return await super().load(min(names, default=key))


@mutant("key-deleted-by-like", "key.wildcards")
class DeleteByLike(ReferenceStore):
    """A delete compares with LIKE, to which % and _ are wildcards."""

    async def _delete(self, key: str) -> None:
        pattern = re.compile(re.escape(key).replace("%", ".*").replace("_", "."), re.DOTALL)
        await super()._delete(key)
        if "%" in key or "_" in key:
            for there in [there async for there in self.list_keys() if pattern.fullmatch(there)]:
                await super()._delete(there)


@mutant("key-hash-tag", "key.wildcards")
class HashTag(ReferenceStore):
    """Of a key with braces only what is between them counts."""

    def _encode_key(self, key: str) -> str:
        return re.sub(r".*?\{(.+?)\}.*", r"\1", super()._encode_key(key), flags=re.DOTALL)


@mutant("key-sql-interpolated", "key.code")
class InterpolateKey(ReferenceStore):
    """The key is put between quotes, where two quotes are one."""

    def _encode_key(self, key: str) -> str:
        return super()._encode_key(key).replace("''", "'")


@mutant("key-cut-at-255", "key.common-prefix")
class CutKey(ReferenceStore):
    """Of a key only the first 255 characters count."""

    def _encode_key(self, key: str) -> str:
        return super()._encode_key(key)[:255]


@mutant("key-ends-count-only", "key.common-prefix")
class KeepEnds(ReferenceStore):
    """Of a key only its length and its first and last 100 characters count."""

    def _encode_key(self, key: str) -> str:
        key = super()._encode_key(key)
        return f"{len(key)}{key[:100]}…{key[-100:]}"


@mutant("key-temporary-files-swept", "key.reserved-names")
class SweepTemporary(ReferenceStore):
    """What ends in .tmp is taken for a temporary file that a crash has left, and removed."""

    async def load(self, key: str) -> str | None:
        if key.endswith(".tmp"):
            await self._delete(key)
        return await super().load(key)


@mutant("key-extension-dropped", "key.reserved-names")
class DropExtension(ReferenceStore):
    """The name of a key's file is the key with its extension replaced by .json."""

    def _encode_key(self, key: str) -> str:
        return os.path.splitext(super()._encode_key(key))[0] + ".json"  # noqa: PTH122


@mutant("key-devices-refused", "key.reserved-names")
class RefuseDevices(ReferenceStore):
    """Names of devices are refused, as on Windows."""

    def _encode_key(self, key: str) -> str:
        if super()._encode_key(key).partition(".")[0].upper() in {"CON", "NUL", "AUX", "PRN"}:
            raise InvalidKeyError(f"{key!r} is reserved")
        return key


@mutant("key-joiners-dropped", "key.emoji")
class DropJoiners(ReferenceStore):
    """Invisible characters are dropped from keys."""

    def _encode_key(self, key: str) -> str:
        return re.sub("[\u200b-\u200f\u202a-\u202e\ufe00-\ufe0f]", "", super()._encode_key(key))


@mutant("key-ascii-only", "key.emoji")
class AsciiKey(ReferenceStore):
    """What is not ASCII becomes a question mark."""

    def _encode_key(self, key: str) -> str:
        return super()._encode_key(key).encode("ascii", "replace").decode()


@mutant("key-control-characters-dropped", "key.control-characters")
class DropControls(ReferenceStore):
    """Control characters are dropped from keys."""

    def _encode_key(self, key: str) -> str:
        return re.sub(r"[\x01-\x1f\x7f-\x9f]", "", super()._encode_key(key))


@mutant("key-control-characters-refused", "key.control-characters")
class RefuseControls(ReferenceStore):
    """Control characters are refused."""

    def _encode_key(self, key: str) -> str:
        if not super()._encode_key(key).isprintable():
            raise InvalidKeyError(f"{key!r} has a control character")
        return key


@mutant("key-numbers-parsed", "key.numbers")
class ParseNumbers(ReferenceStore):
    """A key that is a number is stored as a number."""

    def _encode_key(self, key: str) -> str:
        try:
            return str(float(super()._encode_key(key)))
        except ValueError:
            return key


@mutant("key-integers-parsed", "key.numbers")
class ParseIntegers(ReferenceStore):
    """A key of digits is the index of an array."""

    def _encode_key(self, key: str) -> str:
        return str(int(key)) if super()._encode_key(key).isdecimal() else key


@mutant("key-null-is-no-key", "key.words")
class NullIsNoKey(ReferenceStore):
    """A key that says null is taken for none."""

    async def load(self, key: str) -> str | None:
        return None if key == "null" else await super().load(key)


@mutant("key-written-as-yaml", "key.words")
class YamlKeys(ReferenceStore):
    """Keys are written to YAML without quotes, and read as booleans and null."""

    def _encode_key(self, key: str) -> str:
        words = {"true": "True", "null": "None", "~": "None", "nan": "NaN"}
        return words.get(super()._encode_key(key), key)


@mutant("key-too-long-for-a-file", "key.lengths")
class FileNameKey(ReferenceStore):
    """The key is a file's name, which may have 255 bytes."""

    def _encode_key(self, key: str) -> str:
        if len(super()._encode_key(key).encode()) > 255:  # noqa: PLR2004
            raise OSError(36, "File name too long")
        return key


@mutant("key-longest-refused", "key.lengths")
class RefuseLongest(ReferenceStore):
    """A key of exactly 1,024 bytes is refused."""

    def _encode_key(self, key: str) -> str:
        if len(super()._encode_key(key).encode()) == MAX_KEY_BYTES:
            raise InvalidKeyError("the key is too long")
        return key


@mutant("key-wide-characters-cut", "key.lengths")
class CutWideCharacters(ReferenceStore):
    """A key is cut to fit a buffer in which each character of it may take three bytes at most."""

    def _encode_key(self, key: str) -> str:
        return super()._encode_key(key).encode()[:1023].decode(errors="ignore")


@mutant("key-anything-accepted", "key.illegal")
class AcceptAnyKey(ReferenceStore):
    """Keys are not checked at all."""

    def _encode_key(self, key: object) -> str:
        return str(key)


@mutant("key-characters-counted", "key.illegal")
class CountCharacters(ReferenceStore):
    """The length of a key is counted in characters, not in bytes."""

    def _encode_key(self, key: str) -> str:
        if isinstance(key, str) and len(key) <= MAX_KEY_BYTES < len(key.encode(errors="replace")):
            return key
        return super()._encode_key(key)


@mutant("key-too-long-cut", "key.illegal")
class CutTooLong(ReferenceStore):
    """A key that is too long is cut."""

    def _encode_key(self, key: str) -> str:
        return super()._encode_key(key[:1024] if isinstance(key, str) else key)


@mutant("key-illegal-is-absent", "key.illegal")
class IllegalIsAbsent(ReferenceStore):
    """An illegal key is refused when it is saved; a load says that there is nothing."""

    async def load_versioned(self, key: str) -> VersionedJson | None:
        try:
            return await super().load_versioned(key)
        except InvalidKeyError:
            return None


@mutant("key-illegal-delete-ignored", "key.illegal")
class IgnoreIllegalDelete(ReferenceStore):
    """An illegal key is refused by save and load; a delete does nothing."""

    async def _delete(self, key: str) -> None:
        try:
            await super()._delete(key)
        except InvalidKeyError:
            return


@mutant("key-wrong-error", "key.illegal")
class WrongError(ReferenceStore):
    """An illegal key is refused as if the backend were down."""

    def _encode_key(self, key: str) -> str:
        try:
            return super()._encode_key(key)
        except InvalidKeyError as exc:
            raise StoreUnavailableError("the backend did not take the request") from exc


@mutant("key-deleted-before-check", "key.illegal")
class DeleteKeyBeforeCheck(ReferenceStore):
    """A delete first removes the entry that the key, printed, is the name of, and then checks the key."""

    async def _delete(self, key: str) -> None:
        await super()._delete(str(key))
        self._encode_key(key)
