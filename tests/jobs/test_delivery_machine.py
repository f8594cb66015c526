"""Random lives of webhook deliveries against a model: senders that die, replays, endpoints that
come and go. Nothing is lost, nothing is two senders' at a time, and the indexes agree."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from jobs import (
    BlobRef,
    DeliveryAttempt,
    DeliveryClaim,
    DeliveryState,
    EndpointDisabled,
    JobDraft,
    JobService,
    JobSpec,
    NotFound,
    Parameters,
    RedisServer,
    Trouble,
    Verdict,
    load_settings,
    new_job_id,
    open_service,
)
from tests.jobs.wakeups import ListWakeups

PENDING, DELIVERED, FAILED = DeliveryState.PENDING, DeliveryState.DELIVERED, DeliveryState.FAILED


@dataclass
class Model:
    """What a delivery should be."""

    endpoint: str | None
    job: str
    state: DeliveryState = PENDING
    attempts: int = 0
    nonce: str | None = None  # of the sender that has it


class Machine(RuleBasedStateMachine):
    """The rules. Class attributes are set by the test."""

    server: RedisServer
    folders: Iterator[Path]

    @initialize()
    def begin(self) -> None:
        found = load_settings(redis_url=self.server.url, data_dir=next(self.folders))
        self.service: JobService = open_service(found, wakeups=ListWakeups())
        self.service.database.client.flushall()
        self.endpoints: dict[str, bool] = {}  # id -> enabled
        self.deliveries: dict[str, Model] = {}
        self.claims: list[DeliveryClaim] = []

    def teardown(self) -> None:
        if hasattr(self, "service"):
            self.service.close()

    def has_endpoints(self) -> bool:
        return bool(self.endpoints)

    def has_claims(self) -> bool:
        return bool(self.claims)

    def has_deliveries(self) -> bool:
        return bool(self.deliveries)

    # Tenants

    @rule(host=st.sampled_from(["a", "b"]))
    def make_endpoint(self, host: str) -> None:
        if len(self.endpoints) < 3:
            url = f"https://{host}.example.org/"
            made, _ = self.service.endpoints.create("acme", url, ["job.queued"])
            self.endpoints[made.id] = True

    @precondition(has_endpoints)
    @rule(index=st.integers(0, 2), enabled=st.booleans())
    def switch(self, index: int, enabled: bool) -> None:
        endpoint = list(self.endpoints)[index % len(self.endpoints)]
        self.service.endpoints.update("acme", endpoint, enabled=enabled)
        self.endpoints[endpoint] = enabled

    @precondition(has_endpoints)
    @rule(index=st.integers(0, 2))
    def delete_endpoint(self, index: int) -> None:
        endpoint = list(self.endpoints)[index % len(self.endpoints)]
        self.service.endpoints.delete("acme", endpoint)
        del self.endpoints[endpoint]

    @rule()
    def submit(self) -> None:
        job_id = new_job_id()
        spec = JobSpec(BlobRef("k", 1, "0" * 64, "image/png"), Parameters(), "1")
        draft = JobDraft(job_id, "acme", spec, datetime.now(UTC), deduplicate=False)
        self.service.store.create(draft, submission=job_id)
        messages = self.service.outbox.read()
        assert len(messages) == bool(self.endpoints)
        for message in messages:
            made = self.service.fanout.take_on(message)
            assert self.service.fanout.take_on(message) == []
            assert len(made) == len(self.endpoints)
            for each in made:
                delivery = self.service.deliveries.get("acme", each)
                assert delivery.endpoint_id is not None
                enabled = self.endpoints[delivery.endpoint_id]
                self.deliveries[each] = Model(
                    delivery.endpoint_id, job_id, PENDING if enabled else FAILED
                )

    @precondition(has_deliveries)
    @rule(index=st.integers(0, 99))
    def delete_job(self, index: int) -> None:
        job_id = list(self.deliveries.values())[index % len(self.deliveries)].job
        self.service.store.cancel(job_id)
        self.service.store.begin_delete(job_id)
        self.service.store.purge(job_id)
        self.deliveries = {
            each: model for each, model in self.deliveries.items() if model.job != job_id
        }

    @precondition(has_deliveries)
    @rule(index=st.integers(0, 99))
    def replay(self, index: int) -> None:
        delivery = list(self.deliveries)[index % len(self.deliveries)]
        model = self.deliveries[delivery]
        try:
            self.service.deliveries.replay("acme", delivery)
        except NotFound:
            assert model.endpoint not in self.endpoints
        except EndpointDisabled:
            assert not self.endpoints[str(model.endpoint)]
        else:
            assert self.endpoints[str(model.endpoint)]
            if model.state is not PENDING:
                model.state, model.nonce = PENDING, None

    @precondition(has_endpoints)
    @rule(index=st.integers(0, 2))
    def replay_failed(self, index: int) -> None:
        endpoint = list(self.endpoints)[index % len(self.endpoints)]
        failed = [
            each
            for each in self.deliveries.values()
            if each.endpoint == endpoint and each.state is FAILED
        ]
        if not self.endpoints[endpoint]:
            with pytest.raises(EndpointDisabled):
                self.service.deliveries.replay_failed(endpoint)
            return
        assert self.service.deliveries.replay_failed(endpoint) == len(failed)
        for model in failed:
            model.state, model.nonce = PENDING, None

    # Senders

    @rule(limit=st.integers(1, 5), per_host=st.integers(1, 5), per_tenant=st.integers(1, 5))
    def claim(self, limit: int, per_host: int, per_tenant: int) -> None:
        found = self.service.deliveries.claim(
            limit=limit, per_host=per_host, per_tenant=per_tenant, claim_seconds=3600
        )
        assert len(found) <= min(limit, per_tenant)
        hosts = [each.host for each in found]
        assert all(hosts.count(host) <= per_host for host in hosts)
        for each in found:
            model = self.deliveries[each.delivery.id]
            assert (model.state, model.nonce) == (PENDING, None)
            assert self.endpoints[str(model.endpoint)]
            model.nonce = each.nonce
        # Whose endpoint is off fails when its turn comes.
        for each, model in self.deliveries.items():
            if model.state is PENDING and not self.endpoints.get(str(model.endpoint)):
                model.state = self.service.deliveries.get("acme", each).state
                assert model.state in (PENDING, FAILED)
        self.claims += found

    @precondition(has_claims)
    @rule(index=st.integers(0, 9), verdict=st.sampled_from(list(Verdict)))
    def settle(self, index: int, verdict: Verdict) -> None:
        claim = self.claims[-1 - index % len(self.claims)]
        model = self.deliveries.get(claim.delivery.id)
        trouble = None if verdict is Verdict.DELIVERED else Trouble.STATUS
        attempt = DeliveryAttempt(datetime.now(UTC), 200, trouble, 5)
        settled = self.service.deliveries.settle(claim, attempt, verdict)
        if model is None or model.nonce != claim.nonce or model.state is not PENDING:
            # Too late, or said before, which changes nothing.
            return
        assert settled is not None
        model.attempts += 1
        model.nonce = None
        if verdict is not Verdict.RETRY:
            model.state = DELIVERED if verdict is Verdict.DELIVERED else FAILED
        assert settled.state is model.state
        if verdict is Verdict.GONE and model.endpoint in self.endpoints:
            self.endpoints[str(model.endpoint)] = False

    @precondition(has_claims)
    @rule(index=st.integers(0, 9))
    def a_sender_dies(self, index: int) -> None:
        """Its claim runs out; should it be heard of after all, it is too late by then."""
        claim = self.claims[-1 - index % len(self.claims)]
        model = self.deliveries.get(claim.delivery.id)
        if model is None or model.nonce != claim.nonce or model.state is not PENDING:
            return
        client, key = self.service.database.client, self.service.database.key
        client.zadd(key("deliveries", "due", "acme", claim.host), {claim.delivery.id: 1})
        client.zadd(key("deliveries", "hosts", "acme"), {claim.host: 1})
        client.zadd(key("deliveries", "tenants"), {"acme": 1})
        client.hset(key("delivery", claim.delivery.id), "nonce", "")
        model.nonce = None

    # What always holds

    @invariant()
    def nothing_is_lost_and_the_indexes_agree(self) -> None:
        if not hasattr(self, "deliveries"):
            return
        client, key = self.service.database.client, self.service.database.key
        for identifier, model in self.deliveries.items():
            found = self.service.deliveries.get("acme", identifier)
            assert (found.state, found.attempts) == (model.state, model.attempts)
            assert len(found.log) == model.attempts
        by_state = {
            state: {each for each, model in self.deliveries.items() if model.state is state}
            for state in DeliveryState
        }
        for state, wanted in by_state.items():
            assert set(client.zrange(key("tenant", "acme", "deliveries", state), 0, -1)) == wanted
        assert set(client.zrange(key("deliveries", "pending"), 0, -1)) == by_state[PENDING]
        ended = by_state[DELIVERED] | by_state[FAILED]
        assert set(client.zrange(key("deliveries", "ended"), 0, -1)) == ended
        due: set[str] = set()
        hosts = set()
        for line in client.scan_iter(key("deliveries", "due", "acme", "*")):
            rows = client.zrange(line, 0, -1, withscores=True)
            due |= {each for each, _ in rows}
            host = line.removeprefix(key("deliveries", "due", "acme") + ":")
            hosts.add(host)
            assert client.zscore(key("deliveries", "hosts", "acme"), host) == rows[0][1]
        assert due == by_state[PENDING]
        listed = client.zrange(key("deliveries", "hosts", "acme"), 0, -1, withscores=True)
        assert {host for host, _ in listed} == hosts
        tenants = client.zrange(key("deliveries", "tenants"), 0, -1, withscores=True)
        assert tenants == [("acme", score) for _, score in listed[:1]]
        # One body for whatever tells the same, as long as something does.
        named = Counter(
            str(client.hget(key("delivery", each), "message")) for each in self.deliveries
        )
        kept = {each.removeprefix("nif:message:") for each in client.scan_iter("nif:message:*")}
        assert kept == set(named)
        for message, uses in named.items():
            assert client.hget(key("message", message), "uses") == str(uses)
        for endpoint in self.endpoints:
            mine = {each for each, model in self.deliveries.items() if model.endpoint == endpoint}
            assert set(client.zrange(key("webhook", endpoint, "deliveries"), 0, -1)) == mine
        endpoints = {
            each.removeprefix("nif:webhook:") for each in client.scan_iter("nif:webhook:*")
        }
        assert {each.split(":")[0] for each in endpoints} == set(self.endpoints)


@pytest.mark.slow
def test_random_lives(redis_server: RedisServer, tmp_path: Path) -> None:
    Machine.server = redis_server
    Machine.folders = (tmp_path / f"run-{number}" for number in itertools.count())
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=20,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
