"""From a wanted rate to networks: how many, how large, with which frequencies.

Photographs at usual rates get five hidden layers that narrow gently: ``first`` times 1, 0.44, 0.30,
0.24 and 0.20. Small networks, and those that have many weights per pixel, get four, by a rule that
is fitted to the published Kodak ladder (configurations 120 to 680: 15,000 to 241,000 parameters):
with ``r = first / 120``, the widths are::

    first, first / 3 * r^0.15, first * 0.233 * r^-0.25, 16 * r^0.4

``first`` is the largest that keeps the parameters within ``bits / 5.4``, the bits that one weight
costs where rate is best spent (wider steps and more weights, or the reverse, lose). The Modulation
network follows the published ladder. The highest positional frequency follows the longer side, 16
frequencies at 768 pixels, as the published configurations for small faces do. Pictures
that are large enough, and get weights enough, are cut into tiles, one network each: at equal rate
and time the fit is better, and rendering costs less.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise

from nifcore.architecture import Architecture
from nifcore.errors import ImpossibleTarget
from nifcore.header import (
    CRC_BYTES,
    MAX_TILES,
    Colour,
    EntropyModel,
    Header,
    NetShape,
    header_bytes,
)
from nifcore.tiling import Cuts, Divider, boxes_of, by_area, cuts_into

BITS_PER_PARAMETER = 5.0
_MIN_PARAMETERS = 60
_MIN_BITS_PER_PARAMETER = 2.5
"""Below this, steps are so wide that nothing is left of the picture."""
_TILE_LENGTH_BYTES = 4
"""At most what one tile's payload length costs, where there are several tiles."""
_TILE_PIXELS = 200_000
"""A tile of about this many pixels is worth a network of its own,"""
_TILE_PARAMETERS = 9_500
"""if that has about this many weights."""
_MOST_TILE_PARAMETERS = 260_000
"""The published ladder ends at 241,000 weights."""
_MOST_TILE_PIXELS = 4_000_000
_TILE_SLACK = 1.25
"""A tile may exceed these bounds by so much before there is one more."""
_NARROWING = 0.44, 0.30, 0.24, 0.20
"""Sizes of the later ones of five hidden layers, relative to the first."""
_DEEP_PARAMETERS = 5_000
"""Networks of fewer weights have four hidden layers: the fifth would be too narrow,"""
_DEEP_SHARE = 1 / 6
"""and so have those of more weights per pixel: the fifth is in the way of a near perfect fit."""
_BASE = 1.4
_PUBLISHED_SIDE, _PUBLISHED_FREQUENCIES = 768, 16

QUALITY_RATES: tuple[tuple[int, float], ...] = (
    (1, 0.05),
    (25, 0.1),
    (50, 0.2),
    (75, 0.45),
    (90, 1.2),
    (100, 4.0),
)
"""Anchors of the quality scale: (quality, bits per pixel), log-linear between them."""
DEFAULT_QUALITY = 75


@dataclass(frozen=True)
class Plan:
    """What will be fitted.

    Attributes:
        header: the file's header without extension blocks.
        budget_bits: bits that one tile's symbols may cost.
    """

    header: Header
    budget_bits: float

    @property
    def arch(self) -> Architecture:
        return Architecture.of(self.header)


def bpp_of_quality(quality: float) -> float:
    """Return the rate in bits per pixel that ``quality`` (1 to 100) asks for; increasing."""
    for (q0, r0), (q1, r1) in pairwise(QUALITY_RATES):
        if quality <= q1:
            share = (quality - q0) / (q1 - q0)
            return r0 * math.pow(r1 / r0, share)
    return QUALITY_RATES[-1][1]


def frequencies_for(side: int) -> int:
    """Return the number of positional frequencies for a picture of that longer side."""
    octaves = math.log(max(side, 2) / _PUBLISHED_SIDE) / math.log(_BASE)
    return min(24, max(3, round(_PUBLISHED_FREQUENCIES + octaves)))


def widths(first: int, *, deep: bool) -> tuple[int, ...]:
    """Return the hidden sizes for a first layer of ``first``: five if ``deep``, else four."""
    if deep:
        return first, *(max(3, round(first * ratio)) for ratio in _NARROWING)
    r = first / 120
    second = max(3, round(first / 3 * r**0.15))
    third = min(second, max(3, round(first * 0.233 * r**-0.25)))
    fourth = min(third, max(3, round(16 * r**0.4)))
    return first, second, third, fourth


def modulation_widths(first: int) -> tuple[int, ...]:
    """Return the hidden sizes of the Modulation network beside a first layer of ``first``."""
    if first <= 160:
        wide = max(4, round(16 * (first / 120) ** 0.8))
        return wide, max(3, wide // 2)
    return min(64, round(16 * (first / 120) ** 2)), 16, 8


def is_deep(parameters: float, pixels: float) -> bool:
    """Tell whether a network of that many weights for so many pixels gets five hidden layers."""
    return _DEEP_PARAMETERS <= parameters <= _DEEP_SHARE * pixels


def shapes_for(parameters: float, side: int, *, deep: bool) -> tuple[NetShape, NetShape]:
    """Return Genesis and Modulation with at most about ``parameters`` weights (colour)."""
    most = frequencies_for(side)

    def at(first: int) -> tuple[NetShape, NetShape]:
        count = min(most, max(3, -(-first // 4)))
        return NetShape(widths(first, deep=deep), count), NetShape(
            modulation_widths(first), min(4, count)
        )

    def size(first: int) -> int:
        genesis, modulation = at(first)
        return Architecture(genesis, modulation, 3).parameters

    low, high = 4, 4096
    while low < high:
        middle = (low + high + 1) // 2
        if size(middle) <= parameters:
            low = middle
        else:
            high = middle - 1
    return at(low)


def tile_count(width: int, height: int, parameters: float) -> int:
    """Return how many tiles networks of ``parameters`` weights in all are to share."""
    pixels = width * height
    wanted = min(pixels / _TILE_PIXELS, parameters / _TILE_PARAMETERS)
    least = max(pixels / _MOST_TILE_PIXELS, parameters / _MOST_TILE_PARAMETERS)
    count = max(wanted, least)
    if count <= _TILE_SLACK:
        return 1
    return min(max(round(count), math.ceil(least / _TILE_SLACK)), pixels, MAX_TILES)


def plan_rate(
    width: int,
    height: int,
    colour: Colour,
    total_bytes: float,
    overhead: int,
    divide: Divider = by_area,
) -> Plan:
    """Plan networks for a file of at most ``total_bytes`` bytes.

    Args:
        overhead: bytes of extension blocks that the file will carry.
        divide: where to cut a picture that becomes several tiles.

    Raises:
        ImpossibleTarget: not even the smallest network fits.
    """
    bits = max(0.0, (total_bytes - overhead)) * 8
    wanted = tile_count(width, height, bits / BITS_PER_PARAMETER)
    cuts = cuts_into(width, height, wanted, divide)
    # The networks depend on how many tiles there are, not on where: pictures of one size get equal
    # ones, which a GPU fits together.
    count = len(boxes_of(width, height, cuts))
    even = cuts_into(width, height, count, by_area)
    # the header's size hardly depends on the shapes: plan once with a guess, once with the truth
    fixed = 40 * 8.0
    for _ in range(2):
        header = _header(width, height, colour, even, (bits - fixed) / count / BITS_PER_PARAMETER)
        fixed = _fixed_bits(header)
    header = replace(header, cuts=cuts)
    fixed = _fixed_bits(header)
    plan = Plan(header, (bits - fixed) / count)
    least = header.parameters * _MIN_BITS_PER_PARAMETER
    if plan.budget_bits < least:
        floor = math.ceil((least * count + fixed) / 8) + overhead
        raise ImpossibleTarget(
            f"{total_bytes:.0f} bytes asked for a picture of {width}x{height}; the smallest "
            f"file for it has about {floor} bytes ({floor * 8 / (width * height):.3f} bpp)"
        )
    return plan


def least_bytes(width: int, height: int, colour: Colour, overhead: int) -> int:
    """Return the bytes of the smallest file that is worth having, steps not yet stretched."""
    cuts = cuts_into(width, height, tile_count(width, height, 0.0), by_area)
    header = _header(width, height, colour, cuts, 0.0)
    bits = header.parameters * header.tile_count * BITS_PER_PARAMETER + _fixed_bits(header)
    return math.ceil(bits / 8) + overhead


def _header(width: int, height: int, colour: Colour, cuts: Cuts, parameters: float) -> Header:
    """Return the header of a file whose tiles have about ``parameters`` weights each."""
    boxes = boxes_of(width, height, cuts)
    deep = is_deep(parameters, width * height / len(boxes))
    side = max(max(w, h) for _, _, w, h in boxes)
    genesis, modulation = shapes_for(max(_MIN_PARAMETERS, parameters), side, deep=deep)
    return Header(
        width=width,
        height=height,
        colour=colour,
        genesis=genesis,
        modulation=modulation,
        entropy_model=EntropyModel.ORDERED,
        cuts=cuts,
    )


def _fixed_bits(header: Header) -> float:
    """Return at most what a file takes beside its tiles' weights."""
    lengths = _TILE_LENGTH_BYTES * header.tile_count if header.tile_count > 1 else 0
    return 8.0 * (len(header_bytes(header)) + CRC_BYTES + lengths)
