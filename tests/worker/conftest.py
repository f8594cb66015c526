"""A real Redis, real workers in processes of their own, and tiny pictures."""

from __future__ import annotations

import io
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import nifcore
from jobs import load_settings, new_job_id, open_service, with_parent
from jobs.record import JobDraft, JobRecord, JobSpec, Parameters, State
from jobs.redis_server import RedisServer
from jobs.service import JobService
from jobs.settings import Settings
from jobs.workers import WorkerStatus
from worker.supervisor import environment_of
from worker.wakeups import CeleryWakeups

ROOT = Path(__file__).parents[2]
TENANT = "acme"
PATIENCE_SECONDS = 60.0


def picture_bytes(width: int = 32, height: int = 24) -> bytes:
    """Return a small PNG with something to learn in it."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([x * 255 // width, y * 255 // height, x * y % 256], axis=-1)
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def wait_for(
    what: Callable[[], Any], *, seconds: float = PATIENCE_SECONDS, meanwhile: Any = None
) -> Any:
    """Return the first true answer of ``what``; fail after so long."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        answer = what()
        if answer:
            return answer
        if meanwhile is not None:
            meanwhile()
        time.sleep(0.05)
    raise AssertionError(f"waited {seconds:g} s in vain for {what}")


def parent_of(pid: int) -> int | None:
    """Return a process's parent, None if the process is gone or only waits to be collected."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else int(fields[1])


def descendants(pid: int) -> list[int]:
    """Return the processes below one, nearest first."""
    everyone = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    parents = {each: parent_of(each) for each in everyone}
    found, level = [], [pid]
    while level:
        level = [each for each, parent in parents.items() if parent in level]
        found += level
    return found


class Worker:
    """An encode worker, started as an installation would start it."""

    def __init__(self, settings: Settings, log: Path) -> None:
        self.log = log
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                with_parent.command([sys.executable, "-m", "worker", "encode"]),
                cwd=ROOT,
                env={**os.environ, **environment_of(settings)},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def status(self, service: JobService) -> WorkerStatus | None:
        """Return what the registry knows of this worker."""
        mine = [each for each in service.workers.list() if each.info.pid == self.pid]
        return mine[0] if mine else None

    def children(self) -> list[int]:
        """Return the processes that encode or wait to."""
        pool = [each for each in descendants(self.pid) if parent_of(each) == self.pid]
        return [each for each in descendants(self.pid) if parent_of(each) in pool]

    def signal_all(self, number: signal.Signals) -> None:
        """Send a signal to the worker and everything below it."""
        for pid in [self.pid, *descendants(self.pid)]:
            os.kill(pid, number)

    def stop(self) -> int:
        """Ask the worker to stop; return its exit status."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(timeout=PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def kill(self) -> None:
        """End it at once, as a machine that loses power does."""
        self.process.kill()
        self.process.wait()


class Bed:
    """A service with one data folder and key prefix, and whatever workers a test starts."""

    def __init__(self, server: RedisServer, folder: Path, **overrides: Any) -> None:
        self.server = server
        self.folder = folder
        values: dict[str, Any] = {
            "data_dir": folder,
            "redis_url": server.url,
            "redis_prefix": f"t{secrets.token_hex(4)}",
            "lease_seconds": 2.0,
            "heartbeat_seconds": 0.5,
            "reaper_seconds": 0.5,
            "republish_seconds": 3.0,
            "checkpoint_seconds": 0.3,
            "device": "cpu",
            "child_threads": 1,
            # Seconds of work for every worker that a test starts.
            "calibrate": False,
            "url_secret": "a secret that no child may see",
            **overrides,
        }
        self.settings = load_settings(**values)
        self._stack = ExitStack()
        wakeups = CeleryWakeups(self.settings)
        self._stack.callback(wakeups.close)
        self.service = self._stack.enter_context(open_service(self.settings, wakeups=wakeups))
        self.wakeups = wakeups
        self.workers: list[Worker] = []

    def close(self) -> None:
        for worker in self.workers:
            if worker.process.poll() is None:
                worker.kill()
        self._stack.close()

    def start_worker(self) -> Worker:
        """Start a worker and wait until it has reported."""
        worker = Worker(self.settings, self.folder / f"worker-{len(self.workers)}.log")
        self.workers.append(worker)
        wait_for(lambda: worker.process.poll() is not None or worker.status(self.service))
        assert worker.process.poll() is None, worker.log.read_text()
        return worker

    def submit(
        self,
        data: bytes | None = None,
        *,
        priority: int = 5,
        webhook: str | None = None,
        tenant: str = TENANT,
        size: tuple[int | None, int | None] = (None, None),
        **parameters: Any,
    ) -> str:
        """Submit a picture and return the job's id; ``size`` is what its header told."""
        job_id = new_job_id()
        content = picture_bytes() if data is None else data
        ref = self.service.journal.write_input(tenant, job_id, content, "image/png")
        width, height = size
        spec = JobSpec(ref, Parameters(**parameters), nifcore.__version__, width, height)
        draft = JobDraft(
            job_id,
            tenant,
            spec,
            submitted_at=datetime.now(UTC),
            priority=priority,
            webhook=webhook,
            deduplicate=False,
        )
        self.service.submit(draft)
        return job_id

    def submit_long(self) -> str:
        """Submit a picture that is at work until it is told to end."""
        return self.submit(picture_bytes(128, 96), effort=9)

    def record(self, job_id: str) -> JobRecord:
        return self.service.store.get(job_id)

    def wait(self, job_id: str, *, seconds: float = PATIENCE_SECONDS) -> JobRecord:
        """Return the record of a job when it ended; the reaper goes its rounds meanwhile."""
        try:
            return self.wait_until(job_id, lambda record: record.state.terminal, seconds=seconds)
        except AssertionError as error:
            logs = "\n".join(worker.log.read_text() for worker in self.workers)
            raise AssertionError(f"{self.record(job_id)}\n{logs[-6000:]}") from error

    def wait_until(
        self, job_id: str, condition: Callable[[JobRecord], bool], *, seconds: float = 60.0
    ) -> JobRecord:
        """Return the record when it meets a condition; the reaper goes its rounds meanwhile."""

        def met() -> JobRecord | None:
            record = self.record(job_id)
            return record if condition(record) else None

        found: JobRecord = wait_for(met, seconds=seconds, meanwhile=self.service.reaper.run_once)
        return found

    def wait_fitting(self, job_id: str) -> JobRecord:
        """Return the record once its child fits and shows it."""
        return self.wait_until(
            job_id,
            lambda record: (
                record.state is State.RUNNING
                and record.progress is not None
                and record.progress.phase == "fit"
                and record.progress.iteration > 0
            ),
        )

    def finish(self, job_id: str, *, attempt: int) -> JobRecord:
        """Let the given attempt fit a little, have it keep that, and return the record."""
        self.wait_until(job_id, lambda record: record.attempt == attempt)
        self.wait_fitting(job_id)
        self.service.finish(TENANT, job_id)
        return self.wait(job_id)

    def keys(self, job_id: str, part: str) -> list[str]:
        """Return the journal's keys of a job that contain ``part``."""
        page = self.service.blobs.list(f"{TENANT}/jobs/{job_id}/")
        return [info.key for info in page.items if part in info.key]


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis server of these tests' own."""
    settings = load_settings(data_dir=tmp_path_factory.mktemp("redis"))
    with RedisServer.find_or_start(settings, kinds=("system", "bundled")) as found:
        yield found


@pytest.fixture
def make_bed(server: RedisServer, tmp_path: Path) -> Iterator[Callable[..., Bed]]:
    """Makes a service with settings of the test's choice."""
    with ExitStack() as stack:

        def make(**overrides: Any) -> Bed:
            bed = Bed(overrides.pop("server", server), tmp_path, **overrides)
            stack.callback(bed.close)
            return bed

        yield make
