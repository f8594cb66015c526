"""``/v1/blobs/{token}``: where presigned links lead while blobs are kept in files.

With S3 the links lead to S3 itself, and this address is not there.
"""

from __future__ import annotations

from typing import Annotated

from anyio.to_thread import run_sync
from fastapi import APIRouter, Header, Path, Request, Response

import jobs
from api import uploads
from api.context import Context, Shared
from api.downloads import attachment, download
from api.problems import Problem, documented
from jobs import FileBlobs, Grant

router = APIRouter(prefix="/v1/blobs", tags=["blobs"])

Token = Annotated[str, Path(min_length=1, max_length=2048, description="Signed; from a link.")]
_PROBLEMS = (
    "unknown_parameter",
    "invalid_parameter",
    "url_refused",
    "headers_too_large",
    "blobs_unavailable",
    "internal",
)


def _grant(shared: Context, token: str, method: str) -> tuple[FileBlobs, Grant]:
    blobs = shared.service.blobs
    if not isinstance(blobs, FileBlobs):
        raise Problem("not_found", "the storage is reached by its own links")
    return blobs, blobs.verify(token, method)


@router.get(
    "/{token}",
    summary="Follow a download link",
    response_class=Response,
    response_model=None,
    responses=documented(
        *_PROBLEMS,
        "not_found",
        "range_unsatisfiable",
        also={
            200: {"description": "The file.", "content": {"application/octet-stream": {}}},
            206: {"description": "The asked range."},
            304: {"description": "Nothing changed since the ETag in `If-None-Match`."},
        },
    ),
)
def get(
    shared: Shared,
    token: Token,
    range_: Annotated[str | None, Header(alias="Range")] = None,
    if_range: Annotated[str | None, Header(alias="If-Range")] = None,
    if_none_match: Annotated[str | None, Header(alias="If-None-Match")] = None,
) -> Response:
    """Return what a presigned link is for. No key is needed: the link is the right."""
    blobs, grant = _grant(shared, token, "GET")
    try:
        info = blobs.head(grant.key)
    except jobs.BlobNotFound:
        raise Problem("not_found", "the file is gone") from None
    return download(
        blobs,
        info.key,
        size=info.size,
        tag=f'"{info.sha256 or info.etag}"',
        media_type=grant.media_type or info.media_type,
        headers=attachment(grant.filename or "download"),
        range_header=range_,
        if_range=if_range,
        if_none_match=if_none_match,
    )


@router.put(
    "/{token}",
    status_code=201,
    summary="Follow an upload link",
    response_class=Response,
    response_model=None,
    responses=documented(
        *_PROBLEMS,
        "upload_used",
        "upload_too_slow",
        "body_too_large",
        "malformed_request",
        "upload_damaged",
    ),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"*/*": {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
async def put(request: Request, shared: Shared, token: Token) -> Response:
    """Send the bytes of an announced upload, exactly as many as were declared."""
    blobs, grant = await run_sync(_grant, shared, token, "PUT")
    limit = shared.settings.max_upload_bytes if grant.size is None else grant.size
    file = await uploads.read_file(request, shared.settings, limit)
    try:
        if grant.size is not None and file.size != grant.size:
            raise Problem("upload_damaged", f"{file.size} bytes came, {grant.size} were declared")
        kind = grant.media_type or "application/octet-stream"
        file.file.seek(0)
        info = await run_sync(lambda: blobs.put(grant.key, file.file, media_type=kind))
    except jobs.BlobExists:
        raise Problem("upload_used", "the bytes of this upload already came") from None
    finally:
        file.close()
    return Response(status_code=201, headers={"ETag": f'"{info.etag}"'})
