"""``/v1/uploads``: large pictures go straight to the storage."""

from __future__ import annotations

from typing import Annotated

from anyio.to_thread import run_sync
from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from api import views
from api.auth import Writer
from api.bodies import read_json
from api.context import Shared
from api.documents import json_body, with_body
from api.problems import COMMON, JSON_BODY, Problem, documented

router = APIRouter(prefix="/v1/uploads", tags=["uploads"])


class NewUpload(BaseModel):
    """What will be uploaded."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"example": {"size": 18349211, "media_type": "image/png"}},
    )

    size: int = Field(ge=1, le=2**40, description="In bytes.")
    media_type: str = Field(
        "application/octet-stream", pattern=r"^[a-z]+/[a-z0-9.+-]{1,80}$", max_length=100
    )
    sha256: Annotated[
        str | None, Field(pattern="^[0-9a-f]{64}$", description="Verified if it is given.")
    ] = None
    filename: Annotated[
        str | None, Field(min_length=1, max_length=255, pattern=r"^[^/\\\x00-\x1f\x7f]+$")
    ] = None


@router.post(
    "",
    status_code=201,
    summary="Announce a direct upload",
    responses=documented(*COMMON, *JSON_BODY, "blobs_unavailable"),
    openapi_extra=with_body(json_body(NewUpload)),
)
async def create(request: Request, shared: Shared, caller: Writer) -> views.UploadView:
    """Get a link to send a picture to; then name the upload in `POST /v1/jobs`.

    The link is good for one PUT with exactly the headers that are told. Nothing is queued before
    size, SHA-256 (where declared) and format of what came are verified.
    """
    wanted = await read_json(request, shared.settings, NewUpload)
    limit = shared.settings.max_upload_bytes
    if wanted.size > limit:
        raise Problem("body_too_large", f"{wanted.size} bytes; {limit} are accepted", limit=limit)

    def announce() -> views.UploadView:
        upload, put = shared.service.uploads.create(caller.tenant, **wanted.model_dump())
        return views.upload_view(upload, put.url, put.method, put.headers)

    return await run_sync(announce)
