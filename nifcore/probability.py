"""Probability tables of the symbols, in integers by an exact rule.

Table k describes symbols whose mean magnitude is about ``2**(k / 8) / 32``, for k from 0 to 96.
Its shape is Student's t with 7 degrees of freedom: the Gaussian of weights of one scale, mixed
over what the context does not know about that scale. Specified in ``docs/format.md``, section
"Probability tables".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from nifcore.rangecoder import TOTAL_BITS

TABLES = 97
"""Number of tables."""

SCALE_UNIT = 32
"""Scales are mean magnitudes in units of 1/32 symbol."""

MAX_TABLE_SCALE = 4095
"""The largest scale that has a table; above it, low bits are coded plainly."""

_WEIGHT_BITS = 22

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Table:
    """Frequencies of the symbols -radius..radius and of the escape, in this order.

    Attributes:
        radius: the largest magnitude that is coded without the escape.
        cumulative: 2 * radius + 3 integers, ascending strictly from 0 to 2**20.
    """

    radius: int
    cumulative: tuple[int, ...]


def _quarter_octaves() -> tuple[int, ...]:
    """Floors of 2**(16 + j/4)."""
    return tuple(math.isqrt(math.isqrt(1 << 64 + j)) for j in range(4))


def _scale_thresholds() -> tuple[int, ...]:
    """Floors of 2**(16 + (2j + 1)/16)."""
    thresholds = []
    for j in range(8):
        root = 1 << 256 + 2 * j + 1
        for _ in range(4):
            root = math.isqrt(root)
        thresholds.append(root)
    return tuple(thresholds)


def _scale_index(thresholds: tuple[int, ...]) -> tuple[int, ...]:
    index = [0]
    for scale in range(1, MAX_TABLE_SCALE + 1):
        octave = scale.bit_length() - 1
        mantissa = scale << 16 - octave
        index.append(8 * octave + sum(mantissa > threshold for threshold in thresholds))
    return tuple(index)


QUARTER_OCTAVES = _quarter_octaves()
SCALE_THRESHOLDS = _scale_thresholds()
SCALE_INDEX = _scale_index(SCALE_THRESHOLDS)
"""Number of the table for each scale 0..4095, a mean magnitude in units of 1/32."""


@cache
def table(number: int) -> Table:
    """Build table ``number``, 0 to 96."""
    octave, quarter = divmod(number, 4)
    # In units of 1/1024: 7 times the squared scale parameter, in terms of the mean magnitude,
    # plus 1 for what rounding to integers adds.
    spread = 1024 + ((139 * QUARTER_OCTAVES[quarter] << octave) >> 20)
    radius = 4 + (1 << number // 8 >> 1)
    magnitude = np.arange(radius + 1, dtype=np.int64)
    ratio = (spread << _WEIGHT_BITS) // (spread + 1024 * magnitude * magnitude)
    square = ratio * ratio >> _WEIGHT_BITS
    side = square * square >> _WEIGHT_BITS
    escape = int(side[-1]) * radius >> 2
    weights = np.concatenate([side[:0:-1], side, [escape]])
    sums = np.concatenate([[0], np.cumsum(weights)])
    count = len(weights)
    spare = (1 << TOTAL_BITS) - count
    cumulative = np.arange(count + 1) + sums * spare // sums[-1]
    return Table(radius, tuple(cumulative.tolist()))


@cache
def code_lengths() -> tuple[Integers, Integers, NDArray[np.float64]]:
    """Return the length in bits of every symbol of every table, for estimates of the rate.

    Returns:
        radii, int64 (97,); starts, int64 (97,); lengths, float64: symbol x of table k has
        ``lengths[starts[k] + x + radii[k]]`` and the escape follows the last symbol.
    """
    tables = [table(number) for number in range(TABLES)]
    radii = np.array([model.radius for model in tables], dtype=np.int64)
    sizes = 2 * radii + 2
    return radii, np.cumsum(sizes) - sizes, TOTAL_BITS - np.log2(intervals()[1])


@cache
def intervals() -> tuple[Integers, Integers]:
    """Return what every symbol of every table occupies, in the order of :func:`code_lengths`.

    Returns:
        starts and frequencies, both int64, of 2**20.
    """
    tables = [table(number).cumulative for number in range(TABLES)]
    starts = np.concatenate([cumulative[:-1] for cumulative in tables])
    return starts, np.concatenate([np.diff(cumulative) for cumulative in tables])
