"""``/dashboard/dead``: jobs that failed, by reason, and trying them again."""

from __future__ import annotations

from collections import Counter
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import HTMLResponse

from api.context import Shared
from api.dashboard.pages import PageRoute, page
from api.dashboard.visitor import Reader
from jobs import JobFilter, State

router = APIRouter(route_class=PageRoute)

LOOKED_AT = 500
SHOWN = 100


@router.get("/dead")
def dead(
    request: Request,
    shared: Shared,
    visitor: Reader,
    code: Annotated[str, Query(max_length=64)] = "",
) -> HTMLResponse:
    """List failed jobs, the newest, with their reasons."""
    wanted = JobFilter(tenant=visitor.sees, states=frozenset({State.FAILED}))
    listed = shared.service.list(wanted, limit=LOOKED_AT)
    codes = Counter(each.failure.code if each.failure else "unknown" for each in listed.records)
    records = [
        each
        for each in listed.records
        if not code or (each.failure.code if each.failure else "unknown") == code
    ]
    return page(
        request,
        visitor,
        "dead.html",
        section="dead",
        total=shared.service.store.counts(visitor.sees)[State.FAILED],
        looked_at=len(listed.records),
        codes=codes.most_common(),
        code=code,
        records=records[:SHOWN],
        matching=len(records),
        public_url=shared.settings.public_url,
    )
