"""What the store promises, looked at from both sides: through the store and on the disk."""

from __future__ import annotations

import asyncio
import fcntl
import os
import random
import re
import stat
import tempfile
import time
import unicodedata
from pathlib import Path
from typing import Any

import filelock
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from dagonizer import contracts
from dagonizer.errors import (
    InvalidKeyError,
    InvalidValueError,
    StoreAccessError,
    StoreClosedError,
    StoreConflictError,
    StoreCorruptedError,
    StoreUnavailableError,
)
from dagonizer_file import FileCheckpointStore, FileConfig

TEXTS = [
    "",
    "{}",
    '{"a":1}',
    "a\r\nb\nc\r",
    "\ufeffbom",
    "\u00e9",
    "e\u0301",
    "😀\U0010ffff",
    " \t",
    "not json",
    "x" * 100_000,
]
KEYS = [
    "a", "A", "a ", " a", "a.", ".", "..", "../a", "/a", "a/b", "a\\b", "a:b", "%61", "con", "CON", "nul.json", ".lock",
    "\u00e9", "e\u0301", "ß", "ss", "\u017f", "K", "k", "😀", "a\n", "\x01" * 1024, "x" * 1024, "é" * 512, "😀" * 256, "*", "?",
]  # fmt: skip


def quick(root: Path, **options: Any) -> FileCheckpointStore:
    return FileCheckpointStore(FileConfig(root=root, fsync=False, **options))


def entry(root: Path) -> Path:
    (path,) = root.glob("ckpt-*.json")
    return path


def temps(root: Path) -> list[Path]:
    return list(root.glob(".*.tmp"))


def test_it_has_every_optional_protocol(tmp_path: Path) -> None:
    store = quick(tmp_path)
    for protocol in (contracts.ClosableStore, contracts.SupportsListing, contracts.SupportsCompareAndSwap):
        assert isinstance(store, protocol)


@pytest.mark.parametrize("text", TEXTS)
def test_a_value_comes_back_code_point_for_code_point(tmp_path: Path, text: str) -> None:
    async def main() -> None:
        await FileCheckpointStore(tmp_path).save("k", text)
        assert await FileCheckpointStore(str(tmp_path)).load("k") == text

    asyncio.run(main())
    header, _, value = entry(tmp_path).read_bytes().partition(b"\n")
    assert value == text.encode()
    assert re.fullmatch(
        rb'\{"format":"dagonizer-file/1","key":"k","revision":"[0-9a-f]{32}","xxh3_128":"%s"\}'
        % xxhash.xxh3_128_hexdigest(value).encode(),
        header,
    )


def test_no_two_keys_meet_and_names_are_safe_everywhere(tmp_path: Path) -> None:
    async def main() -> None:
        store = quick(tmp_path / "root")
        for key in KEYS:
            await store.save(key, "of " + key)
        for key in KEYS:
            assert await store.load(key) == "of " + key
        assert sorted([key async for key in store.list_keys()]) == sorted(KEYS)
        for key in KEYS:
            await store.delete(key)
            assert await store.load(key) is None

    asyncio.run(main())
    assert [path.name for path in tmp_path.iterdir()] == ["root"]
    assert [path.name for path in (tmp_path / "root").iterdir()] == [".lock"]


def test_names_survive_case_folding_normalising_and_windows(tmp_path: Path) -> None:
    async def main() -> None:
        store = quick(tmp_path)
        for key in KEYS:
            await store.save(key, "v")

    asyncio.run(main())
    names = [path.name for path in tmp_path.glob("ckpt-*")]
    assert len(names) == len(KEYS)
    for name in names:
        assert re.fullmatch(r"ckpt-[a-z0-9_-]{1,40}\.[0-9a-f]{64}\.json", name)


FAMILIES = st.sampled_from("aA\u00e9E\u0301\u212bÅß./\\:%*?~ \n\x7f😀\u200d")
LEGAL = st.characters(exclude_characters="\0", exclude_categories=["Cs"])
ANY_KEY = st.one_of(st.text(FAMILIES, min_size=1, max_size=8), st.text(LEGAL, min_size=1, max_size=60))


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(ANY_KEY, st.text(LEGAL), max_size=6))
def test_any_keys_with_any_values(entries: dict[str, str]) -> None:
    async def main(root: Path) -> None:
        store = quick(root)
        for key, value in entries.items():
            await store.save(key, value)
        for key, value in entries.items():
            assert await store.load(key) == value
            other = unicodedata.normalize("NFC", key.swapcase())
            assert await store.load(other) == entries.get(other)
        assert sorted([key async for key in store.list_keys()]) == sorted(entries)

    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(main(Path(directory)))


def test_a_value_of_64_mib(tmp_path: Path) -> None:
    async def main() -> None:
        text = "é" * (32 << 20)
        await quick(tmp_path).save("k", text)
        assert await quick(tmp_path).load("k") == text

    asyncio.run(main())


def test_what_a_call_leaves_unread_or_unwritten_is_done_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, write, calls = os.read, os.write, []

    def some_written(fd: int, parts: tuple[bytes, ...]) -> int:
        calls.append("writev")
        return write(fd, b"".join(parts)[:1000])

    def some_read(fd: int, size: int) -> bytes:
        calls.append("read")
        return read(fd, min(size, 5000))

    monkeypatch.setattr(os, "writev", some_written)
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:5000]))
    monkeypatch.setattr(os, "read", some_read)
    text = "".join(map(str, range(10_000)))

    async def main() -> None:
        await quick(tmp_path).save("k", text)
        assert entry(tmp_path).read_bytes().endswith(b"\n" + text.encode())
        assert await quick(tmp_path).load("k") == text

    asyncio.run(main())
    assert calls.count("writev") == 1
    assert calls.count("read") > len(text) // 5000


FRAME = b"\x28\xb5\x2f\xfd"


def test_a_large_value_is_stored_as_a_frame_and_loads_without_the_setting(tmp_path: Path) -> None:
    text = '{"a":"é"}' * 1000

    async def main() -> None:
        await quick(tmp_path, compression="zstd").save("k", text)
        assert await quick(tmp_path).load("k") == text

    asyncio.run(main())
    header, _, value = entry(tmp_path).read_bytes().partition(b"\n")
    assert value.startswith(FRAME)
    assert len(value) < len(text)
    assert b'"xxh3_128":"%s"' % xxhash.xxh3_128_hexdigest(value).encode() in header


def test_a_small_value_is_stored_as_it_is(tmp_path: Path) -> None:
    asyncio.run(quick(tmp_path, compression="zstd").save("k", "{}" * 1000))
    assert entry(tmp_path).read_bytes().endswith(b"\n" + b"{}" * 1000)


def test_compare_and_swap_between_stores_that_compress_and_that_do_not(tmp_path: Path) -> None:
    async def main() -> None:
        compressing, plain = quick(tmp_path, compression="zstd"), quick(tmp_path)
        version = await compressing.save_if("k", "1" * 9000, expected=None)
        with pytest.raises(StoreConflictError):
            await plain.save_if("k", "2" * 9000, expected=None)
        for store, text in ((compressing, "2" * 9000), (plain, "3" * 9000), (compressing, "4" * 9000)):
            older, version = version, await store.save_if("k", text, expected=version)
            with pytest.raises(StoreConflictError):
                await compressing.save_if("k", "x", expected=older)
        for store in (plain, compressing):
            loaded = await store.load_versioned("k")
            assert loaded is not None
            assert (loaded.json, loaded.version) == ("4" * 9000, version)

    asyncio.run(main())


def test_a_damaged_frame_is_told_and_never_absent(tmp_path: Path) -> None:
    async def main() -> None:
        store = quick(tmp_path, compression="zstd")
        await store.save("k", "the value" * 1000)
        header, _, frame = entry(tmp_path).read_bytes().partition(b"\n")
        damaged = frame[:-1] + bytes([frame[-1] ^ 1])
        entry(tmp_path).write_bytes(header + b"\n" + damaged)
        with pytest.raises(StoreCorruptedError, match="XXH3"):
            await store.load("k")
        digests = [xxhash.xxh3_128_hexdigest(value).encode() for value in (frame, damaged)]
        entry(tmp_path).write_bytes(_flip(header, *digests) + b"\n" + damaged)
        with pytest.raises(StoreCorruptedError, match="Zstandard frame is damaged"):
            await store.load("k")

    asyncio.run(main())


def test_files_and_directories_are_the_owners_only(tmp_path: Path) -> None:
    root = tmp_path / "a" / "b"
    asyncio.run(FileCheckpointStore(root).save("k", "v"))
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    assert stat.S_IMODE(root.parent.stat().st_mode) == 0o700
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in root.iterdir()} == {
        entry(root).name: 0o600,
        ".lock": 0o600,
    }


def _flip(data: bytes, old: bytes, new: bytes) -> bytes:
    assert old in data
    return data.replace(old, new, 1)


TAMPERED = {
    "format": lambda data: _flip(data, b"dagonizer-file/1", b"dagonizer-file/2"),
    "key": lambda data: _flip(data, b'"key":"k"', b'"key":"j"'),
    "illegal key": lambda data: _flip(data, b'"key":"k"', b'"key":""'),
    "header not UTF-8": lambda data: _flip(data, b'"key":"k"', b'"key":"\xff"'),
    "header a surrogate": lambda data: _flip(data, b'"key":"k"', b'"key":"\\ud800"'),
    "no revision": lambda data: _flip(data, b'"revision"', b'"edition"'),
    "not JSON": lambda data: b"x" + data,
    "header cut": lambda data: data[:20],
    "header endless": lambda data: b'{"a":"' + b" " * 20_000,
    "empty": lambda _data: b"",
}
TAMPERED_VALUE = {
    "hash": lambda data: re.sub(rb'"xxh3_128":"[0-9a-f]{32}"', b'"xxh3_128":"' + b"0" * 32 + b'"', data),
    "value": lambda data: _flip(data, b"value", b"valve"),
    "truncated": lambda data: data[:-1],
    "longer": lambda data: data + b"\n",
    "not UTF-8": lambda data: _flip(data, b"value", b"val\xffe"),
    "not UTF-8 but the hash": lambda data: re.sub(
        rb'"xxh3_128":"[0-9a-f]{32}"', b'"xxh3_128":"' + xxhash.xxh3_128_hexdigest(b"\xff").encode() + b'"', data
    ).replace(b"the value", b"\xff"),
}


@pytest.mark.parametrize("damage", [*TAMPERED, *TAMPERED_VALUE])
def test_a_damaged_file_is_told_and_never_absent(tmp_path: Path, damage: str) -> None:
    async def main() -> None:
        store = quick(tmp_path)
        await store.save("k", "the value")
        path = entry(tmp_path)
        path.write_bytes({**TAMPERED, **TAMPERED_VALUE}[damage](path.read_bytes()))
        for load in (store.load, store.load_versioned):
            with pytest.raises(StoreCorruptedError):
                await load("k")
        if damage in TAMPERED:
            with pytest.raises(StoreCorruptedError, match=re.escape(str(path))):
                await store.save_if("k", "new", expected=None)
            with pytest.raises(StoreCorruptedError):
                [key async for key in store.list_keys()]
        await store.save("k", "new")
        assert await store.load("k") == "new"
        path.write_bytes(b"")
        await store.delete("k")
        assert await store.load("k") is None

    asyncio.run(main())
    assert temps(tmp_path) == []


def test_a_file_under_another_keys_name_is_told(tmp_path: Path) -> None:
    async def main() -> None:
        store = quick(tmp_path)
        await store.save("a", "1")
        a = entry(tmp_path)
        await store.save("b", "2")
        (b,) = [path for path in tmp_path.glob("ckpt-*") if path != a]
        a.replace(b)
        with pytest.raises(StoreCorruptedError, match="does not belong"):
            await store.load("b")
        with pytest.raises(StoreCorruptedError, match="does not belong"):
            [key async for key in store.list_keys()]

    asyncio.run(main())


def test_a_root_that_is_a_file(tmp_path: Path) -> None:
    root = tmp_path / "file"
    root.write_text("")

    async def main() -> None:
        for place in (root, root / "below"):
            store = quick(place)
            for operation in (
                store.save("k", "v"),
                store.load("k"),
                store.delete("k"),
                store.save_if("k", "v", expected=None),
                anext(store.list_keys()),
            ):
                with pytest.raises(StoreAccessError) as caught:
                    await operation
                assert isinstance(caught.value.__cause__, OSError)
                assert str(root) in str(caught.value)

    asyncio.run(main())


def test_an_absent_root_is_an_empty_store(tmp_path: Path) -> None:
    async def main() -> None:
        store = FileCheckpointStore(tmp_path / "none")
        assert await store.load("k") is None
        await store.delete("k")
        assert [key async for key in store.list_keys()] == []
        with pytest.raises(StoreConflictError):
            await store.save_if("k", "v", expected="x")

    asyncio.run(main())


def test_compare_and_swap(tmp_path: Path) -> None:
    async def main() -> None:
        store = quick(tmp_path)
        first = await store.save_if("k", "1", expected=None)
        with pytest.raises(StoreConflictError):
            await store.save_if("k", "2", expected=None)
        second = await store.save_if("k", "1", expected=first)
        assert second != first
        with pytest.raises(StoreConflictError):
            await store.save_if("k", "2", expected=first)
        await store.delete("k")
        with pytest.raises(StoreConflictError):
            await store.save_if("k", "2", expected=second)
        await store.save("k", "1")
        with pytest.raises(StoreConflictError):
            await store.save_if("k", "2", expected=second)
        current = await store.load_versioned("k")
        assert current is not None
        assert current.json == "1"
        await store.save_if("k", "3", expected=current.version)
        assert await store.load("k") == "3"

    asyncio.run(main())
    assert temps(tmp_path) == []


def test_every_method_refuses_bad_keys_and_then_bad_values(tmp_path: Path) -> None:
    async def main() -> None:
        store = quick(tmp_path)
        for key in ("", "a\0", "\ud800", "x" * 1025, 1):
            for operation in (
                store.save(key, "v"),  # type: ignore[arg-type]
                store.load(key),  # type: ignore[arg-type]
                store.delete(key),  # type: ignore[arg-type]
                store.load_versioned(key),  # type: ignore[arg-type]
                store.save_if(key, "v", expected=None),  # type: ignore[arg-type]
            ):
                with pytest.raises(InvalidKeyError):
                    await operation
            if key != "":
                with pytest.raises(InvalidKeyError):
                    await anext(store.list_keys(key))  # type: ignore[arg-type]
        for value in ("a\0", "\udfff", b"v"):
            with pytest.raises(InvalidValueError):
                await store.save("k", value)  # type: ignore[arg-type]
            with pytest.raises(InvalidValueError):
                await store.save_if("k", value, expected=None)  # type: ignore[arg-type]

    asyncio.run(main())
    assert list(tmp_path.iterdir()) == []


def test_after_close_every_call_raises(tmp_path: Path) -> None:
    async def main() -> None:
        async with quick(tmp_path) as store:
            await store.save("a", "1")
            await store.save("b", "1")
            listing = store.list_keys()
            await anext(listing)
        await store.aclose()
        for operation in (
            store.save("", "v"),
            store.load(""),
            store.delete(""),
            store.load_versioned(""),
            store.save_if("", "v", expected=None),
            anext(store.list_keys("\0")),
            anext(listing),
        ):
            with pytest.raises(StoreClosedError):
                await operation

    asyncio.run(main())


def test_listing_pages_600_keys_and_takes_the_prefix_literally(tmp_path: Path) -> None:
    keys = [f"{'a%' if n % 2 else 'a_'}/{n}" for n in range(600)]

    async def main() -> None:
        store = quick(tmp_path)
        await asyncio.gather(*(store.save(key, "v") for key in keys))
        (tmp_path / "README").write_text("not ours")
        (tmp_path / "ckpt-x.json").write_text("not ours")
        assert sorted([key async for key in store.list_keys()]) == sorted(keys)
        assert sorted([key async for key in store.list_keys("a%")]) == sorted(k for k in keys if k.startswith("a%"))
        assert [key async for key in store.list_keys("b")] == []
        seen = 0
        async for _ in store.list_keys():
            if not seen:
                for path in tmp_path.glob("ckpt-*"):
                    path.unlink()
            seen += 1
        assert seen == 256

    asyncio.run(main())


def test_a_second_event_loop(tmp_path: Path) -> None:
    store = quick(tmp_path)
    asyncio.run(store.save("k", "v"))
    assert asyncio.run(store.load("k")) == "v"


def test_a_later_chdir_does_not_move_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = quick(Path("root"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    asyncio.run(store.save("k", "v"))
    assert entry(tmp_path / "root").exists()


def test_each_operation_is_one_thread_hop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hops = 0
    real = asyncio.BaseEventLoop.run_in_executor

    def counting(self: Any, *args: Any) -> Any:
        nonlocal hops
        hops += 1
        return real(self, *args)

    monkeypatch.setattr(asyncio.BaseEventLoop, "run_in_executor", counting)

    async def main() -> None:
        nonlocal hops
        store = FileCheckpointStore(tmp_path / "root")
        version = await store.save_if("k", "v", expected=None)
        for operation in (
            store.save("j", "v"),
            store.load("k"),
            store.load_versioned("k"),
            store.save_if("k", "w", expected=version),
            store.delete("j"),
        ):
            before = hops
            await operation
            assert hops == before + 1
        before = hops
        assert [key async for key in store.list_keys()] == ["k"]
        assert hops == before + 2

    asyncio.run(main())


@pytest.mark.parametrize("fsync", [True, False])
def test_fsync_is_done_as_configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, fsync: bool) -> None:
    synced: list[bool] = []
    real = os.fsync

    def counting(fd: int) -> None:
        synced.append(stat.S_ISDIR(os.fstat(fd).st_mode))
        real(fd)

    monkeypatch.setattr(os, "fsync", counting)

    async def main() -> list[list[bool]]:
        store = FileCheckpointStore(FileConfig(root=tmp_path / "a" / "b", fsync=fsync))
        calls = []
        for operation in (store.save("k", "v"), store.save("k", "w"), store.delete("k"), store.delete("k")):
            synced.clear()
            await operation
            calls.append(list(synced))
        return calls

    # The parents of both new directories, the file, the root; file and root; root; root again.
    expected = [[True, True, False, True], [False, True], [True], [True]] if fsync else [[], [], [], []]
    assert asyncio.run(main()) == expected


def test_a_lock_held_too_long_is_unavailable_and_loads_do_not_wait(tmp_path: Path) -> None:
    async def main() -> None:
        store = quick(tmp_path, timeout=0.05)
        await store.save("k", "v")
        with filelock.FileLock(tmp_path / ".lock"):
            for operation in (store.save("k", "w"), store.delete("k"), anext(store.list_keys())):
                with pytest.raises(StoreUnavailableError, match="timeout"):
                    await operation
            assert await store.load("k") == "v"

    asyncio.run(main())
    assert temps(tmp_path) == []


def test_saves_and_deletions_share_the_lock_which_comparing_and_listing_need_alone(tmp_path: Path) -> None:
    async def main() -> None:
        store = quick(tmp_path, timeout=0.05)
        await store.save("k", "v")
        with (tmp_path / ".lock").open("r+b") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
            await store.save("k", "w")
            await store.delete("other")
            for operation in (store.save_if("k", "x", expected=None), anext(store.list_keys())):
                with pytest.raises(StoreUnavailableError, match="timeout"):
                    await operation
        assert await store.load("k") == "w"

    asyncio.run(main())


def test_a_cancelled_operation_leaves_its_wait_for_the_lock(tmp_path: Path) -> None:
    async def main() -> None:
        store = quick(tmp_path, timeout=600.0)
        await store.save("k", "v")
        with filelock.FileLock(tmp_path / ".lock"):
            tasks = [asyncio.create_task(store.save("k", "w")), asyncio.create_task(store.delete("k"))]
            await asyncio.sleep(0.05)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert all(task.cancelled() for task in tasks)
            await asyncio.wait_for(asyncio.get_running_loop().shutdown_default_executor(), 5)
        assert temps(tmp_path) == []

    asyncio.run(main())
    assert asyncio.run(quick(tmp_path).load("k")) == "v"


def test_a_cancelled_save_never_lands_on_a_later_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = random.Random(4)
    real = os.replace

    def slow(src: Any, dst: Any) -> None:
        time.sleep(source.random() * 0.001)
        real(src, dst)

    monkeypatch.setattr(os, "replace", slow)

    async def main() -> int:
        store = quick(tmp_path)
        cancelled = 0
        for n in range(200):
            tasks = [asyncio.create_task(store.save("k", f"cancelled {n}.{m}")) for m in range(3)]
            await asyncio.sleep(source.random() * 0.003)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            cancelled += sum(task.cancelled() for task in tasks)
            await store.save("k", f"kept {n}")
            await asyncio.sleep(source.random() * 0.003)
            assert await store.load("k") == f"kept {n}"
        return cancelled

    assert asyncio.run(main()) > 100, "too few were cancelled to prove anything"
    assert temps(tmp_path) == []


def test_readers_see_the_old_or_the_new_text(tmp_path: Path) -> None:
    async def main() -> None:
        store = quick(tmp_path)
        texts = ["a" * 300_000, "b" * 200_000]
        await store.save("k", texts[0])

        async def write() -> None:
            for n in range(60):
                await store.save("k", texts[n % 2])

        async def read() -> None:
            for _ in range(150):
                assert await store.load("k") in texts

        await asyncio.gather(write(), read(), read())

    asyncio.run(main())
