"""The effort ladder as measured: what each level costs, and what it gives at one rate."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from nifcore.target import DB_PER_DOUBLING


@dataclass(frozen=True)
class LadderRun:
    """One encode.

    Attributes:
        picture: its name.
        pixels: width times height.
        effort: level.
        bytes: of the whole file.
        psnr_db, ms_ssim, seconds: as the encode's report has them.
    """

    picture: str
    pixels: int
    effort: int
    bytes: int
    psnr_db: float
    ms_ssim: float | None
    seconds: float

    def psnr_at(self, bpp: float) -> float:
        """Return the PSNR at exactly ``bpp``: files come out a little below what was asked."""
        return self.psnr_db + DB_PER_DOUBLING * math.log2(bpp * self.pixels / (8 * self.bytes))


@dataclass(frozen=True)
class Rung:
    """One level over all pictures; means, but for the seconds per megapixel.

    Attributes:
        effort: level.
        seconds: per picture.
        seconds_per_megapixel: all seconds over all pixels.
        psnr_db: moved to the exact rate.
        ms_ssim: as measured, None if a picture was too small for it.
        gain_db: over the level below per doubling of the seconds; None for the first.
        on_front: no other level is better in PSNR and no slower.
    """

    effort: int
    seconds: float
    seconds_per_megapixel: float
    psnr_db: float
    ms_ssim: float | None
    gain_db: float | None
    on_front: bool


def rungs(runs: Sequence[LadderRun], bpp: float) -> list[Rung]:
    """Return the levels, lowest first, over the pictures that all of them have encoded.

    Of repeated encodes the last counts.
    """
    latest = {(run.effort, run.picture): run for run in runs}
    efforts = sorted({run.effort for run in runs})
    pictures = [
        name
        for name in dict.fromkeys(run.picture for run in runs)
        if all((effort, name) in latest for effort in efforts)
    ]
    if not pictures:
        return []
    levels = [[latest[effort, name] for name in pictures] for effort in efforts]
    seconds = [statistics.fmean(run.seconds for run in level) for level in levels]
    psnr = [statistics.fmean(run.psnr_at(bpp) for run in level) for level in levels]
    result = []
    for index, level in enumerate(levels):
        similarities = [run.ms_ssim for run in level if run.ms_ssim is not None]
        doublings = math.log2(seconds[index] / seconds[index - 1]) if index else 0.0
        beaten = any(
            seconds[other] <= seconds[index]
            and psnr[other] >= psnr[index]
            and (seconds[other], psnr[other]) != (seconds[index], psnr[index])
            for other in range(len(levels))
        )
        result.append(
            Rung(
                effort=efforts[index],
                seconds=seconds[index],
                seconds_per_megapixel=1e6
                * sum(run.seconds for run in level)
                / sum(run.pixels for run in level),
                psnr_db=psnr[index],
                ms_ssim=statistics.fmean(similarities) if len(similarities) == len(level) else None,
                gain_db=(psnr[index] - psnr[index - 1]) / doublings if doublings > 0.0 else None,
                on_front=not beaten,
            )
        )
    return result
