"""The pixels of B tiles, ordered by lattice, so that any choice of lattices is one gather.

A lattice of stride s is the pixels ``rows oy::s, columns ox::s``. Sides that s does not divide, and
tiles of different shapes, give lattices of different sizes: all are padded to the largest, and the
true numbers of rows and columns go along.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nifcore.architecture import Architecture
from nifcore.network import AxisTables, Grid, pixel_grid


@dataclass(frozen=True)
class Axes:
    """Encoded coordinates of one network on B grids.

    Attributes:
        y: (B, 1 + 2F, rows). x: (B, 1 + 2F, columns). Padding is zero.
    """

    y: Tensor
    x: Tensor


@dataclass(frozen=True)
class Batch:
    """What B networks see in one iteration.

    Attributes:
        genesis: coordinates for the Genesis networks.
        modulation: the same for the Modulation networks, or None.
        rows, cols: int32 (B,), how many are no padding.
        target: float32 (B, channels, rows, columns) in [-1, 1], padding zero.
    """

    genesis: Axes
    modulation: Axes | None
    rows: Tensor
    cols: Tensor
    target: Tensor

    @property
    def samples(self) -> Tensor:
        """Samples that are no padding, float32 (B,)."""
        return (self.rows * self.cols * self.target.shape[1]).float()


def batch_of(grid: Grid, target: Tensor) -> Batch:
    """Return one grid and its target (channels, rows, columns) as a batch of one."""
    device = target.device
    modulation = grid.modulation
    return Batch(
        Axes(grid.genesis.y[None], grid.genesis.x[None]),
        None if modulation is None else Axes(modulation.y[None], modulation.x[None]),
        torch.tensor([grid.rows], dtype=torch.int32, device=device),
        torch.tensor([grid.cols], dtype=torch.int32, device=device),
        target[None],
    )


class LatticeStore:
    """Targets and axis tables of B tiles by lattice.

    Args:
        arch: shape of the networks.
        targets: (channels, rows, columns) float32 in [-1, 1] each, best of like sides (all are
            padded to the longest).
        stride: of the lattices; at most the shortest side.
        device: where to keep everything.
    """

    def __init__(
        self, arch: Architecture, targets: Sequence[Tensor], stride: int, device: torch.device
    ) -> None:
        self.arch, self.stride = arch, stride
        height = max(t.shape[1] for t in targets)
        width = max(t.shape[2] for t in targets)
        rows, cols = -(-height // stride), -(-width // stride)
        count = stride**2
        self.targets = torch.zeros(len(targets), count, arch.channels, rows, cols, device=device)
        for item, target in enumerate(targets):
            for index in range(count):
                row, col = divmod(index, stride)
                part = target[:, row::stride, col::stride]
                self.targets[item, index, :, : part.shape[1], : part.shape[2]] = part
        # tables are shared by tiles of one size
        sizes = sorted({(t.shape[1], t.shape[2]) for t in targets})
        self.size_of = torch.tensor([sizes.index((t.shape[1], t.shape[2])) for t in targets])
        self.size_of = self.size_of.to(device)
        grids = [pixel_grid(arch, *size, device) for size in sizes]
        self._genesis = _by_offset([g.genesis for g in grids], stride, rows, cols)
        self._modulation: Axes | None = None
        if arch.modulation is not None:
            tables = [g.modulation for g in grids if g.modulation is not None]
            self._modulation = _by_offset(tables, stride, rows, cols)
        self._rows = _counts([size[0] for size in sizes], stride, device)
        self._cols = _counts([size[1] for size in sizes], stride, device)

    @property
    def count(self) -> int:
        """Number of lattices: the iterations of a pass."""
        return self.stride**2

    def gather(self, indices: Tensor) -> Batch:
        """Return what the items see on lattices ``indices``, int64 (B,), without host sync."""
        y_at = self.size_of * self.stride + indices.div(self.stride, rounding_mode="floor")
        x_at = self.size_of * self.stride + indices.remainder(self.stride)
        target = self.targets
        flat = target.view(-1, *target.shape[2:])
        where = torch.arange(len(target), device=target.device) * self.count + indices
        return Batch(
            _pick(self._genesis, y_at, x_at),
            None if self._modulation is None else _pick(self._modulation, y_at, x_at),
            self._rows[y_at],
            self._cols[x_at],
            flat.index_select(0, where),
        )

    def keep(self, items: Tensor) -> None:
        """Drop all items but ``items``, int64 indices."""
        self.targets = self.targets.index_select(0, items)
        self.size_of = self.size_of.index_select(0, items)


def _pick(axes: Axes, y_at: Tensor, x_at: Tensor) -> Axes:
    return Axes(axes.y.index_select(0, y_at), axes.x.index_select(0, x_at))


def _by_offset(tables: Sequence[AxisTables], stride: int, rows: int, cols: int) -> Axes:
    """Return tables (sizes * stride, 1 + 2F, ...) by size and offset of the lattice."""
    features = tables[0].y.shape[0]
    y = tables[0].y.new_zeros(len(tables) * stride, features, rows)
    x = tables[0].x.new_zeros(len(tables) * stride, features, cols)
    for size, table in enumerate(tables):
        for offset in range(stride):
            at = size * stride + offset
            part = table.y[:, offset::stride]
            y[at, :, : part.shape[1]] = part
            part = table.x[:, offset::stride]
            x[at, :, : part.shape[1]] = part
    return Axes(y, x)


def _counts(sides: Sequence[int], stride: int, device: torch.device) -> Tensor:
    """Return how many pixels of every side a lattice has, by size and offset, int32."""
    numbers = [max(0, -(-(side - o) // stride)) for side in sides for o in range(stride)]
    return torch.tensor(numbers, dtype=torch.int32, device=device)
