"""What only another process can show: crashes, races, full disks, permissions."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from dagonizer.errors import StoreAccessError
from dagonizer_file import FileCheckpointStore

UNSHARE = (
    shutil.which("unshare") is not None
    and subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode == 0
)


def run(script: str, *arguments: str, prefix: tuple[str, ...] = ()) -> str:
    command = [*prefix, sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=_environment())
    assert done.returncode == 0, done.stderr
    return done.stdout


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


FULL = """
import asyncio, os, sys
from dagonizer.errors import StoreLimitError
from dagonizer_file import FileCheckpointStore

async def main():
    store = FileCheckpointStore(sys.argv[1])
    await store.save("k", "old")
    {limit}
    try:
        await store.save("k", "n" * 1_000_000)
    except StoreLimitError as exc:
        assert isinstance(exc.__cause__, OSError), exc
    else:
        raise AssertionError("not refused")
    assert await store.load("k") == "old"
    assert not [name for name in os.listdir(sys.argv[1]) if name.endswith(".tmp")]
    await store.save("k", "new")
    assert await store.load("k") == "new"
    print("ok")

asyncio.run(main())
"""


@pytest.mark.skipif(not UNSHARE, reason="unshare -rm is not permitted; the file size limit below proves the same path")
def test_a_full_disk_is_a_limit_and_keeps_the_old_entry(tmp_path: Path) -> None:
    mount = f'mount -t tmpfs -o size=256k none {tmp_path} && exec "$0" "$@"'
    assert run(FULL.format(limit=""), str(tmp_path), prefix=("unshare", "-rm", "sh", "-c", mount)) == "ok\n"


def test_a_file_size_limit_is_a_limit_and_keeps_the_old_entry(tmp_path: Path) -> None:
    limit = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))"
    )
    assert run(FULL.format(limit=limit), str(tmp_path)) == "ok\n"


def test_a_read_only_directory_is_an_access_error() -> None:
    root = Path(tempfile.mkdtemp())
    user = os.geteuid()
    try:
        asyncio.run(FileCheckpointStore(root).save("k", "v"))
        if user == 0:
            for path in (root, *root.iterdir()):
                os.chown(path, 65534, -1)
        root.chmod(0o555)
        if user == 0:
            os.seteuid(65534)

        async def main() -> None:
            store = FileCheckpointStore(root)
            for operation in (store.save("k", "w"), store.delete("k"), store.save_if("k", "w", expected=None)):
                with pytest.raises(StoreAccessError, match="check the owner"):
                    await operation
            assert await store.load("k") == "v"

        asyncio.run(main())
    finally:
        os.seteuid(user)
        root.chmod(0o700)
        shutil.rmtree(root)


SAVE_FOR_EVER = """
import asyncio, sys
from dagonizer_file import FileCheckpointStore

async def main():
    store = FileCheckpointStore(sys.argv[1])
    for n in range(1_000_000):
        await store.save("k", f"{n}:" + "x" * 3_000_000)
        print(n, flush=True)

asyncio.run(main())
"""


def test_a_killed_save_leaves_the_old_or_the_new_text_and_its_leftover_is_swept(tmp_path: Path) -> None:
    leftovers: list[Path] = []
    for attempt in range(40):
        child = subprocess.Popen(
            [sys.executable, "-c", SAVE_FOR_EVER, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=_environment()
        )
        assert child.stdout is not None
        with child.stdout:
            child.stdout.readline()
            time.sleep(0.003 * (attempt % 10))
            child.send_signal(signal.SIGKILL)
            child.wait()
            acknowledged = max(map(int, child.stdout.read().split()), default=0)
        text = asyncio.run(FileCheckpointStore(tmp_path).load("k"))
        assert text is not None
        number, _, rest = text.partition(":")
        assert rest == "x" * 3_000_000
        assert int(number) >= acknowledged
        leftovers = list(tmp_path.glob(".*.tmp"))
        if leftovers:
            break
    assert leftovers, "no child was killed in the middle of a save"

    foreign = tmp_path / ".foreign.tmp"
    foreign.write_text("")
    asyncio.run(FileCheckpointStore(tmp_path).save("k", "v"))
    assert list(tmp_path.glob(".*.tmp")) == [foreign]


SAVE_ONCE = """
import asyncio, os, sys
from dagonizer_file import FileCheckpointStore

real = os.fsync

def paused(fd):
    os.fsync = real
    print("written", flush=True)
    sys.stdin.readline()
    real(fd)

os.fsync = paused
asyncio.run(FileCheckpointStore(sys.argv[1]).save("k", "late"))
"""


def test_the_file_of_a_save_that_is_paused_is_never_taken(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SAVE_ONCE, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=_environment(),
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            assert child.stdout.readline() == b"written\n"
            child.send_signal(signal.SIGSTOP)
            (temp,) = tmp_path.glob(".*.tmp")
            long_ago = time.time() - 7200
            os.utime(temp, (long_ago, long_ago))
            for _ in range(3):
                asyncio.run(FileCheckpointStore(tmp_path).save("k", "early"))
                assert list(tmp_path.glob(".*.tmp")) == [temp]
            child.send_signal(signal.SIGCONT)
            child.communicate(b"\n", timeout=60)
            assert child.returncode == 0
        finally:
            child.kill()
    assert asyncio.run(FileCheckpointStore(tmp_path).load("k")) == "late"
    assert list(tmp_path.glob(".*.tmp")) == []


SWEEP = """
import asyncio, sys
from pathlib import Path
from dagonizer_file import FileCheckpointStore, FileConfig

async def main():
    for n in range(300):
        # A new store sweeps.
        await FileCheckpointStore(FileConfig(root=Path(sys.argv[1]), fsync=False)).save(f"k{n % 3}", "v")

asyncio.run(main())
"""


def test_four_processes_that_sweep_all_the_time_take_no_file_of_each_other(tmp_path: Path) -> None:
    root = tmp_path / "new"
    children = [subprocess.Popen([sys.executable, "-c", SWEEP, str(root)], env=_environment()) for _ in range(4)]
    assert [child.wait(60) for child in children] == [0, 0, 0, 0]
    assert len(list(root.glob("ckpt-*"))) == 3
    assert list(root.glob(".*.tmp")) == []


def test_where_files_cannot_be_locked_a_leftover_goes_by_its_age(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = fcntl.flock

    def flock(fd: int, operation: int) -> None:
        if not os.path.samestat(os.fstat(fd), (tmp_path / ".lock").stat()):
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
        real(fd, operation)

    asyncio.run(FileCheckpointStore(tmp_path).save("k", "v"))
    monkeypatch.setattr(fcntl, "flock", flock)
    young, old = (tmp_path / f".{'0' * 64}.{n:016x}.tmp" for n in range(2))
    for path, age in ((young, 3000), (old, 4000)):
        path.write_text("")
        os.utime(path, (time.time() - age, time.time() - age))
    asyncio.run(FileCheckpointStore(tmp_path).save("k", "w"))
    assert list(tmp_path.glob(".*.tmp")) == [young]


def test_what_is_no_file_of_ours_is_never_swept(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("not ours")
    link, directory, pipe = (tmp_path / f".{'0' * 64}.{n:016x}.tmp" for n in range(3))
    link.symlink_to("target")
    directory.mkdir()
    os.mkfifo(pipe)
    asyncio.run(FileCheckpointStore(tmp_path).save("k", "v"))
    assert sorted(tmp_path.glob(".*.tmp")) == [link, directory, pipe]
    assert (tmp_path / "target").read_text() == "not ours"


COUNT = """
import asyncio, sys
from dagonizer.errors import StoreConflictError
from dagonizer_file import FileCheckpointStore, FileConfig
from pathlib import Path

async def main():
    store = FileCheckpointStore(FileConfig(root=Path(sys.argv[1]), fsync=False))
    for _ in range(50):
        while True:
            current = await store.load_versioned("n")
            try:
                if current is None:
                    await store.save_if("n", "1", expected=None)
                else:
                    await store.save_if("n", str(int(current.json) + 1), expected=current.version)
            except StoreConflictError:
                continue
            break

asyncio.run(main())
"""


def test_four_processes_count_to_200_by_compare_and_swap(tmp_path: Path) -> None:
    root = tmp_path / "new"
    children = [subprocess.Popen([sys.executable, "-c", COUNT, str(root)], env=_environment()) for _ in range(4)]
    assert [child.wait(60) for child in children] == [0, 0, 0, 0]
    assert asyncio.run(FileCheckpointStore(root).load("n")) == "200"
