"""``/v1/webhooks``: who is told of jobs, and what became of the telling."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field

import jobs
from api import webhook_views as views
from api.auth import Reader, Writer
from api.bodies import read_json
from api.context import Context, Shared
from api.documents import json_body, with_body
from api.problems import COMMON, JSON_BODY, Problem, documented, invalid
from api.routes.jobs import JobId, Moment, find
from jobs import DEFAULT_EVENTS, WEBHOOK_EVENTS, DeliveryState

router = APIRouter(tags=["webhooks"])

_NAMES = [each.type for each in WEBHOOK_EVENTS]
_EVENTS: dict[str, Any] = {"items": {"type": "string", "enum": _NAMES}}
_DAY = 86_400

WebhookId = Annotated[
    str,
    Path(
        min_length=1,
        max_length=80,
        description="Id of the endpoint.",
        examples=["whk_01JD9X7Q3W8E5R2T6Y4V0N1M9B"],
    ),
]
DeliveryId = Annotated[
    str,
    Path(
        min_length=1,
        max_length=80,
        description="Id of the delivery: the message's `webhook-id`.",
        examples=["dlv_6f2c0a9d2b7e4c33a1b2c3d4e5f60718"],
    ),
]
Overlap = Annotated[
    int,
    Query(
        ge=0,
        le=7 * _DAY,
        description="Seconds for which the secrets before sign too.",
    ),
]
Limit = Annotated[int, Query(ge=1, le=500, description="Deliveries on a page.")]
Cursor = Annotated[
    str | None, Query(max_length=512, description="`next_cursor` of the page before.")
]
OfState = Annotated[DeliveryState | None, Query(description="Only these.")]


class NewWebhook(BaseModel):
    """An endpoint to be made."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "example": {
                "url": "https://example.org/hooks/nif",
                "events": ["job.succeeded", "job.failed"],
                "description": "album server",
            }
        },
    )

    url: str = Field(min_length=1, max_length=2048, description="Where messages go, https://.")
    events: list[str] = Field(
        default=list(DEFAULT_EVENTS),
        min_length=1,
        max_length=20,
        description="What it is told of.",
        json_schema_extra=_EVENTS,
    )
    description: str = Field("", max_length=200, description="For people.")


class WebhookChange(BaseModel):
    """What is to be changed of an endpoint; what is not given stays."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"example": {"enabled": True, "events": ["job.succeeded"]}},
    )

    url: str | None = Field(None, min_length=1, max_length=2048)
    events: Annotated[
        list[str] | None, Field(min_length=1, max_length=20, json_schema_extra=_EVENTS)
    ] = None
    description: str | None = Field(None, max_length=200)
    enabled: bool | None = Field(
        None, description="`true` starts anew after an endpoint was disabled."
    )


def _check(shared: Context, url: str | None, events: list[str] | None) -> None:
    """Refuse what is not accepted, by the name of its field."""
    if url is not None:
        try:
            jobs.check_webhook_url(url, shared.settings)
        except jobs.Invalid as error:
            raise invalid("body", "url", str(error)) from None
    for each in events or ():
        if each not in _NAMES:
            accepted = ", ".join(_NAMES)
            raise invalid("body", "events", f"no event {each[:80]!r}; accepted are {accepted}")


@router.post(
    "/v1/webhooks",
    status_code=201,
    summary="Make an endpoint",
    responses=documented(*COMMON, *JSON_BODY, "too_many_webhooks", "blobs_unavailable"),
    openapi_extra=with_body(json_body(NewWebhook)),
)
async def create(request: Request, shared: Shared, caller: Writer) -> views.NewWebhookView:
    """Have an address of yours told of your jobs. The answer has the secret to verify with."""
    wanted = await read_json(request, shared.settings, NewWebhook)
    _check(shared, wanted.url, wanted.events)

    def make() -> views.NewWebhookView:
        endpoint, secret = shared.service.endpoints.create(
            caller.tenant, wanted.url, wanted.events, description=wanted.description
        )
        return views.NewWebhookView(**views.webhook_values(endpoint), secret=secret)

    return await run_sync(make)


@router.get("/v1/webhooks", summary="List endpoints", responses=documented(*COMMON))
def list_webhooks(
    shared: Shared,
    caller: Reader,
    tenant: Annotated[
        str | None,
        Query(max_length=63, description="Administrators: of this tenant, `*` for everybody's."),
    ] = None,
) -> views.WebhookList:
    """List your endpoints, oldest first."""
    if tenant is not None and caller.sees is not None and tenant != caller.tenant:
        raise Problem("forbidden", "only administrators see other tenants' webhooks")
    wanted = caller.tenant if tenant is None else None if tenant == "*" else tenant
    if wanted is not None:
        jobs.check_tenant(wanted)
    found = shared.service.endpoints.list(wanted)
    return views.WebhookList(
        items=tuple(views.WebhookView(**views.webhook_values(each)) for each in found)
    )


@router.get(
    "/v1/webhooks/{webhook_id}",
    summary="See an endpoint",
    responses=documented(*COMMON, "webhook_not_found"),
)
def get(shared: Shared, caller: Reader, webhook_id: WebhookId) -> views.WebhookView:
    """Return an endpoint, how it fares, and why it is disabled if it is."""
    endpoint = shared.service.endpoints.get(caller.sees, webhook_id)
    return views.WebhookView(**views.webhook_values(endpoint))


@router.patch(
    "/v1/webhooks/{webhook_id}",
    summary="Change an endpoint",
    responses=documented(*COMMON, *JSON_BODY, "webhook_not_found", "blobs_unavailable"),
    openapi_extra=with_body(json_body(WebhookChange)),
)
async def change(
    request: Request, shared: Shared, caller: Writer, webhook_id: WebhookId
) -> views.WebhookView:
    """Change URL, events or description, disable it, or enable it again."""
    wanted = await read_json(request, shared.settings, WebhookChange)
    _check(shared, wanted.url, wanted.events)

    def write() -> views.WebhookView:
        endpoint = shared.service.endpoints.update(
            caller.sees,
            webhook_id,
            url=wanted.url,
            events=wanted.events,
            description=wanted.description,
            enabled=wanted.enabled,
        )
        return views.WebhookView(**views.webhook_values(endpoint))

    return await run_sync(write)


@router.delete(
    "/v1/webhooks/{webhook_id}",
    status_code=204,
    summary="Delete an endpoint",
    responses=documented(*COMMON, "webhook_not_found", "blobs_unavailable"),
)
def delete(shared: Shared, caller: Writer, webhook_id: WebhookId) -> None:
    """Delete an endpoint. What was still to be sent to it is not sent."""
    shared.service.endpoints.delete(caller.sees, webhook_id)


@router.get(
    "/v1/webhooks/{webhook_id}/secret",
    summary="See an endpoint's secrets",
    responses=documented(*COMMON, "webhook_not_found"),
)
def secret(shared: Shared, caller: Writer, webhook_id: WebhookId) -> views.SigningSecretsView:
    """Return the secrets that messages are signed with, to a key that may write."""
    return views.secrets_view(shared.service.endpoints.secrets(caller.sees, webhook_id))


@router.post(
    "/v1/webhooks/{webhook_id}/rotate",
    summary="Rotate an endpoint's secret",
    responses=documented(*COMMON, "webhook_not_found", "blobs_unavailable"),
)
def rotate(
    shared: Shared, caller: Writer, webhook_id: WebhookId, overlap_seconds: Overlap = _DAY
) -> views.SigningSecretsView:
    """Make a new secret. For a while the one before signs too, so that you can change over."""
    overlap = timedelta(seconds=overlap_seconds)
    found = shared.service.endpoints.rotate(caller.sees, webhook_id, overlap=overlap)
    return views.secrets_view(found)


@router.post(
    "/v1/webhooks/{webhook_id}/test",
    status_code=202,
    summary="Send a test",
    responses=documented(*COMMON, "webhook_not_found", "webhook_disabled"),
)
def test(shared: Shared, caller: Writer, webhook_id: WebhookId) -> views.DeliveryView:
    """Send a message of type `webhook.test`; the delivery tells how it went."""
    delivery_id = shared.service.endpoints.test(caller.sees, webhook_id)
    return views.delivery_view(shared.service.deliveries.get(caller.sees, delivery_id))


@router.get(
    "/v1/webhooks/{webhook_id}/deliveries",
    summary="List an endpoint's deliveries",
    responses=documented(*COMMON, "webhook_not_found"),
)
def list_of_webhook(
    shared: Shared,
    caller: Reader,
    webhook_id: WebhookId,
    state: OfState = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> views.DeliveryList:
    """List what was sent to an endpoint, or is to be, newest first."""
    endpoint = shared.service.endpoints.get(caller.sees, webhook_id)
    page = shared.service.deliveries.page(
        endpoint_id=endpoint.id, state=state, limit=limit, cursor=cursor
    )
    return views.delivery_list(page)


@router.post(
    "/v1/webhooks/{webhook_id}/replay",
    status_code=202,
    summary="Replay all that failed",
    responses=documented(*COMMON, "webhook_not_found", "webhook_disabled"),
)
def replay_failed(
    shared: Shared, caller: Writer, webhook_id: WebhookId, since: Moment = None
) -> views.ReplayedView:
    """Send everything again that could not be delivered, or only what was made since a time.

    Messages keep their `webhook-id`. Progress is left out.
    """
    since = _aware(since)
    endpoint = shared.service.endpoints.get(caller.sees, webhook_id)
    replayed = shared.service.deliveries.replay_failed(endpoint.id, since=since)
    return views.ReplayedView(replayed=replayed)


def _aware(moment: datetime | None) -> datetime | None:
    if moment is not None and moment.tzinfo is None:
        raise invalid("query", "since", "a time zone is needed, such as Z")
    return moment


@router.get(
    "/v1/webhooks/deliveries/{delivery_id}",
    summary="See a delivery",
    responses=documented(*COMMON, "delivery_not_found"),
)
def get_delivery(shared: Shared, caller: Reader, delivery_id: DeliveryId) -> views.DeliveryView:
    """Return what is sent and every attempt to."""
    return views.delivery_view(shared.service.deliveries.get(caller.sees, delivery_id))


@router.post(
    "/v1/webhooks/deliveries/{delivery_id}/replay",
    status_code=202,
    summary="Replay a delivery",
    responses=documented(*COMMON, "delivery_not_found", "webhook_not_found", "webhook_disabled"),
)
def replay(shared: Shared, caller: Writer, delivery_id: DeliveryId) -> views.DeliveryView:
    """Send a message again, under the same `webhook-id`; one that waits is sent now."""
    return views.delivery_view(shared.service.deliveries.replay(caller.sees, delivery_id))


@router.get(
    "/v1/webhook-secret",
    summary="See the secrets for jobs' own webhooks",
    responses=documented(*COMMON, "blobs_unavailable"),
)
def own_secret(shared: Shared, caller: Writer) -> views.SigningSecretsView:
    """Return the secrets that messages to the `webhook` of a job are signed with."""
    return views.secrets_view(shared.service.endpoints.tenant_secrets(caller.tenant))


@router.post(
    "/v1/webhook-secret/rotate",
    summary="Rotate the secret for jobs' own webhooks",
    responses=documented(*COMMON, "blobs_unavailable"),
)
def rotate_own(
    shared: Shared, caller: Writer, overlap_seconds: Overlap = _DAY
) -> views.SigningSecretsView:
    """Make a new secret. For a while the one before signs too."""
    overlap = timedelta(seconds=overlap_seconds)
    return views.secrets_view(
        shared.service.endpoints.rotate_tenant(caller.tenant, overlap=overlap)
    )


@router.get(
    "/v1/jobs/{job_id}/deliveries",
    summary="List a job's deliveries",
    responses=documented(*COMMON, "job_not_found"),
)
def list_of_job(
    shared: Shared,
    caller: Reader,
    job_id: JobId,
    state: OfState = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> views.DeliveryList:
    """List what was told of a job, to endpoints and to its own webhook, newest first."""
    record = find(shared, caller, job_id)
    page = shared.service.deliveries.page(job_id=record.id, state=state, limit=limit, cursor=cursor)
    return views.delivery_list(page)
