"""``/v1/workers``: who works, and letting one end its job and take no more."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path

from api import views
from api.auth import Admin
from api.context import Shared
from api.problems import COMMON, documented

router = APIRouter(prefix="/v1/workers", tags=["administration"])

WorkerId = Annotated[str, Path(min_length=1, max_length=200, description="Id of the worker.")]
_ONE = documented(*COMMON, "worker_not_found")


@router.get("", summary="List workers", responses=documented(*COMMON))
def list_workers(shared: Shared, caller: Admin) -> views.WorkerList:
    """List the workers that were heard of lately."""
    found = shared.service.workers.list()
    return views.WorkerList(items=tuple(views.worker_view(each) for each in found))


@router.get("/{worker_id}", summary="See a worker", responses=_ONE)
def get(shared: Shared, caller: Admin, worker_id: WorkerId) -> views.WorkerView:
    """Return what a worker last said."""
    return views.worker_view(shared.service.workers.get(worker_id))


@router.post("/{worker_id}/drain", summary="Drain a worker", responses=_ONE)
def drain(shared: Shared, caller: Admin, worker_id: WorkerId) -> views.WorkerView:
    """Let a worker end its job and take no other."""
    return views.worker_view(shared.service.workers.drain(worker_id))


@router.post("/{worker_id}/resume", summary="Resume a worker", responses=_ONE)
def resume(shared: Shared, caller: Admin, worker_id: WorkerId) -> views.WorkerView:
    """Let a drained worker take jobs again."""
    return views.worker_view(shared.service.workers.resume(worker_id))
