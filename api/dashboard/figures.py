"""Numbers, sizes and times as the pages write them: short, and always in the same way."""

from __future__ import annotations

import math
from datetime import UTC, datetime

_SIZES = ("B", "KB", "MB", "GB", "TB")
NOTHING = "–"
"""Stands where there is no value."""


def count(value: float | None) -> str:
    """Return a whole number with thin groups: ``12 345``."""
    return NOTHING if value is None else f"{round(value):,}".replace(",", "\u202f")


def size(value: float | None) -> str:
    """Return bytes in decimal units: ``512 B``, ``11.1 KB``, ``3.42 MB``."""
    if value is None:
        return NOTHING
    rest, unit = abs(float(value)), 0
    while rest >= 999.5 and unit < len(_SIZES) - 1:
        rest, unit = rest / 1000, unit + 1
    sign = "\u2212" if value < 0 else ""
    if unit == 0:
        return f"{sign}{rest:.0f} B"
    digits = 0 if rest >= 99.95 else 1 if rest >= 9.995 else 2
    return f"{sign}{rest:.{digits}f} {_SIZES[unit]}"


def duration(seconds: float | None) -> str:
    """Return a span of time in its two largest units: ``0.4 s``, ``42 s``, ``3 m 05 s``."""
    if seconds is None:
        return NOTHING
    if seconds < 9.95:
        return f"{max(0.0, seconds):.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} m {whole % 60:02d} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} m"
    return f"{whole // 86_400} d {whole % 86_400 // 3600:02d} h"


def age(moment: datetime | None, now: datetime | None = None) -> str:
    """Return how long ago a moment was, in one unit: ``just now``, ``12 s``, ``4 m``, ``3 h``."""
    if moment is None:
        return NOTHING
    seconds = ((now or datetime.now(UTC)) - moment).total_seconds()
    if seconds < 1.5:
        return "just now"
    for unit, length, most in (("s", 1, 90), ("m", 60, 90), ("h", 3600, 36), ("d", 86_400, 1e9)):
        if seconds / length < most:
            return f"{round(seconds / length)} {unit} ago"
    return NOTHING


def moment(value: datetime | None) -> str:
    """Return a time of day with its date, UTC: ``2026-03-01 12:00:00``."""
    return NOTHING if value is None else f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def clock(value: datetime | None) -> str:
    """Return a time of day, UTC, with milliseconds."""
    return NOTHING if value is None else f"{value.astimezone(UTC):%H:%M:%S.%f}"[:-3]


def decibels(value: float | None) -> str:
    """Return a PSNR: ``31.42 dB``."""
    if value is None:
        return NOTHING
    return "lossless" if math.isinf(value) else f"{value:.2f} dB"


def rate(value: float | None) -> str:
    """Return bits per pixel."""
    return NOTHING if value is None else f"{value:.3f} bpp"


def percent(value: float | None) -> str:
    """Return a percentage that is one already."""
    return NOTHING if value is None else f"{value:.0f} %"


FILTERS = {
    each.__name__: each
    for each in (count, size, duration, age, moment, clock, decibels, rate, percent)
}
"""By the names that templates use."""
