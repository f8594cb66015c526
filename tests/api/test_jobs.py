"""Submitting, following, steering and removing jobs, over a real socket and a real Redis."""

from __future__ import annotations

import hashlib
import json
import uuid

import httpx2
import pytest

import jobs
from api import submission
from api.caller import Caller
from api.context import Context
from api.uploads import File
from jobs import Failure, IdempotencyClaim, NotFound, Progress, State
from tests.api.asking import code_of, submit
from tests.api.running import Running, half_made, picture


def test_a_submitted_picture_is_durable_and_published(
    running: Running, client: httpx2.Client, tenant: str
) -> None:
    data = picture(1, 24, 16)
    answer = submit(
        client, data, effort=3, bpp=0.5, priority=7, metadata='{"album": "spring"}', seed=4
    )
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    assert int(answer.headers["retry-after"]) >= 1
    assert (job["state"], job["created"]) == ("queued", True)
    assert job["position"] >= 1
    assert job["input"] == {
        "size": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "media_type": "image/png",
        "width": 24,
        "height": 16,
        "filename": "photo.png",
    }
    assert job["parameters"] == {"effort": 3, "bpp": 0.5, "seed": 4, "keep_icc": False}
    assert (job["priority"], job["metadata"]) == (7, {"album": "spring"})
    assert running.wakeups.published[-1] == job["id"]
    draft = running.service.journal.read_spec(tenant, job["id"])
    assert running.service.blobs.get(draft.spec.input.key) == data


def test_a_job_is_followed_to_its_result(running: Running, client: httpx2.Client) -> None:
    job_id = submit(client, picture(2)).json()["id"]
    first = client.get(f"/v1/jobs/{job_id}")
    assert first.json()["state"] == "queued"
    assert first.json()["position"] >= 1
    tag = first.headers["etag"]
    same = client.get(f"/v1/jobs/{job_id}", headers={"If-None-Match": tag})
    assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", tag)

    claim = running.claim(job_id)
    progress = Progress("fit", iteration=30, iterations=90, psnr_db=25.5, bpp=0.4, eta_seconds=12.0)
    running.service.store.progress(claim.lease, progress)
    changed = client.get(f"/v1/jobs/{job_id}", headers={"If-None-Match": tag})
    seen = changed.json()
    assert changed.status_code == 200
    assert (seen["state"], seen["position"], seen["eta_seconds"]) == ("running", None, 12.0)
    assert (seen["progress"]["psnr_db"], seen["progress"]["iteration"]) == (25.5, 30)
    early = client.get(f"/v1/jobs/{job_id}/result")
    assert code_of(early) == (409, "no_result")
    assert early.json()["state"] == "running"

    ref = running.service.journal.write_result(claim.record.tenant, claim.lease, b"\x8eNIF-data")
    running.service.store.succeed(claim.lease, ref, {"bpp": 0.4, "psnr_db": 26.0})
    done = client.get(f"/v1/jobs/{job_id}").json()
    assert done["state"] == "succeeded"
    assert (done["result"]["bpp"], done["result"]["psnr_db"]) == (0.4, 26.0)
    assert client.get(done["links"]["result"]).content == b"\x8eNIF-data"
    assert client.get(done["links"]["report"]).json()["report"] == {"bpp": 0.4, "psnr_db": 26.0}
    assert done["expires_at"] > done["finished_at"]


def test_equal_work_is_answered_by_the_earlier_job(client: httpx2.Client) -> None:
    first = submit(client, picture(3), effort=2)
    again = submit(client, picture(3), effort=2)
    assert (again.status_code, again.json()["id"]) == (200, first.json()["id"])
    assert again.json()["deduplicated"]
    other = submit(client, picture(3), effort=3)
    assert (other.status_code, other.json()["created"]) == (202, True)
    fresh = submit(client, picture(3), effort=2, deduplicate="false")
    assert fresh.status_code == 202
    assert fresh.json()["id"] != first.json()["id"]


def test_tenants_share_nothing(running: Running, client: httpx2.Client) -> None:
    first = submit(client, picture(4)).json()["id"]
    with running.client(running.key("another-tenant")) as stranger:
        theirs = submit(stranger, picture(4))
        assert theirs.json()["id"] != first
        for method, path in (
            ("GET", ""),
            ("GET", "/result"),
            ("GET", "/image"),
            ("GET", "/report"),
            ("POST", "/cancel"),
            ("POST", "/finish"),
            ("POST", "/retry"),
            ("DELETE", ""),
        ):
            answer = stranger.request(method, f"/v1/jobs/{first}{path}")
            assert code_of(answer) == (404, "job_not_found"), (method, path)
        assert first not in [job["id"] for job in stranger.get("/v1/jobs").json()["items"]]
    assert client.get(f"/v1/jobs/{first}").json()["state"] == "queued"


def test_an_idempotency_key_makes_one_job(running: Running, client: httpx2.Client) -> None:
    first = submit(client, picture(5), idempotency_key="key-5", deduplicate="false")
    assert first.status_code == 202
    again = submit(client, picture(5), idempotency_key="key-5", deduplicate="false")
    assert (again.status_code, again.json()["id"]) == (200, first.json()["id"])
    assert again.json()["replayed"]
    assert again.headers["idempotent-replayed"] == "true"
    for changed in (
        submit(client, picture(6), idempotency_key="key-5", deduplicate="false"),
        submit(client, picture(5), idempotency_key="key-5", deduplicate="false", effort=9),
    ):
        assert code_of(changed) == (422, "idempotency_mismatch")
    with running.client(running.key("neighbour")) as neighbour:
        theirs = submit(neighbour, picture(5), idempotency_key="key-5", deduplicate="false")
        assert theirs.status_code == 202


def test_an_idempotency_key_in_use_is_said_so(
    running: Running, client: httpx2.Client, tenant: str
) -> None:
    claim = running.service.idempotency.begin(tenant, "key-6")
    answer = submit(client, picture(7), idempotency_key="key-6")
    assert code_of(answer) == (409, "idempotency_in_flight")
    assert int(answer.headers["retry-after"]) >= 1
    assert isinstance(claim, IdempotencyClaim)
    running.service.idempotency.abandon(claim)
    assert submit(client, picture(7), idempotency_key="key-6").status_code == 202


def test_a_refused_request_gives_its_idempotency_key_back(client: httpx2.Client) -> None:
    refused = submit(client, b"no picture", idempotency_key="key-7")
    assert code_of(refused) == (415, "unsupported_image")
    assert submit(client, picture(8), idempotency_key="key-7").status_code == 202


def test_put_by_id_can_be_repeated(running: Running, client: httpx2.Client) -> None:
    job_id = str(uuid.uuid4())

    def put(data: bytes, **fields: str) -> httpx2.Response:
        return client.put(f"/v1/jobs/{job_id}", files={"file": ("a.png", data)}, data=fields)

    first = put(picture(9))
    assert (first.status_code, first.json()["id"]) == (202, job_id)
    again = put(picture(9))
    assert (again.status_code, again.json()["replayed"]) == (200, True)
    assert code_of(put(picture(10))) == (409, "id_taken")
    assert code_of(put(picture(9), effort="9")) == (409, "id_taken")
    assert client.get(f"/v1/jobs/{job_id}").json()["state"] == "queued"
    assert running.wakeups.published.count(job_id) == 1
    with running.client(running.key("put-stranger")) as stranger:
        theirs = stranger.put(f"/v1/jobs/{job_id}", files={"file": ("a.png", picture(9))})
        assert code_of(theirs) == (409, "id_taken")
    bad = client.put("/v1/jobs/mine", files={"file": ("a.png", picture(9))})
    assert code_of(bad) == (422, "invalid_parameter")


def test_a_put_whose_first_answer_was_lost_makes_the_job(
    running: Running, client: httpx2.Client, tenant: str
) -> None:
    job_id = str(uuid.uuid4())
    half_made(running, tenant, job_id, picture(12))

    def put() -> httpx2.Response:
        return client.put(f"/v1/jobs/{job_id}", files={"file": ("a.png", picture(12))})

    refused = put()
    assert code_of(refused) == (503, "store_unavailable")
    assert refused.headers["retry-after"] == "1"
    made = put()
    assert (made.status_code, made.json()["created"]) == (202, True)
    record = running.service.get(tenant, job_id)
    assert running.service.blobs.get(record.spec.input.key) == picture(12)
    assert put().status_code == 200


def test_jobs_are_steered(running: Running, client: httpx2.Client) -> None:
    waiting = submit(client, picture(11)).json()["id"]
    assert client.post(f"/v1/jobs/{waiting}/cancel").json()["state"] == "cancelled"
    assert client.post(f"/v1/jobs/{waiting}/cancel").status_code == 200
    refused = client.post(f"/v1/jobs/{waiting}/finish")
    assert code_of(refused) == (409, "wrong_state")
    assert refused.json()["state"] == "cancelled"
    assert client.post(f"/v1/jobs/{waiting}/retry").json()["state"] == "queued"

    claim = running.claim(waiting)
    assert client.post(f"/v1/jobs/{waiting}/finish").json()["finish_requested"]
    assert client.post(f"/v1/jobs/{waiting}/cancel").json()["cancel_requested"]
    orders = running.service.store.renew(claim.lease)
    assert (orders.finish, orders.cancel) == (True, True)
    assert code_of(client.delete(f"/v1/jobs/{waiting}")) == (409, "wrong_state")
    running.service.store.fail(claim.lease, Failure("not_an_image", "no picture", "secret path"))
    failed = client.get(f"/v1/jobs/{waiting}")
    assert failed.json()["failure"] == {"code": "not_an_image", "message": "no picture"}
    assert "secret path" not in failed.text
    assert code_of(client.get(f"/v1/jobs/{waiting}/result")) == (409, "no_result")


def test_delete_removes_everything(running: Running, client: httpx2.Client, tenant: str) -> None:
    job_id = submit(client, picture(12)).json()["id"]
    running.succeed(job_id)
    assert client.get(f"/v1/jobs/{job_id}/result").status_code == 200
    assert client.delete(f"/v1/jobs/{job_id}").status_code == 204
    assert code_of(client.get(f"/v1/jobs/{job_id}")) == (404, "job_not_found")
    assert code_of(client.delete(f"/v1/jobs/{job_id}")) == (404, "job_not_found")
    assert not running.service.blobs.list(f"{tenant}/jobs/{job_id}/").items
    with pytest.raises(NotFound):
        running.service.get(None, job_id)


def test_lists_have_pages_and_filters(running: Running, client: httpx2.Client) -> None:
    ids = [submit(client, picture(20 + index)).json()["id"] for index in range(5)]
    client.post(f"/v1/jobs/{ids[0]}/cancel")
    pages, cursor = [], None
    while True:
        asked = {"limit": 2} | ({"cursor": cursor} if cursor else {})
        answer = client.get("/v1/jobs", params=asked)
        page = answer.json()
        pages.append([job["id"] for job in page["items"]])
        cursor = page["next_cursor"]
        if cursor is None:
            assert "link" not in answer.headers
            break
        assert answer.headers["link"].startswith("</v1/jobs?limit=2&cursor=")
    assert [job for page in pages for job in page] == ids[::-1]
    assert [len(page) for page in pages] == [2, 2, 1]
    one = client.get("/v1/jobs", params={"state": "cancelled"}).json()
    assert [job["id"] for job in one["items"]] == [ids[0]]
    both = client.get("/v1/jobs", params={"state": ["cancelled", "queued"]}).json()
    assert len(both["items"]) == 5
    moment = client.get(f"/v1/jobs/{ids[2]}").json()["created_at"]
    late = client.get("/v1/jobs", params={"created_after": moment}).json()["items"]
    assert {job["id"] for job in late} >= set(ids[3:])
    assert ids[0] not in {job["id"] for job in late}
    for bad in (
        {"cursor": "x"},
        {"limit": "0"},
        {"state": "done"},
        {"created_after": "today"},
        {"created_before": "0.5"},
    ):
        assert code_of(client.get("/v1/jobs", params=bad)) == (422, "invalid_parameter"), bad


def test_an_administrator_sees_everybodys_jobs(
    client: httpx2.Client, admin: httpx2.Client, tenant: str
) -> None:
    job_id = submit(client, picture(30)).json()["id"]
    assert admin.get(f"/v1/jobs/{job_id}").json()["tenant"] == tenant
    theirs = admin.get("/v1/jobs", params={"tenant": tenant}).json()["items"]
    assert [job["id"] for job in theirs] == [job_id]
    everybody = admin.get("/v1/jobs", params={"tenant": "*", "limit": 500}).json()["items"]
    assert job_id in {job["id"] for job in everybody}
    assert code_of(client.get("/v1/jobs", params={"tenant": "*"})) == (403, "forbidden")


def test_a_batch_accepts_and_refuses_each_on_its_own(
    running: Running, client: httpx2.Client
) -> None:
    files = [
        ("file", ("a.png", picture(40))),
        ("file", ("b.txt", b"not a picture")),
        ("file", ("c.jpg", picture(41, kind="JPEG"))),
    ]
    answer = client.post("/v1/batches", files=files, data={"effort": "2"})
    assert answer.status_code == 202, answer.text
    batch = answer.json()
    assert (batch["accepted"], batch["refused"]) == (2, 1)
    assert [item["filename"] for item in batch["items"]] == ["a.png", "b.txt", "c.jpg"]
    assert batch["items"][1]["problem"]["code"] == "unsupported_image"
    assert batch["items"][1]["job"] is None
    listed = client.get(answer.headers["location"]).json()["items"]
    wanted = {batch["items"][index]["job"]["id"] for index in (0, 2)}
    assert {job["id"] for job in listed} == wanted
    assert {job["parameters"]["effort"] for job in listed} == {2}
    none = client.post("/v1/batches", files=[("file", ("b.txt", b"not a picture"))])
    assert code_of(none) == (415, "unsupported_image")


def test_an_unexpected_error_costs_one_file_of_a_batch(
    running: Running, client: httpx2.Client, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept = submission.from_file

    def break_on_the_second(
        shared: Context, caller: Caller, wish: submission.Wish, file: File
    ) -> jobs.Submission:
        if file.filename == "b.png":
            raise RuntimeError("words for the log")
        return accept(shared, caller, wish, file)

    monkeypatch.setattr(submission, "from_file", break_on_the_second)
    files = [("file", (f"{name}.png", picture(50 + n))) for n, name in enumerate("abc")]
    answer = client.post("/v1/batches", files=files)
    assert answer.status_code == 202, answer.text
    batch = answer.json()
    assert (batch["accepted"], batch["refused"]) == (2, 1)
    problem = batch["items"][1]["problem"]
    assert (problem["code"], problem["request_id"]) == ("internal", answer.headers["x-request-id"])
    assert "words for the log" not in answer.text
    for index in (0, 2):
        assert running.service.get(tenant, batch["items"][index]["job"]["id"]).batch == batch["id"]
    alone = client.post("/v1/batches", files=files[1:2])
    assert code_of(alone) == (500, "internal")


def test_numbers_of_a_form_are_read_as_numbers(client: httpx2.Client) -> None:
    job = submit(client, picture(45), psnr="31.5", effort="1", keep_icc="true").json()
    assert job["parameters"] == {"psnr": 31.5, "effort": 1, "seed": 0, "keep_icc": True}
    assert json.loads(client.get(f"/v1/jobs/{job['id']}").text)["state"] == State.QUEUED
