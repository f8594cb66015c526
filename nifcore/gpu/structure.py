"""The structural term of the published loss for B pictures at once, padding left out.

``metrics.ssim`` means over a whole batch and makes its window on the host at every call; here every
item has its own mean over its own windows, and nothing waits for the host.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from nifcore.losses import SSIM_WINDOW, Objective

_SIGMA = 1.5
_C1, _C2 = (0.01 * 2.0) ** 2, (0.03 * 2.0) ** 2


class Structure:
    """``weight * (1 - SSIM)`` per item, with its gradient.

    Args:
        device: where the pictures are.
    """

    def __init__(self, device: torch.device) -> None:
        at = torch.arange(SSIM_WINDOW, dtype=torch.float64) - SSIM_WINDOW // 2
        taps = torch.exp(-at.square() / (2 * _SIGMA**2))
        self._taps = (taps / taps.sum()).float().to(device)

    def objective_and_gradient(
        self, output: Tensor, target: Tensor, rows: Tensor, cols: Tensor, objective: Objective
    ) -> tuple[Tensor, Tensor]:
        """Return the whole objective (B,) and its gradient with respect to ``output``.

        Args:
            output, target: (B, channels, rows, columns) in about [-1, 1].
            rows, cols: int32 (B,), what of them is no padding.
        """
        inside = _mask(output, rows, cols)
        samples = (rows * cols * output.shape[1]).float()
        with torch.enable_grad():
            leaf = output.detach().requires_grad_(True)
            value = pixel_loss(leaf - target, objective) * inside
            loss = value.sum((1, 2, 3)) / samples
            loss = loss + objective.weight * (1.0 - self._ssim(leaf, target, rows, cols))
            (gradient,) = torch.autograd.grad(loss.sum(), leaf)
        return loss.detach(), gradient

    def _ssim(self, x: Tensor, y: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
        """Return the mean SSIM of every item (B,) over the windows that hold no padding."""
        count = 5 * x.shape[1]
        moments = torch.cat([x, y, x * x, y * y, x * y], dim=1)
        taps = self._taps.to(x.dtype).expand(count, 1, 1, SSIM_WINDOW)
        blurred = conv2d(conv2d(moments, taps.mT, groups=count), taps, groups=count)
        mean_x, mean_y, xx, yy, xy = blurred.chunk(5, dim=1)
        contrast = (2 * (xy - mean_x * mean_y) + _C2) / (
            (xx - mean_x.square()) + (yy - mean_y.square()) + _C2
        )
        mean_x, mean_y = mean_x + 1.0, mean_y + 1.0  # luminance counts from black
        luminance = (2 * mean_x * mean_y + _C1) / (mean_x.square() + mean_y.square() + _C1)
        reach = SSIM_WINDOW - 1
        windows = _mask(luminance, rows - reach, cols - reach)
        number = (rows - reach) * (cols - reach) * x.shape[1]
        return (luminance * contrast * windows).sum((1, 2, 3)) / number


def pixel_loss(difference: Tensor, objective: Objective) -> Tensor:
    """Return the pixel loss of every sample, of the shape of ``difference``."""
    if objective.pixel == "mse":
        return difference.square()
    size = difference.abs()
    if objective.pixel == "l1":
        return size
    return size + torch.nn.functional.softplus(-2.0 * size) - math.log(2.0)


def pixel_slope(difference: Tensor, objective: Objective) -> Tensor:
    """Return the derivative of :func:`pixel_loss`."""
    if objective.pixel == "mse":
        return 2.0 * difference
    return difference.sign() if objective.pixel == "l1" else difference.tanh()


def _mask(like: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """Return 1 inside the first rows and columns of every item and 0 outside, (B, 1, H, W)."""
    r = torch.arange(like.shape[2], device=like.device) < rows[:, None]
    c = torch.arange(like.shape[3], device=like.device) < cols[:, None]
    return (r[:, None, :, None] & c[:, None, None, :]).to(like.dtype)
