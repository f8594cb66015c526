"""Keys, workers, queues, and what the service tells about itself."""

from __future__ import annotations

import socket
from datetime import UTC, datetime, timedelta

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from jobs import ClaimRefused, WorkerInfo
from tests.api.asking import code_of, submit
from tests.api.running import Running, picture


def test_keys_are_made_listed_and_revoked(running: Running, admin: httpx2.Client) -> None:
    made = admin.post(
        "/v1/keys",
        json={
            "tenant": "keys",
            "scopes": ["jobs:read", "jobs:write"],
            "name": "upload server",
            "limits": {"requests_per_minute": 50},
        },
    )
    assert made.status_code == 201, made.text
    secret = made.json()["key"]
    assert made.json()["limits"]["requests_per_minute"] == 50
    with running.client(secret) as client:
        assert client.get("/v1/jobs").headers["ratelimit-limit"] == "50"
    listed = admin.get("/v1/keys", params={"tenant": "keys"})
    assert [key["name"] for key in listed.json()["items"]] == ["upload server"]
    assert secret not in listed.text
    one = admin.get(f"/v1/keys/{made.json()['id']}").json()
    assert (one["tenant"], one["scopes"]) == ("keys", ["jobs:read", "jobs:write"])
    assert "key" not in one
    assert code_of(admin.get("/v1/keys/key_none")) == (404, "key_not_found")
    assert code_of(admin.delete("/v1/keys/key_none")) == (404, "key_not_found")


def test_keys_to_be_made_are_checked(admin: httpx2.Client) -> None:
    good = {"tenant": "keys", "scopes": ["jobs:read"]}
    past = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
    for bad, code in (
        ({"tenant": "Capital"}, "invalid_parameter"),
        ({"scopes": []}, "invalid_parameter"),
        ({"scopes": ["jobs:everything"]}, "invalid_parameter"),
        ({"limits": {"jobs_per_day": -1}}, "invalid_parameter"),
        ({"limits": {"jobs": 1}}, "unknown_parameter"),
        ({"expires_at": past}, "invalid_parameter"),
        ({"colour": "red"}, "unknown_parameter"),
    ):
        assert code_of(admin.post("/v1/keys", json=good | bad)) == (422, code), bad


def test_an_expired_key_is_no_key(running: Running) -> None:
    soon = datetime.now(UTC) + timedelta(milliseconds=300)
    with running.client(running.key("brief", expires_at=soon)) as client:
        deadline = datetime.now(UTC) + timedelta(seconds=10)
        while client.get("/v1/jobs").status_code == 200:
            assert datetime.now(UTC) < deadline
        assert code_of(client.get("/v1/jobs")) == (401, "unauthenticated")


def test_workers_are_listed_and_drained(running: Running, admin: httpx2.Client) -> None:
    info = WorkerInfo(
        id="worker-1",
        host=socket.gethostname(),
        pid=1,
        device="cpu",
        queues=("encode",),
        started_at=datetime.now(UTC),
        facts={"kernel": "chunked"},
    )
    assert running.service.workers.beat(info) is False
    (listed,) = admin.get("/v1/workers").json()["items"]
    assert (listed["id"], listed["alive"], listed["draining"]) == ("worker-1", True, False)
    assert listed["facts"] == {"kernel": "chunked"}
    assert admin.post("/v1/workers/worker-1/drain").json()["draining"] is True
    assert running.service.workers.beat(info) is True
    assert admin.post("/v1/workers/worker-1/resume").json()["draining"] is False
    assert admin.get("/v1/workers/worker-1").json()["id"] == "worker-1"
    for method, path in (("GET", ""), ("POST", "/drain"), ("POST", "/resume")):
        answer = admin.request(method, f"/v1/workers/nobody{path}")
        assert code_of(answer) == (404, "worker_not_found")


def test_a_queue_is_paused_and_resumed(
    running: Running, admin: httpx2.Client, client: httpx2.Client
) -> None:
    paused = admin.post("/v1/queues/encode/pause").json()
    try:
        assert paused["paused"] is True
        job_id = submit(client, picture(1)).json()["id"]
        with pytest.raises(ClaimRefused, match="paused"):
            running.claim(job_id)
    finally:
        resumed = admin.post("/v1/queues/encode/resume").json()
    assert resumed["paused"] is False
    assert resumed["depth"] >= 1
    running.claim(job_id)
    assert "encode" in [queue["name"] for queue in admin.get("/v1/queues").json()["items"]]
    assert code_of(admin.post("/v1/queues/none/pause")) == (404, "queue_not_found")


def test_the_service_tells_how_it_is(running: Running) -> None:
    with running.client(None) as nobody:
        assert nobody.get("/healthz").json() == {"status": "ok"}
        ready = nobody.get("/readyz")
        assert (ready.status_code, ready.json()["ready"]) == (200, True)
        assert nobody.get("/healthz").headers["x-content-type-options"] == "nosniff"
        given = nobody.get("/healthz", headers={"X-Request-ID": "mine-1"})
        assert given.headers["x-request-id"] == "mine-1"
        bad = nobody.get("/healthz", headers={"X-Request-ID": "a b"})
        assert bad.headers["x-request-id"].startswith("req_")


def test_metrics_are_readable(running: Running, client: httpx2.Client) -> None:
    job_id = submit(client, picture(2)).json()["id"]
    running.succeed(job_id)
    client.get(f"/v1/jobs/{job_id}")
    with running.client(None) as nobody:
        text = nobody.get("/metrics").text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    jobs = {sample.labels["state"]: sample.value for sample in families["nif_jobs"].samples}
    assert jobs["succeeded"] >= 1
    routes = {sample.labels["route"] for sample in families["nif_http_requests"].samples}
    assert "/v1/jobs/{job_id}" in routes
    assert not any(job_id in route for route in routes)
    assert families["nif_bpp"].type == "histogram"
    assert families["nif_transitions"].type == "counter"
    assert {"nif_queue_depth", "nif_queue_oldest_age_seconds", "nif_workers"} <= set(families)
