"""Record, journal and wake-ups in the right order, whatever breaks in between."""

from __future__ import annotations

import hashlib
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from jobs import (
    BlobDamaged,
    BlobNotFound,
    BlobsUnavailable,
    Failure,
    FileBlobs,
    IdempotencyClaim,
    IdempotencyInFlight,
    IdempotencyMismatch,
    IdTaken,
    Invalid,
    JobDraft,
    JobFilter,
    JobService,
    NotFound,
    QuotaExceeded,
    Replay,
    Settings,
    State,
    StoreUnavailable,
    WrongState,
    load_settings,
    new_job_id,
    open_service,
)
from jobs.journal import folder
from tests.jobs.wakeups import ListWakeups

Submit = Callable[..., Any]
Draft = Callable[..., JobDraft]


def blobs_of(service: JobService, tenant: str = "acme") -> list[str]:
    return [info.key for info in service.blobs.list(f"{tenant}/").items]


def test_what_is_accepted_is_durable_and_woken(
    service: JobService, submit: Submit, wakeups: ListWakeups
) -> None:
    answer = submit(b"picture", priority=8)
    record = answer.record
    assert (answer.created, answer.deduplicated, answer.replayed) == (True, False, False)
    assert wakeups.sent == [(record.id, 8, "encode")]
    assert service.store.get(record.id).published_at is not None
    spec = service.journal.read_spec("acme", record.id)
    assert (spec.id, spec.spec, spec.priority) == (record.id, record.spec, 8)
    assert service.blobs.get(record.spec.input.key) == b"picture"
    assert record.spec.input.key.startswith(folder("acme", record.id))


def test_a_broker_that_is_away_costs_nothing(
    service: JobService, submit: Submit, wakeups: ListWakeups, age: Callable[..., None]
) -> None:
    wakeups.broken = True
    record = submit().record
    assert service.store.get(record.id).published_at is None
    assert service.reaper.run_once().published == 0
    age("unpublished", record.id, 10)
    assert service.reaper.run_once().published == 0
    wakeups.broken = False
    assert service.reaper.run_once().published == 1
    assert wakeups.ids == [record.id]
    assert service.reaper.run_once().published == 0


def test_a_duplicate_leaves_no_blobs(service: JobService, submit: Submit) -> None:
    first = submit(b"same")
    before = blobs_of(service)
    again = submit(b"same")
    assert again.deduplicated
    assert not again.created
    assert again.record.id == first.record.id
    assert blobs_of(service) == before
    assert not submit(b"same", deduplicate=False).deduplicated


def test_the_same_put_again_is_replayed_and_another_is_refused(
    service: JobService, submit: Submit
) -> None:
    chosen = str(uuid.uuid4())
    first = submit(b"one", id=chosen, deduplicate=False)
    before = blobs_of(service)
    again = submit(b"one", id=chosen, deduplicate=False)
    assert (again.replayed, again.record.id) == (True, chosen)
    with pytest.raises(IdTaken):
        submit(b"two", id=chosen, deduplicate=False)
    with pytest.raises(IdTaken):
        submit(b"one", id=chosen, deduplicate=False, tenant="other")
    assert blobs_of(service) == before
    assert blobs_of(service, "other") == []
    assert service.blobs.get(first.record.spec.input.key) == b"one"


def test_of_many_equal_puts_one_makes_the_job(
    service: JobService, submit: Submit, wakeups: ListWakeups
) -> None:
    chosen = str(uuid.uuid4())
    answers: list[Any] = []
    start = threading.Barrier(6)

    def go() -> None:
        start.wait()
        while True:
            try:
                answers.append(submit(b"one", id=chosen, deduplicate=False))
                return
            except StoreUnavailable:
                continue  # another one is still being submitted

    threads = [threading.Thread(target=go) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answer.record.id for answer in answers] == [chosen] * 6
    assert sum(answer.created for answer in answers) == 1
    assert wakeups.ids == [chosen]
    key = service.store.get(chosen).spec.input.key
    assert blobs_of(service) == [key, f"acme/jobs/{chosen}/spec.json"]


def test_a_submission_that_broke_off_after_the_spec_is_taken_up(
    service: JobService, submit: Submit, draft: Draft, settle: Callable[[str], None]
) -> None:
    chosen = str(uuid.uuid4())
    ref = service.journal.write_input("acme", chosen, b"one", "image/png")
    half = draft(b"one", id=chosen)
    service.journal.write_spec(replace(half, spec=replace(half.spec, input=ref)))
    with pytest.raises(IdTaken):
        submit(b"two", id=chosen)
    # Whoever wrote the spec may be at work still.
    with pytest.raises(StoreUnavailable, match="still being submitted"):
        submit(b"one", id=chosen)
    settle(chosen)
    answer = submit(b"one", id=chosen)
    assert answer.created
    assert answer.record.spec.input.key == ref.key
    assert service.blobs.get(ref.key) == b"one"
    assert len(blobs_of(service)) == 2


def test_over_quota_leaves_nothing(service: JobService, submit: Submit) -> None:
    submit(1, max_active=1)
    before = blobs_of(service)
    with pytest.raises(QuotaExceeded):
        submit(2, max_active=1)
    assert blobs_of(service) == before


def test_a_journal_that_is_away_leaves_nothing(
    service: JobService, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = service.idempotency.begin("acme", "k")
    assert isinstance(claim, IdempotencyClaim)

    def away(*_: object) -> None:
        raise BlobsUnavailable("no answer")

    with monkeypatch.context() as patch:
        patch.setattr(service.journal, "write_spec", away)
        with pytest.raises(BlobsUnavailable):
            submit(1, idempotency=claim.with_fingerprint("f"))
    assert blobs_of(service) == []
    assert service.store.page(JobFilter(None)).records == ()
    # The key can be used again at once.
    assert isinstance(service.idempotency.begin("acme", "k"), IdempotencyClaim)


def test_a_store_that_is_away_leaves_nothing(
    service: JobService, submit: Submit, settings: Settings, wakeups: ListWakeups
) -> None:
    nowhere = settings.model_copy(update={"redis_url": "unix:///nowhere/redis.sock"})
    with open_service(nowhere, wakeups=wakeups) as lonely:
        assert lonely.check()["store"] != "ok"
        made = _draft_with_input(lonely)
        with pytest.raises(StoreUnavailable) as caught:
            lonely.submit(made)
        assert caught.value.retry_after_seconds > 0
        assert blobs_of(lonely) == []
    assert wakeups.sent == []
    assert service.check() == {"store": "ok", "blobs": "ok"}


def _draft_with_input(service: JobService, **changes: Any) -> JobDraft:
    from datetime import UTC, datetime

    from jobs import JobSpec, Parameters

    job_id = new_job_id()
    ref = service.journal.write_input("acme", job_id, b"picture", "image/png")
    spec = JobSpec(ref, Parameters(), "1")
    return JobDraft(job_id, "acme", spec, datetime.now(UTC), **changes)


def test_a_job_whose_submission_seemed_to_fail_is_withdrawn(
    service: JobService, wakeups: ListWakeups, monkeypatch: pytest.MonkeyPatch, age: Any
) -> None:
    """The record was made, but the reply was lost: the client was told 503."""
    claim = service.idempotency.begin("acme", "k")
    assert isinstance(claim, IdempotencyClaim)
    made = _draft_with_input(service, idempotency=claim.with_fingerprint("f"))
    create = service.store.create

    def lose_the_reply(*args: Any, **options: Any) -> None:
        create(*args, **options)
        raise StoreUnavailable("connection reset")

    with monkeypatch.context() as patch:
        patch.setattr(service.store, "create", lose_the_reply)
        with pytest.raises(StoreUnavailable):
            service.submit(made)
    assert blobs_of(service) == []
    # The same key again: no answer from the half-made job.
    replay = service.idempotency.begin("acme", "k")
    assert isinstance(replay, Replay)
    with pytest.raises(StoreUnavailable):
        service.replay("acme", replay, "f")
    assert isinstance(service.idempotency.begin("acme", "k"), IdempotencyClaim)
    with pytest.raises(NotFound):
        service.get("acme", made.id)
    assert wakeups.sent == []


def test_the_reaper_withdraws_what_nobody_asks_for(
    service: JobService, wakeups: ListWakeups, age: Callable[..., None]
) -> None:
    made = _draft_with_input(service)
    service.store.create(made, submission="s")
    age("unpublished", made.id, 10)
    assert service.reaper.run_once().withdrawn == 1
    assert wakeups.sent == []
    with pytest.raises(NotFound):
        service.store.get(made.id)
    assert service.counters()["jobs_withdrawn"] == 1


def test_a_half_made_job_answers_for_no_equal_one(
    service: JobService, submit: Submit, draft: Draft
) -> None:
    service.store.create(draft(b"same"), submission="s")
    with pytest.raises(StoreUnavailable):
        submit(b"same")
    assert submit(b"same").created


class Stuck:
    """A service whose `create` waits for its reply until `fail` is called.

    Args:
        service: its own, not shared with other submitters.
        error: how the wait ends.
        made: whether Redis has done what it was asked.
    """

    def __init__(self, service: JobService, error: Exception, *, made: bool) -> None:
        self._create, self._error, self._made = service.store.create, error, made
        self._asked, self._over = threading.Event(), threading.Event()
        service.store.create = self._wait  # type: ignore[method-assign]

    def _wait(self, *args: Any, **options: Any) -> Any:
        if self._made:
            self._create(*args, **options)
        self._asked.set()
        assert self._over.wait(60)
        raise self._error

    @contextmanager
    def submitting(self, service: JobService, draft: JobDraft) -> Iterator[None]:
        """Submit in a thread; the block runs while it waits, then the submission fails."""

        def submit() -> None:
            with pytest.raises(type(self._error)):
                service.submit(draft)

        with ThreadPoolExecutor(1) as pool:
            done = pool.submit(submit)
            assert self._asked.wait(60)
            try:
                yield
            finally:
                self._over.set()
            done.result()


@pytest.fixture
def other(settings: Settings, wakeups: ListWakeups, service: JobService) -> Iterator[JobService]:
    """Another process of the same service."""
    with open_service(settings, wakeups=wakeups) as found:
        yield found


LOST = StoreUnavailable("no reply")
FULL = QuotaExceeded("active_jobs", 1, 1, 5.0)


@pytest.mark.parametrize(
    ("error", "made", "chosen"),
    [(LOST, True, True), (LOST, True, False), (LOST, False, True), (FULL, False, True)],
)
def test_nobody_answers_for_a_job_that_may_be_taken_back(
    service: JobService,
    other: JobService,
    submit: Submit,
    draft: Draft,
    wakeups: ListWakeups,
    age: Callable[..., None],
    error: Exception,
    made: bool,
    chosen: bool,
) -> None:
    """One request waits for Redis; meanwhile the same comes again, or an equal picture."""
    named = {"id": str(uuid.uuid4()), "deduplicate": False} if chosen else {}
    first = draft(b"same", **named)
    ref = other.journal.write_input("acme", first.id, b"same", "image/png")
    first = replace(first, spec=replace(first.spec, input=ref))
    with Stuck(other, error, made=made).submitting(other, first):
        with pytest.raises(StoreUnavailable, match="still being submitted"):
            submit(b"same", **named)
        if made:
            # The reaper sends no wake-up for it either.
            age("unpublished", first.id, 10)
            done = service.reaper.run_once()
            assert (done.published, done.withdrawn) == (0, 0)
    if made:
        with pytest.raises(StoreUnavailable, match="withdrawn"):
            submit(b"same", **named)
    assert blobs_of(service) == []
    answer = submit(b"same", **named)
    assert answer.created
    assert wakeups.ids == [answer.record.id]
    assert service.blobs.get(answer.record.spec.input.key) == b"same"
    assert service.journal.read_spec("acme", answer.record.id).id == answer.record.id


def test_a_job_that_another_may_have_answered_for_is_left(
    service: JobService,
    other: JobService,
    submit: Submit,
    draft: Draft,
    wakeups: ListWakeups,
    age: Callable[..., None],
    settle: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A submission that took longer than anybody waits for takes nothing back."""
    named: dict[str, Any] = {"id": str(uuid.uuid4()), "deduplicate": False}
    first = draft(b"same", **named)
    ref = other.journal.write_input("acme", first.id, b"same", "image/png")
    first = replace(first, spec=replace(first.spec, input=ref))
    monkeypatch.setattr("jobs.standing.TAKE_BACK_TIMEOUTS", 0.0)
    with Stuck(other, LOST, made=True).submitting(other, first):
        settle(first.id)
        answer = submit(b"same", **named)
        assert (answer.replayed, answer.record.id) == (True, first.id)
    assert service.blobs.get(ref.key) == b"same"
    age("unpublished", first.id, 10)
    assert service.reaper.run_once().published == 1
    assert wakeups.ids == [first.id]


def test_a_job_that_no_worker_could_be_woken_for_answers_at_once(
    service: JobService, submit: Submit, wakeups: ListWakeups
) -> None:
    wakeups.broken = True
    first = submit(b"same")
    again = submit(b"same")
    assert (again.deduplicated, again.record.id) == (True, first.record.id)


def test_a_spec_that_was_written_before_its_reply_was_lost_is_ours(
    service: JobService, blobs: FileBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The storage's client repeats the request, and is told that the key is taken."""
    put = blobs.put

    def put_twice(key: str, data: Any, **options: Any) -> Any:
        if key.endswith("spec.json"):
            put(key, data, **options)
        return put(key, data, **options)

    def away(*_: object, **__: object) -> None:
        raise StoreUnavailable("no answer")

    monkeypatch.setattr(blobs, "put", put_twice)
    with monkeypatch.context() as patch:
        patch.setattr(service.store, "create", away)
        with pytest.raises(StoreUnavailable, match="no answer"):
            service.submit(_draft_with_input(service))
    assert blobs_of(service) == []
    made = _draft_with_input(service)
    assert service.submit(made).created
    assert service.blobs.get(made.spec.input.key) == b"picture"


def test_others_jobs_are_not_there(service: JobService, submit: Submit) -> None:
    job_id = submit().record.id
    assert service.get("acme", job_id).id == service.get(None, job_id).id == job_id
    for use in (service.get, service.cancel, service.finish, service.retry, service.delete):
        with pytest.raises(NotFound):
            use("other", job_id)
    assert service.get("acme", job_id).state is State.QUEUED


def test_idempotency_keys(service: JobService, submit: Submit) -> None:
    claim = service.idempotency.begin("acme", "key-1")
    assert isinstance(claim, IdempotencyClaim)
    with pytest.raises(IdempotencyInFlight) as caught:
        service.idempotency.begin("acme", "key-1")
    assert 1 <= caught.value.retry_after_seconds <= 120
    assert isinstance(service.idempotency.begin("other", "key-1"), IdempotencyClaim)
    record = submit(1, idempotency=claim.with_fingerprint("f1")).record
    replay = service.idempotency.begin("acme", "key-1")
    assert replay == Replay(record.id, "f1")
    assert service.replay("acme", replay, "f1").id == record.id
    with pytest.raises(IdempotencyMismatch):
        service.replay("acme", replay, "f2")
    # A key that is bound stays bound.
    service.idempotency.abandon(claim)
    assert isinstance(service.idempotency.begin("acme", "key-1"), Replay)
    # A deleted job does not answer any more.
    service.cancel("acme", record.id)
    service.delete("acme", record.id)
    assert isinstance(service.idempotency.begin("acme", "key-1"), IdempotencyClaim)


def test_an_abandoned_key_is_free_again(service: JobService) -> None:
    claim = service.idempotency.begin("acme", "k")
    assert isinstance(claim, IdempotencyClaim)
    stranger = IdempotencyClaim("acme", claim.digest, "another nonce")
    service.idempotency.abandon(stranger)
    with pytest.raises(IdempotencyInFlight):
        service.idempotency.begin("acme", "k")
    service.idempotency.abandon(claim)
    assert isinstance(service.idempotency.begin("acme", "k"), IdempotencyClaim)


def test_a_lapsed_key_that_another_request_took_is_refused(
    service: JobService, submit: Submit
) -> None:
    slow = service.idempotency.begin("acme", "k")
    assert isinstance(slow, IdempotencyClaim)
    service.idempotency.abandon(slow)  # as if its time had run out
    quick = service.idempotency.begin("acme", "k")
    assert isinstance(quick, IdempotencyClaim)
    with pytest.raises(IdempotencyInFlight):
        submit(1, idempotency=slow.with_fingerprint("f"))
    first = submit(1, idempotency=quick.with_fingerprint("f")).record
    late = submit(1, idempotency=slow.with_fingerprint("f"), deduplicate=False)
    assert (late.replayed, late.record.id) == (True, first.id)
    with pytest.raises(IdempotencyMismatch):
        submit(2, idempotency=slow.with_fingerprint("other"))


def test_a_duplicate_answers_an_idempotency_key(service: JobService, submit: Submit) -> None:
    first = submit(1).record
    claim = service.idempotency.begin("acme", "k")
    assert isinstance(claim, IdempotencyClaim)
    assert submit(1, idempotency=claim.with_fingerprint("f")).deduplicated
    assert service.idempotency.begin("acme", "k") == Replay(first.id, "f")


@pytest.mark.parametrize("key", ["", " ", "a b", "é", "a\n", "x" * 256])
def test_bad_idempotency_keys(service: JobService, key: str) -> None:
    with pytest.raises(Invalid, match="idempotency key"):
        service.idempotency.begin("acme", key)


def test_delete_takes_everything(service: JobService, submit: Submit) -> None:
    record = submit().record
    lease = service.store.claim(record.id, worker="w").lease
    with pytest.raises(WrongState):
        service.delete("acme", record.id)
    service.journal.save_checkpoint("acme", lease, b"half")
    service.journal.write_result("acme", lease, b"out")
    service.store.fail(lease, Failure("x", "y"))
    service.delete("acme", record.id)
    assert blobs_of(service) == []
    with pytest.raises(NotFound):
        service.get("acme", record.id)
    with pytest.raises(NotFound):
        service.delete("acme", record.id)


def test_a_deletion_that_broke_off_is_ended_by_the_reaper(
    service: JobService, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = submit().record

    def away(*_: object) -> int:
        raise BlobsUnavailable("no answer")

    with monkeypatch.context() as patch:
        patch.setattr(service.journal, "delete_job", away)
        with pytest.raises(BlobsUnavailable):
            service.delete("acme", record.id)
        with pytest.raises(NotFound):
            service.get("acme", record.id)
        assert service.reaper.run_once().skipped == 1
    assert blobs_of(service) != []
    assert service.reaper.run_once().deleted == 1
    assert blobs_of(service) == []
    assert service.database.client.zcard(service.database.key("trash")) == 0


def test_old_jobs_expire(service: JobService, submit: Submit, age: Callable[..., None]) -> None:
    old, young, waiting = (submit(number).record.id for number in range(3))
    service.cancel("acme", old)
    service.cancel("acme", young)
    age("finished", old, 30 * 86_400 + 1)
    age("finished", young, 29 * 86_400)
    assert service.reaper.run_once().expired == 1
    with pytest.raises(NotFound):
        service.get("acme", old)
    assert service.get("acme", young).state is State.CANCELLED
    assert service.get("acme", waiting).state is State.QUEUED


def test_retention_of_nought_keeps_for_ever(
    settings: Settings, wakeups: ListWakeups, service: JobService, submit: Submit, age: Any
) -> None:
    job_id = submit().record.id
    service.cancel("acme", job_id)
    age("finished", job_id, 3650 * 86_400)
    patient = settings.model_copy(update={"retention_days": 0.0})
    with open_service(patient, wakeups=wakeups) as other:
        assert other.reaper.run_once().expired == 0
    assert service.get("acme", job_id).id == job_id


def test_vanished_messages_are_sent_again_and_healthy_ones_left_alone(
    service: JobService, submit: Submit, wakeups: ListWakeups, age: Callable[..., None]
) -> None:
    ids = [submit(number).record.id for number in range(5)]
    for job_id in ids:
        age("published", job_id, 3600)
    assert service.reaper.run_once().published == 0
    del wakeups.sent[3:]
    assert service.reaper.run_once().published == 2
    assert len(wakeups.sent) == 5
    # A broker that cannot count: every old message is sent again, once.
    wakeups.countable = False
    for job_id in ids:
        service.database.client.zadd(service.database.key("published"), {job_id: 1})
    assert service.reaper.run_once().published == 5
    assert service.reaper.run_once().published == 0


def test_a_paused_queue_is_published_after_it_resumes(
    service: JobService, submit: Submit, wakeups: ListWakeups, age: Callable[..., None]
) -> None:
    from jobs import ClaimRefused

    job_id = submit().record.id
    service.queues.pause("encode")
    wakeups.sent.clear()
    with pytest.raises(ClaimRefused):
        service.store.claim(job_id, worker="w")
    age("unpublished", job_id, 60)
    assert service.reaper.run_once().published == 0
    service.queues.resume("encode")
    assert service.reaper.run_once().published == 1


def test_reapers_at_the_same_time_do_nothing_twice(
    service: JobService, submit: Submit, expire: Callable[[str], None]
) -> None:
    ids = [submit(number).record.id for number in range(30)]
    for job_id in ids:
        service.store.claim(job_id, worker="w")
        expire(job_id)
    done = []
    threads = [
        threading.Thread(target=lambda: done.append(service.reaper.run_once())) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(each.requeued for each in done) == 30
    assert {service.store.get(job_id).strikes for job_id in ids} == {1}


def test_a_reaper_without_redis_says_so(settings: Settings, wakeups: ListWakeups) -> None:
    nowhere = settings.model_copy(update={"redis_url": "unix:///nowhere/redis.sock"})
    with open_service(nowhere, wakeups=wakeups) as service, pytest.raises(StoreUnavailable):
        service.reaper.run_once()


def test_uploads(service: JobService, draft: Draft, blobs: FileBlobs) -> None:
    data = b"a large picture"
    sha = hashlib.sha256(data).hexdigest()
    upload, put = service.uploads.create(
        "acme", size=len(data), media_type="image/png", sha256=sha.upper(), filename="a.png"
    )
    assert put.url.startswith("http://nif.test/v1/blobs/")
    grant = blobs.verify(put.url.rpartition("/")[2], "PUT")
    assert (grant.key, grant.size, grant.media_type) == (upload.key, len(data), "image/png")
    assert service.uploads.get("acme", upload.id) == upload
    with pytest.raises(NotFound):
        service.uploads.get("other", upload.id)
    job_id = new_job_id()
    with pytest.raises(BlobNotFound):
        service.adopt_upload(upload, job_id)
    blobs.put(grant.key, data, media_type="image/png")
    with pytest.raises(NotFound):
        service.uploads.take("other", upload.id, job_id)
    taken = service.uploads.take("acme", upload.id, job_id)
    assert taken.used_by == job_id
    assert service.uploads.take("acme", upload.id, job_id) == taken
    with pytest.raises(WrongState):
        service.uploads.take("acme", upload.id, new_job_id())
    ref = service.adopt_upload(taken, job_id)
    assert (ref.size, ref.sha256, ref.media_type) == (len(data), sha, "image/png")
    assert blobs.get(ref.key) == data
    service.uploads.give_back(taken, job_id)
    assert service.uploads.get("acme", upload.id).used_by is None
    service.uploads.drop("acme", upload.id)
    assert not blobs.exists(upload.key)
    assert blobs.get(ref.key) == data
    with pytest.raises(NotFound):
        service.uploads.drop("acme", upload.id)


@pytest.mark.parametrize("what", ["size", "sha256"])
def test_an_upload_that_is_not_what_was_declared(
    service: JobService, blobs: FileBlobs, what: str
) -> None:
    sha = hashlib.sha256(b"declared").hexdigest()
    upload, _ = service.uploads.create("acme", size=8, media_type="image/png", sha256=sha)
    blobs.put(upload.key, b"tampered" if what == "sha256" else b"declared and more")
    with pytest.raises(BlobDamaged):
        service.adopt_upload(upload, new_job_id())
    assert blobs_of(service) == [upload.key]


def test_uploads_end(service: JobService, blobs: FileBlobs, age: Callable[..., None]) -> None:
    upload, _ = service.uploads.create("acme", size=1, media_type="image/png")
    used, _ = service.uploads.create("acme", size=1, media_type="image/png")
    fresh, _ = service.uploads.create("acme", size=1, media_type="image/png")
    blobs.put(upload.key, b"x")
    service.uploads.take("acme", used.id, new_job_id())
    key = service.database.key
    for each in (upload, used):
        service.database.client.hset(key("upload", each.id), "expires", "1")
        age("uploads", each.id, 86_400)
    with pytest.raises(NotFound):
        service.uploads.get("acme", upload.id)
    with pytest.raises(NotFound):
        service.uploads.take("acme", upload.id, new_job_id())
    assert service.reaper.run_once().uploads == 2
    assert not blobs.exists(upload.key)
    assert service.uploads.get("acme", fresh.id) == fresh


@pytest.mark.parametrize(
    "values", [{"size": 0}, {"sha256": "0" * 63}, {"sha256": "g" * 64}, {"media_type": "png"}]
)
def test_bad_uploads(service: JobService, values: dict[str, Any]) -> None:
    with pytest.raises(Invalid):
        service.uploads.create("acme", **({"size": 1, "media_type": "image/png"} | values))


def test_open_service_needs_a_redis(wakeups: ListWakeups) -> None:
    with pytest.raises(Invalid, match="NIF_REDIS_URL"):
        open_service(load_settings(), wakeups=wakeups)
