"""Search, samples of the past, and the audit log, on a real Redis."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

import jobs.search
from jobs import Failure, Invalid, JobDraft, JobService, State

Draft = Callable[..., JobDraft]
Submit = Callable[..., Any]


def ids(found: jobs.Found) -> list[str]:
    return [record.id for record in found.records]


def found_by(service: JobService, text: str, **more: Any) -> list[str]:
    return ids(service.search.find(text, **({"tenant": "acme"} | more)))


# Search


def test_every_text_of_a_client_is_found(service: JobService, submit: Submit) -> None:
    job = submit(1, metadata={"Album": "Côte d'Azur", "shot": "7"}, batch="bat_42").record
    submit(2)
    sha = job.spec.input.sha256
    for text in (job.id, job.id[6:], "azur", "CÔTE"[0], "côte", "bat_42", sha, sha[:8], "album=az"):
        assert job.id in found_by(service, text), text
    assert found_by(service, "album=7") == found_by(service, sha[1:12]) == []


def test_every_job_has_the_file_name_that_all_have(service: JobService, submit: Submit) -> None:
    made = [submit(number).record.id for number in range(3)]
    assert found_by(service, "A.PNG") == made[::-1]


def test_only_the_tenant_s_and_only_the_state_s(service: JobService, submit: Submit) -> None:
    mine = submit(1).record.id
    other = submit(2, tenant="other").record.id
    service.cancel("acme", mine)
    assert found_by(service, "a.png", tenant="other") == [other]
    assert found_by(service, "a.png", tenant=None) == [other, mine]
    assert found_by(service, "a.png", state=State.CANCELLED) == [mine]
    assert found_by(service, "a.png", state=State.QUEUED) == []


def test_a_deleted_job_is_not_found(service: JobService, submit: Submit) -> None:
    job = submit(1).record.id
    service.cancel("acme", job)
    service.store.begin_delete(job)
    assert found_by(service, "a.png") == []


def test_pages_join_into_the_whole(
    service: JobService, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Chunks and pages small enough that ends of all kinds meet.
    monkeypatch.setattr(jobs.search, "CHUNK", 3)
    monkeypatch.setattr(jobs.search, "MOST_LOOKED_AT", 6)
    made = [
        submit(number, metadata={"kind": "odd" if number % 2 else "even"}).record.id
        for number in range(20)
    ]
    for limit in (1, 2, 3, 7, 50):
        seen: list[str] = []
        cursor = None
        for _ in range(40):
            page = service.search.find("kind=odd", tenant="acme", limit=limit, cursor=cursor)
            assert len(page.records) <= limit
            seen += ids(page)
            cursor = page.next_cursor
            if cursor is None:
                break
        assert seen == made[1::2][::-1], limit


def test_looking_goes_no_further_than_it_may(
    service: JobService, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs.search, "CHUNK", 2)
    monkeypatch.setattr(jobs.search, "MOST_LOOKED_AT", 4)
    for number in range(9):
        submit(number)
    page = service.search.find("nothing has this", tenant="acme")
    assert (page.records, page.looked_at) == ((), 4)
    assert page.next_cursor is not None


@pytest.mark.parametrize("text", ["", "   ", "x" * 201])
def test_no_text_and_too_much_are_refused(service: JobService, text: str) -> None:
    with pytest.raises(Invalid, match="1 to 200 characters"):
        service.search.find(text, tenant=None)


@pytest.mark.parametrize("text", ["%", "(", "[a-z]", ".*", "\\", '"', "'"])
def test_signs_of_patterns_are_only_signs(service: JobService, submit: Submit, text: str) -> None:
    submit(1)
    job = submit(2, metadata={"note": f"a {text} b"}).record.id
    assert found_by(service, text) == [job]


# Samples


def test_a_sample_tells_what_the_service_is_like(service: JobService, submit: Submit) -> None:
    first, second = (submit(number).record.id for number in range(2))
    claim = service.store.claim(first, worker="w")
    service.store.fail(claim.lease, Failure("not_an_image", "none"))
    service.store.claim(second, worker="w")
    submit(3)
    assert service.history.take()
    (sample,) = service.history.read(60)
    assert (sample.depth, sample.running) == (1, 1)
    assert 0 <= sample.oldest_age_seconds < 60
    assert (sample.ended("failed"), sample.ended("succeeded")) == (1, 0)


def test_light_workers_take_one_sample_between_them(service: JobService) -> None:
    assert [service.history.take() for _ in range(5)] == [True, False, False, False, False]
    assert len(service.history.read(60)) == 1
    service.database.client.delete(service.database.key("history", "turn"))
    assert service.history.take()
    first, second = service.history.read(60)
    assert first.at <= second.at


def test_only_the_asked_past_is_read(service: JobService) -> None:
    old = service.database.now_milliseconds() - 7_200_000
    name = service.database.key("history")
    text = '{"depth": 9, "running": 0, "oldest_age_seconds": 0, "counters": {}}'
    service.database.client.xadd(name, {"sample": text}, id=f"{old}-0")
    service.history.take()
    assert [sample.depth for sample in service.history.read(3600)] == [0]
    assert [sample.depth for sample in service.history.read(10_000)] == [9, 0]


# The audit log


def note(service: JobService, action: str, **more: str) -> None:
    who = {"key_id": "key_1", "key_name": "somebody", "tenant": "acme", "way": "dashboard"}
    service.audit.note(action, "job_1", **(who | more))


def test_acts_are_read_newest_first_and_in_pages(service: JobService) -> None:
    for number in range(7):
        note(service, f"job.{number}")
    seen: list[str] = []
    before = None
    for _ in itertools.count():
        page = service.audit.read(limit=3, before=before)
        if not page:
            break
        seen += [entry.action for entry in page]
        before = page[-1].id
    assert seen == [f"job.{number}" for number in reversed(range(7))]


def test_an_entry_is_what_was_noted(service: JobService) -> None:
    note(service, "key.create", way="api", detail="x" * 900)
    (entry,) = service.audit.read()
    assert (entry.action, entry.target, entry.way) == ("key.create", "job_1", "api")
    assert (entry.key_id, entry.key_name, entry.tenant) == ("key_1", "somebody", "acme")
    assert entry.detail == "x" * 500


@pytest.mark.parametrize("before", ["", "1", "1-", "x-1", "1-1\n"])
def test_a_bad_place_in_the_log_is_refused(service: JobService, before: str) -> None:
    with pytest.raises(Invalid, match="two numbers"):
        service.audit.read(before=before)
