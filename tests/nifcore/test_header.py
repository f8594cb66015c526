"""The header: layout, round trips, refusals, and what reading it costs."""

from __future__ import annotations

import io
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nifcore.errors import (
    CorruptBitstream,
    InputError,
    LimitExceeded,
    NifError,
    NotNif,
    UnsupportedVersion,
    UsageError,
)
from nifcore.header import (
    MAGIC,
    MAX_TILES,
    Colour,
    EntropyModel,
    Extension,
    Header,
    LatticeKind,
    NetShape,
    header_bytes,
    is_nif,
    read_header,
    varint_bytes,
)
from nifcore.limits import Limits
from nifcore.tiling import horizontal, vertical
from tests.nifcore.strategies import headers

START = bytes.fromhex("8E4E49460D0A1A0A01")
SECOND = bytes.fromhex("8E4E49460D0A1A0A02")
DEFAULT = Header(768, 512, Colour.SRGB, NetShape((120, 40, 28, 16), 16), NetShape((16, 8), 4))
DEFAULT_FIELDS = bytes.fromhex("01 8006 8004 03 04 78 28 1C 10 10 02 10 08 04")
FULL = replace(
    DEFAULT,
    base=1.5,
    omega=25.0,
    sigma=0.001,
    tiles=(3, 2),
    lattice=LatticeKind.PUBLISHED,
    extensions=(Extension(2, b"hello"), Extension(127, b"")),
)
UNBOUNDED = Limits(max_pixels=2**70, max_side=2**40, max_parameters=2**80, max_metadata_bytes=2**40)


def test_default_header_has_the_documented_bytes() -> None:
    assert header_bytes(DEFAULT) == START + DEFAULT_FIELDS
    assert len(header_bytes(DEFAULT)) == 25


def test_full_header_has_the_documented_bytes() -> None:
    fields = (
        "1F 8006 8004 03 04 78 28 1C 10 10 02 10 08 04"
        " DC0B A8C301 01"  # 1500, 25000 and 1 thousandths
        " 03 02"
        " 02 05 68656C6C6F 7F 00 00"
    )
    assert header_bytes(FULL) == START + bytes.fromhex(fields)
    assert read_header(header_bytes(FULL)) == FULL


def test_what_version_2_adds_has_the_documented_bytes() -> None:
    ordered = replace(DEFAULT, entropy_model=EntropyModel.ORDERED)
    assert header_bytes(ordered) == SECOND + b"\x21" + DEFAULT_FIELDS[1:]
    cut = replace(ordered, cuts=(horizontal(200), vertical(100), 0, 0, 0))
    assert header_bytes(cut) == SECOND + b"\x25" + DEFAULT_FIELDS[1:] + bytes.fromhex(
        "9103 C801 00 00 00"
    )
    boxes = [cut.tile_box(index) for index in range(cut.tile_count)]
    assert boxes == [(0, 0, 100, 200), (100, 0, 668, 200), (0, 200, 768, 312)]
    for header in (ordered, cut):
        assert read_header(header_bytes(header)) == header
        assert header.version == 2
    assert DEFAULT.version == FULL.version == 1


@given(headers())
def test_any_header_round_trips(header: Header) -> None:
    data = header_bytes(header)
    assert read_header(data, UNBOUNDED) == header
    assert read_header(data + b"weights", UNBOUNDED) == header


@given(st.sampled_from((START, SECOND)), st.binary(max_size=60))
def test_accepted_bytes_are_the_only_form_of_their_header(start: bytes, tail: bytes) -> None:
    file = io.BytesIO(start + tail)
    try:
        header = read_header(file, UNBOUNDED)
    except NifError:
        return
    assert header_bytes(header) == file.getvalue()[: file.tell()]


@given(headers())
def test_every_truncation_is_corrupt(header: Header) -> None:
    data = header_bytes(header)
    for length in range(1, len(data)):
        with pytest.raises(CorruptBitstream):
            read_header(data[:length], UNBOUNDED)
    with pytest.raises(NotNif):
        read_header(b"")


def test_sources_are_bytes_path_and_file(tmp_path: Path) -> None:
    data = header_bytes(FULL) + bytes(100)
    path = tmp_path / "x.nif"
    path.write_bytes(data)
    for source in (data, bytearray(data), memoryview(data), path, str(path)):
        assert read_header(source) == FULL
    file = io.BytesIO(b"before" + data)
    file.seek(6)
    assert read_header(file) == FULL
    assert file.tell() == 6 + len(header_bytes(FULL)), "must not read beyond the header"


def test_unreadable_sources_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"missing\.nif"):
        read_header(tmp_path / "missing.nif")
    with pytest.raises(InputError):
        read_header(tmp_path)
    with pytest.raises(UsageError, match="mode 'rb'"):
        read_header(io.StringIO("text"))  # type: ignore[arg-type]


def test_reading_a_header_imports_neither_numpy_nor_torch() -> None:
    code = (
        "import sys\n"
        "from nifcore.header import read_header\n"
        f"assert read_header({header_bytes(DEFAULT)!r}).width == 768\n"
        "print({'numpy', 'torch', 'PIL'} & set(sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert result.stdout.strip() == "set()", result.stderr


def test_is_nif_needs_as_many_bytes_as_differ() -> None:
    assert is_nif(MAGIC) is True
    assert is_nif(MAGIC + b"more") is True
    for length in range(len(MAGIC)):
        assert is_nif(MAGIC[:length]) is None
        assert is_nif(MAGIC[:length] + b"?") is False
        assert is_nif(MAGIC[:length] + b"?" * 20) is False


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"NetImmerse File Format, Version 20.0.0.5\n", NotNif),
        (b"\x89PNG\r\n\x1a\n", NotNif),
        (MAGIC[:-1] + b"\r\n", NotNif),
        (MAGIC + b"\x03" + DEFAULT_FIELDS, UnsupportedVersion),
        (MAGIC + b"\x00" + DEFAULT_FIELDS, UnsupportedVersion),
        (START + b"\x21" + DEFAULT_FIELDS[1:], UnsupportedVersion),  # entropy model 1
        (START + bytes.fromhex("00 00 01 01 01 01 00"), CorruptBitstream),  # width 0
        (START + bytes.fromhex("00 01 00 01 01 01 00"), CorruptBitstream),  # height 0
        (START + bytes.fromhex("00 8080808008 01 01 01 01 00"), CorruptBitstream),  # 2**31
        (START + bytes.fromhex("00 8100 01 01 01 01 00"), CorruptBitstream),  # 1 in two bytes
        (START + bytes.fromhex("00 FFFFFFFF1F 01 01 01 01 00"), CorruptBitstream),  # 2**33
        (START + bytes.fromhex("00 8080808080 01 01 01 01 00"), CorruptBitstream),
        (START + bytes.fromhex("00 01 01 00 01 01 00"), CorruptBitstream),  # colour 0
        (START + bytes.fromhex("00 01 01 05 01 01 00"), CorruptBitstream),  # colour 5
        (START + bytes.fromhex("00 01 01 01 00 00"), CorruptBitstream),  # no hidden layer
        (START + bytes.fromhex("00 01 01 01 11") + bytes([1] * 17) + b"\0", CorruptBitstream),
        (START + bytes.fromhex("00 01 01 01 01 00 00"), CorruptBitstream),  # layer of 0
        (START + bytes.fromhex("00 01 01 01 01 8120 00"), CorruptBitstream),  # layer of 4097
        (START + bytes.fromhex("00 01 01 01 01 01 21"), CorruptBitstream),  # 33 frequencies
        (START + bytes.fromhex("02 01 01 01 01 01 00 F80A B0EA01 904E"), CorruptBitstream),
        (START + bytes.fromhex("02 01 01 01 01 01 00 00 B0EA01 904E"), CorruptBitstream),
        (START + bytes.fromhex("04 01 01 01 01 01 00 01 01"), CorruptBitstream),  # 1 x 1 tiles
        (START + bytes.fromhex("04 03 03 01 01 01 00 04 01"), CorruptBitstream),  # 4 on 3 px
        (START + bytes.fromhex("04 03 03 01 01 01 00 00 01"), CorruptBitstream),
        (START + bytes.fromhex("08 01 01 01 01 01 00 00"), CorruptBitstream),  # empty list
        (START + bytes.fromhex("08 01 01 01 01 01 00 8001 00 00"), UnsupportedVersion),
        (MAGIC + b"\x02" + DEFAULT_FIELDS, CorruptBitstream),  # nothing that version 1 lacks
        (MAGIC + b"\x02\x41" + DEFAULT_FIELDS[1:], UnsupportedVersion),  # entropy model 2
        (SECOND + bytes.fromhex("04 04 04 01 01 01 00 00"), CorruptBitstream),  # one tile
        (SECOND + bytes.fromhex("04 04 04 01 01 01 00 01 00 00"), CorruptBitstream),  # 0 rows
        (SECOND + bytes.fromhex("04 04 04 01 01 01 00 08 00 00"), CorruptBitstream),  # column 4
        (SECOND + bytes.fromhex("04 04 04 01 01 01 00 02 00 09 00 00"), CorruptBitstream),  # row 4
        (SECOND + bytes.fromhex("04 04 04 01 01 01 00 02 00"), CorruptBitstream),  # a part is left
    ],
)
def test_refusals(data: bytes, error: type[NifError]) -> None:
    with pytest.raises(error):
        read_header(data)


def test_limits_are_checked_before_anything_large_is_read() -> None:
    with pytest.raises(LimitExceeded, match="1000x1001"):
        read_header(header_bytes(replace(DEFAULT, width=1000, height=1001)), Limits(1_000_000))
    with pytest.raises(LimitExceeded, match="side"):
        read_header(header_bytes(replace(DEFAULT, width=70_000, height=1)))
    with pytest.raises(LimitExceeded, match="14992 weights"):
        read_header(header_bytes(DEFAULT), Limits(max_parameters=14_991))
    read_header(header_bytes(DEFAULT), Limits(max_parameters=14_992))
    with pytest.raises(LimitExceeded, match="89952 weights"):
        read_header(header_bytes(replace(DEFAULT, tiles=(3, 2))), Limits(max_parameters=14_992))

    many = replace(DEFAULT, cuts=(vertical(9), 0, vertical(9), 0, vertical(9), 0, 0))
    with pytest.raises(LimitExceeded, match="59968 weights"):
        read_header(header_bytes(many), Limits(max_parameters=4 * 14_992 - 1))
    read_header(header_bytes(many), Limits(max_parameters=4 * 14_992))

    class Endless(io.RawIOBase):
        """A file that would go on for ever; it counts what is taken."""

        taken = 0

        def __init__(self, start: bytes) -> None:
            self.start = io.BytesIO(start)

        def read(self, size: int = -1) -> bytes:
            self.taken += size
            return self.start.read(size) or bytes(size)

    head = header_bytes(replace(DEFAULT, extensions=(Extension(1, b"x"),)))[:-3]
    endless = Endless(head + varint_bytes(2**32 - 1))
    with pytest.raises(LimitExceeded, match="extension"):
        read_header(endless)  # type: ignore[arg-type]
    assert endless.taken < 100
    blocks = b"".join(b"\x01" + varint_bytes(3_000_000) + bytes(3_000_000) for _ in range(2))
    with pytest.raises(LimitExceeded, match="extension"):
        read_header(head[:-1] + blocks)


def test_there_are_at_most_65536_tiles() -> None:
    most = replace(DEFAULT, width=65_537, height=2, genesis=NetShape((1,), 0), modulation=None)
    cuts = (vertical(1), 0) * 65_535 + (0,)
    head = header_bytes(most)
    whole = header_bytes(replace(most, cuts=cuts))
    assert read_header(whole, Limits(max_side=65_537)).tile_count == 65_536
    with pytest.raises(UsageError, match="65537"):
        replace(most, cuts=(vertical(1), 0, *cuts))
    with pytest.raises(UsageError, match="131072"):
        replace(most, tiles=(65_536, 2))
    start = SECOND + b"\x04" + head[len(START) + 1 :]
    with pytest.raises(CorruptBitstream, match="65537"):
        read_header(start + b"\x02\x00" * 65_536 + b"\0")
    with pytest.raises(CorruptBitstream, match="65537"):
        read_header(start + b"\x02" * 10_000_000)


@pytest.mark.parametrize(
    "change",
    [
        {"width": 0},
        {"height": 2**31},
        {"base": 0.0},
        {"base": 16.001},
        {"base": 1.4001},
        {"omega": float("nan")},
        {"omega": float("inf")},
        {"sigma": -1.0},
        {"tiles": (0, 1)},
        {"tiles": (769, 1)},
        {"tiles": (2, 1), "entropy_model": EntropyModel.ORDERED},
        {"tiles": (2, 1), "cuts": (vertical(3), 0, 0)},
        {"cuts": (0,)},
        {"cuts": (vertical(768), 0, 0)},
        {"cuts": (horizontal(512), 0, 0)},
        {"cuts": (1, 0, 0)},
        {"cuts": (vertical(3), 0)},
        {"cuts": (vertical(3), 0, 0, 0)},
        {"cuts": (vertical(3), vertical(3), 0, 0, 0)},
    ],
)
def test_impossible_headers_cannot_be_made(change: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        replace(DEFAULT, **change)  # type: ignore[arg-type]


def test_impossible_nets_and_blocks_cannot_be_made() -> None:
    for hidden, frequencies in (((), 1), ((1,) * 17, 1), ((4097,), 1), ((0,), 1), ((1,), 33)):
        with pytest.raises(UsageError):
            NetShape(hidden, frequencies)
    with pytest.raises(UsageError):
        Extension(0, b"")


def test_the_default_networks_have_the_published_number_of_weights() -> None:
    shapes = DEFAULT.tensor_shapes()
    assert shapes[:4] == [(120, 66), (120,), (40, 120), (40,)]
    assert shapes[8:12] == [(3, 16), (3,), (16, 18), (16,)]
    assert shapes[-2:] == [(1, 8), (1,)]
    assert DEFAULT.parameters == 14_992
    assert replace(DEFAULT, modulation=None).tensor_shapes() == shapes[:10]


@given(st.integers(1, 200), st.integers(1, 200), st.data())
def test_tiles_cover_every_pixel_once(width: int, height: int, data: st.DataObject) -> None:
    columns = data.draw(st.integers(1, width))
    tiles = (columns, data.draw(st.integers(1, min(height, MAX_TILES // columns))))
    header = replace(DEFAULT, width=width, height=height, tiles=tiles)
    columns, rows = set(), set()
    area = 0
    for index in range(header.tile_count):
        x, y, w, h = header.tile_box(index)
        assert w >= 1
        assert h >= 1
        columns.add((x, x + w))
        rows.add((y, y + h))
        area += w * h
    assert area == width * height
    for spans, side in ((sorted(columns), width), (sorted(rows), height)):
        assert spans[0][0] == 0
        assert spans[-1][1] == side
        assert all(a[1] == b[0] for a, b in pairwise(spans))
    with pytest.raises(UsageError):
        header.tile_box(header.tile_count)
