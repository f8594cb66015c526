"""A real service for tests: a Redis of its own, blobs in files, and the app behind uvicorn."""

from __future__ import annotations

import hashlib
import io
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import uvicorn
from PIL import Image

from api.app import create_app
from api.fields import JobFields
from jobs import (
    BlobRef,
    ClaimRefused,
    JobDraft,
    JobRecord,
    JobService,
    JobSpec,
    NotFound,
    Outcome,
    Progress,
    RedisServer,
    Scope,
    Settings,
    StaleLease,
    State,
    load_settings,
    open_service,
)

ADMIN_KEY = "nif_" + "a" * 43
GOLDEN = Path(__file__).parents[1] / "golden" / "synthetic-default.nif"


@dataclass
class Wakeups:
    """Remembers what was published."""

    published: list[str] = field(default_factory=list)

    def publish(self, job_id: str, *, priority: int, queue: str) -> None:
        self.published.append(job_id)

    def waiting(self, queue: str) -> int | None:
        return len(self.published)


@dataclass
class Running:
    """A running service.

    Attributes:
        url: where it is.
        settings: it runs with.
        redis: its Redis.
        service: a second way in, past HTTP.
        wakeups: what it published.
    """

    url: str
    settings: Settings
    redis: RedisServer
    service: JobService
    wakeups: Wakeups

    def key(self, tenant: str, *scopes: Scope, **more: Any) -> str:
        """Make an API key."""
        wanted = scopes or (Scope.JOBS_WRITE, Scope.JOBS_READ)
        return self.service.keys.create(tenant, wanted, **more)[1]

    def client(self, key: str | None, **more: Any) -> httpx2.Client:
        """Return a client that sends a key."""
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        return httpx2.Client(base_url=self.url, headers=headers, timeout=60.0, **more)

    def claim(self, job_id: str) -> Any:
        """Take a job as a worker does."""
        return self.service.store.claim(job_id, worker="tester-1")

    def succeed(
        self, job_id: str, data: bytes | None = None, report: dict[str, Any] | None = None
    ) -> JobRecord:
        """Do a worker's part: hand in a finished file."""
        claim = self.claim(job_id)
        tenant, journal = claim.record.tenant, self.service.journal
        ref = journal.write_result(
            tenant, claim.lease, GOLDEN.read_bytes() if data is None else data
        )
        report = report or {"bpp": 0.5, "psnr_db": 30.0, "seconds": 1.0, "width": 8, "height": 8}
        outcome = Outcome(State.SUCCEEDED, ref, report, None)
        journal.write_outcome(tenant, claim.lease, outcome)
        return self.service.store.succeed(claim.lease, ref, report)


@contextmanager
def serving(settings: Settings, redis: RedisServer) -> Iterator[Running]:
    """Run the app behind uvicorn in a thread, on a free port."""
    wakeups = Wakeups()
    # asyncio turns Nagle's algorithm off only where the protocol is named; with it on, every answer
    # waits 40 ms for an acknowledgement.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    settings = settings.model_copy(update={"public_url": url, "redis_url": redis.url})
    app = create_app(settings, wakeups=wakeups)
    server = uvicorn.Server(
        uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=2)
    )
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        assert server.started, "the app did not start"
        with open_service(settings, wakeups=wakeups) as service:
            yield Running(url, settings, redis, service, wakeups)
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def settings_in(folder: Path, **more: Any) -> Settings:
    """Return settings with everything below ``folder`` and nothing limited."""
    plain = {
        "data_dir": folder,
        "admin_key": ADMIN_KEY,
        "requests_per_minute": 0,
        "log_level": "error",
        "redis_timeout_seconds": 2.0,
        "max_upload_bytes": 4 * 1024 * 1024,
        "max_pixels": 4_000_000,
    }
    return load_settings(**(plain | more))


def picture(seed: int, width: int = 24, height: int = 16, kind: str = "PNG", **more: Any) -> bytes:
    """Return a small picture that no other seed gives."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **more)
    return buffer.getvalue()


def half_made(running: Running, tenant: str, job_id: str, data: bytes) -> None:
    """Leave what a submission leaves that was refused because the reply of Redis was lost."""
    digest = hashlib.sha256(data).hexdigest()
    ref = BlobRef(f"{tenant}/jobs/{job_id}/input-0", len(data), digest, "image/png")
    spec = JobSpec(ref, JobFields().parameters(), "1.0")
    draft = JobDraft(job_id, tenant, spec, datetime.now(UTC))
    running.service.store.create(draft, submission="lost")


@contextmanager
def working(running: Running) -> Iterator[None]:
    """Finish published jobs in a thread, with a little progress, as a worker does."""
    stop = threading.Event()

    def finish(job_id: str) -> None:
        claim = running.claim(job_id)
        progress = Progress("fit", iteration=1, iterations=2, psnr_db=20.0, bpp=0.5)
        running.service.store.progress(claim.lease, progress)
        stop.wait(0.4)
        data = GOLDEN.read_bytes()
        ref = running.service.journal.write_result(claim.record.tenant, claim.lease, data)
        running.service.store.succeed(claim.lease, ref, {"bpp": 0.5, "psnr_db": 30.0})

    def work() -> None:
        done = len(running.wakeups.published)
        while not stop.wait(0.05):
            while done < len(running.wakeups.published):
                job_id = running.wakeups.published[done]
                done += 1
                # A test may cancel or delete its job at any moment.
                with suppress(ClaimRefused, StaleLease, NotFound):
                    finish(job_id)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
