"""``/v1/queues``: how much waits, and pausing it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path

import jobs
from api import views
from api.auth import Admin
from api.context import Context, Shared
from api.problems import COMMON, documented

router = APIRouter(prefix="/v1/queues", tags=["administration"])

QueueName = Annotated[str, Path(min_length=1, max_length=63, description="Name of the queue.")]
_ONE = documented(*COMMON, "queue_not_found")


def _known(shared: Context, name: str) -> str:
    if all(each.name != name for each in shared.service.queues.all()):
        raise jobs.NotFound("queue", name)
    return name


@router.get("", summary="List queues", responses=documented(*COMMON))
def list_queues(shared: Shared, caller: Admin) -> views.QueueList:
    """List the queues, their length, and the age of what waits longest."""
    found = shared.service.queues.all()
    return views.QueueList(items=tuple(views.queue_view(each) for each in found))


@router.post("/{name}/pause", summary="Pause a queue", responses=_ONE)
def pause(shared: Shared, caller: Admin, name: QueueName) -> views.QueueView:
    """Accept jobs, but let no worker take one until the queue is resumed."""
    shared.service.queues.pause(_known(shared, name))
    return views.queue_view(shared.service.queues.stats(name))


@router.post("/{name}/resume", summary="Resume a queue", responses=_ONE)
def resume(shared: Shared, caller: Admin, name: QueueName) -> views.QueueView:
    """Let workers take jobs again."""
    shared.service.queues.resume(_known(shared, name))
    return views.queue_view(shared.service.queues.stats(name))
