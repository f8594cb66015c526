"""The Pillow plugin: opening, thumbnails, saving, and files that are not ours."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, UnidentifiedImageError
from skimage import data

import nifcore
import nifcore.pillow
from nifcore.header import (
    EXTENSION_COMMENT,
    Colour,
    Extension,
    Header,
    NetShape,
    header_bytes,
    read_header,
)

OPTIONS = {"effort": 1, "bpp": 4}


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return Image.fromarray(data.astronaut()[:256, 64:448]).resize((48, 32))


@pytest.fixture(scope="module")
def file(photo: Image.Image, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pillow") / "photo.nif"
    photo.save(path, **OPTIONS)
    return path


def test_saving_is_encoding(photo: Image.Image, file: Path) -> None:
    assert file.read_bytes() == nifcore.encode(photo, effort=1, bpp=4).data


def test_options_reach_the_encoder(photo: Image.Image) -> None:
    buffer = io.BytesIO()
    photo.save(buffer, format="NIF", effort=1, max_bytes=500)
    assert 100 < len(buffer.getvalue()) <= 500
    with pytest.raises(nifcore.UsageError, match="exclude each other"):
        photo.save(io.BytesIO(), format="NIF", effort=1, bpp=4, quality=3)


def test_opening_parses_the_header_and_loading_decodes(file: Path) -> None:
    with Image.open(file) as image:
        assert (image.format, image.mode, image.size) == ("NIF", "RGB", (48, 32))
        assert image.get_format_mimetype() == nifcore.pillow.MIME
        assert np.array_equal(np.asarray(image), np.asarray(nifcore.decode(file)))


def test_opening_reads_no_pixels() -> None:
    header = Header(
        width=300,
        height=200,
        colour=Colour.GREY_ALPHA,
        genesis=NetShape((4,), 2),
        extensions=(Extension(EXTENSION_COMMENT, "Grüße".encode()),),
    )
    with Image.open(io.BytesIO(header_bytes(header))) as image:
        assert (image.mode, image.size) == ("LA", (300, 200))
        assert image.info["comment"] == "Grüße"
        with pytest.raises(OSError, match=r"CRC|ends|truncated"):
            image.load()


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_every_mode_comes_back_as_it_went(photo: Image.Image, mode: str) -> None:
    image = photo.convert(mode)
    if "A" in mode:
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    buffer = io.BytesIO()
    image.save(buffer, "NIF", effort=1, bpp=8)
    with Image.open(buffer) as opened:
        assert opened.mode == mode
        difference = np.asarray(opened).astype(float) - np.asarray(image)
    assert np.sqrt(np.mean(difference**2)) < np.asarray(image).std()


def test_a_thumbnail_is_rendered_at_about_its_own_size(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    decode = nifcore.decode

    def watched(data: bytes, **options: object) -> Image.Image:
        sizes.append(options["size"])
        return decode(data, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(nifcore, "decode", watched, raising=False)
    with Image.open(file) as image:
        image.thumbnail((12, 12))
        assert image.size == (12, 8)
        small = np.asarray(image).astype(float)
    assert sizes == [(36, 24)]
    whole = Image.open(io.BytesIO(file.read_bytes()))
    wanted = np.asarray(whole.resize((12, 8), Image.Resampling.BICUBIC)).astype(float)
    assert np.abs(small - wanted).mean() < 6


def test_draft_never_enlarges_nor_changes_a_loaded_picture(file: Path) -> None:
    with Image.open(file) as image:
        assert image.draft(None, (100, 100)) is None
        image.load()
        assert image.draft(None, (4, 4)) is None
        assert image.size == (48, 32)


def test_loading_closes_the_file(file: Path) -> None:
    image = Image.open(file)
    opened = image.fp
    assert opened is not None
    image.load()
    assert opened.closed
    assert image.copy().getpixel((0, 0)) == image.getpixel((0, 0))


def test_a_file_object_stays_open(file: Path) -> None:
    buffer = io.BytesIO(file.read_bytes())
    with Image.open(buffer) as image:
        image.load()
    assert not buffer.closed


@pytest.mark.parametrize("content", [b"NetImmerse File Format", b"\x8eNIF\r\n\x1a", b""])
def test_what_is_not_ours_is_left_to_others(content: bytes) -> None:
    with pytest.raises(UnidentifiedImageError):
        Image.open(io.BytesIO(content))


def test_other_formats_still_open(photo: Image.Image) -> None:
    buffer = io.BytesIO()
    photo.save(buffer, "PNG")
    with Image.open(buffer) as image:
        assert image.format == "PNG"


def test_a_damaged_file_is_an_oserror(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-6] ^= 1
    with Image.open(io.BytesIO(content)) as image, pytest.raises(OSError, match="CRC"):
        image.load()


def test_a_damaged_header_is_not_identified(file: Path) -> None:
    content = file.read_bytes()
    for damaged in (content[:12], content[:8] + b"\xff" + content[9:]):
        with pytest.raises(UnidentifiedImageError):
            Image.open(io.BytesIO(damaged))


def test_a_huge_picture_is_a_bomb() -> None:
    content = header_bytes(Header(10_000, 10_000, Colour.SRGB, NetShape((4,), 2)))
    with pytest.raises(Image.DecompressionBombError, match="10000x10000"):
        Image.open(io.BytesIO(content))


def test_a_profile_is_kept_on_request(photo: Image.Image) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = photo.copy()
    image.info["icc_profile"] = profile
    buffer = io.BytesIO()
    image.save(buffer, "NIF", keep_icc=True, effort=1, bpp=8)
    assert read_header(buffer.getvalue()).extensions[0].data == profile
    with Image.open(buffer) as opened:
        assert opened.info["icc_profile"] == profile
