"""``/dashboard``: how the service is, at a glance."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse

from api.context import Context, Shared
from api.dashboard.pages import PageRoute, page
from api.dashboard.visitor import Reader, Visitor
from jobs import JobFilter, JobRecord, QueueStats, Sample, State, WorkerStatus

router = APIRouter(route_class=PageRoute)

MINUTES = 60
_RECENT = 12
_FAILED = 500


@dataclass(frozen=True)
class Rhythm:
    """Jobs per minute over the last hour, the running minute last."""

    submitted: list[int]
    ended: list[int] | None


def _rhythm(shared: Context, visitor: Visitor) -> Rhythm:
    """Count the indexes of creation and of the end by minutes."""
    database = shared.service.database
    now = database.now_milliseconds()
    bounds = [now - 60_000 * back for back in range(MINUTES, -1, -1)]
    spans = list(pairwise(bounds))
    scope = () if visitor.sees is None else ("tenant", visitor.sees)
    with database.pipeline() as pipeline:
        for begin, end in spans:
            pipeline.zcount(database.key(*scope, "jobs"), begin * 1000, f"({end * 1000}")
        if visitor.is_admin:
            for begin, end in spans:
                pipeline.zcount(database.key("finished"), begin, f"({end}")
        counts = [int(each) for each in pipeline.execute()]
    return Rhythm(counts[:MINUTES], counts[MINUTES:] if visitor.is_admin else None)


@dataclass(frozen=True)
class Operations:
    """What only administrators see of the service."""

    queues: list[QueueStats]
    workers: tuple[WorkerStatus, ...]
    light: tuple[WorkerStatus, ...]
    working: dict[str, JobRecord]
    counters: dict[str, float]
    samples: tuple[Sample, ...]

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
        if not self.samples:
            return None
        now = sum(
            value
            for name, value in self.counters.items()
            if name.startswith("transitions{") and name.endswith('to="failed"}')
        )
        return now - self.samples[0].ended("failed")

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
    )


@router.get("")
def overview(request: Request, shared: Shared, visitor: Reader) -> HTMLResponse:
    """Show the service to administrators, their own jobs to others."""
    service = shared.service
    recent = service.list(JobFilter(tenant=visitor.sees), limit=_RECENT).records
    day_ago = datetime.now(UTC) - timedelta(days=1)
    lost = JobFilter(tenant=visitor.sees, states=frozenset({State.FAILED}), created_after=day_ago)
    failed = service.list(lost, limit=_FAILED).records
    codes = Counter(each.failure.code if each.failure else "unknown" for each in failed)
    return page(
        request,
        visitor,
        "overview.html",
        section="overview",
        counts=service.store.counts(visitor.sees),
        rhythm=_rhythm(shared, visitor),
        operations=_operations(shared) if visitor.is_admin else None,
        recent=recent,
        failed_today=codes.most_common(),
        public_url=shared.settings.public_url,
    )
