"""``/dashboard/jobs/{id}/original`` and the like: what the job page shows and compares."""

from __future__ import annotations

from typing import Annotated

from anyio.to_thread import run_sync
from fastapi import APIRouter, Header, Request, Response
from starlette.responses import JSONResponse

from api.context import Shared
from api.dashboard.pages import PageRoute
from api.dashboard.visitor import Reader
from api.decoding import ImageFormat
from api.downloads import download
from api.pictures import Pictures
from api.problems import Problem
from api.routes import events, results
from api.routes.jobs import JobId, find
from jobs import State

router = APIRouter(route_class=PageRoute)

_KEEP = {"Cache-Control": "private, max-age=3600"}
IfNoneMatch = Annotated[str | None, Header(alias="If-None-Match")]


def _pictures(request: Request) -> Pictures:
    found = request.app.state.pictures
    assert isinstance(found, Pictures)
    return found


@router.get("/jobs/{job_id}/original")
async def original(
    request: Request,
    shared: Shared,
    visitor: Reader,
    job_id: JobId,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """Send the picture as the codec saw it, as PNG, from the store in pieces."""
    record = await run_sync(find, shared, visitor.caller, job_id)
    found = await _pictures(request).original(shared.service, record)

    def send() -> Response:
        return download(
            shared.service.blobs,
            found.key,
            size=found.size,
            tag=f'"{found.etag}"',
            media_type="image/png",
            headers=_KEEP,
            range_header=None,
            if_range=None,
            if_none_match=if_none_match,
        )

    return await run_sync(send)


@router.get("/jobs/{job_id}/image")
async def image(
    shared: Shared, visitor: Reader, job_id: JobId, if_none_match: IfNoneMatch = None
) -> Response:
    """Return the decoded result, as PNG."""
    return await results.image(
        shared, visitor.caller, job_id, ImageFormat.PNG, if_none_match=if_none_match
    )


@router.get("/jobs/{job_id}/previews/{number}")
def preview(
    shared: Shared,
    visitor: Reader,
    job_id: JobId,
    number: events.Number,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """Return a picture of how far the encode was."""
    return events.preview(shared, visitor.caller, job_id, number, if_none_match)


@router.get("/jobs/{job_id}/result")
def result(shared: Shared, visitor: Reader, job_id: JobId) -> Response:
    """Download the .nif file."""
    return results.result(shared, visitor.caller, job_id)


@router.get("/jobs/{job_id}/rivals")
async def rivals(request: Request, shared: Shared, visitor: Reader, job_id: JobId) -> JSONResponse:
    """Return what JPEG, WebP and AVIF make of this very picture; measured once, then kept."""
    record = await run_sync(find, shared, visitor.caller, job_id)
    if record.state is not State.SUCCEEDED or record.result is None:
        raise Problem("no_result", f"the job is {record.state}")
    found = await _pictures(request).rivals(shared.service, record)
    own = {"bytes": record.result.size} | {
        name: (record.report or {}).get(name) for name in ("bpp", "psnr_db", "ms_ssim")
    }
    return JSONResponse({"nif": own, "rivals": found}, headers=_KEEP)
