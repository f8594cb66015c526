"""Outputs that cannot be written: found early where possible, and never half-written."""

from __future__ import annotations

import os
import resource
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Coded
from tests.cli.program import nif, nif_here

QUICK = ("--effort", 1, "--bpp", 4, "--no-compare")
DEVICE_FULL = Path("/dev/full")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing/x.nif", "there is no such folder"),
        ("photo.png/x.nif", "a part of the path is not a folder"),
        ("folder", "it is a folder"),
    ],
)
def test_a_place_that_cannot_be_written_is_found_before_the_work(
    coded: Coded, tmp_path: Path, name: str, message: str
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "photo.png").write_bytes(coded.picture.read_bytes())
    # Effort 9 would take far longer than a test may.
    run = nif("encode", "photo.png", name, "--effort", 9, folder=tmp_path)
    assert run.code == 1
    (line,) = run.stderr.splitlines()
    assert line.startswith(f"nif: error: cannot write '{name}': ")
    assert message in line


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(coded: Coded, tmp_path: Path) -> None:
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o500)
    run = nif("encode", coded.picture, folder / "x.nif", folder=tmp_path)
    assert run.code == 1
    assert "no permission" in run.stderr


@pytest.mark.skipif(not DEVICE_FULL.exists(), reason="no /dev/full here")
def test_a_full_disk_behind_stdout(coded: Coded, tmp_path: Path) -> None:
    with DEVICE_FULL.open("wb") as full:
        runs = [
            nif("info", coded.file, folder=tmp_path, stdout=full),
            nif("info", coded.file, "--json", folder=tmp_path, stdout=full),
            nif("decode", coded.file, "-", folder=tmp_path, stdout=full),
        ]
    for run in runs:
        assert run.code == 1
        (line,) = run.stderr.splitlines()
        assert "cannot write 'stdout': the disk is full" in line


def test_a_full_disk_leaves_no_part_of_a_file(coded: Coded, tmp_path: Path) -> None:
    (tmp_path / "old.nif").write_bytes(b"")

    def allow_small_files_only() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))

    for name in ("new.nif", "old.nif"):
        run = nif(
            "encode", coded.picture, name, *QUICK, folder=tmp_path, before=allow_small_files_only
        )
        assert run.code == 1, run.stderr
        (line,) = run.stderr.splitlines()
        assert f"cannot write '{name}'" in line
    assert [(each.name, each.stat().st_size) for each in tmp_path.iterdir()] == [("old.nif", 0)]


def test_a_closed_pipe_ends_the_program_quietly(coded: Coded, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as closed:
        run = nif("info", coded.file, folder=tmp_path, stdout=closed)
    assert run.code == 1
    assert run.stderr == ""


@pytest.fixture
def usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.mark.usefixtures("usual_umask")
def test_permissions_are_those_of_any_new_file_or_of_the_old_one(
    coded: Coded, tmp_path: Path
) -> None:
    new, old = tmp_path / "new.nif", tmp_path / "old.nif"
    old.write_bytes(b"")
    old.chmod(0o600)
    for output, mode in ((new, 0o644), (old, 0o600)):
        assert nif_here("encode", coded.picture, output, *QUICK).code == 0
        assert stat.S_IMODE(output.stat().st_mode) == mode
        assert output.read_bytes() == coded.file.read_bytes()


def test_a_symbolic_link_stays_one(coded: Coded, tmp_path: Path) -> None:
    (tmp_path / "link.nif").symlink_to("real.nif")
    assert nif_here("encode", coded.picture, tmp_path / "link.nif", *QUICK).code == 0
    assert (tmp_path / "link.nif").is_symlink()
    assert (tmp_path / "real.nif").read_bytes() == coded.file.read_bytes()


def test_a_device_is_written_directly(coded: Coded) -> None:
    assert nif_here("decode", coded.file, os.devnull).code == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_file_is_not_replaced(coded: Coded, tmp_path: Path) -> None:
    output = tmp_path / "x.nif"
    output.write_bytes(b"")
    output.chmod(0o400)
    run = nif("encode", coded.picture, output, folder=tmp_path)
    assert run.code == 1
    assert "read-only" in run.stderr
