"""How long a job will take and how large its file will be, before anything is queued.

The time model has one constant. Every optimiser iteration of a fit touches a lattice of pixels, and
for each of them every weight of the network, so::

    seconds = START_SECONDS + rate * pixels * passes * parameters

``parameters`` and ``passes`` are those that the codec plans, and ``rate`` is the median of what the
latest finished jobs took; until there are some, one processor core's is assumed.
"""

from __future__ import annotations

import math
import statistics
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from jobs import JobFilter, JobsError, JobService, Parameters, State
from nifcore.header import Colour, Header
from nifcore.plan import (
    BITS_PER_PARAMETER,
    DEFAULT_QUALITY,
    bpp_of_quality,
    least_bytes,
    plan_rate,
)
from nifcore.presets import find_recipe
from nifcore.target import MOST_BPP

START_SECONDS = 3.0
"""Loading torch, reading the picture, measuring the result."""
ASSUMED_RATE = 5e-11
"""Seconds per pixel, pass and parameter on one processor core."""
_SAMPLES = 20
_REFRESH_SECONDS = 60.0
# A PSNR target is met by trying rates; this is the middle of what pictures need at that PSNR, from
# the published Kodak curve (aegroto/nif, results/summaries/kodak), and the tries it usually takes.
_RATE_AT_30_DB, _DB_PER_DOUBLING, _PSNR_ROUNDS = 0.5, 2.5, 2


@dataclass(frozen=True)
class Estimate:
    """What a job is expected to take and to give.

    Attributes:
        seconds: of the encode itself, without waiting.
        bytes, bpp: of the file; an upper bound with ``max_bytes`` or ``bpp``.
        calibrated: whether the time comes from jobs that this service has run.
    """

    seconds: float
    bytes: int
    bpp: float
    calibrated: bool


def _bytes(parameters: Parameters, pixels: int) -> float:
    if parameters.max_bytes is not None:
        return min(MOST_BPP * pixels / 8, parameters.max_bytes)
    if parameters.bpp is not None:
        bpp = parameters.bpp
    elif parameters.psnr is not None:
        doublings = (parameters.psnr - 30) / _DB_PER_DOUBLING
        bpp = min(MOST_BPP, _RATE_AT_30_DB * math.pow(2, doublings))
    else:
        quality = DEFAULT_QUALITY if parameters.quality is None else parameters.quality
        bpp = bpp_of_quality(quality)
    return bpp * pixels / 8


def work(parameters: Parameters, width: int, height: int) -> tuple[float, float]:
    """Return (pixels times passes times weights, bytes of the file) of an encode."""
    recipe = find_recipe(parameters.preset, parameters.effort)
    pixels = width * height
    colour = Colour.SRGB
    if recipe.genesis is not None:
        header = Header(width, height, colour, recipe.genesis, recipe.modulation)
        size = header.parameters * BITS_PER_PARAMETER / 8
    else:
        size = _bytes(parameters, pixels)
        least = least_bytes(width, height, colour, 0)
        header = plan_rate(width, height, colour, max(size, least), 0).header
    _, _, columns, rows = header.tile_box(0)
    pass_length = min(recipe.sampling.stride_for(columns * rows), columns, rows) ** 2
    passes = recipe.iterations(pass_length) / pass_length
    rounds = 1 if parameters.psnr is None else _PSNR_ROUNDS
    return pixels * passes * header.parameters * rounds, size


def measured_rate(reports: Iterable[dict[str, Any]]) -> float | None:
    """Return seconds per pixel, pass and weight, the median over reports of finished jobs."""
    rates = []
    for report in reports:
        try:
            pixels = report["width"] * report["height"]
            amount = pixels * report["passes"] * report["parameters"] / report["tiles"]
            rates.append(report["seconds"] / amount)
        except (KeyError, TypeError, ZeroDivisionError):
            continue  # a report of another version
    return statistics.median(rates) if rates else None


class Estimator:
    """Estimates jobs, calibrated now and then on those that were finished.

    Args:
        service: whose finished jobs are looked at.
    """

    def __init__(self, service: JobService) -> None:
        self._service = service
        self._lock = threading.Lock()
        self._rate: float | None = None
        self._looked_at = -math.inf

    def estimate(self, parameters: Parameters, width: int, height: int) -> Estimate:
        """Estimate one job on a picture of that size."""
        rate = self._measured()
        amount, size = work(parameters, width, height)
        return Estimate(
            seconds=START_SECONDS + (rate or ASSUMED_RATE) * amount,
            bytes=max(1, math.ceil(size)),
            bpp=size * 8 / (width * height),
            calibrated=rate is not None,
        )

    def _measured(self) -> float | None:
        with self._lock:
            now = time.monotonic()
            if now - self._looked_at > _REFRESH_SECONDS:
                self._looked_at = now
                try:
                    page = self._service.list(
                        JobFilter(tenant=None, states=frozenset({State.SUCCEEDED})),
                        limit=_SAMPLES,
                    )
                except JobsError:
                    return self._rate  # an estimate is worth no error
                reports = [dict(record.report) for record in page.records if record.report]
                self._rate = measured_rate(reports)
            return self._rate
