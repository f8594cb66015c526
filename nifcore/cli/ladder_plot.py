"""The plot of the effort ladder, as SVG: PSNR over seconds per megapixel, on a logarithmic axis."""

from __future__ import annotations

from collections.abc import Sequence

from nifcore.cli.svg import QUIET, RIGHT, WIDTH, Axes, text
from nifcore.ladder import Rung

_FRONT, _BEATEN = "#0b6e99", "#b4532a"


def draw(levels: Sequence[Rung], bpp: float, pictures: int) -> str:
    """Return the plot of at least one level.

    Args:
        levels: lowest first.
        bpp: rate at which they are compared.
        pictures: how many were encoded.
    """
    many = f"mean of {pictures} pictures" if pictures > 1 else "one picture"
    axes = Axes(
        [level.seconds_per_megapixel for level in levels],
        [level.psnr_db for level in levels],
        title="PSNR over time, effort by effort",
        subtitle=f"{bpp:g} bits per pixel, {many}",
        across_name="seconds per megapixel",
        upward_name="PSNR in dB",
    )
    front = [level for level in levels if level.on_front]
    axes.line(sorted((level.seconds_per_megapixel, level.psnr_db) for level in front), _FRONT)
    for level in levels:
        across, down = axes.x(level.seconds_per_megapixel), axes.y(level.psnr_db)
        if level.on_front:
            # off the line, which rises to the right
            style, aside, above = f'fill="{_FRONT}" stroke="#ffffff"', -7, -10
        else:
            style, aside, above = f'fill="#ffffff" stroke="{_BEATEN}"', 0, 23
        axes.parts.append(
            f'<circle cx="{across:.1f}" cy="{down:.1f}" r="6" {style} stroke-width="2">'
            f"<title>effort {level.effort}: {level.psnr_db:.2f} dB, "
            f"{level.seconds_per_megapixel:.1f} s per megapixel</title></circle>"
        )
        axes.parts.append(
            text(
                across + aside,
                down + above,
                str(level.effort),
                anchor="middle",
                size=14,
                weight=600,
            )
        )
    if len(front) < len(levels):
        right = WIDTH - RIGHT
        axes.parts.append(
            f'<circle cx="{right - 158}" cy="45" r="5" fill="#ffffff" stroke="{_BEATEN}" '
            'stroke-width="2"/>'
        )
        axes.parts.append(text(right, 49, "another level is better", anchor="end", fill=QUIET))
    return axes.finish()
