"""``/dashboard/queues``: what waits, and holding it back."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Request, Response
from starlette.responses import HTMLResponse

import jobs
from api.context import Context, Shared
from api.dashboard import acts
from api.dashboard.forms import Posted
from api.dashboard.pages import HOME, PageRoute, go, page
from api.dashboard.visitor import Admin
from jobs import JobRecord

router = APIRouter(route_class=PageRoute)

QueueName = Annotated[str, Path(min_length=1, max_length=63)]
_NEXT = 10


def _next(shared: Context, queue: str) -> list[JobRecord]:
    """Return the jobs whose turn comes first."""
    database = shared.service.database
    ids = database.call("zrange", database.key("queue", queue), 0, _NEXT - 1)
    return [each for each in shared.service.store.get_many(ids) if each is not None]


@router.get("/queues")
def list_queues(request: Request, shared: Shared, visitor: Admin) -> HTMLResponse:
    """List queues."""
    queues = shared.service.queues.all()
    return page(
        request,
        visitor,
        "queues.html",
        section="queues",
        queues=queues,
        upcoming={each.name: _next(shared, each.name) for each in queues},
        samples=shared.service.history.read(3600),
        limit=shared.settings.queue_limit,
    )


def _known(shared: Context, name: str) -> str:
    if all(each.name != name for each in shared.service.queues.all()):
        raise jobs.NotFound("queue", name)
    return name


@router.post("/queues/{name}/pause")
def pause(
    request: Request, shared: Shared, visitor: Admin, form: Posted, name: QueueName
) -> Response:
    """Accept jobs, but let no worker take one."""
    shared.service.queues.pause(_known(shared, name))
    acts.note(shared, visitor, "queue.pause", name)
    said = f"Queue {name} is paused: running jobs go on, new ones wait."
    return go(request, visitor, f"{HOME}/queues", said)


@router.post("/queues/{name}/resume")
def resume(
    request: Request, shared: Shared, visitor: Admin, form: Posted, name: QueueName
) -> Response:
    """Let workers take jobs again."""
    shared.service.queues.resume(_known(shared, name))
    acts.note(shared, visitor, "queue.resume", name)
    return go(request, visitor, f"{HOME}/queues", f"Queue {name} goes on.")
