"""How a whole picture looks while its tiles are still being fitted."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

from nifcore.header import Header
from nifcore.kernels import Kernel
from nifcore.network import Grid, Params, to_bytes

PREVIEW_SIDE = 256


class Canvas:
    """A small picture that the tiles are drawn into, each as far as it is.

    Every ``step``-th pixel of the picture is drawn, so that the longer side has at most 256. What
    no tile was drawn into yet has the picture's mean colour, from which every network begins.

    Args:
        header: of the file that is being made.
        pixels: uint8 (height, width, channels), the picture itself.
    """

    def __init__(self, header: Header, pixels: NDArray[np.uint8]) -> None:
        self._header = header
        height, width, _ = pixels.shape
        self._step = step = max(1, math.ceil(max(height, width) / PREVIEW_SIDE))
        # Samples lie in the middle of what they stand for, where the picture is large enough.
        self._row = min(step // 2, height - 1)
        self._column = min(step // 2, width - 1)
        shape = pixels[self._row :: step, self._column :: step].shape
        mean = pixels.mean(axis=(0, 1)).round().astype(np.uint8)
        self._pixels = np.broadcast_to(mean, shape).copy()

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """A copy of the picture as it is now: uint8 (height, width, channels)."""
        return self._pixels.copy()

    def draw(self, tile: int, kernel: Kernel, params: Params, grid: Grid) -> None:
        """Draw a tile.

        Args:
            tile: its index in the file.
            kernel: that renders it.
            params: of its networks.
            grid: all pixels of the tile.
        """
        x, y, width, height = self._header.tile_box(tile)
        step = self._step
        top, left = (self._row - y) % step, (self._column - x) % step
        if top >= height or left >= width:
            return  # a tile so narrow that no sample lies in it
        with torch.no_grad():
            colours = to_bytes(kernel.forward(params, grid.lattice(step, top, left)))
        drawn = colours.cpu().numpy()
        row, column = (y + top - self._row) // step, (x + left - self._column) // step
        self._pixels[row : row + drawn.shape[0], column : column + drawn.shape[1]] = drawn
