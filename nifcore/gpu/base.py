"""The interface of batched kernels, and one of them as an ordinary kernel."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from nifcore.architecture import Architecture
from nifcore.gpu.lattices import Axes, Batch, batch_of
from nifcore.gpu.layout import Layout
from nifcore.losses import Objective
from nifcore.network import Grid, axis_columns


class BatchKernel(Protocol):
    """Evaluates B networks of one architecture and their gradients. Never waits for the host."""

    name: str

    def forward(self, flat: Tensor, batch: Batch) -> Tensor:
        """Return colour (B, channels, rows, columns), float32; padding holds anything."""

    def loss_and_gradient(
        self, flat: Tensor, batch: Batch, objective: Objective
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return loss (B,), gradient (B, N) and mean squared error (B,).

        Args:
            flat: weights (B, N), see :class:`~nifcore.gpu.layout.Layout`.
        """


class BatchKernelFactory(Protocol):
    """Makes a batched kernel for one architecture."""

    def __call__(self, arch: Architecture) -> BatchKernel: ...


class SingleKernel:
    """A batched kernel behind the interface of :mod:`nifcore.kernels.base`: batches of one."""

    def __init__(self, arch: Architecture, inner: BatchKernel) -> None:
        self.name = inner.name
        self.arch, self.inner = arch, inner
        self._layout = Layout(arch)

    def forward(self, params: Sequence[Tensor], grid: Grid) -> Tensor:
        empty = params[0].new_empty(self.arch.channels, grid.rows, grid.cols)
        with torch.no_grad():
            return self.inner.forward(self._flat(params), batch_of(grid, empty))[0]

    @torch.no_grad()
    def loss_and_gradient(
        self, params: Sequence[Tensor], grid: Grid, target: Tensor, objective: Objective
    ) -> tuple[Tensor, list[Tensor], Tensor]:
        loss, flat, error = self.inner.loss_and_gradient(
            self._flat(params), batch_of(grid, target), objective
        )
        return loss[0], [view[0] for view in self._layout.views(flat)], error[0]

    def _flat(self, params: Sequence[Tensor]) -> Tensor:
        return torch.cat([p.flatten() for p in params])[None]


@lru_cache(maxsize=64)
def _columns(frequencies: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Keep the column indices on the device: making them anew would wait for the host."""
    return axis_columns(frequencies, device)


def first_terms(weight: Tensor, bias: Tensor, axes: Axes) -> tuple[Tensor, Tensor]:
    """Return the two terms of every network's first layer, pixel-major.

    Args:
        weight: (B, out, in). bias: (B, out).

    Returns:
        (B, rows, out), and (B, columns, out) with the bias.
    """
    columns = _columns((weight.shape[2] - 2) // 4, weight.device)
    y, x = (weight.index_select(2, each) for each in columns)
    rows = torch.bmm(axes.y.mT, y.mT)
    return rows, torch.baddbmm(bias[:, None], axes.x.mT, x.mT)


def first_gradient(
    d_rows: Tensor, d_cols: Tensor, axes: Axes, weight: Tensor, bias: Tensor
) -> None:
    """Turn row and column sums into the gradient of the first layer, ``weight`` and ``bias``.

    Args:
        d_rows: (B, rows, out). d_cols: (B, columns, out).
        weight: (B, out, in) and bias: (B, out), overwritten.
    """
    columns = _columns((weight.shape[2] - 2) // 4, weight.device)
    weight.index_copy_(2, columns[0], torch.bmm(d_rows.mT, axes.y.mT))
    weight.index_copy_(2, columns[1], torch.bmm(d_cols.mT, axes.x.mT))
    bias.copy_(d_cols.sum(1))
