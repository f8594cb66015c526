"""What the pages say and do, against what the records say."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable

import pytest

from jobs import ClaimRefused, Failure, Progress, State
from tests.api.running import Running, picture
from tests.dashboard.test_protection import a_job
from tests.dashboard.visiting import HOME, Visit

Visits = Callable[..., Visit]


def test_empty_pages_teach(running: Running, writer: Visit) -> None:
    for path in ("", "/jobs", "/dead", "/webhooks"):
        text = writer.get(path).text
        assert "curl" in text, path
        assert running.url in text, path


def test_the_list_shows_states_and_their_counts(
    running: Running, writer: Visit, tenant: str
) -> None:
    ids = [a_job(running, tenant, seed) for seed in range(4)]
    running.succeed(ids[0])
    running.service.cancel(tenant, ids[1])
    for state, expected in (
        ("succeeded", {ids[0]}),
        ("cancelled", {ids[1]}),
        ("queued", {*ids[2:]}),
    ):
        text = writer.get("/jobs", params={"state": state}).text
        assert {each for each in ids if f'href="{HOME}/jobs/{each}"' in text} == expected


def test_pages_of_the_list_neither_repeat_nor_leave_out(
    running: Running, writer: Visit, tenant: str
) -> None:
    ids = {a_job(running, tenant, 100 + seed) for seed in range(53)}
    seen: list[str] = []
    path = f"{HOME}/jobs"
    while path:
        text = writer.client.get(path).text
        seen += [each for each in ids if f'href="{HOME}/jobs/{each}"' in text]
        following = re.search(r'<a class="button" href="([^"]+)" rel="next"', text)
        path = html.unescape(following[1]) if following else ""
    assert sorted(seen) == sorted(ids)


@pytest.mark.parametrize(
    "text", ["holiday", "HOLIDAY", "album=holiday", "album=holi", "beach-7", "photo.png"]
)
def test_search_finds_by_what_clients_wrote(
    running: Running, writer: Visit, tenant: str, text: str
) -> None:
    job = a_job(
        running, tenant, 31, metadata=json.dumps({"album": "Holiday 2026", "shot": "beach-7"})
    )
    assert f'href="{HOME}/jobs/{job}"' in writer.get("/jobs", params={"q": text}).text


def test_search_finds_by_the_picture_itself(running: Running, writer: Visit, tenant: str) -> None:
    job = a_job(running, tenant, 32)
    digest = running.service.get(None, job).spec.input.sha256
    assert f'href="{HOME}/jobs/{job}"' in writer.get("/jobs", params={"q": digest[:12]}).text


@pytest.mark.parametrize("text", ["winter", "album=beach-7", "shot=holiday", "[a-z]", "%"])
def test_search_leaves_out_what_does_not_match(
    running: Running, writer: Visit, tenant: str, text: str
) -> None:
    a_job(running, tenant, 33, metadata=json.dumps({"album": "holiday", "shot": "beach-7"}))
    assert "Nothing has" in writer.get("/jobs", params={"q": text}).text


def test_an_id_leads_to_its_job(running: Running, writer: Visit, tenant: str) -> None:
    job = a_job(running, tenant)
    answer = writer.get("/jobs", params={"q": f" {job} "})
    assert (answer.status_code, answer.headers["location"]) == (303, f"{HOME}/jobs/{job}")


def test_cancelling_asks_back_first(running: Running, writer: Visit, tenant: str) -> None:
    job = a_job(running, tenant)
    asked = writer.post(f"/jobs/{job}/cancel")
    assert "Cancel this job?" in asked.text
    assert running.service.get(None, job).state is State.QUEUED
    assert writer.post(f"/jobs/{job}/cancel", confirmed="1").status_code == 303
    assert running.service.get(None, job).state is State.CANCELLED
    assert writer.post(f"/jobs/{job}/retry").status_code == 303
    assert running.service.get(None, job).state is State.QUEUED
    again = writer.post(f"/jobs/{job}/retry")
    assert (again.status_code, "Not in this state" in again.text) == (409, True)


def test_finishing_now_reaches_the_worker(running: Running, writer: Visit, tenant: str) -> None:
    job = a_job(running, tenant)
    claim = running.claim(job)
    assert writer.post(f"/jobs/{job}/finish").status_code == 303
    assert running.service.store.renew(claim.lease).finish


def test_deleting_removes_the_job(running: Running, writer: Visit, tenant: str) -> None:
    job = a_job(running, tenant)
    running.service.cancel(tenant, job)
    assert writer.post(f"/jobs/{job}/delete").status_code == 200
    assert writer.get(f"/jobs/{job}").status_code == 200
    assert writer.post(f"/jobs/{job}/delete", confirmed="1").status_code == 303
    assert writer.get(f"/jobs/{job}").status_code == 404


def test_many_are_moved_after_asking_back(running: Running, writer: Visit, tenant: str) -> None:
    ids = [a_job(running, tenant, seed) for seed in range(3)]
    running.succeed(ids[2])
    asked = writer.post("/jobs/bulk", action="cancel", id=ids)
    assert "Cancel 3 jobs?" in asked.text
    writer.post("/jobs/bulk", action="cancel", id=ids, confirmed="1")
    states = [running.service.get(None, each).state for each in ids]
    assert states == [State.CANCELLED, State.CANCELLED, State.SUCCEEDED]
    said = writer.get("/jobs").text
    assert "2 jobs cancelled or asked to stop; 1 in no state for it" in said
    assert "2 jobs cancelled" not in writer.get("/jobs").text


def test_all_dead_jobs_are_retried(running: Running, writer: Visit, tenant: str) -> None:
    ids = [a_job(running, tenant, seed) for seed in range(3)]
    for each in ids[:2]:
        claim = running.claim(each)
        running.service.store.fail(claim.lease, Failure("not_an_image", "no picture at all"))
    text = writer.get("/dead").text
    assert "not_an_image" in text
    assert "no picture at all" in text
    assert ids[2] not in text
    assert ids[0] in writer.get("/dead", params={"code": "not_an_image"}).text
    assert ids[0] not in writer.get("/dead", params={"code": "poisoned"}).text
    writer.post("/jobs/bulk", action="retry", all="failed", confirmed="1")
    assert {running.service.get(None, each).state for each in ids} == {State.QUEUED}


def test_a_job_s_page_lights_its_path(running: Running, writer: Visit, tenant: str) -> None:
    job = a_job(running, tenant)
    claim = running.claim(job)
    running.service.store.release(claim.lease, reason="the worker stops")
    running.succeed(job)
    text = writer.get(f"/jobs/{job}").text
    landscape = text[text.index("machine landscape") : text.index("machine portrait")]
    lit = [
        part.split("<text")[1].split(">")[1].split("<")[0]
        for part in landscape.split('<g class="edge')[1:]
        if part.startswith(" lit")
    ]
    assert lit == ["create", "claim ×2", "lost, released", "succeed"]
    assert landscape.count('class="node') == len(State)
    assert 'class="node succeeded here seen"' in landscape
    assert "back to the queue: the worker stops" in text
    assert "30.00 dB" in text


def test_the_curve_is_what_the_worker_reported(
    running: Running, writer: Visit, tenant: str
) -> None:
    job = a_job(running, tenant)
    claim = running.claim(job)
    for number in range(1, 4):
        progress = Progress("fit", iteration=number, iterations=9, psnr_db=20.0 + number, bpp=0.5)
        running.service.store.progress(claim.lease, progress)
    found = writer.get(f"/jobs/{job}/curve").json()
    assert [each["psnr_db"] for each in found["points"]] == [21.0, 22.0, 23.0]
    assert (found["state"], found["result"]) == ("running", None)
    later = writer.get(f"/jobs/{job}/curve", params={"after": found["points"][1]["id"]}).json()
    assert [each["psnr_db"] for each in later["points"]] == [23.0]
    assert writer.get(f"/jobs/{job}/curve", params={"after": "yesterday"}).status_code == 422


def test_the_job_s_events_are_pushed_to_whoever_has_the_session(
    running: Running, writer: Visit, tenant: str
) -> None:
    job = a_job(running, tenant)
    running.service.cancel(tenant, job)
    with writer.client.stream("GET", f"{HOME}/jobs/{job}/events?after=0-0") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        text = "".join(answer.iter_text())
    assert "event: job.queued" in text
    assert "event: job.cancelled" in text


def test_the_original_is_shown_as_the_codec_saw_it(
    running: Running, writer: Visit, tenant: str
) -> None:
    import io

    import numpy as np
    from PIL import Image

    data = picture(41, kind="TIFF")
    with running.client(running.key(tenant)) as client:
        answer = client.post("/v1/jobs", files={"file": ("photo.tif", data)})
        job = answer.json()["id"]
    shown = writer.get(f"/jobs/{job}/original")
    assert shown.headers["content-type"] == "image/png"
    pixels = np.asarray(Image.open(io.BytesIO(shown.content)))
    assert np.array_equal(pixels, np.asarray(Image.open(io.BytesIO(data))))
    before = running.service.blobs.get(f"{tenant}/jobs/{job}/images/original.png")
    assert before == shown.content == writer.get(f"/jobs/{job}/original").content


def test_rivals_are_measured_on_this_very_picture(
    running: Running, writer: Visit, tenant: str
) -> None:
    import io

    import numpy as np
    from PIL import Image

    data = picture(42, 64, 48)
    with running.client(running.key(tenant)) as client:
        job = client.post("/v1/jobs", files={"file": ("photo.png", data)}).json()["id"]
    assert writer.get(f"/jobs/{job}/rivals").status_code == 409
    running.succeed(job)
    size = running.service.get(None, job).result.size
    found = writer.get(f"/jobs/{job}/rivals").json()
    assert found["nif"]["bytes"] == size
    assert {each["codec"] for each in found["rivals"]} >= {"JPEG", "WEBP"}
    # An independent look at one of them: the same quality gives the same bytes.
    best = max(
        (each for each in found["rivals"] if each["codec"] == "WEBP"), key=lambda e: e["bytes"]
    )
    buffer = io.BytesIO()
    image = Image.open(io.BytesIO(data))
    image.save(buffer, "WEBP", quality=best["quality"], method=6)
    assert len(buffer.getvalue()) == best["bytes"]
    error = np.mean((np.asarray(image, float) - np.asarray(Image.open(buffer), float)) ** 2)
    assert best["psnr_db"] == pytest.approx(10 * np.log10(255**2 / error), abs=1e-6)


def test_draining_and_pausing_are_obeyed_and_written_down(
    running: Running, admin: Visit, tenant: str
) -> None:
    from datetime import UTC, datetime

    from jobs import WorkerInfo

    info = WorkerInfo("tester-9", "here", 1, "cpu", ("encode",), datetime.now(UTC))
    running.service.workers.beat(info)
    assert "tester-9" in admin.get("/workers").text
    assert admin.post("/workers/tester-9/drain").status_code == 303
    assert running.service.workers.get("tester-9").draining
    assert admin.post("/workers/tester-9/resume").status_code == 303
    assert not running.service.workers.get("tester-9").draining
    assert admin.post("/queues/encode/pause").status_code == 303
    job = a_job(running, tenant)
    with pytest.raises(ClaimRefused):
        running.claim(job)
    assert "paused" in admin.get("/queues").text
    assert admin.post("/queues/encode/resume").status_code == 303
    running.claim(job)
    assert admin.post("/queues/none/pause").status_code == 404
    acts = [(each.action, each.target, each.way) for each in running.service.audit.read(limit=4)]
    assert acts == [
        ("queue.resume", "encode", "dashboard"),
        ("queue.pause", "encode", "dashboard"),
        ("worker.resume", "tester-9", "dashboard"),
        ("worker.drain", "tester-9", "dashboard"),
    ]
    text = admin.get("/audit").text
    assert text.index("queue.resume") < text.index("worker.drain")


def test_acts_through_the_api_are_written_down_too(running: Running, admin: Visit) -> None:
    from tests.api.running import ADMIN_KEY

    with running.client(ADMIN_KEY) as client:
        made = client.post("/v1/keys", json={"tenant": "acme", "scopes": ["jobs:read"]}).json()
        client.delete(f"/v1/keys/{made['id']}")
        client.delete("/v1/keys/key_none")
    (revoke, create) = running.service.audit.read(limit=2)
    assert (create.action, create.target, create.way) == ("key.create", made["id"], "api")
    assert (revoke.action, revoke.target, revoke.way) == ("key.revoke", made["id"], "api")
    assert made["key"] not in admin.get("/audit").text


def test_the_overview_counts_what_the_records_count(
    running: Running, admin: Visit, tenant: str
) -> None:
    job = a_job(running, tenant)
    running.succeed(job)
    running.service.history.clear()
    assert running.service.history.take()
    assert not running.service.history.take()
    counters = running.service.counters()
    saved = counters["bytes_in"] - counters["bytes_out"]
    from api.dashboard import figures

    text = admin.get().text
    assert figures.size(saved) in text
    ended = running.service.database.call("zcard", running.service.database.key("finished"))
    assert f"{figures.count(ended)}<small>ended in the last hour" in text


def test_a_picture_is_taken_with_the_token_in_a_header(
    running: Running, writer: Visit, tenant: str
) -> None:
    files = {"file": ("photo.png", picture(51))}
    wishes = {"effort": "2", "quality": "60"}
    headers = {"X-CSRF-Token": writer.csrf, "Accept": "application/json"}
    made = writer.client.post(f"{HOME}/jobs", files=files, data=wishes, headers=headers)
    assert made.status_code == 202
    record = running.service.get(tenant, made.json()["id"])
    assert (record.spec.parameters.effort, record.spec.parameters.quality) == (2, 60.0)
    assert made.json()["location"] == f"{HOME}/jobs/{record.id}"
    again = writer.client.post(f"{HOME}/jobs", files=files, data=wishes | {"csrf": writer.csrf})
    assert (again.status_code, again.headers["location"]) == (303, f"{HOME}/jobs/{record.id}")
    bad = writer.client.post(
        f"{HOME}/jobs", files={"file": ("a.txt", b"no picture")}, headers=headers
    )
    assert (bad.status_code, bad.json()["code"]) == (415, "unsupported_image")
