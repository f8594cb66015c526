"""Keys, quotas, queues, workers, events, the outbox, progress: each on a real Redis."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from jobs import (
    ApiKey,
    BlobRef,
    Failure,
    Invalid,
    JobDraft,
    JobService,
    KeyLimits,
    NotFound,
    Orders,
    Progress,
    ProgressReporter,
    Scope,
    Settings,
    State,
    StoreUnavailable,
    WorkerInfo,
    open_service,
)
from jobs.counters import HISTOGRAMS, observation
from jobs.keys import digest, new_plaintext
from tests.jobs.wakeups import ListWakeups

Draft = Callable[..., JobDraft]
NOW = datetime(2026, 1, 2, tzinfo=UTC)


# Keys


def test_a_key_opens_what_it_was_made_for(service: JobService) -> None:
    limits = KeyLimits(requests_per_minute=5, active_jobs=0)
    key, plaintext = service.keys.create(
        "acme", [Scope.JOBS_READ, Scope.JOBS_WRITE], name="app", limits=limits
    )
    assert plaintext.startswith("nif_")
    assert len(plaintext) == 47
    found = service.keys.verify(plaintext)
    assert found is not None
    assert found.last_used_at is not None
    assert (found.id, found.tenant, found.scopes) == (
        key.id, "acme", {Scope.JOBS_READ, Scope.JOBS_WRITE},
    )  # fmt: skip
    assert (found.limits, found.name) == (limits, "app")
    for other in ("", "nif_", plaintext[:-1], plaintext + "x", plaintext.upper(), new_plaintext()):
        assert service.keys.verify(other) is None


def test_no_secret_is_kept_anywhere(service: JobService) -> None:
    key, plaintext = service.keys.create("acme", [Scope.ADMIN])
    client = service.database.client
    kept = [str(client.hgetall(name)) for name in client.keys("*")]
    kept += [service.blobs.get(info.key).decode() for info in service.blobs.list("").items]
    assert any(digest(plaintext) in each for each in kept)
    assert not any(plaintext in each or plaintext[4:] in each for each in kept)
    assert plaintext not in repr(key)


def test_a_revoked_key_opens_nothing(service: JobService) -> None:
    key, plaintext = service.keys.create("acme", [Scope.ADMIN])
    revoked = service.keys.revoke(key.id)
    assert revoked.revoked_at is not None
    assert service.keys.verify(plaintext) is None
    assert service.keys.revoke(key.id) == revoked
    assert service.keys.get(key.id) == revoked
    with pytest.raises(NotFound):
        service.keys.revoke("key_nothing")


def test_an_expired_key_opens_nothing(service: JobService) -> None:
    now = service.database.now()
    for moment, opens in ((now - timedelta(seconds=1), False), (now + timedelta(hours=1), True)):
        _, plaintext = service.keys.create("acme", [Scope.ADMIN], expires_at=moment)
        assert (service.keys.verify(plaintext) is not None) is opens


def test_keys_are_listed_by_tenant(service: JobService) -> None:
    made = [service.keys.create(t, [Scope.JOBS_READ])[0] for t in ("acme", "other", "acme")]
    assert [key.id for key in service.keys.list()] == [key.id for key in made]
    assert [key.id for key in service.keys.list("acme")] == [made[0].id, made[2].id]
    assert service.keys.list("nobody") == ()


def test_the_first_administrator(service: JobService) -> None:
    plaintext = new_plaintext()
    key = service.keys.ensure(plaintext, "admin", [Scope.ADMIN], name="bootstrap")
    again = service.keys.ensure(plaintext, "admin", [Scope.ADMIN])
    assert again.id == key.id
    assert len(service.keys.list()) == 1
    with pytest.raises(Invalid, match="32 to 200"):
        service.keys.ensure("nif_short", "admin", [Scope.ADMIN])


@pytest.mark.parametrize("redis", ["kept", "lost"])
def test_a_revoked_administrator_stays_so(
    service: JobService, caplog: pytest.LogCaptureFixture, redis: str
) -> None:
    """At every start of the service, and after Redis was rebuilt too."""
    caplog.set_level("WARNING", logger="jobs.keys")
    plaintext = new_plaintext()
    key = service.keys.ensure(plaintext, "admin", [Scope.ADMIN])
    assert key.revoked_at is None
    revoked = service.keys.revoke(key.id)
    if redis == "lost":
        service.database.client.flushall()
        service.keys.restore()
    for _ in range(2):
        again = service.keys.ensure(plaintext, "admin", [Scope.ADMIN])
        assert (again.id, again.revoked_at) == (key.id, revoked.revoked_at)
        assert service.keys.verify(plaintext) is None
        assert [each.id for each in service.keys.list()] == [key.id]
    assert "was revoked" in caplog.text
    other = service.keys.ensure(new_plaintext(), "admin", [Scope.ADMIN])
    assert other.id != key.id
    assert other.revoked_at is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"scopes": []}, "needs a scope"),
        ({"scopes": ["jobs:everything"]}, "accepted are"),
        ({"tenant": "A"}, "tenant"),
        ({"name": "x" * 201}, "200 characters"),
    ],
)
def test_bad_keys(service: JobService, changes: dict[str, Any], said: str) -> None:
    values: dict[str, Any] = {"tenant": "acme", "scopes": [Scope.ADMIN], "name": ""} | changes
    with pytest.raises(Invalid, match=said):
        service.keys.create(values["tenant"], values["scopes"], name=values["name"])


@pytest.mark.parametrize("value", [-1, True])
def test_bad_limits(value: int) -> None:
    with pytest.raises(Invalid, match="jobs_per_day"):
        KeyLimits(jobs_per_day=value)


def test_the_last_use_is_noted_once_a_minute(service: JobService) -> None:
    _, plaintext = service.keys.create("acme", [Scope.ADMIN])

    def use() -> ApiKey:
        found = service.keys.verify(plaintext)
        assert found is not None
        return found

    first = use().last_used_at
    time.sleep(0.01)
    assert use().last_used_at == first
    key = service.database.key("key", digest(plaintext))
    service.database.client.hincrby(key, "used", -60_001)
    assert use().last_used_at != first


# Quotas


def test_a_quota_is_taken_until_it_is_used_up(service: JobService) -> None:
    def take(subject: str = "k", cost: int = 1) -> Any:
        return service.quotas.take("r", subject, cost=cost, limit=5, window_seconds=3600)

    assert [take().remaining for _ in range(5)] == [4, 3, 2, 1, 0]
    refused = take()
    assert not refused.allowed
    assert refused.remaining == 0
    assert 0 < refused.retry_after_seconds <= 7200
    assert 0 < refused.reset_seconds <= 7200
    assert take("other").allowed
    assert not take("third", cost=6).allowed
    assert take("third", cost=5).allowed
    assert service.counters()['quota_refusals{name="r"}'] == 2


def test_no_limit_counts_nothing(service: JobService) -> None:
    for _ in range(3):
        assert service.quotas.take("r", "k", limit=0, window_seconds=60).allowed
    assert service.database.client.keys("*quota*") == []


def test_takers_at_the_same_time_do_not_get_more(service: JobService) -> None:
    got: list[bool] = []

    def take() -> None:
        for _ in range(10):
            got.append(service.quotas.take("r", "k", limit=25, window_seconds=3600).allowed)

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(got) == 25


def test_the_window_slides(service: JobService) -> None:
    """The window before counts by the share that is still covered."""
    key = service.database.key("quota", "r", "k")
    window = 3600

    def take() -> Any:
        return service.quotas.take("r", "k", limit=100, window_seconds=window)

    now = service.database.now_milliseconds() / 1000
    index, elapsed = divmod(now, window)
    # As if 100 had been taken in the window before, and none in this one.
    fields = {"window": str(int(index) - 1), "current": "100", "previous": "0"}
    service.database.client.hset(key, mapping=fields)
    taken = take()
    free = 100 * elapsed / window
    assert taken.allowed == (free >= 1)
    if not taken.allowed:
        assert taken.retry_after_seconds == pytest.approx(window / 100 - elapsed, abs=2)
    else:
        assert taken.remaining == pytest.approx(free - 1, abs=1.1)
    # Two windows later nothing of it counts.
    service.database.client.hset(key, "window", str(int(index) - 2))
    assert take().remaining == 99


def test_what_a_refusal_promises_is_kept(service: JobService) -> None:
    def take() -> Any:
        return service.quotas.take("r", "k", limit=3, window_seconds=1)

    while take().allowed:
        pass
    refused = take()
    while not refused.allowed and refused.retry_after_seconds == 0:
        refused = take()
    time.sleep(refused.retry_after_seconds + 0.01)
    assert take().allowed


@pytest.mark.parametrize("values", [{"cost": -1}, {"limit": -1}, {"window_seconds": 0}])
def test_bad_quotas(service: JobService, values: dict[str, int]) -> None:
    with pytest.raises(Invalid):
        service.quotas.take("r", "k", **({"limit": 1, "window_seconds": 1} | values))


# Queues and workers


def info(worker: str = "host-1", **changes: Any) -> WorkerInfo:
    values: dict[str, Any] = {
        "id": worker, "host": "host", "pid": 7, "device": "cpu", "queues": ("encode",),
        "started_at": NOW, "facts": {"memory": 1.5, "nan": float("nan"), "deep": {"a": [1]}},
    }  # fmt: skip
    return WorkerInfo(**(values | changes))


def test_workers_come_work_drain_and_go(service: JobService, draft: Draft) -> None:
    workers = service.workers
    assert workers.list() == ()
    assert workers.beat(info()) is False
    (status,) = workers.list()
    assert (status.alive, status.draining) == (True, False)
    assert status.info.facts == {"memory": 1.5, "nan": None, "deep": {"a": [1]}}
    assert status.info.started_at == NOW
    workers.beat(info(job_id="j", attempt=3))
    assert (workers.get("host-1").info.job_id, workers.get("host-1").info.attempt) == ("j", 3)
    assert workers.drain("host-1").draining
    assert workers.beat(info()) is True
    assert not workers.resume("host-1").draining
    assert workers.beat(info()) is False
    workers.gone("host-1")
    workers.gone("host-1")
    assert workers.list() == ()
    for use in (workers.get, workers.drain, workers.resume):
        with pytest.raises(NotFound):
            use("host-1")


def test_a_silent_worker_is_not_alive_and_forgotten_in_the_end(
    service: JobService, age: Callable[..., None]
) -> None:
    service.workers.beat(info())
    service.workers.beat(info("host-2"))
    age("workers", "host-1", 31)
    assert [status.alive for status in service.workers.list()] == [False, True]
    age("workers", "host-1", 86_400)
    assert service.reaper.run_once().workers == 1
    assert [status.info.id for status in service.workers.list()] == ["host-2"]


def test_queues_are_listed_and_paused(service: JobService, draft: Draft) -> None:
    assert [queue.name for queue in service.queues.all()] == ["encode"]
    empty = service.queues.stats("nothing")
    assert (empty.depth, empty.oldest_age_seconds, empty.running) == (0, None, 0)
    made = draft(1, queue="gpu", priority=2)
    service.store.create(made, submission="s")
    service.queues.pause("gpu")
    encode, gpu = service.queues.all()
    assert (encode.depth, encode.paused) == (0, False)
    assert (gpu.name, gpu.depth, gpu.paused) == ("gpu", 1, True)


def test_the_oldest_counts_whatever_its_priority(service: JobService, draft: Draft) -> None:
    old = draft(1, priority=0)
    service.store.create(old, submission="1")
    key = service.database.key("queue", "encode")
    service.database.client.zincrby(key, -500_000, old.id)
    service.store.create(draft(2, priority=9), submission="2")
    age = service.queues.stats().oldest_age_seconds
    assert age is not None
    assert 500 <= age < 560


# Events and the outbox


def test_events_tell_the_life_in_order(service: JobService, draft: Draft) -> None:
    made = draft()
    service.store.create(made, submission="s")
    lease = service.store.claim(made.id, worker="w1").lease
    service.store.progress(lease, Progress("fit", 1, 2))
    service.store.finish_now(made.id)
    service.store.succeed(lease, BlobRef("k", 1, "0" * 64, "a/b"), {"bpp": 1.5})
    events = service.events.read_job(made.id)
    assert [event.type for event in events] == [
        "job.queued", "job.running", "job.progress", "job.finish_requested", "job.succeeded"
    ]  # fmt: skip
    assert [event.version for event in events] == [1, 2, 3, 4, 5]
    assert [event.attempt for event in events] == [0, 1, 1, 1, 1]
    assert events[1].data == {"worker": "w1"}
    assert events[2].data["step"] == 1
    assert events[4].data == {"bpp": 1.5}
    assert {event.tenant for event in events} == {"acme"}
    assert events[4].state is State.SUCCEEDED
    # A reader goes on where it was.
    rest = service.events.read_job(made.id, after=events[2].id)
    assert rest == events[3:]
    assert service.events.read_job(made.id, limit=2) == events[:2]
    assert service.events.read_job(made.id, after=events[-1].id) == []
    # The tenant's stream has no progress.
    told = [event.type for event in service.events.read_tenant("acme")]
    assert told == [event.type for event in events if event.type != "job.progress"]
    assert service.events.read_tenant("other") == []


def test_a_reader_can_wait(service: JobService, draft: Draft) -> None:
    made = draft()
    service.store.create(made, submission="s")
    seen = service.events.read_job(made.id)[-1].id
    assert service.events.read_job(made.id, after=seen, block_ms=20) == []
    timer = threading.Timer(0.1, lambda: service.store.cancel(made.id))
    timer.start()
    (event,) = service.events.read_job(made.id, after=seen, block_ms=3000)
    timer.join()
    assert event.type == "job.cancelled"


@pytest.mark.parametrize("text", ["", "x", "1", "1-", "1-2-3", "$", "-1-1"])
def test_bad_event_ids(service: JobService, text: str) -> None:
    with pytest.raises(Invalid, match="event id"):
        service.events.read_job("j", after=text)


def test_streams_have_a_greatest_length(
    settings: Settings, wakeups: ListWakeups, service: JobService, draft: Draft
) -> None:
    short = settings.model_copy(update={"events_per_job": 10})
    with open_service(short, wakeups=wakeups) as other:
        made = draft()
        other.store.create(made, submission="s")
        lease = other.store.claim(made.id, worker="w").lease
        for step in range(400):
            other.store.progress(lease, Progress("fit", step))
        # Redis trims by whole blocks of a hundred or so.
        events = other.events.read_job(made.id, limit=1000)
        assert len(events) < 250
        assert events[-1].data["step"] == 399


def test_the_outbox_has_what_webhooks_must_be_told(service: JobService, draft: Draft) -> None:
    outbox = service.outbox
    silent, told, subscribed = draft(1), draft(2, webhook="https://x.test"), draft(3, tenant="sub")
    service.endpoints.create("sub", "https://y.test", ["job.queued", "job.failed"])
    for made in (silent, told, subscribed):
        service.store.create(made, submission=made.id)
        lease = service.store.claim(made.id, worker="w").lease
        service.store.fail(lease, Failure("x", "y"))
    service.store.retry(subscribed.id)
    messages = outbox.read()
    assert [(m.event.job_id, m.type, m.event.type, m.webhook) for m in messages] == [
        (told.id, "job.failed", "job.failed", "https://x.test"),
        (subscribed.id, "job.queued", "job.queued", None),
        (subscribed.id, "job.failed", "job.failed", None),
        (subscribed.id, "job.queued", "job.retried", None),
    ]
    # Whoever looks does not take them away; whoever takes them on does.
    assert outbox.read() == messages
    for message in messages:
        assert len(service.fanout.take_on(message)) == 1
    assert outbox.depth() == 0
    assert outbox.read() == []


# Progress


def test_progress_is_written_at_most_so_often(service: JobService, draft: Draft) -> None:
    made = draft()
    service.store.create(made, submission="s")
    lease = service.store.claim(made.id, worker="w").lease
    reporter = ProgressReporter(service.store, lease, min_interval_seconds=0.2)
    written = [reporter.report(Progress("fit", step)) for step in range(50)]
    assert written[0]
    assert sum(written) < 10
    service.store.cancel(made.id)
    time.sleep(0.21)
    assert reporter.report(Progress("fit", 99))
    assert reporter.orders == Orders(cancel=True)
    assert not reporter.lost


def test_progress_never_fails_the_job(
    service: JobService, draft: Draft, settings: Settings, wakeups: ListWakeups
) -> None:
    made = draft()
    service.store.create(made, submission="s")
    lease = service.store.claim(made.id, worker="w").lease
    nowhere = settings.model_copy(update={"redis_url": "unix:///nowhere/redis.sock"})
    with open_service(nowhere, wakeups=wakeups) as away:
        assert away.store.progress(lease, Progress("fit")) is None
        reporter = ProgressReporter(away.store, lease, min_interval_seconds=0)
        assert not reporter.report(Progress("fit"))
        assert not reporter.lost
        with pytest.raises(StoreUnavailable):
            away.store.renew(lease)
    service.store.release(lease, reason="stopping")
    reporter = ProgressReporter(service.store, lease, min_interval_seconds=0)
    assert not reporter.report(Progress("fit"))
    assert reporter.lost


# Counters


@pytest.mark.parametrize("histogram", HISTOGRAMS, ids=lambda histogram: histogram.name)
def test_buckets_are_cumulative(service: JobService, histogram: Any) -> None:
    assert list(histogram.bounds) == sorted(set(histogram.bounds))
    values = [0.0, histogram.bounds[0], histogram.bounds[2] + 1e-9, histogram.bounds[-1], 1e9]
    for value in values:
        for name, amount in observation(histogram.name, value).items():
            service.database.client.hincrbyfloat(service.database.key("counters"), name, amount)
    counters = service.counters()
    for bound in histogram.bounds:
        wanted = sum(value <= bound for value in values)
        assert counters[f'{histogram.name}_bucket{{le="{bound:g}"}}'] == wanted
    assert counters[f'{histogram.name}_bucket{{le="+Inf"}}'] == len(values)
    assert counters[f"{histogram.name}_count"] == len(values)
    assert counters[f"{histogram.name}_sum"] == pytest.approx(sum(values))


def test_an_unknown_histogram_is_an_error() -> None:
    with pytest.raises(KeyError):
        observation("nothing", 1.0)
