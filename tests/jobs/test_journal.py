"""The journal tells everything, and Redis comes back from it."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from jobs import (
    BlobExists,
    BlobNotFound,
    BlobsUnavailable,
    ClaimRefused,
    Failure,
    FileBlobs,
    IdempotencyClaim,
    Invalid,
    JobFilter,
    JobRecord,
    JobService,
    Lease,
    NotFound,
    Outcome,
    Parameters,
    Progress,
    Reconciled,
    Replay,
    Scope,
    StaleLease,
    State,
    reconcile,
)
from jobs.blobs import chunks_of
from tests.jobs.wakeups import ListWakeups

Submit = Callable[..., Any]


def succeed(service: JobService, lease: Lease, data: bytes = b"out") -> None:
    """Hand a result in as a worker does."""
    ref = service.journal.write_result("acme", lease, data)
    outcome = Outcome(State.SUCCEEDED, ref, {"bpp": 0.25, "psnr_db": float("inf")})
    service.journal.write_outcome("acme", lease, outcome)
    assert outcome.report is not None
    service.store.succeed(lease, ref, outcome.report)


def test_checkpoints_replace_one_another(service: JobService) -> None:
    journal = service.journal
    first, second = Lease("j", 1, "a", "w"), Lease("j", 2, "b", "w")
    assert journal.load_checkpoint("acme", "j") is None
    for number in range(3):
        journal.save_checkpoint("acme", first, b"first %d" % number)
    assert journal.load_checkpoint("acme", "j") == b"first 2"
    assert len(service.blobs.list("acme/jobs/j/checkpoints/").items) == 1
    journal.save_checkpoint("acme", second, b"second")
    # One who does not know yet that its lease is gone does no harm.
    journal.save_checkpoint("acme", first, b"late")
    assert journal.load_checkpoint("acme", "j") == b"second"


def test_results_and_outcomes_are_written_once(service: JobService) -> None:
    journal, lease = service.journal, Lease("j", 2, "n", "w")
    ref = journal.write_result("acme", lease, b"out")
    assert ref.key == journal.out_key("acme", "j", 2) == "acme/jobs/j/attempts/2/out.nif"
    assert journal.write_result("acme", lease, b"out") == ref
    with pytest.raises(BlobExists):
        journal.write_result("acme", lease, b"other")
    outcome = Outcome(State.SUCCEEDED, ref, {"bpp": 1.0})
    journal.write_outcome("acme", lease, outcome)
    journal.write_outcome("acme", lease, outcome)
    with pytest.raises(BlobExists):
        journal.write_outcome("acme", lease, Outcome(State.FAILED, failure=Failure("x", "y")))


def test_a_result_that_could_not_be_handed_in_is_found(service: JobService) -> None:
    journal = service.journal
    assert journal.finished("acme", "j") is None
    journal.write_outcome("acme", Lease("j", 1, "n", "w"), Outcome(State.FAILED))
    assert journal.finished("acme", "j") is None
    lease = Lease("j", 2, "n", "w")
    ref = journal.write_result("acme", lease, b"out")
    assert journal.finished("acme", "j") is None
    journal.write_outcome("acme", lease, Outcome(State.SUCCEEDED, ref, {"bpp": 1.0}))
    found = journal.finished("acme", "j")
    assert found is not None
    assert (found.result, found.report) == (ref, {"bpp": 1.0})
    service.blobs.delete(ref.key)
    assert journal.finished("acme", "j") is None


@pytest.mark.parametrize("damage", [{}, {"schema": 2}, {"schema": 1}, {"schema": 1, "state": "x"}])
def test_a_damaged_outcome_is_refused(damage: dict[str, Any]) -> None:
    with pytest.raises(Invalid):
        Outcome.from_dict(damage)


def lives(service: JobService, submit: Submit, expire: Callable[[str], None]) -> dict[str, str]:
    """Make a job of every kind; return their ids."""
    ids = {}

    def begun(number: int, name: str, **options: Any) -> Lease:
        ids[name] = submit(number, **options).record.id
        return service.store.claim(ids[name], worker="w").lease

    ids["queued"] = submit(
        1, priority=9, metadata={"a": "b"}, webhook="https://x.test", batch="bat_1",
        parameters=Parameters(effort=2, bpp=0.5),
    ).record.id  # fmt: skip
    running = begun(2, "running")
    service.store.progress(running, Progress("fit"))
    service.journal.save_checkpoint("acme", running, b"half")
    succeed(service, begun(3, "succeeded"), b"result three")
    failed = begun(4, "failed")
    failure = Failure("not_an_image", "this is no picture")
    service.journal.write_outcome("acme", failed, Outcome(State.FAILED, failure=failure))
    service.store.fail(failed, failure)
    ids["cancelled"] = submit(5).record.id
    service.cancel("acme", ids["cancelled"])
    stopped = begun(6, "stopped")
    service.cancel("acme", ids["stopped"])
    service.store.cancelled(stopped)
    poisoned = begun(7, "poisoned")
    for turn in range(3):
        if turn:
            poisoned = service.store.claim(ids["poisoned"], worker="w").lease
        expire(poisoned.job_id)
        service.reaper.run_once()
    retried = begun(8, "retried")
    service.journal.write_outcome("acme", retried, Outcome(State.FAILED, failure=failure))
    service.store.fail(retried, failure)
    service.retry("acme", ids["retried"])
    lost = begun(9, "lost")  # its worker stored the result, then died
    ref = service.journal.write_result("acme", lost, b"result nine")
    outcome = Outcome(State.SUCCEEDED, ref, {"bpp": 1.0})
    service.journal.write_outcome("acme", lost, outcome)
    again = begun(10, "again")
    service.journal.write_outcome("acme", again, Outcome(State.FAILED, failure=failure))
    service.store.fail(again, failure)
    service.retry("acme", ids["again"])
    service.cancel("acme", ids["again"])
    service.retry("acme", ids["again"])
    succeed(service, service.store.claim(ids["again"], worker="w").lease, b"result ten")
    gone = submit(11).record.id
    service.cancel("acme", gone)
    service.delete("acme", gone)
    service.reaper.run_once()  # what ended by itself reaches the journal
    return ids


def test_after_a_flush_everything_comes_back(
    service: JobService, submit: Submit, expire: Callable[[str], None], wakeups: ListWakeups,
    age: Callable[..., None],
) -> None:  # fmt: skip
    ids = lives(service, submit, expire)
    before = {name: service.store.get(job_id) for name, job_id in ids.items()}
    service.database.client.flushall()
    wakeups.sent.clear()

    done = reconcile(service)
    assert done == Reconciled(jobs=10, imported=10, queued=3, succeeded=3, failed=2, cancelled=2)
    assert reconcile(service) == Reconciled(jobs=10)

    wanted = {name: record.state for name, record in before.items()} | {
        "running": State.QUEUED,
        "lost": State.SUCCEEDED,
    }
    for name, job_id in ids.items():
        old, new = before[name], service.store.get(job_id)
        assert new.state is wanted[name], name
        for field in ("id", "tenant", "spec", "priority", "metadata", "webhook", "batch"):
            assert getattr(new, field) == getattr(old, field), (name, field)
        assert abs(new.created_at - old.created_at) < timedelta(seconds=5)
        assert new.version > old.version
        if new.state is old.state:
            assert new.failure == old.failure
            assert new.result == old.result
            assert new.report == old.report
    lost = service.store.get(ids["lost"])
    assert lost.result is not None
    assert service.blobs.get(lost.result.key) == b"result nine"
    assert service.store.get(ids["poisoned"]).failure == before["poisoned"].failure

    # Newest first as before, and the queue moves again.
    records = service.list(JobFilter("acme")).records
    assert [record.id for record in records] == list(ids.values())[::-1]
    waiting = [ids[name] for name in ("queued", "running", "retried")]
    for job_id in waiting:
        age("unpublished", job_id, 60)
    assert service.reaper.run_once().published == 3
    assert sorted(wakeups.ids) == sorted(waiting)
    claim = service.store.claim(ids["running"], worker="w2")
    assert service.journal.load_checkpoint("acme", ids["running"]) == b"half"
    assert claim.lease.attempt > 1
    succeed(service, claim.lease)


def test_a_worker_from_before_the_flush_is_stale(service: JobService, submit: Submit) -> None:
    lease = service.store.claim(submit().record.id, worker="w").lease
    service.database.client.flushall()
    with pytest.raises(StaleLease):
        service.store.renew(lease)
    reconcile(service)
    with pytest.raises(StaleLease):
        service.store.renew(lease)
    new = service.store.claim(lease.job_id, worker="w").lease
    assert new.attempt > lease.attempt
    with pytest.raises(StaleLease):
        service.store.fail(lease, Failure("x", "y"))


def test_no_attempt_number_is_given_twice(service: JobService, submit: Submit) -> None:
    """Not even to attempts that left no trace, over several rebuilds."""
    job_id = submit().record.id
    numbers = []
    for _ in range(3):
        for _ in range(2):
            lease = service.store.claim(job_id, worker="w").lease
            numbers.append(lease.attempt)
            service.store.release(lease, reason="stopping")
        service.database.client.flushall()
        reconcile(service)
    assert numbers == [1, 2, 1001, 1002, 2001, 2002]
    assert reconcile(service).imported == 0
    assert len(service.blobs.list("_system/rebuilds/").items) == 3


def test_keys_come_back_revoked_ones_too(service: JobService) -> None:
    key, secret = service.keys.create("acme", [Scope.JOBS_READ], name="reader")
    bad, revoked = service.keys.create("acme", [Scope.ADMIN])
    service.keys.revoke(bad.id)
    service.database.client.flushall()
    assert service.keys.verify(secret) is None
    assert reconcile(service).keys == 2
    found = service.keys.verify(secret)
    assert found is not None
    assert (found.id, found.scopes, found.name) == (key.id, key.scopes, "reader")
    assert service.keys.verify(revoked) is None
    assert reconcile(service).keys == 0


def test_idempotency_and_deduplication_come_back(service: JobService, submit: Submit) -> None:
    claim = service.idempotency.begin("acme", "k")
    assert isinstance(claim, IdempotencyClaim)
    job_id = submit(1, idempotency=claim.with_fingerprint("f")).record.id
    service.database.client.flushall()
    reconcile(service)
    assert service.idempotency.begin("acme", "k") == Replay(job_id, "f")
    assert submit(1).record.id == job_id


def test_a_backup_that_is_too_old_is_brought_forward(service: JobService, submit: Submit) -> None:
    """Redis says queued, the journal knows the result."""
    client, key = service.database.client, service.database.key
    record = submit().record
    saved = client.hgetall(key("job", record.id))
    score = client.zscore(key("queue", "encode"), record.id)
    order = client.zscore(key("jobs"), record.id)
    succeed(service, service.store.claim(record.id, worker="w").lease)
    # Put the record and its indexes back to where they were.
    client.delete(key("job", record.id))
    client.hset(key("job", record.id), mapping=saved)
    for scope in ("jobs", "tenant:acme:jobs"):
        client.zrem(key(f"{scope}:succeeded"), record.id)
        client.zadd(key(f"{scope}:queued"), {record.id: order})
    client.zrem(key("finished"), record.id)
    client.zadd(key("queue", "encode"), {record.id: score})
    assert service.store.get(record.id).state is State.QUEUED
    done = reconcile(service)
    assert (done.advanced, done.imported, done.succeeded) == (1, 0, 1)
    found = service.store.get(record.id)
    assert found.state is State.SUCCEEDED
    assert service.store.counts()[State.QUEUED] == 0
    assert service.store.position(record.id) is None
    with pytest.raises(ClaimRefused):
        service.store.claim(record.id, worker="w")


def test_what_is_running_is_left_alone(service: JobService, submit: Submit) -> None:
    lease = service.store.claim(submit().record.id, worker="w").lease
    assert reconcile(service).imported == 0
    service.store.renew(lease)


def test_blobs_without_a_job_go_after_an_hour(
    service: JobService, submit: Submit, blobs: FileBlobs, tmp_path: Path
) -> None:
    kept = submit().record
    orphan = service.journal.write_input("acme", "job_x", b"orphan", "image/png")
    assert reconcile(service).garbage == 0
    old = time.time() - 7200
    for path in (tmp_path / "blobs" / "objects").rglob("*@"):
        os.utime(path, (old, old))
    assert reconcile(service).garbage == 1
    assert not blobs.exists(orphan.key)
    assert blobs.exists(kept.spec.input.key)


def test_a_journal_that_cannot_be_read_is_counted_and_left(
    service: JobService, submit: Submit, blobs: FileBlobs
) -> None:
    good = submit(1).record.id
    blobs.put("acme/jobs/job_bad/spec.json", b"{not json")
    blobs.put("acme/jobs/job_odd/spec.json", b'{"schema": 9}')
    service.database.client.flushall()
    done = reconcile(service)
    assert (done.jobs, done.imported, done.unreadable) == (3, 1, 2)
    assert service.store.get(good).state is State.QUEUED
    assert blobs.exists("acme/jobs/job_bad/spec.json")


def test_changes_that_the_journal_missed_are_written_later(
    service: JobService, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = submit().record

    def away(*_: object) -> None:
        raise BlobsUnavailable("no answer")

    with monkeypatch.context() as patch:
        patch.setattr(service.journal, "write_change", away)
        assert service.cancel("acme", record.id).state is State.CANCELLED
        service.retry("acme", record.id)
        service.cancel("acme", record.id)
    assert service.journal.history("acme", record.id).state is State.QUEUED
    assert service.reaper.run_once().journalled == 1
    assert service.journal.history("acme", record.id).state is State.CANCELLED
    assert service.reaper.run_once().journalled == 0
    service.database.client.flushall()
    reconcile(service)
    assert service.store.get(record.id).state is State.CANCELLED


def test_a_change_that_came_while_another_was_written_is_written_too(
    service: JobService, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = submit().record
    write = service.journal.write_change

    def write_slowly(seen: JobRecord) -> None:
        service.store.retry(seen.id)
        write(seen)

    with monkeypatch.context() as patch:
        patch.setattr(service.journal, "write_change", write_slowly)
        service.cancel("acme", record.id)
    assert service.journal.history("acme", record.id).state is State.CANCELLED
    assert service.reaper.run_once().journalled == 1
    assert service.journal.history("acme", record.id).state is State.QUEUED


def test_a_retry_that_is_running_already_is_journalled_as_queued(
    service: JobService, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = submit().record
    service.cancel("acme", record.id)
    with monkeypatch.context() as patch:
        patch.setattr(service, "write_changes", lambda job_id: False)
        service.retry("acme", record.id)
    service.store.claim(record.id, worker="w")
    service.reaper.run_once()
    service.database.client.flushall()
    reconcile(service)
    assert service.store.get(record.id).state is State.QUEUED


def test_an_input_that_was_stored_before_its_reply_was_lost_is_taken(
    service: JobService, blobs: FileBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The storage's client repeats the request, and is told that the key is taken."""
    put = blobs.put
    changed = b""

    def put_twice(key: str, data: Any, **options: Any) -> Any:
        whole = b"".join(chunks_of(data))
        put(key, changed or whole, **options)
        return put(key, whole, **options)

    monkeypatch.setattr(blobs, "put", put_twice)
    for number, data in enumerate((b"picture", io.BytesIO(b"picture"), iter([b"pic", b"ture"]))):
        ref = service.journal.write_input("acme", f"job_{number}", data, "image/png")
        assert blobs.get(ref.key) == b"picture"
        assert (ref.size, ref.media_type) == (7, "image/png")
        assert [info.key for info in blobs.list(f"acme/jobs/job_{number}/").items] == [ref.key]
    changed = b"another"
    with pytest.raises(BlobExists):
        service.journal.write_input("acme", "job_x", b"picture", "image/png")


def test_specs_can_be_read_and_taken_back(service: JobService, submit: Submit) -> None:
    record = submit().record
    written = service.journal.spec_written("acme", record.id)
    assert written is not None
    assert abs(datetime.now(UTC) - written) < timedelta(minutes=1)
    assert service.journal.spec_written("other", record.id) is None
    service.journal.remove_spec("acme", record.id)
    with pytest.raises(BlobNotFound):
        service.journal.read_spec("acme", record.id)
    service.database.client.flushall()
    reconcile(service)
    with pytest.raises(NotFound):
        service.store.get(record.id)
