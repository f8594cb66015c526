"""The header of a .nif file: what the picture and its networks look like.

Everything here runs on the standard library alone, so that reading a header takes milliseconds.
The byte layout is specified in ``docs/format.md``, sections "File" and "Header".
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from io import BytesIO
from itertools import pairwise
from typing import BinaryIO

from nifcore.errors import (
    CorruptBitstream,
    InputError,
    LimitExceeded,
    NotNif,
    UnsupportedVersion,
    UsageError,
)
from nifcore.limits import Limits
from nifcore.tiling import Box, Cuts, boxes_of

MAGIC = b"\x8eNIF\r\n\x1a\n"
VERSIONS = (1, 2)
CRC_BYTES = 4
"""A file ends with the CRC-32 of everything before it."""

MAX_SIDE = 2**31 - 1
MAX_TILES = 65_536
MAX_HIDDEN_LAYERS = 16
MAX_HIDDEN_SIZE = 4096
MAX_FREQUENCIES = 32
MAX_BASE_THOUSANDTHS = 16_000
MAX_OMEGA_THOUSANDTHS = 10_000_000
MAX_SIGMA_THOUSANDTHS = 10_000_000

DEFAULT_BASE = 1.4
DEFAULT_OMEGA = 30.0
DEFAULT_SIGMA = 10.0

EXTENSION_ICC_PROFILE = 1
EXTENSION_COMMENT = 2
FIRST_CRITICAL_EXTENSION = 128
KNOWN_CRITICAL_EXTENSIONS: frozenset[int] = frozenset()

FLAG_MODULATION = 0x01
FLAG_CONSTANTS = 0x02
FLAG_TILES = 0x04
FLAG_EXTENSIONS = 0x08
FLAG_LATTICE = 0x10
ENTROPY_MODEL_SHIFT = 5

_ENTROPY_MODELS = {1: (0,), 2: (0, 1)}
"""Entropy models of every version."""

_VARINT_BYTES = 5
_VARINT_MAX = 2**32 - 1
_CHUNK = 1 << 16


class Colour(IntEnum):
    """What the samples of a pixel mean; the id is the number of channels."""

    GREY = 1
    GREY_ALPHA = 2
    SRGB = 3
    SRGB_ALPHA = 4


class LatticeKind(IntEnum):
    """How a symbol becomes a weight (``docs/format.md``, section "Lattices")."""

    UNIFORM = 0
    PUBLISHED = 1


class EntropyModel(IntEnum):
    """Which model gives the probabilities of the symbols (section "Weights")."""

    ADAPTIVE = 0
    ORDERED = 1


@dataclass(frozen=True)
class NetShape:
    """Sizes of one sine network.

    Attributes:
        hidden: features of each hidden layer, first to last; 1 to 16 layers of 1 to 4096.
        frequencies: F of the positional encoding, 0 to 32.
    """

    hidden: tuple[int, ...]
    frequencies: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", tuple(self.hidden))
        _check_range("number of hidden layers", len(self.hidden), 1, MAX_HIDDEN_LAYERS)
        for size in self.hidden:
            _check_range("size of a hidden layer", size, 1, MAX_HIDDEN_SIZE)
        _check_range("number of frequencies", self.frequencies, 0, MAX_FREQUENCIES)

    @property
    def inputs(self) -> int:
        """Features of the positional encoding: both coordinates, four more per frequency."""
        return 2 + 4 * self.frequencies

    def tensor_shapes(self, outputs: int) -> list[tuple[int, ...]]:
        """Shapes of weight (out, in) and bias (out,) of every layer, first to last."""
        sizes = (self.inputs, *self.hidden, outputs)
        shapes: list[tuple[int, ...]] = []
        for fan_in, fan_out in pairwise(sizes):
            shapes += [(fan_out, fan_in), (fan_out,)]
        return shapes


@dataclass(frozen=True)
class Extension:
    """An extension block: ``id`` below 128 may be skipped, from 128 on it must be understood."""

    id: int
    data: bytes

    def __post_init__(self) -> None:
        _check_range("extension id", self.id, 1, _VARINT_MAX)
        object.__setattr__(self, "data", bytes(self.data))


@dataclass(frozen=True)
class Header:
    """Everything a .nif file says before its weights.

    Attributes:
        width, height: of the picture in pixels, 1 to 2**31 - 1.
        colour: meaning of the channels.
        genesis: the network that gives the samples.
        modulation: the network that gives the period shift, or None when switched off.
        base, omega, sigma: constants of the networks; multiples of 1/1000.
            0.001 <= base <= 16, 0.001 <= omega <= 10000, 0 <= sigma <= 10000.
        tiles: (columns, rows) of a regular grid of tiles; every tile has its own weights.
        cuts: what cuts the picture into tiles instead (:mod:`nifcore.tiling`), or nothing.
        lattice: how symbols become weights.
        entropy_model: which model codes the symbols.
        extensions: blocks carried along, in file order.

    Raises:
        UsageError: on construction, when a field is out of its range, or a grid is to go with what
            only version 2 has: cuts or the ordered entropy model.
    """

    width: int
    height: int
    colour: Colour
    genesis: NetShape
    modulation: NetShape | None = None
    base: float = DEFAULT_BASE
    omega: float = DEFAULT_OMEGA
    sigma: float = DEFAULT_SIGMA
    tiles: tuple[int, int] = (1, 1)
    lattice: LatticeKind = LatticeKind.UNIFORM
    entropy_model: EntropyModel = EntropyModel.ADAPTIVE
    extensions: tuple[Extension, ...] = ()
    cuts: Cuts = ()

    def __post_init__(self) -> None:
        _check_range("width", self.width, 1, MAX_SIDE)
        _check_range("height", self.height, 1, MAX_SIDE)
        object.__setattr__(self, "colour", Colour(self.colour))
        object.__setattr__(self, "lattice", LatticeKind(self.lattice))
        object.__setattr__(self, "entropy_model", EntropyModel(self.entropy_model))
        object.__setattr__(self, "tiles", tuple(self.tiles))
        object.__setattr__(self, "cuts", tuple(self.cuts))
        object.__setattr__(self, "extensions", tuple(self.extensions))
        _check_range("base in thousandths", _thousandths(self.base), 1, MAX_BASE_THOUSANDTHS)
        _check_range("omega in thousandths", _thousandths(self.omega), 1, MAX_OMEGA_THOUSANDTHS)
        _check_range("sigma in thousandths", _thousandths(self.sigma), 0, MAX_SIGMA_THOUSANDTHS)
        columns, rows = self.tiles
        _check_range("tile columns", columns, 1, self.width)
        _check_range("tile rows", rows, 1, self.height)
        if self.version > 1 and self.tiles != (1, 1):
            raise UsageError(
                f"a grid of {columns}x{rows} tiles with what version {self.version} brings; "
                "cuts are accepted there"
            )
        _check_range("tiles", self.tile_count, 1, MAX_TILES)

    @property
    def version(self) -> int:
        """Of the format: the first that can say what this header says."""
        return 2 if self.cuts or self.entropy_model is EntropyModel.ORDERED else 1

    @property
    def channels(self) -> int:
        """Samples of a pixel, 1 to 4."""
        return int(self.colour)

    @property
    def tile_count(self) -> int:
        """Number of tiles, at least 1."""
        return len(self._boxes) * self.tiles[0] * self.tiles[1]

    def tensor_shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the tensors of one tile in file order: weight (out, in), bias (out,), ..."""
        shapes = self.genesis.tensor_shapes(self.channels)
        return shapes if self.modulation is None else shapes + self.modulation.tensor_shapes(1)

    @property
    def parameters(self) -> int:
        """Number of weights of one tile."""
        return sum(math.prod(shape) for shape in self.tensor_shapes())

    def tile_box(self, index: int) -> Box:
        """Return (x, y, width, height) in pixels of tile ``index``; a grid's go row by row."""
        columns, rows = self.tiles
        if not 0 <= index < self.tile_count:
            raise UsageError(f"tile {index} does not exist; the file has {self.tile_count} tiles")
        if self.cuts:
            return self._boxes[index]
        row, column = divmod(index, columns)
        left = column * self.width // columns
        right = (column + 1) * self.width // columns
        top = row * self.height // rows
        bottom = (row + 1) * self.height // rows
        return left, top, right - left, bottom - top

    @cached_property
    def _boxes(self) -> tuple[Box, ...]:
        return boxes_of(self.width, self.height, self.cuts)


def is_nif(prefix: bytes) -> bool | None:
    """Tell whether data that begins with ``prefix`` is a .nif file; None = need more bytes."""
    if len(prefix) >= len(MAGIC):
        return prefix[: len(MAGIC)] == MAGIC
    return None if MAGIC.startswith(prefix) else False


def read_header(
    data: bytes | bytearray | memoryview | str | os.PathLike[str] | BinaryIO,
    limits: Limits | None = None,
) -> Header:
    """Read the header of a .nif file, and no byte beyond it.

    The CRC is not checked here, for it lies at the end of the file.

    Args:
        data: the file's bytes, its path, or a binary file to be read from where it stands; such
            a file is left just behind the header.
        limits: bounds on sides, pixels, weights and extension blocks (default ``Limits()``).

    Raises:
        NotNif: the data does not begin with the magic.
        UnsupportedVersion: another version, an unknown entropy model or critical block.
        CorruptBitstream: truncated, or a field has a value that its version does not allow.
        LimitExceeded: the picture, its networks or an extension block exceed ``limits``.
        InputError: the path cannot be read.
    """
    limits = limits or Limits()
    if isinstance(data, bytes | bytearray | memoryview):
        return parse_header(BytesIO(data), limits)
    if isinstance(data, str | os.PathLike):
        try:
            with open(data, "rb") as file:
                return parse_header(file, limits)
        except OSError as error:
            reason = error.strerror or error
            raise InputError(f"cannot read {os.fspath(data)!r}: {reason}") from error
    return parse_header(data, limits)


def parse_header(file: BinaryIO, limits: Limits) -> Header:
    """Parse a header from ``file``, leaving the file just behind it; see :func:`read_header`."""
    magic = _read_up_to(file, len(MAGIC))
    if magic != MAGIC:
        if magic and is_nif(magic) is None:
            raise CorruptBitstream(f"file ends after {len(magic)} bytes, within the magic")
        raise NotNif(f"not a .nif file: begins with {magic!r}, expected {MAGIC!r}")
    version = _read_exactly(file, 1, "version")[0]
    check_version(version)
    try:
        header = _parse_fields(file, version, limits)
    except UsageError as error:
        raise CorruptBitstream(f"invalid header: {error}") from error
    _check_limits(header, limits)
    return header


def check_version(version: int) -> None:
    """Raise UnsupportedVersion unless this decoder knows that version of the format."""
    if version not in VERSIONS:
        known = " and ".join(str(each) for each in VERSIONS)
        raise UnsupportedVersion(f"format version {version}; this decoder knows versions {known}")


def header_bytes(header: Header) -> bytes:
    """Serialise ``header`` with magic and version; the only form that a decoder accepts."""
    flags = header.lattice * FLAG_LATTICE | header.entropy_model << ENTROPY_MODEL_SHIFT
    out = bytearray()
    for value in (header.width, header.height):
        out += varint_bytes(value)
    out.append(header.colour)
    out += _net_bytes(header.genesis)
    if header.modulation is not None:
        flags |= FLAG_MODULATION
        out += _net_bytes(header.modulation)
    constants = (header.base, header.omega, header.sigma)
    if constants != (DEFAULT_BASE, DEFAULT_OMEGA, DEFAULT_SIGMA):
        flags |= FLAG_CONSTANTS
        for constant in constants:
            out += varint_bytes(_thousandths(constant))
    if header.tiles != (1, 1):
        flags |= FLAG_TILES
        for count in header.tiles:
            out += varint_bytes(count)
    if header.cuts:
        flags |= FLAG_TILES
        for number in header.cuts:
            out += varint_bytes(number)
    if header.extensions:
        flags |= FLAG_EXTENSIONS
        for block in header.extensions:
            out += varint_bytes(block.id) + varint_bytes(len(block.data)) + block.data
        out.append(0)
    return MAGIC + bytes((header.version, flags)) + bytes(out)


def varint_bytes(value: int) -> bytes:
    """Write ``value`` (0 to 2**32 - 1) as LEB128: seven bits a byte, low bits first."""
    _check_range("integer field", value, 0, _VARINT_MAX)
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def read_varint(file: BinaryIO, name: str) -> int:
    """Read a LEB128 integer of the shortest form below 2**32; ``name`` is for the message.

    Raises:
        CorruptBitstream: truncated, longer than needed, or too large.
    """
    value = 0
    for position in range(_VARINT_BYTES):
        byte = _read_exactly(file, 1, name)[0]
        value |= (byte & 0x7F) << 7 * position
        if byte < 0x80:
            if (byte == 0 and position > 0) or value > _VARINT_MAX:
                break
            return value
    raise CorruptBitstream(f"{name}: not an integer below 2**32 in its shortest form")


def _parse_fields(file: BinaryIO, version: int, limits: Limits) -> Header:
    flags = _read_exactly(file, 1, "flags")[0]
    model = flags >> ENTROPY_MODEL_SHIFT
    if model not in _ENTROPY_MODELS[version]:
        raise UnsupportedVersion(f"entropy model {model} needs a newer decoder")
    width = read_varint(file, "width")
    height = read_varint(file, "height")
    colour = _read_exactly(file, 1, "colour")[0]
    if colour not in set(Colour):
        raise CorruptBitstream(f"colour id {colour}; 1 to 4 are known")
    genesis = _read_net(file, "Genesis")
    modulation = _read_net(file, "Modulation") if flags & FLAG_MODULATION else None
    constants = (DEFAULT_BASE, DEFAULT_OMEGA, DEFAULT_SIGMA)
    if flags & FLAG_CONSTANTS:
        names = ("base", "omega", "sigma")
        base, omega, sigma = (read_varint(file, name) / 1000 for name in names)
        if (base, omega, sigma) == constants:
            raise CorruptBitstream("constants are stored although they are the defaults")
        constants = (base, omega, sigma)
    tiles, cuts = (1, 1), Cuts()
    if flags & FLAG_TILES and version == 1:
        tiles = (read_varint(file, "tile columns"), read_varint(file, "tile rows"))
        if tiles == (1, 1):
            raise CorruptBitstream("a tile grid is stored although there is one tile")
    elif flags & FLAG_TILES:
        cuts = _read_cuts(file)
    header = Header(
        width=width,
        height=height,
        colour=Colour(colour),
        genesis=genesis,
        modulation=modulation,
        base=constants[0],
        omega=constants[1],
        sigma=constants[2],
        tiles=tiles,
        lattice=LatticeKind(1 if flags & FLAG_LATTICE else 0),
        entropy_model=EntropyModel(model),
        extensions=_read_extensions(file, limits) if flags & FLAG_EXTENSIONS else (),
        cuts=cuts,
    )
    if header.version != version:
        raise CorruptBitstream(f"version {version} is stored where {header.version} says the same")
    return header


def _read_net(file: BinaryIO, name: str) -> NetShape:
    layers = read_varint(file, f"{name} layers")
    _check_range(f"number of hidden layers of {name}", layers, 1, MAX_HIDDEN_LAYERS)
    hidden = tuple(read_varint(file, f"{name} layer size") for _ in range(layers))
    return NetShape(hidden, read_varint(file, f"{name} frequencies"))


def _net_bytes(net: NetShape) -> bytes:
    fields = (len(net.hidden), *net.hidden, net.frequencies)
    return b"".join(varint_bytes(field) for field in fields)


def _read_cuts(file: BinaryIO) -> Cuts:
    """Read cuts until every part is a tile."""
    cuts: list[int] = []
    open_parts, tiles = 1, 0
    while open_parts:
        number = read_varint(file, "cut")
        cuts.append(number)
        tiles += number == 0
        open_parts += 1 if number else -1
        _check_range("tiles", tiles + open_parts, 1, MAX_TILES)
    return tuple(cuts)


def _read_extensions(file: BinaryIO, limits: Limits) -> tuple[Extension, ...]:
    blocks: list[Extension] = []
    left = limits.max_metadata_bytes
    while block_id := read_varint(file, "extension id"):
        if block_id >= FIRST_CRITICAL_EXTENSION and block_id not in KNOWN_CRITICAL_EXTENSIONS:
            raise UnsupportedVersion(f"critical extension block {block_id} needs a newer decoder")
        length = read_varint(file, "extension length")
        left -= length
        if left < 0:
            raise LimitExceeded(
                f"extension blocks exceed the limit of {limits.max_metadata_bytes} bytes"
            )
        blocks.append(Extension(block_id, _read_exactly(file, length, "extension block")))
    if not blocks:
        raise CorruptBitstream("an empty list of extension blocks is stored")
    return tuple(blocks)


def _check_limits(header: Header, limits: Limits) -> None:
    size = f"{header.width}x{header.height}"
    if max(header.width, header.height) > limits.max_side:
        raise LimitExceeded(f"picture of {size}: the limit is {limits.max_side} pixels a side")
    if header.width * header.height > limits.max_pixels:
        raise LimitExceeded(f"picture of {size}: the limit is {limits.max_pixels} pixels")
    weights = header.parameters * header.tile_count
    if weights > limits.max_parameters:
        raise LimitExceeded(f"{weights} weights: the limit is {limits.max_parameters}")


def _read_up_to(file: BinaryIO, count: int) -> bytes:
    parts: list[bytes] = []
    # Bounded reads: a false length must not allocate more than the file really holds.
    while count > 0 and (part := file.read(min(count, _CHUNK))):
        if not isinstance(part, bytes):
            raise UsageError("the file is open in text mode; open it with mode 'rb'")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def _read_exactly(file: BinaryIO, count: int, name: str) -> bytes:
    data = _read_up_to(file, count)
    if len(data) < count:
        raise CorruptBitstream(f"file ends within {name}: {len(data)} bytes of {count}")
    return data


def _thousandths(constant: float) -> int:
    scaled = round(constant * 1000) if math.isfinite(constant) else -1
    if scaled / 1000 != constant:
        raise UsageError(f"constant {constant!r} is not a multiple of 1/1000 from 0 up")
    return scaled


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise UsageError(f"{name} is {value}; {low} to {high} is accepted")
