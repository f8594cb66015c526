"""``nif encode``: what it prints and writes, and what it refuses to overwrite."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import nifcore
from nifcore.header import MAGIC
from nifcore.plan import bpp_of_quality
from tests.cli.conftest import HEIGHT, WIDTH, Coded
from tests.cli.program import nif, nif_here


def test_json_says_what_was_made(coded: Coded) -> None:
    said = coded.said
    assert said["schema_version"] == 1
    assert (said["input"], said["output"]) == ("photo.png", "photo.nif")
    assert (said["width"], said["height"], said["channels"]) == (WIDTH, HEIGHT, 3)
    assert said["bytes"] == coded.file.stat().st_size
    assert said["bpp"] == pytest.approx(8 * said["bytes"] / (WIDTH * HEIGHT))
    assert said["bpp"] <= 4
    assert (said["preset"], said["effort"], said["seed"]) == (None, 1, 0)
    assert said["device"] == "cpu" or said["device"].startswith("cuda")
    assert said["complete"] is True
    assert said["seconds"] > 0
    assert said["ms_ssim"] is None


def test_the_psnr_is_that_of_the_file(coded: Coded) -> None:
    with Image.open(coded.picture) as original:
        wanted = np.asarray(original).astype(np.float64)
    error = np.mean((wanted - np.asarray(nifcore.decode(coded.file))) ** 2)
    assert coded.said["psnr_db"] == pytest.approx(10 * np.log10(255**2 / error), abs=0.01)


def test_comparisons_are_of_no_more_bytes_unless_they_say_so(coded: Coded) -> None:
    rivals = {each["codec"]: each for each in coded.said["comparisons"]}
    assert {"JPEG", "WEBP"} == set(rivals)
    for each in rivals.values():
        assert each["larger"] or each["bytes"] <= coded.said["bytes"]
        assert each["psnr_db"] > 5


def test_nothing_but_the_object_is_printed_when_piped(coded: Coded) -> None:
    assert coded.run.stderr == ""
    assert len(coded.run.text.splitlines()) == 1


def test_stdin_to_stdout_gives_the_same_file(coded: Coded) -> None:
    run = nif(
        *("encode", "-", "-", "--effort", 1, "--bpp", 4),
        folder=coded.picture.parent,
        stdin=coded.picture.read_bytes(),
    )
    assert run.code == 0, run.stderr
    assert run.stdout == coded.file.read_bytes()
    assert "stdout" in run.stderr
    assert "JPEG" in run.stderr
    assert "WebP" in run.stderr


def test_several_pictures_of_which_one_is_bad(coded: Coded, tmp_path: Path) -> None:
    shutil.copy(coded.picture, tmp_path / "a.png")
    (tmp_path / "b.png").write_text("no picture")
    names = [tmp_path / name for name in ("b.png", "a.png", "missing.png")]
    done = tmp_path / "new" / "folder"
    run = nif_here(
        *("encode", *names, "--output-dir", done),
        *("--effort", 1, "--bpp", 4, "--no-compare", "--json"),
    )
    assert run.code == 3
    bad, good, missing = run.objects
    assert bad["input"] == str(names[0])
    assert bad["error"]["type"] == "NotAnImage"
    assert bad["error"]["exit_code"] == 3
    assert good["output"] == str(done / "a.nif")
    assert missing["error"]["type"] == "InputError"
    assert [each.name for each in done.iterdir()] == ["a.nif"]
    assert (done / "a.nif").read_bytes() == coded.file.read_bytes()
    assert len(run.stderr.splitlines()) == 2


def test_the_summary_is_on_stdout(coded: Coded, tmp_path: Path) -> None:
    output = tmp_path / "x.nif"
    run = nif_here("encode", coded.picture, output, "--effort", 1, "--bpp", 4)
    assert run.code == 0
    first, *rows = run.text.splitlines()
    assert first.split() == ["bytes", "bpp", "PSNR", "MS-SSIM"]
    assert rows[0].split()[:3] == [
        str(output),
        f"{output.stat().st_size:,}",
        f"{coded.said['bpp']:.3f}",
    ]
    assert f"{coded.said['psnr_db']:.2f} dB" in rows[0]
    assert rows[1].startswith("JPEG")
    assert rows[2].startswith("WebP")
    assert f"{WIDTH}x{HEIGHT}" in rows[3]
    assert "effort 1" in rows[3]


def test_quiet_prints_nothing(coded: Coded, tmp_path: Path) -> None:
    run = nif_here(
        "encode", coded.picture, tmp_path / "x.nif", "--effort", 1, "--bpp", 4, "--quiet"
    )
    assert (run.code, run.stdout, run.stderr) == (0, b"", "")
    assert (tmp_path / "x.nif").exists()


def test_settings_fill_in_what_no_flag_says(
    coded: Coded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIF_EFFORT", "1")
    monkeypatch.setenv("NIF_QUALITY", "100")
    monkeypatch.setenv("NIF_KERNEL", "reference")
    run = nif_here("encode", coded.picture, tmp_path / "x.nif", "--json", "--no-compare")
    (said,) = run.objects
    assert said["effort"] == 1
    assert said["kernel"] == "reference"
    assert bpp_of_quality(100) * 0.9 < said["bpp"] <= bpp_of_quality(100)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("photo.png", "photo.png"), "photo.png is the input itself"),
        (("photo.png", "./photo.png"), "photo.png is the input itself"),
        (("photo.png", "other.png"), "other.png exists and is no .nif file"),
        (("photo.png", "photo.nif", "--no-clobber"), "photo.nif exists"),
        (("photo.png", "other.png", "photo.nif"), "3 names given"),
        (("photo.png", "-", "--json"), "both want stdout"),
        (("photo.png", "--bpp", "1", "--psnr", "30"), "--psnr and --bpp exclude each other"),
        (("photo.png", "--preset", "paper-120", "--effort", "3"), "exclude each other"),
        (("photo.png", "a/photo.png", "--output-dir", "d"), "would both be written to"),
        (("photo.png", "b.nif", "--output-dir", "d", "--checkpoint", "c"), "one input"),
        (("photo.png", "--bpp", "-1"), "bpp is -1.0; 0.0001 to 16.0 is accepted"),
        (("photo.png", "--preset", "paper-120", "--bpp", "1"), "has a fixed size"),
        (("photo.png", "--preset", "nonesuch"), "unknown preset 'nonesuch'; there are paper-120"),
        (("photo.png", "--bpp", "4", "--kernel", "nonesuch"), "unknown kernel 'nonesuch'"),
        (("photo.png", "--max-bytes", "10"), "10 bytes asked for a picture of 48x32"),
    ],
)
def test_usage_errors_say_what_is_wrong_and_write_nothing(
    coded: Coded,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("photo.png", "other.png"):
        shutil.copy(coded.picture, name)
    Path("photo.nif").write_bytes(b"")
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    run = nif_here("encode", *arguments)
    assert run.code == 2
    (line,) = run.stderr.splitlines()
    assert line.startswith("nif: error: ")
    assert message in line
    assert MAGIC not in run.stdout
    after = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    assert after == before


def test_force_overwrites_a_picture(coded: Coded, tmp_path: Path) -> None:
    other = tmp_path / "other.png"
    shutil.copy(coded.picture, other)
    run = nif_here(
        "encode", coded.picture, other, "--force", "--effort", 1, "--bpp", 4, "--no-compare"
    )
    assert run.code == 0
    assert other.read_bytes() == coded.file.read_bytes()
