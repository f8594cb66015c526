"""Training objectives: a pixel loss and, if asked, a weighted structural term.

All values live on the network's scale, [-1, 1] per channel. The published recipe is log-cosh plus
0.01 times one minus SSIM (Catania & Allegra 2023, section 4.1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

PixelLoss = Literal["mse", "l1", "log_cosh"]
StructuralLoss = Literal["dssim", "dms_ssim"]

SSIM_WINDOW = 11
"""Taps of SSIM's Gaussian window: smaller pictures have no SSIM."""
MS_SSIM_SCALES = 5


@dataclass(frozen=True)
class Objective:
    """What a fit minimises.

    Attributes:
        pixel: mean over pixels and channels of d², |d| or log cosh d, d = output - target.
        structural: adds ``weight * (1 - SSIM)`` or ``weight * (1 - MS-SSIM)``, or None.
        weight: weight of the structural term.
    """

    pixel: PixelLoss = "mse"
    structural: StructuralLoss | None = None
    weight: float = 0.0

    def pixel_sum_and_gradient(self, difference: Tensor) -> tuple[Tensor, Tensor]:
        """Return the summed pixel loss (0-d) and its gradient, which may reuse ``difference``."""
        if self.pixel == "mse":
            return difference.square().sum(), difference.mul_(2.0)
        if self.pixel == "l1":
            return difference.abs().sum(), difference.sign_()
        import torch

        total = difference.abs() + torch.nn.functional.softplus(-2.0 * difference.abs())
        return total.sum() - math.log(2.0) * difference.numel(), difference.tanh_()

    def applies_structure(self, rows: int, cols: int) -> bool:
        """Tell whether the structural term can be computed on a picture of this size."""
        if self.structural is None or self.weight == 0.0:
            return False
        least = min(rows, cols)
        if self.structural == "dssim":
            return least >= SSIM_WINDOW
        return least > (SSIM_WINDOW - 1) << (MS_SSIM_SCALES - 1)

    def value(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the whole objective (0-d, differentiable) for (channels, rows, cols) tensors."""
        difference = output - target
        if self.pixel == "mse":
            loss = difference.square().mean()
        elif self.pixel == "l1":
            loss = difference.abs().mean()
        else:
            import torch

            softplus = torch.nn.functional.softplus(-2.0 * difference)
            loss = (difference + softplus).mean() - math.log(2.0)
        if self.applies_structure(output.shape[1], output.shape[2]):
            loss = loss + self.weight * self._structure(output[None], target[None])
        return loss

    def _structure(self, output: Tensor, target: Tensor) -> Tensor:
        # the network's range of 2 is SSIM's data range; SSIM does not change under the shift of
        # both pictures only if the constants see the same luminance, so move to [0, 2] first
        from nifcore import metrics

        similar = metrics.ssim if self.structural == "dssim" else metrics.ms_ssim
        return 1.0 - similar(output + 1.0, target + 1.0, data_range=2.0)

    def value_and_gradient(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return the objective (0-d) and its gradient with respect to ``output``."""
        import torch

        with torch.enable_grad():
            leaf = output.detach().requires_grad_(True)
            value = self.value(leaf, target)
            (gradient,) = torch.autograd.grad(value, leaf)
        return value.detach(), gradient
