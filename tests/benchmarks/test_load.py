"""The load generator sends what it says, and the tables say what was measured."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.load import Plan, numbered, run
from benchmarks.service import spread, table

ROOT = Path(__file__).parents[2]
_PARTS = ("submit", "queue", "polls", "startup")


@contextmanager
def server(status: int = 200) -> Iterator[tuple[int, list[tuple[str, dict[str, str], bytes]]]]:
    """Run an HTTP server of the standard library that keeps what it was sent."""
    seen: list[tuple[str, dict[str, str], bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            seen.append((self.requestline, dict(self.headers), body))
            self.send_response(status)
            self.send_header("Content-Length", "5")
            self.end_headers()
            self.wfile.write(b"hello")

        do_GET = do_POST = answer  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as found:
        found.daemon_threads = True
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        try:
            yield found.server_port, seen
        finally:
            found.shutdown()
            thread.join()


@pytest.fixture
def png(tmp_path: Path) -> Path:
    path = tmp_path / "small.png"
    pixels = np.random.default_rng(5).integers(0, 256, (6, 8, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_numbered_pictures_differ_in_their_bytes_and_not_in_their_pixels(png: Path) -> None:
    data = png.read_bytes()
    made = [b"".join(numbered(data, number)) for number in range(3)]
    assert len({*made, data}) == 4
    expected = np.asarray(Image.open(png))
    for each in made:
        with Image.open(io.BytesIO(each)) as image:
            image.verify()
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(each))), expected)


def test_every_submission_carries_a_picture_of_its_own(png: Path) -> None:
    with server(202) as (port, seen):
        headers = {"Authorization": "Bearer k"}
        counts = {"connections": 3, "requests": 7}
        plan = Plan("127.0.0.1", port, headers, "/v1/jobs", picture=str(png), **counts)
        tally = asyncio.run(run(plan))
    assert (tally.statuses, len(tally.latencies), tally.first_refusal) == ({"202": 7}, 7, None)
    assert 0 < max(tally.latencies) <= tally.seconds
    pictures = set()
    for line, headers, body in seen:
        assert line == "POST /v1/jobs HTTP/1.1"
        assert headers["Authorization"] == "Bearer k"
        head = f"Content-Type: {headers['Content-Type']}\r\n\r\n".encode()
        (part,) = message_from_bytes(head + body).get_payload()
        content = part.get_payload(decode=True)
        assert part.get_param("name", header="content-disposition") == "file"
        assert Image.open(io.BytesIO(content)).size == (8, 6)
        pictures.add(hashlib.sha256(content).hexdigest())
    assert len(pictures) == 7


def test_refusals_are_kept() -> None:
    with server(429) as (port, _):
        tally = asyncio.run(run(Plan("127.0.0.1", port, {}, "/x", requests=2)))
    assert (tally.statuses, tally.first_refusal) == ({"429": 2}, "hello")


def test_the_program_reads_a_plan_and_prints_a_tally() -> None:
    with server() as (port, seen):
        plan = Plan("127.0.0.1", port, {"X-Mine": "yes"}, "/x", connections=2, requests=5)
        ended = subprocess.run(
            [sys.executable, "-m", "benchmarks.load"],
            cwd=ROOT,
            input=json.dumps(asdict(plan)),
            capture_output=True,
            text=True,
            check=True,
        )
    tally = json.loads(ended.stdout)
    assert (tally["statuses"], len(tally["latencies"])) == ({"200": 5}, 5)
    assert [headers["X-Mine"] for _, headers, _ in seen] == ["yes"] * 5


def test_spread_is_in_milliseconds() -> None:
    assert spread([0.001 * n for n in range(1, 102)]) == {
        "median_ms": 51.0,
        "p99_ms": 100.0,
        "least_ms": 1.0,
        "most_ms": 101.0,
    }


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_measurements_run_against_the_real_service(tmp_path: Path) -> None:
    output = tmp_path / "results.json"
    small = ["--rounds", "1", "--clients", "2", "--jobs", "16", "--poll-seconds", "0.1"]
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.service", "submit", "queue", "polls", "startup"),
            *(*small, "--data", str(tmp_path), "--output", str(output)),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    found = json.loads(output.read_text(encoding="utf-8"))
    assert found["machine"]["cores"] >= 1
    assert found["submit"]["2 clients"]["requests"] == 2
    assert found["queue"]["jobs"] == 16
    assert len(found["queue"]["api_memory_mib"]) == 9
    assert {name.split(",")[0] for name in found["polls"]} == {"queued", "running", "cancelled"}
    assert found["startup"]["new folder"]["readyz_seconds"] > 0
    assert ended.stdout.strip() == table({name: found[name] for name in found if name in _PARTS})
    # Its data is gone, only the results are left.
    assert [each.name for each in tmp_path.iterdir()] == ["results.json"]
