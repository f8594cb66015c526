"""A real Redis for the whole run, an empty one for every test."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from jobs import (
    BlobRef,
    FileBlobs,
    JobDraft,
    JobService,
    JobSpec,
    JobStore,
    Parameters,
    RedisServer,
    Settings,
    StoreUnavailable,
    load_settings,
    new_job_id,
    open_service,
)
from tests.jobs.wakeups import ListWakeups


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    settings = load_settings(data_dir=tmp_path_factory.mktemp("redis"))
    try:
        server = RedisServer.find_or_start(settings, kinds=("system", "bundled"))
    except StoreUnavailable as error:
        pytest.skip(f"no real Redis here: {error}")
    with server:
        yield server


@pytest.fixture
def settings(redis_server: RedisServer, tmp_path: Path) -> Settings:
    return load_settings(
        redis_url=redis_server.url, data_dir=tmp_path, public_url="http://nif.test"
    )


@pytest.fixture
def wakeups() -> ListWakeups:
    return ListWakeups()


@pytest.fixture
def service(settings: Settings, wakeups: ListWakeups) -> Iterator[JobService]:
    with open_service(settings, wakeups=wakeups) as service:
        service.database.client.flushall()
        yield service


@pytest.fixture
def store(service: JobService) -> JobStore:
    return service.store


@pytest.fixture
def blobs(service: JobService) -> FileBlobs:
    assert isinstance(service.blobs, FileBlobs)
    return service.blobs


@pytest.fixture
def draft() -> Callable[..., JobDraft]:
    """Return a maker of drafts whose input is not stored anywhere."""

    def make(content: bytes | int = 0, **changes: Any) -> JobDraft:
        data = content if isinstance(content, bytes) else f"picture {content}".encode()
        job_id = changes.pop("id", None) or new_job_id()
        tenant = changes.pop("tenant", "acme")
        parameters = changes.pop("parameters", Parameters(effort=3, quality=75))
        ref = BlobRef(
            f"{tenant}/jobs/{job_id}/input-0", len(data), hashlib.sha256(data).hexdigest(),
            "image/png",
        )  # fmt: skip
        spec = JobSpec(ref, parameters, "1.0", width=8, height=8, filename="a.png")
        return JobDraft(job_id, tenant, spec, datetime.now(UTC), **changes)

    return make


@pytest.fixture
def submit(service: JobService, draft: Callable[..., JobDraft]) -> Callable[..., Any]:
    """Return a function that stores a picture and submits a job for it."""

    def run(content: bytes | int = 0, **changes: Any) -> Any:
        max_active = changes.pop("max_active", None)
        data = content if isinstance(content, bytes) else f"picture {content}".encode()
        made = draft(data, **changes)
        ref = service.journal.write_input(made.tenant, made.id, data, "image/png")
        made = replace(made, spec=replace(made.spec, input=ref))
        return service.submit(made, max_active=max_active)

    return run


@pytest.fixture
def expire(service: JobService) -> Callable[[str], None]:
    """Return a function that lets a running job's lease run out."""

    def run(job_id: str) -> None:
        key = service.database.key
        service.database.client.zadd(key("leases"), {job_id: 1})
        service.database.client.hset(key("job", job_id), "lease_until", "1")

    return run


@pytest.fixture
def settle(settings: Settings, service: JobService) -> Callable[[str], None]:
    """Return a function that makes a spec so old that nobody takes it back any more."""

    def run(job_id: str) -> None:
        (path,) = (settings.data_dir / "blobs" / "objects").glob(f"*/jobs/{job_id}/spec.json@")
        os.utime(path, (0, 0))

    return run


@pytest.fixture
def age(service: JobService) -> Callable[[str, str, float], None]:
    """Return a function that makes an entry of a time index older, by seconds."""

    def run(index: str, member: str, seconds: float) -> None:
        key = service.database.key(index)
        changed = service.database.client.zincrby(key, -seconds * 1000, member)
        assert changed > 0

    return run
