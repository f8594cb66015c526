"""Whole files: round trips, sizes, and refusal of everything that is not a file."""

from __future__ import annotations

import random
import tracemalloc
import zlib
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings

from nifcore.bitstream import (
    code_length,
    expected_magnitudes,
    pack,
    side_information_bits,
    unpack,
    unpack_tiles,
)
from nifcore.errors import (
    CorruptBitstream,
    LimitExceeded,
    NotNif,
    UnsupportedVersion,
    UsageError,
)
from nifcore.header import Colour, Header, LatticeKind, NetShape, header_bytes
from nifcore.limits import Limits
from nifcore.tensors import PublishedStep, QuantisedTensor, UniformStep
from tests.golden.catalogue import FOLDER
from tests.golden.synthetic import HEADERS, tiles_of
from tests.nifcore import reference_decoder
from tests.nifcore.strategies import files

START = bytes.fromhex("8E4E49460D0A1A0A01")
REFUSALS = (NotNif, CorruptBitstream, UnsupportedVersion, LimitExceeded)
BOUNDS = Limits(max_pixels=1 << 20, max_side=1 << 14, max_parameters=20_000)
WIDE = Limits(max_pixels=2**62, max_side=2**31)
DEFAULT = HEADERS["synthetic-default"]
TILED = HEADERS["synthetic-tiles"]


def seal(body: bytes) -> bytes:
    """Append the CRC that fits."""
    return body + zlib.crc32(body).to_bytes(4, "little")


def golden(name: str) -> bytes:
    return (FOLDER / f"{name}.nif").read_bytes()


def same(first: list[QuantisedTensor], second: list[QuantisedTensor]) -> bool:
    return len(first) == len(second) and all(
        a.step == b.step and np.array_equal(a.symbols, b.symbols)
        for a, b in zip(first, second, strict=True)
    )


def outcome(read: Callable[[], object]) -> str:
    """Return the name of the refusal, or "read"; any other error fails the test."""
    try:
        read()
    except REFUSALS as error:
        return type(error).__name__
    return "read"


@given(files())
def test_any_header_and_weights_round_trip(
    file: tuple[Header, list[list[QuantisedTensor]]],
) -> None:
    header, tiles = file
    data = pack(header, tiles)
    found, tensors = unpack(data, WIDE)
    assert found == header
    assert all(same(a, b) for a, b in zip(tensors, tiles, strict=True))
    for tensor in (tensor for tile in tensors for tensor in tile):
        assert tensor.symbols.dtype == np.int32
    total = sum(code_length(header, tile) for tile in tiles) / 8
    frame = len(header_bytes(header)) + 4 + (2 * len(tiles) if len(tiles) > 1 else 0)
    assert len(data) == pytest.approx(frame + total, rel=2e-3, abs=2 * len(tiles) + 1)


@settings(max_examples=60)
@given(files())
def test_a_second_decoder_reads_the_same(
    file: tuple[Header, list[list[QuantisedTensor]]],
) -> None:
    header, tiles = file
    decoded = reference_decoder.decode_file(pack(header, tiles))
    assert (decoded.width, decoded.height) == (header.width, header.height)
    assert (decoded.base, decoded.omega, decoded.sigma) == (header.base, header.omega, header.sigma)
    assert decoded.blocks == [(block.id, block.data) for block in header.extensions]
    for symbols, weights, tensors in zip(decoded.symbols, decoded.weights, tiles, strict=True):
        for rows, values, tensor in zip(symbols, weights, tensors, strict=True):
            assert tensor.symbols.reshape(len(rows), -1).tolist() == rows
            assert tensor.values().reshape(len(rows), -1).tolist() == values


def test_tiles_are_read_one_by_one() -> None:
    data, tiles = golden("synthetic-tiles"), tiles_of("synthetic-tiles", TILED)
    header, some = unpack_tiles(data, lambda _: (4, 1))
    assert header == TILED
    assert set(some) == {1, 4}
    assert same(some[1], tiles[1])
    assert same(some[4], tiles[4])
    for index in (-1, 6):
        with pytest.raises(UsageError, match="6 tiles"):
            unpack_tiles(data, lambda _, index=index: [index])


@pytest.mark.parametrize(
    "quarters",
    [
        (0, -2, 0, -2, 0, 0, -3, -4, 0, -2, 0, -2, -4, -5, -5, -5),  # kodim05
        (0, -1, -1, -4, 0, -2, -6, -9, -6, -9, 0, 0, -2, -6, -6, -7),  # kodim12
        (0,) * 16,
    ],
)
def test_a_default_file_spends_at_most_40_bytes_on_all_but_symbols(
    quarters: tuple[int, ...],
) -> None:
    """Magic, version, header, CRC and the bits of the steps, for steps by sensitivity.

    The steps are those of fits of Kodak pictures at 0.22 bpp, in quarter octaves.
    """
    tensors = [
        QuantisedTensor(tensor.symbols, UniformStep(965 + 8 * quarter))
        for tensor, quarter in zip(tiles_of("synthetic-default", DEFAULT)[0], quarters, strict=True)
    ]
    frame = len(header_bytes(DEFAULT)) + 4
    assert frame == 29
    assert frame + side_information_bits(tensors) / 8 <= 40
    # What the bits are counted by is what the file holds: it grows by as many.
    plain = [QuantisedTensor(tensor.symbols, UniformStep(965)) for tensor in tensors]
    growth = len(pack(DEFAULT, [tensors])) - len(pack(DEFAULT, [plain]))
    counted = (code_length(DEFAULT, tensors) - code_length(DEFAULT, plain)) / 8
    assert growth == pytest.approx(counted, abs=2)


def test_code_length_is_that_of_the_file() -> None:
    for name, header in HEADERS.items():
        for tensors in tiles_of(name, header):
            one = replace(header, tiles=(1, 1), cuts=())
            data = pack(one, [tensors])
            estimate = code_length(header, tensors) / 8 + len(header_bytes(one)) + 4
            assert len(data) == pytest.approx(estimate, rel=1e-3, abs=1.5)
            for tensor, expected in zip(tensors, expected_magnitudes(header, tensors), strict=True):
                assert expected.shape == tensor.symbols.shape
                assert expected.min() > 0


@pytest.mark.parametrize("name", ["synthetic-cuts", "synthetic-published", "synthetic-extreme"])
def test_every_flipped_bit_is_refused(name: str) -> None:
    data = golden(name)
    assert outcome(lambda: unpack(data)) == "read"
    for position in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[position // 8] ^= 1 << position % 8
        found = outcome(lambda flipped=flipped: unpack(bytes(flipped)))  # type: ignore[misc]
        place = position // 8
        wanted = (
            "NotNif" if place < 8 else "UnsupportedVersion" if place == 8 else "CorruptBitstream"
        )
        assert found == wanted, f"bit {position}"


@pytest.mark.parametrize("name", sorted(HEADERS))
def test_every_truncation_is_refused(name: str) -> None:
    data = golden(name)
    for length in range(len(data)):
        found = outcome(lambda length=length: unpack(data[:length]))  # type: ignore[misc]
        assert found == ("NotNif" if length == 0 else "CorruptBitstream"), f"{length} bytes"
    for extra in (b"\0", b"more"):
        assert outcome(lambda extra=extra: unpack(data + extra)) == "CorruptBitstream"  # type: ignore[misc]


@pytest.mark.parametrize("name", ["synthetic-cuts", "synthetic-published", "synthetic-extreme"])
def test_flipped_bits_under_a_valid_crc_are_read_or_refused(name: str) -> None:
    """Behind the CRC every byte is still distrusted: no other error, no endless work."""
    body = golden(name)[:-4]
    chosen = random.Random(1)
    found = set()
    for _ in range(300):
        flipped = bytearray(body)
        for _ in range(chosen.choice((1, 1, 2, 8))):
            position = chosen.randrange(72, 8 * len(body))
            flipped[position // 8] ^= 1 << position % 8
        found.add(outcome(lambda flipped=flipped: unpack(seal(flipped), BOUNDS)))  # type: ignore[misc]
    assert "CorruptBitstream" in found


def test_truncations_and_appendices_under_a_valid_crc_are_refused() -> None:
    body = golden("synthetic-published")[:-4]
    for length in range(len(START), len(body) - 2):
        assert outcome(lambda length=length: unpack(seal(body[:length]))) == "CorruptBitstream"  # type: ignore[misc]
    assert outcome(lambda: unpack(seal(body + bytes(3)))) == "CorruptBitstream"
    tiled = golden("synthetic-tiles")[:-4]
    for change in (tiled[:-1], tiled + b"\0"):
        with pytest.raises(CorruptBitstream, match="announced"):
            unpack(seal(change))


@pytest.mark.parametrize("prefix", [b"", START, START + b"\0\x08\x08\x03\x01\x01\0"])
@pytest.mark.parametrize("sealed", [False, True])
def test_random_bytes_are_refused(prefix: bytes, sealed: bool) -> None:
    """4,000 strings: as they are, behind a valid start, and with a CRC that fits."""
    chosen = random.Random(len(prefix) + sealed)
    found = dict.fromkeys(("read", "NotNif", "CorruptBitstream"), 0)
    for _ in range(4_000):
        data = prefix + chosen.randbytes(chosen.randrange(60))
        data = seal(data) if sealed else data
        kind = outcome(lambda data=data: unpack(data, BOUNDS))  # type: ignore[misc]
        found[kind] = found.get(kind, 0) + 1
    if prefix:
        assert found["NotNif"] == 0
        assert found["CorruptBitstream"] > 400
    else:
        assert found["NotNif"] > 3_960
    # Random bytes behind a whole header decode to random weights where the length fits.
    assert sealed or found["read"] == 0


def test_hostile_sizes_are_refused_before_they_are_allocated() -> None:
    huge = Header(2**31 - 1, 2**31 - 1, Colour.SRGB, NetShape((4096,) * 16, 32), tiles=(65_536, 1))
    wide = replace(huge, width=9_999, height=5_000, tiles=(1, 1))
    many = Header(65_535, 700, Colour.GREY, NetShape((1,), 0), tiles=(65_535, 1))
    many_weights = Header(8, 8, Colour.GREY, NetShape((4096, 4096), 32))
    tracemalloc.start()
    try:
        for header, error in (
            (huge, LimitExceeded),
            (wide, LimitExceeded),
            (many, CorruptBitstream),
            (many_weights, CorruptBitstream),
        ):
            with pytest.raises(error):
                unpack(seal(header_bytes(header) + bytes(40)))
        # A directory of enormous tiles, and blocks that claim gigabytes.
        two = header_bytes(Header(8, 8, Colour.GREY, NetShape((1,), 0), tiles=(2, 1)))
        with pytest.raises(CorruptBitstream):
            unpack(seal(two + b"\xff\xff\xff\xff\x0f" * 2 + bytes(40)))
        block = header_bytes(DEFAULT)[:9] + b"\x08" + header_bytes(DEFAULT)[10:]
        with pytest.raises(CorruptBitstream):
            unpack(seal(block + b"\x01\x80\x80\x80\x01"))
        with pytest.raises(LimitExceeded, match="bytes"):
            unpack(bytes(1001), Limits(max_file_bytes=1000))
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_impossible_steps_are_corrupt() -> None:
    from nifcore.rangecoder import RangeEncoder

    header = Header(8, 8, Colour.GREY, NetShape((1,), 0), lattice=LatticeKind.PUBLISHED)
    for bits, bound in ((7, 0), (6, 0x7C00), (0, 0x7FFF)):  # 9 bits; infinite; not a number
        encoder = RangeEncoder()
        for _ in range(4):
            encoder.encode_bits(bits, 3)
            encoder.encode_bits(bound, 15)
        with pytest.raises(CorruptBitstream, match="invalid weights"):
            unpack(seal(header_bytes(header) + encoder.finish() + bytes(2)))
    tensors = [
        QuantisedTensor(np.zeros(shape, dtype=np.int32), UniformStep(index))
        for shape, index in zip([(1, 2), (1,), (1, 1), (1,)], (0, 2047, 0, 2047), strict=True)
    ]
    one = replace(header, lattice=LatticeKind.UNIFORM)
    assert same(unpack(pack(one, [tensors]))[1][0], tensors)


def test_what_does_not_fit_the_header_is_not_packed() -> None:
    tensors = tiles_of("synthetic-tiles", TILED)
    with pytest.raises(UsageError, match="5 tiles"):
        pack(TILED, tensors[:5])
    with pytest.raises(UsageError, match="shapes"):
        pack(replace(TILED, genesis=NetShape((9, 6), 3)), tensors)
    with pytest.raises(UsageError, match="shapes"):
        code_length(TILED, tensors[0][:-1])
    with pytest.raises(UsageError, match="PUBLISHED"):
        pack(replace(TILED, lattice=LatticeKind.PUBLISHED), tensors)
    mixed = [*tensors[0][:-1], QuantisedTensor(tensors[0][-1].symbols * 0, PublishedStep(8, 0))]
    with pytest.raises(UsageError, match="UNIFORM"):
        pack(TILED, [mixed, *tensors[1:]])
