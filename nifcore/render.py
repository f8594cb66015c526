"""Rendering: networks in, pixels out, at any size and for any part of the picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from nifcore.architecture import Architecture
from nifcore.errors import LimitExceeded, UsageError
from nifcore.header import Header
from nifcore.kernels import Kernel
from nifcore.limits import Limits
from nifcore.network import Params, coordinates, make_grid, to_bytes

_BAND_SAMPLES = 1 << 20
"""Network evaluations per band of rows, which bounds the memory of a large rendering."""
_MAX_SUPERSAMPLING = 4


@dataclass(frozen=True)
class View:
    """What to render: a whole picture of ``width`` x ``height``, or ``region`` of it.

    Attributes:
        width, height: size of the whole picture in pixels.
        region: (x, y, width, height) inside it.
    """

    width: int
    height: int
    region: tuple[int, int, int, int]


def make_view(
    header: Header,
    size: tuple[int, int] | None,
    scale: float | None,
    region: tuple[int, int, int, int] | None,
    limits: Limits,
) -> View:
    """Check what was asked against the file and the limits.

    Raises:
        UsageError: contradictory, empty or outside the picture.
        LimitExceeded: more pixels than the limits allow.
    """
    if size is not None and scale is not None:
        raise UsageError(f"size {size} and scale {scale} exclude each other; give one")
    width, height = header.width, header.height
    if scale is not None:
        if not 0.0 < scale < float("inf"):
            raise UsageError(f"scale is {scale}; a number above 0 is accepted")
        width, height = max(1, round(width * scale)), max(1, round(height * scale))
    elif size is not None:
        width, height = size
    if width < 1 or height < 1:
        raise UsageError(f"size is {width}x{height}; at least 1x1 is accepted")
    x, y, w, h = region if region is not None else (0, 0, width, height)
    if x < 0 or y < 0 or w < 1 or h < 1 or x + w > width or y + h > height:
        raise UsageError(
            f"region is {x},{y},{w},{h}; it must lie inside the picture of {width}x{height}"
        )
    if w * h > limits.max_pixels or max(w, h) > limits.max_side:
        raise LimitExceeded(
            f"a rendering of {w}x{h} is asked for; at most {limits.max_pixels} pixels and sides "
            f"of {limits.max_side} are allowed"
        )
    return View(width, height, (x, y, w, h))


def tiles_in_view(header: Header, view: View) -> list[int]:
    """Return the tiles that the view shows any pixel of, in file order."""
    return [index for index, _ in _shown(header, view)]


def render(
    header: Header,
    weights: Callable[[int], Params],
    kernel: Kernel,
    view: View,
    device: torch.device,
) -> NDArray[np.uint8]:
    """Render a view.

    Where the view is smaller than the picture, each pixel is the mean of up to 4 x 4 samples
    spread over its area, so thumbnails do not alias and cost in proportion to their size.

    Args:
        weights: gives the parameters of a tile, by index, on ``device``.

    Returns:
        uint8 array (rows, columns, channels) of the view's region.
    """
    arch = Architecture.of(header)
    x, y, w, h = view.region
    image = np.empty((h, w, header.channels), np.uint8)
    k = _supersampling(header, view)
    for index, (left, top, right, bottom) in _shown(header, view):
        box = header.tile_box(index)
        params = weights(index)
        xs = _samples(range(left, right), view.width, header.width, k) - box[0]
        band = max(1, _BAND_SAMPLES // (len(xs) * k))
        for start in range(top, bottom, band):
            stop = min(start + band, bottom)
            ys = _samples(range(start, stop), view.height, header.height, k) - box[1]
            grid = make_grid(arch, coordinates(ys, box[3]), coordinates(xs, box[2]), device)
            colour = kernel.forward(params, grid)
            if k > 1:
                colour = torch.nn.functional.avg_pool2d(colour.clamp_(-1.0, 1.0), k)
            image[start - y : stop - y, left - x : right - x] = to_bytes(colour).cpu().numpy()
    return image


def _supersampling(header: Header, view: View) -> int:
    ratio = max(header.width / view.width, header.height / view.height)
    return min(_MAX_SUPERSAMPLING, max(1, round(ratio)))


def _samples(pixels: Sequence[int], size: int, source: int, k: int) -> torch.Tensor:
    """Return source positions of ``k`` samples inside each output pixel, by pixel centres."""
    at = torch.tensor(pixels, dtype=torch.float64)[:, None]
    inner = (torch.arange(k, dtype=torch.float64) + 0.5) / k
    return ((at + inner) * (source / size) - 0.5).flatten()


def _shown(header: Header, view: View) -> Iterator[tuple[int, tuple[int, int, int, int]]]:
    """Yield the tiles that the view shows, and which pixels: (left, top, right, bottom)."""
    x, y, w, h = view.region
    for index in range(header.tile_count):
        left, top, width, height = header.tile_box(index)
        across = _span(left, left + width, header.width, view.width, x, w)
        down = _span(top, top + height, header.height, view.height, y, h)
        if across and down:
            yield index, (across[0], down[0], across[1], down[1])


def _span(
    begin: int, end: int, source: int, size: int, first: int, count: int
) -> tuple[int, int] | None:
    """Return which of the output pixels first..first+count along one axis lie in begin..end.

    Pixel j does where ``begin <= (j + 0.5) * source / size < end``.
    """
    low = max(first, _first_at(begin, source, size))
    high = min(first + count, _first_at(end, source, size))
    return (low, high) if low < high else None


def _first_at(edge: int, source: int, size: int) -> int:
    """Return the first pixel j with (j + 0.5) * source / size >= edge, in integers."""
    return max(0, -((source - 2 * edge * size) // (2 * source)))
