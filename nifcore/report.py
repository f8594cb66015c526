"""What an encode gives back: the file, and an honest account of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Report:
    """What an encode did and what it gave, measured on the file decoded again.

    Attributes:
        width, height, channels: of the picture.
        bytes, bpp: of the whole file.
        psnr_db: over all channels; infinite when every sample is equal.
        ms_ssim: multi-scale SSIM, None for pictures too small for five scales.
        seconds: of the whole call.
        preset, effort: what was run (one of them is None).
        device, kernel: where and by what.
        seed: of the random numbers.
        parameters: weights of all tiles.
        passes: passes over every pixel, mean over tiles, all rounds together.
        tiles: networks in the file.
        complete: False when the caller finished it early.
        notes: what was converted, dropped, recovered or cut short, a sentence each.
    """

    width: int
    height: int
    channels: int
    bytes: int
    bpp: float
    psnr_db: float
    ms_ssim: float | None
    seconds: float
    preset: str | None
    effort: int | None
    device: str
    kernel: str
    seed: int
    parameters: int
    passes: float
    tiles: int
    complete: bool
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Encoded:
    """A finished encode.

    Attributes:
        data: the .nif file.
        report: what it took and what it gave.
    """

    data: bytes
    report: Report
