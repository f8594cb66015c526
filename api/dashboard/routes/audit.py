"""``/dashboard/audit``: who did what."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import HTMLResponse

from api.context import Shared
from api.dashboard.pages import HOME, PageRoute, page
from api.dashboard.visitor import Admin
from jobs.audit import KEPT

router = APIRouter(route_class=PageRoute)

PER_PAGE = 100


@router.get("/audit")
def audit(
    request: Request,
    shared: Shared,
    visitor: Admin,
    before: Annotated[str, Query(max_length=42, pattern=r"^(\d{1,20}-\d{1,20})?$")] = "",
) -> HTMLResponse:
    """List acts, newest first."""
    entries = shared.service.audit.read(limit=PER_PAGE, before=before or None)
    more = len(entries) == PER_PAGE
    return page(
        request,
        visitor,
        "audit.html",
        section="audit",
        entries=entries,
        kept=KEPT,
        following=f"{HOME}/audit?before={entries[-1].id}" if more else "",
        before=before,
    )
