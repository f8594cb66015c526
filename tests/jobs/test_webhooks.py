"""Endpoints, secrets and deliveries in Redis: claims, limits, replay, retention, restore."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from jobs import (
    BlobRef,
    BlobsUnavailable,
    DeliveryAttempt,
    DeliveryClaim,
    DeliveryState,
    DisabledReason,
    EndpointDisabled,
    Failure,
    FileBlobs,
    Invalid,
    JobDraft,
    JobService,
    NotFound,
    Parameters,
    QuotaExceeded,
    RedisServer,
    Settings,
    Trouble,
    Verdict,
    load_settings,
    open_service,
    reconcile,
)
from jobs.deliveries import DISABLE_FAILURES
from jobs.signing import MAX_SECRETS
from jobs.webhook_events import DEFAULT_EVENTS, EVENT_NAMES, WEBHOOK_EVENTS
from tests.jobs.wakeups import ListWakeups

Draft = Callable[..., JobDraft]
URL = "https://hooks.example.org/nif"


def told(service: JobService, draft: JobDraft) -> str:
    """Have a job fail, take on what is to be told of it, and return its id."""
    service.store.create(draft, submission=draft.id)
    lease = service.store.claim(draft.id, worker="w").lease
    service.store.fail(lease, Failure("x", "y"))
    for message in service.outbox.read():
        service.fanout.take_on(message)
    return draft.id


def claim_all(service: JobService, **changes: Any) -> list[DeliveryClaim]:
    wanted: dict[str, Any] = {
        "limit": 100, "per_host": 100, "per_tenant": 100, "claim_seconds": 60.0,
    }  # fmt: skip
    return service.deliveries.claim(**(wanted | changes))


def settle(
    service: JobService, claim: DeliveryClaim, trouble: Trouble | None = None, **more: Any
) -> Any:
    """Note an attempt as the sender does: it is tried again at once unless something is said."""
    attempt = DeliveryAttempt(datetime.now(UTC), 500 if trouble else 200, trouble, 12)
    verdict = Verdict.RETRY if trouble else Verdict.DELIVERED
    return service.deliveries.settle(claim, attempt, more.pop("verdict", verdict), **more)


def test_an_endpoint_is_made_changed_and_deleted(service: JobService) -> None:
    endpoints = service.endpoints
    made, secret = endpoints.create("acme", URL, description="ours")
    assert made.events == DEFAULT_EVENTS
    assert (made.enabled, made.disabled_reason, made.failures) == (True, None, 0)
    assert secret.startswith("whsec_")
    assert secret not in repr(made)
    assert secret not in repr(endpoints.secrets("acme", made.id))
    assert endpoints.get("acme", made.id) == made

    changed = endpoints.update("acme", made.id, events=["job.queued"], description="")
    assert (changed.events, changed.description, changed.url) == (("job.queued",), "", URL)
    off = endpoints.update("acme", made.id, enabled=False)
    assert (off.enabled, off.disabled_reason) == (False, DisabledReason.BY_REQUEST)
    assert off.disabled_at is not None
    assert endpoints.counts().disabled == 1
    on = endpoints.update("acme", made.id, enabled=True)
    assert (on.enabled, on.disabled_reason, on.disabled_at) == (True, None, None)
    assert (endpoints.counts().enabled, endpoints.counts().disabled) == (1, 0)

    endpoints.delete("acme", made.id)
    assert endpoints.list("acme") == ()
    for call in (
        lambda: endpoints.get("acme", made.id),
        lambda: endpoints.update("acme", made.id, enabled=True),
        lambda: endpoints.delete("acme", made.id),
        lambda: endpoints.rotate("acme", made.id),
        lambda: endpoints.test("acme", made.id),
    ):
        with pytest.raises(NotFound):
            call()


def test_nothing_is_left_of_a_deleted_endpoint(service: JobService, draft: Draft) -> None:
    before = set(service.database.client.keys())
    made, _ = service.endpoints.create("acme", URL, EVENT_NAMES)
    service.endpoints.delete("acme", made.id)
    assert set(service.database.client.keys()) == before
    assert service.blobs.list("_system/webhooks/").items == ()


def test_tenants_are_apart(service: JobService, draft: Draft) -> None:
    mine, _ = service.endpoints.create("acme", URL, ["job.failed"])
    other, _ = service.endpoints.create("other", URL, ["job.failed"])
    for call in (
        lambda: service.endpoints.get("other", mine.id),
        lambda: service.endpoints.secrets("other", mine.id),
        lambda: service.endpoints.update("other", mine.id, enabled=False),
        lambda: service.endpoints.delete("other", mine.id),
    ):
        with pytest.raises(NotFound):
            call()
    told(service, draft(1))
    (delivery,) = service.deliveries.page(tenant="acme").deliveries
    assert delivery.endpoint_id == mine.id
    assert service.deliveries.page(endpoint_id=other.id).deliveries == ()
    with pytest.raises(NotFound):
        service.deliveries.get("other", delivery.id)
    with pytest.raises(NotFound):
        service.deliveries.replay("other", delivery.id)
    assert service.deliveries.get(None, delivery.id) == delivery
    ours, theirs = (service.endpoints.tenant_secrets(each) for each in ("acme", "other"))
    assert ours[0].secret != theirs[0].secret
    assert len(service.endpoints.list()) == 2


def test_there_are_only_so_many_endpoints(settings: Settings, wakeups: ListWakeups) -> None:
    few = settings.model_copy(update={"webhooks_per_tenant": 2})
    with open_service(few, wakeups=wakeups) as service:
        service.database.client.flushall()
        first, _ = service.endpoints.create("acme", URL)
        service.endpoints.create("acme", URL)
        with pytest.raises(QuotaExceeded, match="webhooks: 2 of 2"):
            service.endpoints.create("acme", URL)
        service.endpoints.create("other", URL)
        service.endpoints.delete("acme", first.id)
        service.endpoints.create("acme", URL)
        # What was refused left nothing behind.
        assert len(service.blobs.list("_system/webhooks/").items) == 3


@pytest.mark.parametrize(
    "values",
    [
        {"events": []},
        {"events": ["job.exploded"]},
        {"url": "http://hooks.example.org/"},
        {"url": "https://10.0.0.1/"},
        {"description": "x" * 201},
    ],
)
def test_what_is_not_accepted_changes_nothing(service: JobService, values: dict[str, Any]) -> None:
    made, _ = service.endpoints.create("acme", URL)
    with pytest.raises(Invalid):
        service.endpoints.update("acme", made.id, **values)
    with pytest.raises(Invalid):
        service.endpoints.create("acme", **({"url": URL} | values))
    assert service.endpoints.list("acme") == (made,)


def test_secrets_take_turns(service: JobService) -> None:
    made, first = service.endpoints.create("acme", URL)
    second, before = service.endpoints.rotate("acme", made.id, overlap=timedelta(hours=1))
    assert (before.secret, second.expires_at) == (first, None)
    assert before.expires_at is not None
    left = before.expires_at - service.database.now()
    assert timedelta(minutes=59) < left <= timedelta(hours=1)
    # A later, longer overlap does not prolong one that is ending already.
    found = service.endpoints.rotate("acme", made.id, overlap=timedelta(days=7))
    assert [each.secret for each in found[1:]] == [second.secret, first]
    assert found[2].expires_at == before.expires_at
    for _ in range(10):
        found = service.endpoints.rotate("acme", made.id, overlap=timedelta(hours=1))
    assert len(found) == MAX_SECRETS
    (only,) = service.endpoints.rotate("acme", made.id, overlap=timedelta(0))
    assert service.endpoints.secrets("acme", made.id) == (only,)
    with pytest.raises(Invalid, match="overlap"):
        service.endpoints.rotate("acme", made.id, overlap=timedelta(days=8))


def test_a_tenants_own_secret_is_made_once(service: JobService) -> None:
    (first,) = service.endpoints.tenant_secrets("acme")
    assert service.endpoints.tenant_secrets("acme") == (first,)
    new, before = service.endpoints.rotate_tenant("acme", overlap=timedelta(hours=1))
    assert before.secret == first.secret
    assert service.endpoints.tenant_secrets("acme") == (new, before)


def test_taking_on_a_message_twice_makes_nothing_twice(service: JobService, draft: Draft) -> None:
    service.endpoints.create("acme", URL, ["job.failed"])
    service.endpoints.create("acme", URL, ["job.failed"])
    made = draft(1, webhook="https://own.example.org/")
    service.store.create(made, submission="1")
    lease = service.store.claim(made.id, worker="w").lease
    service.store.fail(lease, Failure("x", "y"))
    (message,) = service.outbox.read()
    raw = service.database.client.xrange(service.database.key("outbox"))[0]
    assert len(service.fanout.take_on(message)) == 3
    assert service.fanout.take_on(message) == []
    # Even if the message itself came back, its deliveries are those that are there.
    service.database.client.delete(service.database.key("outbox"))
    service.database.client.xadd(service.database.key("outbox"), raw[1], id=raw[0])
    assert service.fanout.take_on(message) == []
    assert len(service.deliveries.page(job_id=made.id).deliveries) == 3


def test_a_claim_is_one_senders_until_it_runs_out(service: JobService, draft: Draft) -> None:
    service.endpoints.create("acme", URL, ["job.failed"])
    told(service, draft(1))
    (claim,) = claim_all(service)
    assert claim_all(service) == []
    assert (claim.url, claim.host, claim.tries) == (URL, "hooks.example.org", 0)
    assert len(claim.secrets) == 1

    client, key = service.database.client, service.database.key
    client.zadd(key("deliveries", "due", "acme", claim.host), {claim.delivery.id: 1})
    client.zadd(key("deliveries", "hosts", "acme"), {claim.host: 1})
    client.zadd(key("deliveries", "tenants"), {"acme": 1})
    (again,) = claim_all(service)
    assert again.delivery.id == claim.delivery.id
    assert settle(service, claim) is None  # the first one came too late
    assert settle(service, again).state is DeliveryState.DELIVERED
    assert settle(service, again).state is DeliveryState.DELIVERED  # a reply that was lost
    found = service.deliveries.get("acme", claim.delivery.id)
    assert (found.attempts, len(found.log)) == (1, 1)
    assert service.deliveries.backlog().pending == 0
    assert service.counters()['webhook_attempts{outcome="delivered"}'] == 1
    assert service.counters()["webhook_seconds_count"] == 1


def test_hosts_take_turns(service: JobService, draft: Draft) -> None:
    service.endpoints.create("acme", "https://a.example.org/", ["job.failed"])
    for number in range(10):
        told(service, draft(number))
    service.endpoints.create("acme", "https://b.example.org/", ["job.failed"])
    told(service, draft(10))
    claims = claim_all(service, limit=5, per_host=3)
    hosts = [each.host for each in claims]
    assert sorted(hosts) == ["a.example.org"] * 3 + ["b.example.org"]
    busy = {"a.example.org": 3, "b.example.org": 1}
    assert claim_all(service, per_host=3, busy_hosts=busy) == []
    assert len(claim_all(service, per_host=4, busy_hosts=busy)) == 1
    assert len(claim_all(service, limit=2)) == 2


def test_tenants_take_turns_also_at_one_host(service: JobService, draft: Draft) -> None:
    service.endpoints.create("acme", URL, ["job.failed"])
    service.endpoints.create("acme", "https://elsewhere.example.org/", ["job.failed"])
    for number in range(10):
        told(service, draft(number))
    service.endpoints.create("other", URL, ["job.failed"])
    told(service, draft(10, tenant="other"))
    mine = claim_all(service, limit=6, per_tenant=4)
    assert [each.delivery.tenant for each in mine] == ["acme"] * 4 + ["other"]
    busy = {"acme": 4, "other": 1}
    assert claim_all(service, per_tenant=4, busy_tenants=busy) == []
    assert len(claim_all(service, per_tenant=5, busy_tenants=busy)) == 1
    # What is passed over stays due.
    assert len(claim_all(service)) == 15


def test_a_tenant_with_very_many_hosts_hides_no_other(service: JobService, draft: Draft) -> None:
    client, key = service.database.client, service.database.key
    client.zadd(key("deliveries", "hosts", "acme"), {f"{n}.example.org": 1 for n in range(3000)})
    client.zadd(key("deliveries", "tenants"), {"acme": 1})
    service.endpoints.create("other", URL, ["job.failed"])
    told(service, draft(1, tenant="other"))
    (claim,) = claim_all(service, per_tenant=4, busy_tenants={"acme": 4})
    assert claim.delivery.tenant == "other"


def test_nothing_is_due_before_its_time(service: JobService, draft: Draft) -> None:
    service.endpoints.create("acme", URL, ["job.failed"])
    told(service, draft(1))
    (claim,) = claim_all(service)
    settled = settle(service, claim, Trouble.STATUS, wait_seconds=600)
    assert (settled.state, settled.disabled) == (DeliveryState.PENDING, None)
    assert claim_all(service) == []
    waiting = service.deliveries.get("acme", claim.delivery.id)
    assert waiting.failure is Trouble.STATUS
    wait = waiting.next_attempt_at - service.database.now()
    assert timedelta(seconds=590) < wait <= timedelta(seconds=600)
    # Unless somebody asks.
    service.deliveries.replay("acme", claim.delivery.id)
    (again,) = claim_all(service)
    assert again.tries == 1
    # While it is being sent, asking changes nothing.
    service.deliveries.replay("acme", claim.delivery.id)
    assert claim_all(service) == []
    assert settle(service, again).state is DeliveryState.DELIVERED


def test_who_moves_is_found_at_the_new_place(service: JobService, draft: Draft) -> None:
    made, _ = service.endpoints.create("acme", URL, ["job.failed"])
    told(service, draft(1))
    service.endpoints.update("acme", made.id, url="https://new.example.org/x")
    (claim,) = claim_all(service)
    assert claim.url == "https://new.example.org/x"
    settle(service, claim, Trouble.CONNECT, host="new.example.org")
    (again,) = claim_all(service)
    assert again.host == "new.example.org"
    settle(service, again)
    left = service.database.client.keys(service.database.key("deliveries", "*"))
    assert set(left) == {"nif:deliveries:ended", "nif:deliveries:last_order"}


def test_an_endpoint_that_fails_for_long_is_disabled(service: JobService, draft: Draft) -> None:
    made, _ = service.endpoints.create("acme", URL, ["job.failed"])
    told(service, draft(1))

    def fail() -> Any:
        (claim,) = claim_all(service)
        return settle(service, claim, Trouble.TIMEOUT)

    for _ in range(DISABLE_FAILURES):
        assert fail().disabled is None  # often, but not for long
    since = service.endpoints.get("acme", made.id).failing_since
    assert since is not None
    key = service.database.key("webhook", made.id)
    days = service.settings.webhook_disable_days
    long_ago = round((since - timedelta(days=days)).timestamp() * 1000) - 1
    service.database.client.hset(key, "failing", str(long_ago))
    assert fail().disabled == "failing"
    disabled = service.endpoints.get("acme", made.id)
    assert (disabled.enabled, disabled.disabled_reason) == (False, DisabledReason.FAILING)
    assert service.counters()['webhooks_disabled{reason="failing"}'] == 1
    # Its deliveries fail when their time comes, and are kept.
    assert claim_all(service) == []
    (delivery,) = service.deliveries.page(endpoint_id=made.id).deliveries
    assert (delivery.state, delivery.failure) == (DeliveryState.FAILED, Trouble.ENDPOINT_DISABLED)
    for call in (
        lambda: service.deliveries.replay("acme", delivery.id),
        lambda: service.deliveries.replay_failed(made.id),
        lambda: service.endpoints.test("acme", made.id),
    ):
        with pytest.raises(EndpointDisabled):
            call()
    enabled = service.endpoints.update("acme", made.id, enabled=True)
    assert (enabled.failures, enabled.failing_since) == (0, None)
    assert service.deliveries.replay_failed(made.id) == 1
    (claim,) = claim_all(service)
    assert claim.tries == 0  # the schedule begins anew


def test_a_few_failures_after_long_silence_disable_nobody(
    service: JobService, draft: Draft
) -> None:
    made, _ = service.endpoints.create("acme", URL, ["job.failed"])
    told(service, draft(1))
    (claim,) = claim_all(service)
    settle(service, claim, Trouble.TIMEOUT)
    service.database.client.hset(service.database.key("webhook", made.id), "failing", "1")
    (claim,) = claim_all(service)
    assert settle(service, claim, Trouble.TIMEOUT).disabled is None
    assert service.endpoints.get("acme", made.id).enabled


def test_what_was_to_go_to_a_deleted_endpoint_fails(service: JobService, draft: Draft) -> None:
    made, _ = service.endpoints.create("acme", URL, ["job.failed"])
    job_id = told(service, draft(1))
    service.endpoints.delete("acme", made.id)
    assert claim_all(service) == []
    (delivery,) = service.deliveries.page(job_id=job_id).deliveries
    assert (delivery.state, delivery.failure) == (DeliveryState.FAILED, Trouble.ENDPOINT_DELETED)
    with pytest.raises(NotFound):
        service.deliveries.replay("acme", delivery.id)


def test_pages_of_deliveries(service: JobService, draft: Draft) -> None:
    made, _ = service.endpoints.create("acme", URL, ["job.failed"])
    ids = [told(service, draft(number)) for number in range(7)]
    (claim,) = claim_all(service, limit=1)
    settle(service, claim)
    seen, cursor = [], None
    while True:
        page = service.deliveries.page(endpoint_id=made.id, limit=3, cursor=cursor)
        seen += [each.job_id for each in page.deliveries]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert seen == ids[::-1]
    delivered = service.deliveries.page(endpoint_id=made.id, state=DeliveryState.DELIVERED)
    assert [each.id for each in delivered.deliveries] == [claim.delivery.id]
    assert len(service.deliveries.page(tenant="acme", state=DeliveryState.PENDING).deliveries) == 6
    assert service.deliveries.counts(tenant="acme")[DeliveryState.PENDING] == 6
    one = service.deliveries.page(job_id=ids[0], state=DeliveryState.FAILED)
    assert one.deliveries == ()
    for wrong in ({}, {"tenant": "a", "job_id": "b"}, {"tenant": "a", "limit": 0}):
        with pytest.raises(Invalid):
            service.deliveries.page(**wrong)
    with pytest.raises(Invalid, match="cursor"):
        service.deliveries.page(tenant="acme", cursor="nonsense")


def test_old_deliveries_are_forgotten_and_waiting_ones_are_not(
    service: JobService, draft: Draft, age: Callable[[str, str, float], None]
) -> None:
    made, _ = service.endpoints.create("acme", URL, ["job.failed"])
    for number in range(3):
        told(service, draft(number))
    claims = claim_all(service, limit=2)
    for claim in claims:
        settle(service, claim)
    week = service.settings.webhook_retention_days * 86_400
    age("deliveries:ended", claims[0].delivery.id, week + 10)
    age("deliveries:pending", claim_all(service)[0].delivery.id, 2 * week)
    assert service.reaper.run_once().deliveries == 1
    left = [each.id for each in service.deliveries.page(endpoint_id=made.id).deliveries]
    assert claims[0].delivery.id not in left
    assert len(left) == 2
    with pytest.raises(NotFound):
        service.deliveries.get("acme", claims[0].delivery.id)
    assert service.deliveries.backlog().oldest_age_seconds > week


def test_a_body_is_kept_once_for_all_that_are_told(
    service: JobService, draft: Draft, age: Callable[[str, str, float], None]
) -> None:
    for _ in range(20):
        service.endpoints.create("acme", URL, ["job.failed"])
    job_id = told(
        service,
        draft(1, webhook="https://own.example.org/", metadata={"note": "only-here " * 50}),
    )
    found = service.deliveries.page(job_id=job_id).deliveries
    assert len(found) == 21
    (body,) = {each.body for each in found}
    assert json.loads(body)["data"]["job"]["id"] == job_id
    claims = claim_all(service)
    assert {each.delivery.body for each in claims} == {body}

    client, key = service.database.client, service.database.key

    def hold_it() -> list[str]:
        hashes = [each for each in client.scan_iter() if client.type(each) == "hash"]
        ours = [each for each in hashes if not each.startswith(key("job", ""))]
        return [each for each in ours if "only-here" in "".join(client.hvals(each))]

    assert len(hold_it()) == 1
    for claim in claims:
        settle(service, claim)
        age("deliveries:ended", claim.delivery.id, 365 * 86_400)
    service.deliveries.sweep(limit=20)
    (last,) = service.deliveries.page(job_id=job_id).deliveries
    assert last.body == body
    assert len(hold_it()) == 1
    service.deliveries.sweep()
    assert hold_it() == []


def test_only_so_many_that_ended_are_kept(
    settings: Settings, wakeups: ListWakeups, draft: Draft
) -> None:
    few = settings.model_copy(
        update={"webhook_deliveries_per_endpoint": 3, "webhook_deliveries_per_tenant": 5}
    )
    with open_service(few, wakeups=wakeups) as service:
        service.database.client.flushall()
        made, _ = service.endpoints.create("acme", URL, ["job.failed"])
        ids = [told(service, draft(number)) for number in range(5)]

        def kept(**scope: Any) -> list[str | None]:
            return [each.job_id for each in service.deliveries.page(**scope).deliveries]

        assert kept(endpoint_id=made.id) == ids[::-1]  # what waits stays, however much it is
        for claim in claim_all(service):
            settle(service, claim)
        assert kept(endpoint_id=made.id) == kept(tenant="acme") == ids[:1:-1]
        # Those that failed are counted by themselves: they are there to be sent again.
        for number in range(5, 9):
            ids.append(told(service, draft(number)))
        for claim in claim_all(service):
            settle(service, claim, Trouble.STATUS, verdict=Verdict.FAILED)
        assert kept(endpoint_id=made.id, state=DeliveryState.FAILED) == ids[:5:-1]
        assert kept(endpoint_id=made.id, state=DeliveryState.DELIVERED) == ids[4:1:-1]
        assert service.deliveries.replay_failed(made.id) == 3
        for claim in claim_all(service):
            settle(service, claim)
        assert kept(endpoint_id=made.id) == ids[:5:-1]

        # Of the tenant: also to endpoints that are gone, and jobs' own webhooks.
        service.endpoints.delete("acme", made.id)
        for number in range(9, 13):
            ids.append(told(service, draft(number, webhook="https://own.example.org/")))
        for claim in claim_all(service):
            settle(service, claim)
        assert kept(tenant="acme") == ids[:-6:-1]
        # Nothing is left of those that went.
        client, key = service.database.client, service.database.key
        assert len(client.keys(key("delivery", "*"))) == 5
        assert len(client.keys(key("message", "*"))) == 5
        assert client.zcard(key("deliveries", "ended")) == 5
        assert client.exists(*(key("job", each, "deliveries") for each in ids)) == 5


def test_what_is_sent_again_waits_from_then(
    service: JobService, draft: Draft, age: Callable[[str, str, float], None]
) -> None:
    service.endpoints.create("acme", URL, ["job.failed"])
    told(service, draft(1))
    (claim,) = claim_all(service)
    age("deliveries:pending", claim.delivery.id, 6 * 86_400)
    long_ago = service.database.now_milliseconds() - 6 * 86_400_000
    key = service.database.key("delivery", claim.delivery.id)
    service.database.client.hset(key, "created", str(long_ago))
    assert service.deliveries.backlog().oldest_age_seconds >= 6 * 86_400
    settle(service, claim, Trouble.STATUS, verdict=Verdict.FAILED)
    service.deliveries.replay("acme", claim.delivery.id)
    waits = service.deliveries.backlog().oldest_age_seconds
    assert waits is not None
    assert waits < 3600


def test_a_deleted_job_takes_its_deliveries_along(
    service: JobService, submit: Callable[..., Any]
) -> None:
    service.endpoints.create("acme", URL, EVENT_NAMES)

    def left() -> set[str]:
        keys: Iterator[str] = service.database.client.scan_iter()
        return {
            key for key in keys if any(each in key for each in (":deliver", ":told", ":message"))
        }

    before = left()
    record = submit(1, webhook="https://own.example.org/").record
    lease = service.store.claim(record.id, worker="w").lease
    service.store.succeed(lease, BlobRef("k", 5, "0" * 64, "image/nif"), {"bpp": 1.0})
    for message in service.outbox.read():
        service.fanout.take_on(message)
    assert len(service.deliveries.page(job_id=record.id).deliveries) == 4
    service.delete("acme", record.id)
    assert service.deliveries.page(tenant="acme").deliveries == ()
    assert left() - before <= {"nif:deliveries:last_order"}


def test_the_test_message(service: JobService) -> None:
    made, _ = service.endpoints.create("acme", URL)
    delivery = service.deliveries.get("acme", service.endpoints.test("acme", made.id))
    assert (delivery.type, delivery.job_id) == ("webhook.test", None)
    body = json.loads(delivery.body)
    assert body["type"] == "webhook.test"
    assert body["data"]["webhook"] == made.id
    (claim,) = claim_all(service)
    assert claim.delivery.id == delivery.id
    assert claim.delivery.body == delivery.body


# After Redis lost everything


def test_endpoints_come_back_from_the_blob_store(service: JobService) -> None:
    endpoints = service.endpoints
    first, _ = endpoints.create("acme", URL, ["job.queued", "job.progress"])
    second, _ = endpoints.create("acme", URL)
    gone, _ = endpoints.create("acme", URL)
    endpoints.delete("acme", gone.id)
    endpoints.update("acme", first.id, description="changed")
    new_secrets = endpoints.rotate("acme", first.id, overlap=timedelta(hours=1))
    endpoints.update("acme", second.id, enabled=False)
    own = endpoints.rotate_tenant("acme")
    first, second = endpoints.get("acme", first.id), endpoints.get("acme", second.id)

    service.database.client.flushall()
    assert reconcile(service).webhooks == 2
    assert reconcile(service).webhooks == 0
    back = {each.id: each for each in endpoints.list("acme")}
    assert set(back) == {first.id, second.id}
    assert replace(back[first.id], updated_at=first.updated_at) == first
    assert replace(back[second.id], updated_at=second.updated_at) == second
    assert endpoints.secrets("acme", first.id) == new_secrets
    assert endpoints.tenant_secrets("acme") == own
    assert endpoints.counts().disabled == 1
    told_of = service.database.key("tenant", "acme", "webhooks", "job.progress")
    assert service.database.client.smembers(told_of) == {first.id}
    # And they can be changed on.
    assert endpoints.update("acme", first.id, description="again").description == "again"
    service.database.client.flushall()
    reconcile(service)
    assert endpoints.get("acme", first.id).description == "again"


def test_a_tenants_first_secret_is_kept_before_it_is_used(
    service: JobService, blobs: FileBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object, **__: object) -> None:
        raise BlobsUnavailable("away")

    with monkeypatch.context() as patched:
        patched.setattr(blobs, "put", away)
        for _ in range(2):  # it is as if nobody had asked
            with pytest.raises(BlobsUnavailable):
                service.endpoints.tenant_secrets("acme")
    with monkeypatch.context() as patched:
        patched.setattr(blobs, "list", away)
        with pytest.raises(BlobsUnavailable):
            service.endpoints.tenant_secrets("acme")
    first = service.endpoints.tenant_secrets("acme")
    service.database.client.flushall()
    reconcile(service)
    assert service.endpoints.tenant_secrets("acme") == first
    # And should somebody ask before that is done, it is the same one.
    service.database.client.flushall()
    assert service.endpoints.tenant_secrets("acme") == first
    rotated = service.endpoints.rotate_tenant("acme")
    service.database.client.flushall()
    assert service.endpoints.tenant_secrets("acme") == rotated


def test_two_that_make_a_tenants_first_secret_make_one(
    service: JobService, blobs: FileBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, theirs = blobs.put, []

    def second_is_quicker(*args: Any, **more: Any) -> Any:
        monkeypatch.setattr(blobs, "put", put)
        theirs.append(service.endpoints.tenant_secrets("acme"))
        return put(*args, **more)

    monkeypatch.setattr(blobs, "put", second_is_quicker)
    ours = service.endpoints.tenant_secrets("acme")
    assert theirs == [ours]
    service.database.client.flushall()
    reconcile(service)
    assert service.endpoints.tenant_secrets("acme") == ours


def test_one_that_was_disabled_by_itself_comes_back_enabled(
    service: JobService, draft: Draft
) -> None:
    made, _ = service.endpoints.create("acme", URL, ["job.failed"])
    told(service, draft(1))
    (claim,) = claim_all(service)
    settle(service, claim, Trouble.GONE, verdict=Verdict.GONE)
    assert not service.endpoints.get("acme", made.id).enabled
    service.endpoints.update("acme", made.id, description="still disabled")
    assert not service.endpoints.get("acme", made.id).enabled
    service.database.client.flushall()
    reconcile(service)
    back = service.endpoints.get("acme", made.id)
    assert (back.enabled, back.description) == (True, "still disabled")


def test_without_a_blob_store_nothing_is_made(
    service: JobService, blobs: FileBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object, **__: object) -> None:
        raise BlobsUnavailable("away")

    made, _ = service.endpoints.create("acme", URL)
    monkeypatch.setattr(blobs, "put", away)
    monkeypatch.setattr(blobs, "list", away)
    with pytest.raises(BlobsUnavailable):
        service.endpoints.create("acme", URL)
    with pytest.raises(BlobsUnavailable):
        service.endpoints.delete("acme", made.id)
    assert service.endpoints.list("acme") == (made,)


def test_the_table_of_events_is_the_scripts(service: JobService) -> None:
    """Whatever an endpoint asks for is listed, and nothing stays listed that it does not."""
    made, _ = service.endpoints.create("acme", URL, EVENT_NAMES)
    client = service.database.client

    def listed() -> set[str]:
        prefix = service.database.key("tenant", "acme", "webhooks") + ":"
        return {key.removeprefix(prefix) for key in client.keys(prefix + "*")}

    assert listed() == {each.type for each in WEBHOOK_EVENTS}
    for event in EVENT_NAMES:
        service.endpoints.update("acme", made.id, events=[event])
        assert listed() == {event}
    service.endpoints.update("acme", made.id, events=["job.progress"], enabled=False)
    assert listed() == set()  # nobody would hear of it
    service.endpoints.update("acme", made.id, enabled=True)
    assert listed() == {"job.progress"}


def test_parameters_in_a_message_are_those_that_were_asked(
    service: JobService, draft: Draft
) -> None:
    service.endpoints.create("acme", URL, ["job.failed"])
    told(service, draft(1, parameters=Parameters(effort=2, bpp=0.3), metadata={"a": "ü"}))
    (delivery,) = service.deliveries.page(tenant="acme").deliveries
    job = json.loads(delivery.body)["data"]["job"]
    assert (job["parameters"]["bpp"], job["metadata"]) == (0.3, {"a": "ü"})
    assert job["failure"] == {"code": "x", "message": "y"}


def test_the_stand_in_for_redis_knows_the_scripts_too(tmp_path: Path, draft: Draft) -> None:
    pytest.importorskip("fakeredis")
    settings = load_settings(data_dir=tmp_path)
    with RedisServer.find_or_start(settings, kinds=("fake",)) as server:
        found = settings.model_copy(update={"redis_url": server.url})
        with open_service(found, wakeups=ListWakeups()) as service:
            made, _ = service.endpoints.create("acme", URL, ["job.failed", "job.progress"])
            told(service, draft(1))
            (claim,) = claim_all(service)
            assert settle(service, claim, Trouble.STATUS).state is DeliveryState.PENDING
            (claim,) = claim_all(service)
            assert settle(service, claim, Trouble.GONE, verdict=Verdict.GONE).disabled == "gone"
            service.endpoints.update("acme", made.id, enabled=True)
            assert service.deliveries.replay_failed(made.id) == 1
            service.endpoints.rotate("acme", made.id)
            (claim,) = claim_all(service)
            assert len(claim.secrets) == 2
            service.endpoints.delete("acme", made.id)
