"""Several queued jobs in one launch: each still its own job, whatever becomes of the others."""

from __future__ import annotations

import io
import os
import signal
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import nifcore
from jobs.record import JobRecord, State
from jobs.workers import WorkerInfo
from tests.worker.conftest import TENANT, Bed, Worker, picture_bytes, wait_for
from tests.worker.tasks import task_in
from worker import messages
from worker.child import EncodeChild
from worker.flags import Flags
from worker.gathering import gather
from worker.group import Group

SIZE = (32, 24)


def picture(number: int, size: tuple[int, int] = SIZE) -> bytes:
    """Return a small PNG that differs from the others."""
    width, height = size
    y, x = np.mgrid[0:height, 0:width] / 24.0
    waves = [np.sin((4 + number) * y + 3 * x), np.cos(5 * y * x + number), np.sin(6 * x - 2 * y)]
    buffer = io.BytesIO()
    Image.fromarray(((np.stack(waves, -1) + 1) * 127.5).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def psnr_of(bed: Bed, record: JobRecord, data: bytes) -> float:
    """Return the PSNR of a job's file against the picture that was sent."""
    assert record.result is not None
    shown = np.asarray(nifcore.decode(bed.service.blobs.get(record.result.key)), np.float64)
    sent = np.asarray(Image.open(io.BytesIO(data)), np.float64)
    return float(10 * np.log10(255**2 / np.mean((shown - sent) ** 2)))


def queue_up(bed: Bed, pictures: list[bytes], **parameters: Any) -> list[str]:
    """Submit pictures of one size with one set of parameters."""
    wanted = {"effort": 1, "bpp": 4.0, **parameters}
    return [bed.submit(data, size=SIZE, **wanted) for data in pictures]


def together(worker: Worker) -> list[int]:
    """Return the sizes of the groups that a worker has begun, from its log."""
    lines = [line for line in worker.log.read_text().splitlines() if "group begins" in line]
    return [int(line.partition('"together": ')[2].split(",")[0].rstrip("}")) for line in lines]


def next_at_work(bed: Bed, ids: set[str]) -> str:
    """Wait until one of these jobs is tried again, and return which."""

    def found() -> str | None:
        records = [bed.record(each) for each in ids]
        running = [r.id for r in records if r.state is State.RUNNING and r.attempt == 2]
        return running[0] if running else None

    job_id: str = wait_for(found, meanwhile=bed.service.reaper.run_once)
    return job_id


@pytest.fixture
def bed(make_bed: Callable[..., Bed]) -> Bed:
    return make_bed(worker_gather=4, lease_seconds=10.0)


def test_jobs_alike_go_together_and_each_ends_as_it_would_alone(bed: Bed) -> None:
    pictures = [picture(number) for number in range(3)]
    odd = picture(9, (24, 40))
    ids = queue_up(bed, pictures[:2])
    unlike = bed.submit(odd, size=(24, 40), effort=1, bpp=4.0)
    ids += queue_up(bed, pictures[2:], seed=5)
    worker = bed.start_worker()

    records = [bed.wait(job_id) for job_id in ids]
    other = bed.wait(unlike)
    assert together(worker) == [3]
    for record, data in zip([*records, other], [*pictures, odd], strict=True):
        assert record.state is State.SUCCEEDED, record.failure
        assert (record.attempt, record.strikes) == (1, 0)
        assert record.report is not None
        assert record.report["psnr_db"] == pytest.approx(psnr_of(bed, record, data), abs=0.01)
        assert record.report["bpp"] <= 4.0
        types = [event.type for event in bed.service.events.read_job(record.id, limit=2000)]
        assert types[:2] == ["job.queued", "job.running"]
        assert "job.progress" in types
        assert types.count("job.succeeded") == 1
        assert types[-1] == "job.succeeded"
    assert [r.report["kernel"] for r in records if r.report] == ["stacked"] * 3
    assert other.report is not None
    assert other.report["kernel"] != "stacked"
    assert len({record.started_at for record in records}) == 3  # each was claimed by itself
    # In one launch: each began before any ended; the odd one, queued between them, came after.
    ends = [record.finished_at for record in records]
    assert all(record.started_at < min(ends) for record in records)  # type: ignore[type-var]
    assert other.started_at is not None
    assert other.started_at > min(ends)  # type: ignore[type-var]

    # Of the quality that one of them has alone, where nothing is gathered.
    alone = nifcore.encode(pictures[0], effort=1, bpp=4.0, device="cpu").report
    assert records[0].report is not None
    assert records[0].report["passes"] == alone.passes
    assert records[0].report["psnr_db"] == pytest.approx(alone.psnr_db, abs=3.0)
    assert records[2].report is not None
    assert records[2].report["seed"] == 5
    # Wake-ups of gathered jobs come and are refused; nothing is left over.
    wait_for(lambda: bed.wakeups.waiting("encode") == 0)
    wait_for(lambda: not list((bed.folder / "scratch").iterdir()))


def test_one_is_cancelled_one_cannot_be_read_and_the_others_go_on(bed: Bed) -> None:
    pictures = [picture(0), picture_bytes()[:120], picture(1), picture(2)]
    ids = queue_up(bed, pictures, effort=9)
    bed.start_worker()

    broken = bed.wait(ids[1])
    assert broken.state is State.FAILED
    assert broken.failure is not None
    assert (broken.failure.code, broken.attempt) == ("not_an_image", 1)

    for index in (0, 2, 3):
        bed.wait_fitting(ids[index])
    bed.service.cancel(TENANT, ids[2])
    assert bed.wait(ids[2]).state is State.CANCELLED
    assert bed.keys(ids[2], "out.nif") == []

    # The others never noticed: same attempt, further on than before.
    before = {index: bed.record(ids[index]) for index in (0, 3)}
    for index, record in before.items():
        assert record.progress is not None
        reached = record.progress.iteration
        bed.wait_until(
            ids[index],
            lambda now, reached=reached: (  # type: ignore[misc]
                now.progress is not None and now.progress.iteration > reached
            ),
        )
    # Each hears its own orders: one finishes early, the other is still at work then.
    bed.service.finish(TENANT, ids[0])
    done = bed.wait(ids[0])
    assert done.state is State.SUCCEEDED
    assert bed.record(ids[3]).state is State.RUNNING
    bed.service.finish(TENANT, ids[3])
    for job_id in (ids[0], ids[3]):
        record = bed.wait(job_id)
        assert (record.state, record.attempt) == (State.SUCCEEDED, 1)
        assert record.report is not None
        assert record.report["complete"] is False


def test_a_child_that_is_killed_strikes_each_and_each_is_then_alone(bed: Bed) -> None:
    ids = queue_up(bed, [picture(number) for number in range(3)], effort=9)
    worker = bed.start_worker()
    for job_id in ids:
        bed.wait_fitting(job_id)
    (child,) = worker.children()
    os.kill(child, signal.SIGKILL)

    left = set(ids)
    while left:
        job_id = next_at_work(bed, left)
        assert all(bed.record(each).state is State.QUEUED for each in left - {job_id})
        record = bed.finish(job_id, attempt=2)
        assert record.state is State.SUCCEEDED, record.failure
        assert (record.attempt, record.strikes) == (2, 1)
        assert [attempt.end for attempt in record.attempts] == ["released", "succeeded"]
        left.discard(job_id)
    assert "SIGKILL" in worker.log.read_text()
    assert together(worker) == [3]


def test_a_stopping_worker_gives_all_back_with_their_state(bed: Bed) -> None:
    ids = queue_up(bed, [picture(number) for number in range(3)], effort=9)
    first = bed.start_worker()
    for job_id in ids:
        bed.wait_fitting(job_id)
    assert first.stop() == 0
    for job_id in ids:
        record = bed.record(job_id)
        assert (record.state, record.strikes) == (State.QUEUED, 0)
        assert bed.keys(job_id, "checkpoints/")

    second = bed.start_worker()
    record = bed.finish(next_at_work(bed, set(ids)), attempt=2)
    assert record.state is State.SUCCEEDED, record.failure
    assert record.report is not None
    assert any("resumed from a checkpoint" in note for note in record.report["notes"])
    assert together(second) == []


def test_what_may_be_the_company_s_doing_fails_nobody(make_bed: Callable[..., Bed]) -> None:
    """Together they took too long; whether each does is found out alone."""
    bed = make_bed(worker_gather=4, lease_seconds=10.0, job_time_limit_seconds=2.0)
    ids = queue_up(bed, [picture(number) for number in range(2)], effort=9)
    worker = bed.start_worker()
    for job_id in ids:
        record = bed.wait(job_id)
        assert record.failure is not None
        assert (record.failure.code, record.attempt, record.strikes) == ("time_limit", 2, 0)
        assert [attempt.end for attempt in record.attempts] == ["released", "failed"]
    assert together(worker) == [2]
    assert "beside others" in worker.log.read_text()


class TestChoice:
    """Which jobs are claimed along; without a worker, the test itself is one."""

    def claimed(self, bed: Bed, job_id: str, most: int = 9) -> list[str]:
        claim = bed.service.store.claim(job_id, worker="w")
        found = gather(bed.service, claim, most, "w", Flags())
        for each in found:
            assert each.record.state is State.RUNNING
            assert each.lease.worker == "w"
        assert len({each.lease.nonce for each in [claim, *found]}) == 1 + len(found)
        return [each.record.id for each in found]

    def test_only_what_is_alike(self, bed: Bed) -> None:
        first, *alike = queue_up(bed, [picture(n) for n in range(3)])
        queue_up(bed, [picture(4)], effort=2)
        queue_up(bed, [picture(5)], bpp=5.0)
        queue_up(bed, [picture(6)], bpp=None, psnr=30.0)
        bed.submit(picture(7), size=(24, 32), effort=1, bpp=4.0)
        bed.submit(picture(8), effort=1, bpp=4.0)  # of unknown size
        bed.submit(picture(9), size=SIZE, effort=1, bpp=4.0, tenant="other")
        bed.submit(picture(10), size=SIZE, effort=1, bpp=4.0, priority=4)
        sooner = bed.submit(picture(11), size=SIZE, effort=1, bpp=4.0, priority=6)
        assert self.claimed(bed, first) == [sooner, *alike]

    def test_no_more_than_asked_for(self, bed: Bed) -> None:
        first, *alike = queue_up(bed, [picture(n) for n in range(5)])
        assert self.claimed(bed, first, 3) == alike[:2]
        assert self.claimed(bed, alike[2], 1) == []

    def test_what_was_tried_before_goes_alone(self, bed: Bed) -> None:
        first, tried, fresh, last = queue_up(bed, [picture(n) for n in range(4)])
        claim = bed.service.store.claim(tried, worker="x")
        bed.service.store.release(claim.lease, reason="test", strike=True)
        assert self.claimed(bed, tried) == []
        assert self.claimed(bed, first) == [fresh, last]

    def test_idle_workers_get_their_part(self, bed: Bed) -> None:
        first, *alike = queue_up(bed, [picture(n) for n in range(4)])
        bed.service.workers.beat(
            WorkerInfo("idle", "here", 1, "cpu", ("encode",), datetime.now(UTC))
        )
        assert self.claimed(bed, first) == alike[:1]

    def test_a_draining_worker_takes_nothing_along(self, bed: Bed) -> None:
        first, *alike = queue_up(bed, [picture(n) for n in range(3)])
        claim = bed.service.store.claim(first, worker="w")
        flags = Flags()
        flags.draining = True
        assert gather(bed.service, claim, 9, "w", flags) == []
        assert {bed.record(job_id).state for job_id in alike} == {State.QUEUED}

    def test_without_the_setting_a_cpu_takes_one_at_a_time(
        self, make_bed: Callable[..., Bed]
    ) -> None:
        bed = make_bed()
        ids = queue_up(bed, [picture(n) for n in range(2)])
        worker = bed.start_worker()
        records = [bed.wait(job_id) for job_id in ids]
        assert together(worker) == []
        assert all(record.report and record.report["kernel"] != "stacked" for record in records)


class TestGroup:
    """The shared child by itself, with members that behave in all possible ways."""

    @pytest.fixture
    def group(self) -> Iterator[Group]:
        made = Group(EncodeChild(threads=1), 3)
        thread = threading.Thread(target=made.serve)
        thread.start()
        yield made
        for member in made.members:
            member.close()
        thread.join()

    def task(self, folder: Path, **changes: Any) -> messages.Task:
        folder.mkdir()
        return task_in(folder, picture(1), **changes)

    def last(self, member: Any) -> dict[str, Any]:
        said: list[dict[str, Any]] = []

        def heard_all() -> bool:
            said.extend(member.listen(0.2))
            return bool(member.ended)

        wait_for(heard_all)
        return said[-1]

    def test_who_leaves_before_the_begin_is_not_waited_for(
        self, group: Group, tmp_path: Path
    ) -> None:
        first, second, third = group.members
        first.begin(self.task(tmp_path / "a"))
        second.begin(self.task(tmp_path / "b", max_pixels=100))
        third.order(messages.Order.STOP)
        assert self.last(third) == {"event": "stopped"}
        assert self.last(second)["code"] == "limit_exceeded"
        assert self.last(first)["event"] == "done"
        assert [member.wait() for member in group.members] == [0, 0, 0]
        assert (tmp_path / "a" / "output").exists()
        assert not (tmp_path / "b" / "output").exists()

    def test_one_that_is_left_is_encoded_as_alone(self, group: Group, tmp_path: Path) -> None:
        first, second, third = group.members
        second.close()
        third.close()
        first.begin(self.task(tmp_path / "a"))
        last = self.last(first)
        assert last["event"] == "done"
        assert last["report"]["kernel"] != "stacked"

    def test_one_that_comes_too_late_is_told_so(
        self, group: Group, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("worker.group.GATHER_SECONDS", 0.2)
        first, second, third = group.members
        third.close()
        first.begin(self.task(tmp_path / "a"))
        assert self.last(first)["event"] == "done"
        second.begin(self.task(tmp_path / "b"))
        last = self.last(second)
        assert (last["event"], second.wait()) == ("stopped", 0)
        assert "without it" in last["reason"]
