"""A second decoder of .nif files, written from ``docs/format.md`` alone: plain, slow, exact.

It shares no code with nifcore. The range coder keeps its whole interval as one unbounded integer
instead of a window of 48 bits, floats are rounded through ``struct``, and pictures are rendered
pixel by pixel in double precision.
"""

from __future__ import annotations

import math
import struct
import zlib
from dataclasses import dataclass, field
from functools import cache


def root(value: int, degree: int) -> int:
    """Return the floor of the ``degree``-th root, by bisection."""
    low, high = 0, 1 << value.bit_length() // degree + 1
    while high - low > 1:
        middle = (low + high) // 2
        if middle**degree <= value:
            low = middle
        else:
            high = middle
    return low


MANTISSAS = [(root(2 ** (32 * 24 + j), 32) + 1) // 2 for j in range(32)]
THRESHOLDS = [root(2 ** (16 * 16 + 2 * j + 1), 16) for j in range(8)]
QUARTERS = [root(2 ** (16 * 4 + j), 4) for j in range(4)]


def single(value: float) -> float:
    """Round to a 32-bit float."""
    return float(struct.unpack("<f", struct.pack("<f", value))[0])


def half(value: float) -> float:
    """Round to a 16-bit float; beyond the largest half that is infinity."""
    try:
        return float(struct.unpack("<e", struct.pack("<e", value))[0])
    except OverflowError:
        return math.copysign(math.inf, value)


class Interval:
    """The interval of a range coder as exact integers in units of 2**-digits."""

    def __init__(self) -> None:
        self.low, self.width, self.digits = 0, 2**48, 48

    def narrow(self, start: int, frequency: int, total_bits: int) -> None:
        unit = self.width >> total_bits
        self.low += unit * start
        self.width = unit * frequency
        while self.width < 2**32:
            self.low *= 2**16
            self.width *= 2**16
            self.digits += 16

    @property
    def settled(self) -> int:
        """R of the page: bytes read behind the first six."""
        return (self.digits - 48) // 8


class ReferenceEncoder(Interval):
    """Writes what the page's range decoder reads."""

    def finish(self) -> bytes:
        count = self.settled
        while True:
            grain = 1 << self.digits - 8 * count
            value = -(-self.low // grain)
            if value * grain < self.low + self.width:
                return value.to_bytes(count, "big")
            count += 1


class ReferenceDecoder(Interval):
    """Reads a stream."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self.data = data

    def target(self, total_bits: int) -> int:
        shift = self.digits - 8 * len(self.data)
        number = int.from_bytes(self.data, "big")
        code = (number << shift if shift >= 0 else number >> -shift) - self.low
        t = code // (self.width >> total_bits)
        assert 0 <= t < 2**total_bits, "refused: code outside every alternative"
        return t

    def bits(self, count: int) -> int:
        value = 0
        while count > 0:
            group = min(count, 20)
            t = self.target(group)
            self.narrow(t, 1, group)
            value = (value << group) + t
            count -= group
        return value

    def symbol(self, cumulative: list[int]) -> int:
        t = self.target(20)
        index = max(i for i, c in enumerate(cumulative) if c <= t)
        self.narrow(cumulative[index], cumulative[index + 1] - cumulative[index], 20)
        return index


@cache
def table(k: int) -> tuple[int, list[int]]:
    """Return radius and c_0 ... c_N of table k."""
    v = 1024 + (139 * QUARTERS[k % 4] * 2 ** (k // 4) >> 20)
    radius = 4 + (2 ** (k // 8) >> 1)
    weight = []
    for x in range(radius + 1):
        u = v * 2**22 // (v + 1024 * x * x)
        w = u * u >> 22
        weight.append(w * w >> 22)
    line = [weight[abs(x)] for x in range(-radius, radius + 1)]
    line.append(radius * weight[radius] >> 2)
    count, total, partial = len(line), sum(line), 0
    cumulative = [0]
    for i, w in enumerate(line, 1):
        partial += w
        cumulative.append(i + partial * (2**20 - count) // total)
    return radius, cumulative


def table_number(scale: int) -> int:
    """Return the table for a scale of 1 to 4095."""
    b = int(math.log2(scale))
    return 8 * b + sum(t < scale << 16 - b for t in THRESHOLDS)


@dataclass(frozen=True)
class SymbolTrace:
    """How one symbol was coded; ``tensor`` is "steps" or the tensor's number."""

    tensor: str
    row: int
    column: int
    symbol: int
    expected: int
    scale: int
    table: int
    start: int
    frequency: int


@dataclass
class Net:
    hidden: list[int]
    frequencies: int

    def layers(self, outputs: int) -> list[tuple[int, int]]:
        """(out, in) of each layer."""
        sizes = [2 + 4 * self.frequencies, *self.hidden, outputs]
        return [(sizes[i + 1], sizes[i]) for i in range(len(sizes) - 1)]


@dataclass
class Decoded:
    """A decoded file: per tile lists of tensors (lists of rows), steps and weights."""

    width: int = 0
    height: int = 0
    channels: int = 0
    nets: list[Net] = field(default_factory=list)
    base: float = 1.4
    omega: float = 30.0
    sigma: float = 10.0
    boxes: list[tuple[int, int, int, int]] = field(default_factory=list)
    ordered: bool = False
    published: bool = False
    blocks: list[tuple[int, bytes]] = field(default_factory=list)
    symbols: list[list[list[list[int]]]] = field(default_factory=list)
    steps: list[list[tuple[int, ...]]] = field(default_factory=list)
    weights: list[list[list[list[float]]]] = field(default_factory=list)
    trace: list[SymbolTrace] = field(default_factory=list)

    def render(self) -> list[list[tuple[int, ...]]]:
        """Return rows of pixels of samples at the file's own size."""
        picture: list[list[tuple[int, ...]]] = [[()] * self.width for _ in range(self.height)]
        for (left, top, right, bottom), weights in zip(self.boxes, self.weights, strict=True):
            for y in range(top, bottom):
                for x in range(left, right):
                    v = self._evaluate(
                        weights,
                        _coordinate(y - top, bottom - top),
                        _coordinate(x - left, right - left),
                    )
                    picture[y][x] = tuple(
                        min(max(math.floor((s + 1) / 2 * 255 + 0.5), 0), 255) for s in v
                    )
        return picture

    def _evaluate(self, weights: list[list[list[float]]], y: float, x: float) -> list[float]:
        layers = 2 * (len(self.nets[0].hidden) + 1)
        period = self.omega
        if len(self.nets) > 1:
            inputs = self._encode(y, x, self.nets[1].frequencies)
            period += self.sigma * _network(weights[layers:], inputs, self.omega)[0]
        return _network(weights[:layers], self._encode(y, x, self.nets[0].frequencies), period)

    def _encode(self, y: float, x: float, frequencies: int) -> list[float]:
        features = [y, x]
        for i in range(frequencies):
            for c in (y, x):
                phase = self.base**i * math.pi * c
                features += [math.sin(phase), math.cos(phase)]
        return features


def _coordinate(position: int, side: int) -> float:
    return 0.0 if side == 1 else 2 * position / (side - 1) - 1


def _network(weights: list[list[list[float]]], inputs: list[float], period: float) -> list[float]:
    features = inputs
    for layer in range(0, len(weights), 2):
        if layer:
            features = [math.sin(period * f) for f in features]
        features = [
            sum(w * f for w, f in zip(row, features, strict=True)) + bias
            for row, (bias,) in zip(weights[layer], weights[layer + 1], strict=True)
        ]
    return features


def decode_file(data: bytes) -> Decoded:
    """Decode a file that keeps to the page; assertions refuse others."""
    assert data[:8] == bytes.fromhex("8E4E49460D0A1A0A")
    version = data[8]
    assert version in (1, 2)
    assert zlib.crc32(data[:-4]) == int.from_bytes(data[-4:], "little")
    out = Decoded()
    position = 9

    def byte() -> int:
        nonlocal position
        position += 1
        return data[position - 1]

    def varint() -> int:
        value, shift = 0, 0
        while True:
            b = byte()
            value += (b & 127) << shift
            shift += 7
            if b < 128:
                return value

    def net() -> Net:
        hidden = [varint() for _ in range(varint())]
        return Net(hidden, varint())

    def part(left: int, top: int, right: int, bottom: int) -> None:
        number = varint()
        if number == 0:
            out.boxes.append((left, top, right, bottom))
        elif number % 2 == 0:
            assert left < left + number // 2 < right
            part(left, top, left + number // 2, bottom)
            part(left + number // 2, top, right, bottom)
        else:
            assert top < top + number // 2 < bottom
            part(left, top, right, top + number // 2)
            part(left, top + number // 2, right, bottom)

    flags = byte()
    out.width, out.height, out.channels = varint(), varint(), byte()
    out.nets.append(net())
    if flags & 1:
        out.nets.append(net())
    if flags & 2:
        out.base, out.omega, out.sigma = varint() / 1000, varint() / 1000, varint() / 1000
    if flags & 4 and version == 1:
        columns, rows = varint(), varint()
        for i in range(columns * rows):
            row, column = divmod(i, columns)
            left, right = (c * out.width // columns for c in (column, column + 1))
            top, bottom = (r * out.height // rows for r in (row, row + 1))
            out.boxes.append((left, top, right, bottom))
    elif flags & 4:
        part(0, 0, out.width, out.height)
        assert len(out.boxes) > 1
    else:
        out.boxes = [(0, 0, out.width, out.height)]
    if flags & 8:
        while block := varint():
            length = varint()
            out.blocks.append((block, data[position : position + length]))
            position += length
    out.published = bool(flags & 16)
    out.ordered = flags >> 5 == 1
    assert flags >> 5 <= version - 1
    assert version == 1 or out.ordered or flags & 4
    count = len(out.boxes)
    lengths = [varint() for _ in range(count)] if count > 1 else [len(data) - 4 - position]
    for length in lengths:
        _decode_tile(out, data[position : position + length])
        position += length
    assert position == len(data) - 4
    return out


def _decode_tile(out: Decoded, stream: bytes) -> None:
    decoder = ReferenceDecoder(stream)
    shapes: list[tuple[str, int, int]] = []
    for i, net in enumerate(out.nets):
        layers = net.layers(1 if i else out.channels)
        for j, (rows, columns) in enumerate(layers):
            role = "first" if j == 0 else "last" if j == len(layers) - 1 else "other"
            bias = "ordered bias" if out.ordered and role != "last" else "bias"
            shapes += [(role, rows, columns), (bias, rows, 1)]
    steps: list[tuple[int, ...]] = []
    if out.published:
        steps = [(decoder.bits(3) + 2, decoder.bits(15)) for _ in shapes]
    else:
        index, grain = decoder.bits(11), decoder.bits(2)
        steps.append((index,))
        differences = _decode_tensor(
            out, decoder, "steps", len(shapes) - 1, 4 - grain, [64], len(out.symbols) == 0
        )
        for (difference,) in differences:
            index += difference * 2**grain
            assert 0 <= index <= 2047
            steps.append((index,))
    symbols, weights = [], []
    for number, ((role, rows, columns), step) in enumerate(zip(shapes, steps, strict=True)):
        kind = role.removeprefix("ordered ")
        if out.published:
            e = step[0] - {"first": 3, "last": 2, "other": 4, "bias": 2}[kind]
        else:
            usual = {"first": 1136, "last": 1168, "other": 1072, "bias": 1168}[kind]
            e = (usual - step[0] + 16) // 32
        if role == "ordered bias":
            e -= int(math.log2(rows))
        profile = [64] * columns
        if role == "first":
            for c in range(2, columns):
                f = (c - 2) // 4
                profile[c] = max(1, root(64**4 * 2**32 // 2**f, 4) // 2**8)
        tensor = _decode_tensor(
            out, decoder, str(number), rows, min(max(e, -2), 13), profile, len(out.symbols) == 0
        )
        if role == "ordered bias":
            above = 0
            for row in tensor:
                d = row[0]
                above += -2 * d - 1 if d < 0 else 2 * d
                assert above < 2**31
                row[0] = above
        symbols.append(tensor)
        weights.append([[_weight(q, step) for q in row] for row in tensor])
    assert decoder.settled <= len(stream) <= decoder.settled + 2
    out.symbols.append(symbols)
    out.steps.append(steps)
    out.weights.append(weights)


def _weight(q: int, step: tuple[int, ...]) -> float:
    if len(step) == 1:
        return single(single(q) * MANTISSAS[step[0] % 32] * 2.0 ** (step[0] // 32 - 63))
    bits, raw = step
    bound = float(struct.unpack("<e", raw.to_bytes(2, "little"))[0])
    return half(half(q / (2 ** (bits - 1) - 1)) * bound)


def _decode_tensor(
    out: Decoded,
    decoder: ReferenceDecoder,
    name: str,
    rows: int,
    e: int,
    p: list[int],
    traced: bool,
) -> list[list[int]]:
    columns = len(p)
    above = [0] * columns
    tensor: list[list[int]] = []
    for r in range(rows):
        mean = 64 * (32 * sum(above) + 4 * 2 ** (e + 5)) // (r * sum(p) + 256)
        expected = [
            max(1, (32 * above[c] + 4 * (mean * p[c] >> 6)) // (r + 4)) for c in range(columns)
        ]
        observed = predicted = (8 if r else 2) * sum(expected) // columns
        row: list[int] = []
        for c in range(columns):
            scale = min(max(expected[c] * observed // predicted, 1), 2**19 - 1)
            h = 0
            while scale >> h > 4095:
                h += 1
            number = table_number(scale >> h)
            radius, cumulative = table(number)
            place = decoder.symbol(cumulative)
            y = place - radius
            if y > radius:
                negative, n = decoder.bits(1), 0
                while decoder.bits(1):
                    n += 1
                y = (radius + 2**n + decoder.bits(n)) * (-1 if negative else 1)
            q = y * 2**h + decoder.bits(h) - 2 ** (h - 1) if h else y
            assert -(2**31) <= q < 2**31
            if traced:
                start, stop = cumulative[place : place + 2]
                out.trace.append(
                    SymbolTrace(name, r, c, q, expected[c], scale, number, start, stop - start)
                )
            observed += 32 * min(abs(q), 16383)
            predicted += expected[c]
            row.append(q)
        for c in range(columns):
            above[c] += min(abs(row[c]), 16383)
        tensor.append(row)
    return tensor
