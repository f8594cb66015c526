"""Signing in and out: what a session is worth, and when it ends."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import timedelta
from http.cookies import SimpleCookie

import pytest

from api.dashboard.routes.login import ATTEMPTS_PER_MINUTE
from jobs import Scope
from tests.api.running import Running
from tests.dashboard.visiting import HOME, Visit

PAGES = ("", "/jobs", "/dead", "/webhooks", "/workers", "/queues", "/keys", "/audit", "/estimate")

Visits = Callable[..., Visit]


@pytest.mark.parametrize("path", PAGES)
def test_without_a_session_every_page_leads_to_the_form(visits: Visits, path: str) -> None:
    answer = visits().get(path, params={"width": 1, "height": 1} if path == "/estimate" else None)
    assert answer.status_code == 303
    assert answer.headers["location"].startswith(f"{HOME}/login?next=%2Fdashboard")


def test_the_cookie_is_only_for_this_browser_and_place(
    running: Running, visits: Visits, tenant: str
) -> None:
    answer = visits().sign_in(running.key(tenant))
    assert (answer.status_code, answer.headers["location"]) == (303, HOME)
    cookie = SimpleCookie(
        next(each for each in answer.headers.get_list("set-cookie") if "nif_session" in each)
    )["nif_session"]
    assert cookie["httponly"] is True
    assert cookie["samesite"] == "strict"
    assert cookie["path"] == HOME
    assert 0 < int(cookie["max-age"]) <= 12 * 3600


def test_the_store_knows_only_the_hash_of_a_cookie(running: Running, writer: Visit) -> None:
    token = writer.client.cookies["nif_session"]
    database = running.service.database
    names = list(database.client.scan_iter("*"))
    assert database.key("session", hashlib.sha256(token.encode()).hexdigest()) in names
    assert not any(token in name for name in names)
    found = database.client.hgetall(
        database.key("session", hashlib.sha256(token.encode()).hexdigest())
    )
    assert token not in found.values()


def test_a_session_ends_by_itself(running: Running, writer: Visit) -> None:
    token = writer.client.cookies["nif_session"]
    database = running.service.database
    name = database.key("session", hashlib.sha256(token.encode()).hexdigest())
    left = timedelta(milliseconds=database.client.pttl(name))
    assert timedelta(hours=11) < left <= timedelta(hours=12)
    database.client.pexpire(name, 1)
    while database.client.exists(name):
        pass
    assert writer.get().status_code == 303


@pytest.mark.parametrize("key", ["", "nif_" + "x" * 43, "something else"])
def test_what_is_no_key_is_refused(visits: Visits, key: str) -> None:
    visit = visits()
    answer = visit.sign_in(key)
    assert answer.status_code == 401
    assert "not valid" in answer.text
    assert "nif_session" not in visit.client.cookies


def test_a_key_that_may_not_read_is_told_so(running: Running, visits: Visits, tenant: str) -> None:
    answer = visits().sign_in(running.key(tenant, Scope.JOBS_WRITE))
    assert answer.status_code == 403
    assert "jobs:read" in answer.text


def test_the_form_is_refused_without_its_own_cookie(
    running: Running, visits: Visits, tenant: str
) -> None:
    visit = visits()
    answer = visit.sign_in(running.key(tenant), csrf="forged")
    assert answer.status_code == 403
    assert "nif_session" not in visit.client.cookies


def test_too_many_attempts_have_to_wait(running: Running, visits: Visits, tenant: str) -> None:
    visit = visits()
    answers = [visit.sign_in("nif_" + "y" * 43) for _ in range(ATTEMPTS_PER_MINUTE)]
    assert {each.status_code for each in answers} == {401}
    good = visit.sign_in(running.key(tenant))
    assert good.status_code == 429
    assert 1 <= int(good.headers["retry-after"]) <= 120
    assert "nif_session" not in visit.client.cookies


def test_signing_out_ends_the_session_for_whoever_has_the_cookie(
    running: Running, visits: Visits, writer: Visit
) -> None:
    thief = visits()
    thief.client.cookies.update(writer.client.cookies)
    assert thief.get("/jobs").status_code == 200
    assert writer.post("/logout").status_code == 303
    assert "nif_session" not in writer.client.cookies
    assert thief.get("/jobs").status_code == 303


def test_revoking_the_key_ends_its_sessions(running: Running, visits: Visits, tenant: str) -> None:
    key, plaintext = running.service.keys.create(tenant, [Scope.JOBS_READ])
    visit = visits(plaintext)
    assert visit.get("/jobs").status_code == 200
    running.service.keys.revoke(key.id)
    assert visit.get("/jobs").status_code == 303
    refused = visit.get("/jobs", headers={"HX-Request": "true"})
    assert refused.status_code == 401


@pytest.mark.parametrize(
    ("asked", "led"),
    [
        ("/dashboard/jobs?state=failed", "/dashboard/jobs?state=failed"),
        ("https://example.org/", "/dashboard"),
        ("//example.org/dashboard", "/dashboard"),
        ("/dashboard//example.org", "/dashboard"),
        ("/dashboard\\example.org", "/dashboard"),
        ("/dashboards", "/dashboard"),
    ],
)
def test_signing_in_leads_nowhere_else(
    running: Running, visits: Visits, tenant: str, asked: str, led: str
) -> None:
    assert visits().sign_in(running.key(tenant), next=asked).headers["location"] == led
