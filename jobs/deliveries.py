"""Deliveries: one message to one receiver, with everything that became of it.

::

    due ──claim──> being sent ──2xx──> delivered
     ^                 │
     │                 ├── no more attempts, or 410 ──> failed ──replay──> due
     └──── a wait ─────┤
     └─ claim ran out ─┘

The id of a delivery is the message's ``webhook-id`` with every attempt and replay.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from jobs.counters import observation
from jobs.database import Database, pairs
from jobs.errors import EndpointDisabled, Invalid, NotFound
from jobs.record import from_milliseconds, to_milliseconds
from jobs.settings import Settings
from jobs.signing import SigningSecret, in_force, secrets_from_text
from jobs.store import MAX_PAGE, read_cursor, write_cursor

# So many attempts must have failed, besides for so long, before an endpoint is disabled for it.
DISABLE_FAILURES = 5
_REPLAY_BATCH = 200
_DAY_MS = 86_400_000


class DeliveryState(StrEnum):
    """Where a delivery is; a failed one is kept to be replayed."""

    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"


class Trouble(StrEnum):
    """Why an attempt, or a delivery as a whole, failed."""

    DNS = "dns"
    ADDRESS_REFUSED = "address_refused"
    URL_REFUSED = "url_refused"
    CONNECT = "connect"
    TLS = "tls"
    TIMEOUT = "timeout"
    PROTOCOL = "protocol"
    REDIRECT = "redirect"
    STATUS = "status"
    GONE = "gone"
    UNEXPECTED = "unexpected"
    ENDPOINT_DISABLED = "endpoint_disabled"
    ENDPOINT_DELETED = "endpoint_deleted"


TROUBLES: Mapping[Trouble, str] = {
    Trouble.DNS: "The host has no address.",
    Trouble.ADDRESS_REFUSED: "An address of the host is not public; nothing was sent.",
    Trouble.URL_REFUSED: "The URL is no longer one that is accepted; nothing was sent.",
    Trouble.CONNECT: "No connection, or it broke before an answer came.",
    Trouble.TLS: "The receiver's certificate is not valid, or no TLS was agreed on.",
    Trouble.TIMEOUT: "No answer within the time that an attempt may take.",
    Trouble.PROTOCOL: "What came is no HTTP answer.",
    Trouble.REDIRECT: "Status 3xx; redirects are not followed.",
    Trouble.STATUS: "Another status than 2xx.",
    Trouble.GONE: "Status 410: the endpoint was disabled.",
    Trouble.UNEXPECTED: "A mistake of the sender.",
    Trouble.ENDPOINT_DISABLED: "The endpoint was disabled when it was this delivery's turn.",
    Trouble.ENDPOINT_DELETED: "The endpoint was deleted before it was this delivery's turn.",
}
"""What each means."""


@dataclass(frozen=True)
class DeliveryAttempt:
    """One attempt to deliver.

    Attributes:
        at: when it began.
        status: of the receiver's answer, None if there was none.
        trouble: why it failed, None if it went well.
        milliseconds: from its beginning to the answer, or to giving up.
    """

    at: datetime
    status: int | None
    trouble: Trouble | None
    milliseconds: int


@dataclass(frozen=True)
class Delivery:
    """A message to a receiver.

    Attributes:
        id: also the message's ``webhook-id``.
        endpoint_id: whom it is for; None for the job's own webhook.
        url: the job's own webhook; None for an endpoint, which has its URL itself.
        job_id: which job it tells of; None for a test.
        type: of the message.
        failure: why it failed, or why the latest attempt did; None if nothing went wrong.
        attempts: how many there were.
        log: the latest of them, oldest first.
        next_attempt_at: None unless it is pending.
        body: what is sent, JSON text.
    """

    id: str
    tenant: str
    endpoint_id: str | None
    url: str | None
    job_id: str | None
    type: str
    state: DeliveryState
    failure: Trouble | None
    attempts: int
    log: tuple[DeliveryAttempt, ...]
    created_at: datetime
    ended_at: datetime | None
    next_attempt_at: datetime | None
    body: str


@dataclass(frozen=True)
class DeliveryPage:
    """Some deliveries, newest first, and the cursor of those after them, or None at the end."""

    deliveries: tuple[Delivery, ...]
    next_cursor: str | None


@dataclass(frozen=True)
class DeliveryClaim:
    """A delivery that the caller now sends.

    Attributes:
        delivery: it.
        nonce: to say so.
        url: where it goes.
        host: whose turn it was.
        secrets: that it is signed with, newest first.
        tries: attempts of this round before.
    """

    delivery: Delivery
    nonce: str
    url: str
    host: str
    secrets: tuple[SigningSecret, ...]
    tries: int


class Verdict(StrEnum):
    """What follows from an attempt."""

    DELIVERED = "delivered"
    RETRY = "retry"
    FAILED = "failed"
    GONE = "gone"


@dataclass(frozen=True)
class Settled:
    """What became of a delivery after an attempt; ``disabled`` says why its endpoint now is."""

    state: DeliveryState
    disabled: str | None


@dataclass(frozen=True)
class Backlog:
    """What waits to be delivered; the age of what waits longest is None if nothing does."""

    pending: int
    oldest_age_seconds: float | None
    untold: int


class Deliveries:
    """All deliveries."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._disable_ms = round(settings.webhook_disable_days * _DAY_MS)
        self._retention_ms = round(settings.webhook_retention_days * _DAY_MS)

    # Sending

    def claim(
        self,
        *,
        limit: int,
        per_host: int,
        per_tenant: int,
        claim_seconds: float,
        busy_hosts: Mapping[str, int] | None = None,
        busy_tenants: Mapping[str, int] | None = None,
    ) -> list[DeliveryClaim]:
        """Take deliveries that are due; for so long they are the caller's.

        Args:
            limit: most of them.
            per_host: most to one host, with those that the caller has in hand.
            per_tenant: most of one tenant, likewise.
            claim_seconds: after that they are due again, unless they were settled.
            busy_hosts: host -> how many the caller has in hand.
            busy_tenants: tenant -> likewise.
        """
        nonce = secrets.token_hex(8)
        flat = self._database.run(
            "webhook_claim",
            nonce,
            limit,
            per_host,
            per_tenant,
            round(claim_seconds * 1000),
            json.dumps(dict(busy_hosts or {})),
            json.dumps(dict(busy_tenants or {})),
        )
        now = self._database.now() if flat else None
        claims = []
        for index in range(0, len(flat), 5):
            identifier, url, found, body, values = flat[index : index + 5]
            fields = pairs(values)
            assert now is not None
            claims.append(
                DeliveryClaim(
                    delivery=_delivery(identifier, fields, body),
                    nonce=nonce,
                    url=url,
                    host=fields["host"],
                    secrets=in_force(secrets_from_text(found), now),
                    tries=int(fields["tries"]),
                )
            )
        return claims

    def settle(
        self,
        claim: DeliveryClaim,
        attempt: DeliveryAttempt,
        verdict: Verdict,
        *,
        wait_seconds: float = 0.0,
        host: str | None = None,
    ) -> Settled | None:
        """Note what became of an attempt; None if the delivery is no longer the caller's.

        Args:
            claim: of the delivery.
            attempt: what happened.
            verdict: what follows.
            wait_seconds: with ``retry``, until the next attempt.
            host: that the URL now names, None for that of the claim.
        """
        line = {
            "at": str(to_milliseconds(attempt.at)),
            "status": attempt.status,
            "trouble": attempt.trouble,
            "ms": attempt.milliseconds,
        }
        outcome = attempt.trouble or "delivered"
        counters = observation("webhook_seconds", attempt.milliseconds / 1000)
        counters[f'webhook_attempts{{outcome="{outcome}"}}'] = 1
        reply = self._database.run(
            "webhook_settle",
            claim.delivery.id,
            claim.nonce,
            json.dumps(line),
            verdict,
            attempt.trouble or "",
            round(wait_seconds * 1000),
            host or claim.host,
            self._disable_ms,
            DISABLE_FAILURES,
            json.dumps(counters),
        )
        if reply[0] != "ok":
            return None
        return Settled(DeliveryState(reply[1]), reply[2] or None)

    # Looking

    def get(self, tenant: str | None, delivery_id: str) -> Delivery:
        """Return a delivery of a tenant, or anybody's for None.

        Raises:
            NotFound: also if it is another tenant's.
        """
        (found,) = self._get_many([delivery_id])
        if found is None or (tenant is not None and found.tenant != tenant):
            raise NotFound("delivery", delivery_id)
        return found

    def page(
        self,
        *,
        tenant: str | None = None,
        endpoint_id: str | None = None,
        job_id: str | None = None,
        state: DeliveryState | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> DeliveryPage:
        """Return deliveries to an endpoint, of a job or of a tenant, newest first.

        Args:
            tenant, endpoint_id, job_id: exactly one of them.
            state: only these.
            limit: most of them, 1 to 500.
            cursor: of the page before.

        Raises:
            Invalid: a bad cursor or limit, or not exactly one scope.
        """
        scopes = [
            (kind, value)
            for kind, value in (("tenant", tenant), ("webhook", endpoint_id), ("job", job_id))
            if value is not None
        ]
        if len(scopes) != 1:
            raise Invalid("a list of deliveries is of one tenant, one endpoint or one job")
        if not 1 <= limit <= MAX_PAGE:
            raise Invalid(f"limit must be 1 to {MAX_PAGE}; got {limit}")
        (scope,) = scopes
        by_state = () if state is None or job_id is not None else (state.value,)
        key = self._database.key(*scope, "deliveries", *by_state)
        highest = "+inf" if cursor is None else f"({read_cursor(cursor)}"
        found: list[Delivery] = []
        place = 0
        while len(found) <= limit:
            rows = self._database.call("zrevrangebyscore", key, highest, "-inf", 0, limit + 1, True)
            if not rows:
                break
            orders = {each: int(order) for each, order in rows}
            for delivery in self._get_many(orders):
                if delivery is not None and state in (None, delivery.state):
                    found.append(delivery)
                    if len(found) == limit:
                        place = orders[delivery.id]
            highest = f"({min(orders.values())}"
        more = len(found) > limit
        return DeliveryPage(tuple(found[:limit]), write_cursor(place) if more else None)

    def counts(
        self, *, tenant: str | None = None, endpoint_id: str | None = None
    ) -> dict[DeliveryState, int]:
        """Return how many deliveries of a tenant, or to an endpoint, are in each state.

        Raises:
            Invalid: not exactly one of them.
        """
        if (tenant is None) == (endpoint_id is None):
            raise Invalid("deliveries are counted of one tenant or one endpoint")
        scope = ("tenant", tenant) if tenant is not None else ("webhook", str(endpoint_id))
        with self._database.pipeline() as pipeline:
            for state in DeliveryState:
                pipeline.zcard(self._database.key(*scope, "deliveries", state))
            return dict(zip(DeliveryState, pipeline.execute(), strict=True))

    def backlog(self) -> Backlog:
        """Return what waits, of everybody; ``untold`` are messages still in the outbox."""
        key = self._database.key
        with self._database.pipeline() as pipeline:
            pipeline.zcard(key("deliveries", "pending"))
            pipeline.zrange(key("deliveries", "pending"), 0, 0, withscores=True)
            pipeline.xlen(key("outbox"))
            pending, oldest, untold = pipeline.execute()
        age = None
        if oldest:
            age = max(0.0, (self._database.now_milliseconds() - oldest[0][1]) / 1000)
        return Backlog(int(pending), age, int(untold))

    # Once more

    def replay(self, tenant: str | None, delivery_id: str) -> Delivery:
        """Send a delivery again, by the whole schedule; one that waits is due at once.

        Raises:
            NotFound: no such delivery, or its endpoint was deleted.
            EndpointDisabled.
        """
        delivery = self.get(tenant, delivery_id)
        match self._database.run("webhook_replay", delivery_id):
            case "missing":
                raise NotFound("delivery", delivery_id)
            case "endpoint_deleted":
                raise NotFound("webhook", str(delivery.endpoint_id))
            case "endpoint_disabled":
                raise EndpointDisabled(str(delivery.endpoint_id))
        return self.get(tenant, delivery_id)

    def replay_failed(self, endpoint_id: str, *, since: datetime | None = None) -> int:
        """Send all failed deliveries to an endpoint again, and return how many they are.

        Progress is left out.

        Args:
            endpoint_id: the endpoint.
            since: only those made at or after this time.

        Raises:
            NotFound, EndpointDisabled.
        """
        lowest = "-inf" if since is None else str(to_milliseconds(since) * 1000)
        replayed = 0
        while lowest:
            reply = self._database.run("webhook_replay_failed", endpoint_id, lowest, _REPLAY_BATCH)
            match reply:
                case ["missing"]:
                    raise NotFound("webhook", endpoint_id)
                case ["disabled"]:
                    raise EndpointDisabled(endpoint_id)
            _, count, lowest = reply
            replayed += int(count)
        return replayed

    def sweep(self, *, limit: int = 200) -> int:
        """Remove deliveries that are past their retention, and return how many."""
        latest = self._database.now_milliseconds() - self._retention_ms
        return int(self._database.run("webhook_forget", latest, limit))

    def _get_many(self, ids: Mapping[str, int] | list[str]) -> list[Delivery | None]:
        with self._database.pipeline() as pipeline:
            for delivery_id in ids:
                pipeline.hgetall(self._database.key("delivery", delivery_id))
            hashes = pipeline.execute()
        messages = list(dict.fromkeys(fields["message"] for fields in hashes if fields))
        with self._database.pipeline() as pipeline:
            for message in messages:
                pipeline.hget(self._database.key("message", message), "body")
            bodies = dict(zip(messages, pipeline.execute(), strict=True))
        # A body is gone that a delivery named: it was forgotten in between.
        return [
            _delivery(identifier, fields, bodies[fields["message"]])
            if fields and bodies[fields["message"]] is not None
            else None
            for identifier, fields in zip(ids, hashes, strict=True)
        ]


def _delivery(identifier: str, fields: Mapping[str, str], body: str) -> Delivery:
    state = DeliveryState(fields["state"])
    return Delivery(
        id=identifier,
        tenant=fields["tenant"],
        endpoint_id=fields["endpoint"] or None,
        url=fields["url"] or None,
        job_id=fields["job"] or None,
        type=fields["type"],
        state=state,
        failure=Trouble(fields["failure"]) if fields["failure"] else None,
        attempts=int(fields["attempts"]),
        log=tuple(_attempt(json.loads(line)) for line in fields["log"].splitlines()),
        created_at=from_milliseconds(int(fields["created"])),
        ended_at=from_milliseconds(int(fields["ended"])) if fields["ended"] else None,
        next_attempt_at=(
            from_milliseconds(int(fields["due"])) if state is DeliveryState.PENDING else None
        ),
        body=body,
    )


def _attempt(row: Mapping[str, Any]) -> DeliveryAttempt:
    return DeliveryAttempt(
        at=from_milliseconds(int(row["at"])),
        status=row["status"],
        trouble=Trouble(row["trouble"]) if row["trouble"] else None,
        milliseconds=row["ms"],
    )
