"""Published rate-distortion curves, read from JSON."""

from __future__ import annotations

import json as jsonlib
from dataclasses import dataclass
from pathlib import Path

from nifcore.errors import InputError


@dataclass(frozen=True)
class Curve:
    """A published rate-distortion curve.

    Attributes:
        codec: its name.
        points: (bpp, PSNR in dB), by increasing rate.
    """

    codec: str
    points: tuple[tuple[float, float], ...]

    def at(self, bpp: float) -> float | None:
        """Return the PSNR at a rate, linear in log(bpp) between points; None outside them."""
        import numpy as np

        rates = np.array([point[0] for point in self.points])
        if not rates[0] <= bpp <= rates[-1]:
            return None
        levels = np.array([point[1] for point in self.points])
        return float(np.interp(np.log(bpp), np.log(rates), levels))

    def between(self, low: float, high: float) -> Curve:
        """Return the part from one rate to another, with points at its ends; perhaps no points."""
        inner = {rate: level for rate, level in self.points if low <= rate <= high}
        ends = {rate: level for rate in (low, high) if (level := self.at(rate)) is not None}
        return Curve(self.codec, tuple(sorted({**ends, **inner}.items())))


def read_curves(path: Path, test_set: str) -> list[Curve]:
    """Read published curves: ``{set: {codec: {"points": [{"bpp": ..., "psnr": ...}]}}}``.

    Raises:
        InputError: the file cannot be read, is not of this form, or has no such set.
    """
    try:
        content = jsonlib.loads(path.read_text(encoding="utf-8"))
        found = content[test_set]
        return [
            Curve(
                codec,
                tuple(sorted((float(p["bpp"]), float(p["psnr"])) for p in entry["points"])),
            )
            for codec, entry in found.items()
            if entry["points"]
        ]
    except OSError as error:
        raise InputError(f"cannot read {str(path)!r}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} holds no published points of {test_set!r}; expected is "
            '{"kodak": {"CODEC": {"points": [{"bpp": 0.28, "psnr": 28.3}, ...]}}}'
        ) from error
