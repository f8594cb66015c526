"""What clients see of webhooks: endpoints, secrets, deliveries."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from pydantic import Field

from api.views import View
from jobs import (
    Delivery,
    DeliveryPage,
    DeliveryState,
    DisabledReason,
    Endpoint,
    SigningSecret,
    Trouble,
)

_TIME = "2026-03-01T12:00:00Z"
_LATER = "2026-03-02T12:00:00Z"
_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwSdXLSPTLVIo="

_WEBHOOK: dict[str, Any] = {
    "id": "whk_01JD9X7Q3W8E5R2T6Y4V0N1M9B",
    "tenant": "acme",
    "url": "https://example.org/hooks/nif",
    "events": ["job.succeeded", "job.failed", "job.cancelled"],
    "description": "album server",
    "enabled": True,
    "disabled_reason": None,
    "disabled_at": None,
    "failures": 0,
    "failing_since": None,
    "succeeded_at": _TIME,
    "created_at": _TIME,
    "updated_at": _TIME,
}
_SECRETS: dict[str, Any] = {
    "secrets": [
        {"secret": _SECRET, "created_at": _TIME, "expires_at": None},
        {
            "secret": "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oDUVwRVQ6nxUU=",
            "created_at": "2026-01-01T12:00:00Z",
            "expires_at": _LATER,
        },
    ]
}
_DELIVERY: dict[str, Any] = {
    "id": "dlv_6f2c0a9d2b7e4c33a1b2c3d4e5f60718",
    "webhook": "whk_01JD9X7Q3W8E5R2T6Y4V0N1M9B",
    "url": None,
    "job": "job_01JD9X7Q3W8E5R2T6Y4V0N1M9B",
    "type": "job.succeeded",
    "state": "delivered",
    "failure": None,
    "attempts": 2,
    "log": [
        {"at": _TIME, "status": 503, "failure": "status", "milliseconds": 41},
        {"at": "2026-03-01T12:00:05Z", "status": 204, "failure": None, "milliseconds": 38},
    ],
    "created_at": _TIME,
    "ended_at": "2026-03-01T12:00:05Z",
    "next_attempt_at": None,
    "payload": {
        "type": "job.succeeded",
        "timestamp": _TIME,
        "data": {"job": {"id": "job_01JD9X7Q3W8E5R2T6Y4V0N1M9B", "state": "succeeded"}},
    },
}
WEBHOOK_EXAMPLES: dict[str, dict[str, Any]] = {
    "WebhookView": _WEBHOOK,
    "NewWebhookView": _WEBHOOK | {"secret": _SECRET},
    "SigningSecretsView": _SECRETS,
    "DeliveryView": _DELIVERY,
    "ReplayedView": {"replayed": 12},
}
"""Examples by the name of the view, for the OpenAPI document."""


class WebhookView(View):
    """An endpoint that is told of jobs."""

    id: str
    tenant: str
    url: str
    events: tuple[str, ...] = Field(description="What it is told of.")
    description: str
    enabled: bool
    disabled_reason: DisabledReason | None = Field(
        description="by_request, gone (it answered 410) or failing (for too long)."
    )
    disabled_at: datetime | None
    failures: int = Field(description="Attempts that failed in a row.")
    failing_since: datetime | None
    succeeded_at: datetime | None = Field(description="When it last took a message.")
    created_at: datetime
    updated_at: datetime


class NewWebhookView(WebhookView):
    """A new endpoint with the secret that messages to it are signed with."""

    secret: str


class WebhookList(View):
    """Endpoints, oldest first."""

    items: tuple[WebhookView, ...]


class SigningSecretView(View):
    """A secret that messages are signed with."""

    secret: str = Field(
        description="`whsec_` and base 64, as the Standard Webhooks libraries take it."
    )
    created_at: datetime
    expires_at: datetime | None = Field(description="Until when it signs; null for the newest.")


class SigningSecretsView(View):
    """The secrets in force, newest first. A message has one signature for each."""

    secrets: tuple[SigningSecretView, ...]


class DeliveryAttemptView(View):
    """One attempt to deliver. What the receiver answered besides its status is not kept."""

    at: datetime
    status: int | None = Field(description="Of the answer; null if there was none.")
    failure: Trouble | None
    milliseconds: int


class DeliveryView(View):
    """A message to one receiver, and what became of it."""

    id: str = Field(description="Also the message's `webhook-id`, with every attempt and replay.")
    webhook: str | None = Field(description="The endpoint; null for the job's own webhook.")
    url: str | None = Field(description="The job's own webhook; null for an endpoint.")
    job: str | None = Field(description="Null for a test.")
    type: str
    state: DeliveryState
    failure: Trouble | None = Field(description="Why it, or its latest attempt, failed.")
    attempts: int
    log: tuple[DeliveryAttemptView, ...] = Field(description="The latest attempts, oldest first.")
    created_at: datetime
    ended_at: datetime | None
    next_attempt_at: datetime | None = Field(description="Null unless it is pending.")
    payload: dict[str, Any] = Field(description="What is sent.")


class DeliveryList(View):
    """A page of deliveries, newest first."""

    items: tuple[DeliveryView, ...]
    next_cursor: str | None = Field(description="Send as `cursor` for the next page.")


class ReplayedView(View):
    """How many deliveries are sent again."""

    replayed: int


def webhook_values(endpoint: Endpoint) -> dict[str, Any]:
    """Return the members of an endpoint's view."""
    return {name: getattr(endpoint, name) for name in WebhookView.model_fields}


def secrets_view(found: Iterable[SigningSecret]) -> SigningSecretsView:
    """Return secrets as their owner sees them."""
    return SigningSecretsView(
        secrets=tuple(
            SigningSecretView(
                secret=each.secret, created_at=each.created_at, expires_at=each.expires_at
            )
            for each in found
        )
    )


def delivery_view(delivery: Delivery) -> DeliveryView:
    """Return a delivery as its owner sees it."""
    return DeliveryView(
        id=delivery.id,
        webhook=delivery.endpoint_id,
        url=delivery.url,
        job=delivery.job_id,
        type=delivery.type,
        state=delivery.state,
        failure=delivery.failure,
        attempts=delivery.attempts,
        log=tuple(
            DeliveryAttemptView(
                at=each.at,
                status=each.status,
                failure=each.trouble,
                milliseconds=each.milliseconds,
            )
            for each in delivery.log
        ),
        created_at=delivery.created_at,
        ended_at=delivery.ended_at,
        next_attempt_at=delivery.next_attempt_at,
        payload=json.loads(delivery.body),
    )


def delivery_list(page: DeliveryPage) -> DeliveryList:
    """Return a page of deliveries."""
    return DeliveryList(
        items=tuple(delivery_view(each) for each in page.deliveries),
        next_cursor=page.next_cursor,
    )
