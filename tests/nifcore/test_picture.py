from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import textwrap
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageFile

from nifcore.errors import (
    InputError,
    LimitExceeded,
    NifError,
    NotAnImage,
    OutputError,
    UnsupportedImage,
    UsageError,
)
from nifcore.limits import Limits
from nifcore.picture import FORMATS, Picture, flattened, read_picture, write_picture

LOSSLESS = ["PNG", "TIFF", "BMP", "PPM", "QOI", "PCX", "SGI", "WEBP", "JPEG2000"]
LOSSY = ["JPEG", "GIF", "AVIF"]


def supported(format: str) -> bool:
    Image.init()
    return format in Image.SAVE


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    if not supported(format):
        pytest.skip(f"this Pillow cannot write {format}")
    buffer = io.BytesIO()
    if format == "WEBP":
        options = {"lossless": True, "exact": True, **options}
    image.save(buffer, format, **options)
    return buffer.getvalue()


@pytest.fixture
def colours() -> NDArray[np.uint8]:
    """A smooth but unsymmetric 40x27 picture, so that no flip or swap goes unseen."""
    y, x = np.mgrid[0:27, 0:40]
    planes = [4 * y + x, 255 - 5 * x, 3 * x + 2 * y + 10 * np.sin(y)]
    return np.stack(planes, axis=-1).clip(0, 255).astype(np.uint8)


@pytest.fixture
def photo(colours: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(colours)


# --- what is read ------------------------------------------------------------------------------


@pytest.mark.parametrize("format", LOSSLESS)
def test_lossless_formats_give_exactly_their_pixels(
    colours: NDArray[np.uint8], photo: Image.Image, format: str
) -> None:
    picture = read_picture(encoded(photo, format))
    assert np.array_equal(picture.pixels, colours)
    assert picture.pixels.dtype == np.uint8
    assert picture.pixels.flags.c_contiguous
    assert picture.pixels.flags.writeable
    assert (picture.width, picture.height, picture.channels) == (40, 27, 3)
    assert picture.source_format == format
    assert picture.icc is None
    assert picture.notes == ()


@pytest.mark.parametrize("format", LOSSY)
def test_lossy_formats_give_nearly_their_pixels(
    colours: NDArray[np.uint8], photo: Image.Image, format: str
) -> None:
    options = {"subsampling": "4:4:4"} if format == "AVIF" else {}
    picture = read_picture(encoded(photo, format, **options))
    assert np.abs(picture.pixels.astype(int) - colours).mean() < 8
    assert picture.source_format == format


@pytest.mark.parametrize("format", ["PNG", "TIFF", "BMP", "PPM", "PCX", "SGI", "JPEG2000"])
def test_grey_stays_one_channel(colours: NDArray[np.uint8], format: str) -> None:
    grey = colours[..., 0]
    picture = read_picture(encoded(Image.fromarray(grey), format))
    assert np.array_equal(picture.pixels, grey[..., None])


@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP", "QOI", "SGI", "JPEG2000"])
def test_alpha_is_the_fourth_channel(colours: NDArray[np.uint8], format: str) -> None:
    rgba = np.concatenate([colours, 255 - colours[..., :1]], axis=2)
    picture = read_picture(encoded(Image.fromarray(rgba), format))
    assert np.array_equal(picture.pixels, rgba)
    assert picture.notes == ()


@pytest.mark.parametrize("format", ["PNG", "TIFF", "JPEG2000"])
def test_grey_with_alpha(colours: NDArray[np.uint8], format: str) -> None:
    both = np.ascontiguousarray(colours[..., :2])
    picture = read_picture(encoded(Image.fromarray(both), format))
    assert np.array_equal(picture.pixels, both)


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_fully_opaque_alpha_is_dropped_and_noted(photo: Image.Image, mode: str) -> None:
    expected = np.asarray(photo.convert(mode[:-1])).reshape(27, 40, -1)
    for source in (encoded(photo.convert(mode), "PNG"), np.asarray(photo.convert(mode))):
        picture = read_picture(source)
        assert np.array_equal(picture.pixels, expected)
        assert picture.notes == ("fully opaque alpha dropped",)


def test_every_kind_of_source_gives_the_same_picture(
    tmp_path: Path, colours: NDArray[np.uint8], photo: Image.Image
) -> None:
    data = encoded(photo, "PNG")
    path = tmp_path / "photo.png"
    path.write_bytes(data)
    with path.open("rb") as file, Image.open(path) as lazy:
        sources = [
            path, str(path), data, bytearray(data), memoryview(data), file, io.BytesIO(data),
            lazy, photo, colours,
        ]  # fmt: skip
        for source in sources:
            assert np.array_equal(read_picture(source).pixels, colours), type(source)


def test_arrays_are_copied_whatever_their_memory_order(colours: NDArray[np.uint8]) -> None:
    flipped = colours[::-1, :, ::-1]
    before = flipped.copy()
    picture = read_picture(flipped)
    colours[:] = 0
    assert np.array_equal(picture.pixels, before)
    assert read_picture(before[..., 0]).pixels.shape == (27, 40, 1)


def test_a_pillow_image_of_the_caller_is_left_as_it_was(photo: Image.Image) -> None:
    exif = photo.getexif()
    exif[0x0112] = 6
    photo.info["transparency"] = (1, 2, 3)
    before = (photo.mode, photo.size, photo.tobytes(), dict(photo.info))
    read_picture(photo)
    assert (photo.mode, photo.size, photo.tobytes(), dict(photo.info)) == before
    assert photo.getexif()[0x0112] == 6


def test_a_file_object_is_read_from_where_it_stands(photo: Image.Image) -> None:
    file = io.BytesIO(b"skipped" + encoded(photo, "PNG"))
    file.seek(7)
    assert read_picture(file).width == 40


def test_a_file_object_that_returns_little_at_a_time(photo: Image.Image) -> None:
    class Trickle(io.RawIOBase):
        def __init__(self, data: bytes) -> None:
            self.source = io.BytesIO(data)

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
            part = self.source.read(min(100, len(buffer)))
            buffer[: len(part)] = part
            return len(part)

    assert read_picture(Trickle(encoded(photo, "PNG"))).width == 40


def test_files_opened_by_path_are_closed(tmp_path: Path, photo: Image.Image) -> None:
    good = tmp_path / "good.png"
    photo.save(good)
    bad = tmp_path / "bad.png"
    bad.write_bytes(good.read_bytes()[:100])
    descriptors = Path("/proc/self/fd")
    if not descriptors.exists():
        pytest.skip("this system does not list its open files")
    before = len(list(descriptors.iterdir()))
    read_picture(good)
    with pytest.raises(NotAnImage):
        read_picture(bad)
    assert len(list(descriptors.iterdir())) == before


# --- orientation -------------------------------------------------------------------------------

# How a picture that is stored with each orientation is to be shown (EXIF 2.32, section 4.6.4 A).
SHOWN: dict[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_once(
    colours: NDArray[np.uint8], photo: Image.Image, orientation: int, format: str
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = read_picture(encoded(photo, format, exif=exif))
    assert np.array_equal(picture.pixels, SHOWN[orientation](colours))
    if format != "TIFF":  # Pillow itself turns a TIFF while decoding
        turned = (f"EXIF orientation {orientation} applied",) if orientation > 1 else ()
        assert picture.notes == turned


def test_limits_hold_for_a_turned_picture_too(photo: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert read_picture(encoded(photo, "JPEG", exif=exif), Limits(max_side=40)).height == 40
    with pytest.raises(LimitExceeded):
        read_picture(encoded(photo, "JPEG", exif=exif), Limits(max_side=39))


@pytest.mark.parametrize("content", [b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"])
def test_damaged_exif_does_not_stop_the_picture(
    colours: NDArray[np.uint8], photo: Image.Image, content: bytes
) -> None:
    picture = read_picture(encoded(photo, "PNG", exif=content))
    assert np.array_equal(picture.pixels, colours)


# --- modes -------------------------------------------------------------------------------------


def png(width: int, height: int, bits: int, kind: int, rows: bytes, **chunks: bytes) -> bytes:
    """Return a PNG written by hand; ``rows`` are unfiltered scan lines with their filter bytes."""

    def chunk(name: bytes, content: bytes) -> bytes:
        check = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    extra = b"".join(chunk(name.encode(), content) for name, content in chunks.items())
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra
        + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )  # fmt: skip


def test_a_palette_becomes_colours() -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.putdata([2, 0, 1])
    picture = read_picture(encoded(image, "PNG"))
    assert picture.pixels.tolist() == [[[70, 80, 90], [10, 20, 30], [40, 50, 60]]]
    assert picture.notes == ("palette converted to colours",)


def test_a_palette_of_greys_becomes_one_channel() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([9, 9, 9, 200, 200, 200])
    image.putdata([1, 0])
    assert read_picture(encoded(image, "PNG")).pixels.tolist() == [[[200], [9]]]


def test_a_palette_with_transparency_gets_alpha() -> None:
    data = png(2, 1, 8, 3, b"\0\0\1", PLTE=bytes([1, 2, 3, 4, 5, 6]), tRNS=bytes([77]))
    assert read_picture(data).pixels.tolist() == [[[1, 2, 3, 77], [4, 5, 6, 255]]]
    one = png(2, 1, 8, 3, b"\0\0\1", PLTE=bytes([1, 2, 3, 4, 5, 6]), tRNS=bytes([0]))
    assert read_picture(one).pixels.tolist() == [[[1, 2, 3, 0], [4, 5, 6, 255]]]


@pytest.mark.parametrize(
    ("bits", "kind", "row", "transparent", "expected"),
    [
        (8, 0, bytes([7, 8]), [7], [[7, 0], [8, 255]]),
        (4, 0, bytes([0x3F]), [3], [[51, 0], [255, 255]]),
        (2, 0, bytes([0b10_01_0000]), [1], [[170, 255], [85, 0]]),
        (1, 0, bytes([0b10_000000]), [0], [[255, 255], [0, 0]]),
        (8, 2, bytes([1, 2, 3, 1, 2, 4]), [1, 2, 4], [[1, 2, 3, 255], [1, 2, 4, 0]]),
        (16, 0, bytes([1, 0, 255, 255]), [256], [[1, 0], [255, 255]]),
        (
            16,
            2,
            bytes([9, 1, 8, 1, 7, 1, 6, 0, 5, 0, 4, 0]),
            [0x0901, 0x0801, 0x0701],
            [[9, 8, 7, 0], [6, 5, 4, 255]],
        ),
    ],
)
def test_the_transparent_colour_of_a_png_becomes_alpha(
    bits: int, kind: int, row: bytes, transparent: list[int], expected: list[list[int]]
) -> None:
    trns = struct.pack(f">{len(transparent)}H", *transparent)
    assert read_picture(png(2, 1, bits, kind, b"\0" + row, tRNS=trns)).pixels.tolist() == [expected]


def test_one_bit_becomes_grey() -> None:
    data = png(8, 1, 1, 0, b"\0" + bytes([0b10110001]))
    picture = read_picture(data)
    assert picture.pixels[0, :, 0].tolist() == [255, 0, 255, 255, 0, 0, 0, 255]
    assert picture.notes == ("1-bit pixels converted to grey",)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM", "JPEG2000"])
def test_sixteen_bit_grey_is_rounded_to_eight(format: str) -> None:
    samples = np.array([[0, 128, 129, 385, 386, 32767, 65406, 65535]] * 4, dtype=np.uint16)
    expected = np.round(samples / 257).astype(np.uint8)
    picture = read_picture(encoded(Image.fromarray(samples), format))
    assert np.array_equal(picture.pixels[..., 0], expected)
    assert picture.notes == ("16-bit grey reduced to 8 bits",)


@pytest.mark.parametrize(("kind", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_sixteen_bit_samples_keep_their_high_bytes(kind: int, channels: int) -> None:
    samples = np.random.default_rng(1).integers(0, 65536, (5, 4, channels), dtype=np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    picture = read_picture(png(4, 5, 16, kind, rows))
    assert np.array_equal(picture.pixels, samples >> 8)
    assert picture.notes == ("16-bit samples reduced to 8 bits (their high bytes)",)


def test_sixteen_bit_ppm_is_noted() -> None:
    samples = np.array([[[0, 65535, 0x8080]]], dtype=">u2")
    picture = read_picture(b"P6 1 1 65535\n" + samples.tobytes())
    assert np.abs(picture.pixels.astype(int) - [[[0, 255, 128]]]).max() <= 1
    assert picture.notes == ("16-bit samples reduced to 8 bits (their high bytes)",)


def test_cmyk_without_a_profile() -> None:
    image = Image.new("CMYK", (2, 1))
    image.putdata([(0, 0, 0, 0), (255, 0, 0, 0)])
    picture = read_picture(encoded(image, "TIFF"))
    assert picture.pixels.tolist() == [[[255, 255, 255], [0, 255, 255]]]
    assert picture.notes == ("CMYK converted to RGB without a colour profile",)


@pytest.mark.parametrize("mode", ["YCbCr", "HSV"])
def test_other_colour_models_become_rgb(
    colours: NDArray[np.uint8], photo: Image.Image, mode: str
) -> None:
    picture = read_picture(photo.convert(mode))
    assert np.abs(picture.pixels.astype(int) - colours).max() <= 6
    assert picture.notes == (f"{mode} converted to RGB",)


@pytest.mark.parametrize("mode", ["RGBa", "La", "RGBX", "PA"])
def test_pillows_rarer_modes(photo: Image.Image, mode: str) -> None:
    base = {"RGBa": "RGBA", "La": "LA", "RGBX": "RGB", "PA": "LA"}[mode]
    image = photo.convert(base)
    expected = np.asarray(photo.convert(base.removesuffix("A"))).reshape(27, 40, -1)
    picture = read_picture(image.convert(mode))
    assert np.array_equal(picture.pixels[..., : expected.shape[2]], expected)


@pytest.mark.parametrize(("mode", "word"), [("I", "integer"), ("F", "floating-point")])
def test_32_bit_pixels_are_refused(mode: str, word: str) -> None:
    with pytest.raises(UnsupportedImage, match=f"32-bit {word} pixels.*accepted: 8-bit and 16-bit"):
        read_picture(encoded(Image.new(mode, (4, 4)), "TIFF"))


def test_the_first_picture_of_an_mpo_counts(colours: NDArray[np.uint8], photo: Image.Image) -> None:
    other = Image.new("RGB", photo.size, "red")
    data = encoded(photo, "MPO", save_all=True, append_images=[other], quality=95)
    picture = read_picture(data)
    assert picture.source_format == "MPO"
    assert np.abs(picture.pixels.astype(int) - colours).mean() < 5


# --- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [b"hello, this is no picture", bytes(1000), b"\x89PNG", b"<svg xmlns='...'/>", b"\x89"],
)
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    with pytest.raises(NotAnImage) as caught:
        read_picture(data)
    assert caught.value.exit_code == 3


def test_the_message_says_what_is_accepted() -> None:
    with pytest.raises(NotAnImage, match=r"accepted: PNG, JPEG, .*begins with 68 65 6c 6c 6f"):
        read_picture(b"hello")
    with pytest.raises(NotAnImage, match="empty"):
        read_picture(b"")


@pytest.mark.parametrize("length", [4, 8, 500])
def test_a_nif_file_is_recognised(length: int) -> None:
    data = (b"\x8eNIF\r\n\x1a\n" + bytes(500))[:length]
    with pytest.raises(NotAnImage, match=r"is a \.nif file already; decode it"):
        read_picture(data)


@pytest.mark.parametrize("format", [*LOSSLESS, *LOSSY])
def test_a_truncated_file_is_refused(format: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(3).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), format)
    for share in (0.05, 0.3, 0.6, 0.95):
        with pytest.raises(NotAnImage, match=r"damaged or truncated|not a picture"):
            read_picture(data[: int(share * len(data))])


def test_truncated_tga_and_friends_are_not_guessed_at() -> None:
    # Formats without a magic number are not on the list: anything would be a picture.
    assert not {"TGA", "DIB", "ICO", "CUR", "EPS", "WMF"} & set(FORMATS)
    data = encoded(Image.new("RGB", (4, 4)), "TGA")
    with pytest.raises(NotAnImage, match="not a picture in a known format"):
        read_picture(data)


def test_pillows_switch_for_truncated_files_is_told(
    photo: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    data = encoded(photo, "JPEG")
    picture = read_picture(data[: data.index(b"\xff\xda") + 40])
    assert any("LOAD_TRUNCATED_IMAGES" in note for note in picture.notes)


def patched(data: bytes, at: int, content: bytes) -> bytes:
    return data[:at] + content + data[at + len(content) :]


def with_size(format: str, width: int, height: int) -> bytes:
    """Return a small file of the format whose header declares the given size."""
    small = Image.new("RGB", (16, 16), "teal")
    if format == "PNG":
        return png(width, height, 8, 2, bytes(100))
    if format == "PPM":
        return b"P6 %d %d 255\n" % (width, height) + bytes(100)
    data = encoded(small, format) if format != "VP8L" else encoded(small, "WEBP")
    if format == "JPEG":
        start = data.index(b"\xff\xc0")
        return patched(data, start + 5, struct.pack(">HH", height, width))
    if format == "GIF":
        start = data.index(b"\x2c\0\0\0\0")
        data = patched(data, start + 5, struct.pack("<HH", width, height))
        return patched(data, 6, struct.pack("<HH", width, height))
    if format == "BMP":
        return patched(data, 18, struct.pack("<ii", width, height))
    if format == "QOI":
        return patched(data, 4, struct.pack(">II", width, height))
    if format == "PCX":
        return patched(data, 8, struct.pack("<HH", width - 1, height - 1))
    if format == "SGI":
        return patched(data, 6, struct.pack(">HH", width, height))
    if format == "WEBP":
        size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
        extended = b"VP8X" + struct.pack("<I", 10) + bytes(4) + size
        body = b"WEBP" + extended + data[12:]
        return b"RIFF" + struct.pack("<I", len(body)) + body
    if format == "VP8L":
        assert data[12:16] == b"VP8L"
        old = int.from_bytes(data[21:25], "little")
        bits = old & ~0xFFFFFFF | (height - 1) << 14 | (width - 1)
        return patched(data, 21, bits.to_bytes(4, "little"))
    if format == "JPEG2000":
        data = patched(data, data.index(b"ihdr") + 4, struct.pack(">II", height, width))
        return patched(data, data.index(b"\xff\x51") + 6, struct.pack(">II", width, height))
    if format == "AVIF":
        return patched(data, data.index(b"ispe") + 8, struct.pack(">II", width, height))
    assert format == "TIFF"
    for tag, value in ((256, width), (257, height)):
        start = data.index(struct.pack("<H", tag) + b"\x04\0\1\0\0\0")
        data = patched(data, start + 8, struct.pack("<I", value))
    return data


HUGE = ["PNG", "JPEG", "WEBP", "VP8L", "AVIF", "JPEG2000", "TIFF", "BMP", "GIF", "PPM", "QOI",
        "PCX", "SGI"]  # fmt: skip


@pytest.mark.parametrize("format", HUGE)
@pytest.mark.parametrize(("width", "height"), [(10_000, 10_000), (16_000, 16_000)])
def test_a_huge_header_in_a_small_file_is_refused(format: str, width: int, height: int) -> None:
    data = with_size(format, width, height)
    assert len(data) < 20_000
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(LimitExceeded, match=f"{width}x{height} .* at most 50,000,000") as error:
            read_picture(data)
    assert error.value.exit_code == 5
    assert caught == []


def test_huge_headers_are_refused_before_memory_is_taken(tmp_path: Path) -> None:
    """256 megapixels would need 768 MB; the process may take 64 MB beyond what it has."""
    for format in HUGE:
        if supported(format.replace("VP8L", "WEBP")):
            (tmp_path / format).write_bytes(with_size(format, 16_000, 16_000))
    code = """
        import pathlib, resource, sys
        import PIL.Image
        from nifcore.errors import LimitExceeded
        from nifcore.picture import read_picture
        PIL.Image.init()
        size = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
        room = size * resource.getpagesize() + 64 * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (room, room))
        for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
            try:
                read_picture(path)
            except LimitExceeded:
                print(path.name)
    """
    if not Path("/proc/self/statm").exists():
        pytest.skip("this system does not tell the size of a process")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    assert done.stdout.split() == sorted(path.name for path in tmp_path.iterdir())


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "BMP", "PPM", "QOI", "SGI", "TIFF"])
@pytest.mark.parametrize(("width", "height"), [(0, 16), (16, 0), (0, 0)])
def test_a_zero_sized_picture_is_refused(format: str, width: int, height: int) -> None:
    with pytest.raises(UnsupportedImage, match="pixels"):
        read_picture(with_size(format, width, height))


@pytest.mark.parametrize("source", [Image.new("RGB", (0, 4)), np.zeros((4, 0, 3), np.uint8)])
def test_a_zero_sized_image_in_memory_is_refused(source: object) -> None:
    with pytest.raises(UnsupportedImage, match="has no pixels"):
        read_picture(source)  # type: ignore[arg-type]


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF", "AVIF"])
def test_several_frames_are_refused(format: str, photo: Image.Image) -> None:
    other = Image.new("RGB", photo.size, "red")
    data = encoded(photo, format, save_all=True, append_images=[other])
    with pytest.raises(UnsupportedImage, match="several frames or pages"):
        read_picture(data)
    with Image.open(io.BytesIO(data)) as animation:
        with pytest.raises(UnsupportedImage, match=r"frame\.copy\(\)"):
            read_picture(animation)
        animation.seek(1)
        assert np.abs(read_picture(animation.copy()).pixels[0, 0] - [255.0, 0, 0]).max() < 8


@pytest.mark.parametrize(
    ("limits", "text"),
    [
        (Limits(max_pixels=40 * 27 - 1), "40x27 = 1,080 pixels; at most 1,079"),
        (Limits(max_side=39), "40x27; at most 39 pixels per side"),
        (Limits(max_file_bytes=100), "limit of 100 bytes"),
    ],
)
def test_each_limit(tmp_path: Path, photo: Image.Image, limits: Limits, text: str) -> None:
    data = encoded(photo, "PNG")
    path = tmp_path / "photo.png"
    path.write_bytes(data)
    for source in (data, path, io.BytesIO(data)):
        with pytest.raises(LimitExceeded, match=text):
            read_picture(source, limits)


def test_a_picture_at_the_limits_is_read(photo: Image.Image) -> None:
    data = encoded(photo, "PNG")
    exact = Limits(max_pixels=40 * 27, max_side=40, max_file_bytes=len(data))
    assert read_picture(data, exact).width == 40


def test_limits_above_pillows_own_are_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    data = encoded(Image.new("RGB", (30, 30), "teal"), "PNG")
    picture = read_picture(data)
    assert (picture.width, picture.notes) == (30, ())


def test_an_endless_file_object_is_given_up_at_the_limit() -> None:
    class Endless(io.RawIOBase):
        given = 0

        def read(self, size: int = -1) -> bytes:
            self.given += size
            return bytes(size)

    source = Endless()
    with pytest.raises(LimitExceeded):
        read_picture(source, Limits(max_file_bytes=10_000))
    assert source.given <= 10_001


@pytest.mark.parametrize("key", ["icc_profile", "exif"])
def test_metadata_is_capped(photo: Image.Image, key: str) -> None:
    prefix = b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"
    data = encoded(photo, "PNG", **{key: prefix + bytes(3000)})
    assert read_picture(data).width == 40
    with pytest.raises(LimitExceeded, match=f"{key} has 3,0.. bytes; at most 1,000"):
        read_picture(data, Limits(max_metadata_bytes=1000))


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    missing = tmp_path / "missing.png"
    with pytest.raises(InputError, match=r"missing\.png.*No such file"):
        read_picture(missing)
    with pytest.raises(InputError, match=r"[Dd]irectory"):
        read_picture(str(tmp_path))
    with pytest.raises(InputError, match="cannot read"):
        read_picture("null\0byte")


@pytest.mark.skipif(os.name != "posix" or os.getuid() == 0, reason="this account may read anything")
def test_a_file_without_permission(tmp_path: Path) -> None:
    path = tmp_path / "closed.png"
    path.write_bytes(b"x")
    path.chmod(0)
    with pytest.raises(InputError, match=r"closed\.png.*[Pp]ermission"):
        read_picture(path)


def test_things_that_are_no_source(photo: Image.Image) -> None:
    with pytest.raises(InputError, match="from int; accepted: a path"):
        read_picture(3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="binary mode"):
        read_picture(io.StringIO("text"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (np.zeros((4, 4, 3), np.float32), "dtype float32; accepted: uint8"),
        (np.zeros((4, 4), np.uint16), "dtype uint16"),
        (np.zeros((4, 4), bool), "dtype bool"),
        (np.zeros(4, np.uint8), r"shape \(4,\); accepted: \(height, width\)"),
        (np.zeros((4, 4, 5), np.uint8), r"shape \(4, 4, 5\)"),
        (np.zeros((4, 4, 0), np.uint8), r"shape \(4, 4, 0\)"),
        (np.zeros((1, 4, 4, 3), np.uint8), r"shape \(1, 4, 4, 3\)"),
    ],
)
def test_arrays_of_another_kind_are_refused(array: NDArray[np.uint8], text: str) -> None:
    with pytest.raises(UnsupportedImage, match=text):
        read_picture(array)


@pytest.mark.parametrize("format", [*LOSSLESS, *LOSSY])
def test_damaged_files_give_a_picture_or_one_of_our_errors(format: str, photo: Image.Image) -> None:
    data = encoded(photo, format)
    random = np.random.default_rng(len(data))
    outcomes = set()
    for _ in range(150):
        damaged = bytearray(data)
        for position in random.integers(0, min(len(data), 400), random.integers(1, 5)):
            damaged[position] = random.integers(0, 256)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                outcomes.add(type(read_picture(bytes(damaged), Limits(max_pixels=1_000_000))))
            except NifError as error:
                outcomes.add(type(error))
        assert [w for w in caught if issubclass(w.category, (UserWarning, RuntimeWarning))] == []
    assert outcomes & {NotAnImage, UnsupportedImage, LimitExceeded}


# --- writing -----------------------------------------------------------------------------------


@pytest.fixture(params=["L", "LA", "RGB", "RGBA"])
def decoded(request: pytest.FixtureRequest, colours: NDArray[np.uint8]) -> Iterator[Image.Image]:
    rgba = Image.fromarray(np.concatenate([colours, 255 - colours[..., :1] // 2], axis=2))
    return rgba.convert(request.param)


@pytest.mark.parametrize("extension", [".png", ".tif", ".jp2", ".TIFF", ".tga"])
def test_lossless_outputs_hold_every_kind_of_picture(
    tmp_path: Path, decoded: Image.Image, extension: str
) -> None:
    path = tmp_path / f"out{extension}"
    assert write_picture(decoded, path) == ()
    with Image.open(path) as image:
        assert image.mode == decoded.mode
        assert image.tobytes() == decoded.tobytes()
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "extension",
    [".jpg", ".jpeg", ".webp", ".avif", ".bmp", ".ppm", ".gif", ".qoi", ".sgi", ".pcx", ".pdf"],
)
def test_other_outputs_flatten_or_convert(
    tmp_path: Path, decoded: Image.Image, extension: str
) -> None:
    if extension in (".avif", ".qoi") and not supported(extension[1:].upper()):
        pytest.skip(f"this Pillow cannot write {extension}")
    path = tmp_path / f"out{extension}"
    notes = write_picture(decoded, path)
    holds_alpha = extension in (".webp", ".avif", ".gif", ".qoi", ".sgi")
    assert bool(notes) == (not holds_alpha and decoded.mode in ("LA", "RGBA"))
    if notes:
        assert "composited on white" in notes[0]
    if extension == ".pdf":
        assert path.read_bytes().startswith(b"%PDF")
        return
    expected = decoded.convert("RGBA") if holds_alpha else flattened(decoded.convert("RGBA"))
    with Image.open(path) as image:
        difference = np.asarray(image.convert(expected.mode)).astype(int) - np.asarray(expected)
    if extension == ".gif":
        difference = difference[..., :3]
    assert np.abs(difference).mean() < (8 if extension == ".gif" else 4)


def test_flattening_is_the_textbook_formula(colours: NDArray[np.uint8]) -> None:
    rgba = np.concatenate([colours, colours[..., 1:2]], axis=2)
    alpha = rgba[..., 3:] / 255
    expected = rgba[..., :3] * alpha + 255 * (1 - alpha)
    result = flattened(Image.fromarray(rgba))
    assert result.mode == "RGB"
    assert np.abs(np.asarray(result) - expected).max() <= 1
    grey = np.ascontiguousarray(rgba[..., 2:])
    assert flattened(Image.fromarray(grey)).mode == "L"


def test_a_picture_can_be_written_to_a_file_object(photo: Image.Image) -> None:
    for format in ("png", "PNG", ".png", "Png"):
        buffer = io.BytesIO()
        write_picture(photo, buffer, format)
        assert read_picture(buffer.getvalue()).source_format == "PNG"


def test_the_format_outweighs_the_extension(tmp_path: Path, photo: Image.Image) -> None:
    write_picture(photo, tmp_path / "out.png", "jpg")
    assert read_picture(tmp_path / "out.png").source_format == "JPEG"


def test_a_profile_is_embedded(tmp_path: Path, photo: Image.Image) -> None:
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    photo.info["icc_profile"] = icc
    for name in ("out.png", "out.jpg", "out.tif", "out.webp"):
        write_picture(photo, tmp_path / name)
        with Image.open(tmp_path / name) as image:
            assert image.info["icc_profile"] == icc


@pytest.mark.parametrize("name", ["out", "out.xyz", "out.mp4", ".png"])
def test_an_unknown_output_format_lists_the_known(
    tmp_path: Path, photo: Image.Image, name: str
) -> None:
    with pytest.raises(UsageError, match=r"accepted: .*\.jpg.*\.png"):
        write_picture(photo, tmp_path / name)
    with pytest.raises(UsageError, match="no format"):
        write_picture(photo, io.BytesIO())
    assert list(tmp_path.iterdir()) == []


def test_unwritable_outputs(tmp_path: Path, photo: Image.Image) -> None:
    with pytest.raises(OutputError, match="no such folder"):
        write_picture(photo, tmp_path / "missing" / "out.png")
    with pytest.raises(OutputError, match="20000x1 picture of mode RGB cannot be written as WEBP"):
        write_picture(Image.new("RGB", (20_000, 1)), tmp_path / "out.webp")
    if Path("/dev/full").exists():
        with open("/dev/full", "wb", buffering=0) as full, pytest.raises(OutputError, match="full"):
            write_picture(photo, full, "png")
    assert list(tmp_path.iterdir()) == []


def test_a_picture_is_plain_data(colours: NDArray[np.uint8]) -> None:
    picture = Picture(colours)
    with pytest.raises(AttributeError):
        picture.icc = b""  # type: ignore[misc]
