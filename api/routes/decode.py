"""``/v1/decode``: a .nif file in, a picture out, and nothing kept."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import Response

from api import fields, uploads
from api.auth import Reader
from api.context import Shared
from api.decoding import ImageFormat, View, checked
from api.documents import decode_form, with_body
from api.downloads import FileResponse, attachment
from api.problems import COMMON, documented
from api.routes.jobs import only_file
from api.routes.results import parsed_region

router = APIRouter(prefix="/v1/decode", tags=["results"])

_HEADER_BYTES = 64 * 1024


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid")

    format: ImageFormat = ImageFormat.PNG
    width: Annotated[int | None, Field(ge=1, le=65_535)] = None
    height: Annotated[int | None, Field(ge=1, le=65_535)] = None
    region: Annotated[str | None, Field(pattern=r"^\d{1,9},\d{1,9},\d{1,9},\d{1,9}$")] = None


@router.post(
    "",
    response_class=Response,
    response_model=None,
    summary="Decode a .nif file",
    responses=documented(
        *COMMON,
        "malformed_request",
        "upload_too_slow",
        "body_too_large",
        "too_many_files",
        "unsupported_media_type",
        "not_nif",
        "corrupt_nif",
        "too_many_pixels",
        "decoder_busy",
        also={
            200: {
                "description": "The picture.",
                "content": {
                    each.media_type: {"schema": {"type": "string", "format": "binary"}}
                    for each in ImageFormat
                },
            }
        },
    ),
    openapi_extra=with_body(decode_form()),
)
async def decode(request: Request, shared: Shared, caller: Reader) -> Response:
    """Render a file at any size, or a part of it."""
    with await uploads.read_form(request, shared.settings, max_files=1) as form:
        try:
            asked = _Asked.model_validate(
                {name: text for name, text in form.fields.items() if text}
            )
        except ValidationError as error:
            raise fields.refuse(error, "form") from None
        file = only_file(form)
        view = checked(
            View(asked.format, asked.width, asked.height, parsed_region(asked.region)),
            file.read(0, _HEADER_BYTES),
            shared.settings,
        )
        picture = await shared.decoder.render(lambda path: _write(file, path), view)
    shared.metrics.decodes.labels("fresh").inc()
    name = (file.filename or "picture").rpartition(".")[0] or "picture"
    return FileResponse(
        picture,
        media_type=view.format.media_type,
        headers=attachment(f"{name}.{view.format}") | {"Cache-Control": "no-store"},
    )


def _write(file: uploads.File, path: Path) -> None:
    file.file.seek(0)
    with path.open("wb") as target:
        shutil.copyfileobj(file.file, target)
