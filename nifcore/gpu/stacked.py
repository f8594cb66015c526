"""The mathematics of B networks in batched torch: obvious, and quick enough on a CPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nifcore.architecture import Architecture
from nifcore.gpu.base import first_gradient, first_terms
from nifcore.gpu.lattices import Axes, Batch
from nifcore.gpu.layout import Layout
from nifcore.gpu.structure import Structure, pixel_loss, pixel_slope
from nifcore.losses import Objective


class StackedKernel:
    """Forward and backward over (B, pixels, features), by hand; for any float dtype.

    Args:
        arch: shape of the networks.
    """

    name = "stacked"

    def __init__(self, arch: Architecture) -> None:
        self.arch = arch
        self.layout = Layout(arch)

    @torch.no_grad()
    def forward(self, flat: Tensor, batch: Batch) -> Tensor:
        return self._run(flat, batch)[0]

    @torch.no_grad()
    def loss_and_gradient(
        self, flat: Tensor, batch: Batch, objective: Objective
    ) -> tuple[Tensor, Tensor, Tensor]:
        output, period, genesis, modulation = self._run(flat, batch)
        rows, cols = output.shape[2:]
        seen = inside(batch).to(output)
        difference = (output - batch.target) * seen
        samples = batch.samples.to(output)
        error = difference.square().sum((1, 2, 3)) / samples
        if objective.applies_structure(rows, cols):
            loss, d_output = Structure(flat.device).objective_and_gradient(
                output, batch.target, batch.rows, batch.cols, objective
            )
        else:
            loss = (pixel_loss(difference, objective) * seen).sum((1, 2, 3)) / samples
            d_output = pixel_slope(difference, objective) / samples[:, None, None, None]
        d_output = (d_output * seen).flatten(2).mT

        gradient = torch.empty_like(flat)
        views = self.layout.views(flat), self.layout.views(gradient)
        split = self.arch.genesis_tensors
        d_period = self._back(
            views[0][:split], views[1][:split], genesis, d_output, period, batch.genesis, rows
        )
        if batch.modulation is not None:
            self._back(
                views[0][split:],
                views[1][split:],
                modulation,
                d_period * self.arch.sigma,
                flat.new_full((1, 1, 1), self.arch.omega),
                batch.modulation,
                rows,
            )
        return loss, gradient, error

    def _run(self, flat: Tensor, batch: Batch) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
        """Return output, period (B, pixels, 1) or (1, 1, 1), and the sums before every sine."""
        views, split = self.layout.views(flat), self.arch.genesis_tensors
        period = flat.new_full((1, 1, 1), self.arch.omega)
        modulation: list[Tensor] = []
        if batch.modulation is not None:
            shift, modulation = _sums(views[split:], batch.modulation, period)
            period = self.arch.omega + self.arch.sigma * shift
        output, genesis = _sums(views[:split], batch.genesis, period)
        colour = output.mT.reshape(*batch.target.shape)
        return colour, period, genesis, modulation

    def _back(
        self,
        weights: Sequence[Tensor],
        gradients: Sequence[Tensor],
        sums: Sequence[Tensor],
        d_output: Tensor,
        period: Tensor,
        axes: Axes,
        rows: int,
    ) -> Tensor:
        """Fill ``gradients``; return the gradient of the period (B, pixels, 1)."""
        dz = d_output
        d_period = torch.zeros_like(sums[0][:, :, :1])
        for layer in range(len(sums) - 1, -1, -1):
            phase = period * sums[layer]
            gradients[2 * layer + 2].copy_(dz.mT @ phase.sin())
            gradients[2 * layer + 3].copy_(dz.sum(1))
            dy = (dz @ weights[2 * layer + 2]) * phase.cos()
            d_period += (sums[layer] * dy).sum(2, keepdim=True)
            dz = dy * period
        cube = dz.view(len(dz), rows, -1, dz.shape[2])
        first_gradient(cube.sum(2), cube.sum(1), axes, gradients[0], gradients[1])
        return d_period


def _sums(weights: Sequence[Tensor], axes: Axes, period: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return a network's output (B, pixels, out) and the sums before every sine."""
    rows, cols = first_terms(weights[0], weights[1], axes)
    z = (rows[:, :, None] + cols[:, None]).flatten(1, 2)
    sums = []
    for weight, bias in zip(weights[2::2], weights[3::2], strict=True):
        sums.append(z)
        z = torch.baddbmm(bias[:, None], torch.sin(period * z), weight.mT)
    return z, sums


def inside(batch: Batch) -> Tensor:
    """Return which pixels are no padding, bool (B, 1, rows, columns)."""
    height, width = batch.target.shape[2:]
    device = batch.target.device
    r = torch.arange(height, device=device) < batch.rows[:, None]
    c = torch.arange(width, device=device) < batch.cols[:, None]
    return r[:, None, :, None] & c[:, None, None, :]
