"""Workers die, stop, stall and lose their Redis: accepted jobs end all the same, and once."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs import StoreUnavailable, load_settings
from jobs.record import JobRecord, State
from jobs.redis_server import RedisServer
from tests.worker.conftest import TENANT, Bed, descendants, parent_of, wait_for
from worker.attempt import Attempt
from worker.child import EncodeChild
from worker.flags import Flags

RESUMED = "resumed from a checkpoint"


def successes(bed: Bed, job_id: str) -> int:
    """Return how often the job was told to have succeeded."""
    events = bed.service.events.read_job(job_id, limit=2000)
    return sum(event.type == "job.succeeded" for event in events)


def test_a_killed_worker_s_job_is_resumed_by_another(make_bed: Callable[..., Bed]) -> None:
    bed = make_bed()
    first = bed.start_worker()
    job_id = bed.submit_long()
    bed.wait_fitting(job_id)
    wait_for(lambda: bed.keys(job_id, "checkpoints/"))
    below = descendants(first.pid)
    assert len(below) >= 2
    first.kill()
    wait_for(lambda: all(parent_of(pid) is None for pid in below), seconds=5)
    assert bed.record(job_id).state is State.RUNNING

    bed.start_worker()
    record = bed.finish(job_id, attempt=2)
    assert record.state is State.SUCCEEDED, record.failure
    assert (record.attempt, record.strikes) == (2, 1)
    assert [attempt.end for attempt in record.attempts] == ["lost", "succeeded"]
    assert record.report is not None
    assert any(RESUMED in note for note in record.report["notes"])
    assert successes(bed, job_id) == 1
    assert [key.rpartition("attempts/")[2] for key in bed.keys(job_id, "out.nif")] == ["2/out.nif"]
    wait_for(lambda: not list((bed.folder / "scratch").iterdir()))


def test_a_stopped_worker_gives_its_job_back_with_its_state(make_bed: Callable[..., Bed]) -> None:
    bed = make_bed(checkpoint_seconds=3600.0)
    first = bed.start_worker()
    job_id = bed.submit_long()
    bed.wait_fitting(job_id)
    assert bed.keys(job_id, "checkpoints/") == []
    assert first.stop() == 0
    record = bed.record(job_id)
    assert (record.state, record.strikes) == (State.QUEUED, 0)
    assert bed.keys(job_id, "checkpoints/")
    assert first.status(bed.service) is None
    assert bed.wakeups.waiting("encode") == 1

    bed.start_worker()
    record = bed.finish(job_id, attempt=2)
    assert record.state is State.SUCCEEDED, record.failure
    assert [attempt.end for attempt in record.attempts] == ["released", "succeeded"]
    assert record.report is not None
    assert any(RESUMED in note for note in record.report["notes"])


def test_redis_may_restart_during_a_job(make_bed: Callable[..., Bed], tmp_path: Path) -> None:
    with RedisServer.find_or_start(
        load_settings(data_dir=tmp_path / "own"), kinds=("system", "bundled")
    ) as own:
        bed = make_bed(server=own, lease_seconds=10.0)
        bed.start_worker()
        job_id = bed.submit_long()
        bed.wait_fitting(job_id)
        own.restart()
        record = bed.finish(job_id, attempt=1)
        assert record.state is State.SUCCEEDED, record.failure
        assert record.attempt == 1
        # The worker takes the next wake-up from the new Redis, too.
        assert bed.wait(bed.submit(effort=1)).state is State.SUCCEEDED


def test_redis_may_be_away_when_the_result_is_handed_in(
    make_bed: Callable[..., Bed], tmp_path: Path
) -> None:
    with RedisServer.find_or_start(
        load_settings(data_dir=tmp_path / "own"), kinds=("system", "bundled")
    ) as own:
        bed = make_bed(server=own, lease_seconds=30.0)
        bed.start_worker()
        job_id = bed.submit(effort=1)
        wait_for(lambda: bed.record(job_id).state is State.RUNNING)
        own.stop()
        wait_for(lambda: bed.keys(job_id, "outcome"))
        time.sleep(0.5)
        own.start()
        record = bed.wait(job_id)
        assert record.state is State.SUCCEEDED, record.failure
        assert (record.attempt, successes(bed, job_id)) == (1, 1)


def attempt_at(bed: Bed, job_id: str, flags: Flags) -> Attempt:
    claim = bed.service.store.claim(job_id, worker="w")

    def no_child() -> EncodeChild:
        raise AssertionError("nothing is encoded here")

    return Attempt(bed.service, bed.settings, claim, flags, no_child)


def test_a_stopping_worker_waits_for_redis_before_it_gives_a_job_up(
    make_bed: Callable[..., Bed], tmp_path: Path
) -> None:
    with RedisServer.find_or_start(
        load_settings(data_dir=tmp_path / "own"), kinds=("system", "bundled")
    ) as own:
        bed = make_bed(server=own, lease_seconds=60.0, stop_seconds=60.0)
        job_id = bed.submit(effort=1)
        flags = Flags()
        attempt = attempt_at(bed, job_id, flags)
        flags.stopping = True
        own.stop()
        tries = 0

        def give_back() -> JobRecord:
            nonlocal tries
            tries += 1
            if tries == 4:
                own.start()
            return bed.service.store.release(attempt._lease, reason="stopping", strike=False)

        assert attempt._write(give_back).state is State.QUEUED
        assert tries == 4


def test_a_stopping_worker_does_not_wait_for_redis_for_ever(
    make_bed: Callable[..., Bed], tmp_path: Path
) -> None:
    with RedisServer.find_or_start(
        load_settings(data_dir=tmp_path / "own"), kinds=("system", "bundled")
    ) as own:
        bed = make_bed(server=own, lease_seconds=60.0, stop_seconds=0.5)
        flags = Flags()
        attempt = attempt_at(bed, bed.submit(effort=1), flags)
        flags.stopping = True
        own.stop()
        with pytest.raises(StoreUnavailable):
            attempt._give_back("the worker stops")


def test_a_job_that_kills_its_child_is_poisoned(make_bed: Callable[..., Bed]) -> None:
    bed = make_bed()
    worker = bed.start_worker()
    job_id = bed.submit_long()
    for number in (1, 2, 3):
        fitting = bed.wait_fitting(job_id)
        assert fitting.attempt == number
        (child,) = worker.children()
        os.kill(child, signal.SIGKILL)
        wait_for(lambda: bed.record(job_id).state is not State.RUNNING)
    record = bed.wait(job_id)
    assert (record.state, record.attempt) == (State.FAILED, 3)
    assert record.failure is not None
    assert record.failure.code == "poisoned"
    assert "SIGKILL" in (record.failure.detail or "")
    # The worker is none the worse for it.
    assert bed.wait(bed.submit(effort=1)).state is State.SUCCEEDED


def test_a_worker_that_lost_its_lease_writes_nothing(make_bed: Callable[..., Bed]) -> None:
    bed = make_bed()
    worker = bed.start_worker()
    job_id = bed.submit_long()
    bed.wait_fitting(job_id)
    worker.signal_all(signal.SIGSTOP)
    bed.wait_until(job_id, lambda record: record.state is State.QUEUED)
    worker.signal_all(signal.SIGCONT)
    record = bed.finish(job_id, attempt=2)
    assert record.state is State.SUCCEEDED, record.failure
    assert record.attempt == 2
    assert "attempt abandoned" in worker.log.read_text()
    assert successes(bed, job_id) == 1
    assert [key.rpartition("attempts/")[2] for key in bed.keys(job_id, "out.nif")] == ["2/out.nif"]


def test_the_time_limit_ends_an_attempt_for_good(make_bed: Callable[..., Bed]) -> None:
    bed = make_bed(job_time_limit_seconds=1.5)
    bed.start_worker()
    record = bed.wait(bed.submit_long())
    assert record.failure is not None
    assert (record.failure.code, record.attempt) == ("time_limit", 1)
    assert "1.5 s" in record.failure.message


def test_a_file_too_large_for_the_child_is_a_fault_with_a_reason(
    make_bed: Callable[..., Bed],
) -> None:
    bed = make_bed(child_file_bytes=64, checkpoint_seconds=3600.0, max_attempts=1)
    bed.start_worker()
    record = bed.wait(bed.submit(effort=1))
    assert record.failure is not None
    assert record.failure.code == "poisoned"
    assert "output_error" in (record.failure.detail or "")


def test_a_storage_that_is_away_costs_no_strike(make_bed: Callable[..., Bed]) -> None:
    bed = make_bed()
    bed.start_worker()
    job_id = bed.submit_long()
    bed.wait_fitting(job_id)
    wait_for(lambda: bed.keys(job_id, "checkpoints/"))
    root, away = bed.folder / "blobs", bed.folder / "away"
    root.rename(away)
    root.write_bytes(b"no folder")
    bed.service.finish(TENANT, job_id)
    record = bed.wait_until(job_id, lambda record: record.not_before is not None)
    assert (record.state, record.strikes) == (State.QUEUED, 0)
    root.unlink()
    away.rename(root)
    record = bed.wait(job_id)
    assert record.state is State.SUCCEEDED, record.failure
    assert [attempt.end for attempt in record.attempts][:1] == ["released"]
    wait_for(lambda: bed.keys(job_id, "checkpoints/") == [])  # removed after the last word


@pytest.mark.parametrize("lost", ["outcome", "nothing"])
def test_a_result_that_could_not_be_handed_in_is_adopted(
    make_bed: Callable[..., Bed], tmp_path: Path, lost: str
) -> None:
    """The worker dies after the journal has the outcome and before Redis does."""
    with RedisServer.find_or_start(
        load_settings(data_dir=tmp_path / "own"), kinds=("system", "bundled")
    ) as own:
        bed = make_bed(server=own)
        first = bed.start_worker()
        job_id = bed.submit(effort=1)
        wait_for(lambda: bed.record(job_id).state is State.RUNNING)
        own.stop()
        (outcome,) = wait_for(lambda: bed.keys(job_id, "outcome"))
        first.kill()
        if lost == "outcome":
            bed.service.blobs.delete(outcome)
        own.start()
        bed.start_worker()
        record = bed.wait(job_id)
        assert record.state is State.SUCCEEDED, record.failure
        assert record.attempt == 2
        results = [key.rpartition("attempts/")[2] for key in bed.keys(job_id, "out.nif")]
        # Adopted: the first attempt's file. Without an outcome it was fitted again.
        assert results == (["1/out.nif"] if lost == "nothing" else ["1/out.nif", "2/out.nif"])
        assert record.result is not None
        assert record.result.key.endswith(results[-1])
