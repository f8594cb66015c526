"""How long a job will take and how large its file will be, before anything is queued.

The time model has one constant. Every optimiser iteration of a fit touches a lattice of pixels, and
for each of them every weight of the network, so::

    seconds = START_SECONDS + rate * pixels * passes * parameters

``parameters`` follow from the bit budget as in the codec (5.9 bits each), ``passes`` from the
effort's iterations and the lattice's stride, and ``rate`` is the median of what the latest
finished jobs took; until there are some, one processor core's is assumed.
"""

from __future__ import annotations

import math
import statistics
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from api import catalogue
from jobs import JobFilter, JobsError, JobService, Parameters, State

START_SECONDS = 3.0
"""Loading torch, reading the picture, measuring the result."""
ASSUMED_RATE = 2.2e-10
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


def bpp_of_quality(quality: float) -> float:
    """Return the rate in bits per pixel that a quality of 1 to 100 asks for."""
    for (q0, r0), (q1, r1) in pairwise(catalogue.QUALITY_RATES):
        if quality <= q1:
            return r0 * math.pow(r1 / r0, (quality - q0) / (q1 - q0))
    return catalogue.QUALITY_RATES[-1][1]


def _bpp(parameters: Parameters, pixels: int) -> float:
    if parameters.max_bytes is not None:
        return min(catalogue.BPPS[1], parameters.max_bytes * 8 / pixels)
    if parameters.bpp is not None:
        return parameters.bpp
    if parameters.psnr is not None:
        doublings = (parameters.psnr - 30) / _DB_PER_DOUBLING
        return min(catalogue.BPPS[1], _RATE_AT_30_DB * math.pow(2, doublings))
    return bpp_of_quality(
        catalogue.DEFAULT_QUALITY if parameters.quality is None else parameters.quality
    )


def work(parameters: Parameters, width: int, height: int) -> tuple[float, float]:
    """Return (pixels times passes times weights, bits per pixel) of an encode."""
    pixels = width * height
    if parameters.preset is not None:
        preset = catalogue.PRESETS[parameters.preset]
        bpp = preset.parameters * catalogue.BITS_PER_PARAMETER / pixels
        return float(pixels) * preset.passes * preset.parameters, bpp
    bpp = _bpp(parameters, pixels)
    weights = bpp * pixels / catalogue.BITS_PER_PARAMETER
    tiles = max(
        1,
        math.ceil(weights / catalogue.MAX_TILE_PARAMETERS),
        math.ceil(pixels / catalogue.MAX_TILE_PIXELS),
    )
    stride = max(1, round(math.sqrt(pixels / tiles / catalogue.BATCH_PIXELS)))
    effort = catalogue.DEFAULT_EFFORT if parameters.effort is None else parameters.effort
    passes = catalogue.EFFORT_ITERATIONS[effort] / stride**2
    rounds = 1 if parameters.psnr is None else _PSNR_ROUNDS
    return pixels * passes * (weights / tiles) * rounds, bpp


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
        amount, bpp = work(parameters, width, height)
        return Estimate(
            seconds=START_SECONDS + (rate or ASSUMED_RATE) * amount,
            bytes=max(1, math.ceil(bpp * width * height / 8)),
            bpp=bpp,
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
