import asyncio
import random
import sys
from contextlib import suppress

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from dagonizer import StoreCorruptedError, StoreError
from dagonizer.compression import check_compression, compress, compress_in_steps, expand

LARGE = b'{"path":"package/module.py"}' * 20_000
FRAME = compress(LARGE, "zstd")


@given(st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0")), st.sampled_from([1, 100, 5000]))
def test_what_is_compressed_is_expanded_to_the_same(text, times):
    value = text.encode() * times
    assert expand(compress(value, "zstd"), key="k") == value
    assert expand(value, key="k") == value


def test_large_values_are_shorter_and_recognised_by_bytes_that_begin_no_text():
    assert len(FRAME) < len(LARGE) / 10
    with pytest.raises(UnicodeDecodeError):
        FRAME[:4].decode()


@pytest.mark.parametrize("value", [b"", b"x" * 4095])
def test_small_values_stay_as_they_are(value):
    assert compress(value, "zstd") is value


def test_without_compression_values_stay_as_they_are():
    assert compress(LARGE, "none") is LARGE


def test_a_value_that_does_not_get_shorter_stays_as_it_is():
    noise = random.Random(0).randbytes(10_000)
    assert compress(noise, "zstd") is noise


@pytest.mark.parametrize(
    "damaged",
    [
        FRAME[:-1],
        FRAME[:20],
        FRAME[:4],
        FRAME + b"x",
        FRAME + FRAME,
        FRAME[:-10] + bytes([FRAME[-10] ^ 1]) + FRAME[-9:],
        FRAME[:-1] + bytes([FRAME[-1] ^ 1]),
        # It says 2**40 bytes, and then that it says nothing of its length.
        b"\x28\xb5\x2f\xfd\xe0" + (1 << 40).to_bytes(8, "little"),
        zstandard.ZstdCompressor(write_content_size=False).compress(LARGE),
    ],
)
def test_a_damaged_frame_is_corrupted(damaged):
    with pytest.raises(StoreCorruptedError, match="'the key' is corrupted: its Zstandard frame is damaged"):
        expand(damaged, key="the key")


@pytest.mark.parametrize("size", [4096, 65_536, 131_072, 262_144, 1 << 20])
def test_every_flipped_bit_is_noticed(size):
    value = (b'{"key":"value"}' * (1 << 17))[:size]
    frame = compress(value, "zstd")
    for bit in range(32, 8 * min(len(frame), 300)):
        flipped = bytearray(frame)
        flipped[bit // 8] ^= 1 << bit % 8
        # One that says nothing, such as that of an unused window, does no harm.
        with suppress(StoreCorruptedError):
            assert expand(bytes(flipped), key="k") == value


def test_without_the_library_both_ways_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(ValueError, match=r'run: pip install "dagonizer\[zstd\]"'):
        check_compression("zstd")
    check_compression("none")
    with pytest.raises(StoreError, match=r"'k' is compressed.*run: pip install \"dagonizer\[zstd\]\""):
        expand(FRAME, key="k")
    assert expand(LARGE, key="k") is LARGE


def test_another_compression_is_refused():
    with pytest.raises(ValueError, match="compression must be 'none' or 'zstd', not 'gzip'"):
        check_compression("gzip")


async def test_large_values_are_compressed_in_steps_between_which_others_have_their_turn():
    value = LARGE * 20
    turns = 0

    async def turn():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    turning = asyncio.create_task(turn())
    frame = await compress_in_steps(value, "zstd")
    turning.cancel()
    assert turns > 10
    assert len(frame) < len(value) / 100
    assert expand(frame, key="k") == value


@pytest.mark.parametrize("size", [0, 5000, 1 << 20, (1 << 20) + 1])
async def test_in_steps_or_at_once_it_is_the_same_text(size):
    value = (LARGE * 2)[:size]
    assert expand(await compress_in_steps(value, "zstd"), key="k") == value
    assert await compress_in_steps(value, "none") is value
    noise = random.Random(0).randbytes(size)
    assert await compress_in_steps(noise, "zstd") is noise
