"""Sending stored files: whole, in part, or not at all where the client has them already."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterator, Mapping
from typing import BinaryIO
from urllib.parse import quote

from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from api.problems import Problem
from jobs import Blobs

_RANGE = re.compile(r"bytes=(?:(\d{1,15})-(\d{0,15})|-(\d{1,15}))", re.IGNORECASE)
_SMALL = 256 * 1024
_PIECE = 256 * 1024


def attachment(filename: str) -> dict[str, str]:
    """Return the header that makes browsers save rather than show (RFC 6266)."""
    plain = re.sub(r"[^A-Za-z0-9._ -]", "_", filename)
    value = f'attachment; filename="{plain}"'
    if plain != filename:
        value += f"; filename*=UTF-8''{quote(filename, safe='')}"
    return {"Content-Disposition": value}


def digest(sha256: str) -> dict[str, str]:
    """Return the header that tells the SHA-256 of the whole file (RFC 9530)."""
    text = base64.b64encode(bytes.fromhex(sha256)).decode()
    return {"Repr-Digest": f"sha-256=:{text}:"}


def matches(if_none_match: str | None, tag: str) -> bool:
    """Tell whether an ``If-None-Match`` header names ``tag`` (RFC 9110, weak comparison)."""
    if if_none_match is None:
        return False
    given = {each.strip().removeprefix("W/") for each in if_none_match.split(",")}
    return tag in given or "*" in given


def wanted_range(header: str | None, size: int) -> tuple[int, int] | None:
    """Return start and end (exclusive) of a ``Range`` header, None for the whole file.

    What is no single range of bytes is ignored, as RFC 9110 allows.

    Raises:
        Problem: ``range_unsatisfiable``.
    """
    match = None if header is None else _RANGE.fullmatch(header.strip())
    if match is None:
        return None
    first, last, suffix = match.groups()
    if suffix is not None:
        start, end = max(0, size - int(suffix)), size
    else:
        start, end = int(first), min(size, int(last) + 1 if last else size)
        if last and int(last) < start:
            return None
    if start >= end:
        raise Problem(
            "range_unsatisfiable",
            f"the file has {size} bytes",
            headers={"Content-Range": f"bytes */{size}"},
        )
    return start, end


def download(
    blobs: Blobs,
    key: str,
    *,
    size: int,
    tag: str,
    media_type: str,
    headers: Mapping[str, str],
    range_header: str | None,
    if_range: str | None,
    if_none_match: str | None,
) -> Response | StreamingResponse:
    """Send a blob.

    Args:
        blobs: where it is.
        key: which it is.
        size: its length in bytes.
        tag: its strong ETag, quotes included.
        media_type: MIME type.
        headers: more headers.
        range_header, if_range, if_none_match: of the request.

    Raises:
        Problem: ``range_unsatisfiable``.
        JobsError: the blob is gone or the storage does not answer.
    """
    common = {
        "ETag": tag,
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, no-cache",
        **headers,
    }
    if matches(if_none_match, tag):
        return Response(status_code=304, headers=common)
    if if_range is not None and if_range.strip() != tag:
        range_header = None
    part = wanted_range(range_header, size)
    start, end = part or (0, size)
    status = 200 if part is None else 206
    if part is not None:
        common["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    if end - start <= _SMALL:
        data = blobs.get(key, start=start, end=end) if end > start else b""
        return Response(data, status_code=status, media_type=media_type, headers=common)
    common["Content-Length"] = str(end - start)
    return StreamingResponse(
        blobs.stream(key, start=start, end=end),
        status_code=status,
        media_type=media_type,
        headers=common,
    )


class FileResponse(StreamingResponse):
    """An open file, sent in pieces, whole, and closed afterwards.

    Args:
        file: open for reading; it is this response's from now on.
        media_type: MIME type.
        headers: more headers.
    """

    def __init__(self, file: BinaryIO, *, media_type: str, headers: Mapping[str, str]) -> None:
        self._file = file
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        super().__init__(
            _pieces(file),
            media_type=media_type,
            headers={**headers, "Content-Length": str(size)},
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Also where the reader has gone before the end.
        with self._file:
            await super().__call__(scope, receive, send)


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    while piece := file.read(_PIECE):
        yield piece
