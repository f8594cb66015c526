"""``python -m benchmarks.dashboard``: how long the server takes for each page, with many jobs.

A Redis of its own is filled with jobs in every state, past the storage, and every page is asked
for over HTTP, one request at a time.
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

from benchmarks.machine import describe
from jobs import (
    BlobRef,
    Failure,
    JobDraft,
    JobService,
    JobSpec,
    Parameters,
    Progress,
    RedisServer,
    new_job_id,
)
from tests.api.running import ADMIN_KEY, serving, settings_in

ROUNDS = 7
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
        tenant = f"tenant-{number % 20}"
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


def pages(ids: dict[str, str]) -> dict[str, str]:
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
        "workers": "/workers",
        "queues": "/queues",
        "keys": "/keys",
        "audit log": "/audit",
    }
    return fixed | {f"job, {name}": f"/jobs/{job}" for name, job in ids.items()}


def main() -> None:
    """Fill, measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--json", type=Path, help="write the results here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        settings = settings_in(Path(folder))
        with RedisServer.find_or_start(settings) as redis, serving(settings, redis) as running:
            machine = describe(Path(folder))
            started = time.perf_counter()
            ids = fill(running.service, arguments.jobs)
            for _ in range(20):
                running.service.history.take()
            print(f"{arguments.jobs} jobs made in {time.perf_counter() - started:.0f} s")
            results = measure(running.url, pages(ids))
    width = max(map(len, results))
    for name, (median, worst, size) in results.items():
        print(f"{name:<{width}}  {median * 1000:6.0f} ms  {worst * 1000:6.0f} ms  {size:>8,} B")
    if arguments.json:
        found = {
            "machine": machine,
            "jobs": arguments.jobs,
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
