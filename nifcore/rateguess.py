"""A first guess of the rate that a wanted PSNR takes, from what JPEG needs for this very picture.

The published Kodak curves give the rate of NIF over that of JPEG at equal PSNR, for colour: 0.66 at
28.3 dB, 0.76 at 31, 0.86 at 33, 1.0 at 35.6, 1.1 at 38, 1.2 at 40.4
(aegroto/nif, results/summaries/kodak).
"""

from __future__ import annotations

import io
import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nifcore import metrics

_QUALITIES = (3, 10, 25, 45, 65, 80, 90, 96)
_SAMPLE_SIDE = 1024
"""Longest side of the central part that is tried, so that large pictures cost no more."""
_RATIOS = ((28.3, 0.66), (31.0, 0.76), (33.2, 0.86), (35.6, 1.0), (38.0, 1.1), (40.4, 1.2))


def guess_bpp(pixels: NDArray[np.uint8], psnr_db: float) -> float:
    """Return bits per pixel that should give ``psnr_db`` on uint8 (height, width, channels)."""
    part = _central(pixels)
    points = [_jpeg(part, quality) for quality in _QUALITIES]
    rates = [math.log(rate) for rate, _ in points]
    levels = np.maximum.accumulate([db for _, db in points])
    log_rate = float(np.interp(psnr_db, levels, rates))
    # beyond the ends: 6 dB per bit above, 2.5 dB per doubling below
    rate = math.exp(log_rate)
    if psnr_db > levels[-1]:
        rate += (psnr_db - float(levels[-1])) / 6.0 * pixels.shape[2]
    elif psnr_db < levels[0]:
        rate *= 2.0 ** ((psnr_db - float(levels[0])) / 2.5)
    ratio = float(np.interp(psnr_db, [p for p, _ in _RATIOS], [r for _, r in _RATIOS]))
    return rate * ratio


def _central(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = pixels.shape[:2]
    h, w = min(height, _SAMPLE_SIDE), min(width, _SAMPLE_SIDE)
    top, left = (height - h) // 2, (width - w) // 2
    return np.ascontiguousarray(pixels[top : top + h, left : left + w])


def _jpeg(pixels: NDArray[np.uint8], quality: int) -> tuple[float, float]:
    """Return (bpp, PSNR in dB) of the colour part as JPEG; lossless is capped at 60 dB."""
    colour = pixels[:, :, :3] if pixels.shape[2] >= 3 else pixels[:, :, 0]
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(colour)).save(
        buffer, "JPEG", quality=quality, optimize=True
    )
    decoded = np.asarray(Image.open(buffer))
    rate = len(buffer.getvalue()) * 8 / (colour.shape[0] * colour.shape[1])
    return rate, min(60.0, metrics.psnr(colour, decoded))
