"""How complexity divides a picture, against what JPEG makes of the parts."""

from __future__ import annotations

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from skimage import data as photographs

from nifcore.complexity import Complexity
from nifcore.tiling import boxes_of, by_area, cuts_into

Pixels = NDArray[np.uint8]


def half_flat(width: int = 512, height: int = 256) -> Pixels:
    """Return a picture whose left half is one colour and whose right half is noise."""
    pixels = np.full((height, width, 3), 90, np.uint8)
    noise = np.random.default_rng(0).integers(0, 255, (height, width // 2, 3))
    pixels[:, width // 2 :] = noise
    return pixels


def jpeg_bytes(pixels: Pixels) -> int:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "JPEG", quality=40, optimize=True)
    return len(buffer.getvalue()) - 600  # tables and header


def test_the_busy_half_gets_most_tiles() -> None:
    found = Complexity(half_flat(), 512 * 256)
    at, is_horizontal = found.divide((0, 0, 512, 256), 2, 0.5)
    assert not is_horizontal
    assert abs(at - 384) < 8, "through the middle of the noise"
    upright = Complexity(np.ascontiguousarray(half_flat().swapaxes(0, 1)), 512 * 256)
    assert upright.divide((0, 0, 256, 512), 2, 0.5) == (at, True)


def test_a_share_is_a_share_of_the_part_that_is_cut() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (256, 512, 3)).astype(np.uint8)
    found = Complexity(noise, 2 * 512 * 256)
    for x, width, share in ((0, 512, 0.5), (128, 384, 1 / 3), (64, 320, 0.75)):
        at, _ = found.divide((x, 0, width, 256), 2, share)
        assert abs(at - share * width) < 4


@pytest.mark.parametrize("photograph", ["astronaut", "coffee", "chelsea"])
def test_tiles_of_a_photograph_take_jpeg_more_equal_bytes_than_equal_areas_do(
    photograph: str,
) -> None:
    pixels: Pixels = getattr(photographs, photograph)()
    height, width = pixels.shape[:2]
    found = Complexity(pixels, 0.5 * width * height)

    def spread(divide: object) -> float:
        cuts = cuts_into(width, height, 4, divide)  # type: ignore[arg-type]
        sizes = [
            jpeg_bytes(pixels[y : y + h, x : x + w]) for x, y, w, h in boxes_of(width, height, cuts)
        ]
        return max(sizes) / min(sizes)

    assert spread(found.divide) < 1.35
    assert spread(found.divide) < spread(by_area)


def test_detail_counts_by_the_rate_it_is_seen_at() -> None:
    """At a low rate faint noise is nothing beside a few strong edges; at a high one it is most."""
    pixels = np.full((256, 512, 1), 128, np.int64)
    pixels[:, :256] += np.random.default_rng(0).integers(-6, 7, (256, 256, 1))
    pixels[:, 256:][:, ::32] = 250
    low, high = (
        Complexity(pixels.astype(np.uint8), bpp * 512 * 256).divide((0, 0, 512, 256), 2, 0.5)[0]
        for bpp in (0.05, 3.0)
    )
    assert low > 256 > high


def test_no_part_is_a_sliver() -> None:
    pixels = np.zeros((64, 1024, 3), np.uint8)
    pixels[:, -8:] = np.random.default_rng(0).integers(0, 255, (64, 8, 3))
    at, _ = Complexity(pixels, 3000).divide((0, 0, 1024, 64), 2, 0.5)
    assert at == 1024 - 128


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 9, 2), (8, 8, 3), (17, 5, 4), (9, 4000, 3)])
def test_any_size_and_any_channels(shape: tuple[int, int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)
    height, width = shape[:2]
    cuts = cuts_into(width, height, 3, Complexity(pixels, 100).divide)
    assert len(boxes_of(width, height, cuts)) == min(3, width * height)


def test_a_large_picture_is_looked_at_in_places_only() -> None:
    """The same answer as from every block, up to two cells."""
    pixels = np.repeat(np.repeat(half_flat(), 10, 0), 10, 1)
    pixels[:, 2560:] = np.random.default_rng(1).integers(0, 255, (2560, 2560, 3))
    found = Complexity(pixels, 0.5 * 2560 * 5120)
    assert abs(found.divide((0, 0, 5120, 2560), 2, 0.5)[0] - 3840) < 48
