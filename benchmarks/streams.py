"""Measures event streams on this machine: ``python -m benchmarks.streams``.

Starts the service as ``make serve`` does, without encode workers, opens streams of running jobs,
and does a worker's part: progress twice a second for each job. Measured is the time from the
store's note of an event to its arrival, and what the streams cost.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from api.embedded import EmbeddedService
from benchmarks import machine, processes
from benchmarks.listeners import Plan
from jobs import NoWakeups, Progress, RedisServer, load_settings, open_service
from nifcore.client import Client

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"

_PER_SECOND = 2
_SETTINGS = {
    "NIF_WORKERS": "0",
    "NIF_LEASE_SECONDS": "3600",
    "NIF_REAPER_SECONDS": "600",
    "NIF_REQUESTS_PER_MINUTE": "0",
    "NIF_STREAMS": "0",
    "NIF_STREAMS_PER_TENANT": "0",
}


def picture(seed: int) -> bytes:
    """Return a small PNG that no other seed gives."""
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def measure(folder: Path, *, streams: int, count: int, seconds: float) -> dict[str, Any]:
    """Follow ``count`` jobs with ``streams`` streams for a while, and return what was measured."""
    with ExitStack() as stack:
        data = folder / "data"
        redis = stack.enter_context(RedisServer.find_or_start(load_settings(data_dir=data)))
        service = stack.enter_context(
            EmbeddedService(data, folder / "log", _SETTINGS | {"NIF_REDIS_URL": redis.url})
        )
        api = processes.child_with(service.pid, "uvicorn")
        settings = load_settings(data_dir=data, redis_url=redis.url, lease_seconds=3600.0)
        inside = stack.enter_context(open_service(settings, wakeups=NoWakeups()))
        client = stack.enter_context(Client(service.url, service.key))
        jobs = [client.submit(picture(n), deduplicate=False).id for n in range(count)]
        leases = [inside.store.claim(job, worker="benchmark").lease for job in jobs]

        parts = urlsplit(service.url)
        plan = Plan(
            parts.hostname or "",
            parts.port or 0,
            {"Authorization": f"Bearer {service.key}"},
            [f"/v1/jobs/{jobs[n % count]}/events" for n in range(streams)],
        )
        connections = _connections(inside)
        memory = processes.resident_mebibytes(api)
        listeners = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-m", "benchmarks.listeners"],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        assert listeners.stdin is not None
        assert listeners.stdout is not None
        listeners.stdin.write(json.dumps(asdict(plan)))
        listeners.stdin.close()
        if listeners.stdout.readline() != "open\n":
            raise SystemExit("the streams could not be opened")
        opened = processes.resident_mebibytes(api)
        more_connections = _connections(inside) - connections

        used, began = processes.processor_seconds(api), time.monotonic()
        rounds = round(seconds * _PER_SECOND)
        late = 0.0
        for turn in range(rounds):
            for index, lease in enumerate(leases):
                # Spread over the half second, as jobs that know nothing of each other are.
                due = began + (turn + index / count) / _PER_SECOND
                time.sleep(max(0.0, due - time.monotonic()))
                late = max(late, time.monotonic() - due)
                said = Progress(
                    "fit", iteration=turn, iterations=rounds, loss=0.002, psnr_db=28.4, bpp=0.3
                )
                inside.store.progress(lease, said)
        lasted = time.monotonic() - began
        used = processes.processor_seconds(api) - used
        loaded = processes.resident_mebibytes(api)
        for lease in leases:
            inside.store.cancelled(lease)
        heard = json.loads(listeners.stdout.read())
    latencies = np.array(heard["latencies_ms"])
    expected = rounds * streams
    return {
        "streams": streams,
        "jobs": count,
        "seconds": round(lasted, 2),
        "events_written_per_second": round(rounds * count / lasted, 1),
        "events_delivered_per_second": round(len(latencies) / lasted, 1),
        "delivered": len(latencies),
        "expected": expected,
        "missing_of_any_stream": rounds - min(heard["per_stream"]),
        "dropped": heard["events"].get("dropped", 0),
        "ended_in_order": heard["events"].get("end", 0),
        "statuses": heard["statuses"],
        "latency_ms": {
            "median": round(float(np.median(latencies)), 1),
            "p99": round(float(np.percentile(latencies, 99)), 1),
            "most": round(float(latencies.max()), 1),
        },
        "opening_seconds": round(heard["opening_seconds"], 2),
        "api_processor_share": round(used / lasted, 3),
        "api_mebibytes": [round(each, 1) for each in (memory, opened, loaded)],
        "kibibytes_per_stream": round(1024 * (opened - memory) / streams, 1),
        "redis_connections_for_all_streams": more_connections,
        "writer_late_ms": round(1000 * late, 1),
        "listeners_processor_seconds": round(heard["processor_seconds"], 1),
    }


def _connections(inside: Any) -> int:
    return int(inside.database.client.info("clients")["connected_clients"])


def main() -> int:
    """Measure, show, and write the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.streams", description=__doc__)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=50, help="that the streams are spread over")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = given.streams + 1024
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))
    with tempfile.TemporaryDirectory(prefix="nif-bench-") as folder:
        document = {
            "schema_version": 1,
            "command": "python -m benchmarks.streams",
            "machine": machine.describe(Path(folder)),
            "result": measure(
                Path(folder), streams=given.streams, count=given.jobs, seconds=given.seconds
            ),
        }
    text = json.dumps(document, indent=2) + "\n"
    print(text, end="")
    output = given.output or RESULTS / f"streams-{os.cpu_count()}-cores.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
