"""The demo, run as people run it: the real service, a small photo, little effort."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

from api.demo import Progress
from nifcore import is_nif, read_header
from nifcore.client import RemoteJob
from nifcore.metrics import psnr

ROOT = Path(__file__).parents[1]


def demo(*arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "api.demo", *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def processes_of(folder: Path) -> list[str]:
    """Return the commands of all processes that were told of the folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            told = (process / "environ").read_bytes() + (process / "cmdline").read_bytes()
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if os.fsencode(folder) in told:
            found.append(command)
    return found


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "crop.png"
    Image.fromarray(data.astronaut()[40:136, 180:276]).save(path)
    return path


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_the_demo_sends_a_photo_through_the_whole_service(photo: Path, tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    run = demo("--photo", photo, "--effort", "4", "--bpp", "0.8", "--folder", folder)
    said, complaints = run.communicate(timeout=300)
    assert run.returncode == 0, complaints
    assert processes_of(folder) == []

    encoded = (folder / "photo.nif").read_bytes()
    header = read_header(encoded)
    assert is_nif(encoded)
    assert (header.width, header.height) == (96, 96)
    assert 8 * len(encoded) / 96**2 <= 0.8

    # What it tells is what its files say.
    original = np.asarray(Image.open(photo))
    decoded = np.asarray(Image.open(folder / "decoded.png"))
    row = re.search(r"^NIF +([\d,]+) +([\d.]+) +([\d.]+) dB", said, re.M)
    assert row is not None, said
    assert int(row[1].replace(",", "")) == len(encoded)
    assert float(row[2]) == pytest.approx(8 * len(encoded) / 96**2, abs=6e-4)
    assert float(row[3]) == pytest.approx(psnr(original, decoded), abs=6e-3)
    assert float(row[3]) > 15

    for codec in ("JPEG", "WEBP"):
        other = re.search(rf"^{codec} +([\d,]+)", said, re.M)
        assert other is not None, said
        smaller = int(other[1].replace(",", "")) <= len(encoded)
        assert smaller or "cannot be made smaller" in said
    assert re.search(r"^  (fit|quantise) .* PSNR [\d.]+ dB .* bpp", said, re.M), said

    with Image.open(folder / "side-by-side.png") as sheet:
        assert sheet.width >= 3 * 96
    left = {each.name for each in folder.iterdir()}
    assert left == {"photo.png", "photo.nif", "decoded.png", "side-by-side.png", "service.log"}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_demo_stops_the_service(
    photo: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    folder = tmp_path / "demo"
    run = demo("--photo", photo, "--effort", "9", "--folder", folder)
    assert run.stdout is not None
    for line in run.stdout:
        if line.startswith("  fit"):
            break
    assert any("uvicorn" in command for command in processes_of(folder))
    run.send_signal(number)
    _, complaints = run.communicate(timeout=120)
    assert run.returncode == code, complaints
    assert "stopped" in complaints
    # The supervisor was waited for, and it waits for all others.
    assert processes_of(folder) == []
    assert not [each for each in folder.iterdir() if each.is_dir()]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_a_file_that_is_no_picture_fails_with_the_services_words(tmp_path: Path) -> None:
    (tmp_path / "notes.png").write_bytes(b"no picture at all")
    folder = tmp_path / "demo"
    run = demo("--photo", tmp_path / "notes.png", "--folder", folder)
    _, complaints = run.communicate(timeout=120)
    assert run.returncode == 1
    assert "unsupported_image" in complaints
    assert "Traceback" not in complaints
    assert processes_of(folder) == []


def test_a_missing_photo_fails_before_anything_is_started(tmp_path: Path) -> None:
    run = demo("--photo", tmp_path / "absent.png", "--folder", tmp_path / "demo")
    said, complaints = run.communicate(timeout=60)
    assert run.returncode == 1
    assert "absent.png" in complaints
    assert "Starting" not in said


def test_progress_tells_phase_share_quality_rate_and_time_left(
    capsys: pytest.CaptureFixture[str],
) -> None:
    told = {"phase": "fit", "iteration": 240, "iterations": 960, "psnr_db": 28.437, "bpp": 0.3}
    running = RemoteJob("job_1", "running", {"progress": told | {"eta_seconds": 21.5}})
    show = Progress()
    show(running)
    show(running)  # at once: no second line
    show(RemoteJob("job_1", "succeeded", {"progress": None}))
    show.end()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [
        ["fit", "25%", "PSNR", "28.44", "dB", "about", "0.300", "bpp", "22", "s", "left"],
        ["succeeded"],
    ]


def test_make_demo_runs_it() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(r"^demo:.*\n\t\$\(BIN\)/python -m api\.demo$", makefile, re.M)
