"""The one interface behind which implementations of the network's mathematics sit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from nifcore.architecture import Architecture
from nifcore.losses import Objective
from nifcore.network import Grid


class Kernel(Protocol):
    """Evaluates networks of one architecture and their gradients on grids of pixels."""

    name: str

    def forward(self, params: Sequence[Tensor], grid: Grid) -> Tensor:
        """Return colour (channels, rows, cols), float32, not differentiable."""

    def loss_and_gradient(
        self, params: Sequence[Tensor], grid: Grid, target: Tensor, objective: Objective
    ) -> tuple[Tensor, list[Tensor], Tensor]:
        """Return the loss (0-d), its gradient per parameter, and the squared error.

        Args:
            target: (channels, rows, cols) float32 in [-1, 1].

        Returns:
            loss, gradients in the order and shape of ``params``, mean squared error (0-d).
        """


class KernelFactory(Protocol):
    """Makes a kernel for one architecture."""

    def __call__(self, arch: Architecture) -> Kernel: ...
