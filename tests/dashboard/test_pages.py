"""What the pages say and do, against what the records say."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable

import pytest

from jobs import ClaimRefused, Failure, FileBlobs, JobFilter, Progress, State
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


def test_a_large_original_is_sent_from_the_store_in_pieces(
    running: Running, writer: Visit, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import io

    import numpy as np
    from PIL import Image

    data = picture(43, 700, 500)
    with running.client(running.key(tenant)) as client:
        job = client.post("/v1/jobs", files={"file": ("photo.png", data)}).json()["id"]
    whole = FileBlobs.get

    def get(self: FileBlobs, key: str, **more: int) -> bytes:
        assert not key.endswith("original.png"), "the whole picture was read into memory"
        return whole(self, key, **more)

    monkeypatch.setattr(FileBlobs, "get", get)
    for _ in range(2):  # made, then kept
        shown = writer.get(f"/jobs/{job}/original")
        assert int(shown.headers["content-length"]) == len(shown.content) > 1_000_000
        pixels = np.asarray(Image.open(io.BytesIO(shown.content)))
        assert np.array_equal(pixels, np.asarray(Image.open(io.BytesIO(data))))
    known = {"If-None-Match": shown.headers["etag"]}
    assert writer.get(f"/jobs/{job}/original", headers=known).status_code == 304


def test_few_wait_for_a_picture_and_the_others_come_back_later(
    running: Running, writer: Visit, tenant: str
) -> None:
    from concurrent.futures import ThreadPoolExecutor

    from api.pictures import MOST_WAITING

    job = a_job(running, tenant, 44)
    running.succeed(job)
    many = MOST_WAITING + 5
    json_wanted = {"Accept": "application/json"}
    with ThreadPoolExecutor(many) as pool:
        asked = [
            pool.submit(writer.get, f"/jobs/{job}/rivals", headers=json_wanted) for _ in range(many)
        ]
        answers = [each.result() for each in asked]
    served = [each for each in answers if each.status_code == 200]
    refused = [each for each in answers if each.status_code == 503]
    assert len(served) + len(refused) == many
    assert refused
    assert len(served) >= MOST_WAITING + 1
    for each in refused:
        assert each.json()["code"] == "decoder_busy"
        assert int(each.headers["retry-after"]) >= 1
    assert writer.get(f"/jobs/{job}/rivals").status_code == 200


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
    from api.dashboard import figures

    history = running.service.history
    # Another test may have taken one just now; here every moment may have its own.
    running.service.database.client.delete(running.service.database.key("history", "turn"))
    history.clear()
    assert "Counted from the first sample" in admin.get().text
    assert history.take()
    assert not history.take()
    running.succeed(a_job(running, tenant))
    counters = running.service.counters()
    text = admin.get().text
    assert figures.size(counters["bytes_in"] - counters["bytes_out"]) in text
    assert "1<small>ended in the last 1 min" in text
    assert "1 submitted · busiest minute 1" in text


def test_what_ended_stays_counted_when_it_is_retried_or_deleted(
    running: Running, admin: Visit, tenant: str
) -> None:
    service = running.service
    failures = frozenset({State.FAILED})
    for each in service.list(JobFilter(None, states=failures), limit=500).records:
        service.delete(None, each.id)
    service.database.client.delete(service.database.key("history", "turn"))
    service.history.clear()
    assert service.history.take()
    failed, cancelled, succeeded, kept = (a_job(running, tenant, seed) for seed in range(4))
    for each in (failed, kept):
        service.store.fail(running.claim(each).lease, Failure("not_an_image", "none"))
    service.cancel(tenant, cancelled)
    running.succeed(succeeded)
    before = admin.get().text
    service.retry(tenant, failed)
    service.delete(tenant, cancelled)
    service.delete(tenant, succeeded)
    after = admin.get().text
    for text in (before, after):
        assert "4<small>ended in the last 1 min" in text
        assert "4 submitted" in text
        assert "2<small>in the last 1 min" in text
    assert "2 dead jobs kept" in before
    assert "1 dead job kept" in after


def test_failures_beyond_those_looked_at_are_told_of(
    running: Running, writer: Visit, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from api.dashboard.routes import overview

    for seed in range(3):
        claim = running.claim(a_job(running, tenant, seed))
        running.service.store.fail(claim.lease, Failure("not_an_image", "none"))
    assert "Over the last day." in writer.get().text
    monkeypatch.setattr(overview, "_FAILED", 2)
    assert "Of the newest 2 that failed within a day; there are more." in writer.get().text


def walked(visit: Visit, path: str, pattern: str) -> list[str]:
    """Return what a pattern finds on a page and on all that follow it."""
    found: list[str] = []
    path = f"{HOME}{path}"
    while path:
        text = visit.client.get(path).text
        found += re.findall(pattern, text)
        following = re.search(r'<a class="button" rel="next" href="([^"]+)"', text)
        path = html.unescape(following[1]) if following else ""
    return found


def test_pages_of_keys_neither_repeat_nor_leave_out(
    running: Running, admin: Visit, tenant: str
) -> None:
    for _ in range(53):
        running.key(tenant)
    all_of_them = [each.id for each in running.service.keys.list()]
    found = walked(admin, "/keys", r'<span class="sub"><code>(key_\w+)</code>')
    assert found == sorted(all_of_them, reverse=True)


def test_pages_of_endpoints_neither_repeat_nor_leave_out(
    running: Running, admin: Visit, visits: Visits, tenant: str
) -> None:
    service = running.service
    made = [
        service.endpoints.create(f"{tenant}-{number % 3}", f"https://example.org/{number}")[0].id
        for number in range(53)
    ]
    for times in (0, 1, 2):
        for _ in range(times):
            service.endpoints.test(None, made[times])
    all_of_them = [each.id for each in service.endpoints.list()]
    row = r'<tr id="row-(whk_\w+)"'
    assert walked(admin, "/webhooks", row) == sorted(all_of_them, reverse=True)
    waiting = r'<tr id="row-(whk_\w+)".*?<td class="num">0</td><td class="num">(\d+)</td>'
    counted = dict(walked(admin, "/webhooks", f"(?s){waiting}"))
    assert [counted[each] for each in made[:3]] == ["0", "1", "2"]
    other = visits(running.key(f"{tenant}-1"))
    assert walked(other, "/webhooks", row) == sorted(made[1::3], reverse=True)


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
