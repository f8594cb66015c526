"""``/v1/estimate``: time and size before anything is queued."""

from __future__ import annotations

from anyio.to_thread import run_sync
from fastapi import APIRouter, Request

from api import bodies, views
from api.auth import Reader
from api.context import Context, Shared
from api.documents import json_body, with_body
from api.fields import EstimateFields
from api.problems import COMMON, JSON_BODY, documented
from jobs import Parameters

router = APIRouter(prefix="/v1/estimate", tags=["jobs"])


@router.post(
    "",
    summary="Estimate a job",
    responses=documented(
        *COMMON,
        *JSON_BODY,
        "contradictory_parameters",
    ),
    openapi_extra=with_body(json_body(EstimateFields)),
)
async def estimate(request: Request, shared: Shared, caller: Reader) -> views.EstimateView:
    """Tell about how long a picture of that size would take, and how large its file would be.

    The time is what the workers' machines, having measured themselves, are expected to take,
    corrected by what the latest finished jobs took.
    """
    asked = await bodies.read_json(request, shared.settings, EstimateFields)
    parameters = Parameters(
        preset=asked.preset,
        effort=asked.effort,
        quality=asked.quality,
        psnr=asked.psnr,
        bpp=asked.bpp,
        max_bytes=asked.max_bytes,
    )
    return await run_sync(_estimate, shared, parameters, asked.width, asked.height)


def _estimate(
    shared: Context, parameters: Parameters, width: int, height: int
) -> views.EstimateView:
    found = shared.estimator.estimate(parameters, width, height)
    queue = shared.service.queues.stats("encode")
    alive = sum(worker.alive for worker in shared.service.workers.list())
    waiting = (queue.depth + queue.running) * found.seconds / max(1, alive)
    return views.EstimateView(
        seconds=round(found.seconds, 3),
        wait_seconds=round(waiting, 3),
        bytes=found.bytes,
        bpp=round(found.bpp, 5),
        calibrated=found.calibrated,
    )
