"""The mathematics of NIF in plain torch: the reference that every kernel is tested against.

A coordinate ``c = (y, x)`` in [-1, 1]² is turned into colour by two small networks::

    c ──► encode(c, 4 frequencies) ──► Modulation ──► m(c) ──► w_c = omega + sigma * m(c)
    │                                                               │ (one period per pixel)
    └───► encode(c, 16 frequencies) ──► Genesis: y_i = sin(w_c * (W_i y_(i-1) + b_i)) ──► colour

The last layer of each network is linear; the Modulation network's own sines have the fixed period
``omega``. Catania & Allegra, "NIF: A Fast Implicit Image Compression with Bottleneck Layers and
Modulated Sinusoidal Activations", ACM MM 2023, section 3.

Because the positional encoding is a list of functions of ``y`` alone and of ``x`` alone, the first
layer on a grid is ``A[row] + B[column]``: two small tables instead of a product per pixel. This
holds on every *lattice*, the pixels ``rows oy::s, columns ox::s`` of the grid.

Layout: activations are feature-major, (features, rows, columns). Parameters are flat lists of
float32 tensors in file order: weight (out, in), bias (out,), layer by layer, Genesis first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nifcore.architecture import Architecture
from nifcore.header import NetShape

Params = list[Tensor]


def coordinates(positions: Tensor, side: int) -> Tensor:
    """Map pixel positions (float64, 0 = first pixel's centre) on a side of ``side`` to [-1, 1]."""
    if side == 1:
        return torch.zeros_like(positions)
    return 2.0 * positions / (side - 1) - 1.0


def axis_features(coords: Tensor, frequencies: int, base: float) -> Tensor:
    """Encode one axis: (n,) float64 coordinates to (1 + 2F, n) float32 features.

    Rows are c, then sin(base^i pi c), cos(base^i pi c) for i in 0..F-1.
    """
    rows = [coords]
    for i in range(frequencies):
        phase = base**i * math.pi * coords
        rows += [torch.sin(phase), torch.cos(phase)]
    return torch.stack(rows).float()


def axis_columns(frequencies: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the columns of a first-layer weight that see y features, and those that see x."""
    rows, cols = [0], [1]
    for i in range(frequencies):
        rows += [2 + 4 * i, 3 + 4 * i]
        cols += [4 + 4 * i, 5 + 4 * i]
    return torch.tensor(rows, device=device), torch.tensor(cols, device=device)


@dataclass(frozen=True)
class AxisTables:
    """Encoded coordinates of one network on a grid, and where its weights see them.

    Attributes:
        y: (1 + 2F, rows) features of the rows.
        x: (1 + 2F, columns) features of the columns.
        y_columns, x_columns: indices into the first layer's weight columns.
    """

    y: Tensor
    x: Tensor
    y_columns: Tensor
    x_columns: Tensor

    def take(self, rows: slice, cols: slice) -> AxisTables:
        """Return the tables of a sub-grid."""
        return AxisTables(
            self.y[:, rows].contiguous(),
            self.x[:, cols].contiguous(),
            self.y_columns,
            self.x_columns,
        )


@dataclass(frozen=True)
class Grid:
    """The pixels of a tile, a lattice of them, or any other rectangular set of coordinates."""

    genesis: AxisTables
    modulation: AxisTables | None

    @property
    def rows(self) -> int:
        return self.genesis.y.shape[1]

    @property
    def cols(self) -> int:
        return self.genesis.x.shape[1]

    def take(self, rows: slice, cols: slice) -> Grid:
        """Return the sub-grid of the given rows and columns."""
        modulation = None if self.modulation is None else self.modulation.take(rows, cols)
        return Grid(self.genesis.take(rows, cols), modulation)

    def lattice(self, stride: int, row: int, col: int) -> Grid:
        """Return the pixels ``rows row::stride, columns col::stride``."""
        return self.take(slice(row, None, stride), slice(col, None, stride))


def make_grid(arch: Architecture, ys: Tensor, xs: Tensor, device: torch.device) -> Grid:
    """Encode coordinates ``ys`` (rows,) and ``xs`` (columns,), float64 in about [-1, 1]."""

    def tables(net: NetShape) -> AxisTables:
        return AxisTables(
            axis_features(ys, net.frequencies, arch.base).to(device),
            axis_features(xs, net.frequencies, arch.base).to(device),
            *axis_columns(net.frequencies, device),
        )

    return Grid(tables(arch.genesis), None if arch.modulation is None else tables(arch.modulation))


def pixel_grid(arch: Architecture, height: int, width: int, device: torch.device) -> Grid:
    """Return the grid of all pixel centres of a ``height`` x ``width`` tile."""
    ys = coordinates(torch.arange(height, dtype=torch.float64), height)
    xs = coordinates(torch.arange(width, dtype=torch.float64), width)
    return make_grid(arch, ys, xs, device)


def initialise(
    arch: Architecture,
    generator: torch.Generator,
    mean: Sequence[float],
    bias_scale: float = 1.0,
) -> Params:
    """Draw initial parameters (float32, CPU) as SIREN does, last bias at the mean colour.

    Weights: uniform within 1/fan_in in the first layer of each network, within
    sqrt(6 / fan_in) / omega in the others (Sitzmann et al., NeurIPS 2020, section 3.2); biases
    uniform within 1/sqrt(fan_in). Without the mean-colour start some pictures collapse to a
    constant.

    Args:
        mean: mean of every channel in [-1, 1], or empty to draw the last bias like the others.
        bias_scale: factor on the biases of Genesis's hidden layers.
    """
    params: Params = []
    first_layers = {0, arch.genesis_tensors}
    for index, shape in enumerate(arch.shapes):
        if len(shape) == 2:
            fan_in = shape[1]
            span = 1.0 / fan_in if index in first_layers else math.sqrt(6.0 / fan_in) / arch.omega
        else:
            span = 1.0 / math.sqrt(fan_in)
        params.append((torch.rand(shape, generator=generator) * 2.0 - 1.0) * span)
    for bias in params[1 : arch.genesis_tensors - 1 : 2]:
        bias *= bias_scale
    if len(mean):
        params[arch.genesis_tensors - 1] = torch.tensor(mean, dtype=torch.float32)
    return params


def first_layer(weight: Tensor, bias: Tensor, tables: AxisTables) -> Tensor:
    """Return ``W encode(c) + b`` on the grid, (out, rows, columns), by the separable sum."""
    rows = weight[:, tables.y_columns] @ tables.y
    cols = weight[:, tables.x_columns] @ tables.x + bias[:, None]
    return rows[:, :, None] + cols[:, None, :]


def forward(arch: Architecture, params: Sequence[Tensor], grid: Grid) -> Tensor:
    """Evaluate both networks on a grid; returns colour in about [-1, 1], (channels, rows, cols).

    Differentiable in ``params``; any float dtype that the grid's tables share.
    """
    shape = (grid.rows, grid.cols)
    split = arch.genesis_tensors
    period: Tensor | float = arch.omega
    if grid.modulation is not None:
        shift = _network(params[split:], grid.modulation, arch.omega)
        period = arch.omega + arch.sigma * shift
    return _network(params[:split], grid.genesis, period).view(arch.channels, *shape)


def _network(params: Sequence[Tensor], tables: AxisTables, period: Tensor | float) -> Tensor:
    z = first_layer(params[0], params[1], tables).flatten(1)  # (out, rows * cols)
    for weight, bias in zip(params[2::2], params[3::2], strict=True):
        z = torch.addmm(bias[:, None], weight, torch.sin(period * z))
    return z


def to_bytes(output: Tensor) -> Tensor:
    """Map network output (channels, rows, cols) in [-1, 1] to uint8 (rows, cols, channels)."""
    scaled = torch.floor((output + 1.0) * 127.5 + 0.5)
    return scaled.clamp_(0.0, 255.0).to(torch.uint8).permute(1, 2, 0).contiguous()


def from_bytes(pixels: Tensor) -> Tensor:
    """Map uint8 (rows, cols, channels) to float32 targets (channels, rows, cols) in [-1, 1]."""
    return pixels.permute(2, 0, 1).contiguous().float().div_(127.5).sub_(1.0)
