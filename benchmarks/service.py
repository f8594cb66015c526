"""Measures the service on this machine: ``python -m benchmarks.service [MEASUREMENT ...]``.

Starts it as ``make serve`` does, in a folder of its own, and asks it over HTTP. Progress goes to
standard error, a table to standard output, everything to a JSON file.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from api.embedded import EmbeddedService
from benchmarks import machine, processes
from benchmarks.load import Plan
from jobs import open_service
from jobs.keys import Scope
from jobs.record import Progress
from jobs.redis_server import RedisServer
from jobs.settings import load_settings
from jobs.wakeups import NoWakeups
from nifcore.client import Client

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"

# Counted, as in production, but never reached.
_NO_LIMITS = {"NIF_REQUESTS_PER_MINUTE": "1000000000", "NIF_QUEUE_LIMIT": "0"}
# Jobs stay where they are put, and logs cost what they cost in production.
_NO_WORKERS = {"NIF_WORKERS": "0", "NIF_LEASE_SECONDS": "3600", "NIF_REAPER_SECONDS": "600"}


@dataclass(frozen=True)
class Options:
    """What is measured with.

    Attributes:
        folder: for the services' data; they are removed with it.
        clients: that submit large pictures at the same time.
        rounds: of each of them; of start-ups and of encodes too.
        jobs: that the queue is filled with.
        poll_seconds: of each kind of poll.
        effort: of the encodes that the overhead is measured with.
    """

    folder: Path
    clients: int
    rounds: int
    jobs: int
    poll_seconds: float
    effort: int


Result = dict[str, Any]
Measurement = Callable[[Options], Result]


class Failed(Exception):
    """A measurement did not go as it must to mean anything."""


def say(text: str) -> None:
    """Tell how far it is."""
    print(text, file=sys.stderr, flush=True)


def photo(width: int, height: int) -> Image.Image:
    """Return a colour photo of that size, with the grain of a camera."""
    from skimage import data

    scaled = Image.fromarray(data.astronaut()).resize((width, height), Image.Resampling.BICUBIC)
    grain = np.random.default_rng(0).normal(0, 6, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(scaled) + grain, 0, 255).astype(np.uint8))


def put_load(service: EmbeddedService, path: str, **more: Any) -> dict[str, Any]:
    """Run the load generator and return its tally.

    Raises:
        Failed: an answer of 400 or above.
    """
    parts = urlsplit(service.url)
    headers = {"Authorization": f"Bearer {service.key}", **more.pop("headers", {})}
    plan = Plan(parts.hostname or "", parts.port or 0, headers, path, **more)
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.load"],
        cwd=ROOT,
        input=json.dumps(asdict(plan)),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    tally: dict[str, Any] = json.loads(run.stdout)
    if tally["first_refusal"] is not None:
        raise Failed(f"{path}: {tally['statuses']}, {tally['first_refusal']}")
    return tally


def spread(seconds: Sequence[float]) -> Result:
    """Return median, 99th percentile and extremes, in milliseconds."""
    ordered = np.sort(np.array(seconds)) * 1000
    return {
        "median_ms": round(float(np.median(ordered)), 2),
        "p99_ms": round(float(np.percentile(ordered, 99)), 2),
        "least_ms": round(float(ordered[0]), 2),
        "most_ms": round(float(ordered[-1]), 2),
    }


def _service(options: Options, name: str, **settings: str) -> EmbeddedService:
    folder = options.folder / name
    folder.mkdir(exist_ok=True)
    return EmbeddedService(folder / "data", folder / "log", _NO_LIMITS | settings)


def submit(options: Options) -> Result:
    """From a submission's first byte to its 202: 2-megapixel PNGs, many clients at once."""
    picture = options.folder / "two-megapixels.png"
    photo(1632, 1224).save(picture, compress_level=6)
    size = picture.stat().st_size
    say(f"submit: PNGs of {size / 1e6:.1f} MB")
    found: Result = {"picture_bytes": size, "pixels": 1632 * 1224}
    with _service(options, "submit", **_NO_WORKERS) as service:
        api = processes.child_with(service.pid, "uvicorn")
        sent = 0
        for name, clients in (("one client", 1), (f"{options.clients} clients", options.clients)):
            count = options.rounds * (clients if clients > 1 else 10)
            used = processes.processor_seconds(api)
            tally = put_load(
                service,
                "/v1/jobs",
                connections=clients,
                requests=count,
                picture=str(picture),
                first=sent,
            )
            sent += count
            if tally["statuses"] != {"202": count}:
                raise Failed(f"{count} submissions were answered {tally['statuses']}")
            found[name] = {
                "requests": count,
                **spread(tally["latencies"]),
                "per_second": round(count / tally["seconds"], 2),
                "megabytes_per_second": round(count * size / tally["seconds"] / 1e6, 1),
                "api_processor_ms_each": _each(processes.processor_seconds(api) - used, count),
                "client_processor_ms_each": _each(tally["processor_seconds"], count),
            }
            say(f"  {name}: {found[name]}")
    return found


def queue(options: Options) -> Result:
    """Small jobs accepted per second until the queue is long, and what the API's memory does."""
    picture = options.folder / "small.png"
    photo(48, 32).save(picture)
    steps = []
    with _service(options, "queue", **_NO_WORKERS) as service:
        api = processes.child_with(service.pid, "uvicorn")
        memory = [round(processes.resident_mebibytes(api), 1)]
        step = max(1, options.jobs // 8)
        for first in range(0, options.jobs, step):
            count = min(step, options.jobs - first)
            tally = put_load(
                service,
                "/v1/jobs",
                connections=8,
                requests=count,
                picture=str(picture),
                first=first,
            )
            steps.append(count / tally["seconds"])
            memory.append(round(processes.resident_mebibytes(api), 1))
            say(f"  {first + count} jobs: {steps[-1]:.0f}/s, API {memory[-1]} MiB")
        with Client(service.url, service.key) as client:
            (newest,) = client.jobs(most=1)
            newest = client.get(newest.id)  # lists have no places
        if newest.values["position"] != options.jobs:
            raise Failed(f"the newest job has place {newest.values['position']} in the queue")
    return {
        "jobs": options.jobs,
        "per_second": round(statistics.median(steps), 1),
        "per_second_by_step": [round(each, 1) for each in steps],
        "api_memory_mib": memory,
    }


def polls(options: Options) -> Result:
    """Status polls per second, of a waiting, a running and an ended job, whole and 304."""
    found: Result = {}
    picture = options.folder / "small.png"
    photo(48, 32).save(picture)
    with ExitStack() as stack:
        # A Redis of the same kind as the service starts, so that its address is known here.
        data = options.folder / "polls" / "data"
        redis = stack.enter_context(RedisServer.find_or_start(load_settings(data_dir=data)))
        shared = {"NIF_REDIS_URL": redis.url}
        service = stack.enter_context(_service(options, "polls", **_NO_WORKERS, **shared))
        client = stack.enter_context(Client(service.url, service.key))
        jobs = [client.submit(picture, effort=n, deduplicate=False).id for n in (1, 2, 3)]
        # A worker's part, done past HTTP: one job runs, with progress.
        settings = load_settings(data_dir=data, redis_url=redis.url)
        inside = stack.enter_context(open_service(settings, wakeups=NoWakeups()))
        lease = inside.store.claim(jobs[1], worker="benchmark").lease
        inside.store.progress(lease, Progress("fit", 1, 2, 300, 960, psnr_db=28.4, bpp=0.3))
        client.cancel(jobs[2])
        states = [client.get(job).state for job in jobs]
        if states != ["queued", "running", "cancelled"]:
            raise Failed(f"the jobs are {states}")
        # Not an administrator's, who may see everything: a key like everybody's.
        _, service.key = inside.keys.create("admin", [Scope.JOBS_READ])
        api = processes.child_with(service.pid, "uvicorn")
        for state, job in zip(states, jobs, strict=True):
            tag = _etag(service, job)
            for kind, headers in (("whole", {}), ("304", {"If-None-Match": tag})):
                for connections in (1, 8):
                    used = processes.processor_seconds(api)
                    tally = put_load(
                        service,
                        f"/v1/jobs/{job}",
                        connections=connections,
                        seconds=options.poll_seconds,
                        headers=headers,
                    )
                    count = len(tally["latencies"])
                    name = f"{state}, {kind}, {connections} connection{'s'[: connections - 1]}"
                    found[name] = {
                        "per_second": round(count / tally["seconds"]),
                        **spread(tally["latencies"]),
                        "api_processor_ms_each": _each(
                            processes.processor_seconds(api) - used, count
                        ),
                        "client_processor_ms_each": _each(tally["processor_seconds"], count),
                    }
                    say(f"  {name}: {found[name]['per_second']}/s")
                    if set(tally["statuses"]) != {"200" if kind == "whole" else "304"}:
                        raise Failed(f"{name}: {tally['statuses']}")
    return found


def _etag(service: EmbeddedService, job: str) -> str:
    request = urllib.request.Request(
        f"{service.url}/v1/jobs/{job}", headers={"Authorization": f"Bearer {service.key}"}
    )
    with urllib.request.urlopen(request, timeout=10) as reply:
        return str(reply.headers["ETag"])


def overhead(options: Options) -> Result:
    """What the service adds to ``nif encode``: the same photo, in turn by the one and the other."""
    picture = options.folder / "photo.png"
    photo(256, 256).save(picture)
    locally, remotely = [], []
    with _service(options, "overhead") as service, Client(service.url, service.key) as client:
        for number in range(options.rounds + 1):
            local = _encode_here(picture, options)
            remote = _encode_there(client, picture, options)
            # The first round warms both: files in memory, a child that has loaded torch.
            if number:
                locally.append(local)
                remotely.append(remote)
            say(f"  round {number}: nif encode {local}, service {remote}")

    def median(runs: list[Result], name: str) -> float:
        return round(statistics.median(run[name] for run in runs), 3)

    here, there = median(locally, "seconds"), median(remotely, "seconds")
    return {
        "effort": options.effort,
        "pixels": 256 * 256,
        "rounds": options.rounds,
        "nif_encode": {"seconds": here, "encoder_seconds": median(locally, "encoder_seconds")},
        "service": {name: median(remotely, name) for name in remotely[0] if name != "bytes"},
        "overhead_seconds": round(there - here, 3),
        "overhead_over_encoder_seconds": round(
            statistics.median(run["seconds"] - run["encoder_seconds"] for run in remotely), 3
        ),
        "runs": {"nif_encode": locally, "service": remotely},
    }


def _encode_here(picture: Path, options: Options) -> Result:
    target = options.folder / "here.nif"
    asked = ["--effort", str(options.effort), "--bpp", "0.3", "--json"]
    program = "import sys; from nifcore.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "encode", str(picture), str(target), *asked]
    plain = {name: value for name, value in os.environ.items() if not name.startswith("NIF_")}
    began = time.perf_counter()
    run = subprocess.run(command, cwd=ROOT, env=plain, stdout=subprocess.PIPE, check=True)
    seconds = time.perf_counter() - began
    report = json.loads(run.stdout)
    return {"seconds": seconds, "encoder_seconds": _seconds_of(report), "bytes": report["bytes"]}


def _encode_there(client: Client, picture: Path, options: Options) -> Result:
    began = time.perf_counter()
    job = client.submit(picture, effort=options.effort, bpp=0.3, deduplicate=False)
    submitted = time.perf_counter()
    job = client.wait(job.id)
    noticed, noticed_at = time.perf_counter(), time.time()
    if job.state != "succeeded":
        raise Failed(f"the job {job.state}: {job.failure}")
    data = client.result(job.id)
    ended = time.perf_counter()
    created, started, finished = (
        _moment(job.values[name]) for name in ("created_at", "started_at", "finished_at")
    )
    return {
        "seconds": ended - began,
        "submit_seconds": submitted - began,
        "queued_seconds": started - created,
        "running_seconds": finished - started,
        # Both clocks are this machine's.
        "noticed_seconds": noticed_at - finished,
        "download_seconds": ended - noticed,
        "encoder_seconds": client.report(job.id)["seconds"],
        "bytes": len(data),
    }


def _moment(text: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(text).timestamp()


def _seconds_of(report: Result) -> float:
    found: float = report["seconds"] if "seconds" in report else report["report"]["seconds"]
    return found


def startup(options: Options) -> Result:
    """From the command to /readyz, and to a worker that has reported: new folder and used one."""
    found: Result = {}
    for name in ("new folder", "used folder"):
        answered, ready = [], []
        for number in range(options.rounds):
            place = f"startup-{number if name == 'new folder' else 0}"
            service = _service(options, place)
            began = time.perf_counter()
            try:
                service.start()
                while not _is_ready(service.url):
                    time.sleep(0.02)
                answered.append(time.perf_counter() - began)
                service.wait_ready()
                ready.append(time.perf_counter() - began)
            finally:
                service.stop()
            say(f"  {name}: /readyz after {answered[-1]:.2f} s, all after {ready[-1]:.2f} s")
        found[name] = {
            "readyz_seconds": round(statistics.median(answered), 2),
            "readyz_seconds_most": round(max(answered), 2),
            "all_seconds": round(statistics.median(ready), 2),
        }
    return found


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=2) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _each(seconds: float, count: int) -> float:
    return round(1000 * seconds / count, 3)


MEASUREMENTS: dict[str, Measurement] = {
    "submit": submit,
    "queue": queue,
    "polls": polls,
    "overhead": overhead,
    "startup": startup,
}


def table(results: dict[str, Result]) -> str:
    """Return the numbers that matter, a line each."""
    rows: list[tuple[str, str]] = []
    for name, values in results.get("submit", {}).items():
        if isinstance(values, dict):
            rows.append(
                (
                    f"2-megapixel PNG to 202, {name}",
                    f"median {values['median_ms'] / 1000:.2f} s, p99 {values['p99_ms'] / 1000:.2f} "
                    f"s, {values['per_second']} per second",
                )
            )
    if "queue" in results:
        found = results["queue"]
        memory = found["api_memory_mib"]
        rows.append((f"small jobs accepted, up to {found['jobs']}", f"{found['per_second']}/s"))
        rows.append(
            ("memory of the API", f"{memory[0]} MiB, then {min(memory[1:])} to {max(memory[1:])}")
        )
    for name, values in results.get("polls", {}).items():
        rows.append((f"polls: {name}", f"{values['per_second']}/s, p99 {values['p99_ms']} ms"))
    if "overhead" in results:
        found = results["overhead"]
        rows.append(("over nif encode", f"{found['overhead_seconds']:+.2f} s"))
        rows.append(
            ("over the encoder's seconds", f"{found['overhead_over_encoder_seconds']:+.2f} s")
        )
    for name, values in results.get("startup", {}).items():
        rows.append(
            (
                f"start, {name}",
                f"/readyz after {values['readyz_seconds']} s, all after {values['all_seconds']} s",
            )
        )
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what was asked for; the exit code is 0 if all of it could be."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.service", description=__doc__)
    parser.add_argument("which", nargs="*", metavar="MEASUREMENT", help=", ".join(MEASUREMENTS))
    parser.add_argument("--clients", type=int, default=50, help="that submit at once (50)")
    parser.add_argument("--rounds", type=int, default=3, help="of each repeated part (3)")
    parser.add_argument("--jobs", type=int, default=2000, help="to fill the queue with (2000)")
    parser.add_argument("--poll-seconds", type=float, default=4.0, help="of each kind (4)")
    parser.add_argument("--effort", type=int, default=2, help="of the encodes (2)")
    parser.add_argument("--data", type=Path, help="folder to work in; by default a temporary one")
    parser.add_argument("--output", type=Path, help="file of the results")
    given = parser.parse_args(arguments)
    unknown = [name for name in given.which if name not in MEASUREMENTS]
    if unknown:
        parser.error(f"no measurement {unknown[0]!r}; there are {', '.join(MEASUREMENTS)}")
    output = given.output or RESULTS / f"service-{os.cpu_count()}-cores.json"
    results: dict[str, Result] = {}
    with tempfile.TemporaryDirectory(prefix="nif-bench-", dir=given.data) as folder:
        options = Options(
            folder=Path(folder),
            clients=given.clients,
            rounds=given.rounds,
            jobs=given.jobs,
            poll_seconds=given.poll_seconds,
            effort=given.effort,
        )
        document = {"schema_version": 1, "machine": machine.describe(options.folder)}
        for name in given.which or MEASUREMENTS:
            say(f"{name}: {(MEASUREMENTS[name].__doc__ or '').splitlines()[0]}")
            try:
                results[name] = MEASUREMENTS[name](options)
            except Failed as error:
                print(f"{name}: {error}", file=sys.stderr)
                return 1
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(document | results, indent=1) + "\n", encoding="utf-8")
    print(table(results))
    say(f"written to {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
