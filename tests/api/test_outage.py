"""Redis down: every address says so in the same way, and nothing is half-accepted."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from api.app import create_app
from jobs import KeyLimits, RedisServer, load_settings
from tests.api.asking import code_of, submit
from tests.api.running import ADMIN_KEY, Running, picture, serving, settings_in

DOCUMENT: dict[str, Any] = create_app(load_settings()).openapi()
WITH_KEY = [
    (method.upper(), path)
    for path, operations in DOCUMENT["paths"].items()
    for method, operation in operations.items()
    if "security" in operation
]


@pytest.fixture(scope="module")
def outage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A service of its own, whose Redis a test may stop if it starts it again."""
    settings = settings_in(tmp_path_factory.mktemp("outage"), redis_timeout_seconds=0.5)
    with RedisServer.find_or_start(settings) as redis, serving(settings, redis) as found:
        yield found


def kept(running: Running, tenant: str) -> set[str]:
    return {item.key for item in running.service.blobs.list(f"{tenant}/").items}


def test_every_address_with_a_key_says_that_the_store_is_away(outage: Running) -> None:
    assert len(WITH_KEY) > 20
    outage.redis.stop()
    try:
        with outage.client(ADMIN_KEY) as client:
            for method, path in WITH_KEY:
                address = path.replace("{job_id}", str(uuid.uuid4()))
                for name in ("key_id", "worker_id", "name"):
                    address = address.replace(f"{{{name}}}", "some-thing")
                answer = client.request(method, address)
                assert code_of(answer) == (503, "store_unavailable"), (method, path)
                assert int(answer.headers["retry-after"]) >= 1
                declared = DOCUMENT["paths"][path][method.lower()]["responses"]
                assert "503" in declared, (method, path)
    finally:
        outage.redis.restart()


def test_what_was_refused_goes_through_afterwards_and_once(outage: Running) -> None:
    tenant = "outage"
    limits = KeyLimits(jobs_per_day=2)
    with outage.client(outage.key(tenant, limits=limits)) as client:
        first = submit(client, picture(801), idempotency_key="a").json()["id"]
        announced = client.post("/v1/uploads", json={"size": 100, "media_type": "image/png"})
        before = kept(outage, tenant)
        outage.redis.stop()
        try:
            for answer in (
                submit(client, picture(802), idempotency_key="b"),
                submit(client, picture(801), idempotency_key="a"),
                client.post("/v1/batches", files=[("file", ("a.png", picture(803)))]),
                client.post("/v1/jobs", json={"upload_id": announced.json()["id"]}),
                client.post("/v1/uploads", json={"size": 5}),
                client.put(f"/v1/jobs/{uuid.uuid4()}", files={"file": ("a.png", picture(804))}),
            ):
                assert code_of(answer) == (503, "store_unavailable")
            assert kept(outage, tenant) == before
        finally:
            outage.redis.restart()
        second = submit(client, picture(802), idempotency_key="b")
        assert second.status_code == 202, second.text
        replayed = submit(client, picture(801), idempotency_key="a")
        assert (replayed.status_code, replayed.json()["id"]) == (200, first)
        listed = [job["id"] for job in client.get("/v1/jobs").json()["items"]]
        assert listed == [second.json()["id"], first]
        # Two of two: what was refused in between was not counted.
        third = submit(client, picture(805))
        assert (code_of(third), third.json()["quota"]) == ((429, "quota_exceeded"), "jobs_per_day")


def test_quotas_hold_for_batches_uploads_and_retries(outage: Running) -> None:
    with outage.client(outage.key("batches", limits=KeyLimits(jobs_per_day=1))) as client:
        files = [("file", (f"{n}.png", picture(810 + n))) for n in range(2)]
        batch = client.post("/v1/batches", files=files).json()
        assert (batch["accepted"], batch["refused"]) == (1, 1)
        assert batch["items"][1]["problem"]["code"] == "quota_exceeded"
    with outage.client(outage.key("uploads", limits=KeyLimits(bytes_per_day=10))) as client:
        upload = announce_and_send(outage, client, picture(813))
        answer = client.post("/v1/jobs", json={"upload_id": upload})
        assert (code_of(answer), answer.json()["quota"]) == (
            (429, "quota_exceeded"),
            "bytes_per_day",
        )
        assert not any("/jobs/" in key for key in kept(outage, "uploads"))
    with outage.client(outage.key("retries", limits=KeyLimits(active_jobs=1))) as client:
        old = submit(client, picture(814)).json()["id"]
        client.post(f"/v1/jobs/{old}/cancel")
        assert submit(client, picture(815)).status_code == 202
        assert code_of(client.post(f"/v1/jobs/{old}/retry")) == (429, "quota_exceeded")
        assert client.get(f"/v1/jobs/{old}").json()["state"] == "cancelled"


def announce_and_send(running: Running, client: httpx2.Client, data: bytes) -> str:
    upload = client.post("/v1/uploads", json={"size": len(data), "media_type": "image/png"}).json()
    with running.client(None) as nobody:
        sent = nobody.put(upload["url"], content=data, headers=upload["headers"])
    assert sent.status_code == 201, sent.text
    found: str = upload["id"]
    return found


def test_a_picture_that_is_refused_costs_nothing(outage: Running) -> None:
    limits = KeyLimits(jobs_per_day=1, bytes_per_day=5000)
    with outage.client(outage.key("clumsy", limits=limits)) as client:
        for _ in range(3):
            assert code_of(submit(client, b"no picture" * 100)) == (415, "unsupported_image")
            assert code_of(submit(client, picture(820), bpp=1, psnr=30))[0] == 422
        assert submit(client, picture(820)).status_code == 202


def test_a_key_may_lift_a_limit_of_the_settings(tmp_path: Path, outage: Running) -> None:
    settings = settings_in(tmp_path, redis_prefix="lifted", active_jobs=1)
    with serving(settings, outage.redis) as running:
        with running.client(running.key("bound")) as client:
            assert submit(client, picture(831)).status_code == 202
            assert code_of(submit(client, picture(832))) == (429, "quota_exceeded")
        with running.client(running.key("free", limits=KeyLimits(active_jobs=0))) as client:
            assert [submit(client, picture(n)).status_code for n in (831, 832)] == [202, 202]
