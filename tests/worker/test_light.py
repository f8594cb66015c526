"""The light worker's rounds."""

from __future__ import annotations

import threading
from collections.abc import Callable

from jobs.errors import StoreUnavailable
from tests.worker.conftest import Bed
from worker.light import Round, go_round, rounds


def test_no_failure_ends_a_round() -> None:
    stop = threading.Event()
    failures: list[Exception] = [StoreUnavailable("away"), KeyError("a fault of ours")]

    def work() -> None:
        if failures:
            raise failures.pop()
        stop.set()

    go_round(Round("test", 0.001, work), stop)
    assert failures == []


def test_it_shows_itself_and_reaps(make_bed: Callable[..., Bed]) -> None:
    bed = make_bed(lease_seconds=0.2, heartbeat_seconds=0.1)
    job_id = bed.submit(effort=1)
    bed.service.store.claim(job_id, worker="somebody who dies")
    all_rounds = {each.name: each for each in rounds(bed.service, bed.settings)}
    assert all_rounds["reap"].every_seconds == bed.settings.reaper_seconds

    def reaped() -> bool:
        all_rounds["reap"].work()
        return bed.record(job_id).strikes == 1

    bed.wait_until(job_id, lambda _: reaped())
    all_rounds["beat"].work()
    (status,) = bed.service.workers.list()
    assert status.info.facts["role"] == "light"
    assert status.info.queues == ()
