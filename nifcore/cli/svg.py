"""Axes, rules and text of the command line's plots, as SVG by hand: no library draws so little."""

from __future__ import annotations

import math
from collections.abc import Iterator
from html import escape

INK, QUIET, LINE = "#1f2933", "#5b6773", "#e3e8ed"
WIDTH, HEIGHT = 720, 440
LEFT, RIGHT, TOP, BOTTOM = 72, 28, 64, 60
_NAME_HEIGHT = 15
_STYLE = "font-family: system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif"


class Axes:
    """A frame with a logarithmic axis across and an even one upwards.

    Args:
        across, upward: all values to be shown.
        title, subtitle: above the plot.
        across_name, upward_name: of the axes.
        width, height: of the whole, in pixels.
        right: room to the right of the frame, in pixels.

    Attributes:
        parts: SVG elements so far; append to them and :meth:`finish`.
    """

    def __init__(
        self,
        across: list[float],
        upward: list[float],
        *,
        title: str,
        subtitle: str,
        across_name: str,
        upward_name: str,
        width: int = WIDTH,
        height: int = HEIGHT,
        right: int = RIGHT,
    ) -> None:
        self.right, self.bottom = width - right, height - BOTTOM
        logs = [math.log10(value) for value in across]
        self._first, self._last = _widened(min(logs), max(logs), 0.3, 0.08)
        self._low, self._high = _widened(min(upward), max(upward), 0.4, 0.12)
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" role="img" style="{_STYLE}">',
            f"<title>{escape(f'{title}: {subtitle}')}</title>",
            f'<rect width="{width}" height="{height}" rx="8" fill="#ffffff"/>',
            text(LEFT, 30, title, size=17, weight=600),
            text(LEFT, 49, subtitle, fill=QUIET),
        ]
        marks = list(_even_ticks(self._low, self._high))
        span = self._high - self._low
        places = 0 if all(mark == round(mark) for mark in marks) else 1 if span > 0.6 else 2
        for value in marks:
            level = self.y(value)
            self.parts.append(_rule(LEFT, level, self.right, level))
            label = f"{value:.{places}f}"
            self.parts.append(text(LEFT - 10, level + 4, label, anchor="end", fill=QUIET))
        for value in _log_ticks(10**self._first, 10**self._last):
            place = self.x(value)
            self.parts.append(_rule(place, TOP, place, self.bottom))
            below = self.bottom + 20
            self.parts.append(text(place, below, f"{value:g}", anchor="middle", fill=QUIET))
        centre = (LEFT + self.right) / 2
        self.parts.append(text(centre, height - 16, across_name, anchor="middle"))
        middle = (TOP + self.bottom) / 2
        name = text(20, middle + 4, upward_name, anchor="middle")
        self.parts.append(f'<g transform="rotate(-90 20 {middle:.1f})">{name}</g>')

    def x(self, value: float) -> float:
        """Return the place of a value across."""
        share = (math.log10(value) - self._first) / (self._last - self._first)
        return LEFT + share * (self.right - LEFT)

    def y(self, value: float) -> float:
        """Return the place of a value upwards."""
        share = (value - self._low) / (self._high - self._low)
        return self.bottom - share * (self.bottom - TOP)

    def line(self, points: list[tuple[float, float]], stroke: str, width: float = 2) -> None:
        """Draw a line through (across, upward) values."""
        path = " ".join(f"{self.x(a):.1f},{self.y(u):.1f}" for a, u in points)
        self.parts.append(
            f'<polyline points="{path}" fill="none" stroke="{stroke}" stroke-width="{width:g}"/>'
        )

    def names(self, curves: list[tuple[str, tuple[float, float], str]]) -> None:
        """Name curves to the right of the frame, none over another.

        Args:
            curves: name, last point and stroke of each.
        """
        wanted = sorted((self.y(point[1]), name, point, stroke) for name, point, stroke in curves)
        heights: list[float] = []
        for height, *_ in wanted:
            heights.append(max(height, heights[-1] + _NAME_HEIGHT) if heights else height)
        lowest = float(self.bottom)
        for index in reversed(range(len(heights))):
            heights[index] = lowest = min(heights[index], lowest)
            lowest -= _NAME_HEIGHT
        for height, (_, name, (across, upward), stroke) in zip(heights, wanted, strict=True):
            start, end = self.x(across), self.right + 18
            self.parts.append(
                f'<path d="M{start:.1f} {self.y(upward):.1f}L{self.right + 2} {height:.1f}'
                f'L{end - 4} {height:.1f}" fill="none" stroke="{stroke}" stroke-width="0.7" '
                'stroke-dasharray="2 3"/>'
            )
            self.parts.append(text(end, height + 4, name, size=12, fill=QUIET))

    def finish(self) -> str:
        """Return the document."""
        return "\n".join([*self.parts, "</svg>"]) + "\n"


def _widened(low: float, high: float, least: float, margin: float) -> tuple[float, float]:
    """Return an axis's ends: the range, at least ``least`` wide, with a margin around it."""
    missing = max(0.0, least - (high - low)) / 2
    low, high = low - missing, high + missing
    return low - margin * (high - low), high + margin * (high - low)


def _even_ticks(low: float, high: float) -> Iterator[float]:
    """Yield round numbers, four to eight of them."""
    rough = (high - low) / 6
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * each for each in (1, 2, 5, 10) if unit * each >= rough)
    for index in range(math.ceil(low / step), math.floor(high / step) + 1):
        yield round(index * step, 10)


def _log_ticks(low: float, high: float) -> Iterator[float]:
    """Yield 1, 2 and 5 times powers of ten, and more between where that would be little."""
    factors = (1, 2, 5) if high > 8 * low else (1, 1.5, 2, 3, 4, 5, 7)
    for exponent in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1):
        for factor in factors:
            if low <= (value := factor * 10.0**exponent) <= high:
                yield value


def _rule(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" stroke="{LINE}"/>'


def text(
    x: float,
    y: float,
    content: str,
    *,
    anchor: str = "start",
    size: int = 13,
    weight: int = 400,
    fill: str = INK,
) -> str:
    """Return a text element; ``anchor`` is start, middle or end."""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" '
        f'font-weight="{weight}" fill="{fill}">{escape(content)}</text>'
    )
