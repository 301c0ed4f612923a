"""What the doctor finds in directories and file systems: real ones where they can be mounted, recorded ones otherwise."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from dagonizer.diagnosis import DURABILITY, Finding
from dagonizer.errors import StoreAccessError, StoreLimitError
from dagonizer.registry import diagnose_store
from dagonizer_file import FileCheckpointStore, FileConfig, _diagnosis
from dagonizer_file._diagnosis import (
    Mount,
    diagnose,
    find_mount,
    judge_durability,
    judge_file_system,
    parse_mountinfo,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

NOBODY = 65534
CHECKS = [
    "directory", "permissions", "file-system", "space", "inodes", "file-size", "case-folding", "atomic-replace", "lock",
    "fsync", "durability",
]  # fmt: skip


def examined(root: Path, **options: Any) -> dict[str, Finding]:
    async def collect() -> list[Finding]:
        return [finding async for finding in diagnose(FileConfig(root=root, **options))]

    findings = asyncio.run(collect())
    assert findings[-1].check == DURABILITY
    assert len({finding.check for finding in findings}) == len(findings)
    # What the system says has its advice with it.
    assert all(f.remedy or "; check that" in f.message for f in findings if f.verdict in {"warning", "bad"})
    return {finding.check: finding for finding in findings}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    directory = tmp_path / "it's here"
    asyncio.run(FileCheckpointStore(directory).save("k", "v"))
    return directory


@pytest.fixture
def for_nobody() -> Iterator[Path]:
    """A directory that an account without privileges can get to; the test is that account."""
    directory = Path(tempfile.mkdtemp())
    user = os.geteuid()
    try:
        if user == 0:
            os.chown(directory, NOBODY, -1)
            os.seteuid(NOBODY)
        yield directory
    finally:
        os.seteuid(user)
        shutil.rmtree(directory)


def test_every_check_tells_what_is_good_and_nothing_is_left_behind(root: Path) -> None:
    before = sorted(root.iterdir())
    found = examined(root)
    assert list(found) == [check for check in CHECKS if check != "file-system" or sys.platform == "linux"]
    for check in ("directory", "permissions", "case-folding", "atomic-replace", "lock", "fsync", "file-size"):
        assert found[check].verdict == "good", found[check]
    assert sorted(root.iterdir()) == before


def test_a_whole_examination_ends_with_what_the_file_system_keeps(tmp_path: Path) -> None:
    async def collect() -> list[Finding]:
        return [finding async for finding in diagnose_store(f"file://{tmp_path}/new")]

    findings = asyncio.run(collect())
    assert [finding.check for finding in findings if finding.verdict == "bad"] == []
    assert [finding.check for finding in findings][-2:] == ["fsync", "durability"]
    assert [path.name for path in (tmp_path / "new").iterdir()] == [".lock"]


def test_a_directory_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    found = examined(tmp_path / "a" / "b")
    assert found["directory"].verdict == "note"
    assert set(found) == {"directory", "file-system", "space", "inodes", "file-size", "durability"}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("below", ["", "store"])
def test_a_file_in_the_place_of_the_directory_is_bad(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").touch()
    found = examined(tmp_path / "file" / below)
    assert found["directory"].verdict == "bad"
    assert found["directory"].message == f"{tmp_path}/file is no directory"
    assert "lock" not in found


def test_a_dangling_link_in_the_place_of_the_directory_is_bad(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    assert examined(tmp_path / "link")["directory"].verdict == "bad"


def test_a_directory_that_may_not_be_written_or_made_is_bad(for_nobody: Path) -> None:
    for_nobody.chmod(0o555)
    for root in (for_nobody, for_nobody / "a" / "b"):
        finding = examined(root)["directory"]
        assert finding.verdict == "bad"
        assert f"{for_nobody} cannot be written by this user" in finding.message
        assert finding.remedy == f"chown {os.geteuid()} {for_nobody}, and chmod u+rwx {for_nobody}"
    for_nobody.chmod(0o700)
    assert examined(for_nobody)["directory"].verdict == "good"


def test_a_directory_that_may_not_be_listed_is_bad(for_nobody: Path) -> None:
    for_nobody.chmod(0o300)
    assert "not listed" in examined(for_nobody)["directory"].message
    for_nobody.chmod(0o700)


def test_entries_that_cannot_be_read_are_bad(for_nobody: Path) -> None:
    for key in ("a", "b"):
        asyncio.run(FileCheckpointStore(for_nobody).save(key, "v"))
    (path,) = for_nobody.glob("ckpt-a.*")
    path.chmod(0)
    finding = examined(for_nobody)["permissions"]
    assert finding.verdict == "bad"
    assert finding.message == f"1 of 2 entries cannot be read by this user ({os.geteuid()}): {path}"


@pytest.mark.parametrize(
    ("mode", "verdict", "told"),
    [
        (0o700, "good", "no entry is for others"),
        (0o1700, "good", "no entry is for others"),
        (0o750, "note", "names of the files"),
        (0o701, "note", "names of the files"),
        (0o770, "note", "can put files there"),
        (0o1777, "note", "can put files there"),
        (0o777, "warning", "remove checkpoints"),
    ],
)
def test_who_else_may_do_what_is_told_by_the_mode(root: Path, mode: int, verdict: str, told: str) -> None:
    root.chmod(mode)
    finding = examined(root)["permissions"]
    assert (finding.verdict, told in finding.message) == (verdict, True)
    assert f"{mode:04o}" in finding.message
    assert finding.remedy == (None if verdict == "good" else f"chmod 700 '{root}'".replace("it's", "it'\"'\"'s"))


def test_entries_that_others_can_read_are_a_warning_and_other_files_are_none(root: Path) -> None:
    (root / "README").touch(0o644)
    assert examined(root)["permissions"].verdict == "good"
    (entry,) = root.glob("ckpt-*")
    entry.chmod(0o640)
    finding = examined(root)["permissions"]
    assert (finding.verdict, finding.message[:17]) == ("warning", "1 of 1 entries ar")


def test_without_fsync_a_power_failure_may_take_what_was_saved(root: Path) -> None:
    found = examined(root, fsync=False)
    assert found["fsync"].verdict == found[DURABILITY].verdict == "warning"
    assert "fsync=false" in found["fsync"].message


def test_a_flush_that_fails_is_bad(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    found = examined(root)
    assert found["fsync"].verdict == "bad"
    assert "Input/output error" in found["fsync"].message
    assert not list(root.glob(".dagonizer-doctor-*"))


@pytest.mark.parametrize(("error", "told"), [(errno.ENOLCK, "cannot be locked"), (None, "excludes nobody")])
def test_a_file_system_without_locks_is_bad(root: Path, monkeypatch: pytest.MonkeyPatch, error: Any, told: str) -> None:
    def flock(*_: Any) -> None:
        if error:
            raise OSError(error, os.strerror(error))

    monkeypatch.setattr(fcntl, "flock", flock)
    finding = examined(root)["lock"]
    assert (finding.verdict, told in finding.message) == ("bad", True)


@pytest.mark.parametrize("way", ["copying", "leaving", "writing in place"])
def test_a_replacing_that_is_none_is_bad(root: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    real = Path.replace

    def replace(self: Path, target: Path) -> None:
        if way == "writing in place":
            target.write_text(self.read_text())
            self.unlink()
        elif way == "copying":
            target.unlink()
            shutil.copy(self, target)
            self.unlink()
        else:
            shutil.copy(self, self.with_name("copy"))
            real(self, target)
            real(target.with_name("copy"), self)

    monkeypatch.setattr(Path, "replace", replace)
    finding = examined(root)["atomic-replace"]
    assert (finding.verdict, "in one step" in finding.message) == ("bad", True)


def test_a_file_system_that_folds_case_is_good(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.touch
    assert "tells upper from lower" in examined(root)["case-folding"].message
    monkeypatch.setattr(Path, "touch", lambda self: (real(self), real(self.with_name(self.name.upper()))))
    finding = examined(root)["case-folding"]
    assert (finding.verdict, "folds case" in finding.message) == ("good", True)


def test_a_name_that_is_too_long_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(StoreLimitError, match="could not examine files"):
        examined(tmp_path / ("x" * 300))


def test_a_way_that_is_closed_is_an_error_of_ours(for_nobody: Path) -> None:
    (for_nobody / "closed").mkdir(0)
    with pytest.raises(StoreAccessError, match="could not examine files"):
        examined(for_nobody / "closed" / "store")


def test_a_cancelled_diagnosis_leaves_nothing_behind(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began, go_on = threading.Event(), threading.Event()

    def wait(prefix: str) -> Finding:
        Path(prefix + "probe").touch()
        began.set()
        go_on.wait()
        return Finding(check="lock", verdict="good", message="")

    monkeypatch.setitem(_diagnosis._PROBES, "lock", wait)
    before = sorted(root.iterdir())

    async def collect() -> list[Finding]:
        return [finding async for finding in diagnose(FileConfig(root=root))]

    async def main() -> None:
        task = asyncio.create_task(collect())
        await asyncio.to_thread(began.wait)
        assert len(list(root.glob(".dagonizer-doctor-*/probe"))) == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go_on.set()

    asyncio.run(main())
    assert sorted(root.iterdir()) == before


# Real file systems, mounted where this process may.

UNSHARE = (
    shutil.which("unshare") is not None
    and subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode == 0
)

EXAMINE = """
import asyncio, json, sys
import msgspec
from dagonizer_file import FileConfig
from dagonizer_file._diagnosis import diagnose
from pathlib import Path

async def main():
    config = FileConfig(root=Path(sys.argv[1]))
    print(json.dumps([msgspec.to_builtins(finding) async for finding in diagnose(config)]))

asyncio.run(main())
"""


def examined_in_a_child(root: Path, before: str = "", shell: str = "") -> dict[str, dict[str, Any]]:
    command = [sys.executable, "-c", before + EXAMINE, str(root)]
    if shell:
        command = ["unshare", "-rm", "sh", "-ec", f'{shell}\nexec "$0" "$@"', *command]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert ran.returncode == 0, ran.stderr
    return {finding["check"]: finding for finding in json.loads(ran.stdout)}


mounting = pytest.mark.skipif(
    not UNSHARE, reason="unshare -rm is not permitted; the recorded mounts below are judged alike"
)


@mounting
@pytest.mark.parametrize(
    ("options", "bad", "told"),
    [
        ("size=256m", {}, "256.0 MiB are free"),
        ("size=100m", {"space": "warning"}, "100.0 MiB of 100.0 MiB are free"),
        ("size=256m,nr_inodes=64", {"inodes": "warning"}, "63 files more"),
    ],
)
def test_a_small_file_system_in_memory(tmp_path: Path, options: str, bad: dict[str, str], told: str) -> None:
    found = examined_in_a_child(tmp_path, shell=f"mount -t tmpfs -o mode=700,{options} none {tmp_path}")
    kinds = {check: finding["verdict"] for check, finding in found.items() if finding["verdict"] != "good"}
    assert kinds == {"file-system": "warning", "durability": "warning", **bad}
    assert told in found["space"]["message"] + found["inodes"]["message"]
    assert found["file-system"]["message"].startswith(f"tmpfs at {tmp_path} is in memory")
    assert "no reboot" in found["durability"]["message"]


@mounting
def test_a_file_system_that_is_mounted_read_only_is_bad(tmp_path: Path) -> None:
    root = tmp_path / "a b"
    root.mkdir()
    shell = f"mount -t tmpfs none '{root}'; mount -o remount,ro '{root}'"
    found = examined_in_a_child(root, shell=shell)
    assert found["file-system"]["verdict"] == "bad"
    assert found["file-system"]["remedy"] == f"mount -o remount,rw '{root}'"
    assert found["directory"]["verdict"] == "bad"
    assert "lock" not in found


@mounting
@pytest.mark.parametrize(("option", "told"), [("", "the removal of the container"), (",volatile", "volatile")])
def test_a_layer_of_a_container(tmp_path: Path, option: str, told: str) -> None:
    for name in ("lower", "upper", "root"):
        (tmp_path / name).mkdir()
    layers = "lowerdir=lower,upperdir=upper/upper,workdir=upper/work"
    shell = (
        f"cd {tmp_path}; mount -t tmpfs none upper; mkdir upper/upper upper/work; "
        f"mount -t overlay -o {layers}{option} none root"
    )
    found = examined_in_a_child(tmp_path / "root", shell=shell)
    assert found["file-system"]["message"].startswith(f"overlay at {tmp_path}/root is a layer over an image")
    assert found["durability"]["verdict"] == "warning"
    assert told in found["durability"]["message"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc, which is of no size")
def test_a_file_system_that_does_not_tell_its_size_is_not_said_to_be_full() -> None:
    assert _diagnosis._check_space("/proc").verdict == "note"
    assert _diagnosis._check_inodes("/proc").message == "the number of files is not limited"


def test_a_limit_of_the_size_of_files_is_a_warning(tmp_path: Path) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))\n"
    finding = examined_in_a_child(tmp_path, before=limit)["file-size"]
    assert finding["verdict"] == "warning"
    assert "1,000,000 bytes" in finding["message"]


# Recorded: /proc/self/mountinfo of machines that have what cannot be mounted here.

MOUNTINFO = r"""
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard,errors=remount-ro
23 22 0:21 / /proc rw,nosuid,nodev,noexec,relatime shared:13 - proc proc rw
30 22 8:17 / /var/lib rw,noatime - xfs /dev/sdb1 rw,attr2,inode64,logbufs=8
31 22 0:45 / /mnt/nfs4 rw,relatime shared:31 - nfs4 nas:/export rw,vers=4.2,rsize=1048576,wsize=1048576,namlen=255,hard,proto=tcp,timeo=600,retrans=2,sec=sys,clientaddr=10.0.0.2,local_lock=none,addr=10.0.0.1
32 22 0:46 / /mnt/soft rw,relatime - nfs4 nas:/export rw,vers=4.2,soft,proto=tcp,timeo=600,local_lock=none,addr=10.0.0.1
33 22 0:47 / /mnt/nolock rw,relatime - nfs nas:/export rw,vers=3,hard,nolock,proto=tcp,mountproto=udp,local_lock=all,addr=10.0.0.1
34 22 0:48 / /mnt/my\040share rw,relatime shared:40 - cifs //server/share rw,vers=3.1.1,cache=strict,username=me,uid=0,noforceuid,addr=10.0.0.3,file_mode=0755
35 22 0:49 / /mnt/sshfs rw,nosuid,nodev,relatime - fuse.sshfs me@host:/data rw,user_id=1000,group_id=1000
36 22 0:50 / /mnt/9p rw,relatime - 9p host rw,access=client,trans=virtio
37 22 0:51 / /mnt/s3 rw,nosuid,nodev,relatime - fuse.s3fs s3fs rw,user_id=0,group_id=0,allow_other
38 22 8:33 / /mnt/ntfs rw,relatime - fuseblk /dev/sdc1 rw,user_id=0,group_id=0,blksize=4096
39 22 8:49 / /mnt/fast rw,relatime - ext4 /dev/sdd1 rw,nobarrier
40 22 0:52 / /mnt/auto rw,relatime - autofs systemd-1 rw,fd=29,pgrp=1,timeout=0,minproto=5,maxproto=5,direct
41 40 0:53 / /mnt/auto rw,relatime - nfs4 nas:/home rw,vers=4.2,hard,local_lock=none,addr=10.0.0.1
42 22 0:54 / /mnt/ro ro,relatime - nfs4 nas:/export rw,vers=4.2,hard,local_lock=none,addr=10.0.0.1
43 22 8:65 / /mnt/ro\134odd ro,relatime - ext4 /dev/sde1 rw
44 22 0:55 / /mnt/ram rw,relatime - ramfs none rw
45 22 0:56 / /mnt/box rw,relatime - virtiofs shared rw
""".strip("\n")  # fmt: skip


@pytest.mark.parametrize(
    ("path", "place", "verdict", "told", "durability"),
    [
        ("/", ("/", "ext4"), "good", "is local", "good"),
        ("/var/library/x", ("/", "ext4"), "good", "is local", "good"),
        ("/var/lib", ("/var/lib", "xfs"), "good", "is local", "good"),
        ("/mnt/nfs4/a/b", ("/mnt/nfs4", "nfs4"), "warning", "network file system", "warning"),
        ("/mnt/soft/a", ("/mnt/soft", "nfs4"), "warning", "mounted soft", "warning"),
        ("/mnt/nolock/a", ("/mnt/nolock", "nfs"), "warning", "mounted with nolock: locks do not", "warning"),
        ("/mnt/my share/a", ("/mnt/my share", "cifs"), "warning", "a locked file cannot be read", "warning"),
        ("/mnt/sshfs", ("/mnt/sshfs", "fuse.sshfs"), "warning", "network file system", "warning"),
        ("/mnt/9p", ("/mnt/9p", "9p"), "warning", "network file system", "warning"),
        ("/mnt/box", ("/mnt/box", "virtiofs"), "warning", "network file system", "warning"),
        ("/mnt/s3", ("/mnt/s3", "fuse.s3fs"), "note", "user space", "note"),
        ("/mnt/ntfs", ("/mnt/ntfs", "fuseblk"), "good", "is local", "good"),
        ("/mnt/fast", ("/mnt/fast", "ext4"), "good", "is local", "warning"),
        ("/mnt/auto/me", ("/mnt/auto", "nfs4"), "warning", "network file system", "warning"),
        ("/mnt/ro", ("/mnt/ro", "nfs4"), "bad", "mounted read-only", "warning"),
        ("/mnt/ro\\odd", ("/mnt/ro\\odd", "ext4"), "bad", "mounted read-only", "good"),
        ("/mnt/ram", ("/mnt/ram", "ramfs"), "warning", "in memory", "warning"),
    ],
)
def test_what_is_recorded_of_a_mount_tells_how_safe_it_is(
    path: str, place: tuple[str, str], verdict: str, told: str, durability: str
) -> None:
    mount = find_mount(path, parse_mountinfo(MOUNTINFO))
    assert mount is not None
    assert (mount.point, mount.type) == place
    finding = judge_file_system(mount)
    assert (finding.verdict, told in finding.message) == (verdict, True), finding
    assert judge_durability(mount, fsync=True).verdict == durability
    assert "10.0.0" not in repr(finding)


def test_a_flush_that_does_not_reach_the_disk_is_told_by_its_option() -> None:
    for option in ("nobarrier", "barrier=0", "volatile", "fsync=volatile"):
        finding = judge_durability(Mount("/x", "ext4", ("rw", option)), fsync=True)
        assert (finding.verdict, option in finding.message) == ("warning", True)


@pytest.mark.parametrize(("platform", "told"), [("darwin", "drive's own cache"), ("win32", "no directories")])
def test_where_mounts_are_not_told_the_system_is_what_is_known(
    monkeypatch: pytest.MonkeyPatch, platform: str, told: str
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    finding = judge_durability(None, fsync=True)
    assert (finding.verdict, told in finding.message) == ("note", True)


def test_a_system_without_mountinfo_has_no_finding_of_the_file_system(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_diagnosis, "_MOUNTINFO", str(root / "none"))
    found = examined(root)
    assert "file-system" not in found
    assert found[DURABILITY].verdict == "good"
