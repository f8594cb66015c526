"""How near a decoded picture is to the original: MSE, PSNR, SSIM and MS-SSIM.

SSIM is that of Wang et al., "Image Quality Assessment: From Error Visibility to Structural
Similarity" (2004): an 11-tap Gaussian window of sigma 1.5, K = (0.01, 0.03), and only windows that
lie wholly in the picture. MS-SSIM is that of Wang et al., "Multiscale Structural Similarity for
Image Quality Assessment" (2003): five scales, each half as large as the one before. As is the
custom in the literature on learned compression, both are taken for each colour channel and
averaged (not on luma), so the numbers can be held against published ones.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from nifcore.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

WINDOW = 11
SIGMA = 1.5
K1, K2 = 0.01, 0.03
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Exponents of the five scales, finest first (Wang et al. 2003, section 3.2)."""

MS_SSIM_MIN_SIDE = (WINDOW - 1) * 2 ** (len(SCALE_WEIGHTS) - 1) + 1
"""161: the smallest side of which four halvings leave a whole window."""

# Pixels at work at once: enough for the vector units, few enough for the cache.
_STRIP_PIXELS = 1 << 16


def mse(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Return the mean squared difference over all pixels and channels, alpha included.

    Args:
        a, b: uint8 arrays of equal shape, (height, width) or (height, width, channels).

    Raises:
        UsageError: the shapes differ, the dtype is not uint8, or there are no pixels.
    """
    _check_pictures(a, b)
    total = 0
    rows = max(1, _STRIP_PIXELS // max(1, a[0].size))
    for top in range(0, a.shape[0], rows):
        difference = a[top : top + rows].astype(np.int32) - b[top : top + rows]
        total += int(np.square(difference).sum(dtype=np.int64))
    return total / a.size


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Return the peak signal-to-noise ratio in dB, peak 255, over all channels; inf if equal.

    Arguments and errors are those of :func:`mse`.
    """
    error = mse(a, b)
    return 10.0 * math.log10(255.0**2 / error) if error else math.inf


def ssim(x: Tensor, y: Tensor, data_range: float = 1.0) -> Tensor:
    """Return the mean SSIM of two batches, differentiable.

    Args:
        x, y: float tensors of equal shape (N, C, H, W), H and W at least 11.
        data_range: the difference between white and black, 1 for values in [0, 1].

    Returns:
        Zero-dimensional tensor, at most 1: the mean over windows, channels and pictures.

    Raises:
        UsageError: the shapes differ, or a side is below 11.
    """
    _check_batches(x, y, WINDOW)
    similarity, _ = _similarity(x, y, data_range)
    return similarity.mean()


def ms_ssim(x: Tensor, y: Tensor, data_range: float = 1.0) -> Tensor:
    """Return the mean MS-SSIM of two batches, differentiable.

    Negative terms of a scale count as 0, as powers of them would not be real. Where that happens
    the gradient through that scale is 0.

    Args:
        x, y: float tensors of equal shape (N, C, H, W), H and W at least 161.
        data_range: the difference between white and black, 1 for values in [0, 1].

    Returns:
        Zero-dimensional tensor in [0, 1]: the mean over channels and pictures.

    Raises:
        UsageError: the shapes differ, or a side is below 161.
    """
    _check_batches(x, y, MS_SSIM_MIN_SIDE)
    product: Tensor | None = None
    last = len(SCALE_WEIGHTS) - 1
    for scale, weight in enumerate(SCALE_WEIGHTS):
        similarity, contrast = _similarity(x, y, data_range)
        term = (similarity if scale == last else contrast).mean(dim=(2, 3))  # (N, C)
        factor = _power(term, weight)
        product = factor if product is None else product * factor
        if scale < last:
            x, y = _halved(x), _halved(y)
    assert product is not None
    return product.mean()


def ms_ssim_pictures(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float | None:
    """Return the MS-SSIM of two pictures, the mean over all channels, alpha included.

    Works through one channel at a time in strips: 15 bytes of memory per pixel whatever the
    number of channels, and on one core about 0.1 s per megapixel and channel.

    Args:
        a, b: uint8 arrays of equal shape, (height, width) or (height, width, channels).

    Returns:
        A number in [0, 1], or None if a side is below 161: the five scales halve the picture four
        times, and (11 - 1) * 2**4 + 1 is the least that leaves one whole window.

    Raises:
        UsageError: the shapes differ, the dtype is not uint8, or there are no pixels.
    """
    import torch

    from nifcore.devices import single_threaded

    _check_pictures(a, b)
    if min(a.shape[:2]) < MS_SSIM_MIN_SIDE:
        return None
    a = a.reshape(*a.shape[:2], -1)
    b = b.reshape(*b.shape[:2], -1)
    values = []
    # on busy cores the threads of each small operation wait for one another for seconds
    with single_threaded(), torch.no_grad():
        for channel in range(a.shape[2]):
            x = torch.from_numpy(a[..., channel].astype(np.float32))[None, None]
            y = torch.from_numpy(b[..., channel].astype(np.float32))[None, None]
            values.append(_ms_ssim_plane(x, y))
    return sum(values) / len(values)


def _ms_ssim_plane(x: Tensor, y: Tensor) -> float:
    """Return MS-SSIM of two (1, 1, H, W) planes with values in [0, 255]."""
    product = 1.0
    last = len(SCALE_WEIGHTS) - 1
    for scale, weight in enumerate(SCALE_WEIGHTS):
        height, width = x.shape[2:]
        windows = height - WINDOW + 1
        rows = max(1, _STRIP_PIXELS // width)
        total = 0.0
        for top in range(0, windows, rows):
            part = slice(top, min(top + rows, windows) + WINDOW - 1)
            similarity, contrast = _similarity(x[:, :, part], y[:, :, part], 255.0)
            total += float((similarity if scale == last else contrast).double().sum())
        product *= max(0.0, total / (windows * (width - WINDOW + 1))) ** weight
        if scale < last:
            x, y = _halved(x), _halved(y)
    return product


def _similarity(x: Tensor, y: Tensor, data_range: float) -> tuple[Tensor, Tensor]:
    """Return the SSIM map and its contrast-structure part, each (N, C, H - 10, W - 10)."""
    import torch

    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    # Variances do not change under a shift; around zero they lose less to rounding in float32.
    middle = data_range / 2
    x, y = x - middle, y - middle
    moments = torch.cat([x, y, x * x, y * y, x * y], dim=1)  # (N, 5 C, H, W)
    mean_x, mean_y, xx, yy, xy = _blurred(moments).chunk(5, dim=1)
    contrast = (2 * (xy - mean_x * mean_y) + c2) / (
        (xx - mean_x.square()) + (yy - mean_y.square()) + c2
    )
    mean_x, mean_y = mean_x + middle, mean_y + middle
    luminance = (2 * mean_x * mean_y + c1) / (mean_x.square() + mean_y.square() + c1)
    return luminance * contrast, contrast


def _blurred(planes: Tensor) -> Tensor:
    """Return (N, B, H, W) planes seen through the Gaussian window, (N, B, H - 10, W - 10)."""
    from torch.nn.functional import conv2d

    # As depthwise convolution: ten times faster on a CPU than the same planes as a batch of one.
    count = planes.shape[1]
    taps = planes.new_tensor(_window()).expand(count, 1, 1, WINDOW)
    return conv2d(conv2d(planes, taps.mT, groups=count), taps, groups=count)


def _window() -> Sequence[float]:
    centre = WINDOW // 2
    taps = [math.exp(-((i - centre) ** 2) / (2 * SIGMA**2)) for i in range(WINDOW)]
    return [tap / math.fsum(taps) for tap in taps]


def _halved(planes: Tensor) -> Tensor:
    """Return means of 2x2 blocks; an odd side gets a border of zeros on both ends.

    The border is what pytorch-msssim does, which most published numbers were made with.
    """
    from torch.nn.functional import avg_pool2d

    padding = [planes.shape[2] % 2, planes.shape[3] % 2]
    return avg_pool2d(planes, kernel_size=2, padding=padding)


def _power(base: Tensor, exponent: float) -> Tensor:
    """Return max(base, 0) ** exponent; plain relu and power give a NaN gradient at 0."""
    import torch

    positive = base > 0
    powers = torch.where(positive, base, 1.0) ** exponent
    return torch.where(positive, powers, 0.0)


def _check_pictures(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> None:
    if a.shape != b.shape or a.ndim not in (2, 3) or a.size == 0:
        raise UsageError(
            f"pictures of shape {a.shape} and {b.shape} cannot be compared; accepted: two equal "
            "shapes, (height, width) or (height, width, channels)"
        )
    if a.dtype != np.uint8 or b.dtype != np.uint8:
        raise UsageError(f"pictures of dtype {a.dtype} and {b.dtype}; accepted: uint8")


def _check_batches(x: Tensor, y: Tensor, least: int) -> None:
    if x.shape != y.shape or x.ndim != 4 or min(x.shape[2:]) < least:
        raise UsageError(
            f"tensors of shape {tuple(x.shape)} and {tuple(y.shape)} cannot be compared; accepted: "
            f"two equal shapes (N, C, H, W) with H and W at least {least}"
        )
