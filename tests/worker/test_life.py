"""A job's life with a worker that stands ready: what comes in, what comes out, what is told."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import nifcore
from jobs.record import State
from jobs.redis_server import RedisServer
from tests.worker.conftest import ROOT, TENANT, Bed, Worker, parent_of, picture_bytes, wait_for


@pytest.fixture(scope="module")
def bed(server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    made = Bed(server, tmp_path_factory.mktemp("bed"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def worker(bed: Bed) -> Worker:
    return bed.start_worker()


def test_a_picture_becomes_a_measured_file(bed: Bed, worker: Worker) -> None:
    picture = picture_bytes()
    job_id = bed.submit(picture, effort=1, seed=7)
    record = bed.wait(job_id)
    assert record.state is State.SUCCEEDED, record.failure
    assert record.attempt == 1
    assert record.result is not None
    assert record.report is not None

    data = bed.service.blobs.get(record.result.key)
    assert record.result.key.endswith("/attempts/1/out.nif")
    assert (record.result.size, record.result.sha256) == (
        len(data),
        hashlib.sha256(data).hexdigest(),
    )
    asked = np.asarray(Image.open(io.BytesIO(picture)), np.float64)
    given = np.asarray(nifcore.decode(data), np.float64)
    psnr = 10 * np.log10(255**2 / np.mean((asked - given) ** 2))
    assert record.report["psnr_db"] == pytest.approx(psnr, abs=0.01)
    assert record.report["bytes"] == len(data)
    assert record.report["complete"] is True
    assert (record.report["effort"], record.report["seed"]) == (1, 7)

    outcome = bed.service.journal.finished(TENANT, job_id)
    assert outcome is not None
    assert outcome.result == record.result
    types = [event.type for event in bed.service.events.read_job(job_id)]
    assert types[:2] == ["job.queued", "job.running"]
    assert "job.progress" in types
    assert types[-1] == "job.succeeded"


def test_the_same_seed_gives_the_file_of_a_plain_encode(bed: Bed, worker: Worker) -> None:
    picture = picture_bytes(24, 24)
    record = bed.wait(bed.submit(picture, effort=1, seed=3))
    assert record.result is not None
    # With as many threads as the worker's child has: sums depend on how they are shared out.
    code = (
        "import sys, nifcore\n"
        "picture = sys.stdin.buffer.read()\n"
        "plain = nifcore.encode(picture, effort=1, seed=3, device='cpu')\n"
        "sys.stdout.buffer.write(plain.data)"
    )
    plain = subprocess.run(
        [sys.executable, "-c", code],
        input=picture,
        capture_output=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert bed.service.blobs.get(record.result.key) == plain.stdout


@pytest.mark.parametrize(
    ("data", "parameters", "code"),
    [
        (b"this is no picture", {"effort": 1}, "not_an_image"),
        (picture_bytes()[:200], {"effort": 1}, "not_an_image"),
        (None, {"effort": 1, "max_bytes": 12}, "impossible_target"),
        (None, {"preset": "paper-0"}, "unknown_preset"),
        (None, {"effort": 1, "bpp": 0.3, "psnr": 30.0}, "bad_parameters"),
    ],
)
def test_what_cannot_be_done_fails_at_once_and_says_why(
    bed: Bed, worker: Worker, data: bytes | None, parameters: dict[str, Any], code: str
) -> None:
    record = bed.wait(bed.submit(data, **parameters))
    assert record.state is State.FAILED
    assert record.failure is not None
    assert record.failure.code == code
    assert len(record.failure.message) > 10
    assert (record.attempt, record.result) == (1, None)


def test_a_picture_that_vanished_is_reported(bed: Bed, worker: Worker) -> None:
    bed.service.queues.pause("encode")
    job_id = bed.submit(effort=1)
    bed.service.blobs.delete(bed.record(job_id).spec.input.key)
    bed.service.queues.resume("encode")
    record = bed.wait(job_id)
    assert record.failure is not None
    assert record.failure.code == "input_lost"


def test_cancel_ends_the_child_and_leaves_no_result(bed: Bed, worker: Worker) -> None:
    job_id = bed.submit_long()
    bed.wait_fitting(job_id)
    children = worker.children()
    assert len(children) == 1
    bed.service.cancel(TENANT, job_id)
    record = bed.wait(job_id)
    assert record.state is State.CANCELLED
    assert bed.keys(job_id, "out.nif") == []
    wait_for(lambda: parent_of(children[0]) is None)


def test_finish_keeps_the_best_so_far(bed: Bed, worker: Worker) -> None:
    job_id = bed.submit_long()
    bed.wait_fitting(job_id)
    bed.service.finish(TENANT, job_id)
    record = bed.wait(job_id)
    assert record.state is State.SUCCEEDED
    assert record.report is not None
    assert record.report["complete"] is False
    assert record.result is not None
    assert nifcore.decode(bed.service.blobs.get(record.result.key)).size == (128, 96)


def test_repeated_wakeups_change_nothing(bed: Bed, worker: Worker) -> None:
    before = bed.service.counters().get('claims_refused{reason="not_queued"}', 0)
    job_id = bed.submit(effort=1)
    for _ in range(3):
        bed.wakeups.publish(job_id, priority=5, queue="encode")
    record = bed.wait(job_id)
    assert record.state is State.SUCCEEDED
    wait_for(
        lambda: bed.service.counters().get('claims_refused{reason="not_queued"}', 0) >= before + 3
    )
    assert bed.record(job_id).attempt == 1
    ends = [e for e in bed.service.events.read_job(job_id) if e.type == "job.succeeded"]
    assert len(ends) == 1


def test_a_drained_worker_leaves_the_wakeups_alone(bed: Bed, worker: Worker) -> None:
    status = worker.status(bed.service)
    assert status is not None
    bed.service.workers.drain(status.info.id)
    try:
        wait_for(lambda: "Canceling queue" in worker.log.read_text())
        job_id = bed.submit(effort=1)
        time.sleep(1.5)
        assert bed.record(job_id).state is State.QUEUED
        # A read that was under way may have taken the wake-up: its claim was refused then, and
        # the reaper sends another, which stays.
        wait_for(lambda: bed.wakeups.waiting("encode") == 1, meanwhile=bed.service.reaper.run_once)
    finally:
        bed.service.workers.resume(status.info.id)
    assert bed.wait(job_id).state is State.SUCCEEDED


def test_a_paused_queue_waits_and_then_goes_by_priority(bed: Bed, worker: Worker) -> None:
    taken = worker.log.read_text().count("Canceling queue")
    bed.service.queues.pause("encode")
    wait_for(lambda: worker.log.read_text().count("Canceling queue") > taken)
    order = [1, 9, 5]
    jobs = {priority: bed.submit(effort=1, priority=priority) for priority in order}
    time.sleep(0.7)
    assert {bed.record(job_id).state for job_id in jobs.values()} == {State.QUEUED}
    bed.service.queues.resume("encode")
    started = {priority: bed.wait(job_id).started_at for priority, job_id in jobs.items()}
    assert sorted(order, key=lambda priority: str(started[priority])) == [9, 5, 1]


def test_only_the_child_loads_torch_and_it_has_no_secrets(bed: Bed, worker: Worker) -> None:
    bed.wait(bed.submit(effort=1))
    children = wait_for(worker.children)
    pool = parent_of(children[0])
    maps = wait_for(
        lambda: [m for m in [Path(f"/proc/{children[0]}/maps").read_text()] if "libtorch" in m]
    )
    assert maps
    for pid in (worker.pid, pool):
        assert "libtorch" not in Path(f"/proc/{pid}/maps").read_text()
    secret = bed.settings.url_secret
    assert secret is not None
    environment = Path(f"/proc/{children[0]}/environ").read_bytes()
    assert secret.get_secret_value().encode() not in environment
    assert b"NIF_REDIS_URL" not in environment
    assert secret.get_secret_value().encode() in Path(f"/proc/{worker.pid}/environ").read_bytes()


def test_the_registry_shows_the_worker_and_its_job(bed: Bed, worker: Worker) -> None:
    job_id = bed.submit_long()
    bed.wait_fitting(job_id)
    status = wait_for(
        lambda: (
            (found := worker.status(bed.service)) is not None
            and found.info.job_id == job_id
            and found
        )
    )
    assert status.alive
    assert status.info.attempt == 1
    assert status.info.queues == ("encode",)
    assert status.info.device == "cpu"
    assert status.info.facts["child_memory_bytes"] > 50_000_000
    bed.service.cancel(TENANT, job_id)
    bed.wait(job_id)


def test_no_files_are_left_behind(bed: Bed, worker: Worker) -> None:
    bed.wait(bed.submit(effort=1))
    wait_for(lambda: not list((bed.folder / "scratch").iterdir()))
