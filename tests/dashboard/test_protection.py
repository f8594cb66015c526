"""What a page may load, whose forms are taken, and who may do and see what."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable

import pytest
from fastapi.routing import APIRoute

from api import dashboard
from api.dashboard.pages import FOLDER
from jobs import KeyLimits, Scope
from tests.api.asking import submit
from tests.api.running import Running, picture
from tests.api.test_docs_page import References
from tests.dashboard.visiting import HOME, Visit

PAGES = ("", "/jobs", "/dead", "/webhooks", "/workers", "/queues", "/keys", "/audit")
ADMIN_PAGES = ("/workers", "/queues", "/keys", "/audit")

Visits = Callable[..., Visit]


def a_job(running: Running, tenant: str, seed: int = 1, **fields: object) -> str:
    with running.client(running.key(tenant)) as client:
        answer = submit(client, picture(seed), **fields)
        assert answer.status_code == 202, answer.text
        found: str = answer.json()["id"]
        return found


@pytest.mark.parametrize("path", [*PAGES, "/login", "/job", "/none", "/jobs?state=wrong"])
def test_a_page_loads_nothing_but_our_files(
    running: Running, admin: Visit, tenant: str, path: str
) -> None:
    if path == "/job":
        path = f"/jobs/{a_job(running, tenant)}"
    answer = admin.get(path)
    policy = dict(
        each.strip().partition(" ")[::2]
        for each in answer.headers["content-security-policy"].split(";")
    )
    assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
    for name in ("script-src", "style-src", "connect-src", "form-action"):
        assert policy[name] == "'self'"
    assert set(policy["img-src"].split()) == {"'self'", "blob:"}
    assert answer.headers["cache-control"] == "no-store"
    page = References(answer.text)
    assert page.inline == []
    files = {each for each in page.found if "/static/" in each}
    assert len(files) >= 3
    for reference in page.found:
        assert reference.startswith(("/", "#")), reference
        assert not reference.startswith("//"), reference
    for reference in files:
        found = admin.client.get(reference)
        assert found.status_code == 200
        assert "immutable" in found.headers["cache-control"]


def test_our_scripts_and_styles_name_no_other_host() -> None:
    for path in (FOLDER / "static").glob("*.*"):
        text = path.read_text("utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|@import|url\(\s*[\"']?(//|data:)", text), path


def test_the_libraries_are_those_that_were_copied() -> None:
    folder = FOLDER / "static" / "vendor"
    rows = re.findall(r"^\| `(\S+)` \| `(\w{64})` \|$", (folder / "README.md").read_text(), re.M)
    assert {name for name, _ in rows} == {each.name for each in folder.iterdir()} - {"README.md"}
    for name, digest in rows:
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest, name
    assert {name for name, _ in rows if name.endswith(".LICENSE")} == {
        "htmx.LICENSE",
        "uplot.LICENSE",
    }


def posts(job: str) -> list[str]:
    """Return the address of every form that changes something."""
    routes = [route for module in dashboard.PAGES for route in module.router.routes]
    paths = [each.path for each in routes if isinstance(each, APIRoute) and "POST" in each.methods]
    assert len(paths) > 20
    places = {
        "{job_id}": job,
        "{worker_id}": "worker-1",
        "{name}": "encode",
        "{key_id}": "key_1",
        "{webhook_id}": "whk_1",
        "{delivery_id}": "dlv_1",
    }
    for place, value in places.items():
        paths = [path.replace(place, value) for path in paths]
    assert not any("{" in path for path in paths)
    return [path for path in paths if path != "/login"]


def test_no_form_is_taken_without_the_token(
    running: Running, admin: Visit, visits: Visits, tenant: str
) -> None:
    stranger = visits(running.key(f"{tenant}-other"))
    for path in posts(a_job(running, tenant)):
        for token in ("", "x" * 43, stranger.csrf):
            answer = admin.post(path, csrf=token, confirmed="1")
            assert answer.status_code in (403, 415), (path, answer.status_code)
        if path != "/jobs":
            assert "too old or not from here" in answer.text, path


def test_a_form_from_another_site_is_refused(running: Running, writer: Visit, tenant: str) -> None:
    job = a_job(running, tenant)
    for header, value in (
        ("Sec-Fetch-Site", "cross-site"),
        ("Sec-Fetch-Site", "same-site"),
        ("Origin", "https://example.org"),
    ):
        answer = writer.client.post(
            f"{HOME}/jobs/{job}/cancel",
            data={"csrf": writer.csrf, "confirmed": "1"},
            headers={header: value},
        )
        assert answer.status_code == 403, header
    assert running.service.get(None, job).state == "queued"


def test_a_read_only_key_sees_and_does_not_touch(
    running: Running, reader: Visit, tenant: str
) -> None:
    job = a_job(running, tenant)
    page = reader.get(f"/jobs/{job}")
    assert page.status_code == 200
    assert "read-only key" in page.text
    assert f'action="{HOME}/jobs/{job}/cancel"' not in page.text
    for path in posts(job):
        if path == "/logout":
            continue
        answer = reader.post(path, confirmed="1", action="cancel", id=job)
        assert answer.status_code == 403, path
        assert "this needs a key with the scope" in answer.text, path
    assert running.service.get(None, job).state == "queued"


def test_the_dashboard_counts_against_the_requests_of_the_key(
    running: Running, visits: Visits, tenant: str
) -> None:
    key = running.key(tenant, limits=KeyLimits(requests_per_minute=40))
    visit = visits(key)  # which looks at one page
    with running.client(key) as client:
        left = int(client.get("/v1/jobs").headers["ratelimit-remaining"])
        page = visit.get("/jobs")
        assert int(page.headers["ratelimit-remaining"]) == left - 1
        assert int(client.get("/v1/jobs").headers["ratelimit-remaining"]) == left - 2
        files = {each for each in References(page.text).found if "/static/" in each}
        for each in files:
            assert "ratelimit-remaining" not in visit.client.get(each).headers
        assert int(client.get("/v1/jobs").headers["ratelimit-remaining"]) == left - 3
        answers = [visit.get("/jobs") for _ in range(45)]
        refused = answers[-1]
        assert refused.status_code == 429
        assert refused.headers["content-type"] == "text/html; charset=utf-8"
        assert "Too many requests" in refused.text
        assert f"try again in {refused.headers['retry-after']} s" in refused.text
        assert client.get("/v1/jobs").status_code == 429
        assert visit.client.get(files.pop()).status_code == 200
    told = visit.get("/jobs", headers={"Accept": "application/json"})
    assert (told.status_code, told.json()["code"]) == (429, "rate_limited")


@pytest.mark.parametrize("path", ADMIN_PAGES)
def test_pages_of_the_service_are_for_administrators(writer: Visit, path: str) -> None:
    answer = writer.get(path)
    assert answer.status_code == 403
    assert f'href="{HOME}{path}"' not in writer.get().text


def test_jobs_of_others_are_not_there(
    running: Running, writer: Visit, admin: Visit, tenant: str
) -> None:
    other = a_job(running, f"{tenant}-other", metadata='{"album": "hidden-thing"}')
    assert other not in writer.get("/jobs").text
    assert other not in writer.get("/jobs", params={"q": "hidden-thing"}).text
    assert writer.get("/jobs", params={"q": other}).status_code == 200
    for path in ("", "/curve", "/original", "/image", "/result", "/rivals", "/previews/1"):
        assert writer.get(f"/jobs/{other}{path}").status_code == 404, path
    for act in ("cancel", "finish", "retry", "delete"):
        assert writer.post(f"/jobs/{other}/{act}", confirmed="1").status_code == 404, act
    answer = writer.post("/jobs/bulk", action="cancel", id=other, confirmed="1")
    assert answer.status_code == 303
    assert running.service.get(None, other).state == "queued"
    assert other in admin.get("/jobs").text


def test_a_failure_is_a_page_and_tells_nothing_more(admin: Visit) -> None:
    answer = admin.get("/jobs/job_01JD9X7Q3W8E5R2T6Y4V0N1M9B")
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["x-request-id"] in answer.text
    assert admin.get("/jobs", params={"colour": "blue"}).status_code == 422


def test_what_clients_wrote_stays_text(running: Running, admin: Visit, tenant: str) -> None:
    evil = "<script>alert(1)</script>"
    with running.client(running.key(tenant)) as client:
        answer = client.post(
            "/v1/jobs",
            files={"file": (f"{evil}.png", picture(7))},
            data={"metadata": '{"<b>name</b>": "\\"><img src=x>"}'},
        )
        job = answer.json()["id"]
    for path in ("", "/jobs", f"/jobs/{job}", f"/jobs?q={evil}"):
        text = admin.get(path).text
        assert "<script>alert" not in text
        assert "<img src=x" not in text
        assert "<b>name" not in text


def test_a_new_key_is_shown_once(running: Running, admin: Visit, visits: Visits) -> None:
    made = admin.post("/keys", tenant="acme", name="one", scope=["jobs:read"], days="7")
    assert made.status_code == 200
    (secret,) = set(re.findall(r"nif_[A-Za-z0-9_-]{43}", made.text))
    assert secret not in admin.get("/keys").text
    assert secret not in admin.get("/audit").text
    key = running.service.keys.verify(secret)
    assert key is not None
    assert (key.tenant, key.scopes, key.name) == ("acme", {Scope.JOBS_READ}, "one")
    assert key.expires_at is not None
    asked = admin.post(f"/keys/{key.id}/revoke")
    assert (asked.status_code, "Revoke one?" in asked.text) == (200, True)
    assert running.service.keys.verify(secret) is not None
    assert admin.post(f"/keys/{key.id}/revoke", confirmed="1").status_code == 303
    assert running.service.keys.verify(secret) is None


@pytest.mark.parametrize(
    "fields",
    [
        {"tenant": "No Tenant", "scope": "jobs:read"},
        {"tenant": "acme"},
        {"tenant": "acme", "scope": "everything"},
        {"tenant": "acme", "scope": "jobs:read", "days": "-1"},
        {"tenant": "acme", "scope": "jobs:read", "days": "many"},
    ],
)
def test_a_key_with_odd_wishes_is_not_made(
    running: Running, admin: Visit, fields: dict[str, str]
) -> None:
    before = len(running.service.keys.list())
    assert admin.post("/keys", **fields).status_code == 422
    assert len(running.service.keys.list()) == before
