"""Where a picture is busy: the bits that its blocks would take at one common error.

Rate is spent best where every part of a picture gains equally by more of it. For a transform coder
that is where all parts are quantised with one step, and the bits that each block then takes are
known without coding: about half the logarithm of every coefficient's energy over that of the step.
Tiles that hold equally many such bits deserve equal networks, however large they are.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from nifcore.tiling import Box

_SIDE = 8
_SAMPLE = 1024
"""Blocks that the step is chosen by,"""
_MOST = 40_000
"""and those that are looked at: of a large picture, one in every cell of a few blocks."""
_CHROMA = 1.5
"""How much coarser colour differences are quantised."""
_MEAN = 0.25
"""How much of a block's mean counts: most of it is known from its neighbours."""
_LEAST = 0.3
"""Bits of a block that is all one colour."""
_BAND = 1 << 13
"""Blocks at work together, which bounds the memory."""
_NARROWEST = 1 / 8
"""No part is narrower than this share of the side that is cut."""

_k = np.arange(_SIDE)
_TRANSFORM = np.cos(math.pi * (2 * _k[None] + 1) * _k[:, None] / (2 * _SIDE)) * math.sqrt(2 / _SIDE)
_TRANSFORM[0] *= math.sqrt(0.5)
_TRANSFORM = _TRANSFORM.astype(np.float32)


class Complexity:
    """The bits of every block, and how to divide them evenly.

    Args:
        pixels: uint8 (height, width, channels).
        bits: what the whole picture is to take; it decides how fine a detail counts.
    """

    def __init__(self, pixels: NDArray[np.uint8], bits: float) -> None:
        height, width = pixels.shape[:2]
        blocks = height * width / _SIDE**2
        self._cell = _SIDE * max(1, math.ceil(math.sqrt(blocks / _MOST)))
        down, across = -(-height // self._cell), -(-width // self._cell)
        places = np.arange(down * across)
        some = places[:: max(1, len(places) // _SAMPLE)]
        step = _step_for(self._energies(pixels, some, across), bits / blocks)
        bands = np.array_split(places, max(1, len(places) // _BAND))
        found = [_bits(self._energies(pixels, band, across), step) for band in bands]
        self._sums = np.zeros((down + 1, across + 1))
        self._sums[1:, 1:] = np.concatenate(found).reshape(down, across).cumsum(0).cumsum(1)

    def _energies(
        self, pixels: NDArray[np.uint8], places: NDArray[np.int64], across: int
    ) -> NDArray[np.float32]:
        """Return the squared coefficients of cells' blocks, (cells, channels * 64).

        Blocks at the far edges move inside.
        """
        height, width, channels = pixels.shape
        inner = np.arange(_SIDE)
        top = np.minimum(places // across * self._cell, max(0, height - _SIDE))
        left = np.minimum(places % across * self._cell, max(0, width - _SIDE))
        y = np.minimum(top[:, None] + inner, height - 1)[:, :, None]
        x = np.minimum(left[:, None] + inner, width - 1)[:, None, :]
        blocks = np.moveaxis(pixels[y, x], 3, 1).astype(np.float32)  # (cells, channels, 8, 8)
        if channels >= 3:
            red, green, blue = (blocks[:, c].copy() for c in range(3))
            blocks[:, 0] = 0.299 * red + 0.587 * green + 0.114 * blue
            blocks[:, 1] = (blue - blocks[:, 0]) * (0.564 / _CHROMA)
            blocks[:, 2] = (red - blocks[:, 0]) * (0.713 / _CHROMA)
        for _ in range(2):  # along one axis, then along the other
            turned = blocks.reshape(-1, _SIDE) @ _TRANSFORM.T
            blocks = turned.reshape(-1, _SIDE, _SIDE).swapaxes(1, 2)
        blocks = blocks.reshape(len(places), channels, -1)
        blocks[:, :, 0] *= _MEAN
        energies: NDArray[np.float32] = np.square(blocks).reshape(len(places), -1)
        return energies

    def divide(self, box: Box, tiles: int, share: float) -> tuple[int, bool]:
        """Cut the longer side so that the first part holds that share of the bits.

        See :data:`nifcore.tiling.Divider`.
        """
        x, y, w, h = box
        side = max(w, h)
        # edges between cells, and the bits up to each of them
        cell, sums = self._cell, self._sums
        left, top, right, bottom = x // cell, y // cell, -(-(x + w) // cell), -(-(y + h) // cell)
        if h > w:
            held = sums[top : bottom + 1, right] - sums[top : bottom + 1, left]
            edges, begin = np.arange(top, bottom + 1) * cell, y
        else:
            held = sums[bottom, left : right + 1] - sums[top, left : right + 1]
            edges, begin = np.arange(left, right + 1) * cell, x
        wanted = held[0] + share * (held[-1] - held[0])
        at = round(float(np.interp(wanted, held, edges))) - begin
        narrowest = math.ceil(_NARROWEST * side)
        return min(max(at, narrowest), side - narrowest), h > w


def _bits(energies: NDArray[np.float32], step: float) -> NDArray[np.float64]:
    """Return the bits of every block when quantised with ``step``."""
    bits: NDArray[np.float64] = 0.5 * np.log2(1.0 + energies / step**2).sum(1) + _LEAST
    return bits


def _step_for(energies: NDArray[np.float32], bits: float) -> float:
    """Return the step at which blocks take so many bits in the mean, within reason."""
    low, high = 0.25, 1024.0
    for _ in range(16):
        middle = math.sqrt(low * high)
        if float(_bits(energies, middle).mean()) > bits:
            low = middle
        else:
            high = middle
    return math.sqrt(low * high)
