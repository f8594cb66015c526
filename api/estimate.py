"""How long a job will take and how large its file will be, before anything is queued.

Every worker measures its machine (`nifcore.timing`) and publishes the calibration with its
heartbeat. A job is expected to take the median of what the workers' calibrations say of it, times
how much longer than expected the latest finished jobs took: other work on a machine counts as well.
"""

from __future__ import annotations

import math
import statistics
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs import JobFilter, JobRecord, JobsError, JobService, Parameters, State
from jobs.workers import CALIBRATION
from nifcore.calibration import ASSUMED, Calibration
from nifcore.errors import InputError, NifError
from nifcore.header import Colour
from nifcore.plan import BITS_PER_PARAMETER, DEFAULT_QUALITY, bpp_of_quality
from nifcore.presets import find_recipe
from nifcore.target import DB_PER_DOUBLING, MOST_BPP
from nifcore.workload import Workload

_SAMPLES = 20
_REFRESH_SECONDS = 15.0
_MOST_CORRECTION, _MOST_OF_ASSUMED = 4.0, 50.0
"""A calibration is not corrected by more than such a factor, either way; what is assumed without
any may be further off."""
# A PSNR target is met by trying rates; this is the middle of what pictures need at that PSNR, from
# the published Kodak curve (aegroto/nif, results/summaries/kodak), and the tries it usually takes.
_RATE_AT_30_DB, _PSNR_ROUNDS = 0.5, 2


@dataclass(frozen=True)
class Estimate:
    """What a job is expected to take and to give.

    Attributes:
        seconds: of the encode itself, without waiting.
        bytes, bpp: of the file; an upper bound with ``max_bytes`` or ``bpp``.
        calibrated: whether the time comes from this service's workers or jobs.
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
        doublings = (parameters.psnr - 30) / DB_PER_DOUBLING
        bpp = min(MOST_BPP, _RATE_AT_30_DB * math.pow(2, doublings))
    else:
        quality = DEFAULT_QUALITY if parameters.quality is None else parameters.quality
        bpp = bpp_of_quality(quality)
    return bpp * pixels / 8


def planned(parameters: Parameters, width: int, height: int) -> tuple[Workload, float]:
    """Return what one round of an encode amounts to, and the bytes of its file."""
    recipe = find_recipe(parameters.preset, parameters.effort)
    size = _bytes(parameters, width * height)
    work = Workload.planned(recipe, width, height, Colour.SRGB, size)
    if recipe.genesis is not None:
        size = work.weights * BITS_PER_PARAMETER / 8
    return work, size


def rounds(parameters: Parameters) -> int:
    """Return how many sizes are expected to be tried."""
    return 1 if parameters.psnr is None else _PSNR_ROUNDS


def calibrations_of(facts: Iterable[Mapping[str, Any]]) -> list[Calibration]:
    """Return the calibrations that workers published; those of another version are left out."""
    found = []
    for each in facts:
        try:
            found.append(Calibration.from_dict(each[CALIBRATION]))
        except (KeyError, InputError):
            continue
    return found


def expected(fleet: Sequence[Calibration], work: Workload) -> float:
    """Return the seconds that a worker in the middle of the fleet would take."""
    return statistics.median(each.estimate(work) for each in fleet or [ASSUMED])


def correction(fleet: Sequence[Calibration], records: Iterable[JobRecord]) -> float | None:
    """Return how many times longer than expected finished jobs took, the median; None without any.

    Jobs with a PSNR target are left out, as nobody knows how many rounds they took, and so are
    those that were finished early.
    """
    ratios: list[float] = []
    for record in records:
        report, parameters = record.report or {}, record.spec.parameters
        try:
            if parameters.psnr is not None or not report["complete"]:
                continue
            work, _ = planned(parameters, report["width"], report["height"])
            ratios.append(report["seconds"] / expected(fleet, work))
        except (KeyError, TypeError, ZeroDivisionError, JobsError, NifError):
            continue  # a report of another version
    if not ratios:
        return None
    most = _MOST_CORRECTION if fleet else _MOST_OF_ASSUMED
    return min(most, max(1.0 / most, statistics.median(ratios)))


@dataclass(frozen=True)
class _Known:
    """What is known about the service's speed."""

    fleet: tuple[Calibration, ...] = ()
    correction: float | None = None


class Estimator:
    """Estimates jobs, from the workers' calibrations and the latest finished jobs.

    Args:
        service: whose workers and finished jobs are looked at.
    """

    def __init__(self, service: JobService) -> None:
        self._service = service
        self._lock = threading.Lock()
        self._known = _Known()
        self._looked_at = -math.inf

    def estimate(self, parameters: Parameters, width: int, height: int) -> Estimate:
        """Estimate one job on a picture of that size."""
        known = self._look()
        work, size = planned(parameters, width, height)
        seconds = expected(known.fleet, work) * rounds(parameters)
        return Estimate(
            seconds=seconds * (known.correction or 1.0),
            bytes=max(1, math.ceil(size)),
            bpp=size * 8 / (width * height),
            calibrated=bool(known.fleet) or known.correction is not None,
        )

    def _look(self) -> _Known:
        """Look at workers and jobs, now and then."""
        with self._lock:
            now = time.monotonic()
            if now - self._looked_at > _REFRESH_SECONDS:
                self._looked_at = now
                try:
                    workers = [each for each in self._service.workers.list() if each.alive]
                    page = self._service.list(
                        JobFilter(tenant=None, states=frozenset({State.SUCCEEDED})),
                        limit=_SAMPLES,
                    )
                except JobsError:
                    return self._known  # an estimate is worth no error
                fleet = tuple(calibrations_of(each.info.facts for each in workers))
                self._known = _Known(fleet, correction(fleet, page.records))
            return self._known
