"""Direct uploads: announced, sent by a presigned link, verified before anything is queued."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import httpx2
import pytest

from tests.api.asking import code_of
from tests.api.running import Running, half_made, picture, serving, settings_in


def announce(client: httpx2.Client, data: bytes, **more: object) -> dict[str, object]:
    answer = client.post("/v1/uploads", json={"size": len(data), "media_type": "image/png"} | more)
    assert answer.status_code == 201, answer.text
    upload: dict[str, object] = answer.json()
    return upload


def send(running: Running, upload: dict[str, object], data: bytes) -> httpx2.Response:
    with running.client(None) as nobody:
        return nobody.request(
            str(upload["method"]),
            str(upload["url"]),
            content=data,
            headers=upload["headers"],  # type: ignore[arg-type]
        )


def test_an_upload_becomes_a_job_once(running: Running, client: httpx2.Client, tenant: str) -> None:
    data = picture(1, 40, 30)
    digest = hashlib.sha256(data).hexdigest()
    upload = announce(client, data, sha256=digest, filename="large.png")
    assert send(running, upload, data).status_code == 201
    asked = {"upload_id": upload["id"], "effort": 2, "metadata": {"a": "b"}}
    answer = client.post("/v1/jobs", json=asked)
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert (job["input"]["sha256"], job["input"]["filename"]) == (digest, "large.png")
    assert (job["input"]["width"], job["input"]["height"]) == (40, 30)
    assert job["metadata"] == {"a": "b"}
    spec = running.service.journal.read_spec(tenant, job["id"])
    assert running.service.blobs.get(spec.spec.input.key) == data
    # The same request again finds the same job; another is refused.
    again = client.post("/v1/jobs", json=asked)
    assert (again.status_code, again.json()["id"]) == (200, job["id"])
    other = client.post("/v1/jobs", json=asked | {"effort": 3})
    assert code_of(other) == (409, "id_taken")
    taken = client.put(
        "/v1/jobs/7f2b3c64-9d0e-4a53-8c1f-0e8d5a1b2c3d", json={"upload_id": upload["id"]}
    )
    assert code_of(taken) == (409, "upload_used")


def test_an_upload_must_have_come(running: Running, client: httpx2.Client) -> None:
    data = picture(2)
    upload = announce(client, data)
    answer = client.post("/v1/jobs", json={"upload_id": upload["id"]})
    assert code_of(answer) == (409, "upload_incomplete")
    assert send(running, upload, data).status_code == 201
    assert code_of(send(running, upload, data)) == (409, "upload_used")
    assert client.post("/v1/jobs", json={"upload_id": upload["id"]}).status_code == 202


def test_an_upload_must_be_what_was_declared(running: Running, client: httpx2.Client) -> None:
    data = picture(3)
    upload = announce(client, data)
    assert code_of(send(running, upload, data[:-1])) == (422, "upload_damaged")
    assert code_of(send(running, upload, data + b"x")) == (413, "body_too_large")
    wrong = announce(client, data, sha256="0" * 64)
    assert send(running, wrong, data).status_code == 201
    answer = client.post("/v1/jobs", json={"upload_id": wrong["id"]})
    assert code_of(answer) == (422, "upload_damaged")
    text = announce(client, b"no picture at all")
    assert send(running, text, b"no picture at all").status_code == 201
    refused = client.post("/v1/jobs", json={"upload_id": text["id"]})
    assert code_of(refused) == (415, "unsupported_image")


def test_an_upload_is_its_tenants_own(running: Running, client: httpx2.Client) -> None:
    data = picture(4)
    upload = announce(client, data)
    send(running, upload, data)
    with running.client(running.key("upload-stranger")) as stranger:
        answer = stranger.post("/v1/jobs", json={"upload_id": upload["id"]})
        assert code_of(answer) == (404, "upload_not_found")


def test_announcements_are_checked(client: httpx2.Client) -> None:
    for bad, code in (
        ({"size": 0}, "invalid_parameter"),
        ({"size": "5"}, "invalid_parameter"),
        ({"size": 5, "sha256": "abc"}, "invalid_parameter"),
        ({"size": 5, "filename": "../a"}, "invalid_parameter"),
        ({"size": 5, "colour": "red"}, "unknown_parameter"),
        ({}, "invalid_parameter"),
    ):
        assert code_of(client.post("/v1/uploads", json=bad)) == (422, code), bad
    large = client.post("/v1/uploads", json={"size": 2**30})
    assert code_of(large) == (413, "body_too_large")


def test_an_upload_whose_first_answer_was_lost_becomes_a_job(
    running: Running, client: httpx2.Client, tenant: str
) -> None:
    data = picture(6)
    upload = announce(client, data)
    assert send(running, upload, data).status_code == 201
    job_id = "job_" + str(upload["id"]).removeprefix("upl_")
    half_made(running, tenant, job_id, data)
    refused = client.post("/v1/jobs", json={"upload_id": upload["id"]})
    assert code_of(refused) == (503, "store_unavailable")
    made = client.post("/v1/jobs", json={"upload_id": upload["id"]})
    assert (made.status_code, made.json()["id"]) == (202, job_id)
    record = running.service.get(tenant, job_id)
    assert running.service.blobs.get(record.spec.input.key) == data


@pytest.fixture
def hasty(running: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    settings = settings_in(
        tmp_path_factory.mktemp("hasty"), redis_prefix="hasty", upload_ttl_seconds=1
    )
    with serving(settings, running.redis) as found:
        yield found


def test_an_expired_upload_is_gone(hasty: Running) -> None:
    import time

    with hasty.client(hasty.key("late")) as client:
        data = picture(5)
        upload = announce(client, data)
        time.sleep(1.2)
        assert code_of(send(hasty, upload, data)) == (403, "url_refused")
        answer = client.post("/v1/jobs", json={"upload_id": upload["id"]})
        assert code_of(answer) == (404, "upload_not_found")
