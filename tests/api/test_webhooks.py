"""``/v1/webhooks``: endpoints, secrets, deliveries; and receivers as ``docs/api.md`` has them."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest

from jobs import (
    TROUBLES,
    WEBHOOK_EVENTS,
    DeliveryAttempt,
    Failure,
    RedisServer,
    Scope,
    Trouble,
    Verdict,
    load_settings,
)
from tests.api.asking import code_of, submit
from tests.api.running import ADMIN_KEY, Running, picture, serving, settings_in
from worker.webhook_sender import PROGRESS_ATTEMPTS, Sender

ROOT = Path(__file__).parents[2]
SECTION = (
    (ROOT / "docs" / "api.md")
    .read_text("utf-8")
    .partition("## Webhooks\n")[2]
    .partition("\n## ")[0]
)
NODE = ROOT / "tests" / "webhooks_node"
HOOK = {"url": "https://hooks.example.org/nif", "events": ["job.failed"], "description": "ours"}
PATIENCE_SECONDS = 60.0


def wait_for(what: Callable[[], Any]) -> Any:
    """Return the first true answer of ``what``."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        if answer := what():
            return answer
        time.sleep(0.05)
    raise AssertionError(f"waited {PATIENCE_SECONDS:g} s in vain for {what}")


def make(client: httpx2.Client, **changes: Any) -> dict[str, Any]:
    answer = client.post("/v1/webhooks", json=HOOK | changes)
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


def fail_a_job(running: Running, client: httpx2.Client, seed: int, **fields: Any) -> str:
    """Have a job fail and be told of; nothing is sent."""
    job_id: str = submit(client, picture(seed), **fields).json()["id"]
    lease = running.claim(job_id).lease
    running.service.store.fail(lease, Failure("bad", "no good", "for the operator"))
    for message in running.service.outbox.read():
        running.service.fanout.take_on(message)
    return job_id


def let_fail(running: Running, delivery_id: str) -> None:
    """Do the sender's part: the delivery has failed for good."""
    for claim in running.service.deliveries.claim(
        limit=500, per_host=500, per_tenant=500, claim_seconds=0.001
    ):
        if claim.delivery.id == delivery_id:
            attempt = DeliveryAttempt(datetime.now(UTC), 500, Trouble.STATUS, 7)
            assert running.service.deliveries.settle(claim, attempt, Verdict.FAILED)
            return
    raise AssertionError(f"{delivery_id} is not due")


def test_an_endpoint_through_its_life(client: httpx2.Client, tenant: str) -> None:
    made = make(client)
    assert made["secret"].startswith("whsec_")
    assert (made["tenant"], made["enabled"], made["events"]) == (tenant, True, ["job.failed"])
    here = f"/v1/webhooks/{made['id']}"
    listed = client.get("/v1/webhooks")
    assert [each["id"] for each in listed.json()["items"]] == [made["id"]]
    one = client.get(here)
    assert one.json() == {name: value for name, value in made.items() if name != "secret"}
    assert made["secret"] not in listed.text + one.text
    changed = client.patch(here, json={"enabled": False, "description": "off"})
    assert changed.json()["disabled_reason"] == "by_request"
    assert (changed.json()["url"], changed.json()["description"]) == (HOOK["url"], "off")
    assert client.patch(here, json={"enabled": True}).json()["disabled_at"] is None
    assert client.delete(here).status_code == 204
    assert code_of(client.get(here)) == (404, "webhook_not_found")


def test_defaults_are_the_ends_of_jobs(client: httpx2.Client) -> None:
    made = client.post("/v1/webhooks", json={"url": HOOK["url"]}).json()
    assert made["events"] == ["job.succeeded", "job.failed", "job.cancelled"]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"url": "http://hooks.example.org/"}, "invalid_parameter"),
        ({"url": "https://user@hooks.example.org/"}, "invalid_parameter"),
        ({"url": "https://127.0.0.1/"}, "invalid_parameter"),
        ({"url": "https://[::ffff:10.0.0.1]/"}, "invalid_parameter"),
        ({"url": "https://169.254.169.254/latest/meta-data"}, "invalid_parameter"),
        ({"url": ""}, "invalid_parameter"),
        ({"url": 5}, "invalid_parameter"),
        ({"events": []}, "invalid_parameter"),
        ({"events": ["job.exploded"]}, "invalid_parameter"),
        ({"events": "job.failed"}, "invalid_parameter"),
        ({"description": "x" * 201}, "invalid_parameter"),
        ({"secret": "whsec_mine"}, "unknown_parameter"),
    ],
)
def test_what_is_not_accepted(client: httpx2.Client, change: dict[str, Any], code: str) -> None:
    made = make(client)
    assert code_of(client.post("/v1/webhooks", json=HOOK | change)) == (422, code)
    assert code_of(client.patch(f"/v1/webhooks/{made['id']}", json=change)) == (422, code)
    assert len(client.get("/v1/webhooks").json()["items"]) == 1


def test_a_jobs_own_webhook_is_checked_too(client: httpx2.Client) -> None:
    for url in ("http://example.org/", "https://10.0.0.1/", "https://example.org/#x"):
        assert code_of(submit(client, picture(900), webhook=url)) == (422, "invalid_parameter")


def test_there_are_only_so_many(running: Running, client: httpx2.Client) -> None:
    for _ in range(running.settings.webhooks_per_tenant):
        make(client)
    refused = client.post("/v1/webhooks", json=HOOK)
    assert code_of(refused) == (409, "too_many_webhooks")
    assert refused.json()["limit"] == running.settings.webhooks_per_tenant


def test_secrets_are_shown_to_writers_and_rotated(
    running: Running, client: httpx2.Client, tenant: str
) -> None:
    made = make(client)
    here = f"/v1/webhooks/{made['id']}"
    (only,) = client.get(f"{here}/secret").json()["secrets"]
    assert (only["secret"], only["expires_at"]) == (made["secret"], None)
    rotated = client.post(f"{here}/rotate", params={"overlap_seconds": 600}).json()["secrets"]
    assert rotated[0]["secret"] != made["secret"]
    assert rotated[1]["secret"] == made["secret"]
    assert rotated[1]["expires_at"] is not None
    assert client.get(f"{here}/secret").json()["secrets"] == rotated
    wrong = client.post(f"{here}/rotate", params={"overlap_seconds": 604_801})
    assert code_of(wrong) == (422, "invalid_parameter")

    own = client.get("/v1/webhook-secret").json()["secrets"]
    assert client.get("/v1/webhook-secret").json()["secrets"] == own
    assert (
        client.post("/v1/webhook-secret/rotate").json()["secrets"][1]["secret"]
        == (own[0]["secret"])
    )
    with running.client(running.key(tenant, Scope.JOBS_READ)) as reader:
        assert reader.get(here).status_code == 200
        for refused in (
            reader.get(f"{here}/secret"),
            reader.get("/v1/webhook-secret"),
            reader.post(f"{here}/rotate"),
            reader.post(f"{here}/test"),
            reader.post(f"{here}/replay"),
            reader.patch(here, json={"enabled": False}),
            reader.delete(here),
        ):
            assert code_of(refused) == (403, "forbidden")


def test_what_is_another_tenants_does_not_exist(
    running: Running, client: httpx2.Client, admin: httpx2.Client, tenant: str
) -> None:
    made = make(client)
    job_id = fail_a_job(running, client, 901)
    here = f"/v1/webhooks/{made['id']}"
    (delivery,) = client.get(f"{here}/deliveries").json()["items"]
    with running.client(running.key("stranger")) as stranger:
        for answer in (
            stranger.get(here),
            stranger.get(f"{here}/secret"),
            stranger.get(f"{here}/deliveries"),
            stranger.patch(here, json={"enabled": False}),
            stranger.post(f"{here}/rotate"),
            stranger.post(f"{here}/test"),
            stranger.post(f"{here}/replay"),
            stranger.delete(here),
        ):
            assert code_of(answer) == (404, "webhook_not_found")
        there = f"/v1/webhooks/deliveries/{delivery['id']}"
        assert code_of(stranger.get(there)) == (404, "delivery_not_found")
        assert code_of(stranger.post(f"{there}/replay")) == (404, "delivery_not_found")
        assert code_of(stranger.get(f"/v1/jobs/{job_id}/deliveries")) == (404, "job_not_found")
        assert stranger.get("/v1/webhooks").json()["items"] == []
        assert code_of(stranger.get("/v1/webhooks", params={"tenant": tenant})) == (
            403, "forbidden",
        )  # fmt: skip
    assert admin.get(here).json()["id"] == made["id"]
    seen = admin.get("/v1/webhooks", params={"tenant": tenant}).json()["items"]
    assert [each["id"] for each in seen] == [made["id"]]
    everybodys = admin.get("/v1/webhooks", params={"tenant": "*"}).json()["items"]
    assert made["id"] in {each["id"] for each in everybodys}
    assert client.get(here).json()["enabled"]


def test_deliveries_are_listed_and_replayed(running: Running, client: httpx2.Client) -> None:
    made = make(client)
    here = f"/v1/webhooks/{made['id']}"
    own = "https://own.example.org/?token=hidden"
    ids = [fail_a_job(running, client, 910 + number, webhook=own) for number in range(3)]
    first = client.get(f"{here}/deliveries", params={"limit": 2}).json()
    rest = client.get(
        f"{here}/deliveries", params={"limit": 2, "cursor": first["next_cursor"]}
    ).json()
    assert [each["job"] for each in first["items"] + rest["items"]] == ids[::-1]
    assert rest["next_cursor"] is None

    of_job = client.get(f"/v1/jobs/{ids[0]}/deliveries").json()["items"]
    assert {(each["webhook"], each["url"]) for each in of_job} == {(made["id"], None), (None, own)}
    delivery = next(each for each in of_job if each["webhook"])
    assert delivery["payload"]["data"]["job"]["failure"] == {"code": "bad", "message": "no good"}
    assert "hidden" not in json.dumps(delivery["payload"])
    assert delivery["state"] == "pending"
    assert delivery["next_attempt_at"] is not None

    let_fail(running, delivery["id"])
    there = f"/v1/webhooks/deliveries/{delivery['id']}"
    failed = client.get(there).json()
    assert (failed["state"], failed["failure"], failed["attempts"]) == ("failed", "status", 1)
    (attempt,) = failed["log"]
    assert (attempt["status"], attempt["failure"], attempt["milliseconds"]) == (500, "status", 7)
    by_state = client.get(f"{here}/deliveries", params={"state": "failed"}).json()["items"]
    assert [each["id"] for each in by_state] == [delivery["id"]]
    again = client.post(f"{there}/replay")
    assert (again.status_code, again.json()["state"]) == (202, "pending")
    assert again.json()["id"] == delivery["id"]

    let_fail(running, delivery["id"])
    later = datetime.now(UTC).isoformat()
    since = client.post(f"{here}/replay", params={"since": later})
    assert (since.status_code, since.json()) == (202, {"replayed": 0})
    assert client.post(f"{here}/replay").json() == {"replayed": 1}
    naive = client.post(f"{here}/replay", params={"since": "2026-03-01T12:00:00"})
    assert code_of(naive) == (422, "invalid_parameter")
    assert code_of(client.get(f"{here}/deliveries", params={"cursor": "x"})) == (
        422, "invalid_parameter",
    )  # fmt: skip

    client.patch(here, json={"enabled": False})
    for refused in (
        client.post(f"{here}/test"),
        client.post(f"{here}/replay"),
        client.post(f"{there}/replay"),
    ):
        assert code_of(refused) == (409, "webhook_disabled")


def test_metrics_tell_what_waits(running: Running, client: httpx2.Client) -> None:
    made = make(client)
    client.patch(f"/v1/webhooks/{made['id']}", json={"enabled": False})
    make(client)
    fail_a_job(running, client, 920)
    text = httpx2.get(f"{running.url}/metrics").text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(values["nif_webhook_pending"]) >= 1
    assert float(values["nif_webhook_oldest_pending_seconds"]) >= 0
    assert float(values['nif_webhook_endpoints{state="disabled"}']) >= 1
    assert float(values["nif_webhook_untold"]) == 0
    assert float(values['nif_webhook_deliveries{outcome="failed"}']) >= 1


# The page


def rows(heading: str) -> list[tuple[str, str]]:
    table = SECTION.partition(f"| {heading} | |\n|---|---|\n")[2].partition("\n\n")[0]
    return re.findall(r"^\| `([\w.]+)` \| (.*) \|$", table, re.M)


def test_the_page_has_every_event_and_failure() -> None:
    assert rows("event") == [(each.type, each.meaning) for each in WEBHOOK_EVENTS]
    assert rows("failure") == [(each.value, meaning) for each, meaning in TROUBLES.items()]
    assert set(TROUBLES) == set(Trouble)
    assert [each.type for each in WEBHOOK_EVENTS if each.default] == [
        each.type for each in WEBHOOK_EVENTS[-3:]
    ]


def test_the_page_has_the_schedule() -> None:
    settings = load_settings()
    names = {"s": 1, "min": 60, "h": 3600}
    text = re.search(r"sent again after (.*?), each wait", SECTION)
    assert text is not None
    waits = re.findall(r"(\d+) (s|min|h)\b", text[1])
    assert tuple(float(count) * names[unit] for count, unit in waits) == settings.webhook_waits
    assert len(waits) + 1 == 13
    assert PROGRESS_ATTEMPTS == 3
    assert settings.webhook_timeout_seconds == 15
    assert settings.webhook_progress_seconds == 10
    assert (settings.webhook_disable_days, settings.webhook_retention_days) == (5, 7)


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A service of a development machine, with a sender."""
    folder = tmp_path_factory.mktemp("dev")
    settings = settings_in(
        folder, webhook_allow_insecure=True, webhook_schedule_seconds="0.1,0.1,0.1"
    )
    with RedisServer.find_or_start(settings) as redis, serving(settings, redis) as found:
        stop = threading.Event()
        sender = Sender(found.service, found.settings)
        thread = threading.Thread(target=sender.run, args=(stop,))
        thread.start()
        try:
            yield found
        finally:
            stop.set()
            thread.join()


@contextmanager
def receiver(command: list[str], folder: Path, secret: str) -> Iterator[tuple[str, list[str]]]:
    """Run a receiver of the page and yield its URL and the lines that it prints."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=dict(os.environ) | {"NIF_WEBHOOK_SECRET": secret, "PORT": str(port)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    lines: list[str] = []
    assert process.stdout is not None
    output = process.stdout
    thread = threading.Thread(target=lambda: lines.extend(output))
    thread.start()

    def listening() -> bool:
        assert process.poll() is None, "the receiver ended"
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    try:
        wait_for(listening)
        yield f"http://127.0.0.1:{port}", lines
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()
        thread.join()
        output.close()


def example(language: str) -> str:
    found = re.findall(rf"^```{language}\n(.*?)^```", SECTION, re.M | re.S)
    assert len(found) == 1
    return str(found[0])


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Node, and a folder with npm's library; both or the reason why not."""
    program, installer = shutil.which("node"), shutil.which("npm")
    if program is None or installer is None:
        pytest.skip("node and npm are not here")
    folder = tmp_path_factory.mktemp("node")
    for name in ("package.json", "package-lock.json"):
        shutil.copy(NODE / name, folder / name)
    run = subprocess.run(
        [installer, "ci", "--no-audit", "--no-fund", "--ignore-scripts"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if run.returncode:
        reason = next((line for line in run.stderr.splitlines() if "error" in line), "no reason")
        if re.search(
            r"\b(E404|ENOTFOUND|ECONNREFUSED|EAI_AGAIN|ETIMEDOUT|ECONNRESET)\b", run.stderr
        ):
            pytest.skip(f"npm's registry cannot be reached: {reason}")
        pytest.fail(run.stderr)
    return program, folder


def hear(dev: Running, command: list[str], folder: Path, seed: int) -> None:
    """Have a receiver told of a job with both secrets of a rotation, and by a stranger."""
    tenant = f"hear-{seed}"
    with ExitStack() as stack:
        client = stack.enter_context(dev.client(dev.key(tenant)))
        # The port is known only when it listens: the endpoint moves there then.
        made = client.post("/v1/webhooks", json={"url": "http://127.0.0.1:9/"}).json()
        here = f"/v1/webhooks/{made['id']}"
        new = client.post(f"{here}/rotate").json()["secrets"][0]["secret"]
        for number, secret in enumerate((made["secret"], new)):
            with receiver(command, folder, secret) as (url, lines):
                client.patch(here, json={"url": url})
                job_id = submit(client, picture(seed + number)).json()["id"]
                dev.succeed(job_id)
                wait_for(lambda lines=lines: lines)
                assert lines[0].startswith("job.succeeded ")
                assert job_id in lines[0]
                (delivery,) = client.get(f"/v1/jobs/{job_id}/deliveries").json()["items"]
                there = f"/v1/webhooks/deliveries/{delivery['id']}"
                wait_for(lambda there=there: client.get(there).json()["state"] == "delivered")
                # The same message once more is known by its id.
                client.post(f"{there}/replay")
                wait_for(lambda there=there: client.get(there).json()["attempts"] == 2)
                test = client.post(f"{here}/test").json()
                wait_for(lambda lines=lines: len(lines) == 2)
                assert lines[1].startswith("webhook.test ")
                assert made["id"] in lines[1]
                wait_for(
                    lambda test=test: (
                        client.get(f"/v1/webhooks/deliveries/{test['id']}").json()["state"]
                        == "delivered"
                    )
                )
                # Somebody else's messages are refused.
                other = client.post("/v1/webhooks", json={"url": url}).json()
                test = client.post(f"/v1/webhooks/{other['id']}/test").json()
                failed = wait_for(
                    lambda test=test: (
                        (found := client.get(f"/v1/webhooks/deliveries/{test['id']}").json())[
                            "state"
                        ]
                        == "failed"
                        and found
                    )
                )
                assert {each["status"] for each in failed["log"]} == {400}
                client.delete(f"/v1/webhooks/{other['id']}")
            assert len(lines) == 2


def test_the_python_receiver_verifies(dev: Running, tmp_path: Path) -> None:
    script = tmp_path / "receiver.py"
    script.write_text(example("python receiver"), "utf-8")
    hear(dev, [sys.executable, "-W", "error", str(script)], tmp_path, 930)


def test_the_node_receiver_verifies(dev: Running, node: tuple[str, Path]) -> None:
    program, folder = node
    (folder / "receiver.mjs").write_text(example("js"), "utf-8")
    hear(dev, [program, "receiver.mjs"], folder, 940)


def test_a_jobs_own_webhook_is_signed_with_the_tenants_secret(dev: Running, tmp_path: Path) -> None:
    script = tmp_path / "receiver.py"
    script.write_text(example("python receiver"), "utf-8")
    with dev.client(ADMIN_KEY) as client:
        secret = client.get("/v1/webhook-secret").json()["secrets"][0]["secret"]
        with receiver([sys.executable, str(script)], tmp_path, secret) as (url, lines):
            job_id = submit(client, picture(950), webhook=url).json()["id"]
            dev.succeed(job_id)
            wait_for(lambda: lines)
        assert lines[0].startswith("job.succeeded ")
