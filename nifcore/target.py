"""What an encode aims at: a size, a PSNR, or a preset's own size."""

from __future__ import annotations

from dataclasses import dataclass

from nifcore.errors import UsageError
from nifcore.plan import DEFAULT_QUALITY, bpp_of_quality

MOST_BPP = 16.0
"""Highest rate that can be asked for, in bits per pixel."""
DB_PER_DOUBLING = 2.5
"""Slope of the published Kodak curve: what twice the rate adds to the PSNR."""


@dataclass(frozen=True)
class Target:
    """What to aim at: bytes, or a PSNR, or (neither) the preset's own size.

    Attributes:
        strict: a picture too small for the rate is an error, not a reason for more bytes.
    """

    psnr: float | None = None
    bpp: float | None = None
    max_bytes: int | None = None
    strict: bool = True

    def bytes_for(self, pixels: int) -> float:
        """Return the bytes to use: what was asked, but no more than are of any use."""
        if self.max_bytes is not None:
            return min(self.max_bytes, MOST_BPP * pixels / 8)
        assert self.bpp is not None
        return self.bpp * pixels / 8


def make_target(
    preset: str | None,
    quality: float | None,
    psnr: float | None,
    bpp: float | None,
    max_bytes: int | None,
) -> Target:
    """Check what was asked and return it as one target; see :func:`nifcore.encoder.encode`.

    Raises:
        UsageError: out of range, or more than one thing asked.
    """
    asked = {"quality": quality, "psnr": psnr, "bpp": bpp, "max_bytes": max_bytes}
    given = {name: value for name, value in asked.items() if value is not None}
    if len(given) > 1:
        raise UsageError(
            f"{' and '.join(given)} exclude each other; give one of {', '.join(asked)}"
        )
    if preset is not None:
        if given:
            raise UsageError(
                f"preset {preset!r} has a fixed size; {next(iter(given))} cannot be given"
            )
        return Target()
    for name, low, high in (("quality", 1, 100), ("psnr", 5, 100), ("bpp", 1e-4, MOST_BPP)):
        value = given.get(name)
        if value is not None and not low <= value <= high:
            raise UsageError(f"{name} is {value}; {low} to {high} is accepted")
    if max_bytes is not None and max_bytes < 1:
        raise UsageError(f"max_bytes is {max_bytes}; at least 1 is accepted")
    if psnr is not None or max_bytes is not None or bpp is not None:
        return Target(psnr, bpp, max_bytes)
    rate = bpp_of_quality(DEFAULT_QUALITY if quality is None else quality)
    return Target(bpp=rate, strict=False)
