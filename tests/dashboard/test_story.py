"""Reading a job's story from its record and events."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from api.dashboard import charts, figures, story
from api.dashboard.routes.overview import by_minute
from jobs import (
    TRANSITIONS,
    BlobRef,
    Failure,
    JobRecord,
    JobService,
    JobSpec,
    Lease,
    Parameters,
    Progress,
    State,
)
from tests.api.running import Running
from tests.dashboard.test_protection import a_job

# What happens to a job, and the ways it must have taken.
LIVES = {
    "claim succeed": {"create": 1, "claim": 1, "succeed": 1},
    "cancel": {"create": 1, "cancel": 1},
    "cancel retry": {"create": 1, "cancel": 1, "retry_cancelled": 1},
    "claim stop": {"create": 1, "claim": 1, "obey_cancel": 1},
    "claim stop retry claim": {"create": 1, "claim": 2, "obey_cancel": 1, "retry_cancelled": 1},
    "claim fail": {"create": 1, "claim": 1, "fail": 1},
    "claim fail retry claim succeed": {
        "create": 1, "claim": 2, "fail": 1, "retry_failed": 1, "succeed": 1,
    },
    "claim release claim release": {"create": 1, "claim": 2, "release": 2},
    "claim lose claim lose claim lose": {"create": 1, "claim": 3, "lose": 2, "poison": 1},
}  # fmt: skip


def live(running: Running, tenant: str, life: str) -> JobRecord:
    """Have a job live so."""
    service: JobService = running.service
    job, lease = a_job(running, tenant), None
    for act in life.split():
        match act:
            case "claim":
                lease = running.claim(job).lease
            case "succeed":
                assert lease is not None
                ref = service.journal.write_result(tenant, lease, b"x")
                service.store.succeed(lease, ref, {"bpp": 0.5})
            case "fail":
                assert lease is not None
                service.store.fail(lease, Failure("not_an_image", "none"))
            case "stop":
                assert lease is not None
                service.store.cancel(job)
                service.store.cancelled(lease)
            case "release":
                assert lease is not None
                service.store.release(lease, reason="stopping")
            case "lose":
                lose(running, lease)
            case "cancel":
                service.store.cancel(job)
            case "retry":
                service.retry(tenant, job)
    return service.get(tenant, job)


def lose(running: Running, lease: Lease | None) -> None:
    assert lease is not None
    database = running.service.database
    database.client.zadd(database.key("leases"), {lease.job_id: 1})
    database.client.hset(database.key("job", lease.job_id), "lease_until", "1")
    running.service.reaper.run_once()


@pytest.mark.parametrize("life", LIVES)
def test_the_path_is_told_by_the_events(running: Running, tenant: str, life: str) -> None:
    record = live(running, tenant, life)
    events = running.service.events.read_job(record.id, limit=500)
    assert dict(story.path_of(record, events)) == LIVES[life]


@pytest.mark.parametrize("life", [each for each in LIVES if each != "cancel retry"])
def test_the_path_is_told_by_the_attempts_where_events_are_gone(
    running: Running, tenant: str, life: str
) -> None:
    # That a job was cancelled while it waited and retried leaves no trace but the event.
    record = live(running, tenant, life)
    assert dict(story.path_of(record, [])) == LIVES[life]


def test_every_way_of_a_job_is_drawn_once_in_each_layout() -> None:
    ways = {each.name for each in TRANSITIONS}
    for layout in charts.LAYOUTS:
        drawn = [name for edge in layout.edges for name in edge.names]
        assert sorted(drawn) == sorted(ways)
        assert set(layout.nodes) == set(State)
        for node in layout.nodes.values():
            assert 0 <= node.x <= node.x + node.width <= layout.width
            assert 0 <= node.y <= node.y + node.height <= layout.height


def test_spans_cover_the_whole_time_without_gaps(running: Running, tenant: str) -> None:
    service = running.service
    job = a_job(running, tenant)
    for _ in range(2):
        claim = running.claim(job)
        for phase in ("prepare", "fit", "fit", "quantise"):
            service.store.progress(claim.lease, Progress(phase))
        service.store.release(claim.lease, reason="stopping")
    running.succeed(job)
    record = service.get(tenant, job)
    events = service.events.read_job(job, limit=500)
    spans = story.spans_of(record, events, datetime.now(UTC))
    assert record.finished_at is not None
    assert spans[0].start == record.created_at
    assert spans[-1].end == record.finished_at
    for before, after in pairwise(spans):
        assert before.end == after.start
    whole = (record.finished_at - record.created_at).total_seconds()
    assert sum(story.phase_totals(spans).values()) == pytest.approx(whole)
    assert {span.kind for span in spans} <= {"queued", "prepare", "fit", "quantise", "work"}


def test_the_log_leaves_out_progress_that_says_nothing_new(running: Running, tenant: str) -> None:
    job = a_job(running, tenant)
    claim = running.claim(job)
    for number in range(5):
        running.service.store.progress(
            claim.lease, Progress("fit", iteration=number, psnr_db=20.0 + number)
        )
    running.service.store.progress(claim.lease, Progress("fit", message="diverged, going back"))
    lines = story.lines_of(running.service.events.read_job(job, limit=50))
    assert [line.text for line in lines] == [
        "accepted and queued",
        "claimed by tester-1",
        "fit, 20.00 dB so far",
        "fit: diverged, going back",
    ]


NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (figures.size(0), "0 B"),
        (figures.size(999), "999 B"),
        (figures.size(1000), "1.00 KB"),
        (figures.size(99_950), "100 KB"),
        (figures.size(999_499), "999 KB"),
        (figures.size(999_500), "1.00 MB"),
        (figures.size(-1500), "\u22121.50 KB"),
        (figures.size(None), "\u2013"),
        (figures.duration(0.04), "0.0 s"),
        (figures.duration(9.949), "9.9 s"),
        (figures.duration(9.96), "10 s"),
        (figures.duration(59.6), "1 m 00 s"),
        (figures.duration(3599.6), "1 h 00 m"),
        (figures.duration(90_000), "1 d 01 h"),
        (figures.age(NOW - timedelta(seconds=1), NOW), "just now"),
        (figures.age(NOW - timedelta(seconds=89), NOW), "89 s ago"),
        (figures.age(NOW - timedelta(minutes=5), NOW), "5 m ago"),
        (figures.age(NOW - timedelta(hours=35), NOW), "35 h ago"),
        (figures.age(NOW - timedelta(days=3), NOW), "3 d ago"),
        (figures.count(1234567), "1\u202f234\u202f567"),
        (figures.decibels(float("inf")), "lossless"),
        (figures.decibels(31.416), "31.42 dB"),
    ],
)
def test_figures_are_written_shortly(written: str, expected: str) -> None:
    assert written == expected


def at(minutes: float) -> datetime:
    return NOW - timedelta(minutes=minutes)


@pytest.mark.parametrize(
    ("readings", "expected"),
    [
        ([], [0, 0, 0, 0]),
        ([(0.1, 7)], [0, 0, 0, 0]),
        # What was counted before the first reading is nobody's; the rest stands where it was read.
        ([(3.9, 5), (3.6, 6), (1.5, 8), (1.2, 8), (0, 9)], [1, 1, 1, 1]),
        ([(2.5, 0), (2.4, 4), (2.1, 5), (0.5, 5)], [0, 5, 0, 0]),
        # Nobody read for three minutes.
        ([(3.5, 0), (0.5, 9)], [0, 3, 3, 3]),
        # The counters were begun anew.
        ([(1.5, 100), (1.3, 102), (0.5, 3)], [0, 0, 2, 3]),
    ],
)
def test_growth_by_minutes(readings: list[tuple[float, float]], expected: list[float]) -> None:
    given = [(at(back), value) for back, value in readings]
    assert by_minute(given, NOW, 4) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("parameters", "size", "expected"),
    [
        (Parameters(max_bytes=4000), (None, None), 4000),
        (Parameters(bpp=0.5), (64, 32), 128),
        (Parameters(quality=75), (64, 32), 0.45 * 64 * 32 / 8),
        (Parameters(effort=3), (64, 32), 0.45 * 64 * 32 / 8),
        (Parameters(bpp=0.5), (None, None), None),
        (Parameters(psnr=30), (64, 32), None),
        (Parameters(preset="paper-120"), (64, 32), None),
    ],
)
def test_the_size_that_was_asked_for(
    parameters: Parameters, size: tuple[int | None, int | None], expected: float | None
) -> None:
    ref = BlobRef("acme/jobs/x/input", 1, "0" * 64, "image/png")
    spec = JobSpec(ref, parameters, "0.1.0", *size)
    assert story.budget_of(spec) == pytest.approx(expected)


@pytest.mark.parametrize("values", [[], [1.0]])
def test_a_curve_needs_two_values(values: list[float]) -> None:
    assert charts.sparkline(values) is None


def test_a_curve_touches_its_bounds() -> None:
    found = charts.sparkline([0, 5, 10], places=[0.5, 0.75, 1.0])
    assert found is not None
    assert found.line == "M120,42L180,22L240,2"
    assert found.area == "M120,42L180,22L240,2L240,44L120,44Z"
