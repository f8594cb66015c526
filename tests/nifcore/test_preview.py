import numpy as np
import pytest
import torch

from nifcore.architecture import Architecture
from nifcore.header import Colour, Header, NetShape
from nifcore.kernels import make_kernel
from nifcore.network import (
    coordinates,
    forward,
    initialise,
    make_grid,
    pixel_grid,
    to_bytes,
)
from nifcore.preview import Canvas

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("width", "height", "tiles", "step"),
    [(530, 300, (3, 2), 3), (60, 44, (1, 1), 1), (700, 3, (2, 1), 3), (257, 100, (5, 1), 2)],
)
def test_tiles_appear_one_by_one_each_where_it_belongs(width, height, tiles, step):
    header = Header(width, height, Colour.SRGB, NetShape((12, 8), 3), tiles=tiles)
    arch = Architecture.of(header)
    picture = np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8)
    canvas = Canvas(header, picture)
    whole = np.empty((height, width, 3))
    whole[:] = picture.mean(axis=(0, 1)).round()
    row, column = min(step // 2, height - 1), min(step // 2, width - 1)
    for index in range(header.tile_count):
        assert np.abs(canvas.pixels - whole[row::step, column::step]).max() <= 1
        x, y, w, h = header.tile_box(index)
        params = initialise(arch, torch.Generator().manual_seed(index), [0.0] * 3)
        canvas.draw(index, make_kernel(arch, "reference"), params, pixel_grid(arch, h, w, CPU))
        ys = coordinates(torch.arange(h, dtype=torch.float64), h)
        xs = coordinates(torch.arange(w, dtype=torch.float64), w)
        colour = forward(arch, params, make_grid(arch, ys, xs, CPU))
        whole[y : y + h, x : x + w] = to_bytes(colour).numpy()
    found = canvas.pixels
    assert np.abs(found - whole[row::step, column::step]).max() <= 1
    assert max(found.shape) <= 256
