"""Looking at one job: what an ETag promises, and that a key is checked every single time."""

from __future__ import annotations

import httpx2
import pytest

from jobs import KeyLimits, Progress, Scope
from tests.api.running import Running, picture


@pytest.fixture
def job(client: httpx2.Client) -> str:
    answer = client.post("/v1/jobs", files={"file": ("a.png", picture(77))})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def test_whatever_changes_in_the_answer_changes_its_tag(
    running: Running, client: httpx2.Client, job: str
) -> None:
    bodies: dict[str, bytes] = {}

    def look() -> None:
        answer = client.get(f"/v1/jobs/{job}")
        tag = answer.headers["etag"]
        assert bodies.setdefault(tag, answer.content) == answer.content
        again = client.get(f"/v1/jobs/{job}", headers={"If-None-Match": tag})
        assert (again.status_code, again.headers["etag"]) == (304, tag)

    look()
    # Nothing of the job itself changes here, but its place does.
    first = client.post(
        "/v1/jobs", files={"file": ("b.png", picture(78))}, data={"priority": "9"}
    ).json()
    look()
    client.post(f"/v1/jobs/{first['id']}/cancel")
    look()
    claim = running.claim(job)
    look()
    for iteration in (10, 20):
        running.service.store.progress(claim.lease, Progress("fit", iteration=iteration))
        look()
    running.service.store.renew(claim.lease)
    look()
    client.post(f"/v1/jobs/{job}/finish")
    look()
    client.post(f"/v1/jobs/{job}/cancel")
    look()
    running.service.store.cancelled(claim.lease)
    look()
    client.post(f"/v1/jobs/{job}/retry")
    look()
    # The place was 1 twice with nothing else changed, and a renewed lease is not told.
    assert len(set(bodies.values())) == len(bodies) == 9


def test_a_condition_with_other_tags_is_understood(client: httpx2.Client, job: str) -> None:
    tag = client.get(f"/v1/jobs/{job}").headers["etag"]
    for condition, status in (
        (tag, 304),
        (f"W/{tag}", 304),
        (f'"other", {tag}', 304),
        ("*", 304),
        ('"other"', 200),
        (tag[:-1], 200),
        (f'"-1{tag[-10:]}', 200),
    ):
        answer = client.get(f"/v1/jobs/{job}", headers={"If-None-Match": condition})
        assert answer.status_code == status, condition
        assert bool(answer.content) == (status == 200)


def test_a_tag_opens_no_door(running: Running, client: httpx2.Client, job: str) -> None:
    tag = client.get(f"/v1/jobs/{job}").headers["etag"]
    path, headers = f"/v1/jobs/{job}", {"If-None-Match": tag}
    with running.client(running.key("tenant-elsewhere")) as stranger:
        assert stranger.get(path, headers=headers).status_code == 404
    with running.client(None) as nobody:
        assert nobody.get(path, headers=headers).status_code == 401
        # Whoever has no key does not learn what an id looks like.
        assert nobody.get("/v1/jobs/no-job-id").status_code == 401
    writer = running.key("tenant-writer", Scope.JOBS_WRITE)
    with running.client(writer) as other:
        assert other.get(path, headers=headers).status_code == 403


def test_a_revoked_key_is_out_with_the_next_request(
    running: Running, tenant: str, client: httpx2.Client, job: str
) -> None:
    key, plaintext = running.service.keys.create(tenant, [Scope.JOBS_READ])
    with running.client(plaintext) as other:
        for _ in range(3):
            assert other.get(f"/v1/jobs/{job}").status_code == 200
        running.service.keys.revoke(key.id)
        assert other.get(f"/v1/jobs/{job}").status_code == 401
        assert other.get("/v1/jobs").status_code == 401


def test_polls_count_against_the_keys_own_limit(
    running: Running, tenant: str, client: httpx2.Client, job: str
) -> None:
    own = running.key(tenant, Scope.JOBS_READ, limits=KeyLimits(requests_per_minute=3))
    with running.client(own) as limited:
        answers = [limited.get(f"/v1/jobs/{job}") for _ in range(2)]
        answers.append(limited.get("/v1/jobs"))
        left = [int(each.headers["ratelimit-remaining"]) for each in answers]
        assert ([each.status_code for each in answers], left) == ([200] * 3, [2, 1, 0])
        refused = limited.get(f"/v1/jobs/{job}", headers={"If-None-Match": "*"})
        assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
        assert (refused.json()["limit"], refused.headers["ratelimit-limit"]) == (3, "3")
        assert int(refused.headers["retry-after"]) >= 1
    free = running.key(tenant, Scope.JOBS_READ, limits=KeyLimits(requests_per_minute=0))
    with running.client(free) as unlimited:
        assert "ratelimit-limit" not in unlimited.get(f"/v1/jobs/{job}").headers


def test_a_deleted_job_is_gone_for_a_client_that_knows_it(client: httpx2.Client, job: str) -> None:
    client.post(f"/v1/jobs/{job}/cancel")
    tag = client.get(f"/v1/jobs/{job}").headers["etag"]
    assert client.delete(f"/v1/jobs/{job}").status_code == 204
    answer = client.get(f"/v1/jobs/{job}", headers={"If-None-Match": tag})
    assert answer.status_code == 404
