from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from skimage.data import astronaut
from skimage.metrics import peak_signal_noise_ratio

from nifcore import compare
from nifcore.compare import Comparison, available_codecs, equal_size, side_by_side
from nifcore.errors import UsageError
from nifcore.metrics import ms_ssim_pictures

CODECS = available_codecs()


@pytest.fixture(scope="module")
def photo() -> NDArray[np.uint8]:
    pixels = np.asarray(Image.fromarray(astronaut()).resize((192, 170), Image.Resampling.LANCZOS))
    return np.ascontiguousarray(pixels)


def options_of(result: Comparison) -> dict[str, Any]:
    """Pillow's parameters for what a comparison says it did."""
    chroma = result.settings.rsplit(" ", 1)[1]
    if result.codec == "JPEG":
        sampling = {} if chroma == "grey" else {"subsampling": {"4:2:0": 2, "4:4:4": 0}[chroma]}
        return {"optimize": True, "progressive": True, **sampling}
    if result.codec == "WEBP":
        return {"method": 6, "exact": True}
    return {"speed": 6, "subsampling": chroma}


def coded(image: Image.Image, codec: str, quality: int, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, codec, quality=quality, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("nbytes", [1500, 2500, 5200, 12_000])
def test_the_result_is_the_highest_quality_that_fits(
    photo: NDArray[np.uint8], codec: str, nbytes: int
) -> None:
    (result,) = equal_size(photo, nbytes, [codec])
    image = Image.fromarray(photo)
    options = options_of(result)
    data = coded(image, codec, result.quality, **options)
    assert len(data) == result.bytes <= nbytes
    assert len(coded(image, codec, result.quality + 1, **options)) > nbytes
    assert not result.larger
    assert result.codec == codec
    assert result.bpp == pytest.approx(8 * len(data) / (192 * 170))
    decoded = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert result.psnr_db == pytest.approx(peak_signal_noise_ratio(photo, decoded))
    assert result.ms_ssim == ms_ssim_pictures(photo, decoded)


def test_jpeg_takes_the_better_chroma_subsampling(photo: NDArray[np.uint8]) -> None:
    image = Image.fromarray(photo)
    settings = set()
    for nbytes in (2000, 25_000):
        (result,) = equal_size(photo, nbytes, ["JPEG"])
        settings.add(result.settings)
        for subsampling in (0, 2):
            fitting = [
                data
                for quality in range(1, 101)
                if len(
                    data := coded(
                        image, "JPEG", quality,
                        optimize=True, progressive=True, subsampling=subsampling,
                    )
                )
                <= nbytes
            ]  # fmt: skip
            decoded = np.asarray(Image.open(io.BytesIO(max(fitting, key=len))))
            assert result.psnr_db >= peak_signal_noise_ratio(photo, decoded)
    assert settings == {"progressive, 4:2:0", "progressive, 4:4:4"}


def test_more_bytes_give_a_nearer_picture(photo: NDArray[np.uint8]) -> None:
    few, many = (equal_size(photo, nbytes) for nbytes in (2000, 8000))
    assert [result.codec for result in few] == list(CODECS)
    assert all(a.psnr_db < b.psnr_db for a, b in zip(few, many, strict=True))


def test_what_cannot_be_so_small_is_marked(photo: NDArray[np.uint8]) -> None:
    for result in equal_size(photo, 60):
        assert result.larger
        assert result.bytes > 60
        assert result.quality == (1 if result.codec == "JPEG" else 0)
        options = options_of(result)
        data = coded(Image.fromarray(photo), result.codec, result.quality, **options)
        assert len(data) == result.bytes


def test_room_to_spare_gives_the_highest_quality(photo: NDArray[np.uint8]) -> None:
    for result in equal_size(photo, 10_000_000):
        assert result.quality == 100
        assert not result.larger


@pytest.mark.parametrize("shape", ["grey", "grey, no axis", "grey + alpha", "alpha"])
def test_grey_and_alpha(photo: NDArray[np.uint8], shape: str) -> None:
    y, x = np.mgrid[0:170, 0:192]
    alpha = np.clip(255 - ((y - 85) ** 2 + (x - 96) ** 2) // 40, 0, 255).astype(np.uint8)
    pixels = {
        "grey": photo[..., :1],
        "grey, no axis": photo[..., 0],
        "grey + alpha": np.stack([photo[..., 0], alpha], axis=-1),
        "alpha": np.concatenate([photo, alpha[..., None]], axis=-1),
    }[shape]
    for result in equal_size(pixels, 9000):
        assert result.bytes <= 9000
        assert 27 < result.psnr_db < 60
        assert result.ms_ssim is not None
        assert result.ms_ssim > 0.9
    if shape.startswith("grey,"):
        (jpeg,) = equal_size(pixels, 9000, ["JPEG"])
        data = coded(Image.fromarray(pixels), "JPEG", jpeg.quality, optimize=True, progressive=True)
        assert len(data) == jpeg.bytes


def test_jpeg_of_a_transparent_picture_is_measured_on_white(photo: NDArray[np.uint8]) -> None:
    pixels = np.concatenate([photo, np.zeros_like(photo[..., :1])], axis=-1)
    (result,) = equal_size(pixels, 4000, ["JPEG"])
    assert result.psnr_db == math.inf


def test_a_tiny_picture_has_no_ms_ssim() -> None:
    for result in equal_size(np.zeros((8, 8, 3), np.uint8), 5000):
        assert result.ms_ssim is None
        assert result.psnr_db > 40


@pytest.mark.skipif("WEBP" not in CODECS, reason="this Pillow cannot write WebP")
def test_a_codec_that_cannot_hold_the_size_is_left_out() -> None:
    wide = np.zeros((1, 20_000, 3), np.uint8)
    assert [result.codec for result in equal_size(wide, 9000, ["WEBP", "JPEG"])] == ["JPEG"]


def test_large_pictures_start_from_a_sample(
    photo: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = equal_size(photo, 4000, ["JPEG"])
    seen: list[tuple[int, int]] = []
    encode = compare._encoded

    def counted(image: Image.Image, *rest: Any) -> bytes:
        seen.append(image.size)
        return encode(image, *rest)

    monkeypatch.setattr(compare, "_LARGE", 100)
    monkeypatch.setattr(compare, "_SAMPLE_TILE", 30)
    monkeypatch.setattr(compare, "_encoded", counted)
    assert equal_size(photo, 4000, ["JPEG"]) == expected
    assert {(120, 120), (192, 170)} == set(seen)
    # Narrower than a tile: one tile of what there is.
    assert compare._sample(Image.fromarray(photo[:10, :70])).size == (60, 10)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((np.zeros((8, 8, 3), np.uint8), 100, ["PNG"]), "'PNG' is not available; accepted: JPEG"),
        ((np.zeros((8, 8, 3), np.uint8), 0), "0 bytes was asked for"),
        ((np.zeros((8, 8, 3), np.float32), 100), "float32"),
        ((np.zeros((8, 8, 5), np.uint8), 100), "5 channels"),
        ((np.zeros((0, 8, 3), np.uint8), 100), r"\(0, 8, 3\)"),
    ],
)
def test_wrong_requests(arguments: tuple[Any, ...], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        equal_size(*arguments)


# --- side by side ------------------------------------------------------------------------------


def panels(sheet: Image.Image, height: int, width: int) -> list[NDArray[np.uint8]]:
    pixels = np.asarray(sheet)[-height:]
    gap = (sheet.width - 3 * width) // 2
    return [pixels[:, i * (width + gap) : i * (width + gap) + width] for i in range(3)]


@pytest.mark.parametrize("channels", [1, 3])
def test_side_by_side_holds_both_pictures_and_their_difference(
    photo: NDArray[np.uint8], channels: int
) -> None:
    original = photo[..., :channels]
    decoded = np.clip(original.astype(int) + 9 - np.arange(192)[:, None] // 8, 0, 255)
    decoded = decoded.astype(np.uint8)
    sheet = side_by_side(original, decoded, ("before", "after"), gain=8)
    left, middle, right = panels(sheet, 170, 192)
    difference = np.minimum(8 * np.abs(original.astype(int) - decoded), 255)
    for panel, expected in ((left, original), (middle, decoded), (right, difference)):
        assert np.array_equal(panel, np.broadcast_to(expected, (170, 192, 3)))
    caption = np.asarray(sheet)[:-170]
    assert (caption < 128).any()
    assert (caption[0] == 255).all()


def test_side_by_side_shows_alpha_on_white(photo: NDArray[np.uint8]) -> None:
    hidden = np.concatenate([photo, np.zeros_like(photo[..., :1])], axis=-1)
    left, middle, right = panels(side_by_side(hidden, hidden), 170, 192)
    assert (left == 255).all()
    assert (middle == 255).all()
    assert (right == 0).all()


def test_side_by_side_of_what_cannot_be_compared(photo: NDArray[np.uint8]) -> None:
    with pytest.raises(UsageError, match="two equal shapes"):
        side_by_side(photo, photo[1:])
    for gain in (0, -1, math.nan):
        with pytest.raises(UsageError, match="accepted: a positive number"):
            side_by_side(photo, photo, gain=gain)
