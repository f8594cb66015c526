"""Bjontegaard deltas: one number for the distance between two rate-distortion curves.

The measure was introduced in ITU-T VCEG-M33 (2001) with cubic fits; here, as in the tools of the
standards since and as Barman, Martini and Reznik recommend ("Bjontegaard Delta (BD): A Tutorial
Overview of the Metric, Evolution, Challenges, and Recommendations", 2024,
https://arxiv.org/abs/2401.04039), each curve is a monotone piecewise cubic (PCHIP) through its
points, over the logarithm of the rate, integrated exactly where both curves are defined.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from nifcore.errors import UsageError

Points: TypeAlias = Iterable[tuple[float, float]]
"""(rate, quality) pairs of one codec in any order: bits per pixel, and dB or any other scale."""

_Floats: TypeAlias = NDArray[np.float64]


def bd_rate(anchor: Points, test: Points) -> float:
    """Return the mean difference in rate at equal quality, in percent of the anchor's.

    -20 means that ``test`` needs a fifth fewer bits than ``anchor`` for the same quality, averaged
    over the qualities that both curves reach.

    Args:
        anchor, test: at least two points each (four or more for a trustworthy number); along
            with the rate the quality must rise from point to point.

    Raises:
        UsageError: too few points, a rate that is not positive, a value that is not finite, a
            quality that falls while the rate rises, or curves without a common range of quality.
    """
    rate_a, quality_a = _curve(anchor, "anchor")
    rate_b, quality_b = _curve(test, "test")
    difference = _mean_difference(quality_a, rate_a, quality_b, rate_b, "quality")
    return float(100.0 * np.expm1(difference * np.log(10.0)))


def bd_psnr(anchor: Points, test: Points) -> float:
    """Return the mean difference in quality at equal rate, in the unit of quality (dB for PSNR).

    Positive means that ``test`` is better. The mean is over the logarithm of the rate. Arguments
    and errors are those of :func:`bd_rate`; the curves must have a common range of rates.
    """
    rate_a, quality_a = _curve(anchor, "anchor")
    rate_b, quality_b = _curve(test, "test")
    return _mean_difference(rate_a, quality_a, rate_b, quality_b, "rate")


def _curve(points: Points, name: str) -> tuple[_Floats, _Floats]:
    """Return log10 of the rates, ascending, and the qualities, both checked."""
    table = np.array([tuple(point) for point in points], dtype=np.float64)
    if table.ndim != 2 or table.shape[1] != 2 or len(table) < 2:
        raise UsageError(
            f"the {name} has points of shape {table.shape}; accepted: at least two (rate, quality)"
        )
    if not np.isfinite(table).all() or (table[:, 0] <= 0).any():
        raise UsageError(
            f"the {name} has points {table.tolist()}; accepted: finite numbers, rates above 0"
        )
    table = table[np.argsort(table[:, 0], kind="stable")]
    if (np.diff(table[:, 0]) <= 0).any() or (np.diff(table[:, 1]) <= 0).any():
        raise UsageError(
            f"the quality of the {name} does not rise with its rate: {table.tolist()}; accepted: "
            "strictly rising curves"
        )
    return np.log10(table[:, 0]), table[:, 1]


def _mean_difference(xa: _Floats, ya: _Floats, xb: _Floats, yb: _Floats, axis: str) -> float:
    low, high = max(xa[0], xb[0]), min(xa[-1], xb[-1])
    if not low < high:
        spans = [
            f"{10 ** x[0]:.4g} to {10 ** x[-1]:.4g}"
            if axis == "rate"
            else f"{x[0]:.4g} to {x[-1]:.4g}"
            for x in (xa, xb)
        ]
        raise UsageError(
            f"the curves have no {axis} in common: the anchor spans {spans[0]}, the test {spans[1]}"
        )
    difference = _integral(xb, yb, low, high) - _integral(xa, ya, low, high)
    return float(difference / (high - low))


def _integral(x: _Floats, y: _Floats, low: float, high: float) -> float:
    """Return the exact integral of the PCHIP interpolant through (x, y) from low to high."""
    slopes = _slopes(x, y)
    total = 0.0
    for k in range(len(x) - 1):
        left, right = max(low, x[k]), min(high, x[k + 1])
        if left < right:
            width = x[k + 1] - x[k]
            ends = np.array([(left - x[k]) / width, (right - x[k]) / width])
            # Cubic Hermite basis on [0, 1], integrated once, for y0, y1, m0 * width, m1 * width.
            t2, t3, t4 = ends**2, ends**3, ends**4
            antiderivative = (
                y[k] * (t4 / 2 - t3 + ends)
                + y[k + 1] * (t3 - t4 / 2)
                + slopes[k] * width * (t4 / 4 - 2 * t3 / 3 + t2 / 2)
                + slopes[k + 1] * width * (t4 / 4 - t3 / 3)
            )
            total += width * float(antiderivative[1] - antiderivative[0])
    return total


def _slopes(x: _Floats, y: _Floats) -> _Floats:
    """Return the derivatives at the points that keep the interpolant monotone.

    Fritsch and Butland, "A Method for Constructing Local Monotone Piecewise Cubic Interpolants"
    (1984): inside, a weighted harmonic mean of the two neighbouring differences; at the ends, the
    three-point formula, limited.
    """
    width = np.diff(x)
    rise = np.diff(y) / width
    if len(x) == 2:
        return np.array([rise[0], rise[0]])
    slopes = np.empty_like(x)
    before = 2 * width[1:] + width[:-1]
    after = width[1:] + 2 * width[:-1]
    slopes[1:-1] = (before + after) / (before / rise[:-1] + after / rise[1:])
    slopes[0] = _end_slope(width[0], width[1], rise[0], rise[1])
    slopes[-1] = _end_slope(width[-1], width[-2], rise[-1], rise[-2])
    return slopes


def _end_slope(width: float, next_width: float, rise: float, next_rise: float) -> float:
    # All rises are positive here, so the limits for changing signs are not needed.
    slope = ((2 * width + next_width) * rise - width * next_rise) / (width + next_width)
    return max(slope, 0.0)
