"""``/v1/jobs/{id}/result``, ``/image`` and ``/report``: what came of a job."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path
from typing import Annotated, BinaryIO

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Header, Query, Request
from starlette.responses import RedirectResponse, Response

import jobs
from api import views
from api.auth import Reader
from api.caller import Caller
from api.context import Context, Shared
from api.decoding import ImageFormat, View, checked
from api.downloads import FileResponse, attachment, digest, download, matches
from api.pictures import Pictures
from api.problems import COMMON, Problem, documented, invalid, retry_after
from api.routes.jobs import JobId, find
from api.submission import POLL_SECONDS
from jobs import BlobRef, JobRecord, State

router = APIRouter(prefix="/v1/jobs", tags=["results"])

MEDIA_TYPE = "application/x-nif"
_HEADER_BYTES = 64 * 1024

KEPT_RENDERINGS = 8
"""So many renderings of a job are kept, the latest: a thumbnail, a page's picture and the whole one
in two formats or three. Without a bound a reader could fill the storage, a size and region at a
time, 256 MiB each."""

IfNoneMatch = Annotated[
    str | None, Header(alias="If-None-Match", description="ETag of what you have.")
]
Side = Annotated[int | None, Query(ge=1, le=65_535, description="Of the whole picture, in pixels.")]
Region = Annotated[
    str | None,
    Query(
        pattern=r"^\d{1,9},\d{1,9},\d{1,9},\d{1,9}$",
        max_length=40,
        description="x,y,width,height in pixels of the scaled picture.",
        examples=["100,50,320,240"],
    ),
]


def _finished(shared: Context, caller: Caller, job_id: str) -> tuple[JobRecord, BlobRef]:
    """Return a job that succeeded, and its file.

    Raises:
        Problem: ``no_result``.
    """
    record = find(shared, caller, job_id)
    if record.state is State.SUCCEEDED and record.result is not None:
        return record, record.result
    headers = {} if record.state.terminal else retry_after(POLL_SECONDS)
    raise Problem(
        "no_result", f"the job is {record.state}", headers=headers, state=str(record.state)
    )


async def _pictures_of(request: Request) -> Pictures:
    # The dashboard's: what one of them measured the other finds.
    found = request.app.state.pictures
    assert isinstance(found, Pictures)
    return found


def _stem(record: JobRecord) -> str:
    return (record.spec.filename or record.id).rpartition(".")[0] or record.id


@router.get(
    "/{job_id}/result",
    response_class=Response,
    response_model=None,
    summary="Download the .nif file",
    responses=documented(
        *COMMON,
        "job_not_found",
        "no_result",
        "range_unsatisfiable",
        "blobs_unavailable",
        also={
            200: {
                "description": "The file.",
                "content": {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}},
            },
            206: {"description": "The asked range."},
            304: {"description": "Nothing changed since the ETag in `If-None-Match`."},
            307: {"description": "With `redirect=true`: a link that is good for a few minutes."},
        },
    ),
)
def result(
    shared: Shared,
    caller: Reader,
    job_id: JobId,
    redirect: Annotated[
        bool, Query(description="Answer with a presigned link to the storage.")
    ] = False,
    range_: Annotated[
        str | None, Header(alias="Range", description="One range of bytes, `bytes=0-1023`.")
    ] = None,
    if_range: Annotated[
        str | None, Header(alias="If-Range", description="The range only of this ETag.")
    ] = None,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """Download the result, whole or a range of it, or be sent to the storage for it."""
    record, ref = _finished(shared, caller, job_id)
    filename = f"{_stem(record)}.nif"
    if redirect:
        link = shared.service.blobs.presign_get(
            ref.key,
            ttl_seconds=shared.settings.presign_ttl_seconds,
            filename=filename,
            media_type=MEDIA_TYPE,
        )
        return RedirectResponse(link, status_code=307, headers={"Cache-Control": "no-store"})
    try:
        return download(
            shared.service.blobs,
            ref.key,
            size=ref.size,
            tag=f'"{ref.sha256}"',
            media_type=MEDIA_TYPE,
            headers=attachment(filename) | digest(ref.sha256),
            range_header=range_,
            if_range=if_range,
            if_none_match=if_none_match,
        )
    except jobs.BlobNotFound:
        # Deleted between the record and the file.
        raise jobs.NotFound("job", job_id) from None


def parsed_region(text: str | None) -> tuple[int, int, int, int] | None:
    """Read ``x,y,width,height``.

    Raises:
        Problem: ``invalid_parameter``.
    """
    if text is None:
        return None
    try:
        x, y, width, height = (int(part) for part in text.split(","))
    except ValueError:
        raise invalid("query", "region", "x,y,width,height is accepted") from None
    return x, y, width, height


@router.get(
    "/{job_id}/image",
    response_class=Response,
    response_model=None,
    summary="See the result as a picture",
    responses=documented(
        *COMMON,
        "job_not_found",
        "no_result",
        "too_many_pixels",
        "corrupt_nif",
        "decoder_busy",
        "blobs_unavailable",
        also={
            200: {
                "description": "The picture.",
                "content": {
                    each.media_type: {"schema": {"type": "string", "format": "binary"}}
                    for each in ImageFormat
                },
            },
            304: {"description": "Nothing changed since the ETag in `If-None-Match`."},
        },
    ),
)
async def image(
    shared: Shared,
    caller: Reader,
    job_id: JobId,
    format: ImageFormat = ImageFormat.PNG,
    width: Side = None,
    height: Side = None,
    region: Region = None,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """Return the result rendered at any size, or a part of it. The latest renderings are kept."""
    record, ref = await run_sync(_finished, shared, caller, job_id)
    blobs = shared.service.blobs
    asked = View(format, width, height, parsed_region(region))
    head = await run_sync(lambda: blobs.get(ref.key, start=0, end=min(ref.size, _HEADER_BYTES)))
    view = checked(asked, head, shared.settings)
    tag = f'"{hashlib.blake2b(f"{ref.sha256}/{view.name}".encode(), digest_size=16).hexdigest()}"'
    # No ranges: a rendering that is made again later need not have the same bytes.
    headers = {"ETag": tag, "Cache-Control": "private, max-age=3600", "Accept-Ranges": "none"}
    headers |= attachment(f"{_stem(record)}.{view.format}")
    if matches(if_none_match, tag):
        return Response(status_code=304, headers=headers)
    # Beside the job's other files, so that it goes when the job goes.
    folder = f"{record.tenant}/jobs/{record.id}/images/{ref.sha256[:16]}/"
    key = folder + view.name
    media_type = view.format.media_type
    async with shared.decoder.alone(key):
        kept = await run_sync(_kept, shared, key, tag, media_type, headers)
        shared.metrics.decodes.labels("fresh" if kept is None else "cache").inc()
        if kept is not None:
            return kept
        picture = await shared.decoder.render(lambda path: _fetch(shared, ref, path), view)
        try:
            await run_sync(_keep, shared, record, folder, key, picture, media_type)
        except BaseException:
            picture.close()
            raise
    return FileResponse(picture, media_type=media_type, headers=headers)


def _fetch(shared: Context, ref: BlobRef, path: Path) -> None:
    with path.open("wb") as file:
        for piece in shared.service.blobs.stream(ref.key):
            file.write(piece)


def _kept(
    shared: Context, key: str, tag: str, media_type: str, headers: dict[str, str]
) -> Response | None:
    """Return the answer with a rendering that was kept, which is read while it is sent."""
    blobs = shared.service.blobs
    try:
        return download(
            blobs,
            key,
            size=blobs.head(key).size,
            tag=tag,
            media_type=media_type,
            headers=headers,
            range_header=None,
            if_range=None,
            if_none_match=None,
        )
    except jobs.BlobNotFound:
        return None


def _keep(
    shared: Context,
    record: JobRecord,
    folder: str,
    key: str,
    picture: BinaryIO,
    media_type: str,
) -> None:
    """Keep a rendering in place of the oldest.

    That it cannot be kept is no reason not to send it.
    """
    blobs = shared.service.blobs
    with suppress(jobs.BlobExists, jobs.Unavailable):
        blobs.put(key, picture, media_type=media_type)
        try:
            shared.service.get(record.tenant, record.id)
        except jobs.NotFound:
            blobs.delete(key)  # the job was deleted in the meantime
            return
        others = [each for each in blobs.list(folder).items if each.key != key]
        others.sort(key=lambda each: each.modified)
        for each in others[: max(0, len(others) + 1 - KEPT_RENDERINGS)]:
            blobs.delete(each.key)


@router.get(
    "/{job_id}/report",
    summary="Read the report",
    responses=documented(
        *COMMON,
        "job_not_found",
        "no_result",
        "damaged_image",
        "too_many_pixels",
        "decoder_busy",
        "blobs_unavailable",
    ),
)
async def report(
    shared: Shared,
    caller: Reader,
    pictures: Annotated[Pictures, Depends(_pictures_of)],
    job_id: JobId,
    rivals: Annotated[
        bool,
        Query(
            description="Measure JPEG, WebP and AVIF too: seconds, or minutes for large pictures, "
            "when it is asked first."
        ),
    ] = False,
) -> views.ReportView:
    """Return what was measured on the decoded result, with ``rivals=true`` beside JPEG, WebP and
    AVIF of the same picture.
    """
    record, _ = await run_sync(_finished, shared, caller, job_id)
    told = dict(record.report or {})
    if not rivals:
        return views.ReportView(job=record.id, report=told, rivals=None, no_rivals="not_asked")
    try:
        found = await pictures.rivals(shared.service, record)
    except jobs.BlobNotFound:
        await run_sync(find, shared, caller, job_id)  # unless all of the job is gone
        return views.ReportView(job=record.id, report=told, rivals=None, no_rivals="picture_gone")
    measured = tuple(views.RivalView.model_validate(each) for each in found)
    return views.ReportView(job=record.id, report=told, rivals=measured, no_rivals=None)
