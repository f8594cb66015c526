"""Inputs that cannot be encoded, by the real program: one clear line and its exit code."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.conftest import Coded
from tests.cli.program import nif


def png(width: int, height: int) -> bytes:
    """Return a PNG whose header says that size, and whose pixels are missing."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b""))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def animation() -> bytes:
    frames = [Image.new("L", (8, 8), shade) for shade in (0, 255)]
    buffer = BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "code", "kind"),
    [
        (b"no picture at all", 3, "NotAnImage"),
        (b"", 3, "NotAnImage"),
        ("truncated", 3, "NotAnImage"),
        (png(0, 7), 3, "UnsupportedImage"),
        (animation(), 3, "UnsupportedImage"),
        (png(10_000, 10_000), 5, "LimitExceeded"),
    ],
    ids=["text", "empty", "truncated", "zero-sized", "animated", "100-megapixels"],
)
def test_pictures_that_are_refused(
    coded: Coded, tmp_path: Path, content: bytes | str, code: int, kind: str
) -> None:
    if content == "truncated":
        content = coded.picture.read_bytes()[:-200]
    assert isinstance(content, bytes)
    (tmp_path / "x.png").write_bytes(content)
    run = nif("encode", "x.png", "--json", folder=tmp_path)
    assert run.code == code, run.stderr
    (said,) = run.objects
    assert said == {
        "schema_version": 1,
        "input": "x.png",
        "error": {"type": kind, "message": said["error"]["message"], "exit_code": code},
    }
    (line,) = run.stderr.splitlines()
    assert line.startswith("nif: error: ")
    assert said["error"]["message"] in line
    assert [each.name for each in tmp_path.iterdir()] == ["x.png"]


@pytest.mark.parametrize("command", ["encode", "decode", "info", "verify"])
def test_a_missing_file(tmp_path: Path, command: str) -> None:
    run = nif(command, "missing", folder=tmp_path)
    assert (run.code, run.stdout) == (3, b"")
    (line,) = run.stderr.splitlines()
    assert line.startswith("nif: error: ")
    assert "missing" in line
    assert "No such file" in line


def test_a_folder_is_no_input(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    run = nif("encode", "d", "d.nif", folder=tmp_path)
    assert run.code == 3
    assert "directory" in run.stderr


def test_an_input_over_the_byte_limit(coded: Coded, tmp_path: Path) -> None:
    run = nif(
        *("encode", coded.picture, tmp_path / "x.nif"),
        folder=tmp_path,
        env={"NIF_MAX_FILE_BYTES": "100"},
    )
    assert run.code == 5
    assert "larger than 100 bytes" in run.stderr


def test_the_argument_parser_speaks_of_its_own_errors(tmp_path: Path) -> None:
    run = nif("encode", "x.png", "--efort", "3", folder=tmp_path)
    assert (run.code, run.stdout) == (2, b"")
    assert "--effort" in run.stderr


def test_debug_shows_where(tmp_path: Path) -> None:
    assert "Traceback" not in nif("info", "missing", folder=tmp_path).stderr
    assert "Traceback" in nif("info", "missing", "--debug", folder=tmp_path).stderr
    run = nif("encode", "missing.png", folder=tmp_path, env={"NIF_DEBUG": "1"})
    assert "Traceback" in run.stderr
