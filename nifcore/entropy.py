"""The adaptive model of the weights: which probability table each symbol is coded with.

Weights of one tensor differ in scale from column to column (input features) and from row to row
(output features). The expected magnitude of a weight is its column's mean in the rows above,
times what this row has so far been above or below expectation::

    role, step ───> prior ───┐
    tensor so far ───────────┼─> expected[column] ──┐
    column in the rows above ┘                      ├─> scale ──> table ──> range coder
    this row so far, observed / expected ───────────┘

Integers only, all below 2**53; specified in ``docs/format.md``, section "Weights".
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from nifcore.errors import CorruptBitstream
from nifcore.probability import (
    MAX_TABLE_SCALE,
    QUARTER_OCTAVES,
    SCALE_INDEX,
    SCALE_UNIT,
    code_lengths,
    intervals,
    table,
)
from nifcore.rangecoder import RangeDecoder, RangeEncoder
from nifcore.tensors import STEPS_PER_OCTAVE, Step, UniformStep

MAX_MAGNITUDE = (1 << 14) - 1
"""Magnitudes above this count as this in the context."""

MIN_BITS = 1 / 8
"""No symbol ever costs less than this many bits."""

_MAX_SCALE = (1 << 19) - 1
_COLUMN_ROWS = 4
_ROW_SYMBOLS = 8
_FIRST_ROW_SYMBOLS = 2
_MEAN_SYMBOLS = 4
_FLAT = 64
_PROFILE_BITS = 6
_UNIT_BITS = SCALE_UNIT.bit_length() - 1
_SCALE_BITS = MAX_TABLE_SCALE.bit_length()
_MIN_EXPONENT, _MAX_EXPONENT = -2, 13
_MAX_ESCAPE_BITS = 32
_SCALE_INDEX = np.array(SCALE_INDEX, dtype=np.int64)

Integers = NDArray[np.int64]
Symbols = NDArray[np.int32]


class Role(Enum):
    """What a tensor is in its network; tensors of one role have similar weights."""

    FIRST = "weights of the first layer"
    HIDDEN = "weights of a hidden layer"
    OUTPUT = "weights of the last layer"
    BIAS = "bias of any layer"
    ORDERED_BIAS = "bias of a hidden layer whose units are in order"


_UNIT_INDEX = {
    Role.FIRST: 1136,
    Role.HIDDEN: 1072,
    Role.OUTPUT: 1168,
    Role.BIAS: 1168,
    Role.ORDERED_BIAS: 1168,
}
"""Step index at which the mean magnitude of such a tensor's symbols is usually 1."""

_PUBLISHED_OCTAVES = {
    Role.FIRST: 3,
    Role.HIDDEN: 4,
    Role.OUTPUT: 2,
    Role.BIAS: 2,
    Role.ORDERED_BIAS: 2,
}
"""How many octaves below 2**bits the mean magnitude usually lies on the published lattice."""


@dataclass(frozen=True)
class Prior:
    """What is expected of a tensor before its first symbol.

    Attributes:
        exponent: the mean magnitude in a column of profile 64 is taken as 2**exponent.
        profile: relative magnitude of each column, int64 (in,), 1 to 64.
    """

    exponent: int
    profile: Integers


def prior_of(role: Role, columns: int, step: Step, rows: int = 1) -> Prior:
    """Return the prior of a tensor of the given role, shape and step, as it is coded.

    The number of rows matters to an ordered bias only.
    """
    if isinstance(step, UniformStep):
        octaves = (_UNIT_INDEX[role] - step.index + STEPS_PER_OCTAVE // 2) // STEPS_PER_OCTAVE
    else:
        octaves = step.bits - _PUBLISHED_OCTAVES[role]
    if role is Role.ORDERED_BIAS:
        octaves -= closeness(rows)
    exponent = min(max(octaves, _MIN_EXPONENT), _MAX_EXPONENT)
    profile = np.full(columns, _FLAT, dtype=np.int64)
    if role is Role.FIRST:
        # Columns of higher frequency carry smaller weights: half for every four frequencies.
        for frequency in range((columns - 2) // 4):
            octave, quarter = divmod(-frequency, 4)
            start = 2 + 4 * frequency
            profile[start : start + 4] = max(1, QUARTER_OCTAVES[quarter] >> 10 - octave)
    return Prior(exponent, profile)


def closeness(units: int) -> int:
    """Return how many octaves smaller than biases their differences are, coded in order."""
    return units.bit_length() - 1


def ascending_differences(symbols: Symbols) -> Symbols:
    """Return what is coded of an ordered bias, (n,) or (n, 1), each at least as large as the last.

    Differences d = 0, 1, 2, 3, ... to the one before (to 0 for the first) become 0, -1, 1, -2, ...
    """
    differences = symbols.astype(np.int64)
    differences[1:] -= symbols[:-1]
    half = differences + 1 >> 1
    coded: Symbols = np.where(differences & 1, -half, half).astype(np.int32)
    return coded


def ascending_symbols(coded: Symbols) -> Symbols:
    """Return the bias that :func:`ascending_differences` was given.

    Raises:
        CorruptBitstream: the differences add up to more than a symbol can be.
    """
    wide = coded.astype(np.int64)
    symbols = np.cumsum(np.where(wide < 0, -2 * wide - 1, 2 * wide), axis=0)
    if symbols[-1].max() > np.iinfo(np.int32).max:
        raise CorruptBitstream("weights are damaged: biases ascend beyond 32 bits")
    return symbols.astype(np.int32)


def encode_symbols(encoder: RangeEncoder, symbols: Symbols, prior: Prior) -> None:
    """Write a tensor of int32 symbols (out, in); ``prior.profile`` has ``in`` entries."""
    located = _located(symbols, prior)
    starts, frequencies = intervals()
    entries = located.entry
    spans = list(zip(starts[entries].tolist(), frequencies[entries].tolist(), strict=True))
    written = 0
    for place in np.flatnonzero(located.escaped | (located.shift > 0)).tolist():
        encoder.encode_all(spans[written : place + 1])
        written = place + 1
        shift = int(located.shift[place])
        if located.escaped[place]:
            _encode_escape(encoder, int(located.coarse[place]), int(located.radius[place]))
        encoder.encode_bits(int(located.offset[place]) & (1 << shift) - 1, shift)
    encoder.encode_all(spans[written:])


def decode_symbols(decoder: RangeDecoder, rows: int, prior: Prior) -> Symbols:
    """Read a tensor of int32 symbols, (rows, len(prior.profile)).

    Raises:
        CorruptBitstream: the stream cannot have come from :func:`encode_symbols`.
    """
    columns = len(prior.profile)
    symbols = np.empty((rows, columns), dtype=np.int32)
    column_sums = np.zeros(columns, dtype=np.int64)
    for row in range(rows):
        expected = _expected(column_sums, int(column_sums.sum()), row, prior)
        weight = _ROW_SYMBOLS if row else _FIRST_ROW_SYMBOLS
        start = weight * int(expected.sum()) // columns
        line = np.array(_decode_row(decoder, expected.tolist(), start), dtype=np.int64)
        symbols[row] = line
        if not np.array_equal(symbols[row], line):
            raise CorruptBitstream("weights are damaged: symbol beyond 32 bits")
        column_sums += np.minimum(np.abs(line), MAX_MAGNITUDE)
    return symbols


def expected_magnitudes(symbols: Symbols, prior: Prior) -> NDArray[np.float64]:
    """Return the mean magnitude that the model expects of every symbol, float64 (out, in).

    A symbol q where m is expected costs about ``4 log2(1 + q**2 / c) + log2(c) / 2`` bits with
    c = 8.69 m**2 + 1. With m held fixed this is differentiable in q: a rate term for training,
    of derivative ``8 q / (c + q**2) / ln 2`` bits per symbol.
    """
    return _scales(symbols, prior) / SCALE_UNIT


def _scales(symbols: Symbols, prior: Prior) -> Integers:
    """Expected magnitude of every symbol (out, in) in units of 1/32, as the decoder finds it."""
    magnitude = np.minimum(np.abs(symbols.astype(np.int64)), MAX_MAGNITUDE)
    column_sums = np.cumsum(magnitude, axis=0) - magnitude
    rows = np.arange(len(symbols))[:, None]
    expected = _expected(column_sums, column_sums.sum(axis=1, keepdims=True), rows, prior)
    weight = np.where(rows == 0, _FIRST_ROW_SYMBOLS, _ROW_SYMBOLS)
    start = weight * expected.sum(axis=1, keepdims=True) // symbols.shape[1]
    observed = start + (np.cumsum(magnitude, axis=1) - magnitude << _UNIT_BITS)
    predicted = start + np.cumsum(expected, axis=1) - expected
    scales: Integers = expected * observed // predicted
    return scales.clip(1, _MAX_SCALE)


def code_length(symbols: Symbols, prior: Prior) -> float:
    """Return the bits that :func:`encode_symbols` takes, exact but for escapes and rounding."""
    located = _located(symbols, prior)
    _, _, lengths = code_lengths()
    bits = float(located.shift.sum()) + float(lengths[located.entry].sum())
    # An escape goes on with a sign and an exponential Golomb code of the excess.
    excess = np.abs(located.coarse[located.escaped]) - located.radius[located.escaped]
    return bits + float((2 + 2 * np.floor(np.log2(excess))).sum())


@dataclass(frozen=True)
class _Located:
    """Where the symbols of a tensor lie in the tables; all int64 (out * in,) but ``escaped``.

    Attributes:
        shift: plain bits below what the table codes.
        offset: the symbol, half of what they count added; they are its lowest bits.
        coarse: the rest of it, which the table codes.
        radius: of the table; what lies beyond is escaped.
        escaped: bool, whether it does.
        entry: of the symbol, or the escape, in :func:`nifcore.probability.intervals`.
    """

    shift: Integers
    offset: Integers
    coarse: Integers
    radius: Integers
    escaped: NDArray[np.bool_]
    entry: Integers


def _located(symbols: Symbols, prior: Prior) -> _Located:
    scales = _scales(symbols, prior).ravel()
    shift = np.zeros_like(scales)
    for bits in range(int(scales.max(initial=0)).bit_length() - _SCALE_BITS):
        shift += scales >> bits > MAX_TABLE_SCALE
    numbers = _SCALE_INDEX[scales >> shift]
    offset = symbols.ravel().astype(np.int64) + (1 << shift >> 1)
    coarse = offset >> shift
    radii, starts, _ = code_lengths()
    radius = radii[numbers]
    place = coarse + radius
    escaped = (place < 0) | (place > 2 * radius)
    place[escaped] = 2 * radius[escaped] + 1
    return _Located(shift, offset, coarse, radius, escaped, starts[numbers] + place)


def _expected(
    column_sums: Integers, total: int | Integers, row: int | Integers, prior: Prior
) -> Integers:
    """Expected magnitude of each column in units of 1/32, at least 1.

    ``column_sums`` and ``total`` are of the ``row`` rows above. Works on one row, (in,), and on
    all rows at once, (out, in), with ``total`` and ``row`` as columns (out, 1).
    """
    profile = prior.profile
    start = _MEAN_SYMBOLS << prior.exponent + _UNIT_BITS
    mean = _FLAT * ((total << _UNIT_BITS) + start)
    mean //= row * int(profile.sum()) + _FLAT * _MEAN_SYMBOLS
    sums = (column_sums << _UNIT_BITS) + _COLUMN_ROWS * (mean * profile >> _PROFILE_BITS)
    return np.maximum(sums // (row + _COLUMN_ROWS), 1)


def _decode_row(decoder: RangeDecoder, expected: list[int], start: int) -> list[int]:
    observed = predicted = start
    line = []
    decode = decoder.decode
    for magnitude in expected:
        scale = magnitude * observed // predicted or 1
        shift = 0
        if scale > MAX_TABLE_SCALE:
            scale = min(scale, _MAX_SCALE)
            shift = scale.bit_length() - _SCALE_BITS
            scale >>= shift
        model = table(SCALE_INDEX[scale])
        radius = model.radius
        symbol = decode(model.cumulative) - radius
        if symbol > radius:
            symbol = _decode_escape(decoder, radius)
        if shift:
            symbol = (symbol << shift) + decoder.decode_bits(shift) - (1 << shift - 1)
        line.append(symbol)
        observed += min(abs(symbol), MAX_MAGNITUDE) << _UNIT_BITS
        predicted += magnitude
    return line


def _encode_escape(encoder: RangeEncoder, coarse: int, radius: int) -> None:
    """Write the sign, then the excess over ``radius`` by an exponential Golomb code."""
    excess = abs(coarse) - radius
    length = excess.bit_length()
    encoder.encode_bits(coarse < 0, 1)
    for _ in range(length - 1):
        encoder.encode_bits(1, 1)
    encoder.encode_bits(0, 1)
    encoder.encode_bits(excess & (1 << length - 1) - 1, length - 1)


def _decode_escape(decoder: RangeDecoder, radius: int) -> int:
    negative = decoder.decode_bits(1)
    length = 1
    while decoder.decode_bits(1):
        length += 1
        if length > _MAX_ESCAPE_BITS:
            raise CorruptBitstream("weights are damaged: escaped symbol beyond 32 bits")
    excess = 1 << length - 1 | decoder.decode_bits(length - 1)
    return -(radius + excess) if negative else radius + excess
