"""A picture held against what the classic codecs make of it in as many bytes."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from nifcore.errors import UsageError
from nifcore.metrics import ms_ssim_pictures, psnr
from nifcore.picture import flattened

CODECS = ("JPEG", "WEBP", "AVIF")
"""Every codec that is known here; AVIF needs a Pillow that was built with it."""

# The largest sides: 14 bits in WebP, 16 in JPEG and AVIF.
_MAX_SIDE = {"JPEG": 65_535, "WEBP": 16_383, "AVIF": 65_535}
_LOWEST_QUALITY = {"JPEG": 1, "WEBP": 0, "AVIF": 0}
_HIGHEST_QUALITY = 100

# Above this many pixels the search begins at a guess from a sample of the picture.
_LARGE = 4_000_000
_SAMPLE_TILE = 256
_SAMPLE_TILES = 4

_LN_BYTES_PER_QUALITY = 0.03
"""How fast files grow, roughly and for all three codecs; only the length of the search needs it."""


@dataclass(frozen=True)
class Comparison:
    """What one codec made of a picture.

    Attributes:
        codec: Pillow's name of the format.
        quality: the codec's own quality setting, 0 (JPEG: 1) to 100.
        settings: the codec's other settings, for people.
        bytes: size of the file.
        bpp: bits per pixel of the file.
        psnr_db: over all channels, inf if lossless. The original is composited on white first
            where the codec has no alpha.
        ms_ssim: likewise; None for pictures with a side below 161.
        larger: True if even the lowest quality takes more bytes than were allowed.
    """

    codec: str
    quality: int
    settings: str
    bytes: int
    bpp: float
    psnr_db: float
    ms_ssim: float | None
    larger: bool = False


@dataclass(frozen=True)
class _Coded:
    quality: int
    settings: str
    data: bytes
    larger: bool


def available_codecs() -> tuple[str, ...]:
    """Return those of :data:`CODECS` that this Pillow can write."""
    Image.init()
    return tuple(codec for codec in CODECS if codec in Image.SAVE)


def equal_size(
    pixels: NDArray[np.uint8],
    nbytes: int,
    formats: Sequence[str] | None = None,
) -> list[Comparison]:
    """Code a picture with classic codecs into no more than ``nbytes`` bytes each.

    Each codec gets the highest quality whose file still fits, and settings that favour it: JPEG
    progressive with optimised tables, with and without chroma subsampling, whichever has the
    higher PSNR; WebP lossy with its slowest method; AVIF at speed 6 without chroma subsampling
    (better in RGB than with it at almost every rate). Sizes are taken to grow with quality, which
    holds but for single steps.

    Takes 4 to 8 encodings per codec (JPEG twice as many): for a 768x512 picture on one core about
    0.1 s for JPEG, 0.4 s for WebP, 1.5 s for AVIF, and 0.1 s to measure each; for 14 megapixels 8,
    20 and 50 s in all.

    Args:
        pixels: uint8 (height, width, channels) with 1 to 4 channels, or (height, width).
        nbytes: the most bytes a file may have; positive.
        formats: codecs to try, of :data:`CODECS`; None means all that are available.

    Returns:
        One comparison per codec, in the order asked for. A codec whose format cannot hold a
        picture this large is left out. If even the lowest quality takes more than ``nbytes``,
        that one is returned, marked ``larger``.

    Raises:
        UsageError: an unknown or missing codec, a size below 1, or pixels of another kind.
    """
    available = available_codecs()
    asked = available if formats is None else tuple(formats)
    for codec in asked:
        if codec not in available:
            raise UsageError(f"codec {codec!r} is not available; accepted: {', '.join(available)}")
    if nbytes < 1:
        raise UsageError(f"a file of {nbytes} bytes was asked for; at least 1 is accepted")
    image = _image_of(pixels)
    results = []
    for codec in asked:
        if max(image.size) <= _MAX_SIDE[codec]:
            held = flattened(image) if codec == "JPEG" and image.mode in ("LA", "RGBA") else image
            results.append(_best(held, codec, nbytes))
    return results


def _image_of(pixels: NDArray[np.uint8]) -> Image.Image:
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or pixels.size == 0:
        raise UsageError(
            f"pixels of dtype {pixels.dtype} and shape {pixels.shape}; accepted: uint8 (height, "
            "width, channels)"
        )
    if pixels.ndim == 3 and pixels.shape[2] not in (1, 2, 3, 4):
        raise UsageError(f"pixels of {pixels.shape[2]} channels; accepted: 1 to 4")
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    return Image.fromarray(np.ascontiguousarray(pixels))


# --- coding ------------------------------------------------------------------------------------


def _best(image: Image.Image, codec: str, nbytes: int) -> Comparison:
    original = np.asarray(image)
    candidates = []
    for settings, options in _variants(image, codec):
        coded = _fit(image, codec, settings, options, nbytes)
        decoded = np.asarray(_decoded(coded.data, codec, image.mode))
        candidates.append((not coded.larger, psnr(original, decoded), coded, decoded))
    fits, quality_db, coded, decoded = max(candidates, key=lambda candidate: candidate[:2])
    return Comparison(
        codec=codec,
        quality=coded.quality,
        settings=coded.settings,
        bytes=len(coded.data),
        bpp=8 * len(coded.data) / (image.width * image.height),
        psnr_db=quality_db,
        ms_ssim=ms_ssim_pictures(original, decoded),
        larger=not fits,
    )


def _variants(image: Image.Image, codec: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the settings to try besides quality, each with a description."""
    grey = image.mode in ("L", "LA")
    if codec == "JPEG":
        options = {"optimize": True, "progressive": True}
        if grey:
            return [("progressive, grey", options)]
        return [
            ("progressive, 4:2:0", options | {"subsampling": 2}),
            ("progressive, 4:4:4", options | {"subsampling": 0}),
        ]
    if codec == "WEBP":
        return [("method 6, 4:2:0", {"method": 6, "exact": True})]
    subsampling = "4:0:0" if grey else "4:4:4"
    return [(f"speed 6, {subsampling}", {"speed": 6, "subsampling": subsampling})]


def _fit(
    image: Image.Image, codec: str, settings: str, options: dict[str, Any], nbytes: int
) -> _Coded:
    def encode(quality: int) -> bytes:
        return _encoded(image, codec, quality, options)

    guess = 50
    if image.width * image.height > _LARGE:
        sample = _sample(image)
        share = (sample.width * sample.height) / (image.width * image.height)
        guess, _, _ = _search(
            lambda quality: _encoded(sample, codec, quality, options),
            _LOWEST_QUALITY[codec],
            max(1, round(nbytes * share)),
            guess,
        )
    quality, data, larger = _search(encode, _LOWEST_QUALITY[codec], nbytes, guess)
    return _Coded(quality, settings, data, larger)


def _search(
    encode: Callable[[int], bytes], lowest: int, nbytes: int, guess: int
) -> tuple[int, bytes, bool]:
    """Return the highest quality whose file fits, that file, and whether none fits.

    Keeps a quality that fits and one that does not, and closes in: at first by assuming that the
    logarithm of the size grows evenly, then by halving.
    """
    fits, too_large = lowest - 1, _HIGHEST_QUALITY + 1
    sizes: dict[int, int] = {}
    best = b""
    smallest = b""
    quality = guess
    while too_large - fits > 1:
        if len(sizes) >= 5:
            quality = (fits + too_large) // 2
        quality = min(max(quality, fits + 1), too_large - 1)
        data = encode(quality)
        sizes[quality] = len(data)
        if len(data) <= nbytes:
            fits, best = quality, data
        else:
            too_large, smallest = quality, data
        quality = _estimate(sizes, fits, too_large, quality, nbytes)
    if fits < lowest:
        return lowest, smallest, True
    return fits, best, False


def _estimate(sizes: dict[int, int], fits: int, too_large: int, last: int, nbytes: int) -> int:
    if fits in sizes and too_large in sizes:
        low, high = math.log(sizes[fits]), math.log(sizes[too_large])
        if high > low:
            share = (math.log(nbytes) - low) / (high - low)
            return fits + round(share * (too_large - fits))
        return (fits + too_large) // 2
    return last + round(math.log(nbytes / sizes[last]) / _LN_BYTES_PER_QUALITY)


def _encoded(image: Image.Image, codec: str, quality: int, options: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    if codec == "WEBP":
        options = options | {"alpha_quality": quality}
    if codec != "JPEG" and image.mode in ("L", "LA"):
        image = image.convert("RGB" if image.mode == "L" else "RGBA")
    image.save(buffer, codec, quality=quality, **options)
    return buffer.getvalue()


def _decoded(data: bytes, codec: str, mode: str) -> Image.Image:
    # The format's own reader: Image.open would warn of a large picture, which we made ourselves.
    reader, _ = Image.OPEN[codec]
    return reader(io.BytesIO(data), "").convert(mode)


def _sample(image: Image.Image) -> Image.Image:
    """Return a mosaic of evenly spread tiles, one megapixel at most."""
    columns = min(_SAMPLE_TILES, image.width // _SAMPLE_TILE) or 1
    rows = min(_SAMPLE_TILES, image.height // _SAMPLE_TILE) or 1
    width, height = min(_SAMPLE_TILE, image.width), min(_SAMPLE_TILE, image.height)
    mosaic = Image.new(image.mode, (columns * width, rows * height))
    for row in range(rows):
        for column in range(columns):
            left = (2 * column + 1) * image.width // (2 * columns) - width // 2
            top = (2 * row + 1) * image.height // (2 * rows) - height // 2
            tile = image.crop((left, top, left + width, top + height))
            mosaic.paste(tile, (column * width, row * height))
    return mosaic


# --- looking -----------------------------------------------------------------------------------


def side_by_side(
    original: NDArray[np.uint8],
    decoded: NDArray[np.uint8],
    titles: tuple[str, str] = ("original", "decoded"),
    gain: float = 4.0,
) -> Image.Image:
    """Return original, decoded and their amplified difference beside each other, with captions.

    Args:
        original, decoded: uint8 arrays of equal shape, (height, width) or (height, width, 1..4);
            pictures with alpha are shown on white.
        titles: captions of the first two; the third says how the difference was amplified.
        gain: what the absolute difference of each channel is multiplied by; positive.

    Returns:
        An RGB image; each picture keeps its pixels as they are.

    Raises:
        UsageError: shapes or dtypes are of another kind, or the gain is not positive.
    """
    if original.shape != decoded.shape:
        raise UsageError(
            f"pictures of shape {original.shape} and {decoded.shape} cannot be set side by side; "
            "accepted: two equal shapes"
        )
    if not gain > 0:
        raise UsageError(f"gain is {gain}; accepted: a positive number")
    left, middle = _opaque(_image_of(original)), _opaque(_image_of(decoded))
    difference = np.abs(np.asarray(left).astype(np.int16) - np.asarray(middle))
    right = Image.fromarray(np.minimum(difference * gain, 255).astype(np.uint8))

    width, height = left.size
    gap = max(2, round(width / 100))
    font_size = min(max(10, width // 32), 48)
    font = ImageFont.load_default(font_size)
    strip = 2 * font_size
    sheet = Image.new("RGB", (3 * width + 2 * gap, height + strip), "white")
    draw = ImageDraw.Draw(sheet)
    captions = (*titles, f"difference x {gain:g}")
    for index, (picture, caption) in enumerate(zip((left, middle, right), captions, strict=True)):
        x = index * (width + gap)
        sheet.paste(picture, (x, strip))
        draw.text((x + width / 2, strip / 2), caption, fill="black", font=font, anchor="mm")
    return sheet


def _opaque(image: Image.Image) -> Image.Image:
    return (flattened(image) if image.mode in ("LA", "RGBA") else image).convert("RGB")
