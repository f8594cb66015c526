"""``python -m benchmarks.dashboard``: how long the server takes for each page, with many jobs.

A Redis of its own is filled with jobs in every state, past the storage, and with webhook endpoints,
deliveries, keys and workers; then every page is asked for over HTTP, one request at a time.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import statistics
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import httpx2

from api.dashboard.routes.overview import MINUTES
from benchmarks.machine import describe
from jobs import (
    BlobRef,
    DeliveryAttempt,
    Failure,
    JobDraft,
    JobService,
    JobSpec,
    Parameters,
    Progress,
    RedisServer,
    Scope,
    Trouble,
    Verdict,
    WorkerInfo,
    new_job_id,
)
from jobs.history import EVERY_SECONDS
from tests.api.running import ADMIN_KEY, serving, settings_in

ROUNDS = 7
TENANTS = 20
DELIVERIES = 2000
_AT_ONCE = 200
HOME = "/dashboard"
_REPORT = {
    "width": 768, "height": 512, "channels": 3, "bytes": 11066, "bpp": 0.225, "psnr_db": 32.43,
    "ms_ssim": 0.9528, "seconds": 46.0, "preset": None, "effort": 5, "device": "cpu",
    "kernel": "chunked", "seed": 0, "parameters": 17726, "passes": 12.0, "tiles": 1,
    "complete": True, "notes": [],
}  # fmt: skip


def fill(service: JobService, count: int) -> dict[str, str]:
    """Make ``count`` jobs, most of them succeeded, and return one id for each state."""
    generator = random.Random(1)
    store = service.store
    found: dict[str, str] = {}
    for number in range(count):
        tenant = f"tenant-{number % TENANTS}"
        job_id = new_job_id()
        sha = f"{generator.getrandbits(256):064x}"
        ref = BlobRef(f"{tenant}/jobs/{job_id}/input", 400_000, sha, "image/png")
        spec = JobSpec(ref, Parameters(effort=5, bpp=0.3), "0.1.0", 768, 512, f"photo-{number}.png")
        draft = JobDraft(
            job_id,
            tenant,
            spec,
            submitted_at=datetime.now(UTC),
            metadata={"album": f"album-{number % 300}", "shot": str(number)},
        )
        store.create(draft, submission=job_id)
        fate = number % 20
        if fate == 0:
            found["queued"] = job_id
            continue
        claim = store.claim(job_id, worker=f"host-{number % 4}")
        # One job has as many events as are kept.
        steps = service.settings.events_per_job if number == count - 2 else 1
        for step in range(steps):
            store.progress(
                claim.lease,
                Progress(
                    "fit", iteration=step, iterations=steps, psnr_db=20 + step / steps, bpp=0.3
                ),
            )
        if fate == 1:
            store.fail(claim.lease, Failure("impossible_target", "99 dB asked; 41 dB reached"))
            found["failed"] = job_id
        elif fate == 2:
            store.cancelled(claim.lease)
            found["cancelled"] = job_id
        elif number == count - 2:
            found["longest"] = job_id
        else:
            result = BlobRef(f"{tenant}/jobs/{job_id}/out.nif", 11_066, sha, "application/x-nif")
            store.succeed(claim.lease, result, _REPORT)
            found["succeeded"] = job_id
    return found


def hook(service: JobService, count: int) -> str:
    """Make ``count`` endpoints and `DELIVERIES` to them, and return the one with most of these.

    A third of the deliveries went well, a third failed, a third waits.
    """
    endpoints = [
        service.endpoints.create(f"tenant-{number % TENANTS}", f"https://example.org/{number}")[0]
        for number in range(count)
    ]
    busiest = endpoints[-1].id
    for number in range(DELIVERIES):
        service.endpoints.test(None, busiest if number % 4 == 0 else endpoints[number % count].id)
    settled = 0
    while settled < DELIVERIES * 2 // 3:
        claims = service.deliveries.claim(
            limit=_AT_ONCE, per_host=_AT_ONCE, per_tenant=_AT_ONCE, claim_seconds=60
        )
        for claim in claims:
            good = settled % 2 == 0
            attempt = DeliveryAttempt(
                datetime.now(UTC), 204 if good else 500, None if good else Trouble.STATUS, 40
            )
            service.deliveries.settle(claim, attempt, Verdict.DELIVERED if good else Verdict.FAILED)
            settled += 1
    return busiest


def staff(service: JobService, keys: int, workers: int) -> None:
    """Make keys, and have workers say that they are there."""
    for number in range(keys):
        service.keys.create(f"tenant-{number % TENANTS}", [Scope.JOBS_READ], name=f"key {number}")
    facts = {
        "cpus": 16, "cpu_percent": 740.0, "load_average": 7.5, "memory_bytes": 2 * 10**8,
        "child_memory_bytes": 3 * 10**9, "machine_memory_bytes": 64 * 10**9,
        "gpu_name": "A GPU", "gpu_percent": 80.0, "gpu_memory_bytes": 24 * 10**9,
        "gpu_memory_used_bytes": 9 * 10**9,
    }  # fmt: skip
    for number in range(workers):
        service.workers.beat(
            WorkerInfo(
                f"host-{number}",
                f"host-{number}",
                1000 + number,
                "cuda:0",
                ("encode",),
                datetime.now(UTC),
                facts=facts,
            )
        )


def pages(ids: dict[str, str], endpoint: str) -> dict[str, str]:
    """Return every page by its name."""
    fixed = {
        "overview": "",
        "jobs": "/jobs",
        "jobs, failed": "/jobs?state=failed",
        "search, name that all have": "/jobs?q=photo",
        "search, metadata": "/jobs?q=album%3Dalbum-7",
        "search, in vain": "/jobs?q=nothing-has-this",
        "dead jobs": "/dead",
        "webhooks": "/webhooks",
        "webhook": f"/webhooks/{endpoint}",
        "webhook, failed": f"/webhooks/{endpoint}?state=failed",
        "workers": "/workers",
        "queues": "/queues",
        "keys": "/keys",
        "audit log": "/audit",
    }
    return fixed | {f"job, {name}": f"/jobs/{job}" for name, job in ids.items()}


def sampled(service: JobService) -> None:
    """Take an hour's samples, a millisecond apart instead of fifteen seconds."""
    for _ in range(MINUTES * 60 // EVERY_SECONDS):
        service.database.client.delete(service.database.key("history", "turn"))
        assert service.history.take()


def main() -> None:
    """Fill, measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--endpoints", type=int, default=400)
    parser.add_argument("--keys", type=int, default=400)
    parser.add_argument("--workers", type=int, default=20)
    parser.add_argument("--json", type=Path, help="write the results here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        settings = settings_in(Path(folder), webhooks_per_tenant=0)
        with RedisServer.find_or_start(settings) as redis, serving(settings, redis) as running:
            machine = describe(Path(folder))
            started = time.perf_counter()
            ids = fill(running.service, arguments.jobs)
            endpoint = hook(running.service, arguments.endpoints)
            staff(running.service, arguments.keys, arguments.workers)
            sampled(running.service)
            print(f"{arguments.jobs} jobs made in {time.perf_counter() - started:.0f} s")
            results = measure(running.url, pages(ids, endpoint))
    width = max(map(len, results))
    for name, (median, worst, size) in results.items():
        print(f"{name:<{width}}  {median * 1000:6.0f} ms  {worst * 1000:6.0f} ms  {size:>8,} B")
    if arguments.json:
        found = {
            "machine": machine,
            "jobs": arguments.jobs,
            "endpoints": arguments.endpoints,
            "deliveries": DELIVERIES,
            "keys": arguments.keys,
            "workers": arguments.workers,
            "rounds": ROUNDS,
            "pages": {
                name: {"median_s": round(median, 4), "worst_s": round(worst, 4), "bytes": size}
                for name, (median, worst, size) in results.items()
            },
        }
        arguments.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def measure(url: str, paths: dict[str, str]) -> dict[str, tuple[float, float, int]]:
    """Return median and worst seconds and the bytes of every page."""
    results = {}
    with httpx2.Client(base_url=url, timeout=60.0) as client:
        form = client.get(f"{HOME}/login").text
        found = re.search(r'name="csrf" value="([^"]+)"', form)
        assert found is not None
        client.post(f"{HOME}/login", data={"csrf": found[1], "key": ADMIN_KEY})
        for name, path in paths.items():
            times = []
            for _ in range(ROUNDS):
                began = time.perf_counter()
                answer = client.get(HOME + path)
                times.append(time.perf_counter() - began)
                assert answer.status_code == 200, (path, answer.status_code)
            results[name] = (statistics.median(times), max(times), len(answer.content))
    return results


if __name__ == "__main__":
    main()
