"""``/dashboard``: how the service is, at a glance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse

from api.context import Context, Shared
from api.dashboard.pages import PageRoute, page
from api.dashboard.visitor import Reader
from jobs import JobFilter, JobRecord, QueueStats, Sample, State, WorkerStatus

router = APIRouter(route_class=PageRoute)

MINUTES = 60
_RECENT = 12
_FAILED = 500


def _submitted(shared: Context, tenant: str) -> list[int]:
    """Return a tenant's jobs by the minute of their submission, those that are still kept.

    The counters of the service know no tenants; the index does.
    """
    database = shared.service.database
    now = database.now_milliseconds()
    bounds = [now - 60_000 * back for back in range(MINUTES, -1, -1)]
    with database.pipeline() as pipeline:
        for begin, end in pairwise(bounds):
            name = database.key("tenant", tenant, "jobs")
            pipeline.zcount(name, begin * 1000, f"({end * 1000}")
        return [int(each) for each in pipeline.execute()]


def by_minute(
    readings: Sequence[tuple[datetime, float]], now: datetime, minutes: int = MINUTES
) -> list[float]:
    """Return how much a counter grew in each of the last minutes, the running one last.

    Growth is put into the minute in which it was read. Where nobody read for longer than a minute
    it is spread evenly over the time in between. A counter that fell was begun anew.

    Args:
        readings: time and value, oldest first.
        now: the end of the last minute.
        minutes: how many.
    """
    found = [0.0] * minutes

    def minute(at: datetime) -> int:
        back = int((now - at).total_seconds() // 60)
        return min(minutes - 1, max(0, minutes - 1 - back))

    for (before, low), (at, high) in pairwise(readings):
        grown = high - low if high >= low else high
        pieces = max(1, int((at - before).total_seconds() // 60))
        for piece in range(pieces):
            found[minute(at - piece * (at - before) / pieces)] += grown / pieces
    return found


@dataclass(frozen=True)
class Operations:
    """What only administrators see of the service."""

    queues: list[QueueStats]
    workers: tuple[WorkerStatus, ...]
    light: tuple[WorkerStatus, ...]
    working: dict[str, JobRecord]
    counters: dict[str, float]
    samples: tuple[Sample, ...]
    now: datetime

    def _moves(self, to: tuple[State, ...], origin: str = "") -> list[tuple[datetime, float]]:
        """Return how often jobs had moved to some states, at every sample and now."""
        readings = [(each.at, each.counters) for each in self.samples]
        return [
            (at, _moves(counters, to, origin))
            for at, counters in ([*readings, (self.now, self.counters)] if readings else [])
        ]

    @property
    def ended(self) -> list[float]:
        """Jobs that came to an end, by minutes; what became of them later changes nothing."""
        return by_minute(self._moves(_ENDS), self.now)

    @property
    def submitted(self) -> list[float]:
        """Jobs that were accepted, by minutes."""
        return by_minute(self._moves((State.QUEUED,), "none"), self.now)

    @property
    def span(self) -> str:
        """What the samples cover, in words."""
        if not self.samples:
            return "hour"
        minutes = round((self.now - self.samples[0].at).total_seconds() / 60)
        return "hour" if minutes >= MINUTES - 1 else f"{max(1, minutes)} min"

    @property
    def depth(self) -> int:
        return sum(each.depth for each in self.queues)

    @property
    def running(self) -> int:
        return sum(each.running for each in self.queues)

    @property
    def oldest(self) -> float | None:
        ages = [each.oldest_age_seconds for each in self.queues if each.oldest_age_seconds]
        return max(ages, default=None)

    @property
    def failures(self) -> list[tuple[str, int]]:
        """Failures by code since the counters began, most first."""
        found = Counter(
            {
                name.partition('code="')[2].removesuffix('"}'): round(value)
                for name, value in self.counters.items()
                if name.startswith("jobs_failed{")
            }
        )
        return found.most_common()

    @property
    def saved(self) -> float:
        """Bytes that the results are smaller than the pictures."""
        return self.counters.get("bytes_in", 0.0) - self.counters.get("bytes_out", 0.0)

    def growth(self, name: str) -> float | None:
        """Return how much a counter grew since the oldest sample; None without samples."""
        if not self.samples:
            return None
        return self.counters.get(name, 0.0) - self.samples[0].counters.get(name, 0.0)

    @property
    def saved_lately(self) -> float | None:
        came, went = self.growth("bytes_in"), self.growth("bytes_out")
        return None if came is None or went is None else came - went

    @property
    def failed_lately(self) -> float | None:
        """Jobs that failed since the oldest sample."""
        return sum(by_minute(self._moves((State.FAILED,)), self.now)) if self.samples else None

    @property
    def saved_curve(self) -> list[float]:
        first = self.samples[0].counters if self.samples else {}
        base = first.get("bytes_in", 0.0) - first.get("bytes_out", 0.0)
        return [
            each.counters.get("bytes_in", 0.0) - each.counters.get("bytes_out", 0.0) - base
            for each in self.samples
        ]

    @property
    def failed_curve(self) -> list[float]:
        ends = [each.ended("failed") for each in self.samples]
        return [max(0.0, b - a) for a, b in pairwise(ends)]


_ENDS = tuple(state for state in State if state.terminal)


def _moves(counters: Mapping[str, float], to: tuple[State, ...], origin: str) -> float:
    return sum(
        value
        for name, value in counters.items()
        if name.startswith(f'transitions{{from="{origin}')
        and any(name.endswith(f'to="{state}"}}') for state in to)
    )


def is_light(worker: WorkerStatus) -> bool:
    """Tell whether a worker is one that encodes nothing."""
    return worker.info.facts.get("role") == "light"


def _operations(shared: Context) -> Operations:
    service = shared.service
    everybody = service.workers.list()
    busy = {each.info.job_id for each in everybody if each.info.job_id}
    working = {
        record.id: record for record in service.store.get_many(sorted(busy)) if record is not None
    }
    return Operations(
        queues=service.queues.all(),
        workers=tuple(each for each in everybody if not is_light(each)),
        light=tuple(each for each in everybody if is_light(each)),
        working=working,
        counters=service.counters(),
        samples=service.history.read(MINUTES * 60),
        now=service.database.now(),
    )


@router.get("")
def overview(request: Request, shared: Shared, visitor: Reader) -> HTMLResponse:
    """Show the service to administrators, their own jobs to others."""
    service = shared.service
    recent = service.list(JobFilter(tenant=visitor.sees), limit=_RECENT).records
    day_ago = datetime.now(UTC) - timedelta(days=1)
    lost = JobFilter(tenant=visitor.sees, states=frozenset({State.FAILED}), created_after=day_ago)
    failed = None if visitor.is_admin else service.list(lost, limit=_FAILED)
    codes = Counter(
        each.failure.code if each.failure else "unknown"
        for each in (failed.records if failed else ())
    )
    return page(
        request,
        visitor,
        "overview.html",
        section="overview",
        counts=service.store.counts(visitor.sees),
        submitted=None if visitor.sees is None else _submitted(shared, visitor.sees),
        operations=_operations(shared) if visitor.is_admin else None,
        recent=recent,
        failed_today=codes.most_common(),
        failed_looked_at=_FAILED if failed and failed.next_cursor else None,
        public_url=shared.settings.public_url,
    )
