"""The atomic layer, on a real Redis."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from jobs import (
    BlobRef,
    ClaimRefused,
    Failure,
    IdTaken,
    Invalid,
    JobDraft,
    JobFilter,
    JobService,
    JobStore,
    Lease,
    NotFound,
    Orders,
    Parameters,
    Progress,
    QuotaExceeded,
    StaleLease,
    State,
    WrongState,
    new_job_id,
)
from jobs.store import Claim

Draft = Callable[..., JobDraft]

RESULT = BlobRef("acme/jobs/x/attempts/1/out.nif", 10, "0" * 64, "application/vnd.nif")
REPORT = {"seconds": 2.5, "bpp": 0.31, "psnr_db": 33.3, "width": 8, "height": 8}

# Every write that a worker can make.
WRITES: dict[str, Callable[[JobStore, Lease], Any]] = {
    "renew": lambda store, lease: store.renew(lease),
    "progress": lambda store, lease: store.progress(lease, Progress("fit")),
    "succeed": lambda store, lease: store.succeed(lease, RESULT, REPORT),
    "fail": lambda store, lease: store.fail(lease, Failure("bad", "bad picture")),
    "cancelled": lambda store, lease: store.cancelled(lease),
    "release": lambda store, lease: store.release(lease, reason="stopping"),
}


def made(store: JobStore, draft: JobDraft, **limits: int) -> str:
    return store.create(draft, submission=draft.id, **limits).record.id


def running(store: JobStore, draft: JobDraft, worker: str = "w1") -> Claim:
    return store.claim(made(store, draft), worker=worker)


def test_a_created_job_is_what_the_draft_says(store: JobStore, draft: Draft) -> None:
    wanted = draft(priority=7, metadata={"a": "ü"}, webhook="https://x.test/h", batch="bat_1")
    created = store.create(wanted, submission="s")
    assert created.outcome == "created"
    record = store.get(wanted.id)
    assert record == created.record
    assert (record.id, record.tenant, record.state) == (wanted.id, "acme", State.QUEUED)
    assert (record.attempt, record.strikes, record.version) == (0, 0, 1)
    assert (record.spec, record.priority, record.queue) == (wanted.spec, 7, "encode")
    assert (record.metadata, record.webhook) == ({"a": "ü"}, "https://x.test/h")
    assert record.batch == "bat_1"
    assert record.created_at == record.queued_at == record.updated_at
    assert abs(record.created_at - wanted.submitted_at) < timedelta(seconds=60)
    assert record.attempts == ()
    assert record.progress is record.result is record.report is record.failure is None
    assert record.started_at is record.finished_at is record.published_at is None


def test_a_life(store: JobStore, draft: Draft) -> None:
    claim = running(store, draft())
    assert (claim.lease.attempt, claim.lease.worker) == (1, "w1")
    assert claim.record.state is State.RUNNING
    assert claim.record.worker == "w1"
    assert claim.record.lease_until is not None
    assert claim.record.started_at is not None
    left = claim.record.lease_until - claim.record.started_at
    assert left == timedelta(seconds=30)
    assert store.renew(claim.lease) == Orders()
    progress = Progress("fit", 3, 10, psnr_db=float("nan"), loss=0.5)
    assert store.progress(claim.lease, progress) == Orders()
    seen = store.get(claim.lease.job_id)
    assert seen.progress == Progress("fit", 3, 10, psnr_db=None, loss=0.5)
    assert seen.version == claim.record.version + 1
    done = store.succeed(claim.lease, RESULT, REPORT)
    assert done == store.get(done.id)
    assert (done.state, done.result, done.report) == (State.SUCCEEDED, RESULT, REPORT)
    assert done.finished_at is not None
    assert done.worker is None
    assert [(each.number, each.worker, each.end) for each in done.attempts] == [
        (1, "w1", "succeeded")
    ]
    assert done.attempts[0].ended_at == done.finished_at


def test_the_same_create_again_is_the_same_answer(store: JobStore, draft: Draft) -> None:
    wanted = draft()
    first = store.create(wanted, submission="s")
    assert store.create(wanted, submission="s") == first
    assert store.counts()[State.QUEUED] == 1


def test_the_same_id_is_replayed_or_taken(store: JobStore, draft: Draft) -> None:
    wanted = draft(1)
    made(store, wanted)
    assert store.create(wanted, submission="other").outcome == "replayed"
    with pytest.raises(IdTaken):
        store.create(draft(2, id=wanted.id), submission="other")
    with pytest.raises(IdTaken):
        store.create(draft(1, id=wanted.id, tenant="other"), submission="other")


def test_equal_work_is_done_once(store: JobStore, draft: Draft) -> None:
    first = made(store, draft(1))
    for state in (State.QUEUED, State.RUNNING, State.SUCCEEDED):
        if state is State.RUNNING:
            lease = store.claim(first, worker="w").lease
        elif state is State.SUCCEEDED:
            store.succeed(lease, RESULT, REPORT)
        created = store.create(draft(1), submission=str(state))
        assert (created.outcome, created.record.id) == ("deduplicated", first)
        assert created.record.state is state


def test_what_is_not_equal_is_done_again(store: JobStore, draft: Draft) -> None:
    first = made(store, draft(1))
    for other in (
        draft(2),
        draft(1, parameters=Parameters(effort=4)),
        draft(1, tenant="other"),
        draft(1, deduplicate=False),
        draft(1, webhook="https://x.test/h"),
    ):
        created = store.create(other, submission="s" + other.id)
        assert created.outcome == "created"
        assert created.record.id != first


@pytest.mark.parametrize("ending", ["failed", "cancelled", "cancelling", "finished early"])
def test_a_job_that_has_not_what_was_asked_answers_for_no_other(
    store: JobStore, draft: Draft, ending: str
) -> None:
    claim = running(store, draft(1))
    if ending == "failed":
        store.fail(claim.lease, Failure("x", "y"))
    elif ending == "finished early":
        store.finish_now(claim.lease.job_id)
        store.succeed(claim.lease, RESULT, REPORT)
    else:
        store.cancel(claim.lease.job_id)
        if ending == "cancelled":
            store.cancelled(claim.lease)
    assert store.create(draft(1), submission="s").outcome == "created"


def test_limits_of_tenant_and_queue(store: JobStore, draft: Draft) -> None:
    made(store, draft(1), max_active=2)
    second = made(store, draft(2), max_active=2)
    with pytest.raises(QuotaExceeded) as caught:
        made(store, draft(3), max_active=2)
    assert (caught.value.name, caught.value.limit, caught.value.used) == ("active_jobs", 2, 2)
    made(store, draft(3, tenant="other"), max_active=2)
    with pytest.raises(QuotaExceeded, match="queue: 3 of 3"):
        made(store, draft(4, tenant="third"), queue_limit=3)
    store.cancel(second)
    made(store, draft(4), max_active=2)
    failed = running(store, draft(5, tenant="more")).lease
    store.fail(failed, Failure("x", "y"))
    made(store, draft(6, tenant="more"), max_active=1)
    with pytest.raises(QuotaExceeded):
        store.retry(failed.job_id, max_active=1)


def test_of_many_claimers_one_wins(service: JobService, draft: Draft) -> None:
    for _ in range(20):
        job_id = made(service.store, draft(deduplicate=False))
        won: list[Lease] = []
        refused: list[str] = []
        start = threading.Barrier(6)

        def go(
            worker: str, job_id: str = job_id, start: threading.Barrier = start,
            won: list[Lease] = won, refused: list[str] = refused,
        ) -> None:  # fmt: skip
            start.wait()
            try:
                won.append(service.store.claim(job_id, worker=worker).lease)
            except ClaimRefused as error:
                refused.append(error.reason)

        threads = [threading.Thread(target=go, args=(f"w{i}",)) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert refused == ["not_queued"] * 5
        assert service.store.get(job_id).worker == won[0].worker
    assert service.counters()['claims_refused{reason="not_queued"}'] == 100


def test_a_claim_whose_reply_was_lost_is_repeated(store: JobStore, draft: Draft) -> None:
    job_id = made(store, draft())
    first = store.claim(job_id, worker="w", nonce="n")
    assert store.claim(job_id, worker="w", nonce="n") == first
    with pytest.raises(ClaimRefused):
        store.claim(job_id, worker="w", nonce="other")


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("how", ["reclaimed", "queued", "attempt", "nonce", "gone"])
def test_a_stale_token_is_refused(
    service: JobService, draft: Draft, expire: Callable[[str], None], write: str, how: str
) -> None:
    store = service.store
    lease = running(store, draft()).lease
    stale = lease
    if how in ("reclaimed", "queued"):
        expire(lease.job_id)
        service.reaper.run_once()
        if how == "reclaimed":
            assert store.claim(lease.job_id, worker="w2").lease.attempt == 2
    elif how == "attempt":
        stale = Lease(lease.job_id, lease.attempt - 1, lease.nonce, lease.worker)
    elif how == "nonce":
        stale = Lease(lease.job_id, lease.attempt, "forged", lease.worker)
    else:
        stale = Lease(new_job_id(), 1, lease.nonce, lease.worker)
    before = store.get(lease.job_id)
    with pytest.raises(StaleLease):
        WRITES[write](store, stale)
    assert store.get(lease.job_id) == before
    name = {"cancelled": "obey_cancel"}.get(write, write)
    assert service.counters()[f'stale_writes_refused{{write="{name}"}}'] == 1


@pytest.mark.parametrize("write", ["succeed", "fail", "cancelled", "release"])
def test_an_end_whose_reply_was_lost_is_repeated(store: JobStore, draft: Draft, write: str) -> None:
    lease = running(store, draft()).lease
    first = WRITES[write](store, lease)
    assert WRITES[write](store, lease) == first
    for other in WRITES.keys() - {write}:
        with pytest.raises(StaleLease):
            WRITES[other](store, lease)
    assert store.get(lease.job_id) == first


def test_an_end_is_not_repeated_on_the_next_attempt(store: JobStore, draft: Draft) -> None:
    lease = running(store, draft()).lease
    store.fail(lease, Failure("x", "y"))
    store.retry(lease.job_id)
    for write in WRITES.values():
        with pytest.raises(StaleLease):
            write(store, lease)


def test_a_lost_lease_goes_back_and_the_third_is_poison(
    service: JobService, draft: Draft, expire: Callable[[str], None]
) -> None:
    store = service.store
    job_id = made(store, draft())
    for attempt in (1, 2):
        assert store.claim(job_id, worker=f"w{attempt}").lease.attempt == attempt
        expire(job_id)
        assert service.reaper.run_once().requeued == 1
        record = store.get(job_id)
        assert (record.state, record.strikes) == (State.QUEUED, attempt)
    store.claim(job_id, worker="w3")
    expire(job_id)
    assert service.reaper.run_once().poisoned == 1
    record = store.get(job_id)
    assert record.state is State.FAILED
    assert record.failure is not None
    assert record.failure.code == "poisoned"
    assert record.failure.detail is not None
    assert "w3" in record.failure.detail
    assert [each.end for each in record.attempts] == ["lost"] * 3
    # Kept and replayable, with three new lives.
    again = store.retry(job_id)
    assert (again.state, again.strikes, again.failure) == (State.QUEUED, 0, None)
    assert store.claim(job_id, worker="w4").lease.attempt == 4


def test_a_lease_that_is_renewed_is_not_lost(service: JobService, draft: Draft) -> None:
    lease = running(service.store, draft()).lease
    service.store.renew(lease)
    assert service.reaper.run_once().requeued == 0
    assert service.store.get(lease.job_id).state is State.RUNNING


def test_a_late_renewal_saves_a_lease_that_nobody_took(
    service: JobService, draft: Draft, expire: Callable[[str], None]
) -> None:
    lease = running(service.store, draft()).lease
    expire(lease.job_id)
    service.store.renew(lease)
    assert service.reaper.run_once().requeued == 0


def test_release_keeps_the_place_and_may_delay(store: JobStore, draft: Draft) -> None:
    claim = running(store, draft(1))
    made(store, draft(2))
    record = store.release(claim.lease, reason="stopping")
    assert (record.state, record.strikes) == (State.QUEUED, 0)
    assert store.position(record.id) == 1
    lease = store.claim(record.id, worker="w").lease
    record = store.release(lease, reason="S3 is away", strike=True, delay_seconds=60)
    assert record.strikes == 1
    assert record.not_before is not None
    with pytest.raises(ClaimRefused, match="not_due"):
        store.claim(record.id, worker="w")


def test_the_third_strike_of_releases_is_poison(store: JobStore, draft: Draft) -> None:
    job_id = made(store, draft())
    for _ in range(3):
        lease = store.claim(job_id, worker="w").lease
        record = store.release(lease, reason="out of memory", strike=True)
    assert record.state is State.FAILED
    assert record.failure is not None
    assert "out of memory" in (record.failure.detail or "")
    assert store.release(lease, reason="again", strike=True) == record


def test_many_releases_do_not_grow_the_record(store: JobStore, draft: Draft) -> None:
    job_id = made(store, draft())
    for _ in range(250):
        store.release(store.claim(job_id, worker="w" * 40).lease, reason="stopping")
    record = store.get(job_id)
    assert record.attempt == 250
    assert 20 < len(record.attempts) < 250
    assert [each.number for each in record.attempts][-3:] == [248, 249, 250]


def test_cancel_in_every_state(store: JobStore, draft: Draft) -> None:
    queued = made(store, draft(1))
    assert store.cancel(queued).state is State.CANCELLED
    assert store.cancel(queued) == store.get(queued)
    claim = running(store, draft(2))
    asked = store.cancel(claim.lease.job_id)
    assert asked.state is State.RUNNING
    assert asked.cancel_requested
    assert store.cancel(claim.lease.job_id) == asked
    assert store.renew(claim.lease) == Orders(cancel=True)
    assert store.cancelled(claim.lease).state is State.CANCELLED
    claim = running(store, draft(3))
    store.succeed(claim.lease, RESULT, REPORT)
    with pytest.raises(WrongState) as caught:
        store.cancel(claim.lease.job_id)
    assert caught.value.state == "succeeded"
    with pytest.raises(NotFound):
        store.cancel(new_job_id())


def test_a_cancelled_job_does_not_come_back_from_a_lost_or_released_lease(
    service: JobService, draft: Draft, expire: Callable[[str], None]
) -> None:
    store = service.store
    lost = running(store, draft(1)).lease
    store.cancel(lost.job_id)
    expire(lost.job_id)
    assert service.reaper.run_once().cancelled == 1
    assert store.get(lost.job_id).state is State.CANCELLED
    released = running(store, draft(2)).lease
    store.cancel(released.job_id)
    assert store.release(released, reason="stopping").state is State.CANCELLED


def test_a_result_wins_over_a_cancel_that_came_too_late(store: JobStore, draft: Draft) -> None:
    lease = running(store, draft()).lease
    store.cancel(lease.job_id)
    assert store.succeed(lease, RESULT, REPORT).state is State.SUCCEEDED


def test_finish_now(service: JobService, draft: Draft, expire: Callable[[str], None]) -> None:
    store = service.store
    job_id = made(store, draft())
    with pytest.raises(WrongState):
        store.finish_now(job_id)
    lease = store.claim(job_id, worker="w").lease
    assert store.finish_now(job_id).finish_requested
    assert store.progress(lease, Progress("fit")) == Orders(finish=True)
    # The wish outlives the worker, but not a retry.
    expire(job_id)
    service.reaper.run_once()
    lease = store.claim(job_id, worker="w").lease
    assert store.renew(lease) == Orders(finish=True)
    store.fail(lease, Failure("x", "y"))
    assert not store.retry(job_id).finish_requested


def test_retry_only_what_ended_without_a_result(store: JobStore, draft: Draft) -> None:
    job_id = made(store, draft())
    with pytest.raises(WrongState):
        store.retry(job_id)
    lease = store.claim(job_id, worker="w").lease
    with pytest.raises(WrongState):
        store.retry(job_id)
    store.succeed(lease, RESULT, REPORT)
    with pytest.raises(WrongState):
        store.retry(job_id)
    cancelled = made(store, draft(2))
    store.cancel(cancelled)
    record = store.retry(cancelled)
    assert record.state is State.QUEUED
    assert not record.cancel_requested
    assert record.finished_at is None


def test_a_paused_queue_and_a_draining_worker_get_nothing(
    service: JobService, draft: Draft
) -> None:
    job_id = made(service.store, draft())
    service.store.mark_published(job_id)
    service.queues.pause("encode")
    with pytest.raises(ClaimRefused, match="paused"):
        service.store.claim(job_id, worker="w")
    assert service.store.get(job_id).published_at is None
    service.queues.resume("encode")
    service.database.client.sadd(service.database.key("draining"), "w")
    with pytest.raises(ClaimRefused, match="draining"):
        service.store.claim(job_id, worker="w")
    assert service.store.claim(job_id, worker="w2").lease.attempt == 1
    with pytest.raises(ClaimRefused, match="missing"):
        service.store.claim(new_job_id(), worker="w2")


def test_position_follows_priority_then_age(service: JobService, draft: Draft) -> None:
    store = service.store
    low = made(store, draft(1, priority=1))
    normal = made(store, draft(2))
    urgent = made(store, draft(3, priority=9))
    assert [store.position(each) for each in (urgent, normal, low)] == [1, 2, 3]
    store.claim(urgent, worker="w")
    assert [store.position(each) for each in (urgent, normal, low)] == [None, 1, 2]
    assert store.position(new_job_id()) is None
    stats = service.queues.stats()
    assert (stats.depth, stats.running, stats.paused) == (2, 1, False)
    assert stats.oldest_age_seconds is not None
    assert 0 <= stats.oldest_age_seconds < 60


def test_pages_show_every_job_once_while_others_come_and_go(store: JobStore, draft: Draft) -> None:
    ids = [made(store, draft(i)) for i in range(25)]
    seen: list[str] = []
    cursor = None
    for turn in range(10):
        page = store.page(JobFilter("acme"), limit=7, cursor=cursor)
        seen += [record.id for record in page.records]
        made(store, draft(100 + turn))
        store.cancel(ids[turn])
        cursor = page.next_cursor
        if cursor is None:
            break
    assert seen == ids[::-1]


def test_pages_by_state_tenant_batch_and_time(store: JobStore, draft: Draft) -> None:
    a = made(store, draft(1, batch="bat_1"))
    b = made(store, draft(2, batch="bat_1"))
    other = made(store, draft(3, tenant="other", batch="bat_1"))
    c = made(store, draft(4))
    store.cancel(a)
    lease = store.claim(b, worker="w").lease

    def ids(wanted: JobFilter, **options: Any) -> list[str]:
        return [record.id for record in store.page(wanted, **options).records]

    assert ids(JobFilter(None)) == [c, other, b, a]
    assert ids(JobFilter("acme")) == [c, b, a]
    assert ids(JobFilter("acme", frozenset({State.QUEUED}))) == [c]
    assert ids(JobFilter(None, frozenset({State.QUEUED, State.CANCELLED}))) == [c, other, a]
    assert ids(JobFilter("acme", frozenset({State.FAILED}))) == []
    assert ids(JobFilter("acme", batch="bat_1")) == [b, a]
    assert ids(JobFilter("acme", frozenset({State.RUNNING}), batch="bat_1")) == [b]
    assert ids(JobFilter("nobody")) == []
    created = store.get(b).created_at
    assert set(ids(JobFilter("acme", created_after=created))) <= {c, b, a}
    assert b in ids(JobFilter("acme", created_after=created))
    assert b not in ids(JobFilter("acme", created_before=created))
    assert ids(JobFilter("acme", created_before=created - timedelta(hours=1))) == []
    with pytest.raises(Invalid, match="tenant"):
        store.page(JobFilter(None, batch="bat_1"))
    assert store.counts("acme")[State.RUNNING] == 1
    assert store.counts()[State.QUEUED] == 2
    assert store.active("acme") == 2
    store.succeed(lease, RESULT, REPORT)
    assert store.active("acme") == 1
    assert store.tenants() == ["acme", "other"]


@pytest.mark.parametrize("cursor", ["", "x", "é", "MjoxMjM", "MTotNQ", "A" * 999])
def test_bad_cursors(store: JobStore, cursor: str) -> None:
    with pytest.raises(Invalid, match="cursor"):
        store.page(JobFilter("acme"), cursor=cursor)


@pytest.mark.parametrize("limit", [0, -1, 501])
def test_bad_limits(store: JobStore, limit: int) -> None:
    with pytest.raises(Invalid, match="limit"):
        store.page(JobFilter("acme"), limit=limit)


def test_deleting(store: JobStore, draft: Draft) -> None:
    lease = running(store, draft(1)).lease
    with pytest.raises(WrongState):
        store.begin_delete(lease.job_id)
    store.succeed(lease, RESULT, REPORT)
    assert store.begin_delete(lease.job_id) == "acme"
    assert store.begin_delete(lease.job_id) == "acme"
    for look in (store.get, store.cancel, store.retry, store.finish_now):
        with pytest.raises(NotFound):
            look(lease.job_id)
    assert not store.exists(lease.job_id)
    assert store.page(JobFilter(None)).records == ()
    with pytest.raises(ClaimRefused, match="deleted"):
        store.claim(lease.job_id, worker="w")
    # Its work is done anew for whoever asks now.
    assert store.create(draft(1), submission="s").outcome == "created"
    store.purge(lease.job_id)
    with pytest.raises(NotFound):
        store.begin_delete(lease.job_id)


def test_a_record_is_not_purged_before_its_deletion_began(store: JobStore, draft: Draft) -> None:
    job_id = made(store, draft())
    store.purge(job_id)
    assert store.get(job_id).state is State.QUEUED


def test_nothing_is_left_of_a_deleted_job(service: JobService, draft: Draft) -> None:
    store, client = service.store, service.database.client
    lease = running(store, draft(batch="bat_1")).lease
    store.progress(lease, Progress("fit"))
    store.fail(lease, Failure("x", "y"))
    store.begin_delete(lease.job_id)
    store.purge(lease.job_id)
    left = {
        "nif:counters", "nif:last_order", "nif:tenants", "nif:queues", "nif:tenant:acme:events"
    }  # fmt: skip
    assert set(client.keys("*")) == left


def test_counters_and_histograms(service: JobService, draft: Draft) -> None:
    lease = running(service.store, draft()).lease
    service.store.succeed(lease, RESULT, REPORT)
    service.store.fail(running(service.store, draft(2)).lease, Failure("odd code!", "y"))
    counters = service.counters()
    assert counters['transitions{from="none",to="queued"}'] == 2
    assert counters['transitions{from="queued",to="running"}'] == 2
    assert counters['transitions{from="running",to="succeeded"}'] == 1
    assert counters['jobs_failed{code="odd_code_"}'] == 1
    assert counters['encode_seconds_bucket{le="2"}'] == 0
    assert counters['encode_seconds_bucket{le="60"}'] == 1
    assert counters['encode_seconds_bucket{le="5"}'] == 1
    assert counters['encode_seconds_bucket{le="+Inf"}'] == 1
    assert counters["encode_seconds_sum"] == pytest.approx(2.5)
    assert counters["psnr_db_count"] == counters["bpp_count"] == 1
    assert counters["bytes_out"] == 10
    assert counters["pixels"] == 64


def test_a_report_that_json_cannot_carry_is_refused(store: JobStore, draft: Draft) -> None:
    lease = running(store, draft()).lease
    with pytest.raises(Invalid, match="plain values"):
        store.succeed(lease, RESULT, {"a": object()})
    with pytest.raises(Invalid, match="262144"):
        store.succeed(lease, RESULT, {"a": "x" * 300_000})
    assert store.renew(lease) == Orders()
