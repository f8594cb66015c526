"""Curves of PSNR as an SVG of our own making: a few lines, and no plotting library."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#999999")
"""Told apart with any kind of colour vision (Okabe & Ito)."""
_WIDTH, _HEIGHT = 460, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 16, 30, 44
_LEGEND = 26


@dataclass(frozen=True)
class Curve:
    """A named line through points (x, y), x increasing."""

    name: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Panel:
    """One pair of axes with its curves."""

    title: str
    x_label: str
    y_label: str
    curves: tuple[Curve, ...]


def draw(panels: Sequence[Panel], columns: int) -> str:
    """Return an SVG document with the panels row by row and one legend below them.

    Curves of one name have one colour in all panels. The lowest fifth of what the curves span is
    cut off: they begin steeply, and differ where they end.
    """
    names = list(dict.fromkeys(curve.name for panel in panels for curve in panel.curves))
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
    rows = math.ceil(len(panels) / columns)
    width, height = columns * _WIDTH, rows * _HEIGHT + _LEGEND
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    for index, panel in enumerate(panels):
        row, column = divmod(index, columns)
        parts.append(f'<g transform="translate({column * _WIDTH} {row * _HEIGHT})">')
        parts += _panel(panel, colours)
        parts.append("</g>")
    x = float(_LEFT)
    for name, colour in colours.items():
        y = rows * _HEIGHT + 10
        parts.append(f'<path d="M{x:.0f} {y}h18" stroke="{colour}" stroke-width="2.5"/>')
        parts.append(f'<text x="{x + 23:.0f}" y="{y + 4}">{escape(name)}</text>')
        x += 42 + 6.2 * len(name)
    parts.append("</svg>")
    return "\n".join(parts) + "\n"


def _panel(panel: Panel, colours: dict[str, str]) -> Iterator[str]:
    points = [point for curve in panel.curves for point in curve.points]
    x_high = max((x for x, _ in points), default=1.0)
    ends = sorted(y for _, y in points) or [0.0, 1.0]
    y_low, y_high = ends[len(ends) // 5], ends[-1]
    margin = 0.04 * (y_high - y_low) or 1.0
    y_low, y_high = y_low - margin, y_high + margin
    inner_width, inner_height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def at(x: float, y: float) -> tuple[float, float]:
        across = _LEFT + inner_width * x / x_high
        return across, _TOP + inner_height * (y_high - y) / (y_high - y_low)

    yield f'<text x="{_LEFT}" y="18" font-size="13">{escape(panel.title)}</text>'
    for tick in ticks(0.0, x_high):
        x, y = at(tick, y_low)
        yield f'<path d="M{x:.1f} {_TOP}V{y:.1f}" stroke="#e4e4e4"/>'
        yield f'<text x="{x:.1f}" y="{y + 15:.1f}" text-anchor="middle">{tick:g}</text>'
    for tick in ticks(y_low, y_high):
        x, y = at(0.0, tick)
        yield f'<path d="M{x:.1f} {y:.1f}h{inner_width}" stroke="#e4e4e4"/>'
        yield f'<text x="{x - 5:.1f}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>'
    middle, bottom = _LEFT + inner_width / 2, _HEIGHT - 12
    yield f'<text x="{middle}" y="{bottom}" text-anchor="middle">{escape(panel.x_label)}</text>'
    up = f"translate(14 {_TOP + inner_height / 2}) rotate(-90)"
    yield f'<text transform="{up}" text-anchor="middle">{escape(panel.y_label)}</text>'
    for curve in panel.curves:
        seen = [at(x, y) for x, y in above(curve.points, y_low)]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in seen)
        yield (
            f'<polyline points="{line}" fill="none" stroke="{colours[curve.name]}" '
            'stroke-width="1.8"/>'
        )


def above(points: Sequence[tuple[float, float]], low: float) -> list[tuple[float, float]]:
    """Return the line through ``points`` from where it last rises above ``low``."""
    below = [index for index, (_, y) in enumerate(points) if y < low]
    if not below:
        return list(points)
    last = below[-1]
    if last == len(points) - 1:
        return []
    (x0, y0), (x1, y1) = points[last], points[last + 1]
    return [(x0 + (x1 - x0) * (low - y0) / (y1 - y0), low), *points[last + 1 :]]


def ticks(low: float, high: float, most: int = 7) -> list[float]:
    """Return at most ``most`` round numbers, evenly spaced, within ``low`` to ``high``."""
    rough = (high - low) / (most - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 10) for index in range(first, last + 1)]
