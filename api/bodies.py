"""JSON bodies: bounded like every other body, and checked."""

from __future__ import annotations

from fastapi import Request

from api import fields, uploads
from api.problems import Problem
from api.settings import MAX_JSON_BYTES
from jobs import Settings


async def read_json(
    request: Request, settings: Settings, model: type[fields.Model]
) -> fields.Model:
    """Read the body of a request as ``model``.

    FastAPI would read it whole before anything could be counted or timed.

    Raises:
        Problem: ``unsupported_media_type``, ``body_too_large``, ``upload_too_slow``, or what
            :func:`api.fields.from_json` raises.
    """
    kind = uploads.media_type(request)
    if kind != "application/json":
        raise Problem(
            "unsupported_media_type", f"{kind or 'nothing'} is not accepted; send application/json"
        )
    body = await uploads.read_bytes(request, settings, MAX_JSON_BYTES)
    return fields.from_json(model, body)
