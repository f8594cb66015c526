"""Everything that a client can get wrong is refused with its own code, and nothing is kept."""

from __future__ import annotations

import json
import socket
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest

from jobs import KeyLimits, RedisServer
from tests.api.asking import code_of, submit
from tests.api.running import Running, picture, serving, settings_in


@pytest.fixture(scope="module")
def strict(running: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A service with tight limits, on the Redis of the other."""
    settings = settings_in(
        tmp_path_factory.mktemp("strict"),
        redis_prefix="strict",
        upload_timeout_seconds=0.5,
        min_upload_bytes_per_second=2000,
        max_upload_bytes=100_000,
        max_files_per_batch=3,
        max_pixels=10_000,
        queue_limit=2,
    )
    with serving(settings, running.redis) as found:
        yield found


def nothing_was_kept(running: Running, tenant: str) -> bool:
    return not running.service.blobs.list(f"{tenant}/").items


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (b"", 415, "unsupported_image"),
        (b"GIF", 415, "unsupported_image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "unsupported_image"),
        (b"%PDF-1.7\n", 415, "unsupported_image"),
        (b"\x8eNIF\r\n\x1a\n\x01", 415, "unsupported_image"),
        (picture(1)[:20], 422, "damaged_image"),
        (picture(1)[:-6], 422, "damaged_image"),
        (picture(1, kind="JPEG")[:-300], 422, "damaged_image"),
        (picture(1, kind="WEBP")[:-30], 422, "damaged_image"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF", 422, "damaged_image"),
        (b"BM" + bytes(60), 422, "damaged_image"),
        (b"P6\n0 5\n255\n", 422, "damaged_image"),
    ],
)
def test_what_is_no_whole_picture_is_refused(
    running: Running, client: httpx2.Client, tenant: str, content: bytes, status: int, code: str
) -> None:
    assert code_of(submit(client, content)) == (status, code)
    assert nothing_was_kept(running, tenant)


def png_that_declares(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(bytes(100)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(100_000, 100_000), (2**31 - 1, 2**31 - 1), (70_000, 1)])
def test_a_huge_header_is_refused_before_any_decoding(
    running: Running, client: httpx2.Client, tenant: str, size: tuple[int, int]
) -> None:
    answer = submit(client, png_that_declares(*size))
    assert code_of(answer) == (422, "too_many_pixels")
    assert (answer.json()["width"], answer.json()["height"]) == size
    assert nothing_was_kept(running, tenant)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"effort": 0}, "invalid_parameter"),
        ({"effort": "much"}, "invalid_parameter"),
        ({"quality": 101}, "invalid_parameter"),
        ({"psnr": "nan"}, "invalid_parameter"),
        ({"bpp": "inf"}, "invalid_parameter"),
        ({"bpp": -1}, "invalid_parameter"),
        ({"max_bytes": 0}, "invalid_parameter"),
        ({"preset": "paper-121"}, "invalid_parameter"),
        ({"priority": 10}, "invalid_parameter"),
        ({"metadata": "{not json"}, "invalid_parameter"),
        ({"metadata": '{"a": 1}'}, "invalid_parameter"),
        ({"metadata": json.dumps({str(n): "" for n in range(33)})}, "invalid_parameter"),
        ({"webhook": "http://example.org/"}, "invalid_parameter"),
        ({"webhook": "https://user:word@example.org/"}, "invalid_parameter"),
        ({"webhook": "file:///etc/passwd"}, "invalid_parameter"),
        ({"webhook": "https://example.org/" + "x" * 3000}, "invalid_parameter"),
        ({"efort": 5}, "unknown_parameter"),
        ({"upload_id": "upl_1"}, "unknown_parameter"),
        ({"bpp": 1, "psnr": 30}, "contradictory_parameters"),
        ({"quality": 50, "max_bytes": 1000}, "contradictory_parameters"),
        ({"preset": "paper-120", "effort": 5}, "contradictory_parameters"),
        ({"preset": "paper-120", "bpp": 0.5}, "contradictory_parameters"),
    ],
)
def test_parameters_are_checked(
    running: Running, client: httpx2.Client, tenant: str, fields: dict[str, object], code: str
) -> None:
    answer = submit(client, picture(2), **fields)
    assert code_of(answer) == (422, code)
    if code != "contradictory_parameters":
        assert any(
            each["name"] in (*fields, "") or "." in each["name"] for each in answer.json()["errors"]
        )
    assert nothing_was_kept(running, tenant)


def test_unknown_query_parameters_are_refused(client: httpx2.Client) -> None:
    for method, path in (("GET", "/v1/jobs"), ("POST", "/v1/jobs"), ("GET", "/healthz")):
        answer = client.request(method, path, params={"stat": "queued"})
        assert code_of(answer) == (422, "unknown_parameter"), path


def test_a_body_of_another_type_is_refused(client: httpx2.Client) -> None:
    for kind in ("image/png", "text/plain", "multipart/form-data", ""):
        answer = client.post("/v1/jobs", content=picture(3), headers={"Content-Type": kind})
        assert code_of(answer) == (415, "unsupported_media_type"), kind


@pytest.mark.parametrize(
    "body",
    [
        b"nothing of a form",
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nabc',
        b"--x\r\nContent-Disposition: form-data\r\n\r\nabc\r\n--x--\r\n",
        b'--x\r\nContent-Disposition: form-data; name="effort"\r\n\r\n\xff\r\n--x--\r\n',
        b"--x\r\n" + b"A: " + b"b" * 10_000 + b"\r\n\r\nabc\r\n--x--\r\n",
    ],
)
def test_a_broken_form_is_refused(client: httpx2.Client, body: bytes) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = client.post("/v1/jobs", content=body, headers=headers)
    assert code_of(answer) == (400, "malformed_request")


def test_a_form_needs_its_one_file(client: httpx2.Client) -> None:
    none = client.post("/v1/jobs", files={"effort": (None, "3")})
    assert code_of(none) == (422, "invalid_parameter")
    two = client.post(
        "/v1/jobs", files=[("file", ("a.png", picture(4))), ("file", ("b.png", picture(5)))]
    )
    assert code_of(two) == (413, "too_many_files")
    other = client.post("/v1/jobs", files={"picture": ("a.png", picture(4))})
    assert code_of(other) == (422, "unknown_parameter")
    twice = client.post(
        "/v1/jobs",
        files=[("file", ("a.png", picture(4))), ("effort", (None, "1")), ("effort", (None, "2"))],
    )
    assert code_of(twice) == (400, "malformed_request")
    many = client.post("/v1/jobs", files=[(f"f{n}", (None, "1")) for n in range(70)])
    assert code_of(many) == (413, "too_many_files")


def test_broken_json_is_refused(client: httpx2.Client) -> None:
    def post(body: bytes) -> httpx2.Response:
        return client.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"})

    assert code_of(post(b"{")) == (400, "malformed_request")
    assert code_of(post(b"[" * 500_000)) == (400, "malformed_request")
    assert code_of(post(b'"\xff"')) == (400, "malformed_request")
    explicit = post(b'{"upload_id": "upl_x", "webhook": null, "bpp": null, "effort": 3.0}')
    assert code_of(explicit) == (404, "upload_not_found")
    assert code_of(post(b"[]")) == (422, "invalid_parameter")
    assert code_of(post(b"{}")) == (422, "invalid_parameter")
    assert code_of(post(b'{"upload_id": "upl_x", "effort": "3"}')) == (422, "invalid_parameter")
    assert code_of(post(b'{"upload_id": "upl_x", "x": 1}')) == (422, "unknown_parameter")
    assert code_of(post(b'{"upload_id": "upl_x"}')) == (404, "upload_not_found")
    assert code_of(post(b" " * 2_000_000)) == (413, "body_too_large")


def test_too_many_bytes_are_refused(strict: Running) -> None:
    with strict.client(strict.key("large")) as client:
        declared = submit(client, bytes(300_000))
        assert code_of(declared) == (413, "body_too_large")
        # Without a declared length the bytes are counted as they come.
        head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        streamed = client.post(
            "/v1/jobs",
            content=iter([head, *[bytes(10_000)] * 15, b"\r\n--x--\r\n"]),
            headers={"Content-Type": "multipart/form-data; boundary=x"},
        )
        assert code_of(streamed) == (413, "body_too_large")
        field = client.post("/v1/jobs", files={"metadata": (None, "x" * 80_000)})
        assert code_of(field) == (413, "body_too_large")


def test_too_many_files_are_refused(strict: Running) -> None:
    with strict.client(strict.key("many")) as client:
        files = [("file", (f"{n}.png", picture(n))) for n in range(4)]
        assert code_of(client.post("/v1/batches", files=files)) == (413, "too_many_files")
    assert nothing_was_kept(strict, "many")


def raw(running: Running, request: bytes, then: Callable[[socket.socket], None]) -> bytes:
    """Send bytes as they are, then do as told, and return the whole answer."""
    host, _, port = running.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(request)
        then(connection)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
        return answer


def head(running: Running, tenant: str, length: int) -> bytes:
    return (
        f"POST /v1/jobs HTTP/1.1\r\nHost: nif\r\nAuthorization: Bearer {running.key(tenant)}\r\n"
        f"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: {length}\r\n"
        "Connection: close\r\n\r\n"
    ).encode()


def form(data: bytes) -> bytes:
    start = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'
    return start + data + b"\r\n--x--\r\n"


def test_an_upload_that_stops_is_cut_off(strict: Running) -> None:
    body = form(picture(6))
    answer = raw(strict, head(strict, "stopped", len(body)) + body[:100], lambda connection: None)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"upload_too_slow"' in answer
    assert nothing_was_kept(strict, "stopped")


def test_an_upload_that_trickles_is_cut_off(strict: Running) -> None:
    body = form(picture(7))
    sent = 0

    def trickle(connection: socket.socket) -> None:
        nonlocal sent
        for sent in range(len(body)):
            try:
                connection.sendall(body[sent : sent + 1])
            except OSError:
                return
            time.sleep(0.05)
            connection.settimeout(0.0)
            try:
                if connection.recv(1, socket.MSG_PEEK):
                    return
            except BlockingIOError:
                pass
            finally:
                connection.settimeout(20)

    answer = raw(strict, head(strict, "trickle", len(body)), trickle)
    assert b'"upload_too_slow"' in answer
    assert sent < len(body) - 1
    assert nothing_was_kept(strict, "trickle")


def test_fewer_bytes_than_declared_make_no_job(running: Running) -> None:
    body = form(picture(8))

    def hang_up(connection: socket.socket) -> None:
        connection.shutdown(socket.SHUT_WR)

    raw(running, head(running, "short", len(body) + 50) + body, hang_up)
    assert nothing_was_kept(running, "short")
    with running.client(running.key("short")) as client:
        assert client.get("/v1/jobs").json()["items"] == []


def test_more_bytes_than_declared_are_not_read(running: Running) -> None:
    body = form(picture(9))
    answer = raw(running, head(running, "long", len(body) - 20) + body, lambda connection: None)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert nothing_was_kept(running, "long")


def test_large_header_lines_are_refused(running: Running, client: httpx2.Client) -> None:
    answer = client.get("/v1/jobs", headers={"X-Long": "x" * 20_000})
    assert code_of(answer) == (431, "headers_too_large")


def test_without_a_good_key_nothing_goes(running: Running, admin: httpx2.Client) -> None:
    made = admin.post("/v1/keys", json={"tenant": "revoked", "scopes": ["jobs:read"]}).json()
    with running.client(made["key"]) as client:
        assert client.get("/v1/jobs").status_code == 200
        assert admin.delete(f"/v1/keys/{made['id']}").json()["revoked_at"] is not None
        assert code_of(client.get("/v1/jobs")) == (401, "unauthenticated")
    for key in (None, "nif_" + "x" * 43, "nif_", "x" * 5000):
        with running.client(key) as client:
            answer = client.get("/v1/jobs")
            assert code_of(answer) == (401, "unauthenticated")
            assert answer.headers["www-authenticate"].startswith("Bearer")


def test_scopes_are_kept_apart(running: Running, client: httpx2.Client) -> None:
    from jobs import Scope

    with running.client(running.key("readers", Scope.JOBS_READ)) as reader:
        assert reader.get("/v1/jobs").status_code == 200
        assert code_of(submit(reader, picture(10))) == (403, "forbidden")
    with running.client(running.key("writers", Scope.JOBS_WRITE)) as writer:
        assert submit(writer, picture(10)).status_code == 202
        assert code_of(writer.get("/v1/jobs")) == (403, "forbidden")
    for path in ("/v1/keys", "/v1/workers", "/v1/queues"):
        assert code_of(client.get(path)) == (403, "forbidden")


def test_a_key_has_so_many_requests_a_minute(running: Running) -> None:
    key = running.key("hurried", limits=KeyLimits(requests_per_minute=3))
    with running.client(key) as client:
        left = [client.get("/v1/jobs").headers["ratelimit-remaining"] for _ in range(3)]
        assert left == ["2", "1", "0"]
        answer = client.get("/v1/jobs")
        assert code_of(answer) == (429, "rate_limited")
        assert answer.headers["ratelimit-limit"] == "3"
        assert 1 <= int(answer.headers["retry-after"]) <= 120


@pytest.mark.parametrize(
    ("limits", "quota"),
    [
        (KeyLimits(jobs_per_day=1), "jobs_per_day"),
        (KeyLimits(bytes_per_day=2000), "bytes_per_day"),
        (KeyLimits(active_jobs=1), "active_jobs"),
    ],
)
def test_quotas_are_kept(running: Running, tenant: str, limits: KeyLimits, quota: str) -> None:
    with running.client(running.key(tenant, limits=limits)) as client:
        assert submit(client, picture(11)).status_code == 202
        answer = submit(client, picture(12))
        assert code_of(answer) == (429, "quota_exceeded")
        assert answer.json()["quota"] == quota
        assert int(answer.headers["retry-after"]) >= 1
    assert len(running.service.blobs.list(f"{tenant}/jobs/").items) == 2, "input and spec of one"


def test_a_full_queue_takes_no_more(strict: Running) -> None:
    with strict.client(strict.key("full")) as client:
        assert [submit(client, picture(n)).status_code for n in (13, 14)] == [202, 202]
        answer = submit(client, picture(15))
        assert code_of(answer) == (503, "queue_full")
        assert int(answer.headers["retry-after"]) >= 1


def test_there_is_nothing_elsewhere(client: httpx2.Client) -> None:
    assert code_of(client.get("/v1/nothing")) == (404, "not_found")
    assert code_of(client.get("/v1/jobs/job_nothing")) == (404, "job_not_found")
    wrong = client.patch("/v1/jobs")
    assert code_of(wrong) == (405, "method_not_allowed")
    assert wrong.headers["allow"] == "GET, POST"
    one = client.patch("/v1/jobs/job_nothing")
    assert one.headers["allow"] == "DELETE, GET, PUT"


def test_a_store_that_is_down_accepts_nothing(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, redis_timeout_seconds=0.5)
    redis = RedisServer.find_or_start(settings)
    with redis, serving(settings, redis) as running:
        key = running.key("patient")
        with running.client(key) as client:
            earlier = submit(client, picture(16), idempotency_key="outage")
            assert earlier.status_code == 202
            redis.stop()
            answer = submit(client, picture(17), idempotency_key="outage-2")
            assert code_of(answer) == (503, "store_unavailable")
            assert int(answer.headers["retry-after"]) >= 1
            assert "redis" not in answer.text.lower()
            assert client.get("/healthz").status_code == 200
            ready = client.get("/readyz")
            assert (ready.status_code, ready.json()["parts"]["blobs"]) == (503, "ok")
            assert "nif_store_up 0" in client.get("/metrics").text
            jobs = {
                item.key.split("/")[2]
                for item in running.service.blobs.list("").items
                if "/jobs/" in item.key
            }
            assert jobs == {earlier.json()["id"]}


def test_a_storage_that_is_down_accepts_nothing(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    with (
        RedisServer.find_or_start(settings) as redis,
        serving(settings, redis) as running,
        running.client(running.key("patient")) as client,
    ):
        assert submit(client, picture(18)).status_code == 202
        folders = [each for each in tmp_path.iterdir() if each.name not in ("redis",)]
        moved = []
        for folder in folders:
            target = folder.with_name(folder.name + ".away")
            folder.rename(target)
            folder.write_bytes(b"a file where a folder should be")
            moved.append((target, folder))
        answer = submit(client, picture(19))
        assert code_of(answer) == (503, "blobs_unavailable")
        assert int(answer.headers["retry-after"]) >= 1
        assert len(client.get("/v1/jobs").json()["items"]) == 1
        assert client.get("/readyz").json()["parts"] == {"store": "ok", "blobs": "unavailable"}
        for away, folder in moved:
            folder.unlink()
            away.rename(folder)
        assert submit(client, picture(19)).status_code == 202
