"""The service with its blobs in S3: the app over HTTP, a real S3 server, a real worker.

::

    client ─► app ─► relay ─► S3 server      the app's own requests, which the tests can cut off
    client ──────────────────► S3 server      presigned links, by NIF_S3_PUBLIC_ENDPOINT
"""

from __future__ import annotations

import hashlib
import io
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit, urlunsplit

import httpx2
import pytest
from PIL import Image
from pydantic import SecretStr

import nifcore
from jobs import with_parent
from jobs.s3_blobs import make_client
from tests.api.asking import code_of, submit
from tests.api.running import GOLDEN, Running, picture, serving, settings_in
from tests.api.test_uploads import announce
from tests.jobs.object_servers import S3Server, missing_for_swift, moto_server, swift_server
from worker.supervisor import environment_of
from worker.wakeups import CeleryWakeups

ROOT = Path(__file__).parents[2]
BUCKET = "nif-pictures"
FILE = GOLDEN.read_bytes()


class Relay:
    """Carries TCP to a server, until it is told to be down."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._connections: set[socket.socket] = set()
        self._down = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    @contextmanager
    def down(self) -> Iterator[None]:
        """Cut all connections off, and every new one as it comes."""
        self._down.set()
        for each in list(self._connections):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        try:
            yield
        finally:
            self._down.clear()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._listener.close()

    def _accept(self) -> None:
        workers = []
        while not self._stop.is_set():
            if select.select([self._listener], [], [], 0.05)[0]:
                connection, _ = self._listener.accept()
                if self._down.is_set():
                    connection.close()
                    continue
                workers.append(threading.Thread(target=self._carry, args=(connection,)))
                workers[-1].start()
        for each in workers:
            each.join()

    def _carry(self, client: socket.socket) -> None:
        with client, socket.create_connection(self._target) as server:
            self._connections |= {client, server}
            other = {client: server, server: client}
            with suppress(OSError):
                while not self._stop.is_set():
                    for each in select.select([client, server], [], [], 0.05)[0]:
                        data = each.recv(65536)
                        if not data:
                            return
                        other[each].sendall(data)
            self._connections -= {client, server}


@dataclass(frozen=True)
class InS3:
    """A service whose blobs are in S3.

    Attributes:
        running: the service.
        relay: between the app and the S3 server.
        server: the S3 server itself.
        signed: whether it checks signatures.
        keys: gives the keys in the bucket that begin with a prefix.
    """

    running: Running
    relay: Relay
    server: S3Server
    signed: bool
    keys: Callable[[str], list[str]]


@pytest.fixture(scope="module", params=["swift", "moto"])
def s3(
    request: pytest.FixtureRequest, running: Running, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[InS3]:
    kind: str = request.param
    folder = tmp_path_factory.mktemp(kind)
    with ExitStack() as stack:
        if kind == "swift":
            if (reason := missing_for_swift(folder)) is not None:
                pytest.skip(reason)
            server = stack.enter_context(swift_server(folder))
        else:
            server = stack.enter_context(moto_server(folder))
        host, _, port = server.url.removeprefix("http://").partition(":")
        relay = Relay((host, int(port)))
        stack.callback(relay.close)
        settings = settings_in(
            tmp_path_factory.mktemp("data"),
            redis_prefix=f"s3-{kind}",
            blobs="s3",
            s3_bucket=BUCKET,
            s3_endpoint=f"http://127.0.0.1:{relay.port}",
            s3_public_endpoint=server.url,
            s3_access_key=server.access_key,
            s3_secret_key=server.secret_key,
            s3_prefix="pictures/",
            s3_timeout_seconds=20,
            device="cpu",
            child_threads=1,
        )
        client = make_client(settings, server.url)
        stack.callback(client.close)
        client.create_bucket(Bucket=BUCKET)

        def keys(prefix: str) -> list[str]:
            reply = client.list_objects_v2(Bucket=BUCKET, Prefix=f"pictures/{prefix}")
            return [row["Key"].removeprefix("pictures/") for row in reply.get("Contents", ())]

        found = stack.enter_context(serving(settings, running.redis))
        yield InS3(found, relay, server, kind == "swift", keys)


@pytest.fixture
def client(s3: InS3, tenant: str) -> Iterator[httpx2.Client]:
    with s3.running.client(s3.running.key(tenant)) as found:
        yield found


@pytest.fixture
def nobody() -> Iterator[httpx2.Client]:
    """A client without any key: a link is the right."""
    with httpx2.Client(timeout=60.0) as found:
        yield found


def send(nobody: httpx2.Client, upload: dict[str, Any], data: bytes) -> httpx2.Response:
    return nobody.request(upload["method"], upload["url"], content=data, headers=upload["headers"])


@contextmanager
def worker(running: Running, log: Path) -> Iterator[None]:
    """Run an encode worker, as an installation does."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            with_parent.command([sys.executable, "-m", "worker", "encode"]),
            cwd=ROOT,
            env={**os.environ, **environment_of(running.settings)},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_a_picture_goes_the_whole_way(
    s3: InS3, client: httpx2.Client, nobody: httpx2.Client, tenant: str, tmp_path: Path
) -> None:
    data = picture(601, 24, 16)
    digest = hashlib.sha256(data).hexdigest()
    upload: dict[str, Any] = announce(client, data, sha256=digest, filename="photo.png")
    assert upload["url"].startswith(f"{s3.server.url}/{BUCKET}/pictures/{tenant}/uploads/")
    early = client.post("/v1/jobs", json={"upload_id": upload["id"]})
    assert code_of(early) == (409, "upload_incomplete")
    assert send(nobody, upload, data).status_code == 200
    answer = client.post("/v1/jobs", json={"upload_id": upload["id"], "effort": 1})
    assert answer.status_code == 202, answer.text
    job_id = answer.json()["id"]
    place = f"{tenant}/jobs/{job_id}/"
    assert f"{place}spec.json" in s3.keys(place)
    assert (
        s3.running.service.blobs.get(next(key for key in s3.keys(place) if "/input-" in key))
        == data
    )

    wakeups = CeleryWakeups(s3.running.settings)
    log = tmp_path / "worker.log"
    try:
        with worker(s3.running, log):
            wakeups.publish(job_id, priority=5, queue="encode")
            deadline = time.monotonic() + 120
            while (job := client.get(f"/v1/jobs/{job_id}").json())["state"] != "succeeded":
                assert job["state"] in ("queued", "running"), job
                assert time.monotonic() < deadline, log.read_text()[-4000:]
                time.sleep(0.1)
    finally:
        wakeups.close()
    assert job["attempt"] == 1

    file = client.get(f"/v1/jobs/{job_id}/result").content
    assert hashlib.sha256(file).hexdigest() == job["result"]["sha256"]
    assert nifcore.decode(file, device="cpu").size == (24, 16)
    seen = client.get(f"/v1/jobs/{job_id}/image", params={"width": 12})
    assert Image.open(io.BytesIO(seen.content)).size == (12, 8)
    assert client.get(f"/v1/jobs/{job_id}/report").json()["report"]["bytes"] == len(file)
    assert any("/images/" in key for key in s3.keys(place))

    assert client.delete(f"/v1/jobs/{job_id}").status_code == 204
    assert s3.keys(place) == []
    assert code_of(client.get(f"/v1/jobs/{job_id}/result")) == (404, "job_not_found")


def finished(s3: InS3, client: httpx2.Client, seed: int, data: bytes = FILE) -> str:
    answer = submit(client, picture(seed), deduplicate="false")
    assert answer.status_code == 202, answer.text
    job_id: str = answer.json()["id"]
    s3.running.succeed(job_id, data)
    return job_id


def test_a_result_comes_whole_in_part_and_by_link(
    s3: InS3, client: httpx2.Client, nobody: httpx2.Client
) -> None:
    large = FILE + bytes(600_000)
    path = f"/v1/jobs/{finished(s3, client, 602, large)}/result"
    whole = client.get(path)
    assert whole.content == large
    digest = hashlib.sha256(large).hexdigest()
    assert whole.headers["etag"] == f'"{digest}"'
    for asked, expected in (
        ("bytes=0-99", large[:100]),
        ("bytes=-7", large[-7:]),
        ("bytes=5-500004", large[5:500_005]),
    ):
        part = client.get(path, headers={"Range": asked})
        assert (part.status_code, part.content) == (206, expected), asked
    beyond = client.get(path, headers={"Range": f"bytes={len(large)}-"})
    assert code_of(beyond) == (416, "range_unsatisfiable")

    link = client.get(path, params={"redirect": "true"})
    assert link.status_code == 307
    assert link.headers["cache-control"] == "no-store"
    address = link.headers["location"]
    assert address.startswith(f"{s3.server.url}/{BUCKET}/pictures/")
    followed = nobody.get(address)
    assert followed.content == large
    assert followed.headers["content-disposition"].startswith('attachment; filename="photo.nif"')
    part = nobody.get(address, headers={"Range": "bytes=300000-599999"})
    assert (part.status_code, part.content) == (206, large[300_000:600_000])


def altered(link: str, **changes: str) -> str:
    parts = urlsplit(link)
    query = {name: values[0] for name, values in parse_qs(parts.query).items()}
    assert set(changes) <= set(query)
    return urlunsplit(parts._replace(query=urlencode(query | changes)))


def test_links_that_are_altered_or_late_are_refused(
    s3: InS3, client: httpx2.Client, nobody: httpx2.Client, tenant: str
) -> None:
    if not s3.signed:
        pytest.skip("moto's server checks no signatures")
    job_id = finished(s3, client, 603)
    answer = client.get(f"/v1/jobs/{job_id}/result", params={"redirect": "true"})
    link = answer.headers["location"]
    assert nobody.get(link).content == FILE
    other = finished(s3, client, 604)
    for bad in (
        altered(link, **{"X-Amz-Signature": "0" * 64}),
        altered(link, **{"X-Amz-Expires": "604800"}),
        link.replace(job_id, other),
    ):
        refused = nobody.get(bad)
        assert refused.status_code == 403, bad
        assert FILE not in refused.content
    assert nobody.get(link.partition("?")[0]).is_client_error
    assert nobody.put(link, content=b"x").status_code == 403
    assert nobody.delete(link).status_code == 403
    blobs = s3.running.service.blobs
    record = s3.running.service.store.get(job_id)
    assert record.result is not None
    brief = blobs.presign_get(record.result.key, ttl_seconds=1)
    time.sleep(2.1)
    assert nobody.get(brief).status_code == 403

    data = picture(605)
    upload: dict[str, Any] = announce(client, data)
    assert send(nobody, upload | {"url": upload["url"] + "0"}, data).status_code == 403
    wrong_type = upload["headers"] | {"Content-Type": "text/html"}
    assert send(nobody, upload | {"headers": wrong_type}, data).status_code == 403
    longer = upload["headers"] | {"Content-Length": str(len(data) + 1)}
    assert send(nobody, upload | {"headers": longer}, data + b"x").status_code == 403
    put = blobs.presign_put(
        f"{tenant}/uploads/late", ttl_seconds=1, size=len(data), media_type="image/png"
    )
    time.sleep(2.1)
    late = {"method": "PUT", "url": put.url, "headers": dict(put.headers)}
    assert send(nobody, late, data).status_code == 403
    assert s3.keys(f"{tenant}/uploads/") == []


def test_what_was_uploaded_is_verified_before_anything_is_queued(
    s3: InS3, client: httpx2.Client, nobody: httpx2.Client, tenant: str
) -> None:
    data = picture(606)
    for content, declared, expected in (
        (data, {"sha256": "0" * 64}, (422, "upload_damaged")),
        (b"no picture at all", {}, (415, "unsupported_image")),
        (data[:-6], {}, (422, "damaged_image")),
    ):
        upload: dict[str, Any] = announce(client, content, **declared)
        assert send(nobody, upload, content).status_code == 200
        answer = client.post("/v1/jobs", json={"upload_id": upload["id"]})
        assert code_of(answer) == expected
    assert client.get("/v1/jobs").json()["items"] == []
    assert s3.keys(f"{tenant}/jobs/") == []


def test_a_storage_that_is_down_accepts_nothing(
    s3: InS3, client: httpx2.Client, nobody: httpx2.Client, tenant: str
) -> None:
    job_id = finished(s3, client, 607, FILE + bytes(600_000))
    data = picture(608)
    upload: dict[str, Any] = announce(client, data)
    assert send(nobody, upload, data).status_code == 200
    before = s3.keys(f"{tenant}/")
    with s3.relay.down():
        for answer in (
            submit(client, picture(609), idempotency_key="outage"),
            client.post("/v1/jobs", json={"upload_id": upload["id"]}),
            client.post("/v1/batches", files=[("file", ("a.png", picture(610)))]),
            client.get(f"/v1/jobs/{job_id}/result"),
            client.get(f"/v1/jobs/{job_id}/image"),
        ):
            assert code_of(answer) == (503, "blobs_unavailable"), answer.request.url
            assert int(answer.headers["retry-after"]) >= 1
            assert "127.0.0.1" not in answer.json()["detail"]
        ready = client.get("/readyz")
        assert (ready.status_code, ready.json()["parts"]) == (
            503,
            {"store": "ok", "blobs": "unavailable"},
        )
        assert client.get("/healthz").status_code == 200
        # What needs no storage goes on.
        assert client.get(f"/v1/jobs/{job_id}").json()["state"] == "succeeded"
    assert s3.keys(f"{tenant}/") == before
    assert [job["id"] for job in client.get("/v1/jobs").json()["items"]] == [job_id]
    # Everything that was refused goes through now, under the same key and with the same upload.
    again = submit(client, picture(609), idempotency_key="outage")
    assert again.status_code == 202
    used = client.post("/v1/jobs", json={"upload_id": upload["id"]})
    assert used.status_code == 202, used.text
    assert client.get("/readyz").status_code == 200


def test_a_storage_that_refuses_the_credentials_is_away(
    s3: InS3, client: httpx2.Client, tenant: str
) -> None:
    """As after the key was changed at the storage and not yet here."""
    if not s3.signed:
        pytest.skip("moto checks no credentials")
    job_id = finished(s3, client, 613)
    before = s3.keys(f"{tenant}/")
    settings = s3.running.settings.model_copy(update={"s3_secret_key": SecretStr("old")})
    with (
        serving(settings, s3.running.redis) as strange,
        strange.client(s3.running.key(tenant)) as asking,
    ):
        for answer in (
            submit(asking, picture(614)),
            asking.post("/v1/batches", files=[("file", ("a.png", picture(615)))]),
            asking.get(f"/v1/jobs/{job_id}/result"),
        ):
            assert code_of(answer) == (503, "blobs_unavailable"), answer.request.url
            assert int(answer.headers["retry-after"]) >= 1
            assert tenant not in answer.json()["detail"]
    assert s3.keys(f"{tenant}/") == before


def test_a_job_that_could_not_be_removed_is_hidden_and_removed_later(
    s3: InS3, client: httpx2.Client, tenant: str
) -> None:
    job_id = finished(s3, client, 611)
    place = f"{tenant}/jobs/{job_id}/"
    with s3.relay.down():
        answer = client.delete(f"/v1/jobs/{job_id}")
        assert code_of(answer) == (503, "blobs_unavailable")
        assert code_of(client.get(f"/v1/jobs/{job_id}")) == (404, "job_not_found")
    assert s3.keys(place) != []
    s3.running.service.reaper.run_once()
    assert s3.keys(place) == []
