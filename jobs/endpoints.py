"""Webhook endpoints: who is told what, and the secrets that messages to them are signed with.

They live in Redis and, as they were last changed, in the blob store, from where `jobs.reconcile`
brings them back. Signing needs the secrets themselves, so they are kept as they are, in both.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from jobs.blobs import Blobs
from jobs.database import Database, pairs
from jobs.errors import (
    BlobExists,
    BlobNotFound,
    EndpointDisabled,
    Invalid,
    NotFound,
    QuotaExceeded,
)
from jobs.ids import check_tenant, new_delivery_id, new_endpoint_id
from jobs.record import from_milliseconds
from jobs.settings import Settings
from jobs.signing import (
    MAX_SECRETS,
    SigningSecret,
    in_force,
    new_secret,
    secrets_from_text,
    secrets_to_text,
)
from jobs.webhook_events import DEFAULT_EVENTS, TEST, body_of_test, check_events
from jobs.webhook_urls import check_webhook_url, host_of

WEBHOOKS_PREFIX = "_system/webhooks/"
DEFAULT_OVERLAP = timedelta(hours=24)
MAX_OVERLAP = timedelta(days=7)
MAX_DESCRIPTION_CHARACTERS = 200
_JSON = "application/json"


class DisabledReason(StrEnum):
    """Why an endpoint is disabled."""

    BY_REQUEST = "by_request"
    GONE = "gone"
    FAILING = "failing"


@dataclass(frozen=True)
class Endpoint:
    """A webhook endpoint, without its secrets.

    Attributes:
        id: ``whk_...``.
        url: where messages go.
        events: that it is told of.
        enabled: whether anything is sent.
        disabled_reason, disabled_at: None while it is enabled.
        failures: attempts that failed in a row.
        failing_since: when the first of these failed, None if the latest attempt went well.
        succeeded_at: when the latest attempt went well, None if none has.
    """

    id: str
    tenant: str
    url: str
    events: tuple[str, ...]
    description: str
    enabled: bool
    disabled_reason: DisabledReason | None
    disabled_at: datetime | None
    failures: int
    failing_since: datetime | None
    succeeded_at: datetime | None
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True)
class EndpointCounts:
    """How many endpoints there are."""

    enabled: int
    disabled: int


class Endpoints:
    """All webhook endpoints."""

    def __init__(self, database: Database, blobs: Blobs, settings: Settings) -> None:
        self._database = database
        self._blobs = blobs
        self._settings = settings

    def create(
        self,
        tenant: str,
        url: str,
        events: Iterable[str] = DEFAULT_EVENTS,
        *,
        description: str = "",
    ) -> tuple[Endpoint, str]:
        """Make an endpoint and return it with its secret.

        Raises:
            Invalid: a URL, event or description that is not accepted.
            QuotaExceeded: ``webhooks``: the tenant has as many as are allowed.
            BlobsUnavailable: nothing was made.
        """
        check_tenant(tenant)
        endpoint_id, secret = new_endpoint_id(), new_secret()
        now = self._database.now()
        fields = {
            **self._checked(url=url, events=events, description=description),
            "state": "enabled",
            "reason": "",
            "secrets": secrets_to_text([SigningSecret(secret, now)]),
            "revision": "1",
            "failures": "0",
            "failing": "",
            "succeeded": "",
            "disabled": "",
        }
        self._keep(endpoint_id, 1, {"tenant": tenant, "fields": fields})
        reply = self._database.run(
            "webhook_create",
            endpoint_id,
            tenant,
            json.dumps(fields),
            self._settings.webhooks_per_tenant,
        )
        if reply[0] == "quota":
            self._discard(endpoint_id)
            _, name, limit, used = reply
            raise QuotaExceeded(name, int(limit), int(used), retry_after_seconds=60.0)
        return _endpoint(pairs(reply[1])), secret

    def get(self, tenant: str | None, endpoint_id: str) -> Endpoint:
        """Return an endpoint of a tenant, or anybody's for None.

        Raises:
            NotFound: also if it is another tenant's.
        """
        return _endpoint(self._fields(tenant, endpoint_id))

    def list(self, tenant: str | None = None) -> tuple[Endpoint, ...]:
        """Return all endpoints of a tenant, or everybody's for None, oldest first."""
        scope = () if tenant is None else ("tenant", tenant)
        ids = self._database.call("zrange", self._database.key(*scope, "webhooks"), 0, -1)
        with self._database.pipeline() as pipeline:
            for endpoint_id in ids:
                pipeline.hgetall(self._database.key("webhook", endpoint_id))
            return tuple(_endpoint(fields) for fields in pipeline.execute() if fields)

    def update(
        self,
        tenant: str | None,
        endpoint_id: str,
        *,
        url: str | None = None,
        events: Iterable[str] | None = None,
        description: str | None = None,
        enabled: bool | None = None,
    ) -> Endpoint:
        """Change what is not None. An endpoint that is enabled starts with no failures.

        Raises:
            NotFound, Invalid.
            BlobsUnavailable: it is changed, but not yet durably; do it again.
        """
        self._fields(tenant, endpoint_id)
        fields = self._checked(url=url, events=events, description=description)
        if enabled is not None:
            fields["state"] = "enabled" if enabled else "disabled"
            if not enabled:
                fields["reason"] = DisabledReason.BY_REQUEST
        reply = self._database.run("webhook_update", endpoint_id, json.dumps(fields))
        if reply[0] != "ok":
            raise NotFound("webhook", endpoint_id)
        self._keep_known(endpoint_id)
        return _endpoint(pairs(reply[1]))

    def delete(self, tenant: str | None, endpoint_id: str) -> None:
        """Remove an endpoint. What was to be sent to it fails.

        Raises:
            NotFound.
            BlobsUnavailable: it is still there.
        """
        self._fields(tenant, endpoint_id)
        self._discard(endpoint_id)
        self._database.run("webhook_delete", endpoint_id)

    def counts(self) -> EndpointCounts:
        """Return how many endpoints there are."""
        with self._database.pipeline() as pipeline:
            pipeline.zcard(self._database.key("webhooks"))
            pipeline.scard(self._database.key("webhooks", "disabled"))
            every, disabled = pipeline.execute()
        return EndpointCounts(enabled=every - disabled, disabled=disabled)

    def test(self, tenant: str | None, endpoint_id: str) -> str:
        """Have a test message sent and return the id of its delivery.

        Raises:
            NotFound, EndpointDisabled.
        """
        self._fields(tenant, endpoint_id)
        delivery_id = new_delivery_id()
        body = body_of_test(endpoint_id, self._database.now())
        match self._database.run("webhook_test", delivery_id, endpoint_id, TEST, body):
            case "missing":
                raise NotFound("webhook", endpoint_id)
            case "disabled":
                raise EndpointDisabled(endpoint_id)
        return delivery_id

    # Secrets

    def secrets(self, tenant: str | None, endpoint_id: str) -> tuple[SigningSecret, ...]:
        """Return the secrets that messages to an endpoint are signed with now, newest first.

        Raises:
            NotFound.
        """
        found = secrets_from_text(self._fields(tenant, endpoint_id)["secrets"])
        return in_force(found, self._database.now())

    def rotate(
        self, tenant: str | None, endpoint_id: str, *, overlap: timedelta = DEFAULT_OVERLAP
    ) -> tuple[SigningSecret, ...]:
        """Put a new secret in force and return all; those before sign too for ``overlap``.

        Raises:
            NotFound.
            Invalid: an overlap below 0 or above 7 days.
            BlobsUnavailable: it is in force, but not yet durably; rotate again.
        """
        self._fields(tenant, endpoint_id)
        found = self._put_in_force(endpoint_id, "", overlap)
        self._keep_known(endpoint_id)
        return found

    def tenant_secrets(self, tenant: str) -> tuple[SigningSecret, ...]:
        """Return the secrets that messages to jobs' own webhooks are signed with, newest first.

        The first one is made when it is first asked for.

        Raises:
            BlobsUnavailable: there is none yet, and none was made.
        """
        check_tenant(tenant)
        key = self._database.key("tenant", tenant, "webhook-secrets")
        text = self._database.call("get", key)
        if text is None:
            # First where it is not lost, as with an endpoint: nobody is given a secret that an
            # empty Redis would forget.
            self._database.call("setnx", key, self._kept_first(tenant))
            text = self._database.call("get", key)
        return in_force(secrets_from_text(text), self._database.now())

    def rotate_tenant(
        self, tenant: str, *, overlap: timedelta = DEFAULT_OVERLAP
    ) -> tuple[SigningSecret, ...]:
        """Do as `rotate` does with the secrets for jobs' own webhooks."""
        self.tenant_secrets(tenant)
        found = self._put_in_force("", tenant, overlap)
        self._keep_tenant(tenant, found)
        return found

    def _put_in_force(
        self, endpoint_id: str, tenant: str, overlap: timedelta
    ) -> tuple[SigningSecret, ...]:
        if not timedelta(0) <= overlap <= MAX_OVERLAP:
            most = round(MAX_OVERLAP.total_seconds())
            raise Invalid(f"overlap must be 0 to {most} seconds; got {overlap.total_seconds():g}")
        reply = self._database.run(
            "webhook_rotate",
            endpoint_id,
            tenant,
            new_secret(),
            round(overlap.total_seconds() * 1000),
            MAX_SECRETS,
        )
        if reply[0] != "ok":
            raise NotFound("webhook", endpoint_id)
        return in_force(secrets_from_text(reply[1]), self._database.now())

    # The copy in the blob store: one blob per change, the last one counts

    def restore(self) -> int:
        """Bring back every endpoint of the blob store that Redis has not, and return how many.

        One that was disabled by itself is enabled again: only what was asked for is kept there.
        """
        latest: dict[str, str] = {}
        after: str | None = None
        while True:
            page = self._blobs.list(WEBHOOKS_PREFIX, after=after)
            for info in page.items:
                latest[info.key.removeprefix(WEBHOOKS_PREFIX).split("/")[0]] = info.key
            if page.next is None:
                break
            after = page.next
        restored = 0
        for name, key in sorted(latest.items()):
            kept = json.loads(self._blobs.get(key))
            if name.startswith(_TENANT):
                where = self._database.key("tenant", kept["tenant"], "webhook-secrets")
                self._database.call("setnx", where, kept["secrets"])
            elif not self._database.call("exists", self._database.key("webhook", name)):
                fields = json.dumps(kept["fields"])
                self._database.run("webhook_create", name, kept["tenant"], fields, 0)
                restored += 1
        return restored

    def _keep_known(self, endpoint_id: str) -> None:
        fields = self._fields(None, endpoint_id)
        kept = {name: fields[name] for name in _KEPT if name in fields}
        if kept["state"] == "disabled" and kept["reason"] != DisabledReason.BY_REQUEST:
            kept |= {"state": "enabled", "reason": "", "disabled": ""}
        kept |= {"failures": "0", "failing": "", "succeeded": ""}
        revision = int(fields["revision"])
        self._keep(endpoint_id, revision, {"tenant": fields["tenant"], "fields": kept})

    def _kept_first(self, tenant: str) -> str:
        """Return what is kept of a tenant's secrets; the first is made if there is none."""
        name = f"{_TENANT}{tenant}"
        while True:
            kept = self._blobs.list(f"{WEBHOOKS_PREFIX}{name}/").items
            if kept:
                with suppress(BlobNotFound):  # a rotation has just put another in its place
                    return str(json.loads(self._blobs.get(kept[-1].key))["secrets"])
            else:
                first = secrets_to_text([SigningSecret(new_secret(), self._database.now())])
                # Under one key, whoever makes it: of two at a time only one is kept.
                self._keep(name, 0, {"tenant": tenant, "secrets": first})

    def _keep_tenant(self, tenant: str, found: tuple[SigningSecret, ...]) -> None:
        number = round(found[0].created_at.timestamp() * 1000)
        self._keep(
            f"{_TENANT}{tenant}", number, {"tenant": tenant, "secrets": secrets_to_text(found)}
        )

    def _keep(self, name: str, number: int, content: Mapping[str, Any]) -> None:
        key = f"{WEBHOOKS_PREFIX}{name}/{number:015d}.json"
        try:
            self._blobs.put(key, json.dumps(content).encode(), media_type=_JSON)
        except BlobExists:
            return  # kept by whoever made the same change
        for info in self._blobs.list(f"{WEBHOOKS_PREFIX}{name}/").items:
            if info.key < key:
                self._blobs.delete(info.key)

    def _discard(self, name: str) -> None:
        for info in self._blobs.list(f"{WEBHOOKS_PREFIX}{name}/").items:
            self._blobs.delete(info.key)

    # Parts

    def _fields(self, tenant: str | None, endpoint_id: str) -> dict[str, str]:
        fields: dict[str, str] = self._database.call(
            "hgetall", self._database.key("webhook", endpoint_id)
        )
        if not fields or (tenant is not None and fields["tenant"] != tenant):
            raise NotFound("webhook", endpoint_id)
        return fields

    def _checked(
        self, *, url: str | None, events: Iterable[str] | None, description: str | None
    ) -> dict[str, str]:
        fields: dict[str, str] = {}
        if url is not None:
            fields["url"] = check_webhook_url(url, self._settings)
            fields["host"] = host_of(url)
        if events is not None:
            fields["events"] = " ".join(check_events(tuple(events)))
        if description is not None:
            if len(description) > MAX_DESCRIPTION_CHARACTERS:
                raise Invalid(
                    f"a description may have {MAX_DESCRIPTION_CHARACTERS} characters; "
                    f"got {len(description)}"
                )
            fields["description"] = description
        return fields


_TENANT = "tenant-"
_KEPT = (
    "url", "host", "events", "description", "state", "reason", "secrets", "revision", "disabled",
    "created", "updated",
)  # fmt: skip


def _endpoint(fields: Mapping[str, str]) -> Endpoint:
    def moment(name: str) -> datetime | None:
        text = fields.get(name)
        return from_milliseconds(int(text)) if text else None

    reason = fields.get("reason")
    return Endpoint(
        id=fields["id"],
        tenant=fields["tenant"],
        url=fields["url"],
        events=tuple(fields["events"].split()),
        description=fields["description"],
        enabled=fields["state"] == "enabled",
        disabled_reason=DisabledReason(reason) if reason else None,
        disabled_at=moment("disabled"),
        failures=int(fields["failures"]),
        failing_since=moment("failing"),
        succeeded_at=moment("succeeded"),
        created_at=from_milliseconds(int(fields["created"])),
        updated_at=from_milliseconds(int(fields["updated"])),
    )
