"""The reference mathematics under autograd: slow, obvious, the truth for the other kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from nifcore import network
from nifcore.architecture import Architecture
from nifcore.losses import Objective
from nifcore.network import Grid

_CHUNK = 1 << 18
"""Pixels rendered at a time, to bound the memory of a large picture."""


class ReferenceKernel:
    """Plain torch and autograd over :func:`nifcore.network.forward`."""

    name = "reference"

    def __init__(self, arch: Architecture) -> None:
        self.arch = arch
        self._forward: Callable[[Architecture, Sequence[Tensor], Grid], Tensor] = network.forward

    def forward(self, params: Sequence[Tensor], grid: Grid) -> Tensor:
        band = max(1, _CHUNK // grid.cols)
        with torch.no_grad():
            bands = [
                network.forward(self.arch, params, grid.take(slice(r, r + band), slice(None)))
                for r in range(0, grid.rows, band)
            ]
        return torch.cat(bands, 1)

    def loss_and_gradient(
        self, params: Sequence[Tensor], grid: Grid, target: Tensor, objective: Objective
    ) -> tuple[Tensor, list[Tensor], Tensor]:
        with torch.enable_grad():
            leaves = [p.detach().requires_grad_(True) for p in params]
            output = self._forward(self.arch, leaves, grid)
            loss = objective.value(output, target)
            gradients = torch.autograd.grad(loss, leaves)
        error = (output.detach() - target).square().mean()
        return loss.detach(), list(gradients), error


class CompiledKernel(ReferenceKernel):
    """The same, through ``torch.compile``: compiles for tens of seconds at first use."""

    name = "compiled"

    def __init__(self, arch: Architecture) -> None:
        super().__init__(arch)
        self._forward = torch.compile(network.forward, dynamic=False)
