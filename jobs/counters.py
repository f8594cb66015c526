"""Numbers about the service, counted in Redis in the same call as what they count.

Names are in the notation of Prometheus, label and all: ``transitions{from="queued",to="running"}``.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping
from dataclasses import dataclass

from jobs.database import Database
from jobs.record import JobRecord


@dataclass(frozen=True)
class Counter:
    """Something that is counted; ``labels`` in the order in which they are written."""

    name: str
    help: str
    labels: tuple[str, ...] = ()


COUNTERS: tuple[Counter, ...] = (
    Counter("transitions", "Moves of jobs from state to state.", ("from", "to")),
    Counter("claims_refused", "Wake-ups that led to no attempt, by reason.", ("reason",)),
    Counter("stale_writes_refused", "Writes of workers that had lost their job.", ("write",)),
    Counter("leases_lost", "Jobs taken from workers that were not heard of any more."),
    Counter("jobs_failed", "Jobs that failed, by code.", ("code",)),
    Counter("jobs_deduplicated", "Submissions that an earlier equal job answered."),
    Counter("jobs_deleted", "Jobs deleted, by request or by age."),
    Counter("jobs_withdrawn", "Jobs removed because their submission failed half-way."),
    Counter("quota_refusals", "Takings that a rate limit or quota refused.", ("name",)),
    Counter("webhook_attempts", "Attempts to deliver a webhook, by outcome.", ("outcome",)),
    Counter("webhook_deliveries", "Webhook deliveries that ended, by outcome.", ("outcome",)),
    Counter("webhook_replays", "Webhook deliveries sent again by request."),
    Counter("webhooks_disabled", "Webhook endpoints disabled by themselves.", ("reason",)),
    Counter("bytes_in", "Bytes of the pictures of succeeded jobs."),
    Counter("bytes_out", "Bytes of the results of succeeded jobs."),
    Counter("pixels", "Pixels of the pictures of succeeded jobs."),
)


@dataclass(frozen=True)
class Histogram:
    """Upper bounds of the buckets of one measured quantity; a last one, +Inf, is implied."""

    name: str
    help: str
    bounds: tuple[float, ...]


HISTOGRAMS: tuple[Histogram, ...] = (
    Histogram(
        "encode_seconds",
        "Seconds that the encoder took, by its own report.",
        (1, 2, 5, 10, 20, 60, 120, 300, 600, 1800, 3600),
    ),
    Histogram(
        "wait_seconds",
        "Seconds from acceptance to the start of the attempt that succeeded.",
        (0.1, 0.5, 1, 5, 10, 30, 60, 300, 900, 3600),
    ),
    Histogram("bpp", "Bits per pixel of results.", (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1, 1.5, 2, 4)),
    Histogram(
        "webhook_seconds",
        "Seconds that an attempt to deliver a webhook took.",
        (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
    ),
    Histogram("psnr_db", "PSNR of results, in dB.", (20, 24, 26, 28, 30, 32, 34, 36, 38, 40, 45)),
)


_BY_NAME = {each.name: each for each in HISTOGRAMS}


def observation(name: str, value: float) -> dict[str, float]:
    """Return the increments that one measured value makes: its bucket's and the sum's.

    Buckets are kept apart here and added up when they are read, as Prometheus wants them.

    Raises:
        KeyError: there is no histogram of this name.
    """
    histogram = _BY_NAME[name]
    index = bisect.bisect_left(histogram.bounds, value)
    return {_bucket(histogram, index): 1, f"{name}_sum": value}


def _bucket(histogram: Histogram, index: int) -> str:
    bounds = (*histogram.bounds, float("inf"))
    bound = "+Inf" if index == len(histogram.bounds) else f"{bounds[index]:g}"
    return f'{histogram.name}_bucket{{le="{bound}"}}'


def observations(
    record: JobRecord | None, report: Mapping[str, object], size: int
) -> dict[str, float]:
    """Return the increments that one succeeded job makes.

    Args:
        record: the job while it ran, if at hand.
        report: of the worker; the keys seconds, bpp, psnr_db, width and height are used.
        size: of the result in bytes.
    """
    increments: dict[str, float] = {"bytes_out": size}
    for key, name in (("seconds", "encode_seconds"), ("bpp", "bpp"), ("psnr_db", "psnr_db")):
        value = report.get(key)
        if isinstance(value, int | float) and value == value and abs(value) < 1e300:
            increments |= observation(name, float(value))
    width, height = report.get("width"), report.get("height")
    if isinstance(width, int) and isinstance(height, int):
        increments["pixels"] = width * height
    if record is not None:
        increments["bytes_in"] = record.spec.input.size
        if record.started_at is not None:
            waited = (record.started_at - record.created_at).total_seconds()
            increments |= observation("wait_seconds", waited)
    return increments


class Counters:
    """Reads the counters."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def read(self) -> dict[str, float]:
        """Return every counter that was ever counted, and every histogram.

        A histogram has a cumulative ``_bucket`` for each bound, ``_sum`` and ``_count``.
        """
        found = self._database.call("hgetall", self._database.key("counters"))
        counters = {name: float(value) for name, value in sorted(found.items())}
        for histogram in HISTOGRAMS:
            total = 0.0
            for index in range(len(histogram.bounds) + 1):
                total += counters.get(_bucket(histogram, index), 0.0)
                counters[_bucket(histogram, index)] = total
            counters.setdefault(f"{histogram.name}_sum", 0.0)
            counters[f"{histogram.name}_count"] = total
        return counters
