"""``/dashboard/workers``: who works, on what, and letting one go home."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Request, Response
from starlette.responses import HTMLResponse

from api.context import Shared
from api.dashboard import acts
from api.dashboard.forms import Posted
from api.dashboard.pages import HOME, PageRoute, go, page
from api.dashboard.routes.overview import is_light
from api.dashboard.visitor import Admin

router = APIRouter(route_class=PageRoute)

WorkerId = Annotated[str, Path(min_length=1, max_length=120)]


@router.get("/workers")
def list_workers(request: Request, shared: Shared, visitor: Admin) -> HTMLResponse:
    """List workers."""
    service = shared.service
    everybody = service.workers.list()
    busy = sorted({each.info.job_id for each in everybody if each.info.job_id})
    working = {each.id: each for each in service.store.get_many(busy) if each is not None}
    return page(
        request,
        visitor,
        "workers.html",
        section="workers",
        workers=[each for each in everybody if not is_light(each)],
        light=[each for each in everybody if is_light(each)],
        working=working,
        lease_seconds=shared.settings.lease_seconds,
    )


@router.post("/workers/{worker_id}/drain")
def drain(
    request: Request, shared: Shared, visitor: Admin, form: Posted, worker_id: WorkerId
) -> Response:
    """Let a worker end its job and take no other."""
    shared.service.workers.drain(worker_id)
    acts.note(shared, visitor, "worker.drain", worker_id)
    said = f"{worker_id} ends what it does and takes no more."
    return go(request, visitor, f"{HOME}/workers", said)


@router.post("/workers/{worker_id}/resume")
def resume(
    request: Request, shared: Shared, visitor: Admin, form: Posted, worker_id: WorkerId
) -> Response:
    """Let a drained worker take jobs again."""
    shared.service.workers.resume(worker_id)
    acts.note(shared, visitor, "worker.resume", worker_id)
    return go(request, visitor, f"{HOME}/workers", f"{worker_id} takes jobs again.")
