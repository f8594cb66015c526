"""``nif decode``: sizes, regions, formats, streams, and files that are no .nif file."""

from __future__ import annotations

import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import nifcore
from nifcore.header import Colour, Header, NetShape, header_bytes
from tests.cli.conftest import HEIGHT, WIDTH, Coded
from tests.cli.program import nif, nif_here


@pytest.fixture(scope="session")
def whole(coded: Coded) -> np.ndarray:
    """Pixels of the decoded file, by the library."""
    return np.asarray(nifcore.decode(coded.file))


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_stdin_to_stdout_is_a_png(coded: Coded, whole: np.ndarray) -> None:
    run = nif("decode", "-", folder=coded.file.parent, stdin=coded.file.read_bytes())
    assert run.code == 0, run.stderr
    with Image.open(BytesIO(run.stdout)) as image:
        assert image.format == "PNG"
        assert np.array_equal(np.asarray(image), whole)
    assert f"stdout: {WIDTH}x{HEIGHT}" in run.stderr


def test_the_output_is_named_after_the_input(coded: Coded, tmp_path: Path) -> None:
    file = tmp_path / "a.nif"
    file.write_bytes(coded.file.read_bytes())
    run = nif_here("decode", file)
    assert run.code == 0
    assert run.text.startswith(f"{tmp_path / 'a.png'}: {WIDTH}x{HEIGHT}, ")
    assert (tmp_path / "a.png").exists()


@pytest.mark.parametrize(
    ("options", "size"),
    [
        (("--scale", "2"), (2 * WIDTH, 2 * HEIGHT)),
        (("--scale", "0.25"), (WIDTH // 4, HEIGHT // 4)),
        (("--size", "31x17"), (31, 17)),
        (("--region", "8,4,20,10"), (20, 10)),
        (("--scale", "2", "--region", "50,30,46,34"), (46, 34)),
    ],
)
def test_sizes_and_regions(
    coded: Coded, tmp_path: Path, options: tuple[str, ...], size: tuple[int, int]
) -> None:
    output = tmp_path / "x.png"
    run = nif_here("decode", coded.file, output, *options, "--json")
    assert run.code == 0
    (said,) = run.objects
    assert (said["width"], said["height"]) == size
    assert said["bytes"] == output.stat().st_size
    assert pixels(output).shape == (size[1], size[0], 3)


def test_a_region_is_cut_from_the_whole(coded: Coded, whole: np.ndarray, tmp_path: Path) -> None:
    output = tmp_path / "x.png"
    nif_here("decode", coded.file, output, "--region", "8,4,20,10")
    difference = pixels(output).astype(int) - whole[4:14, 8:28]
    assert np.abs(difference).max() <= 1


@pytest.mark.parametrize(
    ("name", "options", "format"),
    [
        ("x.jpg", (), "JPEG"),
        ("x.webp", (), "WEBP"),
        ("x.tif", (), "TIFF"),
        ("x", (), "PNG"),
        ("x.png", ("--format", "jpeg"), "JPEG"),
        ("x", ("--format", "BMP"), "BMP"),
    ],
)
def test_formats(
    coded: Coded, tmp_path: Path, name: str, options: tuple[str, ...], format: str
) -> None:
    run = nif_here("decode", coded.file, tmp_path / name, *options)
    assert run.code == 0, run.stderr
    with Image.open(tmp_path / name) as image:
        assert (image.format, image.size) == (format, (WIDTH, HEIGHT))


def test_several_files_into_a_folder(coded: Coded, tmp_path: Path) -> None:
    (tmp_path / "bad.nif").write_bytes(coded.file.read_bytes()[:-1])
    run = nif_here(
        *("decode", tmp_path / "bad.nif", coded.file, "--json"),
        *("--output-dir", tmp_path / "d", "--format", "webp"),
    )
    assert run.code == 4
    bad, good = run.objects
    assert bad["error"]["type"] == "CorruptBitstream"
    assert good["output"] == str(tmp_path / "d" / "photo.webp")
    assert [each.name for each in (tmp_path / "d").iterdir()] == ["photo.webp"]


def huge_header() -> bytes:
    data = header_bytes(Header(10_000, 10_000, Colour.SRGB, NetShape((4,), 2))) + bytes(100)
    return data + zlib.crc32(data).to_bytes(4, "little")


def flipped(data: bytes) -> bytes:
    return data[:-10] + bytes([data[-10] ^ 1]) + data[-9:]


@pytest.mark.parametrize(
    ("damage", "code", "kind"),
    [
        (lambda data: b"\x89PNG" + data[4:], 4, "NotNif"),
        (lambda data: b"", 4, "BitstreamError"),
        (lambda data: data[: len(data) // 2], 4, "CorruptBitstream"),
        (flipped, 4, "CorruptBitstream"),
        (lambda data: data[:8] + b"\x09" + data[9:], 4, "UnsupportedVersion"),
        (lambda data: huge_header(), 5, "LimitExceeded"),
    ],
    ids=["magic", "empty", "truncated", "flipped", "version", "100-megapixels"],
)
@pytest.mark.parametrize("command", ["decode", "verify"])
def test_bad_files(
    coded: Coded, tmp_path: Path, damage: object, code: int, kind: str, command: str
) -> None:
    assert callable(damage)
    file = tmp_path / "bad.nif"
    file.write_bytes(damage(coded.file.read_bytes()))
    run = nif_here(command, file, "--json")
    assert run.code == code
    (said,) = run.objects
    raised = getattr(nifcore, said["error"]["type"])
    assert issubclass(raised, getattr(nifcore, kind))
    assert said["error"]["exit_code"] == code
    (line,) = run.stderr.splitlines()
    assert line.startswith("nif: error: ")
    assert str(file) in line
    assert [each.name for each in tmp_path.iterdir()] == ["bad.nif"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--scale", "2", "--size", "4x4"), 2, "exclude each other"),
        (("--scale", "0"), 2, "scale is 0.0"),
        (("--region", "0,0,49,1"), 2, "region is 0,0,49,1; it must lie inside"),
        (("--size", "4"), 2, "'4' is not a size like 640x480"),
        (("--region", "1,2,3"), 2, "'1,2,3' is not a region"),
        (("--scale", "1000"), 5, "at most 50000000 pixels"),
        (("--scale", "2", "--max-pixels", "2000"), 5, "at most 2000 pixels"),
        (("--format", "nonesuch"), 2, "got 'nonesuch'; accepted: "),
        (("--format", "nif"), 2, "writes pictures, not .nif files"),
        (("--device", "cuda:99"), 6, "cuda:99"),
    ],
)
def test_what_cannot_be_rendered(
    coded: Coded, tmp_path: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    run = nif_here("decode", coded.file, tmp_path / "x.png", *arguments)
    assert run.code == code
    assert message in " ".join(run.stderr.replace("│", " ").split())
    assert list(tmp_path.iterdir()) == []


def test_verify_says_what_is_whole(coded: Coded, tmp_path: Path) -> None:
    bad = tmp_path / "bad.nif"
    bad.write_bytes(flipped(coded.file.read_bytes()))
    run = nif("verify", bad, coded.file, folder=tmp_path)
    assert run.code == 4
    assert run.text == (f"{coded.file}: ok, {WIDTH}x{HEIGHT}, {coded.file.stat().st_size} bytes\n")
    assert str(bad) in run.stderr


def test_verify_json(coded: Coded) -> None:
    (said,) = nif_here("verify", coded.file, "--json").objects
    assert said["ok"] is True
    assert (said["width"], said["height"]) == (WIDTH, HEIGHT)
