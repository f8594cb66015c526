"""The Python client against the running service."""

from __future__ import annotations

import asyncio
import http.server
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from jobs import Progress
from nifcore.client import AsyncClient, Client, Refused, RemoteJob, Unreachable, WaitTimeout, _Watch
from nifcore.errors import InputError, RemoteError
from nifcore.eventstream import RemoteEvent
from tests.api.running import GOLDEN, Running, picture, working


@pytest.fixture
def service(running: Running, tenant: str) -> Iterator[Client]:
    with Client(running.url, running.key(tenant)) as client:
        yield client


def test_a_picture_goes_there_and_back(running: Running, service: Client, tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    photo.write_bytes(picture(1))
    seen: list[RemoteJob] = []
    with working(running):
        job = service.submit(photo, effort=2, metadata={"a": "b"}, keep_icc=True)
        assert (job.state, job.filename) == ("queued", "photo.png")
        assert job.values["parameters"] == {"effort": 2, "seed": 0, "keep_icc": True}
        ended = service.wait(job.id, progress=seen.append, timeout=30)
    assert (ended.state, ended.ended) == ("succeeded", True)
    assert ended.result is not None
    assert ended.result["psnr_db"] == 30.0
    assert any(each.progress and each.progress["psnr_db"] == 20.0 for each in seen)
    assert service.download(job.id, tmp_path / "photo.nif") == GOLDEN.stat().st_size
    assert (tmp_path / "photo.nif").read_bytes() == GOLDEN.read_bytes()
    assert service.report(job.id) == {"bpp": 0.5, "psnr_db": 30.0}
    assert service.image(job.id, width=16, region=(0, 0, 4, 4))[:4] == b"\x89PNG"
    service.delete(job.id)
    with pytest.raises(Refused) as refused:
        service.get(job.id)
    assert (refused.value.status, refused.value.code) == (404, "job_not_found")
    assert refused.value.exit_code == 7
    assert refused.value.request_id


def test_jobs_are_steered_and_listed(running: Running, service: Client) -> None:
    ids = [service.submit(picture(10 + n), deduplicate=False).id for n in range(3)]
    assert [job.id for job in service.jobs()] == ids[::-1]
    assert [job.id for job in service.jobs(most=2)] == ids[:0:-1]
    assert service.cancel(ids[0]).state == "cancelled"
    assert [job.id for job in service.jobs(state=["cancelled"])] == [ids[0]]
    assert service.retry(ids[0]).state == "queued"
    running.claim(ids[1])
    assert service.finish(ids[1]).values["finish_requested"]
    with pytest.raises(WaitTimeout):
        service.wait(ids[2], timeout=0.3)
    with pytest.raises(Refused, match="no_result"):
        service.result(ids[2])
    assert service.estimate(640, 480, bpp=0.5)["bytes"] == 640 * 480 * 0.5 / 8


def test_the_asynchronous_client_does_the_same(
    running: Running, tenant: str, tmp_path: Path
) -> None:
    async def talk() -> None:
        async with AsyncClient(running.url, running.key(tenant)) as service:
            jobs = await asyncio.gather(
                *(service.submit(picture(20 + n), effort=1) for n in range(3))
            )
            assert len({job.id for job in jobs}) == 3
            seen: list[RemoteJob] = []
            ended = await service.wait(jobs[0].id, progress=seen.append, timeout=30)
            assert (ended.state, seen[-1].state) == ("succeeded", "succeeded")
            assert await service.result(jobs[0].id) == GOLDEN.read_bytes()
            size = await service.download(jobs[0].id, tmp_path / "a.nif")
            assert size == GOLDEN.stat().st_size
            assert (await service.report(jobs[0].id))["bpp"] == 0.5
            assert (await service.image(jobs[0].id, format="webp"))[8:12] == b"WEBP"
            assert (await service.wait(jobs[1].id, timeout=30)).ended
            assert (await service.wait(jobs[2].id, timeout=30)).ended
            assert {job.id async for job in service.jobs()} == {job.id for job in jobs}
            await service.delete(jobs[1].id)
            extra = await service.submit(picture(30))
            assert (await service.cancel(extra.id)).state in ("cancelled", "running")
            with pytest.raises(Refused, match="wrong_state"):
                await service.finish(jobs[0].id)
            with pytest.raises(Refused, match="wrong_state"):
                await service.retry(jobs[0].id)
            assert (await service.estimate(100, 100))["calibrated"] in (True, False)
            with pytest.raises(Refused, match="job_not_found"):
                await service.get(jobs[1].id)

    with working(running):
        asyncio.run(talk())


@contextmanager
def flaky(answers: list[tuple[int, dict[str, str], bytes]]) -> Iterator[tuple[str, list[str]]]:
    """Serve prepared answers one after another; a status of 0 hangs up."""
    keys: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            keys.append(self.headers.get("Idempotency-Key", ""))
            status, headers, body = answers.pop(0)
            if status:
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)
            self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", keys
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_submission_is_repeated_with_one_key() -> None:
    problem = {"Content-Type": "application/problem+json", "Retry-After": "1"}
    body = b'{"code": "store_unavailable", "detail": "down"}'
    good = (202, {"Content-Type": "application/json"}, b'{"id": "job_1", "state": "queued"}')
    with flaky([(0, {}, b""), (503, problem, body), good]) as (url, keys), Client(url) as client:
        assert client.submit(b"picture").id == "job_1"
    assert len(keys) == 3
    assert len(set(keys)) == 1


def test_a_long_wait_is_left_to_the_caller() -> None:
    problem = {"Content-Type": "application/problem+json", "Retry-After": "3600"}
    body = b'{"code": "quota_exceeded", "detail": "too many jobs"}'
    with flaky([(429, problem, body)]) as (url, keys), Client(url) as client:
        with pytest.raises(Refused, match="quota_exceeded"):
            client.submit(b"picture")
        assert len(keys) == 1


def test_other_servers_are_noticed() -> None:
    page = (200, {"Content-Type": "text/html"}, b"<html>")
    with (
        flaky([page]) as (url, _),
        Client(url) as client,
        pytest.raises(RemoteError, match="not with JSON"),
    ):
        client.submit(b"picture")


def test_bad_addresses_and_files_are_told() -> None:
    for url in ("nonsense", "ftp://example.org", "http://"):
        with pytest.raises(RemoteError, match="URL"):
            Client(url)
    with pytest.raises(RemoteError, match="key"):
        Client("http://127.0.0.1:9", "nif key")
    with Client("http://127.0.0.1:9") as client:
        with pytest.raises(InputError, match="cannot be read"):
            client.submit("no/such/file.png")
        with pytest.raises(Unreachable, match="cannot be reached"):
            client.get("job_1")


@contextmanager
def cutting(url: str) -> Iterator[str]:
    """Pass connections on to a service, and cut each after the second part of its answer."""
    target = httpx2.URL(url)
    listener = socket.create_server(("127.0.0.1", 0))

    def carry(client: socket.socket) -> None:
        with client, socket.create_connection((target.host, target.port)) as server:
            server.sendall(client.recv(65536))
            for _ in range(2):
                client.sendall(server.recv(65536))

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            carry(client)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


@contextmanager
def without_streams(paths: list[str]) -> Iterator[str]:
    """Serve one finished job, as a service of before the event streams would."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            there = not self.path.endswith("/events")
            kind = "application/json" if there else "application/problem+json"
            values = {"id": "job_1", "state": "succeeded"} if there else {"code": "not_found"}
            body = json.dumps(values).encode()
            self.send_response(200 if there else 404)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_events_are_followed_through_broken_connections(
    running: Running, tenant: str, service: Client
) -> None:
    job_id = service.submit(picture(61), deduplicate=False).id
    claim = running.claim(job_id)
    seen: list[RemoteEvent] = []
    with cutting(running.url) as url, Client(url, running.key(tenant)) as through:
        for event in through.events(job_id):
            seen.append(event)
            number = len(seen)
            if number < 5:
                said = Progress("fit", iteration=number, iterations=9, psnr_db=20.0)
                running.service.store.progress(claim.lease, said)
            elif number == 5:
                running.service.store.cancelled(claim.lease)
    assert [event.type for event in seen] == [
        "job.snapshot",
        *["job.progress"] * 4,
        "job.cancelled",
    ]
    assert [event.data.get("iteration") for event in seen[1:5]] == [1, 2, 3, 4]
    replayed = list(service.events(job_id, after=seen[2].id))
    assert [event.id for event in replayed] == [event.id for event in seen[3:]]
    assert list(service.events(job_id, after=seen[-1].id)) == []


def test_events_are_followed_without_blocking(running: Running, tenant: str) -> None:
    async def talk() -> list[str]:
        async with AsyncClient(running.url, running.key(tenant)) as service:
            job = await service.submit(picture(62), deduplicate=False)
            return [event.type async for event in service.events(job.id, after="0-0")]

    with working(running):
        told = asyncio.run(talk())
    assert told == ["job.queued", "job.running", "job.progress", "job.succeeded"]


def test_waiting_follows_the_stream_and_polls_where_there_is_none(
    running: Running, service: Client
) -> None:
    seen: list[RemoteJob] = []
    with working(running):
        job_id = service.submit(picture(63), deduplicate=False).id
        assert service.wait(job_id, progress=seen.append, timeout=30).state == "succeeded"
    assert [job.state for job in seen][-1] == "succeeded"
    paths: list[str] = []
    with without_streams(paths) as url, Client(url) as old:
        assert old.wait("job_1", timeout=30).state == "succeeded"
    assert paths == ["/v1/jobs/job_1/events", "/v1/jobs/job_1"]


@pytest.mark.parametrize(("state", "longest"), [("queued", 2.0), ("running", 0.5)])
def test_where_it_polls_the_end_of_a_running_job_is_noticed_soon(
    state: str, longest: float
) -> None:
    request = httpx2.Request("GET", "http://127.0.0.1/v1/jobs/job_1")
    watch = _Watch("job_1", None)
    watch.look(httpx2.Response(200, json={"id": "job_1", "state": state}, request=request))
    pauses = [watch.pause(changed=True)]
    for _ in range(20):
        assert watch.look(httpx2.Response(304, request=request)) is None
        pauses.append(watch.pause(changed=False))
    assert pauses == sorted(pauses)
    assert (pauses[0], pauses[-1]) == (0.2, longest)
