"""``/dashboard/keys``: API keys, made and revoked."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response
from starlette.responses import HTMLResponse

from api.context import Shared
from api.dashboard import acts
from api.dashboard.forms import Posted
from api.dashboard.pages import HOME, PageRoute, go, page
from api.dashboard.visitor import Admin
from api.problems import invalid
from jobs import ApiKey, Scope
from jobs.keys import key_from_hash

router = APIRouter(route_class=PageRoute)

KeyId = Annotated[str, Path(min_length=1, max_length=80)]
_TENANT = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_LONGEST_DAYS = 3650
PER_PAGE = 50
Place = Annotated[str, Query(max_length=80)]


def _some(shared: Shared, before: str) -> tuple[list[ApiKey], str, int]:
    """Return a page of keys, newest first, the place of the next one, and how many there are.

    Ids sort by time. All of them are read, and the keys of one page only.
    """
    database = shared.service.database
    digests: dict[str, str] = database.call("hgetall", database.key("keys"))
    older = sorted((each for each in digests if not before or each < before), reverse=True)
    ids = older[:PER_PAGE]
    with database.pipeline() as pipeline:
        for each in ids:
            pipeline.hgetall(database.key("key", digests[each]))
        keys = [key_from_hash(fields) for fields in pipeline.execute() if fields]
    return keys, ids[-1] if len(older) > PER_PAGE else "", len(digests)


def _page(
    request: Request, shared: Shared, visitor: Admin, fresh: str = "", before: str = ""
) -> HTMLResponse:
    found, following, total = _some(shared, before)
    return page(
        request,
        visitor,
        "keys.html",
        section="keys",
        keys=found,
        before=before,
        following=following,
        total=total,
        fresh=fresh,
        scopes=list(Scope),
        public_url=shared.settings.public_url,
    )


@router.get("/keys")
def list_keys(request: Request, shared: Shared, visitor: Admin, before: Place = "") -> HTMLResponse:
    """List keys, the newest first."""
    return _page(request, shared, visitor, before=before)


@router.post("/keys")
def create(request: Request, shared: Shared, visitor: Admin, form: Posted) -> HTMLResponse:
    """Make a key, and show its secret this once."""
    tenant = form.one("tenant")
    if not _TENANT.fullmatch(tenant):
        message = "up to 63 lower-case letters, digits and hyphens are accepted"
        raise invalid("form", "tenant", message)
    days = form.one("days")
    if days and not (days.isdecimal() and 1 <= int(days) <= _LONGEST_DAYS):
        raise invalid("form", "days", f"1 to {_LONGEST_DAYS} days, or nothing, are accepted")
    try:
        scopes = [Scope(each) for each in form.many("scope")]
    except ValueError as error:
        raise invalid("form", "scope", str(error)) from None
    if not scopes:
        raise invalid("form", "scope", "at least one is needed")
    expires = datetime.now(UTC) + timedelta(days=int(days)) if days else None
    key, secret = shared.service.keys.create(
        tenant, scopes, name=form.one("name")[:100], expires_at=expires
    )
    acts.note(shared, visitor, "key.create", key.id, f"{tenant}: {', '.join(sorted(scopes))}")
    return _page(request, shared, visitor, fresh=secret)


@router.post("/keys/{key_id}/revoke")
def revoke(
    request: Request, shared: Shared, visitor: Admin, form: Posted, key_id: KeyId
) -> Response:
    """Put a key out of force, after asking back."""
    key = shared.service.keys.get(key_id)
    if not form.confirmed:
        own = (
            " It is the key of this very session, which ends with it."
            if (key.id == visitor.key.id)
            else ""
        )
        return page(
            request,
            visitor,
            "confirm.html",
            section="keys",
            title=f"Revoke {key.name or key.id}?",
            text=f"Whoever uses this key of {key.tenant} is shut out at once and for good.{own}",
            act=f"{HOME}/keys/{key.id}/revoke",
            fields=[],
            button="Revoke the key",
            danger=True,
            back=f"{HOME}/keys",
            records=[],
            more=0,
        )
    shared.service.keys.revoke(key.id)
    acts.note(shared, visitor, "key.revoke", key.id, f"{key.tenant}: {key.name}")
    return go(request, visitor, f"{HOME}/keys", f"{key.name or key.id} is revoked.")
