"""What the first bytes tell, against Pillow."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from api.problems import Problem
from api.sniff import FORMATS, Sniffed, sniff
from nifcore.picture import FORMATS as READABLE

KINDS = ("PNG", "JPEG", "WEBP", "AVIF", "JPEG2000", "TIFF", "BMP", "GIF", "PPM", "QOI")


def look(data: bytes) -> Sniffed:
    return sniff(
        lambda offset, count: data[offset : offset + count],
        len(data),
        max_pixels=50_000_000,
        max_side=65_535,
    )


def attempt(data: bytes) -> Sniffed | str:
    """Return what was found, or the code of the problem."""
    try:
        return look(data)
    except Problem as problem:
        return problem.kind.code


def written(kind: str, size: tuple[int, int], mode: str = "RGB", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, 100).save(buffer, kind, **options)
    return buffer.getvalue()


def test_every_format_can_be_read_by_the_codec() -> None:
    assert set(FORMATS) <= set(READABLE)
    assert set(FORMATS) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(1, 1), (37, 5), (300, 201)])
def test_format_and_size_are_those_that_pillow_reads(kind: str, size: tuple[int, int]) -> None:
    data = written(kind, size)
    with Image.open(io.BytesIO(data)) as image:
        assert (look(data).format, look(data).width, look(data).height) == (
            image.format,
            *image.size,
        )
        # Pillow has none for QOI, and tells the kinds of portable maps apart.
        if kind not in ("QOI", "PPM"):
            assert look(data).media_type == image.get_format_mimetype()


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("WEBP", "RGBA", {"lossless": True}),
        ("WEBP", "RGB", {"lossless": True}),
        ("JPEG", "L", {"progressive": True}),
        ("JPEG", "CMYK", {}),
        ("JPEG", "RGB", {"exif": b"Exif\0\0" + bytes(60_000)}),
        ("JPEG2000", "RGB", {"no_jp2": True}),
        ("PNG", "I;16", {}),
        ("TIFF", "L", {"compression": "tiff_lzw"}),
        ("PPM", "1", {}),
        ("GIF", "P", {}),
        ("PNG", "RGB", {"icc_profile": bytes(100_000)}),
    ],
)
def test_variants_are_read(kind: str, mode: str, options: dict[str, object]) -> None:
    found = look(written(kind, (33, 21), mode, **options))
    assert (found.format, found.width, found.height) == (kind, 33, 21)


def test_comments_in_a_text_header_are_passed_over() -> None:
    assert look(b"P6 # by hand\n# more\n12 # wide\n7\n255\n" + bytes(252)).width == 12


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_damage_is_refused_and_never_trips(kind: str, data: st.DataObject) -> None:
    whole = bytearray(written(kind, (40, 30)))
    for _ in range(data.draw(st.integers(1, 6))):
        position = data.draw(st.integers(0, min(len(whole), 700) - 1))
        whole[position] = data.draw(st.integers(0, 255))
    cut = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    answer = attempt(cut)
    if isinstance(answer, Sniffed):
        assert 1 <= answer.width * answer.height <= 50_000_000
    else:
        assert answer in ("unsupported_image", "damaged_image", "too_many_pixels")


@given(st.binary(max_size=300))
def test_noise_is_refused(noise: bytes) -> None:
    answer = attempt(noise)
    assert isinstance(answer, Sniffed) or answer in (
        "unsupported_image",
        "damaged_image",
        "too_many_pixels",
    )


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "AVIF"])
def test_a_cut_file_is_noticed(kind: str) -> None:
    data = written(kind, (64, 64))
    for length in (len(data) // 2, len(data) - 4):
        with pytest.raises(Problem) as refused:
            look(data[:length])
        assert refused.value.kind.code == "damaged_image"
