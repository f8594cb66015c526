from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from nifcore.errors import OutputError
from nifcore.output import write_atomically


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_creates_a_file_with_the_permissions_the_umask_gives(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_bytes(b"x")
    write_atomically(tmp_path / "ours", b"content")
    assert (tmp_path / "ours").read_bytes() == b"content"
    assert (tmp_path / "ours").stat().st_mode == plain.stat().st_mode
    assert names(tmp_path) == ["ours", "plain"]


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_replaces_the_whole_content_and_keeps_permissions(tmp_path: Path, kind: type) -> None:
    target = tmp_path / "out.nif"
    target.write_bytes(b"a much longer earlier content")
    target.chmod(0o640)
    write_atomically(str(target), kind(b"new"))
    assert target.read_bytes() == b"new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert names(tmp_path) == ["out.nif"]


def test_a_symbolic_link_is_followed_and_stays(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    link = tmp_path / "link.nif"
    link.symlink_to(tmp_path / "real" / "file.nif")
    write_atomically(link, b"one")
    write_atomically(link, b"two")
    assert link.is_symlink()
    assert (tmp_path / "real" / "file.nif").read_bytes() == b"two"
    assert names(tmp_path / "real") == ["file.nif"]


def test_the_longest_allowed_name_can_be_written(tmp_path: Path) -> None:
    name = "n" * os.pathconf(tmp_path, "PC_NAME_MAX")
    write_atomically(tmp_path / name, b"x")
    assert names(tmp_path) == [name]


def test_a_pipe_is_written_and_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.append(pipe.read_bytes()))
    reader.start()
    write_atomically(pipe, b"through the pipe")
    reader.join(timeout=10)
    assert received == [b"through the pipe"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing/out.nif", "no such folder"),
        ("file/out.nif", "not a folder"),
        (".", "is a folder"),
        ("n" * 5000, "too long"),
    ],
)
def test_a_path_that_cannot_be_written_says_which_and_why(
    tmp_path: Path, name: str, reason: str
) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(OutputError, match=reason) as caught:
        write_atomically(tmp_path / name, b"data")
    assert str(tmp_path) in str(caught.value)
    assert caught.value.exit_code == 1
    assert names(tmp_path) == ["file"]


def in_another_process(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def reachable_folder() -> Iterator[Path]:
    """A folder that every account can walk to (tmp_path lies in one that only its owner can)."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_a_folder_without_permission(reachable_folder: Path) -> None:
    folder = reachable_folder / "closed"
    folder.mkdir()
    (folder / "out.nif").write_bytes(b"before")
    folder.chmod(0o555)
    code = """
        import os, sys
        from nifcore.errors import OutputError
        from nifcore.output import write_atomically
        if os.getuid() == 0:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        try:
            write_atomically(sys.argv[1], b"after")
        except OutputError as error:
            print(error)
    """
    done = in_another_process(code, str(folder / "out.nif"))
    folder.chmod(0o755)
    assert done.stderr == ""
    assert "no permission" in done.stdout
    assert names(folder) == ["out.nif"]
    assert (folder / "out.nif").read_bytes() == b"before"


def test_a_file_larger_than_the_system_allows_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "out.nif"
    target.write_bytes(b"before")
    code = """
        import resource, sys
        from nifcore.errors import OutputError
        from nifcore.output import write_atomically
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            write_atomically(sys.argv[1], bytes(1_000_000))
        except OutputError as error:
            print(error)
    """
    done = in_another_process(code, str(target))
    assert done.stderr == ""
    assert "larger than the system allows" in done.stdout
    assert names(tmp_path) == ["out.nif"]
    assert target.read_bytes() == b"before"


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB; the test is skipped where the account may not mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "nif-test", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mount.returncode != 0:
        pytest.skip(f"no right to mount a small file system here: {mount.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_what_was_there(tiny_disk: Path) -> None:
    target = tiny_disk / "out.nif"
    target.write_bytes(b"before")
    with pytest.raises(OutputError, match="disk is full"):
        write_atomically(target, bytes(1_000_000))
    assert names(tiny_disk) == ["out.nif"]
    assert target.read_bytes() == b"before"


def test_a_device_without_room(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with pytest.raises(OutputError, match="disk is full"):
        write_atomically("/dev/full", b"data")
    assert stat.S_ISCHR(Path("/dev/full").stat().st_mode)


def test_an_interrupt_while_writing_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "out.nif", b"data")
    assert names(tmp_path) == []


def test_an_unlisted_reason_is_the_systems_own_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OutputError, match=os.strerror(errno.EIO)):
        write_atomically(tmp_path / "out.nif", b"data")
    assert names(tmp_path) == []
