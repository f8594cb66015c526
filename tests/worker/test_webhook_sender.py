"""Webhooks from the outbox to real receivers: signed, tried again, never to a forbidden address."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from http.server import BaseHTTPRequestHandler
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import WebhookVerificationError

from jobs import BlobsUnavailable, Delivery, DeliveryState, Trouble, with_parent
from jobs.record import BlobRef, Failure, Progress, State
from tests.worker.conftest import ROOT, TENANT, Bed, wait_for
from tests.worker.receivers import Received, Receiver, certificate, receiving, status, talking
from worker.supervisor import environment_of
from worker.webhook_sender import JITTER, PROGRESS_ATTEMPTS, Sender, wait_before_next

REPORT = {"bpp": 0.5, "psnr_db": 31.25, "seconds": 2.0, "width": 32, "height": 24}


@contextmanager
def sending(bed: Bed, **seams: Any) -> Iterator[None]:
    """Run a sender in a thread, as the light worker does."""
    stop = threading.Event()
    sender = Sender(bed.service, bed.settings, **seams)
    thread = threading.Thread(target=sender.run, args=(stop,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as found:
        yield found


@pytest.fixture
def bed(make_bed: Callable[..., Bed]) -> Bed:
    """A service that may send to this machine, with a schedule of fractions of seconds."""
    return make_bed(
        webhook_allow_insecure=True,
        webhook_schedule_seconds="0.1,0.2,0.4",
        webhook_timeout_seconds=1.0,
        webhook_progress_seconds=0.2,
    )


def endpoint(bed: Bed, url: str, *events: str, tenant: str = TENANT) -> tuple[str, str]:
    """Make an endpoint and return its id and secret."""
    made, secret = bed.service.endpoints.create(tenant, url, events or ["job.succeeded"])
    return made.id, secret


def succeed(bed: Bed, job_id: str) -> None:
    """Do a worker's part."""
    lease = bed.service.store.claim(job_id, worker="w").lease
    bed.service.store.succeed(lease, BlobRef("k", 5, "0" * 64, "image/nif"), REPORT)


def deliveries(bed: Bed, endpoint_id: str, **wanted: Any) -> tuple[Delivery, ...]:
    return bed.service.deliveries.page(endpoint_id=endpoint_id, **wanted).deliveries


def only(bed: Bed, endpoint_id: str, state: DeliveryState) -> Delivery:
    """Wait for the one delivery of an endpoint to come to a state."""

    def found() -> Delivery | None:
        rows = deliveries(bed, endpoint_id)
        assert len(rows) <= 1
        return rows[0] if rows and rows[0].state is state else None

    delivery: Delivery = wait_for(found)
    return delivery


def test_a_message_is_signed_and_says_what_happened(bed: Bed, receiver: Receiver) -> None:
    endpoint_id, secret = endpoint(bed, f"{receiver.url}/hook?a=b")
    with sending(bed):
        job_id = bed.submit(effort=1)
        succeed(bed, job_id)
        delivery = only(bed, endpoint_id, DeliveryState.DELIVERED)
    (received,) = receiver.received
    assert received.path == "/hook?a=b"
    assert received.headers["content-type"] == "application/json"
    assert received.headers["host"] == receiver.url.removeprefix("http://")
    assert received.id == delivery.id
    payload = received.verified(secret)
    assert payload["type"] == "job.succeeded"
    job = payload["data"]["job"]
    record = bed.record(job_id)
    assert (job["id"], job["state"], job["version"]) == (job_id, "succeeded", record.version)
    assert (job["result"]["size"], job["result"]["psnr_db"]) == (5, 31.25)
    assert job["links"]["result"] == f"{bed.settings.public_url}/v1/jobs/{job_id}/result"
    assert payload["timestamp"].endswith("Z")
    with pytest.raises(WebhookVerificationError):
        Received("/", received.headers, received.body + b" ", 0).verified(secret)
    (attempt,) = delivery.log
    assert (attempt.status, attempt.trouble, delivery.attempts) == (204, None, 1)


def test_each_gets_what_it_wants_and_tenants_are_apart(bed: Bed, receiver: Receiver) -> None:
    every = ("job.queued", "job.running", "job.succeeded", "job.failed", "job.cancelled")
    all_id, _ = endpoint(bed, f"{receiver.url}/all", *every)
    failed_id, _ = endpoint(bed, f"{receiver.url}/failed", "job.failed")
    endpoint(bed, f"{receiver.url}/others", *every, tenant="others")
    with sending(bed):
        succeed(bed, bed.submit(effort=1))
        lost = bed.submit(effort=2)
        lease = bed.service.store.claim(lost, worker="w").lease
        bed.service.store.fail(lease, Failure("bad", "no good", "for the operator's eyes"))
        bed.service.retry(TENANT, lost)
        bed.service.cancel(TENANT, lost)
        wait_for(lambda: len(receiver.received) >= 9)
        wait_for(lambda: bed.service.deliveries.backlog().pending == 0)
    told: dict[str, list[str]] = {"/all": [], "/failed": []}
    for each in receiver.received:
        told[each.path].append(json.loads(each.body)["type"])
    assert sorted(told["/all"]) == sorted(
        ["job.queued"] * 3 + ["job.running"] * 2 + ["job.succeeded", "job.failed", "job.cancelled"]
    )
    assert told["/failed"] == ["job.failed"]
    assert b"operator" not in b"".join(each.body for each in receiver.received)
    assert len(deliveries(bed, all_id)) == 8
    assert len(deliveries(bed, failed_id)) == 1
    assert len(set(receiver.ids())) == 9


def test_a_jobs_own_webhook_is_told_of_its_end(bed: Bed, receiver: Receiver) -> None:
    with sending(bed):
        job_id = bed.submit(effort=1, webhook=f"{receiver.url}/own?token=hidden")
        succeed(bed, job_id)
        wait_for(lambda: receiver.received)
    (received,) = receiver.received
    (secret,) = bed.service.endpoints.tenant_secrets(TENANT)
    assert received.verified(secret.secret)["type"] == "job.succeeded"
    assert b"hidden" not in received.body
    (delivery,) = bed.service.deliveries.page(job_id=job_id).deliveries
    assert (delivery.id, delivery.endpoint_id) == (received.id, None)


def test_progress_is_told_seldom(make_bed: Callable[..., Bed], receiver: Receiver) -> None:
    bed = make_bed(webhook_allow_insecure=True, webhook_progress_seconds=600.0)
    endpoint_id, secret = endpoint(bed, receiver.url, "job.progress")
    with sending(bed):
        job_id = bed.submit(effort=1)
        lease = bed.service.store.claim(job_id, worker="w").lease
        for iteration in range(100):
            bed.service.store.progress(lease, Progress("fit", iteration=iteration, psnr_db=20.0))
        only(bed, endpoint_id, DeliveryState.DELIVERED)
        assert bed.service.outbox.depth() == 0

        told = bed.service.database.key("job", job_id, "told")
        assert 500_000 < bed.service.database.client.pttl(told) <= 600_000
        bed.service.database.client.delete(told)  # the ten minutes are over
        bed.service.store.progress(lease, Progress("fit", iteration=100, psnr_db=30.0))
        wait_for(lambda: len(receiver.received) == 2)
    first, second = (each.verified(secret)["data"]["job"] for each in receiver.received)
    assert first["progress"]["iteration"] == 0
    assert second["progress"]["psnr_db"] == 30.0
    assert first["version"] < second["version"]
    assert receiver.ids()[0] != receiver.ids()[1]


def test_it_is_tried_by_the_schedule_with_one_id_then_kept(bed: Bed, receiver: Receiver) -> None:
    receiver.answer = status(500)
    endpoint_id, secret = endpoint(bed, receiver.url)
    with sending(bed):
        succeed(bed, bed.submit(effort=1))
        delivery = only(bed, endpoint_id, DeliveryState.FAILED)
        assert (delivery.failure, delivery.attempts) == (Trouble.STATUS, 4)
        assert [each.status for each in delivery.log] == [500] * 4
        assert set(receiver.ids()) == {delivery.id}
        assert len({each.body for each in receiver.received}) == 1
        begun = [each.at for each in delivery.log]
        waits = [(later - earlier).total_seconds() for earlier, later in pairwise(begun)]
        for wait, wanted in zip(waits, (0.1, 0.2, 0.4), strict=True):
            assert wait >= wanted * (1 - JITTER) - 0.002
        assert bed.service.endpoints.get(TENANT, endpoint_id).failures == 4

        receiver.answer = None
        bed.service.deliveries.replay(TENANT, delivery.id)
        again = only(bed, endpoint_id, DeliveryState.DELIVERED)
    assert (again.id, again.attempts) == (delivery.id, 5)
    assert receiver.received[-1].verified(secret)["type"] == "job.succeeded"
    healthy = bed.service.endpoints.get(TENANT, endpoint_id)
    assert (healthy.failures, healthy.failing_since) == (0, None)
    assert healthy.succeeded_at is not None


def test_progress_is_not_tried_for_ever(bed: Bed, receiver: Receiver) -> None:
    receiver.answer = status(500)
    endpoint_id, _ = endpoint(bed, receiver.url, "job.progress")
    with sending(bed):
        lease = bed.service.store.claim(bed.submit(effort=1), worker="w").lease
        bed.service.store.progress(lease, Progress("fit"))
        delivery = only(bed, endpoint_id, DeliveryState.FAILED)
    assert delivery.attempts == PROGRESS_ATTEMPTS < 4
    assert bed.service.deliveries.replay_failed(endpoint_id) == 0


def test_all_that_failed_is_replayed(bed: Bed, receiver: Receiver) -> None:
    receiver.answer = status(503)
    endpoint_id, _ = endpoint(bed, receiver.url)
    with sending(bed):
        for seed in range(3):
            succeed(bed, bed.submit(effort=1, seed=seed))
        failed = wait_for(
            lambda: (
                len(rows := deliveries(bed, endpoint_id, state=DeliveryState.FAILED)) == 3 and rows
            )
        )
        receiver.answer = None
        latest = failed[0].created_at
        assert bed.service.deliveries.replay_failed(endpoint_id, since=latest) == 1
        assert bed.service.deliveries.replay_failed(endpoint_id) in (2, 3)
        wait_for(lambda: len(deliveries(bed, endpoint_id, state=DeliveryState.DELIVERED)) == 3)
    assert {each.id for each in failed} == set(receiver.ids())
    counts = bed.service.deliveries.counts(endpoint_id=endpoint_id)
    assert counts == {
        DeliveryState.PENDING: 0, DeliveryState.DELIVERED: 3, DeliveryState.FAILED: 0,
    }  # fmt: skip


def test_410_disables_at_once_and_nothing_is_missed(bed: Bed, receiver: Receiver) -> None:
    receiver.answer = status(410)
    endpoint_id, _ = endpoint(bed, receiver.url, "job.succeeded", "job.progress")
    with sending(bed):
        succeed(bed, bed.submit(effort=1))
        delivery = only(bed, endpoint_id, DeliveryState.FAILED)
        assert (delivery.failure, delivery.attempts) == (Trouble.GONE, 1)
        disabled = bed.service.endpoints.get(TENANT, endpoint_id)
        assert (disabled.enabled, disabled.disabled_reason) == (False, "gone")
        assert bed.service.endpoints.counts().disabled == 1
        assert bed.service.counters()['webhooks_disabled{reason="gone"}'] == 1

        second = bed.submit(effort=2)
        lease = bed.service.store.claim(second, worker="w").lease
        bed.service.store.progress(lease, Progress("fit"))
        bed.service.store.succeed(lease, BlobRef("k", 5, "0" * 64, "image/nif"), REPORT)
        missed = wait_for(lambda: len(rows := deliveries(bed, endpoint_id)) == 2 and rows[0])
        assert (missed.failure, missed.attempts) == (Trouble.ENDPOINT_DISABLED, 0)
        assert len(receiver.received) == 1

        receiver.answer = None
        bed.service.endpoints.update(TENANT, endpoint_id, enabled=True)
        assert bed.service.deliveries.replay_failed(endpoint_id) == 2
        wait_for(lambda: len(deliveries(bed, endpoint_id, state=DeliveryState.DELIVERED)) == 2)
    assert bed.service.endpoints.counts().disabled == 0


def test_who_fails_for_too_long_is_disabled(
    make_bed: Callable[..., Bed], receiver: Receiver
) -> None:
    bed = make_bed(
        webhook_allow_insecure=True,
        webhook_schedule_seconds=",".join(["0.05"] * 20),
        webhook_disable_days=0.2 / 86_400,
    )
    receiver.answer = status(500)
    endpoint_id, _ = endpoint(bed, receiver.url)
    with sending(bed):
        succeed(bed, bed.submit(effort=1))
        delivery = only(bed, endpoint_id, DeliveryState.FAILED)
    found = bed.service.endpoints.get(TENANT, endpoint_id)
    assert (found.enabled, found.disabled_reason) == (False, "failing")
    assert found.disabled_at is not None
    assert delivery.failure is Trouble.ENDPOINT_DISABLED
    assert 5 <= delivery.attempts < 20


def test_redirects_are_not_followed(bed: Bed, receiver: Receiver) -> None:
    with receiving() as elsewhere:
        receiver.answer = status(307, Location=f"{elsewhere.url}/secret")
        endpoint_id, _ = endpoint(bed, receiver.url)
        with sending(bed):
            succeed(bed, bed.submit(effort=1))
            delivery = only(bed, endpoint_id, DeliveryState.FAILED)
        assert (delivery.failure, delivery.log[0].status) == (Trouble.REDIRECT, 307)
        assert elsewhere.received == []


def test_an_answer_may_be_huge_or_never_end(bed: Bed, receiver: Receiver) -> None:
    written = 0

    def flood(handler: BaseHTTPRequestHandler, received: Received) -> None:
        nonlocal written
        handler.send_response(200)
        handler.send_header("Content-Length", str(10**12))
        handler.send_header("Content-Encoding", "gzip")
        handler.end_headers()
        handler.close_connection = True
        while written < 10**9:
            written += handler.wfile.write(b"\0" * 65536)

    receiver.answer = flood
    endpoint_id, _ = endpoint(bed, receiver.url)
    with sending(bed):
        succeed(bed, bed.submit(effort=1))
        delivery = only(bed, endpoint_id, DeliveryState.DELIVERED)
    assert delivery.log[0].status == 200
    # What fits into the buffers of two sockets, and no more.
    assert written < 64 * 1024 * 1024
    stored = bed.service.database.client.hgetall(bed.service.database.key("delivery", delivery.id))
    assert "\0" not in "".join(stored.values())


@pytest.mark.parametrize(
    ("said", "trouble"),
    [
        (b"", Trouble.CONNECT),
        (b"SSH-2.0-OpenSSH_9.7\r\n\r\n", Trouble.PROTOCOL),
        (None, Trouble.TIMEOUT),
    ],
)
def test_what_is_no_answer_is_a_failure(bed: Bed, said: bytes | None, trouble: Trouble) -> None:
    done = threading.Event()

    def speak(connection: socket.socket) -> None:
        if said is None:
            while not done.wait(0.2):
                connection.sendall(b"H")  # a byte now and then keeps a time-out per read away
        else:
            connection.sendall(said)

    with talking(speak) as (url, _):
        endpoint_id, _ = endpoint(bed, url)
        with sending(bed):
            succeed(bed, bed.submit(effort=1))
            delivery = wait_for(
                lambda: (rows := deliveries(bed, endpoint_id)) and rows[0].log and rows[0]
            )
        done.set()
    assert (delivery.log[0].trouble, delivery.log[0].status) == (trouble, None)
    assert delivery.failure is trouble


def test_slow_name_servers_of_one_tenant_hold_up_nobody_else(
    make_bed: Callable[..., Bed], receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system's own resolver, which blocks its thread for longer than an attempt lasts."""
    bed = make_bed(
        webhook_allow_insecure=True,
        webhook_schedule_seconds=",".join(["0.05"] * 50),
        webhook_timeout_seconds=0.5,
        webhook_concurrency=6,
        webhook_concurrency_per_host=6,
        webhook_concurrency_per_tenant=2,
    )
    ask_system, go_on, lock = socket.getaddrinfo, threading.Event(), threading.Lock()
    asking: list[str] = []
    most = 0

    def ask(host: Any, *args: Any, **more: Any) -> Any:
        nonlocal most
        if not str(host).endswith(".test"):
            return ask_system(host, *args, **more)
        if host.startswith("slow"):
            with lock:
                asking.append(host)
                most = max(most, len(asking))
            go_on.wait(60)
            with lock:
                asking.remove(host)
        return ask_system("127.0.0.1", *args, **more)

    monkeypatch.setattr(socket, "getaddrinfo", ask)
    slow = [
        endpoint(bed, f"http://slow{number}.test:{receiver.port}/slow", tenant="sluggish")[0]
        for number in range(12)
    ]
    quick, _ = endpoint(bed, f"http://quick.test:{receiver.port}/quick")
    try:
        with sending(bed):
            succeed(bed, bed.submit(effort=1, tenant="sluggish"))
            # Given up, and its thread is still asking.
            wait_for(lambda: any(row.attempts for each in slow for row in deliveries(bed, each)))
            assert len(asking) == 2
            for seed in range(20):
                succeed(bed, bed.submit(effort=1, seed=seed))
            told = wait_for(
                lambda: (
                    len(rows := deliveries(bed, quick, state=DeliveryState.DELIVERED)) == 20
                    and rows
                )
            )
            assert {each.attempts for each in told} == {1}
            assert len(asking) == 2
            go_on.set()
            wait_for(lambda: bed.service.deliveries.backlog().pending == 0)
    finally:
        go_on.set()
    assert most == 2
    assert [each.path for each in receiver.received].count("/slow") >= 12
    for each in slow:
        (delivery,) = deliveries(bed, each)
        # An attempt's time goes to the name server, never to waiting for a thread: as soon as
        # names are told quickly, the first attempt succeeds.
        assert [row.trouble for row in delivery.log] in (
            [None], [Trouble.TIMEOUT, None],
        )  # fmt: skip


def test_who_is_told_needs_no_storage_but_for_a_first_secret(
    bed: Bed, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.webhook_sender._PUT_OFF_SECONDS", 0.1)
    endpoint_id, _ = endpoint(bed, f"{receiver.url}/endpoint", tenant="others")
    blobs = bed.service.blobs
    put, listed = blobs.put, blobs.list
    away = threading.Event()
    away.set()
    tried = threading.Event()

    def refuse_put(*args: Any, **more: Any) -> Any:
        if away.is_set():
            raise BlobsUnavailable("away")
        return put(*args, **more)

    def refuse_list(*args: Any, **more: Any) -> Any:
        if away.is_set():
            tried.set()
            raise BlobsUnavailable("away")
        return listed(*args, **more)

    own = bed.submit(effort=1, webhook=f"{receiver.url}/own")
    succeed(bed, own)
    other = bed.submit(effort=1, tenant="others")
    succeed(bed, other)
    monkeypatch.setattr(blobs, "put", refuse_put)
    monkeypatch.setattr(blobs, "list", refuse_list)
    with sending(bed):
        only(bed, endpoint_id, DeliveryState.DELIVERED)
        assert tried.wait(30)
        assert [each.path for each in receiver.received] == ["/endpoint"]
        away.clear()
        wait_for(lambda: len(receiver.received) == 2)
    bed.service.database.client.delete(
        bed.service.database.key("tenant", TENANT, "webhook-secrets")
    )
    bed.service.endpoints.restore()
    (secret,) = bed.service.endpoints.tenant_secrets(TENANT)
    assert receiver.received[1].verified(secret.secret)["data"]["job"]["id"] == own


def test_nobody_listening_and_no_such_host(bed: Bed) -> None:
    def nowhere(host: str, port: int) -> list[str]:
        if host == "nowhere.test":
            raise socket.gaierror("no such host")
        return ["127.0.0.1"]

    with socket.create_server(("127.0.0.1", 0)) as listener:
        closed = listener.getsockname()[1]
    first, _ = endpoint(bed, f"http://127.0.0.1:{closed}/")
    second, _ = endpoint(bed, "https://nowhere.test/")
    with sending(bed, resolver=nowhere):
        succeed(bed, bed.submit(effort=1))
        assert only(bed, first, DeliveryState.FAILED).failure is Trouble.CONNECT
        assert only(bed, second, DeliveryState.FAILED).failure is Trouble.DNS


def test_an_address_is_vetted_and_then_connected_to(
    make_bed: Callable[..., Bed], receiver: Receiver
) -> None:
    """A name that leads somewhere else with every question gets nowhere."""
    bed = make_bed(webhook_schedule_seconds="0.1", webhook_timeout_seconds=1.0)
    asked: list[str] = []

    def changing(host: str, port: int) -> list[str]:
        asked.append(host)
        return (
            ["192.0.2.1"] if len(asked) > 2 else [["127.0.0.1"], ["8.8.8.8", "::1"]][len(asked) - 1]
        )

    url = f"https://rebind.test:{receiver.port}/"
    endpoint_id, _ = endpoint(bed, url)
    with sending(bed, resolver=changing):
        succeed(bed, bed.submit(effort=1))
        delivery = only(bed, endpoint_id, DeliveryState.FAILED)
    assert [each.trouble for each in delivery.log] == [Trouble.ADDRESS_REFUSED] * 2
    assert asked == ["rebind.test"] * 2
    assert receiver.received == []


def test_without_the_dev_setting_http_and_loopback_are_refused(
    make_bed: Callable[..., Bed], receiver: Receiver
) -> None:
    lenient = make_bed(webhook_allow_insecure=True, webhook_schedule_seconds="0.1")
    plain, _ = endpoint(lenient, receiver.url)
    strict = make_bed(webhook_schedule_seconds="0.1", redis_prefix=lenient.settings.redis_prefix)
    tls, _ = endpoint(strict, f"https://localhost:{receiver.port}/")
    with sending(strict):
        succeed(strict, strict.submit(effort=1))
        assert only(strict, plain, DeliveryState.FAILED).failure is Trouble.URL_REFUSED
        assert only(strict, tls, DeliveryState.FAILED).failure is Trouble.ADDRESS_REFUSED
    assert receiver.received == []


def test_the_name_goes_into_tls_and_the_address_into_the_connection(
    bed: Bed, tmp_path: Path
) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not here to make a certificate")
    server_tls, client_tls = certificate(tmp_path, "hooks.test")
    asked: list[tuple[str, int]] = []

    def local(host: str, port: int) -> list[str]:
        asked.append((host, port))
        return ["127.0.0.1"]

    with receiving(server_tls) as receiver:
        good, secret = endpoint(bed, f"https://hooks.test:{receiver.port}/x")
        other, _ = endpoint(bed, f"https://other.test:{receiver.port}/x", "job.failed")
        with sending(bed, resolver=local, tls=client_tls):
            succeed(bed, bed.submit(effort=1))
            only(bed, good, DeliveryState.DELIVERED)
            lease = bed.service.store.claim(bed.submit(effort=2), worker="w").lease
            bed.service.store.fail(lease, Failure("x", "y"))
            assert only(bed, other, DeliveryState.FAILED).failure is Trouble.TLS
        (received,) = receiver.received
    assert received.headers["host"] == f"hooks.test:{receiver.port}"
    assert received.verified(secret)["type"] == "job.succeeded"
    assert asked[0] == ("hooks.test", receiver.port)
    assert len(asked) == 1 + 4  # once for each attempt


def test_a_rotated_secret_signs_until_its_time_is_over(bed: Bed, receiver: Receiver) -> None:
    endpoint_id, old = endpoint(bed, receiver.url)
    with sending(bed):
        overlap = timedelta(seconds=1)
        new, before = bed.service.endpoints.rotate(TENANT, endpoint_id, overlap=overlap)
        assert before.secret == old
        assert before.expires_at is not None
        succeed(bed, bed.submit(effort=1))
        wait_for(lambda: receiver.received)
        for secret in (old, new.secret):
            assert receiver.received[0].verified(secret)["type"] == "job.succeeded"
        assert len(receiver.received[0].headers["webhook-signature"].split()) == 2

        wait_for(lambda: bed.service.database.now() > before.expires_at)
        succeed(bed, bed.submit(effort=2))
        wait_for(lambda: len(receiver.received) == 2)
    assert receiver.received[1].verified(new.secret)["type"] == "job.succeeded"
    with pytest.raises(WebhookVerificationError):
        receiver.received[1].verified(old)
    assert bed.service.endpoints.secrets(TENANT, endpoint_id) == (new,)


def test_a_slow_host_does_not_hold_up_the_others(
    make_bed: Callable[..., Bed], receiver: Receiver
) -> None:
    bed = make_bed(
        webhook_allow_insecure=True,
        webhook_concurrency=4,
        webhook_concurrency_per_host=2,
        webhook_timeout_seconds=30.0,
    )
    go_on = threading.Event()

    def local(host: str, port: int) -> list[str]:
        return ["127.0.0.1"]

    def hesitate(handler: BaseHTTPRequestHandler, received: Received) -> None:
        go_on.wait(30)
        status(204)(handler, received)

    with receiving() as slow:
        slow.answer = hesitate
        slow_id, _ = endpoint(bed, slow.url)
        quick_id, _ = endpoint(bed, f"http://quick.test:{receiver.port}/")
        for seed in range(6):
            succeed(bed, bed.submit(effort=1, seed=seed))
        with sending(bed, resolver=local):
            wait_for(lambda: len(deliveries(bed, quick_id, state=DeliveryState.DELIVERED)) == 6)
            assert deliveries(bed, slow_id, state=DeliveryState.DELIVERED) == ()
            go_on.set()
            wait_for(lambda: len(deliveries(bed, slow_id, state=DeliveryState.DELIVERED)) == 6)
        assert slow.most_at_once <= 2


def test_a_receiver_that_asks_for_time_gets_it(bed: Bed, receiver: Receiver) -> None:
    receiver.answer = status(429, Retry_After="120")
    endpoint_id, _ = endpoint(bed, receiver.url)
    with sending(bed):
        succeed(bed, bed.submit(effort=1))
        delivery = wait_for(
            lambda: (rows := deliveries(bed, endpoint_id)) and rows[0].attempts and rows[0]
        )
    wait = delivery.next_attempt_at - delivery.log[0].at
    assert timedelta(seconds=119) < wait < timedelta(seconds=130)


def test_what_a_killed_sender_held_goes_out_under_the_same_id(
    make_bed: Callable[..., Bed], receiver: Receiver
) -> None:
    bed = make_bed(
        webhook_allow_insecure=True, webhook_timeout_seconds=60.0, webhook_concurrency_per_host=32
    )
    release = threading.Event()

    def hold(handler: BaseHTTPRequestHandler, received: Received) -> None:
        release.wait(60)  # no answer before the sender is dead

    receiver.answer = hold
    endpoint_id, secret = endpoint(bed, receiver.url)
    command = with_parent.command([sys.executable, "-m", "worker", "light"])
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **environment_of(bed.settings)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        jobs = [bed.submit(effort=1, seed=seed) for seed in range(3)]
        for job_id in jobs:
            succeed(bed, job_id)
        wait_for(lambda: len(receiver.received) == 3)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    release.set()
    before = set(receiver.ids())
    assert len(before) == 3
    assert {each.state for each in deliveries(bed, endpoint_id)} == {DeliveryState.PENDING}

    receiver.answer = None
    # Let the claims of the dead run out.
    client, key = bed.service.database.client, bed.service.database.key
    for delivery_id in before:
        client.zadd(key("deliveries", "due", TENANT, "127.0.0.1"), {delivery_id: 1})
    client.zadd(key("deliveries", "hosts", TENANT), {"127.0.0.1": 1})
    client.zadd(key("deliveries", "tenants"), {TENANT: 1})
    with sending(bed):
        wait_for(lambda: len(deliveries(bed, endpoint_id, state=DeliveryState.DELIVERED)) == 3)
    assert set(receiver.ids()) == before
    told = {each.verified(secret)["data"]["job"]["id"] for each in receiver.received}
    assert told == set(jobs)


def test_what_is_being_sent_at_the_end_may_still_end(bed: Bed, receiver: Receiver) -> None:
    came = threading.Event()

    def slowly(handler: BaseHTTPRequestHandler, received: Received) -> None:
        came.set()
        threading.Event().wait(0.3)
        status(204)(handler, received)

    receiver.answer = slowly
    endpoint_id, _ = endpoint(bed, receiver.url)
    with sending(bed):
        succeed(bed, bed.submit(effort=1))
        assert came.wait(30)
    assert deliveries(bed, endpoint_id)[0].state is DeliveryState.DELIVERED


def test_a_deleted_job_is_told_of_no_more(bed: Bed, receiver: Receiver) -> None:
    receiver.answer = status(500)
    endpoint_id, _ = endpoint(bed, receiver.url)
    job_id = bed.submit(effort=1)
    succeed(bed, job_id)
    (message,) = bed.service.outbox.read()
    bed.service.delete(TENANT, job_id)
    assert bed.service.fanout.take_on(message) == []
    assert bed.service.outbox.depth() == 0
    assert deliveries(bed, endpoint_id) == ()


@given(
    waits=st.lists(st.floats(0, 604_800), min_size=1, max_size=20),
    tries=st.integers(1, 30),
    luck=st.floats(0, 1),
)
def test_every_wait_is_near_the_schedule(waits: list[float], tries: int, luck: float) -> None:
    wait = wait_before_next(
        tuple(waits), tries, uniform=lambda low, high: low + luck * (high - low)
    )
    if tries > len(waits):
        assert wait is None
    else:
        assert wait is not None
        wanted = waits[tries - 1]
        assert wanted * (1 - JITTER) * (1 - 1e-9) <= wait <= wanted * (1 + JITTER) * (1 + 1e-9)


def test_the_default_schedule_lasts_about_three_days(make_bed: Callable[..., Bed]) -> None:
    waits = make_bed().settings.webhook_waits
    assert 2.5 * 86_400 < sum(waits) < 3.5 * 86_400
    assert list(waits) == sorted(waits)


def test_states_of_the_example_are_those_of_jobs(bed: Bed, receiver: Receiver) -> None:
    """A message shows the job as it was then, however late it is made."""
    _, secret = endpoint(bed, receiver.url, "job.running")
    job_id = bed.submit(effort=1)
    succeed(bed, job_id)
    with sending(bed):
        wait_for(lambda: receiver.received)
    job = receiver.received[0].verified(secret)["data"]["job"]
    assert bed.record(job_id).state is State.SUCCEEDED
    assert (job["state"], job["result"], job["links"]["result"]) == ("running", None, None)
