"""Random lives of jobs, on a real Redis and a real journal, against a model in plain Python.

The model knows nothing of scripts, indexes and keys: it is a dictionary of jobs and a few rules.
In between Redis is killed (nothing may change by that), and emptied and rebuilt from the journal
(no accepted job, no result and no decision may be lost).
"""

from __future__ import annotations

import hashlib
import itertools
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from jobs import (
    BlobRef,
    ClaimRefused,
    Failure,
    JobDraft,
    JobFilter,
    JobService,
    JobSpec,
    Lease,
    NotFound,
    Orders,
    Outcome,
    Parameters,
    Progress,
    RedisServer,
    StaleLease,
    State,
    WrongState,
    load_settings,
    new_job_id,
    open_service,
    reconcile,
)
from tests.jobs.wakeups import ListWakeups

MAX_ATTEMPTS = 3
WORKERS = ["w1", "w2", "w3"]


@dataclass
class Model:
    """What a job should be."""

    id: str
    tenant: str
    content: int
    priority: int
    place: int
    webhook: bool
    state: State = State.QUEUED
    attempt: int = 0
    strikes: int = 0
    cancel: bool = False
    finish: bool = False
    lease: Lease | None = None
    last: tuple[Lease, str] | None = None  # who ended the attempt, and how
    result: bytes | None = None
    events: list[str] = field(default_factory=lambda: ["job.queued"])
    told: int = 0

    @property
    def work(self) -> tuple[str, int, bool]:
        return self.tenant, self.content, self.webhook

    @property
    def answers_for_equal_work(self) -> bool:
        fit = self.state in (State.QUEUED, State.RUNNING, State.SUCCEEDED)
        return fit and not self.cancel and not self.finish

    def to(self, state: State, event: str) -> None:
        self.state = state
        self.events.append(event)
        # A job's own webhook hears of its end.
        self.told += self.webhook and state.terminal


class Machine(RuleBasedStateMachine):
    """The rules. Class attributes are set by the test."""

    server: RedisServer
    folders: Iterator[Path]

    @initialize()
    def begin(self) -> None:
        self.wakeups = ListWakeups()
        self.settings = load_settings(
            redis_url=self.server.url, data_dir=next(self.folders), max_attempts=MAX_ATTEMPTS
        )
        self.service: JobService = open_service(self.settings, wakeups=self.wakeups)
        self.service.database.client.flushall()
        self.jobs: dict[str, Model] = {}
        self.latest: dict[tuple[str, int, bool], str] = {}  # the last queued of equal jobs
        self.leases: list[Lease] = []
        self.paused = False
        self.clock = itertools.count()

    def teardown(self) -> None:
        if hasattr(self, "service"):
            self.service.close()

    # Picking

    def pick(self, index: int) -> Model:
        return list(self.jobs.values())[index % len(self.jobs)]

    def pick_lease(self, index: int) -> Lease:
        # Old ones too, the newest most often.
        return self.leases[-1 - index % len(self.leases)]

    def holds(self, lease: Lease) -> bool:
        job = self.jobs.get(lease.job_id)
        return job is not None and job.state is State.RUNNING and job.lease == lease

    def give_up(self, job: Model, event: str, *, strike: bool) -> None:
        job.strikes += strike
        job.lease = None
        if job.cancel:
            job.to(State.CANCELLED, "job.cancelled")
        elif job.strikes >= MAX_ATTEMPTS:
            job.to(State.FAILED, "job.failed")
        else:
            job.to(State.QUEUED, event)

    # Clients

    @rule(
        content=st.integers(0, 2),
        tenant=st.sampled_from(["acme", "zeta"]),
        priority=st.sampled_from([0, 5, 9]),
        webhook=st.booleans(),
        broken=st.booleans(),
    )
    def submit(self, content: int, tenant: str, priority: int, webhook: bool, broken: bool) -> None:
        job_id = new_job_id()
        ref = self.service.journal.write_input(tenant, job_id, b"%d" % content, "image/png")
        spec = JobSpec(ref, Parameters(effort=1), "1")
        draft = JobDraft(
            job_id, tenant, spec, datetime.now(UTC), priority=priority,
            webhook="https://x.test" if webhook else None,
        )  # fmt: skip
        self.wakeups.broken = broken
        answer = self.service.submit(draft)
        self.wakeups.broken = False
        work = (tenant, content, webhook)
        latest = self.jobs.get(self.latest.get(work, ""))
        if latest is not None and latest.answers_for_equal_work:
            assert answer.deduplicated
            assert answer.record.id == latest.id
            assert not self.service.blobs.exists(ref.key)
        else:
            assert answer.created
            assert (job_id in self.wakeups.ids) is not broken
            self.jobs[job_id] = Model(job_id, tenant, content, priority, next(self.clock), webhook)
            self.latest[work] = job_id

    @precondition(lambda self: self.jobs)
    @rule(index=st.integers(0, 99))
    def cancel(self, index: int) -> None:
        job = self.pick(index)
        if job.state in (State.SUCCEEDED, State.FAILED):
            with pytest.raises(WrongState):
                self.service.cancel(job.tenant, job.id)
            return
        record = self.service.cancel(job.tenant, job.id)
        if job.state is State.QUEUED:
            job.cancel = True
            job.last = None
            job.to(State.CANCELLED, "job.cancelled")
        elif job.state is State.RUNNING and not job.cancel:
            job.cancel = True
            job.events.append("job.cancel_requested")
        assert record.state is job.state

    @precondition(lambda self: self.jobs)
    @rule(index=st.integers(0, 99))
    def finish(self, index: int) -> None:
        job = self.pick(index)
        if job.state is not State.RUNNING:
            with pytest.raises(WrongState):
                self.service.finish(job.tenant, job.id)
            return
        self.service.finish(job.tenant, job.id)
        if not job.finish:
            job.finish = True
            job.events.append("job.finish_requested")

    @precondition(lambda self: self.jobs)
    @rule(index=st.integers(0, 99))
    def retry(self, index: int) -> None:
        job = self.pick(index)
        if job.state not in (State.FAILED, State.CANCELLED):
            with pytest.raises(WrongState):
                self.service.retry(job.tenant, job.id)
            return
        self.service.retry(job.tenant, job.id)
        job.strikes, job.cancel, job.finish, job.last = 0, False, False, None
        job.place = next(self.clock)
        self.latest[job.work] = job.id
        job.to(State.QUEUED, "job.retried")

    @precondition(lambda self: self.jobs)
    @rule(index=st.integers(0, 99))
    def delete(self, index: int) -> None:
        job = self.pick(index)
        with pytest.raises(NotFound):
            self.service.delete("nobody", job.id)
        if job.state is State.RUNNING:
            with pytest.raises(WrongState):
                self.service.delete(job.tenant, job.id)
            return
        self.service.delete(job.tenant, job.id)
        del self.jobs[job.id]
        assert self.service.blobs.list(f"{job.tenant}/jobs/{job.id}/").items == ()

    @rule()
    def pause_or_resume(self) -> None:
        self.paused = not self.paused
        (self.service.queues.pause if self.paused else self.service.queues.resume)("encode")

    # Workers

    @precondition(lambda self: self.jobs)
    @rule(index=st.integers(0, 99), worker=st.sampled_from(WORKERS))
    def claim(self, index: int, worker: str) -> None:
        job = self.pick(index)
        if job.state is not State.QUEUED or self.paused:
            with pytest.raises(ClaimRefused) as caught:
                self.service.store.claim(job.id, worker=worker)
            wanted = "not_queued" if job.state is not State.QUEUED else "paused"
            assert caught.value.reason == wanted
            return
        claim = self.service.store.claim(job.id, worker=worker)
        # After a rebuild attempts may be left out, never used again.
        assert claim.lease.attempt > job.attempt
        job.attempt = claim.lease.attempt
        job.lease, job.last = claim.lease, None
        job.to(State.RUNNING, "job.running")
        self.leases.append(claim.lease)
        # A repeat is answered alike.
        assert self.service.store.claim(job.id, worker=worker, nonce=claim.lease.nonce) == claim

    @precondition(lambda self: self.leases)
    @rule(index=st.integers(0, 9), step=st.integers(0, 100))
    def renew_and_report(self, index: int, step: int) -> None:
        lease = self.pick_lease(index)
        store = self.service.store
        progress = Progress("fit", step, 100)
        if not self.holds(lease):
            for write in (lambda: store.renew(lease), lambda: store.progress(lease, progress)):
                with pytest.raises(StaleLease):
                    write()
            return
        job = self.jobs[lease.job_id]
        wanted = Orders(cancel=job.cancel, finish=job.finish)
        assert store.renew(lease) == wanted
        assert store.progress(lease, progress) == wanted
        assert store.get(job.id).progress == progress

    def end(self, lease: Lease, how: str, write: Callable[[], Any]) -> Model | None:
        """Make a worker's last write; return the job if it shall count."""
        if self.holds(lease):
            write()
            return self.jobs[lease.job_id]
        job = self.jobs.get(lease.job_id)
        if job is not None and job.last == (lease, how):
            before = self.service.store.get(job.id)
            assert write() == before
            return None
        with pytest.raises(StaleLease):
            write()
        return None

    @precondition(lambda self: self.leases)
    @rule(index=st.integers(0, 9))
    def succeed(self, index: int) -> None:
        lease = self.pick_lease(index)
        ref, data, report = BlobRef("acme/x", 1, "0" * 64, "a/b"), b"", {"complete": True}
        if self.holds(lease):
            job = self.jobs[lease.job_id]
            data, report = b"result %d" % lease.attempt, {"complete": not job.finish}
            ref = self.service.journal.write_result(job.tenant, lease, data)
            outcome = Outcome(State.SUCCEEDED, ref, report)
            self.service.journal.write_outcome(job.tenant, lease, outcome)
        ended = self.end(lease, "succeed", lambda: self.service.store.succeed(lease, ref, report))
        if ended is not None:
            ended.result, ended.lease, ended.last = data, None, (lease, "succeed")
            ended.to(State.SUCCEEDED, "job.succeeded")

    @precondition(lambda self: self.leases)
    @rule(index=st.integers(0, 9))
    def fail(self, index: int) -> None:
        lease = self.pick_lease(index)
        failure = Failure("bad_picture", "no picture")
        if self.holds(lease):
            self.service.journal.write_outcome(
                self.jobs[lease.job_id].tenant, lease, Outcome(State.FAILED, failure=failure)
            )
        ended = self.end(lease, "fail", lambda: self.service.store.fail(lease, failure))
        if ended is not None:
            ended.lease, ended.last = None, (lease, "fail")
            ended.to(State.FAILED, "job.failed")

    @precondition(lambda self: self.leases)
    @rule(index=st.integers(0, 9))
    def obey_cancel(self, index: int) -> None:
        lease = self.pick_lease(index)
        ended = self.end(lease, "cancelled", lambda: self.service.store.cancelled(lease))
        if ended is not None:
            ended.lease, ended.last = None, (lease, "cancelled")
            ended.to(State.CANCELLED, "job.cancelled")

    @precondition(lambda self: self.leases)
    @rule(index=st.integers(0, 9), strike=st.booleans())
    def release(self, index: int, strike: bool) -> None:
        lease = self.pick_lease(index)
        ended = self.end(
            lease,
            "release",
            lambda: self.service.store.release(lease, reason="stopping", strike=strike),
        )
        if ended is not None:
            self.give_up(ended, "job.requeued", strike=strike)
            ended.last = (lease, "release")

    @precondition(lambda self: any(j.state is State.RUNNING for j in self.jobs.values()))
    @rule(index=st.integers(0, 99))
    def lose_a_worker(self, index: int) -> None:
        running = [job for job in self.jobs.values() if job.state is State.RUNNING]
        job = running[index % len(running)]
        key = self.service.database.key("leases")
        self.service.database.client.zadd(key, {job.id: 1})
        done = self.service.reaper.run_once()
        assert done.requeued + done.poisoned + done.cancelled == 1
        self.give_up(job, "job.requeued", strike=True)
        job.last = None

    # The world

    @rule()
    def lose_every_message(self) -> None:
        self.wakeups.sent.clear()
        database = self.service.database
        for index in ("published", "unpublished"):
            for member in database.client.zrange(database.key(index), 0, -1):
                database.client.zincrby(database.key(index), -10_000_000, member)
        self.service.reaper.run_once()
        waiting = {job.id for job in self.jobs.values() if job.state is State.QUEUED}
        assert sorted(self.wakeups.ids) == sorted(() if self.paused else waiting)

    @rule()
    def kill_redis(self) -> None:
        assert self.server.pid is not None
        os.kill(self.server.pid, signal.SIGKILL)
        self.server.restart()

    @rule()
    def empty_redis_and_rebuild(self) -> None:
        # What the service decided reaches the journal right away or by the reaper.
        self.service.reaper.run_once()
        self.service.database.client.flushall()
        self.paused = False
        done = reconcile(self.service)
        assert done.imported == len(self.jobs)
        assert reconcile(self.service).imported == 0
        for job in sorted(self.jobs.values(), key=lambda job: job.id):
            if job.state is State.RUNNING:
                job.state = State.QUEUED
            job.strikes, job.cancel = 0, False
            # Of wishes only the one that shaped the result is known still.
            job.finish = job.finish and job.state is State.SUCCEEDED
            job.lease = job.last = None
            job.events, job.told = [], 0
        # The queue is in the order of submission again.
        for job in sorted(self.jobs.values(), key=lambda job: job.id):
            job.place = next(self.clock)
        self.jobs = dict(sorted(self.jobs.items()))
        self.latest = {}
        for job in self.jobs.values():
            if job.answers_for_equal_work:
                self.latest.setdefault(job.work, job.id)

    # What is always true

    @invariant()
    def every_record_is_as_it_should_be(self) -> None:
        if not hasattr(self, "jobs"):
            return
        store = self.service.store
        for job in self.jobs.values():
            record = store.get(job.id)
            assert record.state is job.state
            assert record.strikes == job.strikes
            assert record.attempt >= job.attempt
            assert record.cancel_requested == job.cancel
            assert record.finish_requested == job.finish
            assert (record.finished_at is not None) == job.state.terminal
            assert (record.lease_until is not None) == (job.state is State.RUNNING)
            assert (record.result is not None) == (job.state is State.SUCCEEDED)
            if record.result is not None and job.result is not None:
                assert self.service.blobs.get(record.result.key) == job.result
                assert record.result.sha256 == hashlib.sha256(job.result).hexdigest()
            assert self.service.blobs.exists(record.spec.input.key)

    @invariant()
    def lists_counts_and_places_agree(self) -> None:
        if not hasattr(self, "jobs"):
            return
        store, key = self.service.store, self.service.database.key
        client = self.service.database.client
        for state in State:
            wanted = {job.id for job in self.jobs.values() if job.state is state}
            page = store.page(JobFilter(None, frozenset({state})), limit=500)
            assert {record.id for record in page.records} == wanted
            assert store.counts()[state] == len(wanted)
        newest_first = [record.id for record in store.page(JobFilter(None), limit=500).records]
        assert newest_first == list(self.jobs)[::-1]
        queued = [job for job in self.jobs.values() if job.state is State.QUEUED]
        queued.sort(key=lambda job: (-job.priority, job.place))
        waiting = client.zrange(key("queue", "encode"), 0, -1)
        assert waiting == [job.id for job in queued]
        running = {job.id for job in self.jobs.values() if job.state is State.RUNNING}
        assert set(client.zrange(key("leases"), 0, -1)) == running
        assert set(client.smembers(key("running", "encode"))) == running
        published = client.zrange(key("published"), 0, -1)
        unpublished = client.zrange(key("unpublished"), 0, -1)
        assert sorted(published + unpublished) == sorted(waiting)

    @invariant()
    def every_transition_was_told_once(self) -> None:
        if not hasattr(self, "jobs"):
            return
        for job in self.jobs.values():
            events = self.service.events.read_job(job.id, limit=1000)
            types = [each.type for each in events if each.type != "job.progress"]
            assert types == job.events
            versions = [each.version for each in events]
            assert versions == sorted(set(versions))
        outbox = self.service.database.client.xrange(self.service.database.key("outbox"))
        for job in self.jobs.values():
            assert sum(fields["job"] == job.id for _, fields in outbox) == job.told


@pytest.fixture
def own_redis(tmp_path: Path, redis_server: RedisServer) -> Iterator[RedisServer]:
    """Another Redis, that may be killed."""
    with RedisServer.find_or_start(
        load_settings(data_dir=tmp_path), kinds=("system", "bundled")
    ) as server:
        yield server


@pytest.mark.slow
def test_random_lives(own_redis: RedisServer, tmp_path: Path) -> None:
    Machine.server = own_redis
    Machine.folders = (tmp_path / f"run-{number}" for number in itertools.count())
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=12,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
