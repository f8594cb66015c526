"""``nif compare``: any two pictures, .nif files among them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio

import nifcore
from tests.cli.conftest import HEIGHT, WIDTH, Coded
from tests.cli.program import nif_here


def save(path: Path, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def noise() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (20, 30, 4), np.uint8)


def test_a_picture_with_its_nif_file(coded: Coded, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    run = nif_here("compare", coded.picture, coded.file, "--json", "--picture", sheet)
    assert run.code == 0
    (said,) = run.objects
    assert said["schema_version"] == 1
    assert said["bytes"] == coded.file.stat().st_size
    assert said["original_bytes"] == coded.picture.stat().st_size
    assert said["bpp"] == pytest.approx(coded.said["bpp"])
    assert said["psnr_db"] == coded.said["psnr_db"]
    assert said["comparisons"] == coded.said["comparisons"]
    with Image.open(sheet) as image:
        assert image.width > 3 * WIDTH
        assert image.height > HEIGHT
        shown = np.asarray(image)[-HEIGHT:]
    with Image.open(coded.picture) as original:
        assert np.array_equal(shown[:, :WIDTH], np.asarray(original))
    gap = (image.width - 3 * WIDTH) // 2
    assert np.array_equal(shown[:, WIDTH + gap :][:, :WIDTH], nifcore.decode(coded.file))


def test_for_people(coded: Coded) -> None:
    lines = nif_here("compare", coded.picture, coded.file).text.splitlines()
    assert lines[0].split() == ["bytes", "bpp", "PSNR", "MS-SSIM"]
    assert lines[1].startswith(str(coded.file))
    assert f"{coded.said['psnr_db']:.2f} dB" in lines[1]
    assert lines[2].startswith("JPEG")
    assert lines[3].startswith("WebP")


def test_the_psnr_is_that_of_scikit_image(tmp_path: Path, noise: np.ndarray) -> None:
    a = save(tmp_path / "a.png", noise[..., :3])
    b = save(tmp_path / "b.png", noise[::-1, :, :3])
    (said,) = nif_here("compare", a, b, "--json", "--no-codecs").objects
    assert said["psnr_db"] == pytest.approx(
        peak_signal_noise_ratio(noise[..., :3], noise[::-1, :, :3])
    )
    assert said["comparisons"] == []


def test_identical_pictures_have_no_psnr(coded: Coded) -> None:
    (said,) = nif_here("compare", coded.file, coded.file, "--json", "--no-codecs").objects
    assert said["psnr_db"] is None
    text = nif_here("compare", coded.file, coded.file, "--no-codecs").text
    assert "identical" in text


def test_grey_and_alpha_are_brought_together(tmp_path: Path, noise: np.ndarray) -> None:
    grey = noise[..., 0]
    a = save(tmp_path / "a.png", grey)
    b = save(tmp_path / "b.png", noise)
    (said,) = nif_here("compare", a, b, "--json", "--no-codecs").objects
    assert said["channels"] == 4
    wanted = np.dstack([grey, grey, grey, np.full_like(grey, 255)])
    assert said["psnr_db"] == pytest.approx(peak_signal_noise_ratio(wanted, noise))


def test_other_sizes_cannot_be_compared(coded: Coded, tmp_path: Path, noise: np.ndarray) -> None:
    other = save(tmp_path / "b.png", noise)
    run = nif_here("compare", coded.picture, other)
    assert run.code == 2
    assert f"pictures of {WIDTH}x{HEIGHT} and 30x20" in run.stderr
