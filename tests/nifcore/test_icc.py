"""Colour management against the formulas themselves, with profiles written here byte by byte."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from nifcore.icc import UnusableProfile, describes, to_srgb
from nifcore.picture import read_picture

D50 = (0.9642, 1.0, 0.8249)
# Columns: the XYZ (D50) of each primary, from the two colour spaces' specifications.
SRGB = np.array(
    [[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]]
)
ADOBE_RGB = np.array(
    [[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]]
)


def fixed(*values: float) -> bytes:
    return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))


def profile(device: bytes, space: bytes, pcs: bytes, tags: dict[bytes, bytes]) -> bytes:
    """Return an ICC version 2.4 profile (ICC.1:2001-04)."""
    tags = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", 5) + b"test\0" + bytes(78),
        b"cprt": b"text" + bytes(4) + b"none\0",
        b"wtpt": b"XYZ " + bytes(4) + fixed(*D50),
        **tags,
    }
    table = struct.pack(">I", len(tags))
    body = b""
    start = 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        body += bytes(-len(body) % 4)
        table += name + struct.pack(">II", start + len(body), len(content))
        body += content
    header = struct.pack(
        ">I4xI4s4s4s6H4s",
        start + len(body),
        0x02400000,
        device,
        space,
        pcs,
        2020,
        1,
        1,
        0,
        0,
        0,
        b"acsp",
    )
    header += bytes(28) + fixed(*D50)
    return header.ljust(128, b"\0") + table + body


def gamma_curve(gamma: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256))


def rgb_profile(primaries: NDArray[np.float64], gamma: float) -> bytes:
    tags = {}
    for index, name in enumerate((b"r", b"g", b"b")):
        tags[name + b"XYZ"] = b"XYZ " + bytes(4) + fixed(*primaries[:, index])
        tags[name + b"TRC"] = gamma_curve(gamma)
    return profile(b"mntr", b"RGB ", b"XYZ ", tags)


def grey_profile(gamma: float) -> bytes:
    return profile(b"mntr", b"GRAY", b"XYZ ", {b"kTRC": gamma_curve(gamma)})


def srgb_encoded(linear: NDArray[np.float64]) -> NDArray[np.float64]:
    """IEC 61966-2-1, in levels 0 to 255."""
    linear = np.clip(linear, 0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def srgb_linear(levels: NDArray[np.float64]) -> NDArray[np.float64]:
    value = levels / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def lab(levels: NDArray[np.float64]) -> NDArray[np.float64]:
    """CIE L*a*b* (D50) of sRGB levels, shape (..., 3)."""
    xyz = srgb_linear(levels) @ SRGB.T / SRGB.sum(axis=1)
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack(
        [
            116 * f[..., 1] - 16,
            500 * (f[..., 0] - f[..., 1]),
            200 * (f[..., 1] - f[..., 2]),
        ],
        axis=-1,
    )


def cmyk_profile(corners: NDArray[np.float64]) -> bytes:
    """Return a printer profile: corners[c, m, y, k] is the sRGB colour of that mix of full inks."""
    encoded = lab(corners) * [255 / 100, 1, 1] + [0, 128, 128]
    ramp = bytes(range(256))
    table = (
        b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
        + 4 * ramp + encoded.round().astype(np.uint8).tobytes() + 3 * ramp
    )  # fmt: skip
    return profile(b"prtr", b"CMYK", b"Lab ", {b"A2B0": table})


def encoded(image: Image.Image, format: str, icc: bytes) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, icc_profile=icc, **({"lossless": True} if format == "WEBP" else {}))
    return buffer.getvalue()


@pytest.fixture
def colours() -> NDArray[np.uint8]:
    return np.random.default_rng(5).integers(0, 256, (24, 31, 3), dtype=np.uint8)


@pytest.fixture
def adobe_rgb() -> bytes:
    return rgb_profile(ADOBE_RGB, 563 / 256)


def adobe_rgb_as_srgb(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    xyz = (pixels / 255) ** (563 / 256) @ ADOBE_RGB.T
    return srgb_encoded(xyz @ np.linalg.inv(SRGB).T)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
def test_an_rgb_profile_is_converted_to_srgb(
    colours: NDArray[np.uint8], adobe_rgb: bytes, format: str
) -> None:
    picture = read_picture(encoded(Image.fromarray(colours), format, adobe_rgb))
    difference = picture.pixels - adobe_rgb_as_srgb(colours)
    assert np.abs(difference).max() <= 1.5
    assert np.abs(colours.astype(float) - picture.pixels).max() > 30
    assert picture.icc is None
    assert picture.notes == ("RGB converted to sRGB through the embedded ICC profile",)


def test_alpha_is_not_colour_managed(colours: NDArray[np.uint8], adobe_rgb: bytes) -> None:
    alpha = np.arange(24 * 31, dtype=np.uint16).reshape(24, 31, 1).astype(np.uint8)
    rgba = np.concatenate([colours, alpha], axis=2)
    picture = read_picture(encoded(Image.fromarray(rgba), "PNG", adobe_rgb))
    assert np.array_equal(picture.pixels[..., 3:], alpha)
    assert np.abs(picture.pixels[..., :3] - adobe_rgb_as_srgb(colours)).max() <= 1.5


@pytest.mark.parametrize("mode", ["L", "LA"])
def test_a_grey_profile_is_converted_and_stays_grey(mode: str) -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = Image.fromarray(grey)
    if mode == "LA":
        image = Image.merge("LA", (image, Image.fromarray(255 - grey)))
    picture = read_picture(encoded(image, "PNG", grey_profile(1.8)))
    assert picture.channels == len(mode)
    expected = srgb_encoded((grey / 255) ** 1.8)
    assert np.abs(picture.pixels[..., 0] - expected).max() <= 1.5
    if mode == "LA":
        assert np.array_equal(picture.pixels[..., 1], 255 - grey)


def test_a_grey_jpeg_with_an_rgb_profile_stays_grey(adobe_rgb: bytes) -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = Image.fromarray(grey)
    converted, changed = to_srgb(image, adobe_rgb)
    assert changed
    assert converted.mode == "L"
    expected = adobe_rgb_as_srgb(np.repeat(grey[..., None], 3, axis=2))[..., 1]
    assert np.abs(np.asarray(converted) - expected).max() <= 1.5


@pytest.mark.parametrize("gamma_of", ["built-in", "written"])
def test_a_profile_that_is_srgb_leaves_the_pixels_alone(
    colours: NDArray[np.uint8], gamma_of: str
) -> None:
    if gamma_of == "built-in":
        icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    else:
        # The sRGB curve as a table of 1024 entries, not by Pillow's own formula.
        table = srgb_linear(np.linspace(0, 255, 1024))
        words = (table * 65535).round().astype(">u2").tobytes()
        curve = b"curv" + bytes(4) + struct.pack(">I", 1024) + words
        tags = {}
        for index, name in enumerate((b"r", b"g", b"b")):
            tags[name + b"XYZ"] = b"XYZ " + bytes(4) + fixed(*SRGB[:, index])
            tags[name + b"TRC"] = curve
        icc = profile(b"mntr", b"RGB ", b"XYZ ", tags)
    picture = read_picture(encoded(Image.fromarray(colours), "PNG", icc))
    assert np.array_equal(picture.pixels, colours)
    assert picture.notes == ()


@pytest.mark.parametrize("format", ["TIFF", "JPEG"])
def test_cmyk_goes_through_its_profile(format: str) -> None:
    inks = np.indices((2, 2, 2, 2)).reshape(4, -1).T
    paper = 255 - inks[:, :3] @ np.array([[190, 60, 40], [30, 180, 90], [10, 30, 200]])
    corners = np.clip(paper, 20, 255) * (1 - inks[:, 3:])
    icc = cmyk_profile(corners.reshape(2, 2, 2, 2, 3).astype(float))
    # Each mix of full inks as a 16x16 square, so that JPEG keeps them.
    squares = np.repeat(np.repeat(inks.reshape(4, 4, 4), 16, axis=0), 16, axis=1) * 255
    image = Image.frombytes("CMYK", (64, 64), squares.astype(np.uint8).tobytes())
    options = {"quality": 100, "subsampling": 0} if format == "JPEG" else {}
    buffer = io.BytesIO()
    image.save(buffer, format, icc_profile=icc, **options)
    picture = read_picture(buffer.getvalue(), keep_icc=True)
    seen = picture.pixels[8::16, 8::16].reshape(16, 3)
    assert np.abs(seen - corners).max() <= 4
    assert picture.icc is None
    assert "CMYK converted to sRGB through the embedded ICC profile" in picture.notes


def test_lab_without_a_profile_becomes_rgb() -> None:
    levels = np.array([[[200, 40, 60], [90, 160, 110], [128, 128, 128], [250, 250, 250]]], float)
    values = lab(levels)
    stored = np.stack([values[..., 0] * 2.55, values[..., 1], values[..., 2]], axis=-1)
    # a* and b* are signed bytes, in TIFF and for frombytes.
    signed = stored.round().astype(np.int16).astype(np.uint8)
    buffer = io.BytesIO()
    Image.frombytes("LAB", (4, 1), signed.tobytes()).save(buffer, "TIFF")
    picture = read_picture(buffer.getvalue())
    assert np.abs(picture.pixels - levels).max() <= 3
    assert picture.notes == ("LAB converted to RGB without a colour profile",)


def test_keep_icc_leaves_the_pixels_and_returns_the_profile(
    colours: NDArray[np.uint8], adobe_rgb: bytes
) -> None:
    picture = read_picture(encoded(Image.fromarray(colours), "PNG", adobe_rgb), keep_icc=True)
    assert np.array_equal(picture.pixels, colours)
    assert picture.icc == adobe_rgb
    assert picture.notes == ()


def test_keep_icc_keeps_no_profile_of_another_kind_of_pixel(adobe_rgb: bytes) -> None:
    image = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    image.info["icc_profile"] = adobe_rgb
    picture = read_picture(image, keep_icc=True)
    assert picture.icc is None
    assert picture.notes == ("L converted to sRGB through the embedded ICC profile",)
    assert describes(adobe_rgb, "RGBA")
    assert not describes(adobe_rgb, "LA")
    assert describes(grey_profile(1.0), "LA")


def test_sixteen_bit_grey_keeps_its_profile() -> None:
    grey = np.arange(0, 65536, 256, dtype=np.uint16).reshape(16, 16)
    picture = read_picture(encoded(Image.fromarray(grey), "PNG", grey_profile(1.8)))
    assert np.abs(picture.pixels[..., 0] - srgb_encoded((grey / 65535) ** 1.8)).max() <= 2


@pytest.mark.parametrize("damage", ["garbage", "truncated", "of CMYK"])
def test_a_profile_that_cannot_be_used_is_ignored_and_noted(
    colours: NDArray[np.uint8], adobe_rgb: bytes, damage: str
) -> None:
    bad = {
        "garbage": b"not a profile at all" * 20,
        "truncated": adobe_rgb[:140],
        "of CMYK": cmyk_profile(np.zeros((2, 2, 2, 2, 3))),
    }[damage]
    image = Image.fromarray(colours)
    with pytest.raises(UnusableProfile):
        to_srgb(image, bad)
    image.info["icc_profile"] = bad
    picture = read_picture(image)
    assert np.array_equal(picture.pixels, colours)
    assert len(picture.notes) == 1
    assert picture.notes[0].startswith("embedded ICC profile ignored: ")
