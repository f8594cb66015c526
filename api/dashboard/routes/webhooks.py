"""``/dashboard/webhooks``: who is told of jobs, what became of the telling, and telling again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from starlette.responses import HTMLResponse

import jobs
from api.context import Shared
from api.dashboard import acts
from api.dashboard.forms import Posted
from api.dashboard.pages import HOME, PageRoute, go, page, safe_path
from api.dashboard.visitor import Reader, Visitor, Writer
from api.problems import invalid
from api.routes.webhooks import DeliveryId, WebhookId
from jobs import WEBHOOK_EVENTS, DeliveryState, Endpoint

router = APIRouter(route_class=PageRoute)

PER_PAGE = 50
Place = Annotated[str, Query(max_length=512)]
OfState = Annotated[str, Query(max_length=20)]


def _counts(shared: Shared, endpoints: Sequence[Endpoint]) -> dict[str, dict[DeliveryState, int]]:
    """Return the deliveries to some endpoints by state, all in one round trip."""
    database = shared.service.database
    with database.pipeline() as pipeline:
        for each in endpoints:
            for state in DeliveryState:
                pipeline.zcard(database.key("webhook", each.id, "deliveries", state))
        numbers = iter(pipeline.execute())
    return {each.id: {state: next(numbers) for state in DeliveryState} for each in endpoints}


def _page(
    request: Request,
    shared: Shared,
    visitor: Visitor,
    secret: str = "",
    of: str = "",
    before: str = "",
) -> HTMLResponse:
    service = shared.service
    everyone = service.endpoints.list(visitor.sees)
    # Ids sort by time.
    older = sorted(
        (each for each in everyone if not before or each.id < before),
        key=lambda each: each.id,
        reverse=True,
    )
    endpoints = older[:PER_PAGE]
    tenant = visitor.key.tenant
    return page(
        request,
        visitor,
        "webhooks.html",
        section="webhooks",
        endpoints=endpoints,
        before=before,
        following=endpoints[-1].id if len(older) > PER_PAGE else "",
        total=len(everyone),
        counts=_counts(shared, endpoints),
        deliveries=service.deliveries.page(tenant=tenant, limit=20).deliveries,
        urls={each.id: each.url for each in everyone},
        events=WEBHOOK_EVENTS,
        secret=secret,
        secret_of=of,
        tenant=tenant,
        public_url=shared.settings.public_url,
    )


@router.get("/webhooks")
def list_webhooks(
    request: Request, shared: Shared, visitor: Reader, before: Place = ""
) -> HTMLResponse:
    """List endpoints, newest first, and the latest deliveries of the visitor's own tenant."""
    return _page(request, shared, visitor, before=before)


@router.post("/webhooks")
def create(request: Request, shared: Shared, visitor: Writer, form: Posted) -> HTMLResponse:
    """Make an endpoint of the visitor's tenant, and show its secret."""
    url = form.one("url")
    try:
        jobs.check_webhook_url(url, shared.settings)
    except jobs.Invalid as error:
        raise invalid("form", "url", str(error)) from None
    endpoint, secret = shared.service.endpoints.create(
        visitor.key.tenant, url, form.many("event"), description=form.one("description")[:200]
    )
    acts.note(shared, visitor, "webhook.create", endpoint.id, url)
    return _page(request, shared, visitor, secret, endpoint.id)


@router.get("/webhooks/{webhook_id}")
def endpoint(
    request: Request,
    shared: Shared,
    visitor: Reader,
    webhook_id: WebhookId,
    state: OfState = "",
    cursor: Place = "",
) -> HTMLResponse:
    """Show an endpoint and its deliveries."""
    service = shared.service
    try:
        only = DeliveryState(state) if state else None
    except ValueError:
        accepted = ", ".join(DeliveryState)
        raise invalid("query", "state", f"one of {accepted} is accepted") from None
    found = service.endpoints.get(visitor.sees, webhook_id)
    listed = service.deliveries.page(
        endpoint_id=found.id, state=only, limit=PER_PAGE, cursor=cursor or None
    )
    return page(
        request,
        visitor,
        "webhook.html",
        section="webhooks",
        endpoint=found,
        counts=service.deliveries.counts(endpoint_id=found.id),
        deliveries=listed.deliveries,
        following=listed.next_cursor,
        cursor=cursor,
        state=only,
        delivery_states=list(DeliveryState),
        urls={found.id: found.url},
        here=f"{HOME}/webhooks/{found.id}",
    )


@router.post("/webhooks/{webhook_id}/test")
def test(
    request: Request, shared: Shared, visitor: Writer, form: Posted, webhook_id: WebhookId
) -> Response:
    """Send a test message."""
    shared.service.endpoints.test(visitor.sees, webhook_id)
    acts.note(shared, visitor, "webhook.test", webhook_id)
    said = "A test message is on its way."
    return go(request, visitor, f"{HOME}/webhooks/{webhook_id}", said)


@router.post("/webhooks/{webhook_id}/enable")
def enable(
    request: Request, shared: Shared, visitor: Writer, form: Posted, webhook_id: WebhookId
) -> Response:
    """Send to an endpoint again."""
    shared.service.endpoints.update(visitor.sees, webhook_id, enabled=True)
    acts.note(shared, visitor, "webhook.enable", webhook_id)
    return go(request, visitor, f"{HOME}/webhooks/{webhook_id}", "Enabled.")


@router.post("/webhooks/{webhook_id}/disable")
def disable(
    request: Request, shared: Shared, visitor: Writer, form: Posted, webhook_id: WebhookId
) -> Response:
    """Send nothing to an endpoint until it is enabled."""
    shared.service.endpoints.update(visitor.sees, webhook_id, enabled=False)
    acts.note(shared, visitor, "webhook.disable", webhook_id)
    said = "Disabled: nothing is sent until it is enabled."
    return go(request, visitor, f"{HOME}/webhooks/{webhook_id}", said)


@router.post("/webhooks/{webhook_id}/rotate")
def rotate(
    request: Request, shared: Shared, visitor: Writer, form: Posted, webhook_id: WebhookId
) -> HTMLResponse:
    """Make a new secret; for a day the one before signs too."""
    found = shared.service.endpoints.rotate(visitor.sees, webhook_id)
    acts.note(shared, visitor, "webhook.rotate", webhook_id)
    return _page(request, shared, visitor, found[0].secret, webhook_id)


@router.post("/webhooks/{webhook_id}/delete")
def delete(
    request: Request, shared: Shared, visitor: Writer, form: Posted, webhook_id: WebhookId
) -> Response:
    """Delete an endpoint, after asking back."""
    found = shared.service.endpoints.get(visitor.sees, webhook_id)
    here = f"{HOME}/webhooks/{found.id}"
    if not form.confirmed:
        return page(
            request,
            visitor,
            "confirm.html",
            section="webhooks",
            title="Delete this endpoint?",
            text=f"Nothing more is sent to {found.url}, not even what waits.",
            act=f"{here}/delete",
            fields=[],
            button="Delete the endpoint",
            danger=True,
            back=here,
            records=[],
            more=0,
        )
    shared.service.endpoints.delete(visitor.sees, found.id)
    acts.note(shared, visitor, "webhook.delete", found.id, found.url)
    return go(request, visitor, f"{HOME}/webhooks", "The endpoint is deleted.")


@router.post("/webhooks/{webhook_id}/replay")
def replay_failed(
    request: Request, shared: Shared, visitor: Writer, form: Posted, webhook_id: WebhookId
) -> Response:
    """Send everything again that could not be delivered."""
    found = shared.service.endpoints.get(visitor.sees, webhook_id)
    number = shared.service.deliveries.replay_failed(found.id)
    acts.note(shared, visitor, "webhook.replay", found.id, f"{number} deliveries")
    said = f"{number} {'delivery is' if number == 1 else 'deliveries are'} sent again."
    return go(request, visitor, f"{HOME}/webhooks/{found.id}", said)


@router.post("/deliveries/{delivery_id}/replay")
def replay(
    request: Request, shared: Shared, visitor: Writer, form: Posted, delivery_id: DeliveryId
) -> Response:
    """Send one message again."""
    shared.service.deliveries.replay(visitor.sees, delivery_id)
    acts.note(shared, visitor, "delivery.replay", delivery_id)
    back = safe_path(form.one("back", f"{HOME}/webhooks"))
    return go(request, visitor, back, "The message is sent again.")
