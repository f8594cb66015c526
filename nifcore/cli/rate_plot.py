"""The plot of rate and distortion, as SVG: PSNR over bits per pixel beside published curves."""

from __future__ import annotations

from collections.abc import Sequence

from nifcore.cli.curves import Curve
from nifcore.cli.svg import INK, Axes, text

_OURS = ("#0b6e99", "#b4532a", "#5a7d2a", "#7a3f9d", "#996b00")
_THEIRS = ("#9aa5b1", "#b8a1c9", "#a9b89a", "#c9b79c", "#9cb9c9", "#c9a19f")
_MARGIN = 1.6
"""Published curves are shown up to this factor beyond our rates."""


def draw(ours: Sequence[Curve], published: Sequence[Curve], pictures: int) -> str:
    """Return the plot.

    Args:
        ours: at least one curve of at least one point.
        published: curves to show beside; only their parts near our rates are drawn.
        pictures: how many were encoded.
    """
    rates = [rate for curve in ours for rate, _ in curve.points]
    low, high = min(rates) / _MARGIN, max(rates) * _MARGIN
    near = [curve.between(low, high) for curve in published]
    near = [curve for curve in near if len(curve.points) > 1]
    points = [point for curve in [*ours, *near] for point in curve.points]
    axes = Axes(
        [rate for rate, _ in points],
        [level for _, level in points],
        title="PSNR over rate",
        subtitle=f"mean of {pictures} pictures" if pictures > 1 else "one picture",
        across_name="bits per pixel, whole file",
        upward_name="PSNR in dB",
        width=960,
        height=620,
        right=210,
    )
    names = []
    for index, curve in enumerate(near):
        stroke = _THEIRS[index % len(_THEIRS)]
        axes.line(list(curve.points), stroke, 1.5)
        names.append((curve.codec, curve.points[-1], stroke))
    axes.names(names)
    for index, curve in enumerate(ours):
        stroke = _OURS[index % len(_OURS)]
        axes.line(list(curve.points), stroke, 2.5)
        for rate, level in curve.points:
            axes.parts.append(
                f'<circle cx="{axes.x(rate):.1f}" cy="{axes.y(level):.1f}" r="5" fill="{stroke}">'
                f"<title>{curve.codec}: {level:.2f} dB at {rate:.3f} bpp</title></circle>"
            )
        rate, level = curve.points[0]
        axes.parts.append(
            text(
                axes.x(rate) - 8,
                axes.y(level) - 9,
                curve.codec,
                anchor="end",
                size=13,
                weight=600,
                fill=INK,
            )
        )
    return axes.finish()
